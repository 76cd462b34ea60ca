//! Time in a machine that was built on virtual time and runs on the host's.

use std::thread;
use std::time::{Duration, Instant};

use crate::inner::InnerHost;
use smol_tests::suite::Suite;
use smol_tests::support::{LIMIT, ask, eventually};

/// By how much a clock of an emulated host may be slower than ours, or faster.
const RATE: f64 = 0.9;

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a InnerHost) {
    suite.group("time");
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
fn vdso(host: &InnerHost) {
    let machine = host.tools.start(&host.service(), "reader", &[7777]);
    let port = machine.port(7777);
    let source = "read /sys/devices/system/clocksource/clocksource0/current_clocksource";
    assert_eq!(ask(port, source), "tsc");
    assert_eq!(ask(port, "vdso 100000"), "0", "of 100 000 readings");
}

/// Naps as soon as there is somebody to ask: none too short, by our own clock neither, for the guest's
/// could be wrong in step with its timers. A busy machine makes some of them longer, but not each of
/// many by as much again; a timer that is too slow does.
fn sleeps(host: &InnerHost) {
    const COUNT: usize = 20;
    const NAP: f64 = 0.25;
    let machine = host.tools.start(&host.service(), "sleeper", &[7777]);
    let port = machine.port(7777);
    let begin = Instant::now();
    let naps = ask(port, &format!("naps {} {COUNT}", NAP * 1e3));
    let here = begin.elapsed().as_secs_f64();
    let naps = naps.split(' ').map(|nap| nap.parse().expect("a number"));
    let naps: Vec<f64> = naps.map(|nap: f64| nap / 1e9).collect();
    let shortest = naps.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(
        (NAP..2.0 * NAP).contains(&shortest),
        "naps of {NAP} s took {naps:?}"
    );
    let there: f64 = naps.iter().sum();
    assert!(here > RATE * there, "{there} s there were {here} s here");
}

/// What passed in the guest since it was told to remember, before it was frozen, passed here since
/// the restore, but for a moment: neither back nor ahead by the machine's time in its file.
fn uptime(host: &InnerHost) {
    /// Virtual seconds between the service's word and the snapshot, at most.
    const BUILD: f64 = 10.0;
    let begin = Instant::now();
    let machine = host.tools.start(&host.service(), "waker", &[7777]);
    let port = machine.port(7777);
    let since = || numbers(&ask(port, "since")).map(|ns| ns / 1e9);
    let [then, now] = since();
    let here = begin.elapsed().as_secs_f64();
    assert!(then > 0.0, "nothing was remembered");
    assert!(
        (0.0..here / RATE + BUILD).contains(&(now - then)),
        "it was told at {then} s, and it is {now} s {here} s after smolrun was started"
    );
    let line = ask(port, "read /proc/uptime");
    let uptime: f64 = line.split(' ').next().unwrap().parse().expect("seconds");
    let [_, later] = since();
    // It has hundredths.
    assert!(
        (now - 0.01..=later).contains(&uptime),
        "/proc/uptime says {uptime} s, CLOCK_MONOTONIC {now} s before that and {later} s after"
    );
}

fn pace(host: &InnerHost) {
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
            (RATE * least..most / RATE).contains(&there),
            "the {clock} went {there} s in {least} to {most} s"
        );
    }
    let backwards = eventually("many looks at the clock", LIMIT, || {
        let [looks, backwards] = numbers(&ask(port, "ticks"));
        (looks > 100.0).then_some(backwards)
    });
    assert_eq!(backwards, 0.0, "the service saw its clock run backwards");
}
