//! Runs .smolmachine bundles.
//!
//! ```text
//! cli, habits, lib -> commands  one module a command
//! commands::run                  open, trust, choose KVM or emulated host
//!   -> images                    in the cache, or loaded lazily out of the bundle
//!   -> host::process             the machine as an instance of this process, or
//!      host::background          in a process of its own (-d), or
//!      host::emulated            the same program inside of QEMU
//!   -> run::supervisor           start, follow the guest, forward ports, end
//! ```
//! Modules use those below them only: commands, host, run, images. Folders that are locked by their
//! process are those of [`smol_host::lock_dir`].

mod cli;
mod commands;
#[doc(hidden)]
pub mod fuzz;
mod habits;
mod host;
mod images;
mod run;
#[cfg(test)]
#[allow(dead_code)] // other tests use the rest
mod testing;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::Command;
use crate::commands::Shown;
use crate::host::{background, emulated, fetcher};
use crate::run::metrics::Moment;

/// Whether a machine will probably be wanted: KVM is asked for one while the command line is read.
fn names_a_bundle(word: &OsStr) -> bool {
    Path::new(word)
        .extension()
        .is_some_and(|ending| ending == "smolmachine")
}

/// Runs the program, with this process's arguments.
pub fn main() -> ExitCode {
    smol_host::emulated::init::main_if_requested();
    let start = Moment::now();
    if std::env::args_os()
        .skip(1)
        .any(|word| names_a_bundle(&word))
    {
        smol_machine::hv::prepare();
    }
    smol_cli::install_panic_hook();
    let cli = match habits::parse() {
        Ok(cli) => cli,
        Err(failure) => return smol_cli::report(&failure.into()),
    };
    let outcome = match &cli.command {
        None => commands::run(&cli.run, start),
        Some(Command::Ps { all, quiet, json }) => commands::ps(*all, Shown::of(*quiet, *json)),
        Some(Command::Logs { name, follow }) => commands::logs(name, *follow),
        Some(Command::Stop { which, time }) => commands::stop(&which.names, which.all, *time),
        Some(Command::Wait { names }) => commands::wait(names),
        Some(Command::Rm { which, force }) => commands::rm(&which.names, which.all, *force),
        Some(Command::Doctor(args)) => commands::doctor(args.json),
        Some(Command::Completions { shell }) => commands::completions(*shell),
        Some(Command::Man { folder }) => commands::man_pages(folder),
        Some(Command::Detached) => background::main(),
        Some(Command::FetchKernel) => fetcher::main(),
        Some(Command::Inner { spec }) => emulated::inner(spec),
    };
    outcome.unwrap_or_else(|error| smol_cli::report(&error))
}
