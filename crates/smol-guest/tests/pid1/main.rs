//! The whole init, as PID 1 of a namespace of its own: real mounts, a real cgroup, a real
//! service, a host that is played by this program over Unix sockets.
//!
//! The program runs itself three times over: as the test; in a network namespace, where the
//! scenarios are; and as PID 1. What would hurt the machine (setting its clock) goes to the
//! test's own [`Platform`]; a reset of a PID namespace only ends the namespace.

mod failures;
mod host;
mod life;
mod rehearsals;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use smol_guest::init::platform::{HostLink, Platform};

const ROLE: &str = "SMOL_TEST_ROLE";
const ROOT: &str = "SMOL_TEST_ROOT";

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("pid1") => be_pid1(&PathBuf::from(std::env::var_os(ROOT).unwrap())),
        Ok("scenarios") => scenarios(),
        _ => {
            if let Some(why) = cannot_run() {
                println!("test the whole init as PID 1 ... left out: {why}");
                return;
            }
            let status = itself("scenarios", &["--net", "--mount"]).status().unwrap();
            assert!(status.success(), "{status}");
        }
    }
}

fn cannot_run() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, for namespaces and mounts");
    }
    let there = |program: &str| {
        ["/bin", "/usr/bin", "/sbin", "/usr/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists())
    };
    if !there("unshare") || !there("busybox") {
        return Some("needs unshare (util-linux) and busybox (busybox-static)");
    }
    None
}

/// This program in a new namespace and role.
fn itself(role: &str, namespaces: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, role);
    command
}

fn scenarios() {
    let all: [(&str, Scenario); 12] = [
        (
            "a build is frozen for its snapshot and resumes with a new identity",
            always(life::build_and_restore),
        ),
        (
            "a kernel with a snapshot device gets no open stream into the snapshot",
            always(life::snapshot_device),
        ),
        (
            "a cold boot runs from the root file system as its user and passes the exit code on",
            Box::new(life::cold_boot),
        ),
        (
            "a service that ends before it is ready fails at once with its status",
            always(failures::ends_early),
        ),
        (
            "a program that is missing is named",
            always(failures::missing_program),
        ),
        (
            "a warm command that fails ends the build with its output",
            always(failures::warm_fails),
        ),
        (
            "a restore command that fails ends the machine before its service runs on",
            always(failures::restore_fails),
        ),
        (
            "a rehearsal makes all requests in order, with the new identity",
            always(rehearsals::all_are_made),
        ),
        (
            "a request that is not answered ends the rehearsal, with what it saw",
            always(rehearsals::one_fails),
        ),
        (
            "a request that ends the service is named",
            always(rehearsals::one_ends_the_service),
        ),
        (
            "a service that ignores SIGTERM is killed after the grace time",
            always(life::ignores_sigterm),
        ),
        (
            "without restore parameters the service never runs on",
            always(failures::no_identity),
        ),
    ];
    for (name, scenario) in all {
        match scenario() {
            None => println!("test {name} ... ok"),
            Some(why) => println!("test {name} ... left out: {why}"),
        }
    }
}

/// Why it cannot be tried here, if it cannot.
type Scenario = Box<dyn Fn() -> Option<&'static str>>;

/// One that can be tried wherever the others can.
fn always(scenario: fn()) -> Scenario {
    Box::new(move || {
        scenario();
        None
    })
}

fn be_pid1(root: &Path) -> ! {
    // A mistake here would reset the machine.
    assert!(rustix::process::getpid().is_init() && std::env::var_os(ROOT).is_some());
    let prefix = format!("smol-pid1-{}", root.display());
    rustix::process::chroot(root).unwrap();
    std::env::set_current_dir("/").unwrap();
    smol_guest::init::run(&Platform {
        host: HostLink::Local(prefix),
        console: "/proc/self/fd/2".into(),
        snapshot_device: "/smol/device".into(),
        set_clock: |time| fs::write("/run/clock", time.as_nanos().to_string()),
    })
}
