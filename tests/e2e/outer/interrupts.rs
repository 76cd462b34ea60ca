//! Builds that are stopped in the middle, gently and not.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::native::with_kvm;
use smol_tests::host::{Host, smolfile};
use smol_tests::suite::Suite;
use smol_tests::support::{LIMIT, Process, Running, await_gone, descendants, eventually, names};

pub fn tests<'a>(suite: &mut Suite<'a>, host: &'a Host) {
    suite.group("interrupts");
    for (signal, name) in [(Signal::INT, "an interrupted"), (Signal::KILL, "a killed")] {
        suite.test(
            &format!("{name} build leaves nothing while packages are installed"),
            move || interrupt(host, assemble, "rootfs", Some("mmdebstrap"), signal),
        );
        suite.test(
            &format!("{name} build leaves nothing while the kernel is compiled"),
            move || interrupt(host, compile, "kernel", Some("make"), signal),
        );
        suite.test(
            &format!("{name} build leaves nothing while the machine boots"),
            move || interrupt(host, boot, "boot", Some("qemu-system-x86"), signal),
        );
        suite.test(
            &format!("{name} build leaves nothing while the bundle is packed"),
            move || with_kvm(|| interrupt(host, pack, "pack", None, signal)),
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

/// Sends the signal when a build is at `stage`, and `helper`, if there is one, runs for it.
fn interrupt(
    host: &Host,
    build: fn(&Host) -> Command,
    stage: &str,
    helper: Option<&str>,
    signal: Signal,
) {
    /// On a busy machine a short stage may be over before the signal is sent.
    const TRIES: usize = 10;
    for _ in 0..TRIES {
        let folder = host.folder("interrupted");
        let running = Running::start(&mut build(host));
        running.await_stderr(&format!("{stage:<10} "));
        let below = helper.map_or(Vec::new(), |helper| helpers(&running, helper));
        running.signal(signal);
        let outcome = running.finish(LIMIT);
        match (signal, outcome.code) {
            (_, Some(0)) => continue,
            (Signal::INT, code) => assert_eq!(code, Some(130), "{}", outcome.stderr),
            (_, code) => assert_eq!(code, None, "{}", outcome.stderr),
        }
        assert_eq!(outcome.stdout, "");
        await_gone(&below, LIMIT);
        assert_eq!(
            names(&folder),
            Vec::<String>::new(),
            "of a stopped build nothing is written"
        );
        if signal == Signal::INT {
            assert_eq!(names(&host.cache().join("work")), Vec::<String>::new());
        }
        return;
    }
    panic!("each of {TRIES} builds was over before it could be stopped");
}

/// The processes of a build, once this helper is one of them.
fn helpers(running: &Running, helper: &str) -> Vec<Process> {
    let mut below = eventually(helper, LIMIT, || {
        let below = descendants(running.pid());
        let runs = below.iter().any(|p| p.name.starts_with(helper));
        runs.then_some(below)
    });
    std::thread::sleep(Duration::from_millis(500));
    below.extend(descendants(running.pid()));
    below
}
