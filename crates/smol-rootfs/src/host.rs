//! Files of the host, opened without following symbolic links.
//!
//! Whoever names a file finds out first where links lead, and whether that is a place it may be
//! (`fs::canonicalize`). What is opened afterwards is that place or nothing: a folder or file that was
//! replaced by a link meanwhile is an error.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat};
use rustix::io::{Errno, retry_on_intr};

/// Opens a file for reading, of which no part of the path may be a symbolic link. A named pipe does
/// not block.
///
/// # Errors
/// Those of openat2(2): ELOOP for a link.
pub fn open(path: &Path) -> io::Result<File> {
    Ok(open_as(path, OFlags::RDONLY | OFlags::NONBLOCK)?.into())
}

/// What is at a path: it cannot be read, but looked at. The last part of the path may be a link, and
/// is then this link.
pub(crate) struct Entry(File);

impl Entry {
    pub(crate) fn at(path: &Path) -> io::Result<Entry> {
        Ok(Entry(
            open_as(path, OFlags::PATH | OFlags::NOFOLLOW)?.into(),
        ))
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata()
    }

    /// The target, if it is a link.
    pub(crate) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.0, "", Vec::new())?.into_bytes())
    }

    /// A path to it, whatever has its name now; for system calls that follow its last part.
    pub(crate) fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// The names in a folder, of which no part of the path may be a link.
pub(crate) fn names(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>>> {
    let entries = Dir::new(open_as(folder, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_bytes().to_vec()));
    Ok(names.filter(|name| !matches!(name.as_deref(), Ok(b"." | b".."))))
}

fn open_as(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    let open = || openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    // File systems of a network or of a process (FUSE) can be interrupted.
    match retry_on_intr(open) {
        // Linux before 5.6, and containers whose filters do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => part_by_part(path, flags),
        opened => Ok(opened?),
    }
}

/// As openat2(2) with RESOLVE_NO_SYMLINKS.
fn part_by_part(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let parts: Vec<&OsStr> = path.components().map(Component::as_os_str).collect();
    let (last, parents) = parts.split_last().ok_or(Errno::NOENT)?;
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(CWD, ".", step, Mode::empty())?;
    for part in parents {
        at = openat(&at, part.as_bytes(), step, Mode::empty())
            // What a link is for these flags: open(2).
            .map_err(|error| if error == Errno::NOTDIR { Errno::LOOP } else { error })?;
    }
    Ok(openat(
        &at,
        last.as_bytes(),
        flags | OFlags::NOFOLLOW,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_that_became_a_link_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let place = |name: &str| scratch.path().join(name);
        fs::create_dir(place("real")).unwrap();
        fs::write(place("real/file"), "x").unwrap();
        symlink("real", place("link")).unwrap();
        symlink("file", place("real/last")).unwrap();
        let read = OFlags::RDONLY;
        for open in [open_as, part_by_part] {
            assert!(open(&place("real/file"), read).is_ok());
            for path in ["link/file", "real/last"] {
                let error = open(&place(path), read).unwrap_err();
                assert_eq!(
                    error.raw_os_error(),
                    Some(Errno::LOOP.raw_os_error()),
                    "{path}"
                );
            }
            let link = open(&place("real/last"), OFlags::PATH | OFlags::NOFOLLOW).unwrap();
            assert_eq!(Entry(link.into()).target().unwrap(), b"file");
        }
        assert!(names(&place("link")).is_err());
        let mut found: Vec<_> = names(&place("real")).unwrap().map(Result::unwrap).collect();
        found.sort();
        assert_eq!(found, [b"file".to_vec(), b"last".to_vec()]);
    }
}
