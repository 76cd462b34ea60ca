//! A list of tests, and what became of each.
//!
//! ```text
//! Suite (names, in order) ── run one after the other ──> Tally ── report
//! ```
//! A test that fails because its emulated host died or hung by itself runs once more, in a fresh one,
//! and is reported as flaky. More than two of those fail a run.
//!
//! This is no libtest harness (libtest-mimic): the tests of the inner half run in one process inside of
//! the emulated host, and when that dies, a fresh one goes on with the test that was interrupted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The number of tests of a run that may meet a fault of the emulator.
const MAX_FLAKY: usize = 2;
/// The number of the slowest tests that are listed at the end.
const SLOWEST: usize = 5;

/// The result of a test that did not fail.
pub enum Verdict {
    /// It passed.
    Passed,
    /// It cannot be tried here, and why.
    Skipped(String),
}

impl From<()> for Verdict {
    fn from((): ()) -> Self {
        Verdict::Passed
    }
}

/// A test: what holds, and what shows it.
pub struct Test<'a> {
    /// Its topic: the file that it is in.
    pub group: &'static str,
    /// A sentence.
    pub name: String,
    run: Box<dyn Fn() -> Verdict + 'a>,
}

impl Test<'_> {
    /// Runs it. A panic, which prints its message, is a failure.
    pub fn attempt(&self) -> TestOutcome {
        match catch_unwind(AssertUnwindSafe(&self.run)) {
            Ok(Verdict::Passed) => TestOutcome::Passed,
            Ok(Verdict::Skipped(why)) => TestOutcome::LeftOut(why),
            Err(_) => TestOutcome::Failed,
        }
    }
}

/// Tests in their order.
#[derive(Default)]
pub struct Suite<'a> {
    tests: Vec<Test<'a>>,
    group: &'static str,
}

impl<'a> Suite<'a> {
    /// Sets the topic of the tests that are added from now on.
    pub fn group(&mut self, group: &'static str) {
        self.group = group;
    }

    /// Adds a test.
    pub fn test<V: Into<Verdict>>(&mut self, name: &str, run: impl Fn() -> V + 'a) {
        self.tests.push(Test {
            group: self.group,
            name: name.to_owned(),
            run: Box::new(move || run().into()),
        });
    }

    /// Keeps the tests whose topic or name contains each of `words`.
    pub fn filter(mut self, words: &[String]) -> Self {
        let holds = |test: &Test, word: &String| test.group == word || test.name.contains(word);
        self.tests
            .retain(|test| words.iter().all(|word| holds(test, word)));
        self
    }

    /// Returns the tests.
    pub fn tests(&self) -> &[Test<'a>] {
        &self.tests
    }
}

/// The outcome of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestOutcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It cannot be tried here, and why.
    LeftOut(String),
}

/// The line of a test that has ended: this, its name, [`BEHIND`], its outcome.
const BEFORE: &str = "test ";
const BEHIND: &str = " ... ";
const LEFT_OUT: &str = "left out: ";

/// Returns the line of a test that has ended.
pub fn line(name: &str, outcome: &TestOutcome) -> String {
    let told = match outcome {
        TestOutcome::Passed => "ok".to_owned(),
        TestOutcome::Failed => "FAILED".to_owned(),
        TestOutcome::LeftOut(why) => format!("{LEFT_OUT}{why}"),
    };
    format!("{BEFORE}{name}{BEHIND}{told}")
}

/// Parses such a line; `None` if it is another one.
pub fn parse(line: &str) -> Option<(&str, TestOutcome)> {
    let (name, told) = line.strip_prefix(BEFORE)?.split_once(BEHIND)?;
    let outcome = match told {
        "ok" => TestOutcome::Passed,
        "FAILED" => TestOutcome::Failed,
        _ => TestOutcome::LeftOut(told.strip_prefix(LEFT_OUT)?.to_owned()),
    };
    Some((name, outcome))
}

/// The outcomes so far.
#[derive(Default)]
pub struct Tally {
    passed: usize,
    failed: Vec<String>,
    /// The test, and what its emulated host did.
    flaky: Vec<(String, String)>,
    left_out: Vec<(String, String)>,
    times: Vec<(Duration, String)>,
    quiet: bool,
}

impl Tally {
    /// Creates one that prints nothing.
    pub fn quiet() -> Self {
        Self {
            quiet: true,
            ..Self::default()
        }
    }

    fn print(&self, line: &str) {
        if !self.quiet {
            println!("{line}");
        }
    }

    /// Takes the outcome of a test that has ended.
    pub fn ended(&mut self, name: &str, outcome: TestOutcome, took: Duration) {
        self.print(&line(name, &outcome));
        self.times.push((took, name.to_owned()));
        match outcome {
            TestOutcome::Passed => self.passed += 1,
            TestOutcome::Failed => self.failed.push(name.to_owned()),
            TestOutcome::LeftOut(why) => self.left_out.push((name.to_owned(), why)),
        }
    }

    /// Takes a fault of an emulated host while a test ran, which is run once more.
    pub fn flaky(&mut self, name: &str, what: &str) {
        self.print(&format!("flaky (emulated host): {name}: {what}"));
        self.flaky.push((name.to_owned(), what.to_owned()));
    }

    /// Runs a test. `faults` returns the faults of emulated hosts since the last call.
    pub fn run(&mut self, test: &Test, faults: impl Fn() -> Vec<String>) {
        let begin = Instant::now();
        let mut outcome = test.attempt();
        let met = faults();
        if outcome == TestOutcome::Failed && !met.is_empty() {
            self.flaky(&test.name, &met.join("\n"));
            outcome = test.attempt();
            faults();
        }
        self.ended(&test.name, outcome, begin.elapsed());
    }

    /// Prints the summary; returns whether nothing failed.
    pub fn finish(mut self) -> bool {
        if self.flaky.len() > MAX_FLAKY {
            let many = format!("more than {MAX_FLAKY} tests met a fault of their emulated host");
            self.failed.push(many);
        }
        self.times.sort_by_key(|(took, _)| std::cmp::Reverse(*took));
        let slowest = self.times.iter().take(SLOWEST);
        let slowest = slowest.map(|(took, name)| format!("{:7.1} s  {name}", took.as_secs_f64()));
        self.list("slowest", slowest.collect());
        self.list("left out", first_lines(&self.left_out));
        self.list("flaky (emulated host)", first_lines(&self.flaky));
        self.list("failed", self.failed.clone());
        self.print(&format!(
            "\n{} passed, {} failed, {} flaky, {} left out",
            self.passed,
            self.failed.len(),
            self.flaky.len(),
            self.left_out.len()
        ));
        self.failed.is_empty()
    }

    fn list(&self, what: &str, tests: Vec<String>) {
        if !tests.is_empty() {
            self.print(&format!("\n{what}:\n    {}", tests.join("\n    ")));
        }
    }
}

fn first_lines(tests: &[(String, String)]) -> Vec<String> {
    let told = |(name, why): &(String, String)| {
        let first = why.lines().next().unwrap_or_default();
        format!("{name}: {first}")
    };
    tests.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::panic::resume_unwind;

    use super::*;

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

    #[test]
    fn a_test_whose_emulated_host_failed_by_itself_runs_once_more_and_no_other_does() {
        assert_eq!(tried(0, false), (1, true));
        assert_eq!(tried(1, true), (2, true));
        assert_eq!(tried(1, false), (1, false));
        assert_eq!(tried(2, true), (2, false));
    }

    #[test]
    fn more_than_two_faults_of_emulated_hosts_fail_a_run() {
        for (faults, passes) in [(2, true), (3, false)] {
            let mut tally = Tally::quiet();
            for _ in 0..faults {
                tally.flaky("(one)", "it died");
                tally.ended("(one)", TestOutcome::Passed, Default::default());
            }
            assert_eq!(tally.finish(), passes);
        }
    }

    #[test]
    fn the_line_of_a_test_tells_what_became_of_it() {
        let left_out = TestOutcome::LeftOut("no KVM ... here".into());
        for outcome in [TestOutcome::Passed, TestOutcome::Failed, left_out] {
            assert_eq!(parse(&line("a b", &outcome)), Some(("a b", outcome)));
        }
        assert_eq!(parse("test results are here"), None);
        assert_eq!(parse("tests pass ... ok"), None);
    }
}
