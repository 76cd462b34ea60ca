//! The outcomes of tests, counted from the lines that they print: those of libtest and ours.
//!
//! ```text
//! test NAME ... ok                        test result: ok. 3 passed; 0 failed; ...
//! test NAME ... FAILED                    flaky (emulated host): NAME: WHAT
//! test NAME ... ignored, WHY              test NAME ... left out: WHY
//! test NAME ... ignored (WHY)             (libtest-mimic's, which also fills up names with spaces)
//! ```

/// The outcomes of tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: usize,
    pub failed: Vec<String>,
    /// With the faults of their emulated hosts.
    pub flaky: Vec<(String, String)>,
    /// With the reason.
    pub left_out: Vec<(String, String)>,
}

impl Tally {
    /// Takes a line; returns whether it is to be shown.
    pub fn take(&mut self, line: &str) -> bool {
        if let Some(told) = line.strip_prefix("flaky (emulated host): ") {
            self.flaky.extend(named(told));
            return true;
        }
        let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        else {
            return !is_noise(line);
        };
        let name = name.trim_end();
        let why = |told: &str| (name.to_owned(), told.to_owned());
        match outcome {
            // To Rust's own harness, a test that says of itself that it was left out has passed.
            "ok" if self.left_out.iter().any(|(left_out, _)| left_out == name) => return false,
            "ok" => self.passed += 1,
            "FAILED" => self.failed.push(name.to_owned()),
            // One test starts another with it.
            "ignored, run by another test" => return false,
            "ignored" => self.left_out.push(why("ignored")),
            _ => match outcome
                .strip_prefix("ignored, ")
                .or(outcome.strip_prefix("left out: "))
                .or(in_parentheses(outcome.strip_prefix("ignored ")))
            {
                Some(told) => self.left_out.push(why(told)),
                None => return true,
            },
        }
        // Names that are sentences are those of tests that take long: one wants to see how far it is.
        outcome != "ok" || name.contains(' ')
    }
}

fn in_parentheses(text: Option<&str>) -> Option<&str> {
    text?.strip_prefix('(')?.strip_suffix(')')
}

fn named(told: &str) -> Option<(String, String)> {
    let (name, what) = told.split_once(": ")?;
    Some((name.to_owned(), what.to_owned()))
}

/// Lines of libtest that hold no outcome.
fn is_noise(line: &str) -> bool {
    line.is_empty()
        || line.starts_with("running ")
        || line.starts_with("test result: ok. ")
        || line.starts_with("    Running ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_with_their_reasons() {
        let mut tally = Tally::default();
        let shown: Vec<&str> = [
            "running 3 tests",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test a::d ... ignored, needs a tape",
            "test child ... ignored, run by another test",
            "test it needs something   ... ignored (needs mkfs.erofs (erofs-utils))",
            "test it has a name ... ok",
            "test it cannot ... left out: /dev/kvm: none",
            "test it cannot ... ok",
            "flaky (emulated host): it dies: the emulated host hangs: its CPU 1 ...",
            "thread 'main' panicked",
            "",
            "test result: ok. 3 passed; 0 failed",
        ]
        .into_iter()
        .filter(|line| tally.take(line))
        .collect();
        let pair = |name: &str, why: &str| (name.to_owned(), why.to_owned());
        let wanted = Tally {
            passed: 2,
            failed: vec!["a::c".into()],
            flaky: vec![pair("it dies", "the emulated host hangs: its CPU 1 ...")],
            left_out: vec![
                pair("a::d", "needs a tape"),
                pair("it needs something", "needs mkfs.erofs (erofs-utils)"),
                pair("it cannot", "/dev/kvm: none"),
            ],
        };
        assert_eq!(tally, wanted);
        assert_eq!(
            shown,
            [
                "test a::c ... FAILED",
                "test a::d ... ignored, needs a tape",
                "test it needs something   ... ignored (needs mkfs.erofs (erofs-utils))",
                "test it has a name ... ok",
                "test it cannot ... left out: /dev/kvm: none",
                "flaky (emulated host): it dies: the emulated host hangs: its CPU 1 ...",
                "thread 'main' panicked",
            ]
        );
    }
}
