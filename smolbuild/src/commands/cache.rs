//! `smolbuild cache`: what is in the cache, and removing it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use serde_json::json;
use smol_cli::{ErrorExt, ExitKind, Interrupt, human, paths};

use crate::cache::{Entry, Kind, Removal, Survey, remove};
use crate::cli::Cache;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// What was not used for so long goes, unless the command line says what is to stay.
const UNUSED: Duration = Duration::from_secs(30 * DAY.as_secs());

/// Looks into the cache, or removes entries of it.
///
/// # Errors
/// The cache cannot be read; something in it cannot be removed; the user wants to stop.
pub fn run(args: &Cache, interrupt: &Interrupt) -> Result<()> {
    match args {
        Cache::Info(format) => info(format.json),
        Cache::Prune { keep } => prune(*keep, interrupt),
        Cache::Clean => clean(interrupt),
    }
}

fn info(as_json: bool) -> Result<()> {
    let cache = paths::cache_dir()?;
    let survey = Survey::of(&cache)?;
    if as_json {
        let kinds = Kind::ALL.map(|kind| {
            let (entries, bytes, used) = survey.of_kind(kind);
            let used = used.and_then(|used| used.duration_since(UNIX_EPOCH).ok());
            json!({
                "kind": kind.name(), "entries": entries, "bytes": bytes,
                "lastUsed": used.map(|used| used.as_secs()),
            })
        });
        let foreign: Vec<_> = survey.foreign.iter().map(|path| path.display()).collect();
        let foreign: Vec<_> = foreign.iter().map(ToString::to_string).collect();
        return Ok(smol_cli::print_json(&json!({
            "path": cache.display().to_string(), "kinds": kinds,
            "entries": survey.entries.len(), "bytes": survey.size(), "foreign": foreign,
        }))?);
    }
    smol_cli::print(&format!("{}\n", cache.display()))?;
    let now = SystemTime::now();
    for kind in Kind::ALL {
        let (entries, bytes, used) = survey.of_kind(kind);
        let used = used.map_or_else(|| "-".to_owned(), |used| ago(used, now));
        smol_cli::print(&row(kind.name(), entries, bytes, &used, kind.description()))?;
    }
    let total = row("total", survey.entries.len(), survey.size(), "", "");
    smol_cli::print(&total)?;
    tell_foreign(&survey);
    Ok(())
}

fn row(name: &str, entries: usize, size: u64, used: &str, what: &str) -> String {
    let size = human::bytes(size);
    let line = format!("{name:12}  {entries:>6}  {size:>10}  {used:16}  {what}");
    line.trim_end().to_owned() + "\n"
}

/// How long ago that was. The last use is known to an hour.
fn ago(then: SystemTime, now: SystemTime) -> String {
    let age = now.duration_since(then).unwrap_or_default();
    match (age.as_secs() / DAY.as_secs(), age.as_secs() / 3600) {
        (0, 0) => "in the last hour".to_owned(),
        (0, hours) => format!("{hours} h ago"),
        (1, _) => "a day ago".to_owned(),
        (days, _) => format!("{days} days ago"),
    }
}

fn tell_foreign(survey: &Survey) {
    for path in &survey.foreign {
        let path = human::one_line(&path.display().to_string());
        smol_cli::print_error(&format!(
            "smolbuild: {path} is none of smol's: it is left alone\n"
        ));
    }
}

fn prune(keep: Option<u64>, interrupt: &Interrupt) -> Result<()> {
    let survey = Survey::of(&paths::cache_dir()?)?;
    let (removal, left) = choose_and_remove(&survey, keep, SystemTime::now(), interrupt);
    if let Some(keep) = keep.filter(|keep| left > *keep && removal.failed.is_empty()) {
        smol_cli::print_error(&format!(
            "smolbuild: {} are left, more than {}: the rest is in use\n",
            human::bytes(left),
            human::bytes(keep)
        ));
    }
    report(&removal, left, interrupt)
}

/// Removes what killed processes left, and then what was used longest ago: until what is left takes no more
/// than `keep` bytes; without that, what was not used for [`UNUSED`]. Returns what is left, bytes, too.
fn choose_and_remove(
    survey: &Survey,
    keep: Option<u64>,
    now: SystemTime,
    interrupt: &Interrupt,
) -> (Removal, u64) {
    let size = survey.size();
    let (leftovers, mut entries): (Vec<&Entry>, Vec<&Entry>) = survey
        .entries
        .iter()
        .filter(|entry| entry.kind != Kind::Work)
        .partition(|entry| entry.kind == Kind::Leftovers);
    entries.sort_by(|a, b| (a.used, a.path()).cmp(&(b.used, b.path())));
    if keep.is_none() {
        entries.retain(|entry| now.duration_since(entry.used).is_ok_and(|age| age > UNUSED));
    }
    let always = leftovers.len();
    let chosen = leftovers.into_iter().chain(entries);
    // What is left over goes in any case.
    let removal = remove(chosen, interrupt, |number, freed| {
        number < always || keep.is_none_or(|keep| size.saturating_sub(freed) > keep)
    });
    let left = size.saturating_sub(removal.freed());
    (removal, left)
}

fn clean(interrupt: &Interrupt) -> Result<()> {
    let survey = Survey::of(&paths::cache_dir()?)?;
    let removal = remove(&survey.entries, interrupt, |_, _| true);
    tell_foreign(&survey);
    let left = survey.size().saturating_sub(removal.freed());
    report(&removal, left, interrupt)
}

/// Prints what is gone, and tells what is not, and why.
fn report(removal: &Removal, left: u64, interrupt: &Interrupt) -> Result<()> {
    for (kind, (entries, size)) in &removal.removed {
        smol_cli::print(&row(kind.name(), *entries, *size, "removed", ""))?;
    }
    for (kind, in_use) in &removal.in_use {
        let processes = in_use.processes.iter();
        let by: Vec<_> = processes
            .map(|(pid, name)| human::one_line(&format!("{name} ({pid})")))
            .collect();
        let by = match by.is_empty() {
            true => String::new(),
            false => format!(" by {}", by.join(", ")),
        };
        smol_cli::print_error(&format!(
            "smolbuild: {} of {} in use{by}: {} kept\n",
            in_use.entries,
            kind.name(),
            human::bytes(in_use.size)
        ));
    }
    let freed = human::bytes(removal.freed());
    smol_cli::print(&format!("freed {freed}, {} are left\n", human::bytes(left)))?;
    interrupt.check()?;
    let Some((path, error)) = removal.failed.first() else {
        return Ok(());
    };
    let more = match removal.failed.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Err(anyhow!("{error}"))
        .map_err(|e| e.context(format!("cannot remove {}{more}", path.display())))
        .kind(ExitKind::Failed)
        .hint("what mmdebstrap has made as other users, only root can remove: sudo rm -r")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_use_is_told_as_exactly_as_it_is_known() {
        let now = UNIX_EPOCH + 100 * DAY;
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let told = [0, 1, 23, 24, 47, 48, 240].map(|n| ago(now - hours(n), now));
        let expected = [
            "in the last hour",
            "1 h ago",
            "23 h ago",
            "a day ago",
            "a day ago",
            "2 days ago",
            "10 days ago",
        ];
        assert_eq!(told, expected);
        assert_eq!(ago(now + DAY, now), "in the last hour");
    }
}
