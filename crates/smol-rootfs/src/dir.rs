//! Putting a host directory into a tree.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{getxattr, listxattr, major, minor};
use rustix::io::Errno;

use crate::Tree;
use crate::host::{self, Entry};
use crate::ignore::{Ignore, Verdict};
use crate::inode::{Device, FileData, HostFile, Inode, Meta, Node, Xattrs, is_linux_xattr};
use crate::limits::MAX_XATTR_VALUE;
use crate::path::{below, show};

/// Whose the files in the tree are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Owner, group and extended attributes (but SELinux labels, which belong to the host) as on
    /// the host.
    Keep,
    /// This user and group; no extended attributes.
    Fixed(u32, u32),
}

impl Owner {
    /// What a whole root file system wants: root's files keep their owners if we are root and can
    /// trust them, for anyone else all files were unpacked as that user and become root's.
    pub fn of_root_filesystem() -> Owner {
        if rustix::process::geteuid().is_root() {
            Owner::Keep
        } else {
            Owner::Fixed(0, 0)
        }
    }
}

/// What permissions files get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// The host's.
    Keep,
    /// 0755 for directories and executable files, 0644 for others: no trace of anyone's umask.
    Normal,
    /// This mode for files; directories too, searchable by whom it lets read.
    Fixed(u32),
}

/// What [`Tree::apply_dir`] takes, and how it maps metadata. Times become the epoch of the image.
#[derive(Clone, Debug)]
pub struct DirOptions {
    /// Owners.
    pub owner: Owner,
    /// Permissions.
    pub modes: Modes,
    /// What is left out.
    pub ignore: Ignore,
}

impl Modes {
    fn of(self, metadata: &Metadata) -> u32 {
        match self {
            Modes::Keep => metadata.mode() & 0o7777,
            Modes::Fixed(mode) if metadata.is_dir() => mode | (mode & 0o444) >> 2,
            Modes::Fixed(mode) => mode,
            Modes::Normal if metadata.is_dir() || metadata.mode() & 0o100 != 0 => 0o755,
            Modes::Normal => 0o644,
        }
    }
}

impl Tree {
    /// Puts the host directory `path` with all it holds at `dest` in the tree, over what is there;
    /// directories that are there keep their metadata. Symbolic links are taken as they are, never
    /// followed, and none may be in `path`. Contents stay on the host: they must not change until the tree is written.
    pub fn apply_dir(
        &mut self,
        path: &Path,
        dest: impl AsRef<[u8]>,
        options: &DirOptions,
    ) -> Result<()> {
        let found = look(path)?;
        ensure!(found.1.is_dir(), "{} is not a directory", path.display());
        self.insert(dest.as_ref(), host_inode(path, &found, options)?)?;
        self.apply_children(path, dest, options)
    }

    /// Like [`Tree::apply_dir`], for a `dest` that is a directory of the tree and stays as it is.
    pub(crate) fn apply_children(
        &mut self,
        path: &Path,
        dest: impl AsRef<[u8]>,
        options: &DirOptions,
    ) -> Result<()> {
        let dest = dest.as_ref();
        let mut seen = Seen::new();
        // Directories by their path relative to `path`, and whether they are in the tree.
        let mut todo = vec![(Vec::new(), true)];
        while let Some((directory, is_made)) = todo.pop() {
            let host = path.join(OsStr::from_bytes(&directory));
            let context = || format!("cannot read directory {}", host.display());
            for name in host::names(&host).with_context(context)? {
                self.budget().tick()?;
                let relative = below(&directory, &name.with_context(context)?);
                let found = look(&path.join(OsStr::from_bytes(&relative)))?;
                let verdict = options.ignore.verdict(&relative);
                if verdict == Verdict::Keep {
                    if !is_made {
                        self.put_directories(path, dest, &directory, options)?;
                    }
                    self.put_entry(path, dest, &relative, &found, options, &mut seen)?;
                }
                if found.1.is_dir() && verdict != Verdict::Skip {
                    todo.push((relative, verdict == Verdict::Keep));
                }
            }
        }
        Ok(())
    }

    /// Puts the entry `relative` of the host directory `path` below `dest`, but for a directory that
    /// is there: one over a link to a directory must not replace the link (think of /lib).
    fn put_entry(
        &mut self,
        path: &Path,
        dest: &[u8],
        relative: &[u8],
        found: &Found,
        options: &DirOptions,
        seen: &mut Seen,
    ) -> Result<()> {
        let host = path.join(OsStr::from_bytes(relative));
        let dest = below(dest, relative);
        if found.1.is_dir() && self.is_directory(&dest)? {
            return Ok(());
        }
        self.put(&host, found, &dest, options, seen)
            .with_context(|| format!("cannot take {} into the image", host.display()))
    }

    /// Puts the directory `relative`, and those above it, which are ignored: something in it is not.
    fn put_directories(
        &mut self,
        path: &Path,
        dest: &[u8],
        relative: &[u8],
        options: &DirOptions,
    ) -> Result<()> {
        let slashes = relative
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/');
        let ends: Vec<usize> = slashes.map(|(at, _)| at).chain([relative.len()]).collect();
        for part in ends.into_iter().map(|end| &relative[..end]) {
            let host = path.join(OsStr::from_bytes(part));
            self.put_entry(path, dest, part, &look(&host)?, options, &mut Seen::new())?;
        }
        Ok(())
    }

    /// Puts one host file at `dest`. A directory comes without its children.
    fn put(
        &mut self,
        host: &Path,
        found: &Found,
        dest: &[u8],
        options: &DirOptions,
        seen: &mut Seen,
    ) -> Result<()> {
        let meta = &found.1;
        let key = (meta.dev(), meta.ino());
        if let Some(first) = seen.get(&key) {
            self.hard_link(dest, first)?;
            return Ok(());
        }
        self.insert(dest, host_inode(host, found, options)?)?;
        if meta.nlink() > 1 && !meta.is_dir() {
            seen.insert(key, dest.to_vec());
        }
        Ok(())
    }

    /// Puts one host file (not a directory) at `dest`.
    pub(crate) fn put_file(
        &mut self,
        host: &Path,
        dest: &[u8],
        options: &DirOptions,
    ) -> Result<()> {
        self.put(host, &look(host)?, dest, options, &mut Seen::new())
    }
}

/// Files with several names by device and inode: the first name we gave them.
type Seen = HashMap<(u64, u64), Vec<u8>>;

/// What is at a host path.
type Found = (Entry, Metadata);

fn look(host: &Path) -> Result<Found> {
    let found = Entry::at(host).and_then(|entry| {
        let metadata = entry.metadata()?;
        Ok((entry, metadata))
    });
    found.with_context(|| format!("cannot read {}", host.display()))
}

fn host_inode(host: &Path, (entry, metadata): &Found, options: &DirOptions) -> Result<Inode> {
    let kind = metadata.file_type();
    let device = Device {
        major: major(metadata.rdev()),
        minor: minor(metadata.rdev()),
    };
    let node = if kind.is_dir() {
        Node::directory()
    } else if kind.is_file() {
        Node::File(FileData::Range {
            file: HostFile::Named(host.into()),
            offset: 0,
            len: metadata.len(),
        })
    } else if kind.is_symlink() {
        Node::Symlink(entry.target()?)
    } else if kind.is_char_device() {
        Node::CharDevice(device)
    } else if kind.is_block_device() {
        Node::BlockDevice(device)
    } else if kind.is_fifo() {
        Node::Fifo
    } else if kind.is_socket() {
        Node::Socket
    } else {
        bail!("an unknown type of file");
    };
    let (uid, gid, xattrs) = match options.owner {
        Owner::Keep => (metadata.uid(), metadata.gid(), host_xattrs(entry)?),
        Owner::Fixed(uid, gid) => (uid, gid, Xattrs::new()),
    };
    let mode = if kind.is_symlink() {
        0o777
    } else {
        options.modes.of(metadata)
    };
    Ok(Inode {
        meta: Meta {
            mode: mode & 0o7777,
            uid,
            gid,
            mtime: None,
            xattrs,
        },
        node,
    })
}

fn host_xattrs(entry: &Entry) -> Result<Xattrs> {
    let host = &entry.path();
    let mut xattrs = Xattrs::new();
    let mut names = vec![0; 1 << 16];
    let length = match listxattr(host, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP | Errno::PERM) => 0,
        Err(error) => return Err(error).context("cannot list extended attributes"),
    };
    for name in names[..length].split(|&byte| byte == 0) {
        if !is_linux_xattr(name) || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; MAX_XATTR_VALUE];
        let read = getxattr(host, OsStr::from_bytes(name), &mut value[..]);
        let length =
            read.with_context(|| format!("cannot read the extended attribute {}", show(name)))?;
        value.truncate(length);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}
