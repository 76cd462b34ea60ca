//! `cargo xtask demo`: a real service, built into a bundle, restored, and asked for what it knew
//! before.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::packages;
use crate::steps::{build_release, output, root, run, step};

const PORT: u16 = 16379;
const INSTANCE: &str = "demo-redis";
/// What recipes/redis stores before the snapshot.
const GREETING: &str = "hello from before the snapshot";

/// Installs what is missing, builds the tools and the machine, restores it, asks it, stops it.
///
/// # Errors
/// Whatever does not work.
pub fn run_demo() -> Result<()> {
    step("packages", packages::for_building)?;
    let programs = build_release()?;
    let folder = root().join("target/demo");
    fs::create_dir_all(&folder)?;
    let demo = Demo { programs, folder };
    step("key", || demo.keygen())?;
    step("smolbuild recipes/redis", || demo.build())?;
    step("smolbuild verify", || demo.verify())?;
    step("smolrun", || demo.restore_and_ask())?;
    demo.figures()
}

struct Demo {
    programs: PathBuf,
    folder: PathBuf,
}

impl Demo {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(root());
        command
    }

    fn keygen(&self) -> Result<()> {
        if self.file("demo.key").exists() {
            return Ok(());
        }
        run(self
            .program("smolbuild")
            .args(["keygen", "-o"])
            .arg(self.file("demo.key")))
    }

    fn build(&self) -> Result<()> {
        run(self
            .program("smolbuild")
            .args(["recipes/redis", "--sign"])
            .arg(self.file("demo.key"))
            .arg("-o")
            .arg(self.file("redis.smolmachine"))
            .arg("--metadata-file")
            .arg(self.file("build.json")))
    }

    fn verify(&self) -> Result<()> {
        run(self
            .program("smolbuild")
            .arg("verify")
            .arg(self.file("redis.smolmachine"))
            .arg("--key")
            .arg(self.file("demo.pub")))
    }

    fn restore_and_ask(&self) -> Result<()> {
        let _stop = Stop(self);
        run(self
            .program("smolrun")
            .arg(self.file("redis.smolmachine"))
            .args([
                "-p",
                &format!("{PORT}:6379"),
                "--name",
                INSTANCE,
                "-d",
                "--key",
            ])
            .arg(self.file("demo.pub"))
            .arg("--metrics-file")
            .arg(self.file("restore.json")))?;
        let answer = get("greeting")?;
        println!("GET greeting -> {answer:?}");
        ensure!(
            answer == GREETING,
            "the restored machine does not know what it knew before"
        );
        Ok(())
    }

    fn figures(&self) -> Result<()> {
        let build = json(&self.file("build.json"))?;
        let restore = json(&self.file("restore.json"))?;
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        const MIB: f64 = (1u64 << 20) as f64;
        println!("\nfigures");
        println!(
            "  bundle           {:8.1} MiB",
            number(&build["fileSize"]) / MIB
        );
        println!(
            "  memory in use    {:8.1} MiB",
            number(&build["frozen"]["nonzeroPages"]) * 4096.0 / MIB
        );
        println!(
            "  boot to frozen   {:8.1} s",
            number(&build["frozen"]["bootMs"]) / 1e3
        );
        println!("  restore to up    {:8.1} ms", number(&restore["up_ms"]));
        println!(
            "  whole start      {:8.1} ms (with the emulated host where there is no KVM)",
            number(&restore["total_ms"])
        );
        println!(
            "  digest           {}",
            build["digest"].as_str().unwrap_or("?")
        );
        Ok(())
    }
}

/// Ends the demo's machine, also when the demo fails.
struct Stop<'a>(&'a Demo);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        // Where it never ran, that is told; there is nothing else to do about it.
        let _ = output(self.0.program("smolrun").args(["stop", INSTANCE]));
    }
}

fn json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// `GET key` in Redis' protocol (RESP): the answer is a length line and the bytes.
fn get(key: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect(("127.0.0.1", PORT)).context("cannot connect to the restored Redis")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {key}\r\n")?;
    let mut lines = BufReader::new(stream).lines();
    let length = lines.next().context("Redis hung up")??;
    ensure!(length.starts_with('$'), "Redis answered {length:?}");
    Ok(lines.next().context("Redis hung up")??)
}
