//! `smolbuild doctor`.

use anyhow::Result;
use smol_cli::args::JsonArg;
use smol_cli::{ExitKind, Failure};
use smol_host::doctor::{self, Check, Tool};

use crate::kernel::ReadyKernels;
use crate::smolfile::DEFAULT_RECIPE;

/// Prints the checks; exits with 5 when there is no way to build on this host.
pub fn run(args: &JsonArg) -> Result<()> {
    let checks = doctor::checks(Tool::Build(kernel()));
    if args.json {
        smol_cli::print_json(&doctor::to_json(&checks))?;
    } else {
        smol_cli::print(&doctor::render(&checks))?;
    }
    if doctor::able(&checks) {
        return Ok(());
    }
    Err(Failure::new(ExitKind::Host, "this host cannot build machines yet").into())
}

/// Where the kernel comes from. What compiles one is needed only where none is ready.
fn kernel() -> Check {
    // Without a cache folder, say, which is another check's to tell, nothing is ready.
    let Ok(ready) = ReadyKernels::of_process(false, false) else {
        return doctor::kernel_build();
    };
    match ready.check(DEFAULT_RECIPE) {
        Ok(ready) => ready.unwrap_or_else(doctor::kernel_build),
        Err(error) => doctor::kernel_damaged(format!("{error:#}")),
    }
}
