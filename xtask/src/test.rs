//! `cargo xtask test`: everything that must pass, what fails fast first.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

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
    steps.step("unit and integration tests", || {
        let mut command = cargo();
        command.args(["test", "--workspace", "--locked", "--lib", "--bins"]);
        for name in integration_tests()? {
            command.args(["--test", &name]);
        }
        shell::run(&mut command)
    })?;
    steps.cargo(
        "documentation tests",
        &["test", "--workspace", "--locked", "--doc", "--quiet"],
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

/// Names of all integration tests but the end-to-end test.
fn integration_tests() -> Result<Vec<String>> {
    let mut metadata: Command = cargo();
    let output = metadata
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("cannot run cargo")?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("what cargo metadata says")?;
    let targets = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|package| package["targets"].as_array());
    let tests = targets
        .flatten()
        .filter(|target| target["kind"][0] == "test");
    let names = tests.filter_map(|target| target["name"].as_str());
    Ok(names
        .filter(|name| *name != END_TO_END)
        .map(str::to_owned)
        .collect())
}
