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
    skipped: usize,
}

impl Suite {
    /// One that runs the tests whose names hold all of `words`.
    pub fn new(words: &[String]) -> Self {
        Self {
            words: words.to_vec(),
            passed: 0,
            failed: Vec::new(),
            skipped: 0,
        }
    }

    /// Runs one test; a panic is its failure.
    pub fn test<V: Into<Verdict>>(&mut self, name: &str, test: impl FnOnce() -> V) {
        if self.words.iter().all(|word| name.contains(word)) {
            self.always(name, test);
        }
    }

    /// Runs one that others stand on, whatever the words are.
    pub fn always<V: Into<Verdict>>(&mut self, name: &str, test: impl FnOnce() -> V) {
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(test)).map(Into::into);
        let took = begin.elapsed().as_secs_f64();
        match outcome {
            Ok(Verdict::Passed) => {
                self.passed += 1;
                println!("test {name} ... ok ({took:.1} s)");
            }
            Ok(Verdict::Skipped(why)) => {
                self.skipped += 1;
                println!("test {name} ... skipped: {why}");
            }
            Err(_) => {
                println!("test {name} ... FAILED ({took:.1} s)");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Counts a line that another process's suite has printed.
    pub fn count(&mut self, line: &str) {
        let Some((name, verdict)) = line
            .strip_prefix("test ")
            .and_then(|l| l.rsplit_once(" ... "))
        else {
            return;
        };
        match verdict.split([' ', ':']).next() {
            Some("ok") => self.passed += 1,
            Some("skipped") => self.skipped += 1,
            Some("FAILED") => self.failed.push(name.to_owned()),
            _ => {}
        }
    }

    /// Something beside the tests went wrong.
    pub fn fail(&mut self, name: &str) {
        println!("test {name} ... FAILED");
        self.failed.push(name.to_owned());
    }

    /// The last lines, and the exit code.
    pub fn finish(self) -> ExitCode {
        if !self.failed.is_empty() {
            println!("\nfailed:");
            self.failed.iter().for_each(|name| println!("    {name}"));
        }
        let skipped = if self.skipped > 0 {
            format!(", {} skipped", self.skipped)
        } else {
            String::new()
        };
        println!(
            "\n{} passed, {} failed{skipped}",
            self.passed,
            self.failed.len()
        );
        match self.failed.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}
