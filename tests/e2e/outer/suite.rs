//! The list of tests itself: what it makes of faults of emulated hosts.

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;

use crate::suite::{Outcome, Suite, Tally, line, parse};

pub fn tests(suite: &mut Suite) {
    suite.group("suite");
    suite.test(
        "a test whose emulated host failed by itself runs once more, and no other does",
        once_more,
    );
    suite.test("more than two faults of emulated hosts fail a run", many);
    suite.test("the line of a test tells what became of it", lines);
}

/// Runs a test that fails so many times, each time with such a fault or without; how often it ran, and
/// whether it passed.
fn tried(failures: usize, faults: bool) -> (usize, bool) {
    let attempts = Cell::new(0);
    let pending = RefCell::new(Vec::new());
    let mut suite = Suite::default();
    suite.test("(one that is made to fail)", || {
        attempts.set(attempts.get() + 1);
        let fails = attempts.get() <= failures;
        if fails && faults {
            pending.borrow_mut().push("it died".to_owned());
        }
        if fails {
            // A panic without a message.
            resume_unwind(Box::new(()));
        }
    });
    let mut tally = Tally::quiet();
    tally.run(&suite.tests()[0], || pending.take());
    (attempts.get(), tally.finish())
}

fn once_more() {
    assert_eq!(tried(0, false), (1, true));
    assert_eq!(tried(1, true), (2, true));
    assert_eq!(tried(1, false), (1, false));
    assert_eq!(tried(2, true), (2, false));
}

fn many() {
    for (faults, passes) in [(2, true), (3, false)] {
        let mut tally = Tally::quiet();
        for _ in 0..faults {
            tally.flaky("(one)", "it died");
            tally.ended("(one)", Outcome::Passed, Default::default());
        }
        assert_eq!(tally.finish(), passes);
    }
}

fn lines() {
    let left_out = Outcome::LeftOut("no KVM ... here".into());
    for outcome in [Outcome::Passed, Outcome::Failed, left_out] {
        assert_eq!(parse(&line("a b", &outcome)), Some(("a b", outcome)));
    }
    assert_eq!(parse("test results are here"), None);
    assert_eq!(parse("tests pass ... ok"), None);
}
