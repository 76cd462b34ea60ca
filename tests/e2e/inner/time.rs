//! Time in a machine that was built on virtual time and runs on the host's.

use std::thread;
use std::time::{Duration, Instant};

use crate::inner::Host;
use crate::suite::Suite;
use crate::support::ask;

/// What lies between the service's word and ours on a busy machine, s.
const SLACK: f64 = 10.0;

pub fn tests(suite: &mut Suite, host: &Host) {
    suite.test(
        "a restored machine's clock is the tsc, and programs read it without a system call",
        || vdso(host),
    );
    suite.test("a sleep right after the restore takes its time", || {
        sleeps(host)
    });
    suite.test(
        "the uptime of a restored machine goes on from where it was frozen",
        || uptime(host),
    );
    suite.test(
        "the clocks of a restored machine go at the host's pace, and never back",
        || pace(host),
    );
}

fn numbers(text: &str) -> [f64; 2] {
    let mut numbers = text.split(' ').map(|n| n.parse().expect("a number"));
    [numbers.next().expect("one"), numbers.next().expect("two")]
}

/// The service has the kernel refuse the system call, and reads the clock all the same.
fn vdso(host: &Host) {
    let machine = host.tools.start(&host.service(), "reader", &[7777]);
    let port = machine.port(7777);
    let source = "read /sys/devices/system/clocksource/clocksource0/current_clocksource";
    assert_eq!(ask(port, source), "tsc");
    assert_eq!(ask(port, "vdso 100000"), "0", "of 100 000 readings");
}

/// Naps of 50 ms, as soon as there is somebody to ask: none too short, the median within a fifth,
/// and by our own clock as well, for the guest's could be wrong in step with its timers.
/// A busy machine makes some longer, so there is more than one try; a wrong timer fails them all.
fn sleeps(host: &Host) {
    const TRIES: usize = 5;
    const COUNT: usize = 20;
    /// Question and answer, s.
    const WAY: f64 = 0.5;
    let machine = host.tools.start(&host.service(), "sleeper", &[7777]);
    let port = machine.port(7777);
    let mut told = Vec::new();
    for _ in 0..TRIES {
        let begin = Instant::now();
        let naps = ask(port, &format!("naps 50 {COUNT}"));
        let here = begin.elapsed().as_secs_f64();
        let naps = naps.split(' ').map(|nap| nap.parse().expect("a number"));
        let mut naps: Vec<f64> = naps.map(|nap: f64| nap / 1e9).collect();
        naps.sort_by(f64::total_cmp);
        let (shortest, median) = (naps[0], naps[COUNT / 2]);
        assert!(shortest >= 0.05, "a nap of 50 ms took {shortest} s");
        let there: f64 = naps.iter().sum();
        assert!(here > 0.95 * there, "{there} s there were {here} s here");
        if median <= 1.2 * 0.05 && here <= 1.2 * there + WAY {
            return;
        }
        told.push(format!("median {median} s, all {there} s, here {here} s"));
    }
    panic!("{COUNT} naps of 50 ms: {told:?}");
}

/// What passed in the guest since it was told to remember, before it was frozen, passed here since
/// the restore, but for a moment: neither back nor ahead by the machine's time in its file.
fn uptime(host: &Host) {
    let begin = Instant::now();
    let machine = host.tools.start(&host.service(), "waker", &[7777]);
    let [then, now] = numbers(&ask(machine.port(7777), "since")).map(|ns| ns / 1e9);
    let here = begin.elapsed().as_secs_f64();
    assert!(then > 0.0, "nothing was remembered");
    assert!(
        (0.0..here + SLACK).contains(&(now - then)),
        "it was told at {then} s, and it is {now} s {here} s after smolrun was started"
    );
    let line = ask(machine.port(7777), "read /proc/uptime");
    let uptime: f64 = line.split(' ').next().unwrap().parse().expect("seconds");
    assert!(
        (now - 0.01..now + SLACK).contains(&uptime),
        "/proc/uptime says {uptime} s, CLOCK_MONOTONIC {now} s before that"
    );
}

fn pace(host: &Host) {
    let machine = host.tools.start(&host.service(), "pacer", &[7777]);
    let port = machine.port(7777);
    // When it was asked, what it said, and when that was here.
    let look = || (Instant::now(), numbers(&ask(port, "clock")), Instant::now());
    let (asked, first, told) = look();
    thread::sleep(Duration::from_secs(5));
    let (asked_again, last, told_again) = look();
    let least = asked_again.duration_since(told).as_secs_f64();
    let most = told_again.duration_since(asked).as_secs_f64();
    for (clock, at) in [("wall clock", 0), ("uptime", 1)] {
        let there = (last[at] - first[at]) / 1e9;
        assert!(
            (0.9 * least..1.1 * most).contains(&there),
            "the {clock} went {there} s in {least} to {most} s"
        );
    }
    let [ticks, backwards] = numbers(&ask(port, "ticks"));
    assert!(ticks > 50.0, "{ticks} ticks since the machine's boot");
    assert_eq!(backwards, 0.0, "the service saw its clock run backwards");
}
