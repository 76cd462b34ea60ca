//! A preview as a table, for people.

use std::fmt::Write as _;

use smol_cli::human;

use super::steps::RunPreview;
use super::{Action, KernelPreview, LockPreview, Outcome, Preview, RootfsPreview, StepPreview};
use crate::resolve::abridged;

/// Characters of the second column.
const WIDE: usize = 48;
/// Digits of a digest or a key.
const DIGITS: usize = 12;
/// Changes of the lock that are shown.
const MOST_CHANGES: usize = 8;

/// What, which one, and what a build does with it.
type Row = (String, String, String);

impl Preview {
    /// A line for each step, and what there is to say of the whole.
    pub fn text(&self) -> String {
        let mut rows = vec![of_lock(&self.lock), of_kernel(&self.kernel)];
        rows.extend(self.rootfs.as_ref().map(of_rootfs));
        rows.extend(self.steps.iter().map(of_step));
        rows.push(self.of_bundle());
        rows.push(self.of_boot());
        let which = |row: &Row| human::excerpt(&row.1, WIDE);
        let width = rows.iter().map(|row| which(row).chars().count());
        let width = width.max().unwrap_or(0);
        let mut text = String::new();
        for row in &rows {
            let (what, does) = (&row.0, human::one_line(&row.2));
            let _ = writeln!(text, "{what:<7}  {:<width$}  {does}", which(row));
        }
        text + &self.remarks()
    }

    fn of_bundle(&self) -> Row {
        let which = match (&self.bundle.digest, &self.bundle.key) {
            (Some(digest), _) => short(digest),
            (None, Some(key)) => format!("key {}", short(key)),
            (None, None) => String::new(),
        };
        let does = match self.bundle.outcome.action {
            Action::Cached => "cached".to_owned(),
            Action::Boot => "boots, and is frozen".to_owned(),
            _ => of_outcome(&self.bundle.outcome),
        };
        ("bundle".to_owned(), which, does)
    }

    fn of_boot(&self) -> Row {
        let accel = self.boot.accel.unwrap_or("nowhere").to_owned();
        let does = match (&self.boot.outcome, self.boot.host_kernel_download) {
            (outcome, true) if outcome.action == Action::Fail => {
                "fails: offline, and its kernel is not in the cache".to_owned()
            }
            (outcome, _) if outcome.action == Action::Fail => of_outcome(outcome),
            (_, true) => "its kernel is downloaded".to_owned(),
            (_, false) => "is there".to_owned(),
        };
        ("boot".to_owned(), accel, does)
    }

    fn remarks(&self) -> String {
        let mut text = String::new();
        for change in abridged(&self.lock.changes, MOST_CHANGES) {
            let _ = writeln!(text, "lock: {}", human::one_line(&change));
        }
        if let Some(note) = &self.boot.note {
            let _ = writeln!(text, "boot: {}", human::one_line(note));
        }
        let outcomes = [&self.kernel.outcome, &self.boot.outcome];
        let outcomes = outcomes
            .into_iter()
            .chain(self.rootfs.as_ref().map(|rootfs| &rootfs.outcome))
            .chain(self.steps.iter().map(StepPreview::outcome));
        let fails = outcomes.filter(|it| it.action == Action::Fail).count();
        if self.bundle.outcome.action == Action::Cached {
            text += "A build takes the bundle from the cache, and does nothing else.\n";
        } else if fails > 0 {
            text += "A build would fail.\n";
        }
        text
    }
}

fn of_lock(lock: &LockPreview) -> Row {
    let does = match (lock.exists, lock.fits) {
        (false, _) => "is written",
        (true, true) => "fits",
        (true, false) => "is renewed",
    };
    ("lock".to_owned(), lock.file.clone(), does.to_owned())
}

fn of_kernel(kernel: &KernelPreview) -> Row {
    let which = match (&kernel.recipe, &kernel.path) {
        (Some(recipe), _) => format!("recipe {recipe}"),
        (None, path) => {
            let path = path.as_deref().unwrap_or_default();
            with_digest(path, kernel.sha256.as_deref())
        }
    };
    let does = match kernel.outcome.action {
        Action::Compile if kernel.source_download => {
            "its source is downloaded, and compiled".into()
        }
        Action::Compile => "is compiled".into(),
        Action::Release => "that of the release".into(),
        _ => of_outcome(&kernel.outcome),
    };
    ("kernel".to_owned(), which, does)
}

fn of_rootfs(rootfs: &RootfsPreview) -> Row {
    let (missing, total) = (rootfs.missing.len(), rootfs.total.unwrap_or(0));
    let parts = rootfs.parts.unwrap_or_default();
    let does = match rootfs.outcome.action {
        Action::Choose => "to be chosen, and downloaded".to_owned(),
        Action::Cached => format!("{total} {parts}: cached"),
        Action::Download => format!("{missing} of {total} {parts} are downloaded"),
        Action::Install => format!("{total} {parts}: cached, and installed"),
        Action::Unpack => format!("{missing} of {total} {parts} are unpacked"),
        _ => of_outcome(&rootfs.outcome),
    };
    let which = with_digest(&rootfs.input, rootfs.digest.as_deref());
    ("rootfs".to_owned(), which, does)
}

fn of_step(step: &StepPreview) -> Row {
    match step {
        StepPreview::Copy(copy) => {
            let which = format!("{} -> {}", copy.src, copy.dest);
            let does = match copy.files {
                1 => "1 file".to_owned(),
                files => format!("{files} files"),
            };
            ("copy".to_owned(), which, does)
        }
        StepPreview::Fetch(fetch) => {
            let does = match fetch.outcome.action {
                Action::Download => format!("{} is downloaded", short(&fetch.sha256)),
                _ => of_outcome(&fetch.outcome),
            };
            let which = format!("{} -> {}", fetch.url, fetch.dest);
            ("fetch".to_owned(), which, does)
        }
        StepPreview::Run(run) => of_run(run),
    }
}

fn of_run(run: &RunPreview) -> Row {
    let cmd = match run.cmd.as_slice() {
        [shell, option, text] if shell == "/bin/sh" && option == "-c" => text.clone(),
        words => words.join(" "),
    };
    let key = run.key.as_deref().map(short);
    let key = key.map(|key| format!("{key} ")).unwrap_or_default();
    let does = match (run.outcome.action, &run.network) {
        (Action::Run, Some(network)) => match network.join(", ").as_str() {
            "*" => "runs, with the network".to_owned(),
            listed => format!("runs, with the network ({listed})"),
        },
        (Action::Run, None) => "runs".to_owned(),
        _ => of_outcome(&run.outcome),
    };
    (format!("run {}", run.number), cmd, format!("{key}{does}"))
}

/// What needs no word for the part that it is about.
fn of_outcome(outcome: &Outcome) -> String {
    let why = outcome.why.as_deref().unwrap_or_default();
    match outcome.action {
        Action::Cached => "cached".to_owned(),
        Action::Depends => format!("depends on {why}"),
        Action::Fail => format!("fails: {why}"),
        _ => "read".to_owned(),
    }
}

fn with_digest(name: &str, digest: Option<&str>) -> String {
    // A long name must not push the digest out of the column.
    let name = human::excerpt(name, WIDE - DIGITS - 4);
    match digest {
        Some(digest) => format!("{name} {}", short(digest)),
        None => name,
    }
}

/// The beginning of a digest or a key.
fn short(digest: &str) -> String {
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    digits.chars().take(DIGITS).collect()
}
