//! `smolbuild diff`: what differs between two bundles.

use std::process::ExitCode;

use anyhow::Result;
use smol_cli::{Interrupt, paths};

use super::{only_read, open_bundle};
use crate::cli::Diff;
use crate::diff;
use crate::error::ResultExt;
use crate::work::WorkDir;

/// Items that are shown of each section unless all are asked for.
const SHOWN: usize = 20;

/// Verifies both bundles byte by byte, compares them, and exits with 0 if they are the same, with 1
/// if they differ.
pub fn run(args: &Diff, interrupt: &Interrupt) -> Result<ExitCode> {
    // Made before: confined, this process cannot look at the cache. What a killed one leaves in it, the next
    // removes.
    let cache = paths::cache_dir()?;
    let work = WorkDir::create(&cache)?;
    only_read(&[&args.a, &args.b], &[&WorkDir::parent(&cache)?])?;
    let (a, b) = (open_bundle(&args.a)?, open_bundle(&args.b)?);
    for bundle in [&a, &b] {
        let verified = bundle.verify_while(&mut |_, _| interrupt.go_on());
        interrupt.check()?;
        verified.classify()?;
    }
    let report = diff::compare(&a, &b, &work, interrupt)?;
    if args.format.json {
        let mut json = serde_json::to_value(&report)?;
        json["same"] = report.is_same().into();
        smol_cli::print_json(&json)?;
    } else {
        smol_cli::print(&report.text((!args.all).then_some(SHOWN)))?;
    }
    Ok(match report.is_same() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}
