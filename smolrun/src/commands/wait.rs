//! `smolrun wait`.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use smol_cli::{ExitKind, Failure};

use crate::host::instance;

/// How often it is checked whether a machine has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until each of the machines has ended, and prints the exit codes, one a line.
///
/// # Errors
/// If there is no such machine, or nothing of it was kept.
pub fn wait(names: &[String]) -> anyhow::Result<ExitCode> {
    let root = instance::root()?;
    super::each(names.iter().map(|name| {
        let code = exit_code(&root, name)?;
        smol_cli::print(&format!("{code}\n")).map_err(Into::into)
    }))
}

fn exit_code(root: &Path, name: &str) -> anyhow::Result<u8> {
    let record = instance::find(root, name)?;
    while let Some(now) = instance::current(root, &record) {
        if let Some(end) = now.end {
            return Ok(end.exit_code);
        }
        thread::sleep(POLL_INTERVAL);
    }
    let why = match record.auto_remove {
        true => "it ran in the foreground, or with --rm",
        false => "it was removed",
    };
    let message = format!("{name} has ended, and its exit code was not kept: {why}");
    Err(Failure::new(ExitKind::Failed, message).into())
}
