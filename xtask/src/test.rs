//! `cargo xtask test`: everything that must pass, what fails fast first.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::packages::{self, For};
use crate::shell::{self, cargo};

/// The test that builds and runs machines; it has a step of its own, the last.
const END_TO_END: &str = "e2e";

/// Runs all steps, up to the first that fails.
///
/// # Errors
/// That step's.
pub fn run() -> Result<()> {
    let mut steps = Steps::default();
    steps.step("packages", || packages::install(For::Test))?;
    steps.cargo("format", &["fmt", "--all", "--check"])?;
    steps.cargo(
        "lints",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    // All but the end-to-end tests, which are not among those that run unasked.
    steps.cargo(
        "unit and integration tests",
        &["test", "--workspace", "--locked"],
    )?;
    steps.cargo(
        "end-to-end tests",
        &[
            "test",
            "--locked",
            "--package",
            "smolbuild",
            "--test",
            END_TO_END,
        ],
    )?;
    steps.report();
    Ok(())
}

#[derive(Default)]
struct Steps(Vec<(String, Duration)>);

impl Steps {
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n==> {name}");
        let begin = Instant::now();
        work().with_context(|| format!("{name} failed"))?;
        self.0.push((name.to_owned(), begin.elapsed()));
        Ok(())
    }

    fn cargo(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        self.step(name, || shell::run(cargo().args(arguments)))
    }

    fn report(&self) {
        println!();
        for (name, took) in &self.0 {
            println!("{name:<28} {:>7.1} s", took.as_secs_f64());
        }
        let total: Duration = self.0.iter().map(|(_, took)| *took).sum();
        println!(
            "all {} steps passed in {:.1} min",
            self.0.len(),
            total.as_secs_f64() / 60.0
        );
    }
}
