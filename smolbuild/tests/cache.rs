//! `smolbuild cache` against processes that use the cache, and against SIGKILL.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use smol_host::cache::InUse;

/// Files of an entry.
const FILES: usize = 20;

fn smolbuild(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smolbuild"));
    command
        .arg("cache")
        .args(arguments)
        .env("SMOL_CACHE_DIR", cache)
        .stdin(Stdio::null());
    command
}

fn run(cache: &Path, arguments: &[&str]) -> Output {
    let output = smolbuild(cache, arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

/// Makes an entry that appears whole.
fn make(folder: &Path, name: &str) {
    // A name that is none of smol's.
    let new = folder.with_file_name(format!("new-{name}"));
    fs::create_dir_all(&new).unwrap();
    for number in 0..FILES {
        fs::write(new.join(number.to_string()), [1; 4096]).unwrap();
    }
    // If it is there already, it stays.
    if fs::rename(&new, folder.join(name)).is_err() {
        fs::remove_dir_all(new).unwrap();
    }
}

/// Whether all of an entry is there.
fn is_whole(entry: &Path) -> bool {
    fs::read_dir(entry).unwrap().count() == FILES
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn whenever_it_is_killed_what_is_left_is_whole_and_the_next_one_removes_the_rest() {
    const ENTRIES: usize = 30;
    const ROUNDS: u32 = 40;
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("bundles");
    let fill = || (0..ENTRIES).for_each(|n| make(&folder, &format!("entry{n}")));
    fs::create_dir(&folder).unwrap();
    fill();
    let begin = Instant::now();
    run(cache.path(), &["clean"]);
    let usual = begin.elapsed();
    assert!(names(&folder).is_empty());
    let mut stopped_halfway = 0;
    for round in 0..ROUNDS {
        fill();
        let mut process = smolbuild(cache.path(), &["clean"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(usual * round / ROUNDS);
        process.kill().unwrap(); // SIGKILL
        process.wait().unwrap();
        let left = names(&folder);
        let entries = left.iter().filter(|name| name.starts_with("entry"));
        let entries: Vec<_> = entries.collect();
        assert!(entries.iter().all(|name| is_whole(&folder.join(name))));
        stopped_halfway += usize::from(!entries.is_empty() && entries.len() < ENTRIES);
        // Entries of now are too new to be removed.
        run(cache.path(), &["prune"]);
        assert_eq!(names(&folder).len(), entries.len(), "{left:?}");
        run(cache.path(), &["clean"]);
    }
    assert!(stopped_halfway > 0, "no moment was one of removing");
}

#[test]
fn an_entry_that_is_in_use_is_never_removed_however_often_others_clean() {
    const ENTRIES: usize = 4;
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("bundles");
    fs::create_dir(&folder).unwrap();
    let (done, uses) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for number in 0..ENTRIES {
            let (folder, done, uses) = (&folder, &done, &uses);
            scope.spawn(move || {
                let name = format!("entry{number}");
                let entry = folder.join(&name);
                while !done.load(Ordering::SeqCst) {
                    make(folder, &name);
                    let Some(_in_use) = InUse::of(&entry).unwrap() else {
                        continue;
                    };
                    for _ in 0..20 {
                        thread::sleep(Duration::from_millis(1));
                        assert!(is_whole(&entry), "it was removed under its user");
                    }
                    uses.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // Two at once.
        let cleaners: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| (0..15).for_each(|_| drop(run(cache.path(), &["clean"])))))
            .collect();
        let ends: Vec<_> = cleaners.into_iter().map(|it| it.join()).collect();
        done.store(true, Ordering::SeqCst);
        assert!(ends.into_iter().all(|end| end.is_ok()));
    });
    assert!(uses.load(Ordering::SeqCst) > 0);
}

#[test]
fn what_was_used_longest_ago_goes_first_and_no_more_than_needs_to() {
    let cache = tempfile::tempdir().unwrap();
    let downloads = cache.path().join("downloads");
    fs::create_dir(&downloads).unwrap();
    let days = |n: u64| Duration::from_secs(n * 24 * 3600);
    let fill = || {
        for (name, age) in [("a", 40), ("b", 20), ("c", 31), ("d", 0)] {
            let path = downloads.join(name);
            fs::write(&path, vec![1; 1 << 20]).unwrap();
            let used = SystemTime::now() - days(age);
            File::open(path).unwrap().set_modified(used).unwrap();
        }
        // Left by a process that was killed.
        fs::create_dir_all(cache.path().join("work/building-x")).unwrap();
    };
    let left = |arguments: &[&str]| {
        fill();
        let output = run(cache.path(), arguments);
        let mut left = names(&downloads);
        left.sort();
        assert!(names(&cache.path().join("work")).is_empty());
        (left.concat(), String::from_utf8(output.stdout).unwrap())
    };
    let (kept, said) = left(&["prune"]);
    assert_eq!(kept, "bd");
    assert!(said.contains("freed 2.0 MiB, 2.0 MiB are left"), "{said}");
    assert_eq!(left(&["prune", "--keep", "3M"]).0, "bcd");
    assert_eq!(left(&["prune", "--keep", "3071 KiB"]).0, "bd");
    assert_eq!(left(&["prune", "--keep", "0k"]).0, "");
    assert_eq!(left(&["prune", "--keep=1g"]).0, "abcd");
    assert_eq!(left(&["clean"]).0, "");
}

#[test]
fn a_build_that_runs_keeps_what_it_uses_and_is_named() {
    let cache = tempfile::tempdir().unwrap();
    fs::create_dir(cache.path().join("downloads")).unwrap();
    fs::write(cache.path().join("downloads/x.deb"), "x").unwrap();
    let build = smolbuild::cache::hold_for_build(cache.path()).unwrap();
    let output = run(cache.path(), &["clean"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("1 of downloads in use"), "{said}");
    assert!(cache.path().join("downloads/x.deb").exists());
    drop(build);
    run(cache.path(), &["clean"]);
    assert!(!cache.path().join("downloads/x.deb").exists());
}
