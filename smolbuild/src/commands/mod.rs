//! One file per subcommand.

pub mod build;
pub mod doctor;
pub mod inspect;
pub mod kernel;
pub mod keys;
pub mod verify;

use smol_cli::{ErrorExt, ExitKind};

/// Gives an error of the bundle library its exit code: 4 when the bytes are not what they should
/// be, 1 when the machine could not do it.
pub(crate) fn bundle_error(error: smol_bundle::Error) -> anyhow::Error {
    let kind = if error.is_verification_failure() { ExitKind::Verification } else { ExitKind::Failed };
    Err::<(), _>(error).kind(kind).expect_err("made from an error")
}

/// Gives an error of the host its exit code, 5, and the command that mends it as a hint.
pub(crate) fn host_error(error: smol_host::HostError) -> anyhow::Error {
    let mend = error.mend.clone();
    let result = Err::<(), _>(error).kind(ExitKind::Host);
    match mend {
        Some(command) => result.hint(command),
        None => result,
    }
    .expect_err("made from an error")
}
