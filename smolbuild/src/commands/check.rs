//! `smolbuild check`: the mistakes of a Smolfile.

use anyhow::Result;
use smol_cli::progress::Mode;
use smol_cli::{Interrupt, Session, paths};

use crate::cli::Check;
use crate::context::BuildContext;
use crate::environment::EnvironmentInputs;
use crate::fetch::Net;
use crate::kernel::ReadyKernels;
use crate::resolve::{self, Policy};
use crate::smolfile::Loaded;

/// Reads the Smolfile, as a build would; and compares the lock file, if it must fit.
///
/// # Errors
/// What a build would end with before it makes anything.
pub fn run(args: &Check, interrupt: &Interrupt) -> Result<()> {
    let loaded = super::load_smolfile(&args.smolfile)?;
    if args.locked {
        require_lock(args, &loaded, interrupt)?;
    }
    let fits = match args.locked {
        true => format!(", and {} fits", loaded.lock_path().display()),
        false => String::new(),
    };
    let shown = loaded.path.display();
    Ok(smol_cli::print(&format!(
        "{shown} has no mistakes{fits}\n"
    ))?)
}

fn require_lock(args: &Check, loaded: &Loaded, interrupt: &Interrupt) -> Result<()> {
    let kernels = ReadyKernels::of_process(false, args.kernel.no_prebuilt)?;
    let context = BuildContext {
        downloads: &paths::cache_dir()?.join(smol_host::cache::DOWNLOADS),
        net: Net::Offline,
        environment: &EnvironmentInputs::of_process(kernels)?,
        session: &Session::new(Mode::Auto, interrupt.clone()),
    };
    resolve::resolve(loaded, &Policy::File { locked: true }, context).map(drop)
}
