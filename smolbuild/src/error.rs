//! Exit kinds of the errors that our libraries return: decided here, where they enter this program.

use smol_cli::{ErrorExt, ExitKind, Failure};

/// An error of a library of ours, whose exit kind follows from what it is.
pub trait LibraryError {
    /// Adds exit kind and hints.
    fn classified(self) -> anyhow::Error;
}

impl LibraryError for smol_bundle::Error {
    /// 4 when the bytes are not what they should be, 2 for an output that cannot be one, 1 when the host
    /// could not do it.
    fn classified(self) -> anyhow::Error {
        let kind = match self.is_verification_failure() {
            true => ExitKind::Verification,
            false => ExitKind::Failed,
        };
        if let smol_bundle::Error::Output { .. } = self {
            let error = anyhow::Error::from(self).kind(ExitKind::Usage);
            return error.hint("name a file, a pipe that is read from, or /dev/null");
        }
        anyhow::Error::from(self).kind(kind)
    }
}

impl LibraryError for smol_host::HostError {
    /// 5, with the command that fixes it as a hint.
    fn classified(self) -> anyhow::Error {
        Failure::from(self).into()
    }
}

impl LibraryError for smol_registry::Error {
    /// 4 when the bytes are not what they should be, 2 when a configuration file is wrong, 1 when the
    /// registry could not be asked or has no such thing.
    fn classified(self) -> anyhow::Error {
        let kind = match self.kind() {
            smol_registry::Kind::Corrupt => ExitKind::Verification,
            smol_registry::Kind::Config => ExitKind::Usage,
            _ => ExitKind::Failed,
        };
        let hint = self.hint().map(str::to_owned);
        let error = anyhow::Error::from(self).kind(kind);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Results with such errors.
pub trait ResultExt<T> {
    /// The result with the exit kind of its error.
    ///
    /// # Errors
    /// The error, with its exit kind.
    fn classify(self) -> anyhow::Result<T>;
}

impl<T, E: LibraryError> ResultExt<T> for Result<T, E> {
    fn classify(self) -> anyhow::Result<T> {
        self.map_err(LibraryError::classified)
    }
}
