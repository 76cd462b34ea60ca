//! `smolbuild doctor`.

use anyhow::Result;
use smol_cli::args::JsonArg;
use smol_cli::{ExitKind, Failure};
use smol_host::doctor::{self, Tool};

/// Prints the checks; exits with 5 when there is no way to build on this host.
pub fn run(args: &JsonArg) -> Result<()> {
    let checks = doctor::checks(Tool::Build);
    if args.json {
        println!("{}", doctor::to_json(&checks));
    } else {
        print!("{}", doctor::render(&checks));
    }
    if doctor::able(&checks) {
        return Ok(());
    }
    Err(Failure::new(ExitKind::Host, "this host cannot build machines yet").into())
}
