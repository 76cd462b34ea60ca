//! `cargo xtask fuzz`: libFuzzer over the targets of fuzz/, one after the other.
//!
//! One program holds all targets, built with the pinned toolchain: coverage and the address
//! sanitizer are flags that rustc has, though it calls them unstable. C code (zstd) is not
//! instrumented.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::packages::{self, For};
use crate::shell::{self, cargo, workspace};

/// What `cargo fuzz` passes, too; with checks on that only debug builds have.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
    "-Zsanitizer=address",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];
/// Naming the target keeps the flags away from build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What the fuzzer itself, the sanitizer's shadow and its quarantine take, on top of what a target
/// may have on the heap, MiB.
const OVERHEAD: usize = 512;
/// An input that takes longer is a finding, s: the largest are expanded to 24 MiB.
const TIMEOUT: u32 = 30;
/// Where libFuzzer's own files are, below target/fuzz.
const CORPUS: &str = "corpus";
const ARTIFACTS: &str = "artifacts";
const LOGS: &str = "logs";
/// What is taken over into the checkout for a target at a time: so many inputs, none longer, bytes.
const MOST_INPUTS: usize = 32;
const MOST_INPUT: u64 = 8 << 10;

/// How to fuzz.
#[derive(Debug, Args)]
pub struct FuzzOptions {
    /// Only these targets
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
    /// Write the seeds into fuzz/corpus, as their code makes them
    #[arg(long)]
    seed: bool,
    /// Take over from earlier runs what covers more, into fuzz/corpus, instead of running
    #[arg(long, conflicts_with = "seed")]
    minimize: bool,
}

/// A row of the table of targets, as the program prints it.
#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    max_len: usize,
    heap: usize,
    words: Vec<String>,
}

/// What came of a target.
#[derive(Debug, Default)]
struct Outcome {
    executions: u64,
    per_second: u64,
    edges: u64,
    features: u64,
    corpus: u64,
    peak_mib: u64,
    finding: Option<String>,
}

/// Builds the program and runs it.
///
/// # Errors
/// A target that is not known, or a finding.
pub fn run(options: &FuzzOptions) -> Result<()> {
    if options.seed {
        let mut test = cargo();
        test.args([
            "test",
            "--locked",
            "--package",
            "smol-fuzz",
            "--test",
            "corpus",
        ]);
        return shell::run(test.args(["--", "seed"]).env("FUZZ_SEED", "1"));
    }
    packages::install(For::Fuzz)?;
    let fuzzer = Fuzzer::build()?;
    let table = fuzzer.table()?;
    for name in &options.targets {
        let names: Vec<&str> = table.iter().map(|target| target.name.as_str()).collect();
        ensure!(
            names.contains(&name.as_str()),
            "no target is called {name}; there are: {}",
            names.join(", ")
        );
    }
    let wanted =
        |target: &&Target| options.targets.is_empty() || options.targets.contains(&target.name);
    let mut rows = Vec::new();
    for target in table.iter().filter(wanted) {
        if options.minimize {
            fuzzer.minimize(target)?;
        } else {
            println!("\n==> {}, {} s", target.name, options.seconds);
            rows.push((target.name.as_str(), fuzzer.fuzz(target, options.seconds)?));
        }
    }
    report(&rows)
}

/// The built program, and the folder of its files.
struct Fuzzer {
    program: PathBuf,
    folder: PathBuf,
}

impl Fuzzer {
    fn build() -> Result<Self> {
        let folder = workspace().join("target/fuzz");
        let mut build = cargo();
        build.args([
            "build",
            "--locked",
            "--package",
            "smol-fuzz",
            "--bin",
            "smol-fuzz",
        ]);
        build.args([
            "--features",
            "libfuzzer",
            "--profile",
            "fuzz",
            "--target",
            TRIPLE,
        ]);
        build.arg("--target-dir").arg(&folder);
        build.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
        // The flags are unstable, the toolchain is pinned.
        build.env("RUSTC_BOOTSTRAP", "1");
        shell::run(&mut build)?;
        let program = folder.join(TRIPLE).join("fuzz/smol-fuzz");
        Ok(Fuzzer { program, folder })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(workspace());
        // Freed memory is kept apart to find uses of it: less than usual, for memory is counted. What a
        // thread that still runs has in its own storage would count as a leak, at the end of the run as
        // after an input. Memory is limited by libFuzzer.
        let options = "quarantine_size_mb=16:malloc_context_size=8:allocator_may_return_null=1:\
                       detect_leaks=0";
        command.env("ASAN_OPTIONS", options);
        command
    }

    fn table(&self) -> Result<Vec<Target>> {
        let output = self.command().output().context("cannot run the fuzzer")?;
        ensure!(
            output.status.success(),
            "the fuzzer does not print its table"
        );
        serde_json::from_slice(&output.stdout).context("the fuzzer's table")
    }

    /// Returns a folder below target/fuzz, which is made.
    fn subfolder(&self, kind: &str, target: &Target) -> Result<PathBuf> {
        let folder = self.folder.join(kind).join(&target.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Returns the command for a target, up to its corpora.
    fn of_target(&self, target: &Target) -> Result<Command> {
        let mut command = self.command();
        let artifacts = self.subfolder(ARTIFACTS, target)?;
        let rss = (target.heap >> 20) + OVERHEAD;
        command.env("FUZZ_TARGET", &target.name);
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.arg(format!("-max_len={}", target.max_len));
        command.arg(format!("-rss_limit_mb={rss}"));
        command.arg(format!("-malloc_limit_mb={}", target.heap >> 20));
        command.arg(format!("-timeout={TIMEOUT}"));
        command.arg("-detect_leaks=0");
        Ok(command)
    }

    fn fuzz(&self, target: &Target, seconds: u64) -> Result<Outcome> {
        let grown = self.subfolder(CORPUS, target)?;
        let mut command = self.of_target(target)?;
        command.args([
            "-print_final_stats=1",
            "-reload=0",
            // Inputs that take long are tried less often.
            "-entropic_scale_per_exec_time=1",
            "-report_slow_units=10",
        ]);
        command.arg(format!("-max_total_time={seconds}"));
        if !target.words.is_empty() {
            let path = self.folder.join(format!("{}.dict", target.name));
            fs::write(&path, dictionary(&target.words))
                .with_context(|| format!("cannot write {}", path.display()))?;
            command.arg(format!("-dict={}", path.display()));
        }
        // The first one grows, the others are read.
        command.arg(&grown);
        command.args(seeds(target));
        let path = self.subfolder(LOGS, target)?.join("last");
        let log =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let copy = log.try_clone().context("a descriptor")?;
        let status = command
            .stdout(copy)
            .stderr(log)
            .status()
            .context("cannot run the fuzzer")?;
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut outcome = parse(&String::from_utf8_lossy(&text));
        ensure!(
            !status.success() || outcome.executions > 0,
            "{}: nothing was run; the log is {}",
            target.name,
            path.display()
        );
        outcome.finding = self.finding(target, status, &String::from_utf8_lossy(&text), &path);
        Ok(outcome)
    }

    /// Returns what was found, and the command that repeats it.
    fn finding(
        &self,
        target: &Target,
        status: ExitStatus,
        log: &str,
        path: &Path,
    ) -> Option<String> {
        if status.success() {
            return None;
        }
        let lines: Vec<&str> = log.lines().map(str::trim).collect();
        let at = |word: &str| lines.iter().position(|line| line.contains(word));
        // What a panic says is in the line after its place.
        let panic = at("panicked at").map(|at| lines[at..].iter().take(2).copied().collect());
        let other = || {
            at("memory allocation of")
                .or(at("SUMMARY:"))
                .map(|at| lines[at].to_owned())
        };
        let why = panic.map(|lines: Vec<_>| lines.join(" ")).or_else(other);
        let why = why.unwrap_or_else(|| status.to_string());
        let written = "Test unit written to ";
        let repeat = log.lines().find_map(|line| line.split(written).nth(1));
        let repeat = repeat.map(|input| {
            format!(
                "\n    FUZZ_TARGET={} {} {}",
                target.name,
                self.program.display(),
                input.trim()
            )
        });
        let (name, repeat, path) = (&target.name, repeat.unwrap_or_default(), path.display());
        Some(format!("{name}: {why}{repeat}\n    the whole log: {path}"))
    }

    /// Adds to the corpus of the checkout some of what covers more.
    fn minimize(&self, target: &Target) -> Result<()> {
        let merged = self.subfolder("merged", target)?;
        fs::remove_dir_all(&merged).context("cannot empty the folder of merged inputs")?;
        fs::create_dir_all(&merged).context("cannot make it again")?;
        let mut command = self.of_target(target)?;
        command.arg("-merge=1").arg(&merged).args(seeds(target));
        command.arg(self.subfolder(CORPUS, target)?);
        let output = command.output().context("cannot run the fuzzer")?;
        ensure!(output.status.success(), "{}: the merge failed", target.name);
        let into = workspace().join("fuzz/corpus").join(&target.name);
        let mut found = by_length(&merged)?;
        found.retain(|(len, _)| *len <= MOST_INPUT);
        // Of all lengths: short ones reach little.
        let step = found.len().div_ceil(MOST_INPUTS).max(1);
        let mut kept = 0;
        for (_, path) in found.iter().step_by(step) {
            let content = fs::read(path).context("a merged input")?;
            if is_known(&into, &content)? {
                continue;
            }
            let name = path.file_name().context("a file has a name")?;
            fs::write(into.join(name), content).context("cannot write into fuzz/corpus")?;
            kept += 1;
        }
        println!("{}: {kept} inputs more", target.name);
        Ok(())
    }
}

/// Returns the folders of the checkout that hold inputs of a target.
fn seeds(target: &Target) -> Vec<PathBuf> {
    let folder = |kind| workspace().join("fuzz").join(kind).join(&target.name);
    let folders = ["corpus", "regressions"].map(folder).into_iter();
    folders.filter(|folder| folder.is_dir()).collect()
}

fn by_length(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).context("cannot list the merged inputs")? {
        let entry = entry.context("cannot list the merged inputs")?;
        files.push((
            entry.metadata().context("a merged input")?.len(),
            entry.path(),
        ));
    }
    files.sort();
    Ok(files)
}

fn is_known(folder: &Path, content: &[u8]) -> Result<bool> {
    for entry in fs::read_dir(folder).context("cannot list a corpus")? {
        let path = entry.context("cannot list a corpus")?.path();
        if fs::read(path).context("an input")? == content {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns words in libFuzzer's form: quoted, with what is not printable in hexadecimal.
fn dictionary(words: &[String]) -> String {
    let byte = |byte: u8| match byte {
        b'"' | b'\\' => format!("\\{}", char::from(byte)),
        b' '..=b'~' => char::from(byte).to_string(),
        other => format!("\\x{other:02X}"),
    };
    let line = |word: &String| format!("\"{}\"\n", word.bytes().map(byte).collect::<String>());
    words.iter().map(line).collect()
}

/// Reads libFuzzer's log: its last line of status, and its final statistics.
fn parse(log: &str) -> Outcome {
    let after = |line: &str, word: &str| -> Option<u64> {
        let rest = line.split(word).nth(1)?.trim_start();
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    let statistic = |name: &str| log.lines().find_map(|line| after(line, name)).unwrap_or(0);
    let status = log
        .lines()
        .rfind(|line| line.starts_with('#') && line.contains(" cov: "));
    let status = |word: &str| status.and_then(|line| after(line, word)).unwrap_or(0);
    Outcome {
        executions: statistic("stat::number_of_executed_units:"),
        per_second: statistic("stat::average_exec_per_sec:"),
        peak_mib: statistic("stat::peak_rss_mb:"),
        edges: status(" cov: "),
        features: status(" ft: "),
        corpus: status(" corp: "),
        finding: None,
    }
}

fn report(rows: &[(&str, Outcome)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    println!(
        "\n{:<16} {:>11} {:>8} {:>7} {:>9} {:>7} {:>9} {:>9}",
        "target", "executions", "exec/s", "edges", "features", "corpus", "peak RSS", "findings"
    );
    for (name, row) in rows {
        println!(
            "{name:<16} {:>11} {:>8} {:>7} {:>9} {:>7} {:>5} MiB {:>9}",
            row.executions,
            row.per_second,
            row.edges,
            row.features,
            row.corpus,
            row.peak_mib,
            usize::from(row.finding.is_some())
        );
    }
    let findings: Vec<&str> = rows
        .iter()
        .filter_map(|(_, row)| row.finding.as_deref())
        .collect();
    if findings.is_empty() {
        return Ok(());
    }
    bail!("found:\n{}", findings.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_log_are_read() {
        let log = "INFO: seed corpus: files: 4\n#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                   #99\tDONE   cov: 120 ft: 345 corp: 67/8901b lim: 4096 exec/s: 49 rss: 61Mb\n\
                   Done 99 runs in 2 second(s)\nstat::number_of_executed_units: 99\n\
                   stat::average_exec_per_sec:     49\nstat::peak_rss_mb:              61\n";
        let found = parse(log);
        let figures = [
            found.executions,
            found.per_second,
            found.edges,
            found.features,
        ];
        assert_eq!(figures, [99, 49, 120, 345]);
        assert_eq!([found.corpus, found.peak_mib], [67, 61]);
        assert!(found.finding.is_none());
    }

    #[test]
    fn words_are_written_as_the_fuzzer_reads_them() {
        let words = ["a\"b\\", "\u{e4}\n"].map(String::from);
        assert_eq!(dictionary(&words), "\"a\\\"b\\\\\"\n\"\\xC3\\xA4\\x0A\"\n");
    }
}
