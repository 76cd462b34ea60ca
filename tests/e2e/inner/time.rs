//! Time in a machine that was built on virtual time and runs on the host's.

use std::thread;
use std::time::{Duration, Instant};

use crate::inner::Host;
use crate::suite::Suite;
use crate::support::ask;

pub fn tests(suite: &mut Suite, host: &Host) {
    suite.test("a sleep right after the restore takes its time", || {
        sleeps(host)
    });
    suite.test(
        "the clocks of a restored machine go at the host's pace, and never back",
        || pace(host),
    );
}

fn numbers(text: &str) -> [f64; 2] {
    let mut numbers = text.split(' ').map(|n| n.parse().expect("a number"));
    [numbers.next().expect("one"), numbers.next().expect("two")]
}

/// Twenty sleeps of 50 ms, as soon as there is somebody to ask: none too short, most on time.
fn sleeps(host: &Host) {
    let machine = host.tools.start(&host.service(), "sleeper", &[7777]);
    let port = machine.port(7777);
    let mut slept: Vec<f64> = (0..20)
        .map(|_| ask(port, "sleep 50").parse::<f64>().unwrap() / 1e6)
        .collect();
    slept.sort_by(f64::total_cmp);
    let (shortest, median) = (slept[0], slept[slept.len() / 2]);
    assert!(shortest >= 50.0, "a sleep of 50 ms took {shortest} ms");
    assert!(
        median < 75.0,
        "a sleep of 50 ms took {median} ms (median of 20)"
    );

    // By our own clock as well: the guest's could be wrong in step with its timers.
    let begin = Instant::now();
    let slept = ask(port, "sleep 2000").parse::<f64>().unwrap() / 1e9;
    let ours = begin.elapsed().as_secs_f64();
    assert!(
        (1.9..2.8).contains(&ours),
        "a sleep of 2 s took {slept} s there and {ours} s here"
    );
}

fn pace(host: &Host) {
    let machine = host.tools.start(&host.service(), "pacer", &[7777]);
    let port = machine.port(7777);
    let look = || (Instant::now(), numbers(&ask(port, "clock")));
    let (begin, first) = look();
    thread::sleep(Duration::from_secs(5));
    let (end, last) = look();
    let here = end.duration_since(begin).as_secs_f64();
    for (clock, at) in [("wall clock", 0), ("uptime", 1)] {
        let there = (last[at] - first[at]) / 1e9;
        let error = (there / here - 1.0).abs();
        assert!(error < 0.1, "the {clock} went {there} s in {here} s");
    }
    let [ticks, backwards] = numbers(&ask(port, "ticks"));
    assert!(ticks > 50.0, "{ticks} ticks since the machine's boot");
    assert_eq!(backwards, 0.0, "the service saw its clock run backwards");
}
