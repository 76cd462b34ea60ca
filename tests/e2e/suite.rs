//! Running tests one after the other, with a line for each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

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

/// What has happened so far.
pub struct Suite {
    words: Vec<String>,
    passed: usize,
    failed: Vec<String>,
    ignored: usize,
    /// Seconds, and the test that took them.
    times: Vec<(f64, String)>,
}

/// So many of the slowest tests are named at the end.
const SLOWEST: usize = 5;

impl Suite {
    /// One that runs the tests whose names hold all of `words`.
    pub fn new(words: &[String]) -> Self {
        Self {
            words: words.to_vec(),
            passed: 0,
            failed: Vec::new(),
            ignored: 0,
            times: Vec::new(),
        }
    }

    /// Runs one test, if its name holds the words; a panic is its failure.
    pub fn test<V: Into<Verdict>>(&mut self, name: &str, test: impl FnOnce() -> V) {
        if self.words.iter().all(|word| name.contains(word)) {
            self.always(name, test);
        }
    }

    /// Runs one that others stand on, whatever the words are.
    pub fn always<V: Into<Verdict>>(&mut self, name: &str, test: impl FnOnce() -> V) {
        let begin = Instant::now();
        let verdict = match catch_unwind(AssertUnwindSafe(test)).map(Into::into) {
            Ok(Verdict::Passed) => "ok".to_owned(),
            Ok(Verdict::Skipped(why)) => format!("ignored, {why}"),
            Err(_) => "FAILED".to_owned(),
        };
        self.line(&format!("test {name} ... {verdict}"));
        self.times
            .push((begin.elapsed().as_secs_f64(), name.to_owned()));
    }

    /// Something beside the tests went wrong.
    pub fn fail(&mut self, name: &str) {
        self.line(&format!("test {name} ... FAILED"));
    }

    /// Prints a line, and counts it if it is the verdict of a test; it may be another process's.
    pub fn line(&mut self, line: &str) {
        println!("{line}");
        let test = line.strip_prefix("test ");
        let Some((name, verdict)) = test.and_then(|test| test.rsplit_once(" ... ")) else {
            return;
        };
        match verdict.split(',').next() {
            Some("ok") => self.passed += 1,
            Some("ignored") => self.ignored += 1,
            Some("FAILED") => self.failed.push(name.to_owned()),
            _ => {}
        }
    }

    /// How many tests have ended, in whatever way.
    pub fn ended(&self) -> usize {
        self.passed + self.ignored + self.failed.len()
    }

    /// The slowest of the tests that ran in this process.
    pub fn slowest(&mut self) {
        self.times.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (seconds, name) in self.times.iter().take(SLOWEST) {
            println!("{seconds:7.1} s  {name}");
        }
    }

    /// The last lines, and the exit code.
    pub fn finish(mut self) -> ExitCode {
        println!();
        self.slowest();
        if !self.failed.is_empty() {
            println!("\nfailed:");
            self.failed.iter().for_each(|name| println!("    {name}"));
        }
        if self.ignored > 0 {
            println!("\n{} ignored", self.ignored);
        }
        println!("\n{} passed, {} failed", self.passed, self.failed.len());
        match self.failed.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}
