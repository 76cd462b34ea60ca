//! What the command line asks for, one module a command.

mod doctor;
mod logs;
mod ps;
mod rm;
mod run;
mod stop;
mod wait;

pub use doctor::doctor;
pub use logs::logs;
pub use ps::{Shown, ps};
pub use rm::rm;
pub use run::run;
pub use stop::stop;
pub use wait::wait;

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use smol_cli::manual::{self, Shell};

use crate::cli::Cli;
use crate::host::instance::{self, Record};

/// Prints the script that completes this command line in a shell.
///
/// # Errors
/// If nothing can be printed.
pub fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    print(&manual::completions("smolrun", &Cli::command(), shell))
}

/// Writes the man pages.
///
/// # Errors
/// If the folder cannot be written.
pub fn man_pages(folder: &Path) -> anyhow::Result<ExitCode> {
    manual::man_pages(Cli::command(), folder)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a result.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    smol_cli::print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the records of the machines that are named, or of all that are `wanted`.
fn named(
    root: &Path,
    names: &[String],
    all: bool,
    wanted: impl Fn(&Record) -> bool,
) -> Vec<anyhow::Result<Record>> {
    match all {
        true => instance::list(root)
            .into_iter()
            .filter(wanted)
            .map(Ok)
            .collect(),
        false => names
            .iter()
            .map(|name| instance::find(root, name))
            .collect(),
    }
}

/// Does something for each of several machines. That it fails for one is told, and no reason not to
/// do it for the others.
///
/// # Errors
/// The last one.
fn each(outcomes: impl Iterator<Item = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let mut failed = None;
    for error in outcomes.filter_map(Result::err) {
        if let Some(earlier) = failed.replace(error) {
            smol_cli::report(&earlier);
        }
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}
