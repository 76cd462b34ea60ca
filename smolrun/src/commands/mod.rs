//! What the command line asks for, one module a command.

mod doctor;
mod logs;
mod ps;
mod run;
mod stop;

pub use doctor::doctor;
pub use logs::logs;
pub use ps::ps;
pub use run::run;
pub use stop::stop;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use smol_cli::manual::{self, Shell};

use crate::cli::Cli;

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

/// Prints a result. It is no failure if the reader has closed the pipe.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
