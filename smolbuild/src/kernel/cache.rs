//! Kernels in the cache.
//!
//! `<cache>/kernels/<digest of the inputs>/` holds `vmlinux` and `kernel.json`, which tells what it
//! was made of. Both appear by a rename, the kernel last. Builds go on in `<cache>/kernels/build-*`
//! under one lock, one at a time: a build keeps all processors busy anyway, and the holder of the
//! lock may remove what killed builds left.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use smol_cli::progress::Stage;
use smol_cli::{Interrupt, paths};
use smol_host::cache::{KERNELS, record_use};
use smol_host::lock_dir::lock_file;

use super::inputs::Toolchain;
use crate::hash;

const SCRATCH: &str = "build-";
const VMLINUX: &str = "vmlinux";
const INFO: &str = "kernel.json";

/// `kernel.json`: what a kernel is, and what it was made of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Info {
    /// Name of the recipe.
    pub recipe: String,
    /// The source, for people.
    pub source: String,
    /// SHA-256 of the source tarball.
    pub source_sha256: String,
    /// What built it.
    pub toolchain: Toolchain,
    /// SHA-256 of vmlinux.
    pub sha256: String,
    /// Whether a release brought it, so that it was not compiled here.
    #[serde(default)]
    pub prebuilt: bool,
}

/// The part of the cache that holds kernels.
pub struct KernelCache(PathBuf);

impl KernelCache {
    /// The one in this cache.
    pub fn new(cache: &Path) -> KernelCache {
        KernelCache(cache.join(KERNELS))
    }

    /// The kernel of these inputs, if it is there and what it was; only one that was compiled here,
    /// unless `prebuilt`.
    pub fn find(&self, digest: &str, prebuilt: bool, stage: &Stage) -> Option<PathBuf> {
        match self.look(digest, prebuilt) {
            Entry::Good(vmlinux) => {
                record_use(&self.0.join(digest));
                Some(vmlinux)
            }
            Entry::Damaged(vmlinux) => {
                stage.note(&format!(
                    "{} is damaged and will be built again",
                    vmlinux.display()
                ));
                None
            }
            Entry::Absent => None,
        }
    }

    /// Whether [`KernelCache::find`] would find it.
    pub fn has(&self, digest: &str, prebuilt: bool) -> bool {
        matches!(self.look(digest, prebuilt), Entry::Good(_))
    }

    fn look(&self, digest: &str, prebuilt: bool) -> Entry {
        let entry = self.0.join(digest);
        let vmlinux = entry.join(VMLINUX);
        let info = info(&entry);
        if info.as_ref().is_some_and(|info| info.prebuilt) && !prebuilt {
            return Entry::Absent;
        }
        match hash::sha256(&vmlinux) {
            Err(_) => Entry::Absent,
            Ok(found) if info.is_some_and(|info| info.sha256 == found) => Entry::Good(vmlinux),
            Ok(_) => Entry::Damaged(vmlinux),
        }
    }

    /// What the kernels in the cache say of themselves, with their digests.
    pub fn infos(&self) -> Vec<(String, Info)> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut infos: Vec<_> = entries
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, info(&entry.path())?)))
            .collect();
        infos.sort_by(|(a, _), (b, _)| a.cmp(b));
        infos
    }

    /// Stores a kernel that was just made, with its `kernel.json`.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn put(&self, digest: &str, vmlinux: &Path, info: &Info, stage: &Stage) -> Result<PathBuf> {
        let entry = self.0.join(digest);
        let place = entry.join(VMLINUX);
        // Other bytes than before mean that there is an unknown input: the user should know.
        if let Ok(before) = hash::sha256(&place)
            && before != info.sha256
        {
            stage.note(&format!(
                "warning: the same inputs gave another kernel before, with the SHA-256 {before}"
            ));
        }
        let json = serde_json::to_vec_pretty(info)?;
        let new_info = vmlinux.with_file_name(INFO);
        let put = || -> io::Result<()> {
            fs::write(&new_info, json)?;
            File::open(&new_info)?.sync_all()?;
            paths::create_in_cache(&entry)?;
            fs::rename(&new_info, entry.join(INFO))?;
            fs::rename(vmlinux, &place)?;
            File::open(&entry)?.sync_all()
        };
        put().with_context(|| format!("cannot store the kernel in {}", entry.display()))?;
        Ok(place)
    }

    /// Keeps the log of a failed build; returns where, if it could.
    pub fn keep_log(&self, digest: &str, log: &Path) -> Option<PathBuf> {
        let kept = self.0.join(format!("failed-{}.log", digest.get(..16)?));
        fs::rename(log, &kept).ok().map(|()| kept)
    }

    /// Waits until no other process builds, and removes what killed ones left.
    ///
    /// # Errors
    /// If the cache cannot be written, or when the user wants to stop.
    pub fn lock(&self, stage: &Stage, interrupt: &Interrupt) -> Result<BuildLock> {
        paths::create_in_cache(&self.0)
            .with_context(|| format!("cannot create {}", self.0.display()))?;
        // make and tar work elsewhere.
        let folder = self
            .0
            .canonicalize()
            .with_context(|| format!("cannot find {}", self.0.display()))?;
        let path = folder.join("lock");
        let cannot = || format!("cannot lock {}", path.display());
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(cannot)?;
        lock_file(&lock, interrupt, || {
            stage.note("waiting for another smolbuild that builds a kernel");
        })
        .with_context(cannot)?;
        interrupt.check()?;
        sweep(&folder);
        Ok(BuildLock {
            folder,
            _lock: lock,
        })
    }
}

/// What the cache has under a digest.
enum Entry {
    Absent,
    Damaged(PathBuf),
    Good(PathBuf),
}

fn info(entry: &Path) -> Option<Info> {
    let json = fs::read(entry.join(INFO)).ok()?;
    serde_json::from_slice(&json).ok()
}

/// The lock of the one build at a time, until it is dropped or the process ends.
pub struct BuildLock {
    folder: PathBuf,
    _lock: File,
}

impl BuildLock {
    /// A folder to build in, removed on drop.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        let scratch = tempfile::Builder::new()
            .prefix(SCRATCH)
            .tempdir_in(&self.folder);
        scratch.with_context(|| format!("cannot create a folder in {}", self.folder.display()))
    }
}

/// Removes what killed builds left.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            // A process of theirs may be dying still; then the next build removes the rest.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use smol_cli::{ExitKind, Mode, Progress};

    use std::time::Duration;

    use super::*;

    fn stage() -> Stage {
        Progress::new(Mode::Plain).stage("kernel", "")
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn put(cache: &KernelCache, digest: &str, bytes: &str) -> PathBuf {
        let built = tempfile::tempdir_in(&cache.0).unwrap();
        let vmlinux = built.path().join(VMLINUX);
        fs::write(&vmlinux, bytes).unwrap();
        let info = Info {
            recipe: "test".into(),
            source: "linux-source-6.1 6.1.2-1".into(),
            source_sha256: "bb".into(),
            toolchain: Toolchain {
                gcc: "gcc 12".into(),
                ld: "ld 2.40".into(),
            },
            sha256: hash::sha256(&vmlinux).unwrap(),
            prebuilt: bytes.starts_with("release"),
        };
        cache.put(digest, &vmlinux, &info, &stage()).unwrap()
    }

    #[test]
    fn a_kernel_is_found_under_its_digest_alone_and_until_its_bytes_change() {
        let cache = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(cache.path());
        drop(
            cache
                .lock(&stage(), &Interrupt::detached().unwrap())
                .unwrap(),
        );
        assert!(cache.find("d1", true, &stage()).is_none());
        let vmlinux = put(&cache, "d1", "\x7fELF");
        assert_eq!(names(vmlinux.parent().unwrap()), [INFO, VMLINUX]);
        assert_eq!(cache.find("d1", true, &stage()), Some(vmlinux.clone()));
        assert!(cache.find("d2", true, &stage()).is_none());
        fs::write(&vmlinux, "\x7fELG").unwrap();
        assert!(cache.find("d1", true, &stage()).is_none());
        assert_eq!(put(&cache, "d1", "\x7fELF"), vmlinux);
        assert_eq!(cache.find("d1", true, &stage()), Some(vmlinux));
    }

    #[test]
    fn a_kernel_of_a_release_is_no_kernel_that_was_compiled_here() {
        let folder = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(folder.path());
        fs::create_dir(&cache.0).unwrap();
        put(&cache, "d1", "release");
        put(&cache, "d2", "compiled");
        assert!(cache.has("d1", true) && !cache.has("d1", false));
        assert!(cache.has("d2", true) && cache.has("d2", false));
        let infos = cache.infos();
        let told: Vec<_> = infos
            .iter()
            .map(|(d, i)| (d.as_str(), i.prebuilt))
            .collect();
        assert_eq!(told, [("d1", true), ("d2", false)]);
        // The compiled one takes its place.
        put(&cache, "d1", "compiled");
        assert!(cache.has("d1", false));
    }

    #[test]
    fn what_killed_builds_left_is_swept_and_the_rest_stays() {
        let cache = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(cache.path());
        for folder in ["build-x1/source/linux", "0123abcd"] {
            fs::create_dir_all(cache.0.join(folder)).unwrap();
        }
        fs::write(cache.0.join("build-x1/source/linux/Makefile"), "").unwrap();
        fs::write(cache.0.join("failed-0123.log"), "").unwrap();
        let lock = cache
            .lock(&stage(), &Interrupt::detached().unwrap())
            .unwrap();
        assert_eq!(names(&cache.0), ["0123abcd", "failed-0123.log", "lock"]);
        let scratch = lock.scratch().unwrap();
        assert!(names(&cache.0)[1].starts_with(SCRATCH));
        drop(scratch);
        assert_eq!(names(&cache.0), ["0123abcd", "failed-0123.log", "lock"]);
    }

    #[test]
    fn a_second_build_waits_for_the_first_and_can_be_interrupted() {
        let cache = tempfile::tempdir().unwrap();
        let first = KernelCache::new(cache.path())
            .lock(&stage(), &Interrupt::detached().unwrap())
            .unwrap();
        let interrupted = Interrupt::detached().unwrap();
        interrupted.trigger();
        let error = KernelCache::new(cache.path())
            .lock(&stage(), &interrupted)
            .err()
            .unwrap();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Terminated);

        let (sender, receiver) = mpsc::channel();
        let cache = KernelCache::new(cache.path());
        let second = std::thread::spawn(move || {
            let lock = cache.lock(&stage(), &Interrupt::detached().unwrap());
            sender.send(()).unwrap();
            lock.map(drop)
        });
        assert!(
            receiver.recv_timeout(Duration::from_millis(300)).is_err(),
            "it did not wait"
        );
        drop(first);
        receiver.recv().unwrap();
        second.join().unwrap().unwrap();
    }

    #[test]
    fn the_log_of_a_failed_build_is_kept() {
        let cache = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(cache.path());
        fs::create_dir_all(&cache.0).unwrap();
        fs::write(cache.0.join("log"), "  CC      init/main.o\n").unwrap();
        let kept = cache
            .keep_log(&"ab".repeat(32), &cache.0.join("log"))
            .unwrap();
        assert_eq!(names(&cache.0), ["failed-abababababababab.log"]);
        assert!(kept.exists());
    }
}
