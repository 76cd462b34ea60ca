//! The one error type of this crate: what is wrong with the host, and the command that mends it.

use std::fmt;

/// This host cannot do what was asked. Exit code 5 in both tools.
#[derive(Debug)]
pub struct HostError {
    /// What failed, where and why; one sentence without a final full stop.
    pub message: String,
    /// The exact command (or action) that mends it, if there is one.
    pub mend: Option<String>,
    /// Whether an emulated host died or hung by itself: a fault of the emulator or of the kernel in
    /// it, and not of what it ran. The same may go well the next time.
    pub fault: bool,
}

impl HostError {
    /// An error nothing particular can be done about.
    pub fn new(message: impl Into<String>) -> Self {
        HostError {
            message: message.into(),
            mend: None,
            fault: false,
        }
    }

    /// Adds the command that mends it.
    pub fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend = Some(command.into());
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

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, HostError>;
