//! `smolrun wait`.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use smol_cli::{ExitKind, Failure};

use crate::host::instance::{self, EndRecord};

/// How often it is checked whether a machine has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until each of the machines has ended, and prints the exit codes, one a line.
///
/// # Errors
/// If there is no such machine, or it is removed meanwhile.
pub fn wait(names: &[String]) -> anyhow::Result<ExitCode> {
    let root = instance::root()?;
    super::each(names.iter().map(|name| {
        let code = exit_code(&root, name)?;
        smol_cli::print(&format!("{code}\n")).map_err(Into::into)
    }))
}

fn exit_code(root: &Path, name: &str) -> anyhow::Result<u8> {
    let record = instance::find(root, name)?;
    let mut held = None;
    while let Some(now) = instance::current(root, &record) {
        if let Some(end) = now.end {
            return Ok(end.exit_code);
        }
        if held.is_none() {
            held = instance::hold(root, &record);
        }
        thread::sleep(POLL_INTERVAL);
    }
    // A process that ends in order would have waited until the record was read.
    if held.is_some() && record.auto_remove {
        return Ok(EndRecord::killed().exit_code);
    }
    let message = format!("{name} was removed before its exit code was read");
    Err(Failure::new(ExitKind::Failed, message).into())
}
