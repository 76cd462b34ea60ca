//! Builds that are stopped in the middle, gently and not.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::native::with_kvm;
use crate::host::{Host, smolfile};
use crate::suite::Suite;
use crate::support::{Process, Running, await_gone, descendants, eventually, names};

/// How long a build may take to have begun what is to be interrupted.
const BEGIN: Duration = Duration::from_secs(120);
/// How long it may take to end.
const END: Duration = Duration::from_secs(20);

pub fn tests(suite: &mut Suite, host: &Host) {
    for (signal, name) in [(Signal::INT, "an interrupted"), (Signal::KILL, "a killed")] {
        suite.test(
            &format!("{name} build leaves nothing while packages are installed"),
            || interrupt(host, assemble(host), "rootfs", Some("mmdebstrap"), signal),
        );
        suite.test(
            &format!("{name} build leaves nothing while the kernel is compiled"),
            || interrupt(host, compile(host), "kernel", Some("make"), signal),
        );
        suite.test(
            &format!("{name} build leaves nothing while the machine boots"),
            || interrupt(host, boot(host), "boot", Some("qemu-system-x86"), signal),
        );
        suite.test(
            &format!("{name} build leaves nothing while the bundle is packed"),
            || with_kvm(|| interrupt(host, pack(host), "pack", None, signal)),
        );
    }
}

/// Where all of these builds would write to.
fn out(host: &Host) -> PathBuf {
    host.scratch.join("interrupted").join("x.smolmachine")
}

/// A Debian system that is in no cache.
fn assemble(host: &Host) -> Command {
    let text = std::fs::read_to_string(smolfile(host, "service")).unwrap();
    let text = text.replace("dir = \"root\"", "debian = { suite = \"bookworm\" }");
    let path = host.machines.join("debian.toml");
    std::fs::write(&path, text).unwrap();
    let mut command = host.tools.smolbuild();
    command.arg(path).args(["--no-cache", "-o"]).arg(out(host));
    command
}

fn compile(host: &Host) -> Command {
    let mut command = host.tools.smolbuild();
    command.args(["kernel", "smol-6.1", "--no-cache", "-o"]);
    command.arg(out(host));
    command
}

fn boot(host: &Host) -> Command {
    let mut command = host.tools.smolbuild();
    command.arg(smolfile(host, "service"));
    command.args(["--rebuild", "--accel", "emulated", "-o"]);
    command.arg(out(host));
    command
}

/// The native guest, most of whose memory cannot be compressed.
fn pack(host: &Host) -> Command {
    let mut command = host.tools.smolbuild();
    command.arg(&host.native);
    command.args(["--accel", "kvm", "-o"]).arg(out(host));
    command
}

/// Sends the signal when the build is at `stage`, and `helper`, if there is one, runs for it.
fn interrupt(host: &Host, mut build: Command, stage: &str, helper: Option<&str>, signal: Signal) {
    let folder = host.folder("interrupted");
    let mut running = Running::start(&mut build);
    running.await_stderr(&format!("{stage:<10} "), BEGIN);
    let mut below: Vec<Process> = Vec::new();
    if let Some(helper) = helper {
        below = eventually(helper, BEGIN, || {
            let below = descendants(running.pid());
            let runs = below.iter().any(|p| p.name.starts_with(helper));
            runs.then_some(below)
        });
        std::thread::sleep(Duration::from_millis(500));
        below.extend(descendants(running.pid()));
    }
    running.signal(signal);
    let outcome = running.finish(END);
    match signal {
        Signal::INT => assert_eq!(outcome.code, Some(130), "{}", outcome.stderr),
        _ => assert_eq!(outcome.code, None, "{}", outcome.stderr),
    }
    assert_eq!(outcome.stdout, "");
    await_gone(&below, END);
    assert_eq!(
        names(&folder),
        Vec::<String>::new(),
        "of a stopped build nothing is written"
    );
    if signal == Signal::INT {
        assert_eq!(names(&host.cache().join("work")), Vec::<String>::new());
    }
}
