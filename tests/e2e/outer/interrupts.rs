//! Builds that are stopped in the middle, gently and not.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::host::{Host, smolfile, text};
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
            || {
                interrupt(
                    host,
                    "assemble",
                    assemble(host),
                    "rootfs",
                    "mmdebstrap",
                    signal,
                );
            },
        );
        suite.test(
            &format!("{name} build leaves nothing while the kernel is compiled"),
            || {
                interrupt(host, "compile", compile(host), "kernel", "make", signal);
            },
        );
        suite.test(
            &format!("{name} build leaves nothing while the machine boots"),
            || {
                interrupt(host, "boot", boot(host), "boot", "qemu-system-x86", signal);
            },
        );
    }
}

fn out(host: &Host, name: &str) -> PathBuf {
    host.scratch.join(name).join("x.smolmachine")
}

/// A Debian system that is in no cache.
fn assemble(host: &Host) -> Command {
    let text = std::fs::read_to_string(smolfile(host, "service")).unwrap();
    let path = host.machines.join("debian.toml");
    std::fs::write(
        &path,
        text.replace("dir = \"root\"", "debian = { suite = \"bookworm\" }"),
    )
    .unwrap();
    let mut command = host.tools.smolbuild();
    command
        .arg(path)
        .args(["--no-cache", "-o"])
        .arg(out(host, "assemble"));
    command
}

fn compile(host: &Host) -> Command {
    let mut command = host.tools.smolbuild();
    command
        .args(["kernel", "smol-6.1", "--no-cache", "-o"])
        .arg(out(host, "compile"));
    command
}

fn boot(host: &Host) -> Command {
    let mut command = host.tools.smolbuild();
    command.arg(smolfile(host, "service")).args([
        "--accel",
        "emulated",
        "-o",
        text(&out(host, "boot")),
    ]);
    command
}

/// Sends the signal when the build is at `stage` and `helper` runs for it.
fn interrupt(
    host: &Host,
    name: &str,
    mut build: Command,
    stage: &str,
    helper: &str,
    signal: Signal,
) {
    let folder = host.folder(name);
    let mut running = Running::start(&mut build);
    running.await_stderr(&format!("{stage:<10} "), BEGIN);
    let below: Vec<Process> = eventually(helper, BEGIN, || {
        let below = descendants(running.pid());
        below
            .iter()
            .any(|process| process.name.starts_with(helper))
            .then_some(below)
    });
    std::thread::sleep(Duration::from_millis(500));
    let below = [below, descendants(running.pid())].concat();
    running.signal(signal);
    let outcome = running.finish(END);
    match signal {
        Signal::INT => assert_eq!(outcome.code, Some(130), "{}", outcome.stderr),
        _ => assert_eq!(outcome.code, None),
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
