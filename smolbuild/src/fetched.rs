//! The files of `[[fetch]]`: downloaded by digest, into the folder of downloads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use smol_cli::{ExitKind, Failure, human, paths};
use smol_registry::{Fetcher, Options};
use smol_rootfs::limits::MAX_UNPACKED;

use crate::context::BuildContext;
use crate::error::ResultExt;
use crate::fetch::Net;
use crate::plan::{Plan, PlannedStep};
use crate::smolfile::FetchStep;

/// Has the files of a Plan's `[[fetch]]`s in the folder of downloads, verified. Returns where each is, by
/// its SHA-256.
///
/// # Errors
/// Nothing may be downloaded, and some are not there: all of them are told (of kind LockStale); one cannot
/// be downloaded, or is another file (Verification); the interrupt.
pub fn files(plan: &Plan, context: BuildContext) -> Result<BTreeMap<String, PathBuf>> {
    let wanted = plan.steps.iter().filter_map(|step| match step {
        PlannedStep::Fetch(fetch) => Some(fetch),
        _ => None,
    });
    let wanted: Vec<&FetchStep> = wanted.collect();
    let mut places = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(places);
    }
    paths::create_in_cache(context.downloads)?;
    let interrupt = context.session.interrupt.clone();
    let fetcher = Fetcher::new(Options::default(), Arc::new(move || !interrupt.is_set()));
    let fetcher = fetcher.classify()?;
    let mut missing = Vec::new();
    for step in wanted {
        let found = fetcher.find(&step.sha256, context.downloads);
        context.session.check()?;
        match found.classify()? {
            Some(found) => drop(places.insert(step.sha256.clone(), found.path)),
            None => missing.push(step),
        }
    }
    if context.net == Net::Offline && !missing.is_empty() {
        return Err(not_in_cache(&missing).into());
    }
    for step in missing {
        places.insert(step.sha256.clone(), download(step, &fetcher, context)?);
    }
    Ok(places)
}

/// Whether a file with the name of this step's is in the folder of downloads: for looking, not for use.
///
/// # Errors
/// Its digest is none.
pub fn is_there(step: &FetchStep, downloads: &Path) -> Result<bool> {
    let place = Fetcher::place(&step.sha256, downloads).classify()?;
    Ok(place.is_file())
}

fn download(step: &FetchStep, fetcher: &Fetcher, context: BuildContext) -> Result<PathBuf> {
    let url = step.url.get_ref();
    let stage = context
        .session
        .stage("fetch", &human::one_line(&url.to_string()));
    let fetched = fetcher.fetch(
        url,
        &step.sha256,
        MAX_UNPACKED,
        context.downloads,
        &mut |done, total| {
            if let Some(total) = total {
                stage.set_bytes(done, total);
            }
        },
    );
    context.session.check()?;
    let fetched = fetched.classify()?;
    stage.finish(&human::bytes(fetched.size));
    Ok(fetched.path)
}

fn not_in_cache(missing: &[&FetchStep]) -> Failure {
    let what = match missing.len() {
        1 => "offline, and the file of a [[fetch]] is not in the cache:".to_owned(),
        count => format!("offline, and the files of {count} [[fetch]]es are not in the cache:"),
    };
    let failure = Failure::new(ExitKind::LockStale, what);
    missing
        .iter()
        .fold(failure, |failure, step| {
            failure.detail(format!("{} (sha256:{})", step.url.get_ref(), step.sha256))
        })
        .hint("build once without --offline")
}
