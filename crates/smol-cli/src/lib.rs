//! What the command lines of `smolbuild` and `smolrun` have in common.
//!
//! | module | what it holds |
//! |---|---|
//! | [`error`] | exit codes by kind of failure, hints in `anyhow` chains, the report on stderr, the panic hook |
//! | [`progress`] | stages on stderr (terminal, plain lines or JSON lines) and the waterfall of where the time went |
//! | [`signals`] | SIGINT and SIGTERM as a flag to look at and a descriptor to poll |
//! | [`paths`] | cache, config and runtime folders by the XDG Base Directory Specification |
//! | [`session`] | progress and interrupt of one run of a command, as one value |
//! | [`args`] | command line arguments that several commands have |
//! | [`habits`] | what a program answers to the habits of other tools' users |
//! | [`human`] | sizes and durations for people |
//! | [`manual`] | man pages and completions for shells, made from a command line |
//!
//! Results go to stdout, by [`print()`]; everything else here writes to stderr only.
//!
//! ```no_run
//! use smol_cli::{ErrorExt, ExitKind};
//!
//! fn main() -> std::process::ExitCode {
//!     smol_cli::install_panic_hook();
//!     match run() {
//!         Ok(()) => std::process::ExitCode::SUCCESS,
//!         Err(error) => smol_cli::report(&error),
//!     }
//! }
//!
//! fn run() -> anyhow::Result<()> {
//!     std::fs::metadata("/dev/kvm")
//!         .kind(ExitKind::Host)
//!         .hint("pass --accel emulated to do without hardware virtualization")?;
//!     Ok(())
//! }
//! ```

#![expect(clippy::disallowed_methods, reason = "everybody prints by this crate")]

pub mod args;
pub mod error;
pub mod habits;
pub mod human;
pub mod manual;
pub mod paths;
pub mod progress;
pub mod session;
pub mod signals;

pub use error::{ErrorExt, ExitKind, Failure, exit_kind, install_panic_hook, report};
pub use progress::{Mode, Progress, Stage};
pub use session::Session;
pub use signals::Interrupt;

use std::io::{self, IsTerminal, Write};

/// Prints a result on stdout, as [`human::printable`] shows it. It is no failure if the reader has
/// closed the pipe, as `head` does: it has all that it wants.
///
/// # Errors
/// If stdout cannot be written for another reason (a full disk).
pub fn print(text: &str) -> io::Result<()> {
    write_out(&human::printable(text))
}

/// Prints a result on stdout as JSON, over several lines, as [`print()`] does. What a terminal does not
/// show is escaped as JSON escapes it.
///
/// # Errors
/// As for [`print()`].
pub fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    write_out(&(error::json::visible(&text) + "\n"))
}

/// Prints a result on stdout as JSON in one line, as [`print_json`] does.
///
/// # Errors
/// As for [`print()`].
pub fn print_json_line(value: &impl serde::Serialize) -> io::Result<()> {
    write_out(&error::json::line(&serde_json::to_value(value)?))
}

fn write_out(text: &str) -> io::Result<()> {
    let write = || {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    };
    match progress::aside(write) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Writes text on stderr. Where that cannot be written (closed, a full disk) there is nowhere to say so.
pub fn print_error(text: &str) {
    let _ = progress::aside(|| io::stderr().lock().write_all(text.as_bytes()));
}

/// Returns whether stderr takes colours: it is a terminal, `NO_COLOR` is unset or empty
/// (<https://no-color.org>) and `TERM` is not `dumb`.
pub fn colour_on_stderr() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stderr().is_terminal() && !set("NO_COLOR") && !dumb
}
