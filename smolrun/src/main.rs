//! Runs .smolmachine bundles.
//!
//! ```text
//! cli -> run: open, trust, materialise, choose KVM or emulated host -> spec
//!   foreground ----> run::host: instance --+--> supervise: restore, ports, guest, output -> exit code
//!   -d: detached --> the same, in a process |
//!       of its own                          +--> emulated: the same supervise, inside of QEMU
//! ```
//! The first start of a bundle runs while it is being unpacked: [`first`].
//! Files that appear whole, folders that are owned: [`owned`]. Processes talk in [`report`]
//! messages one way and [`orders`] the other.

mod cli;
mod commands;
mod detached;
mod emulated;
mod first;
mod guest;
mod identity;
mod instance;
mod materialise;
mod metrics;
mod orders;
mod output;
mod owned;
mod ports;
mod report;
mod restore;
mod run;
mod spec;
mod supervise;
#[cfg(test)]
mod testing;
mod trust;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// Whether a machine will probably be wanted: KVM is asked for one while the command line is read.
fn names_a_bundle(word: &OsStr) -> bool {
    Path::new(word)
        .extension()
        .is_some_and(|ending| ending == "smolmachine")
}

fn main() -> ExitCode {
    smol_host::emulated::init::main_if_requested();
    let start = metrics::Moment::now();
    if std::env::args_os()
        .skip(1)
        .any(|word| names_a_bundle(&word))
    {
        smol_machine::hv::prepare();
    }
    smol_cli::install_panic_hook();
    let cli = Cli::parse();
    let outcome = match &cli.command {
        None => run::run(&cli.run, start),
        Some(Command::Ps { json }) => commands::ps(*json),
        Some(Command::Logs { name, follow }) => commands::logs(name, *follow),
        Some(Command::Stop { name, time }) => commands::stop(name, *time),
        Some(Command::Doctor(args)) => commands::doctor(args.json),
        Some(Command::Detached) => detached::main(),
        Some(Command::Inner { spec }) => emulated::inner(spec),
    };
    outcome.unwrap_or_else(|error| smol_cli::report(&error))
}
