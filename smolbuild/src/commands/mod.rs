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
use smol_cli::{ExitKind, Failure};

use crate::cli::SmolfileArg;
use crate::error::ResultExt;
use crate::habits;
use crate::smolfile::{self, Loaded};

/// Reads the Smolfile that the command line names, by itself or by its folder.
pub(crate) fn load_smolfile(args: &SmolfileArg) -> anyhow::Result<Loaded> {
    match habits::about_smolfile(&args.path) {
        Some(failure) => Err(failure.into()),
        None => smolfile::load(&args.path, args.context.as_deref()),
    }
}

/// Opens the bundle that the command line names. One that is not there is a mistake in the command.
pub(crate) fn open_bundle(path: &Path) -> anyhow::Result<Bundle> {
    if !path.exists() {
        let message = format!("there is no bundle {}", path.display());
        return Err(Failure::new(ExitKind::Usage, message)
            .hint("smolbuild DIR -o FILE builds one")
            .into());
    }
    Bundle::open(path).classify()
}
