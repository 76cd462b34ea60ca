//! `smolrun rm`.

use std::path::Path;
use std::process::ExitCode;

use smol_cli::{ExitKind, Failure};

use crate::commands::stop;
use crate::host::instance::{self, Record};
use crate::run::request::GRACE;

/// Removes what is left of machines that have ended: their records and logs. Prints their names.
/// With `force`, stops those that run first.
///
/// # Errors
/// If there is no such machine, or it runs.
pub fn rm(names: &[String], all: bool, force: bool) -> anyhow::Result<ExitCode> {
    let root = instance::root()?;
    let records = super::named(&root, names, all, |record| force || record.end.is_some());
    super::each(records.into_iter().map(|record| {
        let record = record?;
        remove(&root, &record, force)?;
        smol_cli::print(&format!("{}\n", record.name)).map_err(Into::into)
    }))
}

fn remove(root: &Path, record: &Record, force: bool) -> anyhow::Result<()> {
    if force && record.end.is_none() {
        stop::stop_machine(root, record, GRACE)?;
    }
    if instance::remove(root, record)? {
        return Ok(());
    }
    let name = &record.name;
    let failure = Failure::new(ExitKind::Usage, format!("{name} is running"));
    Err(failure
        .hint(format!(
            "stop it first: smolrun stop {name}; or both at once: smolrun rm --force {name}"
        ))
        .into())
}
