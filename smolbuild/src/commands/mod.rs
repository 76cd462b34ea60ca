//! One file per subcommand.

pub mod build;
pub mod diff;
pub mod doctor;
pub mod inspect;
pub mod kernel;
pub mod keys;
pub mod lock;
pub mod reproduce;
pub mod verify;

use std::path::Path;

use smol_bundle::Bundle;
use smol_cli::{ErrorExt, ExitKind, Failure};

/// Gives an error of the bundle library its exit code: 4 when the bytes are not what they should
/// be, 1 when the machine could not do it.
pub(crate) fn bundle_error(error: smol_bundle::Error) -> anyhow::Error {
    let kind = if error.is_verification_failure() {
        ExitKind::Verification
    } else {
        ExitKind::Failed
    };
    anyhow::Error::from(error).kind(kind)
}

/// Opens the bundle that the command line names. One that is not there is a mistake in the command.
pub(crate) fn open_bundle(path: &Path) -> anyhow::Result<Bundle> {
    if !path.exists() {
        let message = format!("there is no bundle {}", path.display());
        return Err(Failure::new(ExitKind::Usage, message)
            .hint("smolbuild DIR -o FILE builds one")
            .into());
    }
    Bundle::open(path).map_err(bundle_error)
}

/// Gives an error of the host its exit code, 5, and the command that mends it as a hint.
pub(crate) fn host_error(error: smol_host::HostError) -> anyhow::Error {
    let mend = error.fix.clone();
    let error = anyhow::Error::from(error).kind(ExitKind::Host);
    match mend {
        Some(command) => error.hint(command),
        None => error,
    }
}
