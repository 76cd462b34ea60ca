//! The whole init, as PID 1 of a namespace of its own: real mounts, a real cgroup, a real
//! service, a host that is played by this program over Unix sockets.
//!
//! The program runs itself three times over: as the test; in a network namespace, where the
//! scenarios are; and as PID 1. What would hurt the machine (setting its clock) goes to the
//! test's own [`Platform`]; a reset of a PID namespace only ends the namespace.

mod failures;
mod host;
mod inits;
mod life;
mod test_restores;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Trial};
use smol_guest::init::platform::{HostLink, Platform};

const ROLE: &str = "SMOL_TEST_ROLE";
const ROOT: &str = "SMOL_TEST_ROOT";

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok("pid1") => be_pid1(&PathBuf::from(std::env::var_os(ROOT).unwrap())),
        Ok("scenarios") => run_trials(),
        // Nothing is run: no namespace is needed.
        _ if Arguments::from_args().list || cannot_run().is_some() => run_trials(),
        _ => {
            let status = itself("scenarios", &["--net", "--mount"])
                .args(std::env::args().skip(1))
                .status()
                .unwrap();
            match status.success() {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// One scenario at a time: they share the namespaces and the root's cgroups.
fn run_trials() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    // As in names of functions, so that one filter fits all tests.
    arguments.filter = arguments.filter.map(|words| words.replace('_', " "));
    libtest_mimic::run(&arguments, trials()).exit_code()
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

fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a build is frozen for its snapshot and resumes with a new identity",
            life::build_and_restore,
        ),
        trial(
            "a kernel with a snapshot device gets no open stream into the snapshot",
            life::snapshot_device,
        ),
        trial(
            "the ports of the host are taken before the service can take them",
            life::ports_are_taken,
        ),
        trial_if_possible(
            "a cold boot runs from the root file system as its user and passes the exit code on",
            life::cold_boot,
        ),
        trial(
            "a service that ends before it is ready fails at once with its status",
            failures::ends_early,
        ),
        trial(
            "a program that is missing is named",
            failures::missing_program,
        ),
        trial(
            "a warm command that fails ends the build with its output",
            failures::warm_fails,
        ),
        trial(
            "a restore command that fails ends the machine before its service runs on",
            failures::restore_fails,
        ),
        trial(
            "a test restore makes all requests in order, with the new identity",
            test_restores::all_are_made,
        ),
        trial(
            "a request that is not answered ends the test restore, with what it saw",
            test_restores::one_fails,
        ),
        trial(
            "a request that ends the service is named",
            test_restores::one_ends_the_service,
        ),
        trial(
            "a service that ignores SIGTERM is killed after the grace time",
            life::ignores_sigterm,
        ),
        trial(
            "an init is pid 1 of its own, is frozen and restored, and shuts down when it is stopped",
            inits::lives,
        ),
        trial(
            "an init that shuts down before it is ready fails with what it said",
            inits::ends_early,
        ),
        trial(
            "an init that is said to be none runs like any program",
            inits::is_an_ordinary_program,
        ),
        trial(
            "without restore parameters the service never runs on",
            failures::no_identity,
        ),
    ]
}

/// A scenario that can be tried wherever the others can.
fn trial(name: &str, scenario: fn()) -> Trial {
    trial_if_possible(name, move || {
        scenario();
        None
    })
}

/// A scenario that returns why it cannot be tried here, if it cannot.
fn trial_if_possible(
    name: &str,
    scenario: impl FnOnce() -> Option<&'static str> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        Ok(match cannot_run().or_else(scenario) {
            None => Completion::Completed,
            Some(why) => Completion::ignored_with(why),
        })
    })
}

fn be_pid1(root: &Path) -> ! {
    // A mistake here would reset the machine.
    assert!(rustix::process::getpid().is_init() && std::env::var_os(ROOT).is_some());
    let prefix = format!("smol-pid1-{}", root.display());
    // A root is the root of a file system, as in a guest.
    rustix::mount::mount_bind(root, root).unwrap();
    rustix::process::chroot(root).unwrap();
    std::env::set_current_dir("/").unwrap();
    smol_guest::init::run(&Platform {
        host: HostLink::Local(prefix),
        console: "/proc/self/fd/2".into(),
        snapshot_device: "/smol/device".into(),
        set_clock: |time| fs::write("/run/clock", time.as_nanos().to_string()),
    })
}
