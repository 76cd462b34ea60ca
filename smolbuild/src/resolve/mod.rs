//! The lock that a build uses, and the file that it is in.
//!
//! | module | what it does |
//! |---|---|
//! | `current` | the lock by what is on this host now: this program, the kernel's inputs, the files |
//!
//! A build compares that with the lock file, chooses what is missing, and writes what changed.

mod current;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_bundle::Output;
use smol_cli::{ErrorExt, ExitKind, Failure, Progress};
use smol_image::ImageRef;

pub use self::current::{Kept, current};
use crate::context::BuildContext;
use crate::error::ResultExt;
use crate::fetch::Net;
use crate::input::{Pins, Rootfs};
use crate::lock::{Lock, MAX_SIZE, Part, differences};
use crate::plan::Plan;
use crate::smolfile::{Loaded, Network, Step};

/// Most changes that a build tells one by one.
const MOST_TOLD: usize = 8;
/// Changes that the error of `--locked` lists.
const MOST_LISTED: usize = 20;

/// Where the lock of a build comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// The file next to the Smolfile. If it is missing or does not fit, it is renewed in the parts
    /// that do not; if `locked`, that is an error.
    File {
        /// Whether it must be there and fit.
        locked: bool,
    },
    /// This one, whatever is on disk, and nothing is written.
    Given(Box<Lock>),
}

/// The lock of a build, and what may be downloaded for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The lock.
    pub lock: Lock,
    /// What may be downloaded.
    pub net: Net,
    /// The file that it is in.
    pub file: Option<PathBuf>,
}

/// Resolves the lock of a build; the file is written if it changed.
///
/// # Errors
/// It is missing or does not fit, and must (exit kind LockStale, with all that differs); it cannot
/// be read as one (Usage); what it does not pin cannot be chosen; the file cannot be written.
pub fn resolve(loaded: &Loaded, policy: &Policy, context: BuildContext) -> Result<Resolved> {
    let locked = match policy {
        Policy::Given(lock) => {
            return Ok(Resolved {
                lock: (**lock).clone(),
                net: net(true, context.net),
                file: None,
            });
        }
        Policy::File { locked } => *locked,
    };
    let file = loaded.lock_place()?;
    let old = read(&file)?;
    let kept = Kept::all(old.as_ref());
    let (mut lock, pins) = current(
        loaded,
        kept,
        context.environment,
        &context.session.interrupt,
    )?;
    if locked {
        let old = old.ok_or_else(|| missing(loaded))?;
        if pins == Pins::Complete {
            keep_runs(loaded, &mut lock, Some(&old))?;
        }
        require_fit(loaded, &old, &lock, pins, context)?;
        return Ok(Resolved {
            lock,
            net: net(true, context.net),
            file: None,
        });
    }
    // Of an image it is told which one it is now, and not that the one before is gone.
    let is_image = chosen_part(loaded) == Part::Image;
    if is_image {
        choose(loaded, pins, &mut lock, context)?;
    }
    if is_image || pins == Pins::Complete {
        keep_runs(loaded, &mut lock, old.as_ref())?;
    }
    let changes = old.map(|old| differences(&old, &lock));
    tell(
        changes.as_deref().unwrap_or_default(),
        &file,
        &context.session.progress,
    );
    if !is_image {
        choose(loaded, pins, &mut lock, context)?;
    }
    keep(&file, &lock, &context.session.progress)?;
    Ok(Resolved {
        lock,
        net: net(false, context.net),
        file: Some(file),
    })
}

/// The lock that a build would begin with, and what it would do to the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// The lock, without what is still to be chosen.
    pub lock: Lock,
    /// Whether something is.
    pub pins: Pins,
    /// What may be downloaded.
    pub net: Net,
    /// What differs from the lock file; `None` if there is none.
    pub changes: Option<Vec<String>>,
}

/// Finds out which lock a build would use, as [`resolve`] does, but chooses and writes nothing.
///
/// # Errors
/// Those of [`resolve`] but for choosing and writing.
pub fn look(loaded: &Loaded, locked: bool, context: BuildContext) -> Result<Outlook> {
    if locked {
        let resolved = resolve(loaded, &Policy::File { locked }, context)?;
        return Ok(Outlook {
            lock: resolved.lock,
            pins: Pins::Complete,
            net: resolved.net,
            changes: Some(Vec::new()),
        });
    }
    let old = read(&loaded.lock_place()?)?;
    let (environment, interrupt) = (context.environment, &context.session.interrupt);
    let (mut lock, pins) = current(loaded, Kept::all(old.as_ref()), environment, interrupt)?;
    if pins == Pins::Complete {
        keep_runs(loaded, &mut lock, old.as_ref())?;
    }
    let compared = old.map(|old| match pins {
        Pins::Complete => old,
        // What is chosen anew, and what depends on it, is not known to differ.
        Pins::ToChoose => Lock {
            image: None,
            runs: Vec::new(),
            ..old
        },
    });
    Ok(Outlook {
        changes: compared.map(|old| differences(&old, &lock)),
        lock,
        pins,
        net: net(false, context.net),
    })
}

/// Enters into `lock` what the `[[run]]`s with a network have made by the lock `kept`, as far as they are
/// the same.
///
/// # Errors
/// Those of [`Plan::resolve`].
pub fn keep_runs(loaded: &Loaded, lock: &mut Lock, kept: Option<&Lock>) -> Result<()> {
    let has_network = |step: &Step| matches!(step, Step::Run(run) if run.network != Network::None);
    let kept = kept.map_or(&[][..], |lock| &lock.runs[..]);
    if kept.is_empty() || !loaded.smolfile.steps().iter().any(has_network) {
        return Ok(());
    }
    let plan = Plan::resolve(&loaded.smolfile, &loaded.base_dir, lock.clone())?;
    lock.runs = plan.kept_runs(kept);
    Ok(())
}

/// Checks that the lock file `old` is that of `current`, as `--locked` wants it. Its epoch may be
/// another: SOURCE_DATE_EPOCH is an input of this build, often the time of a commit, which cannot be in
/// a file of that commit.
fn require_fit(
    loaded: &Loaded,
    old: &Lock,
    current: &Lock,
    pins: Pins,
    context: BuildContext,
) -> Result<()> {
    let mut locked = old.clone();
    if let Some(epoch) = context.environment.epoch {
        locked.builder.epoch = epoch;
    }
    let mut parts = Part::differing(&locked, current);
    let mut changes = Vec::new();
    if let (Pins::ToChoose, Some(Rootfs::Image(input))) = (pins, loaded.smolfile.rootfs()) {
        let name = input.reference().get_ref();
        changes.push(format!("[rootfs] image {name}: the lock does not have it"));
        locked.image = None;
        parts.retain(|part| *part != Part::Image);
        parts.push(Part::Image);
    }
    changes.extend(differences(&locked, current));
    if !changes.is_empty() {
        return Err(stale(loaded, &changes, &parts).into());
    }
    if locked != *old {
        context.session.note(&format!(
            "the epoch is SOURCE_DATE_EPOCH, {}; in {} it is {}",
            locked.builder.epoch,
            loaded.lock_path().display(),
            old.builder.epoch
        ));
    }
    Ok(())
}

fn net(locked: bool, allowed: Net) -> Net {
    match (allowed, locked) {
        (Net::Offline, _) => Net::Offline,
        (_, true) => Net::Pinned,
        (_, false) => Net::Open,
    }
}

/// Makes the lock file anew, with the newest packages and the recipe's kernel source, and returns
/// what changed: nothing, if it was up to date. The epoch stays unless the environment gives one.
/// Offline, packages that fit the Smolfile stay. If `only` names parts, the others stay as they are.
///
/// # Errors
/// As for [`resolve`], but for the old file, which need not be one unless parts of it stay.
pub fn refresh(loaded: &Loaded, only: &[Part], context: BuildContext) -> Result<Vec<String>> {
    let file = loaded.lock_place()?;
    let renews = |part: Part| only.is_empty() || only.contains(&part);
    let old = match (read(&file), only) {
        (Ok(None), [_, ..]) => return Err(missing(loaded).into()),
        (Err(_), []) => {
            let note = format!(
                "{} is not a valid lock file: writing a new one",
                file.display()
            );
            context.session.note(&note);
            None
        }
        (old, _) => old?,
    };
    let kept = |stays: bool| old.as_ref().filter(|_| stays);
    let chosen = chosen_part(loaded);
    let kept = Kept {
        epoch: old.as_ref(),
        kernel: kept(!renews(Part::Kernel)),
        // What is given on standard input is taken from there, and kept where nothing is.
        rootfs: kept(!renews(chosen) || context.net == Net::Offline || is_given(loaded)),
    };
    let (mut lock, pins) = current(
        loaded,
        kept,
        context.environment,
        &context.session.interrupt,
    )?;
    if renews(chosen) {
        choose(loaded, pins, &mut lock, context)?;
    }
    for part in Part::ALL.into_iter().filter(|part| !renews(*part)) {
        if let Some(old) = &old {
            part.take(&mut lock, old);
        }
    }
    if renews(Part::Runs) {
        // A build runs them.
        lock.runs.clear();
    }
    store(&file, &lock)?;
    Ok(match old {
        Some(old) => differences(&old, &lock),
        None => vec![format!("{} is new", file.display())],
    })
}

/// The part of the lock that is chosen from what others offer.
fn chosen_part(loaded: &Loaded) -> Part {
    match loaded.smolfile.rootfs() {
        Some(Rootfs::Image(_)) => Part::Image,
        _ => Part::Packages,
    }
}

/// Whether the image comes on standard input.
fn is_given(loaded: &Loaded) -> bool {
    matches!(loaded.smolfile.rootfs(), Some(Rootfs::Image(input)) if *input.reference().get_ref() == ImageRef::Stdin)
}

/// Chooses what the lock does not pin yet.
fn choose(loaded: &Loaded, pins: Pins, lock: &mut Lock, context: BuildContext) -> Result<()> {
    match (pins, loaded.smolfile.rootfs()) {
        (Pins::ToChoose, Some(rootfs)) => rootfs.input().choose(lock, context),
        _ => Ok(()),
    }
}

fn missing(loaded: &Loaded) -> Failure {
    let what = format!("there is no lock file {}", loaded.lock_path().display());
    let hint = format!("make it: smolbuild lock{}", loaded.argument());
    Failure::new(ExitKind::LockStale, what).hint(hint)
}

/// The error for a lock file that differs in `parts`. The hint renews these and no others.
fn stale(loaded: &Loaded, changes: &[String], parts: &[Part]) -> Failure {
    let path = loaded.lock_path();
    let what = format!("the lock file {} is out of date:", path.display());
    let only: Vec<&str> = parts.iter().map(|part| part.name()).collect();
    let renew = format!(
        "renew what changed: smolbuild lock --only {}{}",
        only.join(","),
        loaded.argument()
    );
    let failure = abridged(changes, MOST_LISTED)
        .into_iter()
        .fold(Failure::new(ExitKind::LockStale, what), Failure::detail)
        .hint(renew)
        .hint("a build without --locked does so, too");
    match changes.iter().find_map(|change| unintended(change)) {
        Some(name) => failure.hint(format!(
            "if {name} does not belong in the machine, leave it out: a line `**/{name}` in .smolignore"
        )),
        None => failure,
    }
}

/// The name of a folder that tools keep next to sources, if this change is in one.
fn unintended(change: &str) -> Option<&'static str> {
    const KEPT_BY_TOOLS: [&str; 7] = [
        ".git",
        "__pycache__",
        "node_modules",
        ".venv",
        ".mypy_cache",
        ".idea",
        ".vscode",
    ];
    let mut parts = change.split(['/', '"']);
    parts.find_map(|part| KEPT_BY_TOOLS.into_iter().find(|name| *name == part))
}

fn tell(changes: &[String], file: &Path, progress: &Progress) {
    let name = file.file_name().unwrap_or_default().display();
    for change in abridged(changes, MOST_TOLD) {
        progress.note(&format!("{name}: {change}"));
    }
}

/// The first of these lines, and how many more there are.
pub fn abridged(lines: &[String], most: usize) -> Vec<String> {
    let mut shown: Vec<String> = lines.iter().take(most).cloned().collect();
    if lines.len() > most {
        shown.push(format!("and {} more changes", lines.len() - most));
    }
    shown
}

/// The lock in a file; nothing if there is none.
fn read(file: &Path) -> Result<Option<Lock>> {
    let cannot = || format!("cannot read {}", file.display());
    let mut bytes = Vec::new();
    match File::open(file) {
        // One byte more than a lock may have is enough to see that it is none.
        Ok(open) => open
            .take(MAX_SIZE as u64 + 1)
            .read_to_end(&mut bytes)
            .with_context(cannot)
            .kind(ExitKind::Usage)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(cannot).kind(ExitKind::Usage),
    };
    Ok(Some(Lock::parse(&bytes, &file.display().to_string())?))
}

/// Writes the lock of a build into its file, as `store` does. If that is not permitted, the user gets a
/// note instead of an error: the bundle contains the lock.
///
/// # Errors
/// As for `store` otherwise.
pub fn keep(file: &Path, lock: &Lock, progress: &Progress) -> Result<()> {
    let Err(error) = store(file, lock) else {
        return Ok(());
    };
    let refused = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| {
            matches!(
                cause.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            )
        });
    if !refused {
        return Err(error);
    }
    progress.note(&format!(
        "the lock is in the bundle alone: {} cannot be written",
        file.display()
    ));
    Ok(())
}

fn too_long() -> Failure {
    let what = format!(
        "the lock would be longer than {} MiB: it has a line for each file that is copied",
        MAX_SIZE >> 20
    );
    Failure::new(ExitKind::Usage, what).hint(
        "ignore what is not needed in .smolignore, or copy large folders as a `[rootfs] tar` archive",
    )
}

/// Writes the lock into a file, whole or not at all. A file that holds it already is not touched.
///
/// # Errors
/// The lock is longer than a bundle takes, or the file cannot be written.
fn store(file: &Path, lock: &Lock) -> Result<()> {
    let text = lock.to_text();
    if text.len() > MAX_SIZE {
        return Err(too_long().into());
    }
    if fs::read(file).is_ok_and(|before| before == text.as_bytes()) {
        return Ok(());
    }
    let output = Output::create(file).classify()?;
    let written = output.file().write_all(text.as_bytes());
    written.with_context(|| format!("cannot write {}", file.display()))?;
    output.publish().classify()
}
