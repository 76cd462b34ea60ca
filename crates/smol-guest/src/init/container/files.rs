//! The files of an init's environment: devices with a console, and what systemd is told in /run. Nothing of
//! the image is changed.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr};

use super::super::platform::ioctl;
use super::MANAGER;

/// Where the devices of the init wait until its mount namespace is there.
pub(super) const DEVICES: &CStr = c"/run/smol/dev";
const DEVICES_PATH: &str = "/run/smol/dev";
/// Devices that containers have, and two more that our kernel has for everybody. Those that the kernel does
/// not have are left out.
const NODES: [&str; 8] = [
    "null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun",
];
const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];
/// The drop-ins come before those of the image, which may say otherwise.
const DROP_INS: [(&str, &str); 3] = [
    (
        // Of systemd; it would fail the unit that applies it.
        "run/sysctl.d/50-pid-max.conf",
        "# In place of the file of this name, whose number this kernel does not take.\n",
    ),
    (
        "run/systemd/journald.conf.d/00-smol.conf",
        "# What is logged is the machine's log, too.\n[Journal]\nForwardToConsole=yes\nMaxLevelConsole=info\n",
    ),
    (
        "run/systemd/system.conf.d/00-smol.conf",
        "# The journal tells the same on the console.\n[Manager]\nShowStatus=no\nLogColor=no\n",
    ),
];
/// Units that make no sense here: nobody types at the console.
const MASKED: [&str; 1] = ["console-getty.service"];

/// The end of a terminal that is the init's /dev/console.
#[derive(Debug)]
pub(in super::super) struct Console {
    /// Reads what is written to the console; does not block.
    pub(in super::super) master: File,
    pub(in super::super) lines: Lines,
}

/// What becomes of a console's lines.
#[derive(Debug)]
pub(in super::super) struct Lines {
    path: String,
    /// The other end, kept open: with none, reading fails.
    _slave: File,
    /// A carriage return was the last that was read.
    carriage_return: bool,
}

impl Lines {
    /// Ends lines as files do: whoever resets the terminal makes it end them with carriage return, too.
    pub(in super::super) fn unix(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 1);
        for &byte in bytes {
            if std::mem::take(&mut self.carriage_return) && byte != b'\n' {
                out.push(b'\r');
            }
            match byte {
                b'\r' => self.carriage_return = true,
                _ => out.push(byte),
            }
        }
        out
    }
}

/// Makes /dev of the init, aside, with a new terminal as its console.
pub(super) fn make_devices() -> Result<Console, String> {
    let failed = |what: &str, e: io::Error| format!("{DEVICES_PATH}/{what}: {e}");
    fs::create_dir_all(DEVICES_PATH).map_err(|e| failed("", e))?;
    let no_suid_exec = MountFlags::NOSUID | MountFlags::NOEXEC;
    let mount = |source: &CStr, at: &str, kind: &CStr, flags: MountFlags, options: &CStr| {
        let at = format!("{DEVICES_PATH}{at}");
        fs::create_dir_all(&at).map_err(|e| format!("{at}: {e}"))?;
        rustix::mount::mount(source, &at, kind, flags, options)
            .map_err(|e| format!("cannot mount {} at {at}: {e}", kind.to_string_lossy()))
    };
    mount(c"tmpfs", "", c"tmpfs", no_suid_exec, c"mode=0755,size=4m")?;
    let options = c"mode=0620,gid=5,ptmxmode=0666";
    mount(c"devpts", "/pts", c"devpts", no_suid_exec, options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(c"tmpfs", "/shm", c"tmpfs", flags, c"mode=1777")?;
    for node in NODES {
        copy_node(node).map_err(|e| failed(node, e))?;
    }
    for (to, link) in LINKS {
        symlink(to, format!("{DEVICES_PATH}/{link}")).map_err(|e| failed(link, e))?;
    }
    let console = make_console().map_err(|e| failed("console", e))?;
    let at = format!("{DEVICES_PATH}/console");
    fs::write(&at, "")
        .and_then(|()| Ok(rustix::mount::mount_bind(&console.lines.path, &at)?))
        .map_err(|e| failed("console", e))?;
    Ok(console)
}

/// Makes a device that the machine has.
fn copy_node(node: &str) -> io::Result<()> {
    let device = match fs::metadata(format!("/dev/{node}")) {
        Ok(device) if device.file_type().is_char_device() => device,
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => return Ok(()),
    };
    let path = format!("{DEVICES_PATH}/{node}");
    if let Some(folder) = Path::new(&path).parent() {
        fs::create_dir_all(folder)?;
    }
    let kind = FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, &path, kind, Mode::empty(), device.rdev())?;
    fs::set_permissions(&path, Permissions::from_mode(device.mode() & 0o777))
}

/// Makes the console. It is a terminal of the machine, not one of those that the init makes.
fn make_console() -> io::Result<Console> {
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ptmx")?;
    let mut number: libc::c_int = 0;
    // The lock is off when this is zero (ioctl_tty(2)).
    ioctl(&master, libc::TIOCSPTLCK as libc::Ioctl, &mut number)?;
    ioctl(&master, libc::TIOCGPTN as libc::Ioctl, &mut number)?;
    rustix::io::ioctl_fionbio(master.as_fd(), true)?;
    let path = format!("/dev/pts/{number}");
    let slave = open_terminal(&path)?;
    let mut terminal = tcgetattr(&slave)?;
    terminal.output_modes -= OutputModes::OPOST;
    tcsetattr(&slave, OptionalActions::Now, &terminal)?;
    let lines = Lines {
        path,
        _slave: slave,
        carriage_return: false,
    };
    Ok(Console { master, lines })
}

fn open_terminal(path: &str) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    // It must not become the terminal that controls us.
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    options.open(path)
}

/// Takes the devices out of our own mount namespace: the init has them.
pub(super) fn forget_devices() -> Result<(), String> {
    rustix::mount::unmount(DEVICES, UnmountFlags::DETACH)
        .map_err(|e| format!("{DEVICES_PATH}: {e}"))?;
    fs::remove_dir(DEVICES_PATH).map_err(|e| format!("{DEVICES_PATH}: {e}"))
}

/// Tells programs that cannot see the environment of PID 1 what they run in.
pub(super) fn tell_manager() -> Result<(), String> {
    let path = "/run/host/container-manager";
    fs::create_dir_all("/run/host")
        .and_then(|()| fs::write(path, MANAGER))
        .map_err(|e| format!("{path}: {e}"))
}

/// Tells systemd, below this root, what is different here: by files in /run, which those in /etc override.
pub(super) fn configure_systemd(root: &Path) -> Result<(), String> {
    let failed = |path: &Path, e: io::Error| format!("{}: {e}", path.display());
    for (path, text) in DROP_INS {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(root)).map_err(|e| failed(&path, e))?;
        fs::write(&path, text).map_err(|e| failed(&path, e))?;
    }
    let units = root.join("run/systemd/system");
    fs::create_dir_all(&units).map_err(|e| failed(&units, e))?;
    for unit in MASKED {
        let path = units.join(unit);
        symlink("/dev/null", &path).map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

/// Journals are in folders named by the machine id: those of the old one are found under the new one, too.
pub(super) fn link_journals(root: &Path, old: &str, new: &str) -> io::Result<()> {
    for journals in ["run/log/journal", "var/log/journal"] {
        let journals = root.join(journals);
        if !journals.join(old).is_dir() {
            continue;
        }
        match symlink(old, journals.join(new)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines {
        Lines {
            path: String::new(),
            _slave: File::open("/dev/null").unwrap(),
            carriage_return: false,
        }
    }

    #[test]
    fn carriage_returns_at_the_end_of_lines_are_left_out_also_between_two_reads() {
        let mut lines = lines();
        let mut read = Vec::new();
        for bytes in [&b"one\r\ntwo\r"[..], b"\nhalf\rway\r", b"on\n"] {
            read.extend(lines.unix(bytes));
        }
        assert_eq!(read, b"one\ntwo\nhalf\rway\ron\n");
    }

    #[test]
    fn a_console_that_was_hung_up_is_still_read() {
        use std::io::{ErrorKind, Read as _, Write as _};
        let console = make_console().unwrap();
        let read = || {
            let mut bytes = [0; 64];
            let read = (&console.master).read(&mut bytes);
            read.map(|n| String::from_utf8_lossy(&bytes[..n]).into_owned())
        };
        let writer = open_terminal(&console.lines.path).unwrap();
        (&writer).write_all(b"before\n").unwrap();
        assert_eq!(read().unwrap(), "before\n");
        assert_eq!(read().unwrap_err().kind(), ErrorKind::WouldBlock);
        if let Err(e) = ioctl(&writer, libc::TIOCVHANGUP as libc::Ioctl, &mut ()) {
            // It takes a privilege.
            assert_eq!(e.kind(), ErrorKind::PermissionDenied);
            return;
        }
        drop(writer);
        let mut writer = open_terminal(&console.lines.path).unwrap();
        writer.write_all(b"after\n").unwrap();
        assert!(read().unwrap().starts_with("after"));
        drop(writer);
        // Without an end of ours it would be an error, and what is read from then on.
        assert_eq!(read().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn journals_are_found_under_the_new_machine_id() {
        let dir = tempfile::tempdir().unwrap();
        let journals = dir.path().join("run/log/journal");
        fs::create_dir_all(journals.join("0a")).unwrap();
        fs::write(journals.join("0a/system.journal"), "entries").unwrap();
        for _ in 0..2 {
            link_journals(dir.path(), "0a", "0b").unwrap();
        }
        let found = fs::read_to_string(journals.join("0b/system.journal")).unwrap();
        assert_eq!(found, "entries");
        assert!(!dir.path().join("var").exists());
    }

    #[test]
    fn what_systemd_is_told_is_in_run_alone() {
        let dir = tempfile::tempdir().unwrap();
        configure_systemd(dir.path()).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let journald = dir.path().join("run/systemd/journald.conf.d/00-smol.conf");
        let text = fs::read_to_string(journald).unwrap();
        assert!(text.contains("\nForwardToConsole=yes\n"), "{text}");
        let masked = dir.path().join("run/systemd/system/console-getty.service");
        assert_eq!(fs::read_link(masked).unwrap(), Path::new("/dev/null"));
    }
}
