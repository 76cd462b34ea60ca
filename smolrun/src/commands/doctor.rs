//! `smolrun doctor`.

use std::process::ExitCode;

use smol_cli::ExitKind;
use smol_host::doctor::{self, Tool};

/// Prints what this host can do; exit code 5 if it can run nothing.
///
/// # Errors
/// If nothing can be printed.
pub fn doctor(json: bool) -> anyhow::Result<ExitCode> {
    let checks = doctor::checks(Tool::Run);
    match json {
        true => smol_cli::print_json(&doctor::to_json(&checks))?,
        false => smol_cli::print(&doctor::render(&checks))?,
    }
    Ok(match doctor::able(&checks) {
        true => ExitCode::SUCCESS,
        false => ExitKind::Host.into(),
    })
}
