//! In what two locks differ, for people: one line an input, by its name.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Builder, CopySource, Debian, InputFile, Kernel, Lock, LockedImage, LockedRun, PackagePin,
};

/// What differs between an old and a new lock, in the order of a lock.
pub fn differences(old: &Lock, new: &Lock) -> Vec<String> {
    let mut lines = builder(&old.builder, &new.builder);
    lines.extend(part(&old.kernel, &new.kernel, "the kernel recipe", kernel));
    lines.extend(part(&old.debian, &new.debian, "the Debian system", debian));
    lines.extend(part(&old.image, &new.image, "the image", image));
    lines.extend(files(&old.files, &new.files));
    lines.extend(copies(&old.copies, &new.copies));
    lines.extend(runs(&old.runs, &new.runs));
    lines
}

/// By their place: the key of each depends on all before it, so it tells nothing of which step it was.
fn runs(old: &[LockedRun], new: &[LockedRun]) -> Vec<String> {
    let line = |at: usize| {
        let what = match (old.get(at), new.get(at)) {
            (Some(old), Some(new)) if old.key != new.key => {
                "its command, or something before it, has changed".to_owned()
            }
            (Some(old), Some(new)) if old.layer != new.layer => {
                let [old, new] = [old, new].map(|run| run.layer.hex());
                format!(
                    "it has made other files: {} -> {}",
                    short(&old),
                    short(&new)
                )
            }
            (None, Some(_)) => "new".to_owned(),
            (Some(_), None) => "not locked any more: it is gone, or is to run again".to_owned(),
            _ => return None,
        };
        Some(format!("[[run]] with a network, number {}: {what}", at + 1))
    };
    (0..old.len().max(new.len())).filter_map(line).collect()
}

/// A part that may be absent.
fn part<T>(
    old: &Option<T>,
    new: &Option<T>,
    name: &str,
    compare: fn(&T, &T) -> Vec<String>,
) -> Vec<String> {
    match (old, new) {
        (Some(old), Some(new)) => compare(old, new),
        (None, None) => Vec::new(),
        (None, Some(_)) => vec![format!("{name} is new")],
        (Some(_), None) => vec![format!("{name} is gone")],
    }
}

/// Lines for values that changed.
fn values<const N: usize>(values: [(&str, &str, &str); N]) -> Vec<String> {
    let changed = values.into_iter().filter(|(_, old, new)| old != new);
    changed
        .map(|(name, old, new)| format!("{name}: {} -> {}", short(old), short(new)))
        .collect()
}

/// A digest by its beginning; anything else as it is.
fn short(value: &str) -> &str {
    match super::rules::is_sha256(value) {
        true => &value[..12],
        false => value,
    }
}

pub(super) fn builder(old: &Builder, new: &Builder) -> Vec<String> {
    let numbers = [old, new].map(|b| (b.bundle_format.to_string(), b.epoch.to_string()));
    values([
        ("smolbuild", &old.smolbuild, &new.smolbuild),
        ("bundle format", &numbers[0].0, &numbers[1].0),
        ("smol-guest", &old.guest_sha256, &new.guest_sha256),
        ("epoch", &numbers[0].1, &numbers[1].1),
    ])
}

pub(super) fn kernel(old: &Kernel, new: &Kernel) -> Vec<String> {
    let mut lines = values([("kernel recipe", &old.recipe, &new.recipe)]);
    // Another recipe has other files.
    if lines.is_empty() {
        let what = format!("kernel recipe {}", old.recipe);
        lines = values([(&what, &old.recipe_sha256, &new.recipe_sha256)]);
    }
    if old.source != new.source {
        lines.extend(values([("kernel source", &old.source, &new.source)]));
    } else {
        let what = format!("kernel source {}", old.source);
        lines.extend(values([(&what, &old.source_sha256, &new.source_sha256)]));
    }
    lines.extend(values([
        ("gcc", &old.gcc, &new.gcc),
        ("ld", &old.ld, &new.ld),
    ]));
    lines
}

fn debian(old: &Debian, new: &Debian) -> Vec<String> {
    let mut lines = values([("Debian release", &old.suite, &new.suite)]);
    let [before, now] = [old, new].map(|d| d.requested.iter().collect::<BTreeSet<_>>());
    lines.extend(
        now.difference(&before)
            .map(|name| format!("[rootfs] packages: {name} is new")),
    );
    lines.extend(
        before
            .difference(&now)
            .map(|name| format!("[rootfs] packages: {name} is gone")),
    );
    lines.extend(packages("package", &old.packages, &new.packages));
    lines.extend(match (&old.install_only, &new.install_only) {
        (Some(old), Some(new)) => packages("package for the installation alone", old, new),
        (None, None) => Vec::new(),
        (None, Some(_)) => vec!["packages for the installation alone are new".into()],
        (Some(_), None) => vec!["packages for the installation alone are gone".into()],
    });
    lines
}

/// Where an image came from is told when both locks say it: a bundle's does not.
fn image(old: &LockedImage, new: &LockedImage) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(old), Some(new)) = (&old.origin, &new.origin) {
        let [before, now] = [old, new].map(|origin| origin.manifest.hex());
        lines.extend(values([("image", &old.reference, &new.reference)]));
        lines.extend(values([("manifest of the image", &before, &now)]));
    }
    let [before, now] = [old, new].map(|image| image.id.hex());
    lines.extend(values([("image", &before, &now)]));
    if lines.is_empty() && (&old.diff_ids, &old.config) != (&new.diff_ids, &new.config) {
        lines.push("what the lock says of the image is not what its configuration says".into());
    }
    lines
}

fn packages(what: &str, old: &[PackagePin], new: &[PackagePin]) -> Vec<String> {
    let [before, now] = [old, new].map(|pins| {
        pins.iter()
            .map(|pin| ((&pin.name, &pin.arch), (&pin.version, &pin.sha256)))
            .collect::<BTreeMap<_, _>>()
    });
    by_name(&before, &now, |(name, _), old, new| {
        let of = |pin: Option<&(&'_ String, &'_ String)>| {
            pin.map_or(
                ("nothing".to_owned(), "nothing".to_owned()),
                |(version, sha256)| (version.to_string(), sha256.to_string()),
            )
        };
        let (old, new) = (of(old), of(new));
        match old.0 == new.0 {
            true => format!(
                "{what} {name} {}: {} -> {}",
                old.0,
                short(&old.1),
                short(&new.1)
            ),
            false => format!("{what} {name}: {} -> {}", old.0, new.0),
        }
    })
}

fn files(old: &[InputFile], new: &[InputFile]) -> Vec<String> {
    let [before, now] = [old, new].map(|files| {
        let files = files.iter();
        files
            .map(|file| ((file.role.name(), &file.path), &file.sha256))
            .collect::<BTreeMap<_, _>>()
    });
    by_name(&before, &now, |(role, path), old, new| {
        format!("{role} {path:?} {}", happened(old.is_some(), new.is_some()))
    })
}

fn copies(old: &[CopySource], new: &[CopySource]) -> Vec<String> {
    let [before, now] = [old, new].map(|copies| {
        let mut nodes = BTreeMap::new();
        for copy in copies {
            for entry in &copy.contents {
                // Several may copy one source, with other modes.
                nodes
                    .entry((&copy.src, &entry.path))
                    .or_insert_with(Vec::new)
                    .push(&entry.node);
            }
        }
        nodes
    });
    let mut lines = by_name(&before, &now, |(src, path), old, new| {
        let what = match path.as_str() {
            "." => (*src).clone(),
            path => format!("{}/{path}", src.trim_end_matches('/')),
        };
        format!(
            "[[copy]] {what:?} {}",
            happened(old.is_some(), new.is_some())
        )
    });
    if lines.is_empty() && old != new {
        lines.push("the [[copy]] entries are others, or in another order".into());
    }
    lines
}

fn happened(was: bool, is: bool) -> &'static str {
    match (was, is) {
        (true, true) => "changed",
        (false, _) => "is new",
        (true, false) => "is gone",
    }
}

/// A line for each name whose value differs, in the order of the names.
fn by_name<K: Ord, V: PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    line: impl Fn(&K, Option<&V>, Option<&V>) -> String,
) -> Vec<String> {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let changed = names
        .into_iter()
        .map(|name| (name, old.get(name), new.get(name)))
        .filter(|(_, old, new)| old != new);
    changed
        .map(|(name, old, new)| line(name, old, new))
        .collect()
}
