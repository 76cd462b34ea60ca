//! `smolbuild lock`: the lock file, made anew.

use anyhow::Result;
use smol_cli::{Interrupt, Session, human, paths};

use crate::cli::Lock;
use crate::context::BuildContext;
use crate::environment::EnvironmentInputs;
use crate::fetch::Net;
use crate::kernel::ReadyKernels;
use crate::resolve;

/// Renews the lock file and prints what changed, one line an input.
pub fn run(args: &Lock, interrupt: &Interrupt) -> Result<()> {
    let loaded = super::load_smolfile(&args.smolfile)?;
    let kernels = ReadyKernels::of_process(false, args.kernel.no_prebuilt)?;
    let context = BuildContext {
        downloads: &paths::cache_dir()?.join(smol_host::cache::DOWNLOADS),
        net: Net::allowed(args.downloads.offline),
        environment: &EnvironmentInputs {
            insecure_registries: args.downloads.insecure_registry.clone(),
            ..EnvironmentInputs::of_process(kernels)?
        },
        session: &Session::titled(args.shown.progress, "Locking", interrupt.clone()),
    };
    let changes = resolve::refresh(&loaded, &args.only, context)?;
    if changes.is_empty() {
        let file = loaded.lock_path();
        let only: Vec<&str> = args.only.iter().map(|part| part.name()).collect();
        match only.is_empty() {
            true => smol_cli::print(&format!("{} is up to date\n", file.display()))?,
            false => smol_cli::print(&format!(
                "{}: {} up to date\n",
                file.display(),
                only.join(", ")
            ))?,
        }
    }
    for change in changes {
        smol_cli::print(&(human::one_line(&change.to_string()) + "\n"))?;
    }
    Ok(())
}
