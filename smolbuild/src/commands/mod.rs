//! One file per subcommand.

pub mod build;
pub mod cache;
pub mod check;
pub mod diff;
pub mod doctor;
pub mod init;
pub mod inspect;
pub mod kernel;
pub mod keys;
pub mod lock;
pub mod plan;
pub mod reproduce;
mod timings;
pub mod verify;

use std::path::{Path, PathBuf};

use smol_bundle::Bundle;
use smol_cli::{ErrorExt, ExitKind, Failure};
use smol_sandbox::{Access, Filter, MODE_VARIABLE, Mode};

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

/// Restricts this process to reading these files, and to writing into the folders `written` and to temporary
/// files: for commands that look into bundles of strangers and do nothing else. They need no network and no
/// other program.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn only_read(files: &[&Path], written: &[&Path]) -> anyhow::Result<()> {
    let mode = Mode::from_environment()?;
    if let Some(warning) = smol_sandbox::warning(mode) {
        smol_cli::print_error(&format!("smolbuild: warning: {warning}\n"));
    }
    let mut access = Access::of_monitor().write(std::env::temp_dir());
    for file in files {
        access = access.read(file);
    }
    for folder in written {
        access = access.write(folder);
    }
    let restricted = access.restrict_thread(mode);
    restricted
        .and_then(|()| Filter::Files.restrict_process(mode))
        .map_err(anyhow::Error::from)
        .kind(ExitKind::Host)
        .hint(format!("{MODE_VARIABLE}=off reads it without confinement"))
}

/// Returns the folder of the trusted keys, if there is a place for it.
pub(crate) fn trust_folder() -> Option<PathBuf> {
    Some(smol_cli::paths::config_dir().ok()?.join("trust"))
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
