//! What fails below the programs: system calls, the disk, the process itself. Whatever happens, the exit
//! code is one of the manual's, an output is the old one or the whole new one, no machine goes on with a
//! byte that was not verified, and what is left behind is gone after the next ordinary run.
//!
//! ```text
//! cargo test -p smol-tests --test faults [-- WORD]
//!
//! SMOL_TEST_FAULTS=all    every place where a call can fail, and 200 moments of a kill, not a part of them
//! SMOL_TEST_SEED=N        the moments of an earlier run
//! ```
//! | module | what fails |
//! |---|---|
//! | [`calls`] | one system call after the other, by strace's fault injection |
//! | [`space`] | writes that are cut short, by a limit on the size of files |
//! | [`moments`] | the process, killed at random moments; the cache, removed at random moments |
//! | [`clock`] | the clock of the host, which has jumped |
//! | [`operations`] | what is tried: commands, and what must hold of them |
//! | [`scene`] | the folders of a trial |
//!
//! The machine is a kernel of some forty bytes, so that the software KVM of any host does.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "not a program for others"
)]

mod calls;
mod clock;
mod moments;
mod operations;
mod scene;
mod space;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{LazyLock, Mutex};

use libtest_mimic::{Arguments, Failed, Trial};
use smol_machine::probe;
use tempfile::TempDir;

use crate::scene::Fixture;

/// Whether all places and moments are tried.
fn all() -> bool {
    std::env::var_os("SMOL_TEST_FAULTS").is_some_and(|which| which == "all")
}

/// The folder of the [`FIXTURE`], which as a static is never dropped.
static FOLDER: Mutex<Option<TempDir>> = Mutex::new(None);

/// The things that every trial begins with, made when the first one is run.
static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let path = folder.path().to_owned();
    *FOLDER.lock().expect("nobody panics with it") = Some(folder);
    Fixture::make(path)
});

/// Why there can be no machine here; `None` if there can.
static NO_KVM: LazyLock<Option<String>> = LazyLock::new(|| {
    let opened = probe::open(Path::new(probe::DEVICE));
    opened.err().map(|error| error.to_string())
});

/// Why no system call can be made to fail here; `None` if it can.
static NO_STRACE: LazyLock<Option<String>> = LazyLock::new(|| {
    let mut strace = Command::new("strace");
    strace.args(["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "true"]);
    let output = strace.stdin(Stdio::null()).output();
    match output {
        Err(error) => Some(format!("strace: {error}")),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
});

/// A trial of its needs: it is left out where `missing` says why.
fn trial(
    name: String,
    missing: impl Fn() -> Option<String> + Send + 'static,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::test(name.clone(), move || match missing() {
        None => run(),
        Some(why) => {
            // The line that `cargo xtask test` counts.
            println!("\ntest {name} ... left out: {}", why.replace('\n', " "));
            Ok(())
        }
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = calls::trials();
    trials.extend(space::trials());
    trials.extend(moments::trials());
    trials.extend(clock::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(FOLDER.lock().expect("nobody panics with it").take());
    conclusion.exit_code()
}
