//! `cargo xtask repeat`: recipes built again and again, each time in an emulated host of its own,
//! on other emulated processors, beside other work. Every bundle must be the same, byte for byte.
//!
//! Each build is a line in `target/repeat/builds.jsonl` as soon as it is done, so that `--resume`
//! can go on where a run was broken off.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::packages::{self, For};
use crate::shell::{self, build_folder, cargo, command};

/// So many threads work beside a loaded build.
const BUSY: usize = 2;

/// What is built, how often, and where.
#[derive(Clone, Debug, Args)]
pub struct RepeatOptions {
    /// Folders in recipes/
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "hello,redis,python,postgresql"
    )]
    recipes: Vec<String>,
    /// Builds of each
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..))]
    builds: u32,
    /// CPU models of the emulated hosts, taken in turns
    #[arg(long, value_delimiter = ',', default_value = "max,EPYC-Rome")]
    cpu_models: Vec<String>,
    /// What this host does besides, in turns as well
    #[arg(long, value_delimiter = ',', default_value = "none,cpu")]
    load: Vec<Load>,
    /// Go on where a run was broken off
    #[arg(long)]
    resume: bool,
    /// Write the result to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a host does beside a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Load {
    /// Nothing of ours
    None,
    /// Two threads that never rest
    Cpu,
}

/// One build that is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Build {
    recipe: String,
    /// From 0.
    number: u32,
    cpu_model: String,
    load: Load,
    seconds: f64,
    /// Of all that can change a byte, by smolbuild's word.
    plan: String,
    digest: String,
    /// Whether the file equals that of the recipe's first build in every byte.
    same: bool,
}

/// Builds, compares, and prints the table.
///
/// # Errors
/// If a build fails, or bundles differ.
pub fn run(options: &RepeatOptions) -> Result<()> {
    packages::install(For::Build)?;
    shell::run(cargo().args(["build", "--release", "--locked", "--package", "smolbuild"]))?;
    let mut soak = Soak::begin(options)?;
    for recipe in &options.recipes {
        for number in 0..options.builds {
            soak.build(recipe, number)?;
        }
    }
    soak.report()
}

struct Soak<'a> {
    options: &'a RepeatOptions,
    smolbuild: PathBuf,
    folder: PathBuf,
    log: File,
    done: Vec<Build>,
}

impl<'a> Soak<'a> {
    fn begin(options: &'a RepeatOptions) -> Result<Self> {
        ensure!(
            !options.cpu_models.is_empty() && !options.load.is_empty(),
            "at least one CPU model and one kind of load are needed"
        );
        let folder = shell::target()?.join("repeat");
        if !options.resume {
            let _ = fs::remove_dir_all(&folder);
        }
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join("builds.jsonl");
        let known = fs::read_to_string(&path).unwrap_or_default();
        // The last line may be half of one, if the machine went down.
        let done: Vec<Build> = known
            .lines()
            .map_while(|line| serde_json::from_str(line).ok())
            .collect();
        let lines = done.iter().map(line).collect::<Result<String>>()?;
        fs::write(&path, lines).with_context(|| format!("cannot write {}", path.display()))?;
        let log = File::options().append(true).open(&path)?;
        let smolbuild = build_folder("release")?.join("smolbuild");
        Ok(Self {
            options,
            smolbuild,
            folder,
            log,
            done,
        })
    }

    /// Does the build of this number, if it was not done before.
    fn build(&mut self, recipe: &str, number: u32) -> Result<()> {
        let known = |build: &&Build| build.recipe == recipe && build.number == number;
        if self.done.iter().any(|build| known(&build)) {
            return Ok(());
        }
        // All pairs come up: the model changes with each build, the load when all models had it.
        let models = &self.options.cpu_models;
        let cpu_model = models[number as usize % models.len()].clone();
        let load = self.options.load[number as usize / models.len() % self.options.load.len()];
        let first = self.folder.join(format!("{recipe}.smolmachine"));
        let bundle = match number {
            0 => first.clone(),
            n => self.folder.join(other(recipe, n)),
        };
        let (plan, digest, seconds) = self.smolbuild(recipe, &bundle, &cpu_model, load)?;
        let same = equal(&first, &bundle)?;
        if same && number > 0 {
            fs::remove_file(&bundle)?;
        }
        let build = Build {
            recipe: recipe.to_owned(),
            number,
            cpu_model,
            load,
            seconds,
            plan,
            digest,
            same,
        };
        self.log.write_all(line(&build)?.as_bytes())?;
        println!(
            "{recipe:<12} {:>3} of {:<3} {:<12} {:<6} {seconds:6.1} s  {}  {}",
            number + 1,
            self.options.builds,
            build.cpu_model,
            if load == Load::Cpu { "loaded" } else { "idle" },
            build.digest,
            if same { "same" } else { "DIFFERS" },
        );
        self.done.push(build);
        let plans = self.done.iter().filter(|build| build.recipe == recipe);
        let mut plans = plans.map(|build| &build.plan);
        let one = plans.next();
        if !plans.all(|plan| Some(plan) == one) {
            bail!("{recipe} is not what it was: its inputs have changed between two builds");
        }
        Ok(())
    }

    /// Returns the digests of Plan and bundle, and how long it took.
    fn smolbuild(
        &self,
        recipe: &str,
        bundle: &Path,
        model: &str,
        load: Load,
    ) -> Result<(String, String, f64)> {
        let (facts, log) = (
            self.folder.join("build.json"),
            self.folder.join("build.log"),
        );
        let working = (load == Load::Cpu).then(Working::begin);
        let begin = Instant::now();
        let mut build = command(&self.smolbuild);
        build
            .arg(Path::new("recipes").join(recipe))
            .args([
                "--accel",
                "emulated",
                "--progress",
                "plain",
                "--verbose",
                // A bundle out of the cache would be compared with itself.
                "--rebuild",
                "-o",
            ])
            .arg(bundle)
            .arg("--metadata-file")
            .arg(&facts)
            .env("SMOL_EMULATED_CPU", model)
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?);
        let status = build.status().context("cannot run smolbuild")?;
        let seconds = begin.elapsed().as_secs_f64();
        drop(working);
        if !status.success() {
            let told = fs::read_to_string(&log).unwrap_or_default();
            bail!("{recipe} on {model}: {status}\n{told}");
        }
        let facts: Value = serde_json::from_slice(&fs::read(&facts)?)?;
        let text = |key: &str| {
            let value = facts[key].as_str().map(str::to_owned);
            value.with_context(|| format!("smolbuild's facts have no {key}"))
        };
        Ok((text("plan")?, text("digest")?, seconds))
    }

    fn report(&self) -> Result<()> {
        println!(
            "\n{:<12} {:>6} {:>6}  {:<24} {:>6} {:>6} {:>8} {:>9}",
            "recipe", "builds", "hosts", "CPU models", "idle", "loaded", "digests", "median"
        );
        let rows: Vec<Row> = self
            .options
            .recipes
            .iter()
            .map(|recipe| Row::of(recipe, &self.done))
            .collect();
        for row in &rows {
            println!(
                "{:<12} {:>6} {:>6}  {:<24} {:>6} {:>6} {:>8} {:>7.1} s",
                row.recipe,
                row.builds,
                row.builds,
                row.cpu_models.join(", "),
                row.idle,
                row.loaded,
                row.digests.len(),
                row.median_seconds,
            );
        }
        if let Some(file) = &self.options.json {
            let text = serde_json::to_string_pretty(&rows)? + "\n";
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let differing: Vec<_> = self.done.iter().filter(|build| !build.same).collect();
        for Build { recipe, number, .. } in &differing {
            println!(
                "\n{} differs from {recipe}.smolmachine beside it",
                self.folder.join(other(recipe, *number)).display(),
            );
        }
        ensure!(
            differing.is_empty(),
            "{} of {} bundles differ from the first of their recipe",
            differing.len(),
            self.done.len()
        );
        Ok(())
    }
}

/// Name of a bundle after the first.
fn other(recipe: &str, number: u32) -> String {
    format!("{recipe}-{}.smolmachine", number + 1)
}

/// What came of one recipe.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    recipe: String,
    /// Each in an emulated host of its own.
    builds: usize,
    cpu_models: Vec<String>,
    idle: usize,
    loaded: usize,
    digests: Vec<String>,
    differing: usize,
    median_seconds: f64,
}

impl Row {
    fn of(recipe: &str, done: &[Build]) -> Self {
        let builds: Vec<&Build> = done.iter().filter(|b| b.recipe == recipe).collect();
        let distinct = |of: fn(&Build) -> &String| {
            let mut values: Vec<String> = builds.iter().map(|build| of(build).clone()).collect();
            values.sort();
            values.dedup();
            values
        };
        let mut seconds: Vec<f64> = builds.iter().map(|build| build.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let loaded = builds.iter().filter(|b| b.load == Load::Cpu).count();
        Self {
            recipe: recipe.to_owned(),
            builds: builds.len(),
            cpu_models: distinct(|build| &build.cpu_model),
            idle: builds.len() - loaded,
            loaded,
            digests: distinct(|build| &build.digest),
            differing: builds.iter().filter(|build| !build.same).count(),
            median_seconds: seconds.get(seconds.len() / 2).copied().unwrap_or_default(),
        }
    }
}

fn line(build: &Build) -> Result<String> {
    Ok(serde_json::to_string(build)? + "\n")
}

/// Whether two files hold the same bytes.
fn equal(one: &Path, two: &Path) -> Result<bool> {
    let open = |path: &Path| -> Result<_> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(BufReader::with_capacity(1 << 20, file))
    };
    let (mut one, mut two) = (open(one)?, open(two)?);
    let (mut here, mut there) = (Vec::new(), Vec::new());
    loop {
        for (from, to) in [(&mut one, &mut here), (&mut two, &mut there)] {
            to.clear();
            from.take(1 << 20).read_to_end(to)?;
        }
        if here != there || here.is_empty() {
            return Ok(here == there);
        }
    }
}

/// Threads that work until it is dropped. As threads of ours they end with us, whatever ends us.
struct Working {
    enough: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Working {
    fn begin() -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let work = || {
            let enough = enough.clone();
            thread::spawn(move || while !enough.load(Ordering::Relaxed) {})
        };
        let threads = (0..BUSY).map(|_| work()).collect();
        Self { enough, threads }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(number: u32, load: Load, digest: &str) -> Build {
        Build {
            recipe: "hello".into(),
            number,
            cpu_model: ["max", "EPYC-Rome"][number as usize % 2].into(),
            load,
            seconds: f64::from(number),
            plan: "p".into(),
            digest: digest.into(),
            same: digest == "a",
        }
    }

    #[test]
    fn a_row_counts_each_build_once_and_each_digest_once() {
        let mut done = vec![
            build(0, Load::None, "a"),
            build(1, Load::None, "a"),
            build(2, Load::Cpu, "b"),
        ];
        done.push(Build {
            recipe: "other".into(),
            ..build(3, Load::Cpu, "c")
        });
        let row = Row::of("hello", &done);
        assert_eq!(
            (row.builds, row.idle, row.loaded, row.differing),
            (3, 2, 1, 1)
        );
        assert_eq!(row.cpu_models, ["EPYC-Rome", "max"]);
        assert_eq!(row.digests, ["a", "b"]);
        assert_eq!(row.median_seconds, 1.0);
    }

    #[test]
    fn files_are_equal_only_to_the_last_byte() {
        let folder = std::env::temp_dir().join(format!("smol-repeat-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let long = vec![7; (1 << 20) + 5];
        let mut other = long.clone();
        *other.last_mut().unwrap() = 8;
        let one = file("one", &long);
        assert!(equal(&one, &file("two", &long)).unwrap());
        assert!(!equal(&one, &file("three", &other)).unwrap());
        assert!(!equal(&one, &file("four", &long[..1 << 20])).unwrap());
        fs::remove_dir_all(&folder).unwrap();
    }
}
