//! `cargo xtask demo`: from a clone to a service that remembers what it was told before it was
//! frozen.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::packages::{self, For};
use crate::shell::{self, build_folder, capture, cargo, command};

/// Name of the machine while it runs.
const NAME: &str = "smol-demo";
/// Port of this host that leads to redis.
const PORT: u16 = 16379;
/// What `[[warm]]` of recipes/redis stores under the key `greeting`.
const GREETING: &str = "hello from before the snapshot";

/// Builds, verifies, restores, asks, stops, and prints the figures.
///
/// # Errors
/// Of whatever fails.
pub fn run() -> Result<()> {
    packages::install(For::Build)?;
    shell::run(cargo().args([
        "build",
        "--release",
        "--locked",
        "--package",
        "smolbuild",
        "--package",
        "smolrun",
    ]))?;
    let demo = Demo::new()?;
    demo.keygen()?;
    demo.build()?;
    shell::run(
        demo.smolbuild()
            .arg("verify")
            .arg(demo.path("redis.smolmachine"))
            .arg("--key")
            .arg(demo.path("demo.pub")),
    )?;
    let answered = demo.restore_and_ask()?;
    demo.figures(answered)
}

struct Demo {
    programs: PathBuf,
    folder: PathBuf,
}

impl Demo {
    fn new() -> Result<Self> {
        let folder = shell::target()?.join("demo");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self {
            programs: build_folder("release")?,
            folder,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn smolbuild(&self) -> Command {
        command(self.programs.join("smolbuild"))
    }

    fn smolrun(&self) -> Command {
        command(self.programs.join("smolrun"))
    }

    fn keygen(&self) -> Result<()> {
        if self.path("demo.key").exists() {
            return Ok(());
        }
        shell::run(
            self.smolbuild()
                .args(["keygen", "-o"])
                .arg(self.path("demo.key")),
        )
    }

    fn build(&self) -> Result<()> {
        let mut build = self.smolbuild();
        build
            .arg("recipes/redis")
            .arg("--sign")
            .arg(self.path("demo.key"));
        build.arg("-o").arg(self.path("redis.smolmachine"));
        shell::run(build.arg("--metadata-file").arg(self.path("redis.json")))
    }

    /// Returns the time from the start of smolrun to redis' answer.
    fn restore_and_ask(&self) -> Result<Duration> {
        // Of a demo that was broken off.
        let _ = self.smolrun().args(["stop", NAME, "--time", "0"]).output();
        let begin = Instant::now();
        let mut restore = self.smolrun();
        restore.arg(self.path("redis.smolmachine")).args([
            "-d",
            "--rm",
            "--name",
            NAME,
            "-p",
            &format!("{PORT}:6379"),
        ]);
        restore
            .arg("--key")
            .arg(self.path("demo.pub"))
            .arg("--metrics-file")
            .arg(self.path("restore.json"));
        shell::run(&mut restore)?;
        let answer = get("greeting");
        let answered = begin.elapsed();
        shell::run(self.smolrun().args(["stop", NAME]))?;
        let answer = answer?;
        println!("GET greeting -> {answer:?}");
        ensure!(
            answer == GREETING,
            "that is not what was stored before the snapshot"
        );
        Ok(answered)
    }

    fn figures(&self, answered: Duration) -> Result<()> {
        let inspected = capture(
            self.smolbuild()
                .args(["inspect", "--json"])
                .arg(self.path("redis.smolmachine")),
        )?;
        let inspected: Value = serde_json::from_str(&inspected).context("what inspect says")?;
        build_figures(&inspected, &read_json(&self.path("redis.json"))?)?;
        let restore = read_json(&self.path("restore.json"))?;
        if let Some(ms) = restore["emulated_host_ms"].as_f64() {
            println!(
                "emulated host  up in {:.1} s: this machine has no KVM that runs a kernel",
                ms / 1000.0
            );
        }
        println!(
            "restore        the service ran on after {:.0} ms",
            number(&restore["up_ms"])
        );
        println!(
            "first answer   {:.1} s after smolrun was started, all included",
            answered.as_secs_f64()
        );
        println!(
            "\nThe bundle is {}; run it again with\n",
            self.path("redis.smolmachine").display()
        );
        println!(
            "    {} {} -p {PORT}:6379 --key {}",
            self.programs.join("smolrun").display(),
            self.path("redis.smolmachine").display(),
            self.path("demo.pub").display()
        );
        Ok(())
    }
}

/// Prints how long the build took, and what of the machine's memory is in the bundle.
fn build_figures(inspected: &Value, built: &Value) -> Result<()> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let images = list(&inspected["images"]);
    let memory = images
        .iter()
        .find(|image| image["kind"] == "memory")
        .context("the bundle has no memory")?;
    let mib = |bytes: f64| format!("{:.1} MiB", bytes / (1024.0 * 1024.0));
    let used = number(&memory["size"]) - number(&memory["zero"]) * 4096.0;
    let total = list(&built["stages"])
        .iter()
        .map(|s| number(&s["start"]) + number(&s["duration"]))
        .fold(0.0, f64::max);
    println!("\nbuild          {total:.1} s");
    println!(
        "bundle         {}, {}",
        mib(number(&inspected["fileSize"])),
        inspected["digest"].as_str().unwrap_or("?")
    );
    println!(
        "memory         {}, {} of it in use; stored are {}, compressed {}",
        mib(number(&memory["size"])),
        mib(used),
        mib(number(&memory["rawBytes"])),
        mib(number(&memory["compressedBytes"])),
    );
    Ok(())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// Asks redis for the value of a key, in its own protocol (RESP).
fn get(key: &str) -> Result<String> {
    let limit = Some(Duration::from_secs(60));
    let mut stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).context("cannot connect to redis")?;
    stream.set_read_timeout(limit)?;
    write!(
        stream,
        "*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n*1\r\n$4\r\nQUIT\r\n",
        key.len()
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("redis does not answer")?;
    let value = answer
        .strip_prefix('$')
        .and_then(|rest| rest.split_once("\r\n"));
    let (length, rest) = value.with_context(|| format!("redis answers {answer:?}"))?;
    let value = length
        .parse()
        .ok()
        .and_then(|length: usize| rest.get(..length));
    Ok(value
        .with_context(|| format!("redis answers {answer:?}"))?
        .to_owned())
}
