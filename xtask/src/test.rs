//! `cargo xtask test`: everything that must pass, what fails fast first; or only what has a name.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::packages::{self, For};
use crate::shell::{self, cargo};
use crate::tally::Tally;

/// The test that builds and runs machines; it has a step of its own, the last. It is asked for in the whole
/// workspace, which has one of this name: for its package alone, cargo would choose other features of
/// dependencies, and compile them once more.
const END_TO_END: &str = "e2e";

/// The recipe that they boot.
const KERNEL: &str = "smol-6.1";

/// `cargo xtask test`.
#[derive(Debug, Args)]
pub struct TestOptions {
    /// Only tests whose names hold these words, or of an end-to-end test's topic
    words: Vec<String>,
    /// The end-to-end tests in the emulated host so many times, up to the first failure
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
}

/// Runs all steps, up to the first that fails, and sums up.
///
/// # Errors
/// That step's.
pub fn run(options: &TestOptions) -> Result<()> {
    let mut steps = Steps::default();
    let outcome = steps.all(options);
    steps.report();
    outcome
}

#[derive(Default)]
struct Steps(Vec<Step>);

struct Step {
    name: String,
    took: Duration,
    tally: Tally,
    passed: bool,
}

impl Steps {
    fn all(&mut self, options: &TestOptions) -> Result<()> {
        let words: Vec<&str> = options.words.iter().map(String::as_str).collect();
        let mut kernel = None;
        if words.is_empty() {
            self.checks_and_packages()?;
            self.step("programs", |_| {
                shell::run(&mut programs())?;
                kernel = Kernel::begin();
                Ok(())
            })?;
        } else {
            self.step("packages", |_| packages::install(For::Test))?;
        }
        // All but the end-to-end tests, which are not among those that run unasked. libtest takes one
        // word, which is a part of a name there, where a space is an underscore.
        let name = words.join("_").replace(' ', "_");
        self.step("unit and integration tests", |tally| {
            let mut command = cargo();
            command.args(["test", "--workspace", "--locked", "--no-fail-fast", "--"]);
            follow(command.args((!name.is_empty()).then_some(&name)), tally)
        })?;
        if let Some(kernel) = kernel {
            self.step("kernel", |_| kernel.finish())?;
        }
        self.step("end-to-end tests", |tally| {
            let mut command = cargo();
            command.args(["test", "--workspace", "--locked", "--test"]);
            command.args([END_TO_END, "--"]).args(words);
            if let Some(rounds) = options.rounds {
                command.args(["--rounds", &rounds.to_string()]);
            }
            follow(&mut command, tally)
        })
    }

    /// What needs no more than a C compiler, while the packages come from the network.
    fn checks_and_packages(&mut self) -> Result<()> {
        thread::scope(|scope| {
            let packages = scope.spawn(|| packages::install(For::Test));
            self.step("format", |_| {
                shell::run(cargo().args(["fmt", "--all", "--check"]))
            })?;
            self.step("lints", |_| {
                shell::run(&mut clippy(&["--workspace", "--all-targets"]))?;
                // All targets are those that run unasked.
                shell::run(&mut clippy(&["--workspace", "--test", END_TO_END]))
            })?;
            self.step("packages", |_| {
                let ended = packages.join();
                ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }

    fn step(&mut self, name: &str, work: impl FnOnce(&mut Tally) -> Result<()>) -> Result<()> {
        println!("\n==> {name}");
        let begin = Instant::now();
        let mut tally = Tally::default();
        let outcome = work(&mut tally).with_context(|| format!("{name} failed"));
        self.0.push(Step {
            name: name.to_owned(),
            took: begin.elapsed(),
            tally,
            passed: outcome.is_ok(),
        });
        outcome
    }

    fn report(&self) {
        println!("\n==> summary");
        println!(
            "{:<28} {:>8} {:>8} {:>8} {:>8} {:>9}",
            "", "passed", "failed", "flaky", "left out", "time"
        );
        for step in &self.0 {
            let seconds = step.took.as_secs_f64();
            println!("{:<28} {} {seconds:>7.1} s", step.name, step.counts());
        }
        for step in &self.0 {
            for (name, why) in &step.tally.left_out {
                println!("left out: {name}: {why}");
            }
            for (name, why) in &step.tally.flaky {
                println!("flaky (emulated host): {name}: {why}");
            }
            for name in &step.tally.failed {
                println!("failed: {name}");
            }
        }
        let total: Duration = self.0.iter().map(|step| step.took).sum();
        let minutes = total.as_secs_f64() / 60.0;
        let failed = self.0.iter().filter(|step| !step.passed).count();
        match failed {
            0 => println!("all {} steps passed in {minutes:.1} min", self.0.len()),
            _ => println!("{failed} step failed, after {minutes:.1} min"),
        }
    }
}

impl Step {
    fn counts(&self) -> String {
        let Tally {
            passed,
            failed,
            flaky,
            left_out,
        } = &self.tally;
        match (self.passed, *passed + failed.len() + left_out.len()) {
            (true, 0) => format!("{:>8} {:>8} {:>8} {:>8}", "ok", "", "", ""),
            (false, 0) => format!("{:>8} {:>8} {:>8} {:>8}", "", "FAILED", "", ""),
            _ => format!(
                "{passed:>8} {:>8} {:>8} {:>8}",
                failed.len(),
                flaky.len(),
                left_out.len()
            ),
        }
    }
}

/// The programs, as `cargo test` has them: with one of their tests, for else cargo would choose other
/// features of dependencies.
fn programs() -> Command {
    let mut command = cargo();
    command.args(["build", "--workspace", "--locked", "--quiet"]);
    command.args([
        "--bin",
        "smolbuild",
        "--bin",
        "smolrun",
        "--test",
        "messages",
    ]);
    command
}

/// The kernel that the end-to-end tests boot, compiled with what the tests before them leave of the
/// processors. If it was compiled before, it is in the cache.
struct Kernel(Child);

impl Kernel {
    /// Begins with it; `None` if that cannot be: the end-to-end tests do it themselves, and say why not.
    fn begin() -> Option<Self> {
        let smolbuild = shell::build_folder("debug").ok()?.join("smolbuild");
        let mut command = shell::command("nice");
        command.args(["-n", "19"]).arg(smolbuild);
        command.args(["kernel", KERNEL]);
        println!("$ {} &", shell::line(&command));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null()).spawn().ok().map(Self)
    }

    /// Waits for it. Its failure is that of the end-to-end tests.
    fn finish(mut self) -> Result<()> {
        let status = self.0.wait().context("cannot wait for the kernel")?;
        println!("the kernel: {status}");
        Ok(())
    }
}

impl Drop for Kernel {
    /// Ends it, with all that it has started.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn clippy(targets: &[&str]) -> Command {
    let mut command = cargo();
    command
        .args(["clippy", "--locked", "--quiet"])
        .args(targets);
    command.args(["--", "-D", "warnings"]);
    command
}

/// Runs tests, and shows and counts what they say; of those that pass in their hundreds only the number.
fn follow(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let line = shell::line(command);
    println!("$ {line}");
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {line}"))?;
    let out = child.stdout.take().context("it was piped")?;
    for line in BufReader::new(out).split(b'\n') {
        let line = line.context("cannot read what the tests say")?;
        let line = String::from_utf8_lossy(&line);
        if tally.take(&line) {
            println!("{line}");
        }
    }
    let status = child.wait().context("cannot wait for the tests")?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}
