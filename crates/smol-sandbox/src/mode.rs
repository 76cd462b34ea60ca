//! Whether this process is confined.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};
use smol_cli::{ExitKind, Failure};

/// Switches confinement off, or has the kernel log what it would forbid.
pub const MODE_VARIABLE: &str = "SMOL_SANDBOX";

/// Whether this process is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// What is forbidden fails, or ends the process.
    #[default]
    On,
    /// System calls that would be forbidden are allowed, and logged by the kernel (`dmesg`, or the
    /// audit log). Files are not confined, for Landlock has no such mode.
    Log,
    /// Nothing is forbidden.
    Off,
}

impl Mode {
    /// Returns what `SMOL_SANDBOX` says: `on`, `log` or `off`; on if it is not set.
    ///
    /// # Errors
    /// Another word.
    pub fn from_environment() -> Result<Self, Failure> {
        Self::parse(std::env::var_os(MODE_VARIABLE))
    }

    fn parse(value: Option<OsString>) -> Result<Self, Failure> {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return Ok(Self::On);
        };
        match value.to_str() {
            Some("on") => Ok(Self::On),
            Some("log") => Ok(Self::Log),
            Some("off") => Ok(Self::Off),
            _ => {
                let message = format!("{MODE_VARIABLE} is {value:?}");
                Err(Failure::new(ExitKind::Usage, message).hint("it is one of on, log, off"))
            }
        }
    }
}

/// Returns what is to be said about this host or this start, if the machine is not fully confined.
pub fn warning(mode: Mode) -> Option<String> {
    match mode {
        Mode::On => crate::missing(),
        Mode::Log => Some(format!(
            "{MODE_VARIABLE}=log: this process is not confined; the kernel logs what would be forbidden"
        )),
        Mode::Off => Some(format!("{MODE_VARIABLE}=off: this process is not confined")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confinement_is_on_unless_the_variable_says_otherwise() {
        for (value, mode) in [
            (None, Mode::On),
            (Some(""), Mode::On),
            (Some("on"), Mode::On),
            (Some("log"), Mode::Log),
            (Some("off"), Mode::Off),
        ] {
            assert_eq!(Mode::parse(value.map(OsString::from)).unwrap(), mode);
        }
        let error = Mode::parse(Some("no".into())).unwrap_err();
        assert_eq!(error.to_string(), "SMOL_SANDBOX is \"no\"");
    }
}
