//! The images of a machine: kernel, initramfs, root file system, memory and state.
//!
//! - [`cache`]: as files, unpacked once and used by every later start.
//! - [`lazy`]: at the first start, out of the bundle while the machine runs.

pub mod cache;
pub mod lazy;

use std::path::Path;

use smol_bundle::Bundle;
use smol_cli::{ErrorExt, ExitKind};

/// Opens a bundle, and checks its structure.
///
/// # Errors
/// Of kind [`ExitKind::Verification`] if it is damaged, [`ExitKind::Usage`] if it is not there.
pub fn open_bundle(path: &Path) -> anyhow::Result<Bundle> {
    let error = match Bundle::open(path) {
        Ok(bundle) => return Ok(bundle),
        Err(error) => error,
    };
    let verification = error.is_verification_failure();
    let absent = matches!(&error, smol_bundle::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
    let error: anyhow::Error = error.into();
    Err::<Bundle, _>(match (verification, absent) {
        (true, _) => return Err(error).kind(ExitKind::Verification),
        (_, true) => error,
        _ => return Err(error),
    })
    .kind(ExitKind::Usage)
    .hint("name a .smolmachine file; bundles in a registry cannot be run by reference yet")
}
