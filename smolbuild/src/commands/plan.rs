//! `smolbuild plan`: what a build would do.

use anyhow::Result;
use smol_cli::progress::Mode;
use smol_cli::{Interrupt, Session, paths};

use crate::cli::Plan;
use crate::context::BuildContext;
use crate::environment::EnvironmentInputs;
use crate::fetch::Net;
use crate::kernel::ReadyKernels;
use crate::preview::{self, Request};

/// Looks up what a build would do, and prints it.
///
/// # Errors
/// What a build would end with before it makes anything.
pub fn run(args: &Plan, interrupt: &Interrupt) -> Result<()> {
    let loaded = super::load_smolfile(&args.smolfile)?;
    let cache = paths::cache_dir()?;
    let kernels = ReadyKernels::of_process(false, args.kernel.no_prebuilt)?;
    let context = BuildContext {
        downloads: &cache.join(smol_host::cache::DOWNLOADS),
        net: Net::allowed(args.offline),
        environment: &EnvironmentInputs::of_process(kernels)?,
        session: &Session::new(Mode::Auto, interrupt.clone()),
    };
    let request = Request {
        locked: args.locked,
        accel: args.host.accel,
        cache: &cache,
    };
    let preview = preview::look(&loaded, request, context)?;
    match args.format.json {
        true => Ok(smol_cli::print_json(&preview)?),
        false => Ok(smol_cli::print(&preview.text())?),
    }
}
