//! What is in the cache.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use smol_cli::{ErrorExt, ExitKind};
use smol_host::cache;

use super::REMOVING;
use super::remove::Guard;

/// What entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Packages and kernel sources.
    Downloads,
    /// Kernels of recipes.
    Kernels,
    /// Installed packages.
    Systems,
    /// Layers of container images and build steps.
    Layers,
    /// What build steps have made.
    Steps,
    /// Bundles that were built before.
    Bundles,
    /// Images of bundles that smolrun has started.
    Images,
    /// Kernels of the emulated host.
    HostKernels,
    /// Reports about what failed.
    Reports,
    /// What processes that run are making.
    Work,
    /// What processes that were killed have left.
    Leftovers,
}

impl Kind {
    /// All of them, in their order.
    pub const ALL: [Kind; 11] = [
        Kind::Downloads,
        Kind::Kernels,
        Kind::Systems,
        Kind::Layers,
        Kind::Steps,
        Kind::Bundles,
        Kind::Images,
        Kind::HostKernels,
        Kind::Reports,
        Kind::Work,
        Kind::Leftovers,
    ];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Downloads => "downloads",
            Kind::Kernels => "kernels",
            Kind::Systems => "systems",
            Kind::Layers => "layers",
            Kind::Steps => "steps",
            Kind::Bundles => "bundles",
            Kind::Images => "images",
            Kind::HostKernels => "host-kernels",
            Kind::Reports => "reports",
            Kind::Work => "work",
            Kind::Leftovers => "leftovers",
        }
    }

    /// Returns what that is, for people.
    pub fn description(self) -> &'static str {
        match self {
            Kind::Downloads => "packages, kernel sources, and layers that come",
            Kind::Kernels => "kernels, compiled or of a release",
            Kind::Systems => "installed packages",
            Kind::Layers => "layers of container images, unpacked, and of build steps",
            Kind::Steps => "which layers build steps have made",
            Kind::Bundles => "bundles that were built before",
            Kind::Images => "unpacked images of bundles that smolrun has started",
            Kind::HostKernels => "kernels of the emulated host",
            Kind::Reports => "reports about what failed",
            Kind::Work => "what is being made now",
            Kind::Leftovers => "left by processes that were killed",
        }
    }
}

/// An entry of the cache.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// What it takes on the disk, bytes.
    pub size: u64,
    /// When it was used last, to an hour.
    pub used: SystemTime,
    /// Its files and folders, the one that counts first.
    pub(super) paths: Vec<PathBuf>,
    /// What must be locked to remove it.
    pub(super) guard: Guard,
}

impl Entry {
    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.paths[0]
    }
}

/// What is in a cache.
#[derive(Debug, Default)]
pub struct Survey {
    /// Its entries.
    pub entries: Vec<Entry>,
    /// Names in its folder that are none of smol's.
    pub foreign: Vec<PathBuf>,
}

/// Files that are locks, and stay.
const LOCK: &str = "lock";

/// What a name in a folder of the cache is.
enum Found {
    /// An entry.
    Entry(Kind, Guard),
    /// Something that is made or removed by a process that holds this, as long as it lives.
    Scratch(Guard),
    /// No entry.
    Nothing,
}

/// What is in the folder of a name: what is in it is told by name and place.
type Classify = fn(&str, &Path) -> Found;

#[rustfmt::skip] // a table
const FOLDERS: &[(&str, Classify)] = &[
    (cache::DOWNLOADS, |name, folder| match name {
        _ if name.starts_with("fetching-") => Found::Scratch(Guard::Itself),
        _ => Found::Entry(Kind::Downloads, Guard::Folder(folder.to_owned())),
    }),
    (cache::KERNELS, |name, folder| match name {
        LOCK => Found::Nothing,
        _ if name.starts_with("build-") => Found::Scratch(Guard::File(folder.join(LOCK))),
        _ if name.starts_with("failed-") => Found::Entry(Kind::Reports, Guard::Nothing),
        _ => Found::Entry(Kind::Kernels, Guard::Folder(folder.to_owned())),
    }),
    (cache::SYSTEMS, |name, folder| {
        let guard = Guard::Folder(folder.to_owned());
        match Path::new(name).extension().and_then(|ending| ending.to_str()) {
            Some("tar") => Found::Entry(Kind::Systems, guard),
            // They go with it.
            Some("lock" | "blake3") if folder.join(name).with_extension("tar").exists() => Found::Nothing,
            _ => Found::Scratch(guard),
        }
    }),
    (cache::LAYERS, |_, folder| Found::Entry(Kind::Layers, Guard::Folder(folder.to_owned()))),
    (cache::STEPS, |_, folder| Found::Entry(Kind::Steps, Guard::Folder(folder.to_owned()))),
    (cache::BUILT, |_, _| Found::Entry(Kind::Bundles, Guard::Itself)),
    (cache::IMAGES, |name, _| match name {
        _ if name.ends_with(".tmp") => Found::Scratch(Guard::Itself),
        _ => Found::Entry(Kind::Images, Guard::Itself),
    }),
    (cache::HOST_KERNELS, |name, _| match name {
        LOCK => Found::Nothing,
        _ if name.starts_with("new-") => Found::Scratch(Guard::Itself),
        _ => Found::Entry(Kind::HostKernels, Guard::Itself),
    }),
    (cache::HOST_FAULTS, |_, _| Found::Entry(Kind::Reports, Guard::Nothing)),
    (cache::WORK, |_, _| Found::Scratch(Guard::Itself)),
];

impl Survey {
    /// Looks at all of the cache in this folder.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn of(cache: &Path) -> Result<Survey> {
        let mut survey = Survey::default();
        let mut linked = HashSet::new();
        for name in names(cache)? {
            let known = FOLDERS.iter().find(|(folder, _)| *folder == name);
            match known {
                Some((_, classify)) => survey.add(&cache.join(name), *classify, &mut linked)?,
                None => survey.foreign.push(cache.join(name)),
            }
        }
        Ok(survey)
    }

    fn add(
        &mut self,
        folder: &Path,
        classify: Classify,
        linked: &mut HashSet<(u64, u64)>,
    ) -> Result<()> {
        // It may be a link to another disk.
        let folder = match folder.canonicalize() {
            Ok(folder) if folder.is_dir() => folder,
            _ => {
                self.foreign.push(folder.to_owned());
                return Ok(());
            }
        };
        for name in names(&folder)? {
            let found = match name.starts_with(REMOVING) {
                true => Found::Scratch(Guard::Itself),
                false => classify(&name, &folder),
            };
            let path = folder.join(&name);
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue; // it has just gone
            };
            let (kind, guard) = match found {
                Found::Nothing => continue,
                Found::Entry(kind, guard) => (kind, guard.of(&metadata)),
                Found::Scratch(guard) => {
                    let guard = guard.of(&metadata);
                    let kind = match guard.is_held(&path) {
                        true => Kind::Work,
                        false => Kind::Leftovers,
                    };
                    (kind, guard)
                }
            };
            let mut paths = vec![path];
            if kind == Kind::Systems {
                let beside = ["blake3", "lock"].map(|ending| paths[0].with_extension(ending));
                paths.extend(beside);
            }
            self.entries.push(Entry {
                kind,
                size: paths.iter().map(|path| disk_usage(path, linked)).sum(),
                used: metadata.modified().unwrap_or(UNIX_EPOCH),
                paths,
                guard,
            });
        }
        Ok(())
    }

    /// Returns number and size of the entries of a kind, and when one of them was used last.
    pub fn of_kind(&self, kind: Kind) -> (usize, u64, Option<SystemTime>) {
        let entries = || self.entries.iter().filter(move |entry| entry.kind == kind);
        let size = entries().map(|entry| entry.size).sum();
        let used = entries().map(|entry| entry.used).max();
        (entries().count(), size, used)
    }

    /// Returns the size of all of it, bytes.
    pub fn size(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size).sum()
    }
}

/// The names in a folder, sorted. Such as are not UTF-8 are none of smol's, and stand for themselves as
/// well as they can.
fn names(folder: &Path) -> Result<Vec<String>> {
    let cannot = || format!("cannot read {}", folder.display());
    let entries = fs::read_dir(folder).with_context(cannot);
    let names = entries.kind(ExitKind::Host)?.map(|entry| {
        let name = entry?.file_name();
        Ok(name.to_string_lossy().into_owned())
    });
    let names: io::Result<Vec<_>> = names.collect();
    let mut names = names.with_context(cannot).kind(ExitKind::Host)?;
    names.sort();
    Ok(names)
}

/// What a file, or a folder with all that is in it, takes on the disk, without what is in `linked` already
/// by another name. What goes meanwhile, or cannot be read, counts as nothing.
fn disk_usage(path: &Path, linked: &mut HashSet<(u64, u64)>) -> u64 {
    let own = |metadata: &Metadata| metadata.blocks() * 512;
    let (mut total, mut todo) = (0, vec![path.to_owned()]);
    while let Some(path) = todo.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(_) => continue,
            Ok(metadata) => metadata,
        };
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            todo.extend(entries.map(|entry| entry.path()));
        } else if metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        total += own(&metadata);
    }
    total
}
