//! A list of tests, and what became of each.
//!
//! ```text
//! Suite (names, in order) ── run one after the other ──> Tally ── report
//! ```
//! A test that fails because its emulated host died or hung by itself runs once more, in a fresh one:
//! it is told as flaky then. Of those, a run bears [`MOST_FLAKY`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// So many tests of a run may have met a fault of the emulator.
const MOST_FLAKY: usize = 2;
/// So many of the slowest tests are named at the end.
const SLOWEST: usize = 5;

/// How a test that did not fail came out.
pub enum Verdict {
    /// It held.
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
    /// The topic that it belongs to: the file that it is in.
    pub group: &'static str,
    /// A sentence.
    pub name: String,
    run: Box<dyn Fn() -> Verdict + 'a>,
}

impl Test<'_> {
    /// Runs it; a panic, which prints its message, is a failure.
    pub fn attempt(&self) -> Outcome {
        match catch_unwind(AssertUnwindSafe(&self.run)) {
            Ok(Verdict::Passed) => Outcome::Passed,
            Ok(Verdict::Skipped(why)) => Outcome::LeftOut(why),
            Err(_) => Outcome::Failed,
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
    /// The tests that follow belong to this topic.
    pub fn group(&mut self, group: &'static str) {
        self.group = group;
    }

    /// Adds one.
    pub fn test<V: Into<Verdict>>(&mut self, name: &str, run: impl Fn() -> V + 'a) {
        self.tests.push(Test {
            group: self.group,
            name: name.to_owned(),
            run: Box::new(move || run().into()),
        });
    }

    /// Leaves those whose topic and name hold all of `words`.
    pub fn filter(mut self, words: &[String]) -> Self {
        let holds = |test: &Test, word: &String| test.group == word || test.name.contains(word);
        self.tests
            .retain(|test| words.iter().all(|word| holds(test, word)));
        self
    }

    /// The tests.
    pub fn tests(&self) -> &[Test<'a>] {
        &self.tests
    }
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    /// It cannot be tried here, and why.
    LeftOut(String),
}

/// How the line of a test that has ended begins. Its outcome is behind [`BEHIND`].
const BEFORE: &str = "test ";
const BEHIND: &str = " ... ";
const LEFT_OUT: &str = "left out: ";

/// The line that tells of a test that has ended.
pub fn line(name: &str, outcome: &Outcome) -> String {
    let told = match outcome {
        Outcome::Passed => "ok".to_owned(),
        Outcome::Failed => "FAILED".to_owned(),
        Outcome::LeftOut(why) => format!("{LEFT_OUT}{why}"),
    };
    format!("{BEFORE}{name}{BEHIND}{told}")
}

/// What such a line tells; `None` if it is another one.
pub fn parse(line: &str) -> Option<(&str, Outcome)> {
    let (name, told) = line.strip_prefix(BEFORE)?.split_once(BEHIND)?;
    let outcome = match told {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        _ => Outcome::LeftOut(told.strip_prefix(LEFT_OUT)?.to_owned()),
    };
    Some((name, outcome))
}

/// What has happened so far.
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
    /// One that prints nothing.
    pub fn quiet() -> Self {
        Self {
            quiet: true,
            ..Self::default()
        }
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            println!("{line}");
        }
    }

    /// A test has ended, and took so long.
    pub fn ended(&mut self, name: &str, outcome: Outcome, took: Duration) {
        self.say(&line(name, &outcome));
        self.times.push((took, name.to_owned()));
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed => self.failed.push(name.to_owned()),
            Outcome::LeftOut(why) => self.left_out.push((name.to_owned(), why)),
        }
    }

    /// An emulated host did this by itself while a test ran, which is run once more.
    pub fn flaky(&mut self, name: &str, what: &str) {
        self.say(&format!("flaky (emulated host): {name}: {what}"));
        self.flaky.push((name.to_owned(), what.to_owned()));
    }

    /// Runs a test. `faults` tells what emulated hosts have done by themselves since it was last asked.
    pub fn run(&mut self, test: &Test, faults: impl Fn() -> Vec<String>) {
        let begin = Instant::now();
        let mut outcome = test.attempt();
        let met = faults();
        if outcome == Outcome::Failed && !met.is_empty() {
            self.flaky(&test.name, &met.join("\n"));
            outcome = test.attempt();
            faults();
        }
        self.ended(&test.name, outcome, begin.elapsed());
    }

    /// The last lines, and whether all is well.
    pub fn finish(mut self) -> bool {
        if self.flaky.len() > MOST_FLAKY {
            let many = format!("more than {MOST_FLAKY} tests met a fault of their emulated host");
            self.failed.push(many);
        }
        self.times.sort_by(|a, b| b.0.cmp(&a.0));
        let slowest = self.times.iter().take(SLOWEST);
        let slowest = slowest.map(|(took, name)| format!("{:7.1} s  {name}", took.as_secs_f64()));
        self.list("slowest", slowest.collect());
        self.list("left out", first_lines(&self.left_out));
        self.list("flaky (emulated host)", first_lines(&self.flaky));
        self.list("failed", self.failed.clone());
        self.say(&format!(
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
            self.say(&format!("\n{what}:\n    {}", tests.join("\n    ")));
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
