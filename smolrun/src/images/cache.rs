//! The bundle's images as files that can be mapped: unpacked once, used by every start.
//!
//! ```text
//! <cache>/bundles/                      0700
//!   <sha256 of the manifest>/           0700, appears whole by a rename
//!     kernel initramfs rootfs memory    0400, every frame verified when it was unpacked
//!     state.json                        0400, verified by its digest
//!     working-set                       0400, the pages of rootfs and memory that are touched first
//!   <sha256 of the manifest>.tmp/       being unpacked, or left by a process that was killed
//! ```
//!
//! **Trust.** The signature is checked against the bundle at every start, and the folder's name is
//! the signed digest; but the images themselves are verified only when they are unpacked. The
//! cache is trusted because nobody else can write to it: the folders are closed to other users
//! (mode 0700), and a folder or file of another owner or of a wider mode, or a file whose size is
//! not the one that the manifest's page index tells, is not used. Who can change these files (the
//! user, and root) could change smolrun as well.
//!
//! **Removal.** Who uses a folder holds its lock, shared, for as long as a machine runs: `smolbuild cache`
//! leaves it alone meanwhile ([`smol_host::cache`]).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use smol_bundle::{Bundle, ImageKind};
use smol_cli::{ErrorExt, ExitKind, Failure, Session, human};
use smol_host::cache::{self, InUse};
use smol_host::lock_dir::LockDir;
use smol_machine::machine::{Hooks, RestoreConfig};
use smol_machine::prefetch::{Run, Runs};
use smol_machine::{Machine, MachineState};

use crate::images::bundle::Has;

/// File name of the machine state.
const STATE: &str = "state.json";
/// File name of the working set.
const WORKING_SET: &str = "working-set";
/// Ending of folders that are being unpacked.
const TEMPORARY: &str = "tmp";
/// How often a bundle is unpacked that is removed each time before it could be used.
const ATTEMPTS: usize = 8;

/// The images of a bundle as files in a folder.
pub struct CachedImages {
    folder: PathBuf,
    has: Has,
    /// Not in an emulated host, whose images the process outside of it holds.
    _in_use: Option<InUse>,
}

impl CachedImages {
    /// Takes the images in a folder that [`unpack`] has filled, and that is in use.
    pub fn new(folder: PathBuf, has: Has, in_use: Option<InUse>) -> Self {
        Self {
            folder,
            has,
            _in_use: in_use,
        }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the file of an image.
    pub fn file(&self, kind: ImageKind) -> PathBuf {
        self.folder.join(kind.name())
    }

    /// Returns the initramfs's file, if there is one.
    pub fn initramfs(&self) -> Option<PathBuf> {
        self.has.initramfs.then(|| self.file(ImageKind::Initramfs))
    }

    /// Returns the root file system's file, if there is one.
    pub fn rootfs(&self) -> Option<PathBuf> {
        self.has.rootfs.then(|| self.file(ImageKind::Rootfs))
    }

    /// Reads the machine state.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn state(&self) -> anyhow::Result<Vec<u8>> {
        let path = self.folder.join(STATE);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Restores the machine in this state.
    ///
    /// # Errors
    /// As [`Machine::restore`].
    pub fn restore(&self, state: &MachineState, hooks: Hooks) -> smol_machine::Result<Machine> {
        let [rootfs_first, memory_first] = self.working_set();
        let config = RestoreConfig {
            memory: self.file(ImageKind::Memory),
            rootfs: self.rootfs(),
            memory_first,
            rootfs_first,
        };
        Machine::restore(&config, state, hooks)
    }

    /// Returns the working sets of rootfs and memory. Without them a start is slower, no more.
    fn working_set(&self) -> [Runs; 2] {
        let bytes = fs::read(self.folder.join(WORKING_SET)).unwrap_or_default();
        decode(&bytes).unwrap_or_default()
    }
}

/// Returns the folder of all unpacked bundles under `cache`.
pub fn root(cache: &Path) -> PathBuf {
    cache.join(cache::IMAGES)
}

/// Returns where the bundle's images are under `cache`, or will be, and if they are there, that they
/// are in use now.
///
/// # Errors
/// If the cache cannot be used.
pub fn lookup(bundle: &Bundle, cache: &Path) -> anyhow::Result<(PathBuf, Option<InUse>)> {
    let root = root(cache);
    create_private(&root)?;
    let done = root.join(bundle.digest().hex());
    let in_use = take(bundle, &done)?;
    if in_use.is_none() {
        sweep(&root);
    }
    Ok((done, in_use))
}

/// Takes the folder of a bundle's images into use, if it is complete.
fn take(bundle: &Bundle, done: &Path) -> anyhow::Result<Option<InUse>> {
    // Before anything in it is looked at, which could be removed meanwhile.
    let in_use = InUse::of(done).with_context(|| format!("cannot use {}", done.display()))?;
    Ok(match is_complete(bundle, done)? {
        true => in_use,
        false => None,
    })
}

/// Returns the folder of the bundle's images under `cache`, unpacked if it is not there yet, and that it is
/// in use.
///
/// # Errors
/// If the bundle's frames are not what its index says, the disk is full, or a signal came; then
/// nothing is left behind.
pub fn unpack(
    bundle: &Bundle,
    cache: &Path,
    session: &Session,
) -> anyhow::Result<(PathBuf, InUse)> {
    // Somebody may empty the cache between unpacking and use.
    for _ in 0..ATTEMPTS {
        if let (done, Some(in_use)) = lookup(bundle, cache)? {
            return Ok((done, in_use));
        }
        if let (done, Some(in_use)) = unpack_now(bundle, cache, session)? {
            return Ok((done, in_use));
        }
    }
    anyhow::bail!("{} is removed again and again", root(cache).display())
}

/// Unpacks the bundle, unless another process has done so meanwhile; not in use if it was removed at once.
fn unpack_now(
    bundle: &Bundle,
    cache: &Path,
    session: &Session,
) -> anyhow::Result<(PathBuf, Option<InUse>)> {
    let done = root(cache).join(bundle.digest().hex());
    let temporary = done.with_extension(TEMPORARY);
    let owned = match LockDir::try_claim(&temporary).with_context(|| cannot(&temporary))? {
        Some(owned) => owned,
        None => {
            session.note("waiting for another smolrun that unpacks the same bundle");
            LockDir::claim(&temporary).with_context(|| cannot(&temporary))?
        }
    };
    let unpacked = unpack_into(bundle, &owned, &done, session).and_then(|by_other| {
        // Somebody may empty the cache meanwhile.
        let whole = by_other.is_some() || is_complete(bundle, owned.path())?;
        anyhow::ensure!(
            whole,
            "files of {} were removed meanwhile",
            temporary.display()
        );
        Ok(by_other)
    });
    let in_use = match unpacked {
        Ok(None) => owned
            .rename_into_use(&done)
            .with_context(|| cannot(&done))?,
        Ok(by_other) => {
            owned.remove().with_context(|| cannot(&temporary))?;
            by_other
        }
        Err(error) => {
            // If that fails, a later start removes it.
            let _ = owned.remove();
            return Err(with_advice(error));
        }
    };
    let _ = done
        .parent()
        .map(|root| File::open(root).and_then(|folder| folder.sync_all()));
    Ok((done, in_use))
}

fn cannot(path: &Path) -> String {
    format!("cannot unpack the bundle into {}", path.display())
}

/// Unpacks into the temporary folder; if the finished one has appeared meanwhile, that is taken into use.
fn unpack_into(
    bundle: &Bundle,
    owned: &LockDir,
    done: &Path,
    session: &Session,
) -> anyhow::Result<Option<InUse>> {
    if let Some(in_use) = take(bundle, done)? {
        return Ok(Some(in_use));
    }
    if done.exists() {
        session.note(&format!("{} is damaged: unpacking again", done.display()));
        fs::remove_dir_all(done).with_context(|| cannot(done))?;
    }
    owned.clear().with_context(|| cannot(owned.path()))?;
    require_space(bundle, owned.path())?;
    let name = bundle.config().name.as_str();
    let stage = session.stage(
        "unpack",
        &format!("unpacking {name} (only at its first start)"),
    );
    let mut size = 0;
    for kind in kinds_of(bundle) {
        let file = create(&owned.path().join(kind.name()))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let extracted = bundle.extract_while(kind, &file, threads, &mut |done, total| {
            stage.set(done, total);
            session.interrupt.go_on()
        });
        session.check()?;
        extracted.map_err(|e| failure(e, owned.path()))?;
        file.sync_all().with_context(|| cannot(owned.path()))?;
        size += file.metadata().map_or(0, |m| m.blocks() * 512);
    }
    if let Some(state) = bundle.state().map_err(|e| failure(e, owned.path()))? {
        let mut file = create(&owned.path().join(STATE))?;
        let written = file.write_all(&state).and_then(|()| file.sync_all());
        written.with_context(|| cannot(owned.path()))?;
    }
    let mut file = create(&owned.path().join(WORKING_SET))?;
    let written = file
        .write_all(&encode(bundle))
        .and_then(|()| file.sync_all());
    written.with_context(|| cannot(owned.path()))?;
    owned.sync().with_context(|| cannot(owned.path()))?;
    stage.finish(&human::bytes(size));
    Ok(None)
}

/// Refuses to begin what the disk has no space for.
fn require_space(bundle: &Bundle, folder: &Path) -> anyhow::Result<()> {
    let needed = kinds_of(bundle).map(|kind| bundle.held_bytes(kind)).sum();
    // Where that cannot be known, it is tried.
    let Ok(disk) = rustix::fs::statvfs(folder) else {
        return Ok(());
    };
    space_for(needed, disk.f_bavail.saturating_mul(disk.f_frsize)).with_context(|| cannot(folder))
}

fn space_for(needed: u64, free: u64) -> anyhow::Result<()> {
    if needed <= free {
        return Ok(());
    }
    let (needs, has) = (human::bytes(needed), human::bytes(free));
    let lacks = human::bytes(needed - free);
    let message =
        format!("it takes {needs} of disk space, and {has} are free: {lacks} are missing");
    Err(std::io::Error::new(ErrorKind::StorageFull, message).into())
}

/// The kinds of images that have a working set.
const WORKING: [ImageKind; 2] = [ImageKind::Rootfs, ImageKind::Memory];

/// For each of [`WORKING`] the number of runs, then the runs as the page index has them; all numbers
/// little endian.
fn encode(bundle: &Bundle) -> Vec<u8> {
    let mut bytes = Vec::new();
    for kind in WORKING {
        let runs = bundle
            .index()
            .image(kind)
            .map_or(&[][..], |image| image.working_set());
        bytes.extend((runs.len() as u32).to_le_bytes());
        for run in runs {
            bytes.extend(run.first.to_le_bytes());
            bytes.extend(run.pages.to_le_bytes());
            bytes.extend(u32::from(run.written).to_le_bytes());
        }
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<[Runs; 2]> {
    let mut words = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word));
    let mut runs = || {
        let count = words.next()?;
        let mut run = || {
            Some(Run {
                first: words.next()?,
                pages: words.next()?,
                written: words.next()? != 0,
            })
        };
        (0..count).map(|_| run()).collect::<Option<Runs>>()
    };
    Some([runs()?, runs()?])
}

fn failure(error: smol_bundle::Error, folder: &Path) -> anyhow::Error {
    let kind = if error.is_verification_failure() {
        ExitKind::Verification
    } else {
        ExitKind::Failed
    };
    anyhow::Error::from(error)
        .context(cannot(folder))
        .kind(kind)
}

/// Adds what to do about a full disk.
fn with_advice(error: anyhow::Error) -> anyhow::Error {
    let full = error
        .chain()
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded));
    if !full {
        return error;
    }
    let advice = "free space there, or set SMOL_CACHE_DIR to a folder with more of it";
    error.hint(advice)
}

fn create(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o400);
    options
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))
}

fn kinds_of(bundle: &Bundle) -> impl Iterator<Item = ImageKind> {
    ImageKind::ALL
        .into_iter()
        .filter(|kind| bundle.image_size(*kind).is_some())
}

/// Whether the folder exists, is closed to others, and every file in it has the size that the verified
/// page index says.
///
/// # Errors
/// If it belongs to another user, or is open to others.
fn is_complete(bundle: &Bundle, folder: &Path) -> anyhow::Result<bool> {
    if !is_private(folder)? {
        return Ok(false);
    }
    let images = kinds_of(bundle).map(|kind| (kind.name(), bundle.image_size(kind)));
    let state = bundle
        .layout()
        .into_iter()
        .find(|b| b.media_type == smol_bundle::oci::STATE);
    let state = state.map(|blob| (STATE, Some(blob.size)));
    let set = (WORKING_SET, Some(encode(bundle).len() as u64));
    Ok(images.chain(state).chain([set]).all(|(name, size)| {
        fs::symlink_metadata(folder.join(name)).is_ok_and(|meta| {
            let closed = meta.uid() == our_uid() && meta.mode() & 0o022 == 0;
            meta.is_file() && closed && Some(meta.len()) == size
        })
    }))
}

fn our_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Creates a folder that is closed to others, or checks that it is.
fn create_private(folder: &Path) -> anyhow::Result<()> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    created
        .with_context(|| format!("cannot create {}", folder.display()))
        .kind(ExitKind::Host)?;
    is_private(folder).map(drop)
}

/// Whether the folder exists; an error if others could have put something into it.
fn is_private(folder: &Path) -> anyhow::Result<bool> {
    let meta = match fs::symlink_metadata(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        other => other.with_context(|| format!("cannot look at {}", folder.display()))?,
    };
    let wrong = if !meta.is_dir() {
        "is not a folder".to_owned()
    } else if meta.uid() != our_uid() {
        format!("belongs to user {}, not to user {}", meta.uid(), our_uid())
    } else if meta.mode() & 0o077 != 0 {
        format!("is open to other users (mode {:o})", meta.mode() & 0o777)
    } else {
        return Ok(true);
    };
    let message = format!("the cache folder {} {wrong}", folder.display());
    Err(Failure::new(ExitKind::Host, message)
        .hint("remove it, or set SMOL_CACHE_DIR to a folder of your own")
        .into())
}

/// Removes what processes that were killed have left half unpacked.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == TEMPORARY)
            && let Some(left) = LockDir::if_abandoned(&path)
        {
            // If that fails, the next start tries again.
            let _ = left.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MEMORY, Sample};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    fn unpack_sample(sample: &Sample, cache: &Path) -> anyhow::Result<PathBuf> {
        let session = Session::detached().unwrap();
        unpack(&sample.open(), cache, &session).map(|(folder, _)| folder)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_images_are_unpacked_as_they_were_packed_and_closed_to_others() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let folder = unpack_sample(&sample, cache.path()).unwrap();
        assert_eq!(
            names(&folder),
            [
                "initramfs",
                "kernel",
                "memory",
                "rootfs",
                "state.json",
                "working-set"
            ]
        );
        for name in ["initramfs", "kernel", "memory", "rootfs"] {
            let packed = fs::read(sample.dir.path().join(name)).unwrap();
            assert!(fs::read(folder.join(name)).unwrap() == packed, "{name}");
            let mode = fs::metadata(folder.join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o400);
        }
        assert_eq!(fs::read(folder.join("state.json")).unwrap(), b"{}");
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert_eq!(names(&cache.path().join("bundles")).len(), 1);
    }

    #[test]
    fn a_bundle_that_the_disk_has_no_space_for_is_not_begun_and_says_what_is_missing() {
        let error = space_for(3 << 30, 1 << 30)
            .context("cannot unpack")
            .unwrap_err();
        let text = smol_cli::error::render(&with_advice(error), false);
        assert_eq!(
            text,
            "error: cannot unpack\n  because: it takes 3.0 GiB of disk space, and 1.0 GiB are free: 2.0 GiB are missing\n  \
             hint: free space there, or set SMOL_CACHE_DIR to a folder with more of it\n"
        );
        space_for(1 << 30, 1 << 30).unwrap();
        let sample = Sample::new();
        let bundle = sample.open();
        let needed: u64 = kinds_of(&bundle).map(|kind| bundle.held_bytes(kind)).sum();
        let cache = tempfile::tempdir().unwrap();
        let folder = unpack_sample(&sample, cache.path()).unwrap();
        let taken = kinds_of(&bundle).map(|kind| {
            let meta = fs::metadata(folder.join(kind.name())).unwrap();
            meta.blocks() * 512
        });
        // All that is needed, and not much more: pages of zeros are holes.
        let taken: u64 = taken.sum();
        assert!(taken <= needed + (64 << 10), "{taken} for {needed}");
    }

    #[test]
    fn a_second_start_uses_what_the_first_has_unpacked() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let folder = unpack_sample(&sample, cache.path()).unwrap();
        let inode = fs::metadata(folder.join("memory")).unwrap().ino();
        assert_eq!(unpack_sample(&sample, cache.path()).unwrap(), folder);
        assert_eq!(fs::metadata(folder.join("memory")).unwrap().ino(), inode);
    }

    #[test]
    fn a_file_of_another_size_is_unpacked_again() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let memory = unpack_sample(&sample, cache.path()).unwrap().join("memory");
        fs::set_permissions(&memory, fs::Permissions::from_mode(0o600)).unwrap();
        OpenOptions::new()
            .write(true)
            .open(&memory)
            .unwrap()
            .set_len(4096)
            .unwrap();
        unpack_sample(&sample, cache.path()).unwrap();
        assert_eq!(fs::metadata(&memory).unwrap().len(), MEMORY);
    }

    #[test]
    fn a_cache_that_others_can_write_to_is_refused() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let folder = unpack_sample(&sample, cache.path()).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let error = unpack_sample(&sample, cache.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("is open to other users (mode 777)"),
            "{error}"
        );
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Host);
    }

    #[test]
    fn a_flipped_bit_in_a_frame_is_found_and_leaves_nothing() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let blob = sample.open().layout()[3].clone();
        assert!(blob.media_type.contains("memory"), "{}", blob.media_type);
        let mut bytes = fs::read(&sample.bundle).unwrap();
        bytes[(blob.offset + blob.size / 2) as usize] ^= 1;
        fs::write(&sample.bundle, bytes).unwrap();
        let error = unpack_sample(&sample, cache.path()).unwrap_err();
        assert_eq!(
            smol_cli::exit_kind(&error),
            ExitKind::Verification,
            "{error:#}"
        );
        assert!(names(&cache.path().join("bundles")).is_empty());
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_running_one_unpacks_is_not() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let root = cache.path().join("bundles");
        create_private(&root).unwrap();
        fs::create_dir(root.join("dead.tmp")).unwrap();
        fs::write(root.join("dead.tmp/memory"), "half").unwrap();
        let alive = LockDir::try_claim(&root.join("alive.tmp")).unwrap();
        unpack_sample(&sample, cache.path()).unwrap();
        let left = names(&root);
        assert!(left.contains(&"alive.tmp".to_owned()) && !left.contains(&"dead.tmp".to_owned()));
        drop(alive);
    }

    #[test]
    fn concurrent_first_starts_end_up_with_one_folder() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        std::thread::scope(|scope| {
            let starts: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| unpack_sample(&sample, cache.path()).unwrap()))
                .collect();
            let folders: Vec<_> = starts.into_iter().map(|s| s.join().unwrap()).collect();
            assert!(folders.windows(2).all(|w| w[0] == w[1]));
        });
        assert_eq!(names(&cache.path().join("bundles")).len(), 1);
    }

    #[test]
    fn images_are_never_removed_under_a_machine_by_who_empties_the_cache_all_the_time() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let bundle = sample.open();
        let done = root(cache.path()).join(bundle.digest().hex());
        let (finished, removed) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let starts: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        while removed.load(Ordering::SeqCst) < 10 {
                            let session = Session::detached().unwrap();
                            let (folder, in_use) = unpack(&bundle, cache.path(), &session).unwrap();
                            std::thread::sleep(std::time::Duration::from_millis(1));
                            assert!(is_complete(&bundle, &folder).unwrap());
                            drop(in_use);
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !finished.load(Ordering::SeqCst) {
                    // As `smolbuild cache` does.
                    if let Some(claimed) = LockDir::if_abandoned(&done) {
                        let number = removed.fetch_add(1, Ordering::SeqCst);
                        let away = cache.path().join(number.to_string());
                        claimed.rename(&away).unwrap();
                        fs::remove_dir_all(away).unwrap();
                    }
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
            });
            let ends: Vec<_> = starts.into_iter().map(|start| start.join()).collect();
            finished.store(true, Ordering::SeqCst);
            assert!(ends.into_iter().all(|end| end.is_ok()));
        });
    }

    #[test]
    fn an_interrupted_start_leaves_nothing() {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let session = Session::detached().unwrap();
        session.interrupt.trigger();
        let error = unpack(&sample.open(), cache.path(), &session).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Terminated);
        assert!(names(&cache.path().join("bundles")).is_empty());
    }
}
