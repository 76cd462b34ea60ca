//! The commands beside running.

mod doctor;
mod logs;
mod ps;
mod stop;

pub use doctor::doctor;
pub use logs::logs;
pub use ps::ps;
pub use stop::stop;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use smol_cli::manual::{self, Shell};

use crate::cli::Cli;

/// `smolrun completions SHELL`.
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

/// Prints a result. A reader that has seen enough is no failure.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
