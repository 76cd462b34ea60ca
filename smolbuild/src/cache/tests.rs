use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use smol_cli::Interrupt;
use smol_host::cache::{InUse, open_lock};
use smol_host::lock_dir::LockDir;

use super::*;

/// What both programs leave in a cache, each with its kind. A name that ends with a slash is a folder.
const CONTENT: &[(&str, Option<Kind>)] = &[
    ("downloads/ab.deb", Some(Kind::Downloads)),
    ("downloads/fetching-x/", Some(Kind::Leftovers)),
    ("kernels/lock", None),
    ("kernels/0123/", Some(Kind::Kernels)),
    ("kernels/build-x/", Some(Kind::Leftovers)),
    ("kernels/failed-01.log", Some(Kind::Reports)),
    ("debian/01.tar", Some(Kind::Systems)),
    ("debian/01.lock", None),
    ("debian/01.blake3", None),
    ("debian/02.lock", Some(Kind::Leftovers)),
    ("debian/02.work/", Some(Kind::Leftovers)),
    ("built/key/", Some(Kind::Bundles)),
    ("built/removing-x/", Some(Kind::Leftovers)),
    ("bundles/digest/", Some(Kind::Images)),
    ("bundles/other.tmp/", Some(Kind::Leftovers)),
    ("emulated-host/lock", None),
    ("emulated-host/6.1-r2/", Some(Kind::HostKernels)),
    ("emulated-host/new-x/", Some(Kind::Leftovers)),
    ("emulated-host-faults/1.txt", Some(Kind::Reports)),
    ("work/building-x/", Some(Kind::Leftovers)),
];

/// A cache with [`CONTENT`], and something that is none of smol's.
fn cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    for (name, _) in CONTENT {
        let path = cache.path().join(name);
        let file = match name.ends_with('/') {
            true => path.join("file"),
            false => path,
        };
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, [7; 5000]).unwrap();
    }
    fs::write(cache.path().join("letter.txt"), "not smol's").unwrap();
    cache
}

fn kinds(survey: &Survey, cache: &Path) -> Vec<(String, Kind)> {
    let entries = survey.entries.iter().map(|entry| {
        let name = entry.path().strip_prefix(cache.canonicalize().unwrap());
        (name.unwrap().display().to_string(), entry.kind)
    });
    let mut kinds: Vec<_> = entries.collect();
    kinds.sort();
    kinds
}

fn interrupt() -> Interrupt {
    Interrupt::detached().unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => todo.push(path),
                false => found.push(path),
            }
        }
    }
    let relative = |path: PathBuf| path.strip_prefix(folder).unwrap().display().to_string();
    let mut names: Vec<_> = found.into_iter().map(relative).collect();
    names.sort();
    names
}

#[test]
fn all_that_is_in_a_cache_is_told_and_what_is_none_of_smols() {
    let cache = cache();
    let survey = Survey::of(cache.path()).unwrap();
    let mut expected: Vec<_> = CONTENT
        .iter()
        .filter_map(|(name, kind)| Some((name.trim_end_matches('/').to_owned(), (*kind)?)))
        .collect();
    expected.sort();
    assert_eq!(kinds(&survey, cache.path()), expected);
    assert_eq!(survey.foreign, [cache.path().join("letter.txt")]);
    // A file of 5000 bytes takes two blocks of 4 KiB; its folder may take one.
    let (entries, size, _) = survey.of_kind(Kind::Downloads);
    assert_eq!((entries, size), (1, 8192));
    let (_, size, _) = survey.of_kind(Kind::Systems);
    assert_eq!(size, 3 * 8192, "the archive, its digest and its lock");
}

#[test]
fn a_file_with_two_names_counts_once() {
    let cache = tempfile::tempdir().unwrap();
    let [built, work] = ["built/key", "work/building-x"].map(|name| cache.path().join(name));
    fs::create_dir_all(&built).unwrap();
    fs::create_dir_all(&work).unwrap();
    fs::write(built.join("bundle"), vec![1; 1 << 20]).unwrap();
    fs::hard_link(built.join("bundle"), work.join("built")).unwrap();
    let size = Survey::of(cache.path()).unwrap().size();
    assert!(((1 << 20)..(1 << 20) + 65536).contains(&size), "{size}");
}

#[test]
fn everything_goes_but_locks_and_what_is_none_of_smols() {
    let cache = cache();
    let survey = Survey::of(cache.path()).unwrap();
    let removal = remove(&survey.entries, &interrupt(), |_, _| true);
    assert!(removal.failed.is_empty() && removal.in_use.is_empty());
    assert_eq!(removal.freed(), survey.size());
    assert_eq!(
        files(cache.path()),
        ["emulated-host/lock", "kernels/lock", "letter.txt"]
    );
    assert_eq!(Survey::of(cache.path()).unwrap().size(), 0);
}

#[test]
fn what_a_process_uses_or_makes_stays_and_the_process_is_named() {
    let cache = cache();
    let at = |name: &str| cache.path().join(name);
    // A build that runs, a machine that runs, an emulated host, and what they are making.
    let _build = hold_for_build(cache.path()).unwrap();
    let _in_use = ["built/key", "bundles/digest", "emulated-host/6.1-r2"]
        .map(|name| InUse::of(&at(name)).unwrap().unwrap());
    let _making = [
        "work/building-x",
        "bundles/other.tmp",
        "downloads/fetching-x",
        "emulated-host/new-x",
        "built/removing-x",
    ]
    .map(|name| LockDir::if_abandoned(&at(name)).unwrap());
    let kernel = open_lock(&at("kernels/lock")).unwrap();
    kernel.lock().unwrap();
    let before = files(cache.path());
    let survey = Survey::of(cache.path()).unwrap();
    assert_eq!(survey.of_kind(Kind::Leftovers).0, 0);
    let removal = remove(&survey.entries, &interrupt(), |_, _| true);
    let gone: Vec<_> = removal.removed.keys().copied().collect();
    assert_eq!(gone, [Kind::Reports]);
    let mut after = files(cache.path());
    after.extend(["emulated-host-faults/1.txt", "kernels/failed-01.log"].map(str::to_owned));
    after.sort();
    assert_eq!(after, before);
    for kind in [Kind::Downloads, Kind::Images, Kind::Work] {
        let by = &removal.in_use[&kind].processes;
        // Where the kernel tells of another device than stat(2) does, nobody is named.
        assert!(
            by.is_empty() || by.contains_key(&std::process::id()),
            "{by:?}"
        );
    }
}

#[test]
fn what_another_process_has_removed_meanwhile_is_no_failure() {
    let cache = cache();
    let survey = Survey::of(cache.path()).unwrap();
    for folder in ["downloads", "bundles", "debian"] {
        fs::remove_dir_all(cache.path().join(folder)).unwrap();
        fs::create_dir(cache.path().join(folder)).unwrap();
    }
    let removal = remove(&survey.entries, &interrupt(), |_, _| true);
    assert!(removal.failed.is_empty(), "{:?}", removal.failed);
    assert!(!removal.removed.contains_key(&Kind::Images));
    assert!(removal.removed.contains_key(&Kind::Bundles));
}

#[test]
fn who_is_stopped_removes_nothing_more() {
    let cache = cache();
    let survey = Survey::of(cache.path()).unwrap();
    let interrupted = interrupt();
    interrupted.trigger();
    let before = files(cache.path());
    assert_eq!(
        remove(&survey.entries, &interrupted, |_, _| true).freed(),
        0
    );
    assert_eq!(files(cache.path()), before);
}

#[test]
fn a_folder_of_the_cache_on_another_disk_is_emptied_where_it_is() {
    let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(elsewhere.path().join("digest")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), cache.path().join("bundles")).unwrap();
    let survey = Survey::of(cache.path()).unwrap();
    assert_eq!(survey.of_kind(Kind::Images).0, 1);
    let removal = remove(&survey.entries, &interrupt(), |_, _| true);
    assert!(removal.failed.is_empty());
    assert!(files(elsewhere.path()).is_empty());
    assert!(cache.path().join("bundles").is_symlink());
}

#[test]
fn a_use_is_seen() {
    let cache = cache();
    let month = SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
    let entry = cache.path().join("bundles/digest");
    let set_used = || File::open(&entry).unwrap().set_modified(month).unwrap();
    let used = || Survey::of(cache.path()).unwrap().of_kind(Kind::Images).2;
    set_used();
    assert_eq!(used(), Some(month));
    drop(InUse::of(&entry).unwrap());
    assert!(used() > Some(month));
}
