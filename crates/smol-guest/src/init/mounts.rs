//! The file systems, and the way from the initramfs into the root file system.
//!
//! ```text
//! /            overlay: writes go to a tmpfs, reads come from the EROFS image (DAX)
//! /proc /sys /dev /dev/pts /dev/shm /run /tmp /sys/fs/cgroup
//! ```
//! Without a root file system the initramfs itself stays `/`.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink,
};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use smol_protocol::step::STEP_PATH;
use smol_protocol::{CONFIG_PATH, Rootfs};

const LOWER: &str = "/smol/lower";
const WRITABLE: &str = "/smol/rw";
const ROOT: &str = "/smol/root";
/// How long the root device may take to appear: its driver probes on its own.
const DEVICE_LIMIT: Duration = Duration::from_secs(5);

const NO_SUID_EXEC: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
const NO_SUID_DEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Mounts what the init itself needs: devices, processes, sysfs. In the initramfs.
pub(super) fn early() -> Result<(), String> {
    mount(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID,
        "mode=0755",
    )?;
    mount("proc", "/proc", "proc", NO_SUID_EXEC, "")?;
    mount("sysfs", "/sys", "sysfs", NO_SUID_EXEC, "")
}

/// A root file system that was entered.
pub(super) struct Entered {
    /// What is less good than it should be.
    pub(super) warnings: Vec<String>,
    /// The upper directory of the overlay: all that is written to `/` is below it.
    pub(super) upper: OwnedFd,
}

/// Makes the root file system `/` and takes the early mounts along. What is written to it takes this
/// much of the memory at most.
pub(super) fn enter(rootfs: &Rootfs, share: Share) -> Result<Entered, String> {
    let warnings = mount_lower(&rootfs.device)?;
    let options = match share {
        Share::Half => "mode=0755",
        Share::Most => "mode=0755,size=80%",
    };
    mount("tmpfs", WRITABLE, "tmpfs", NO_SUID_DEV, options)?;
    for dir in ["upper", "work"] {
        let path = format!("{WRITABLE}/{dir}");
        fs::create_dir(&path).map_err(|e| format!("{path}: {e}"))?;
    }
    let upper = format!("{WRITABLE}/upper");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&upper, flags, Mode::empty());
    let opened = opened.map_err(|e| format!("{upper}: {e}"))?;
    let layers = format!("lowerdir={LOWER},upperdir={upper},workdir={WRITABLE}/work");
    mount("overlay", ROOT, "overlay", MountFlags::empty(), &layers)?;
    for dir in ["/dev", "/proc", "/sys"] {
        let to = format!("{ROOT}{dir}");
        make_dir(&to, 0o755)?;
        rustix::mount::mount_move(dir, &to)
            .map_err(|e| format!("cannot move {dir} to {to}: {e}"))?;
    }
    // The overlay holds its layers itself.
    for layer in [LOWER, WRITABLE] {
        rustix::mount::unmount(layer, UnmountFlags::DETACH).map_err(|e| format!("{layer}: {e}"))?;
    }
    switch_root().map_err(|e| format!("cannot make {ROOT} the root: {e}"))?;
    Ok(Entered {
        warnings,
        upper: opened,
    })
}

/// How much of the memory what is written to the root file system may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Half: the default of tmpfs(5).
    Half,
    /// Most of it: writing files is what the machine is for.
    Most,
}

/// Puts files of the machine's own over those of these names, so that they are no part of what is
/// written to the root file system. A name that is not there, or a link that leads nowhere, stays as it
/// is: smolbuild adds the files that should be there.
pub(super) fn cover(files: &[(&str, String)]) -> Result<(), String> {
    let staging = "/dev/shm/.cover";
    mount("tmpfs", staging, "tmpfs", NO_SUID_DEV, "mode=0755")?;
    for (number, (path, text)) in files.iter().enumerate() {
        if !fs::metadata(path).is_ok_and(|found| found.is_file()) {
            continue;
        }
        let ours = format!("{staging}/{number}");
        fs::write(&ours, text).map_err(|e| format!("{ours}: {e}"))?;
        rustix::mount::mount_bind(&ours, *path)
            .map_err(|e| format!("cannot put a file over {path}: {e}"))?;
    }
    // The files hold their file system themselves.
    rustix::mount::unmount(staging, UnmountFlags::DETACH).map_err(|e| format!("{staging}: {e}"))?;
    fs::remove_dir(staging).map_err(|e| format!("{staging}: {e}"))
}

/// What switch_root(8) does, for an initramfs whose only files are ours.
fn switch_root() -> io::Result<()> {
    std::env::set_current_dir(ROOT)?;
    for ours in ["/init", CONFIG_PATH, STEP_PATH] {
        match fs::remove_file(ours) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Mounts the EROFS image, its pages straight from the device where that is possible.
fn mount_lower(device: &str) -> Result<Vec<String>, String> {
    wait_for_device(device)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    let no_dax = match mount(device, LOWER, "erofs", flags, "dax=always") {
        // The kernel says so only in its log when the device has no DAX; its options tell.
        Ok(()) if mounted_with(LOWER, "dax") => return Ok(Vec::new()),
        Ok(()) => "the device or the kernel does not support it".to_owned(),
        Err(why) => {
            mount(device, LOWER, "erofs", flags, "")?;
            why
        }
    };
    Ok(vec![format!(
        "{device} is mounted without DAX, its file pages are copied into memory: {no_dax}"
    )])
}

/// Waits until the device is there. Its node is there a moment earlier (`device_add_disk` of Linux 6.1 makes
/// it in `device_add`, and what opens it in `bdev_add`): whoever opens it in between is told ENXIO.
fn wait_for_device(device: &str) -> Result<(), String> {
    let deadline = Instant::now() + DEVICE_LIMIT;
    loop {
        let found = match fs::metadata(device) {
            Ok(found) if !found.file_type().is_block_device() => {
                return Err(format!("{device} is not a block device"));
            }
            Ok(_) => File::open(device).map(drop),
            Err(e) => Err(e),
        };
        match found {
            Err(e) if Instant::now() >= deadline => {
                return Err(format!(
                    "{device} did not appear within {DEVICE_LIMIT:?}: {e}; is the root file system attached, and does the kernel have its driver?"
                ));
            }
            Err(e) if is_missing(&e) => sleep(Duration::from_millis(10)),
            // If it cannot be used, the mount says why.
            _ => return Ok(()),
        }
    }
}

/// Whether there is no such file, or no device behind it.
fn is_missing(error: &io::Error) -> bool {
    let no_device = Some(rustix::io::Errno::NXIO.raw_os_error());
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == no_device
}

/// Whether the mount at a path has an option that starts with these letters.
fn mounted_with(path: &str, option: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1).zip(line.split(' ').nth(3)))
        .any(|(at, options)| at == path && options.split(',').any(|o| o.starts_with(option)))
}

/// Mounts the rest, in the final root.
pub(super) fn late() -> Result<(), String> {
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "mode=0620,gid=5,ptmxmode=0666",
    )?;
    mount("tmpfs", "/dev/shm", "tmpfs", NO_SUID_DEV, "mode=1777")?;
    mount("tmpfs", "/tmp", "tmpfs", NO_SUID_DEV, "mode=1777")?;
    mount_run()?;
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", NO_SUID_EXEC, "")?;
    device_links().map_err(|e| format!("links in /dev: {e}"))
}

/// /run starts out empty, but for the directories of the image: packages put some there for
/// their service, with an owner.
fn mount_run() -> Result<(), String> {
    let staging = "/dev/shm/.run";
    mount("tmpfs", staging, "tmpfs", NO_SUID_DEV, "mode=0755")?;
    if Path::new("/run").is_dir() {
        copy_dirs(Path::new("/run"), Path::new(staging), 0)
            .map_err(|e| format!("directories of /run: {e}"))?;
    }
    make_dir("/run", 0o755)?;
    rustix::mount::mount_move(staging, "/run")
        .map_err(|e| format!("cannot move {staging} to /run: {e}"))?;
    fs::remove_dir(staging).map_err(|e| format!("{staging}: {e}"))
}

/// Copies a tree's directories with owner and mode, not following links.
fn copy_dirs(from: &Path, to: &Path, depth: u32) -> io::Result<()> {
    const DEEPEST: u32 = 64;
    let mut names: Vec<_> = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        if !entry.file_type()?.is_dir() || depth == DEEPEST {
            continue;
        }
        let metadata = entry.metadata()?;
        let copy = to.join(entry.file_name());
        fs::create_dir(&copy)?;
        chown(&copy, Some(metadata.uid()), Some(metadata.gid()))?;
        fs::set_permissions(&copy, Permissions::from_mode(metadata.mode() & 0o7777))?;
        copy_dirs(&entry.path(), &copy, depth + 1)?;
    }
    Ok(())
}

/// The links that devtmpfs leaves to user space.
fn device_links() -> io::Result<()> {
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (to, link) in links {
        match symlink(to, link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Mounts, making the mount point if it is missing.
fn mount(
    source: &str,
    at: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), String> {
    make_dir(at, 0o755)?;
    let options = CString::new(options).map_err(|_| format!("{at}: mount options with a NUL"))?;
    rustix::mount::mount(source, at, kind, flags, options.as_c_str())
        .map_err(|e| format!("cannot mount {kind} ({source}) at {at}: {e}"))
}

fn make_dir(path: &str, mode: u32) -> Result<(), String> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| format!("cannot make {path}: {e}"))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Dev, FileType, makedev, mknodat};

    use super::*;

    /// One that this system has.
    fn some_device() -> Option<Dev> {
        let listed = fs::read_to_string("/proc/partitions").ok()?;
        let line = listed.lines().nth(2)?;
        let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
        Some(makedev(numbers.next()?, numbers.next()?))
    }

    #[test]
    fn a_device_whose_node_is_there_before_it_is_awaited() {
        // Of a driver that nobody has.
        let none = makedev(4000, 7);
        let folder = tempfile::tempdir().unwrap();
        let [node, other] = ["node", "other"].map(|name| folder.path().join(name));
        let make = |path, device| mknodat(CWD, path, FileType::BlockDevice, Mode::RUSR, device);
        let Some(device) = some_device() else {
            return smol_testing::left_out("needs a block device");
        };
        if make(&node, none)
            .and_then(|()| make(&other, device))
            .is_err()
        {
            return smol_testing::left_out("needs root, to make device nodes");
        }
        let path = node.to_str().unwrap();
        let is_there = || !matches!(File::open(path), Err(e) if is_missing(&e));
        assert!(!is_there());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep(Duration::from_millis(50));
                fs::rename(&other, &node).unwrap();
            });
            wait_for_device(path).unwrap();
            assert!(is_there());
        });
    }
}
