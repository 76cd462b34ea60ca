//! The one error type of this crate: what is wrong with the host, and the command that fixes it.

use std::fmt;

use smol_cli::{ExitKind, Failure};

/// This host cannot do what was asked. Exit code 5 in both tools.
#[derive(Debug)]
pub struct HostError {
    /// What failed, where and why; one sentence without a final full stop.
    pub message: String,
    /// The exact command (or action) that fixes it, if there is one.
    pub fix: Option<String>,
    /// Whether an emulated host died or hung by itself: a fault of the emulator or of the kernel in
    /// it, and not of what it ran. The same may go well the next time.
    pub fault: bool,
}

impl HostError {
    /// Creates an error without a known fix.
    pub fn new(message: impl Into<String>) -> Self {
        HostError {
            message: message.into(),
            fix: None,
            fault: false,
        }
    }

    /// Adds the command that fixes it.
    pub fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix = Some(command.into());
        self
    }

    /// For `map_err`: says what was being done when an I/O call failed.
    pub(crate) fn io(doing: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |e| HostError::new(format!("{doing}: {e}"))
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for HostError {}

impl From<HostError> for Failure {
    /// Of kind Host, with the command that fixes it as a hint.
    fn from(error: HostError) -> Failure {
        let failure = Failure::new(ExitKind::Host, error.message);
        match error.fix {
            Some(fix) => failure.hint(fix),
            None => failure,
        }
    }
}

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, HostError>;
