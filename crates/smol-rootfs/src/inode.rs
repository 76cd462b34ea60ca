//! What a tree is made of: inodes, their metadata, and where contents are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::limits::{MAX_NAME, MAX_PATH, MAX_XATTR_VALUE, MAX_XATTRS};
use crate::path::show;
use crate::{InodeId, host};

/// Extended attributes: full name (`security.capability`) to value.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What every inode has besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission, set-id and sticky bits: at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970, if the input's is worth keeping; otherwise the
    /// epoch of the image.
    pub mtime: Option<u64>,
    /// Extended attributes by full name.
    pub xattrs: Xattrs,
}

impl Meta {
    /// Owned by root, no attributes, dated with the epoch of the image.
    pub fn root(mode: u32) -> Meta {
        Meta {
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            mtime: None,
            xattrs: Xattrs::new(),
        }
    }
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The inode, which may have other names.
    pub inode: InodeId,
    /// The layer of an image that brought the name, or that mentions it: 1 for the lowest; 0 for all
    /// that is of no layer.
    pub(crate) layer: u16,
}

/// The content of an inode, which is also its type.
#[derive(Clone, Debug)]
pub enum Node {
    /// A directory: names in byte order, without `.` and `..`.
    Directory(BTreeMap<Box<[u8]>, Name>),
    /// A regular file.
    File(FileData),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket's name.
    Socket,
}

impl Node {
    /// An empty directory.
    pub fn directory() -> Node {
        Node::Directory(BTreeMap::new())
    }

    /// The file type bits of `st_mode` (inode(7)).
    pub fn type_bits(&self) -> u32 {
        match self {
            Node::Fifo => 0o010000,
            Node::CharDevice(_) => 0o020000,
            Node::Directory(_) => 0o040000,
            Node::BlockDevice(_) => 0o060000,
            Node::File(_) => 0o100000,
            Node::Symlink(_) => 0o120000,
            Node::Socket => 0o140000,
        }
    }
}

/// A device number. Linux has 12 bits of major and 20 of minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// The driver's device.
    pub minor: u32,
}

/// An inode: several names may share it (hard links).
#[derive(Clone, Debug)]
pub struct Inode {
    /// Mode, owner, time, attributes.
    pub meta: Meta,
    /// Type and content.
    pub node: Node,
}

/// Where the bytes of a file are.
#[derive(Clone, Debug)]
pub enum FileData {
    /// In memory: small generated files.
    Bytes(Arc<[u8]>),
    /// A range of a host file: all of it, or a member of an archive.
    Range {
        /// The host file.
        file: HostFile,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// A file of the host.
#[derive(Clone, Debug)]
pub enum HostFile {
    /// Opened when it is read, without following links: no part of the path may be one.
    Named(Arc<Path>),
    /// Open; the path is for messages.
    Open(Arc<File>, Arc<Path>),
}

/// Reads a file from an offset on, whatever else is read from it.
struct Cursor<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(bytes, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl FileData {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            FileData::Bytes(bytes) => bytes.len() as u64,
            FileData::Range { len, .. } => *len,
        }
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens for reading from the first byte. The reader ends early if the host file has shrunk.
    pub fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        match self {
            FileData::Bytes(bytes) => Ok(Box::new(&bytes[..])),
            FileData::Range { file, offset, len } => match file {
                HostFile::Named(path) => {
                    let mut file = host::open(path)?;
                    file.seek(SeekFrom::Start(*offset))?;
                    Ok(Box::new(file.take(*len)))
                }
                HostFile::Open(file, _) => {
                    let offset = *offset;
                    Ok(Box::new(Cursor { file, offset }.take(*len)))
                }
            },
        }
    }

    /// Copies everything to `out`; a host file that became shorter is an error.
    pub fn copy_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let copied = io::copy(&mut self.open()?, out)?;
        if copied != self.len() {
            return Err(self.shrunk(copied));
        }
        Ok(())
    }

    /// The error for a source that gave only `read` bytes.
    pub fn shrunk(&self, read: u64) -> io::Error {
        let name = match self {
            FileData::Bytes(_) => "memory".into(),
            FileData::Range {
                file: HostFile::Named(path) | HostFile::Open(_, path),
                ..
            } => path.display().to_string(),
        };
        let text = format!(
            "{name} changed while it was read: {read} of {} bytes are left",
            self.len()
        );
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    }
}

impl From<Vec<u8>> for FileData {
    fn from(bytes: Vec<u8>) -> FileData {
        FileData::Bytes(bytes.into())
    }
}

impl Inode {
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.node, Node::Directory(_))
    }

    /// Whether all of it is within the limits of Linux and of the images.
    pub(crate) fn check(&self) -> Result<()> {
        if let Node::Symlink(target) = &self.node {
            ensure!(!target.is_empty(), "a symbolic link without a target");
            ensure!(
                target.len() <= MAX_PATH,
                "a symbolic link target of {} bytes (at most {MAX_PATH})",
                target.len()
            );
            ensure!(
                !target.contains(&0),
                "a symbolic link target with a NUL byte"
            );
        }
        if let Node::CharDevice(device) | Node::BlockDevice(device) = &self.node {
            let (major, minor) = (device.major, device.minor);
            ensure!(
                major < 1 << 12 && minor < 1 << 20,
                "device number {major}:{minor} is out of range"
            );
        }
        let mut total = 0;
        for (name, value) in &self.meta.xattrs {
            ensure!(
                name.len() <= MAX_NAME && !name.contains(&0),
                "extended attribute with a bad name {}",
                show(name)
            );
            let len = value.len();
            ensure!(
                len <= MAX_XATTR_VALUE,
                "extended attribute {} of {len} bytes (at most {MAX_XATTR_VALUE})",
                show(name)
            );
            total += name.len() + len;
        }
        ensure!(
            total <= MAX_XATTRS,
            "{total} bytes of extended attributes (at most {MAX_XATTRS})"
        );
        Ok(())
    }
}

/// Whether this extended attribute means something to Linux; others (of other systems) are left out
/// of images.
pub(crate) fn is_linux_xattr(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}
