//! The bundle's file, and which images it holds.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use smol_bundle::{Bundle, ImageKind};
use smol_cli::{ErrorExt, ExitKind, Session, human};

/// Which images a bundle holds, beside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Has {
    /// An initramfs, and with it smol-guest; without it the machine is just a kernel, to which
    /// nothing can be said.
    pub initramfs: bool,
    /// A root file system.
    pub rootfs: bool,
    /// A snapshot.
    pub snapshot: bool,
}

impl Has {
    /// Returns those of this bundle.
    pub fn of(bundle: &Bundle) -> Self {
        let has = |kind| bundle.image_size(kind).is_some();
        Self {
            initramfs: has(ImageKind::Initramfs),
            rootfs: has(ImageKind::Rootfs),
            snapshot: bundle.has_snapshot(),
        }
    }
}

/// Opens a bundle, and checks its structure.
///
/// # Errors
/// Of kind [`ExitKind::Verification`] if it is damaged, [`ExitKind::Usage`] if it is not there.
pub fn open(path: &Path) -> anyhow::Result<Bundle> {
    let error = match Bundle::open(path) {
        Ok(bundle) => return Ok(bundle),
        Err(error) => error,
    };
    let verification = error.is_verification_failure();
    let absent = matches!(&error, smol_bundle::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
    let error = anyhow::Error::from(error);
    let hint = "name a .smolmachine file that exists";
    Err(match (verification, absent) {
        (true, _) => error.kind(ExitKind::Verification),
        (_, true) => error.kind(ExitKind::Usage).hint(hint),
        _ => error,
    })
}

/// Checks every byte of the file: also those that are in the cache already, from which the machine
/// will run.
///
/// # Errors
/// Of kind [`ExitKind::Verification`] if one is wrong.
pub fn verify(bundle: &Bundle, session: &Session) -> anyhow::Result<()> {
    let name = bundle.config().name.as_str();
    let stage = session.stage("verify", &format!("verifying {name}"));
    let verified = bundle.verify_while(&mut |done, total| {
        stage.set(done, total);
        session.interrupt.go_on()
    });
    session.check()?;
    verified.map_err(|error| {
        let damaged = error.is_verification_failure();
        let error = anyhow::Error::from(error);
        let altered = format!("{} was altered or damaged", bundle.path().display());
        match damaged {
            true => error.context(altered).kind(ExitKind::Verification),
            false => error,
        }
    })?;
    stage.finish(&human::bytes(bundle.file_size()));
    Ok(())
}

/// Makes a path absolute.
///
/// # Errors
/// Those of the operating system.
pub fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot make {} absolute", path.display()))
}
