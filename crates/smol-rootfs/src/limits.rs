//! Every maximum of this crate: what archives and images from outside can make it hold and do.
//!
//! | reader | what grows with its input | bounded by |
//! |---|---|---|
//! | all | names, inodes, link targets, attributes of a [`Tree`](crate::Tree) | [`MAX_ENTRIES`], [`MAX_TREE_BYTES`] |
//! | all | work for links in paths | [`MAX_LINKS`] in one path, [`MAX_LINK_NAMES`] in all |
//! | tar, layer | an extended header; global records | [`MAX_EXTENSION`]; they are merged, and an attribute that reaches a member counts in its tree |
//! | a compressed archive | what it holds; memory to unpack it | [`MAX_UNPACKED`], [`MAX_ENTRIES`]; [`MAX_WINDOW_LOG`], [`MAX_XZ_MEMORY`] |
//! | EROFS | directories to be read | they are in the tree already; a directory has one name, and a name is in a directory once |
//! | EROFS | contents | no more than the image has bytes |
//! | patterns of what is left out | work for each path of a folder | [`MAX_PATTERNS`], each no longer than [`MAX_PATH`] |
//! | cpio | files with several names | each name counts in the tree when it is met |
//!
//! A tree within these limits takes less than 256 MiB, and writing it as an image less than 512 MiB in
//! all (a test holds that). Time is linear in the input but for sorted maps. All loops look at the
//! [`Watch`] of their tree.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;

/// Longest file name in bytes (`NAME_MAX` of Linux, and of EROFS).
pub const MAX_NAME: usize = 255;
/// Longest path, in the tree or of a symbolic link, in bytes (`PATH_MAX` less its NUL).
pub const MAX_PATH: usize = 4095;
/// Symbolic links followed in one path before it counts as a loop, as in Linux.
pub const MAX_LINKS: usize = 40;
/// Most names that come from symbolic links in all paths together: a link costs its reader little, and
/// forty long ones in the path of each member much.
pub const MAX_LINK_NAMES: u64 = 32 << 20;
/// Most insertions into one tree, and members of an archive that is unpacked.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// Most bytes of a tree's names, inodes, link targets and attributes, as estimated from above.
pub const MAX_TREE_BYTES: u64 = 192 << 20;
/// Largest extended attribute value in bytes (the size field of EROFS has 16 bits).
pub const MAX_XATTR_VALUE: usize = 65535;
/// Most bytes of extended attributes, names and values, of one inode.
pub const MAX_XATTRS: usize = 128 << 10;
/// Largest extended header of a tar archive (pax records, long name), in bytes.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// Most patterns in one list: each path of a folder is compared with all of them.
pub const MAX_PATTERNS: usize = 1000;
/// Most bytes that an archive may hold when it is unpacked: an image cannot be larger.
pub const MAX_UNPACKED: u64 = 64 << 30;
/// Largest window of a zstd frame, as a power of two: 128 MiB, what `zstd -d` takes without being asked.
pub const MAX_WINDOW_LOG: u32 = 27;
/// Most memory that unpacking xz may take, bytes: more than for `xz -9`.
pub const MAX_XZ_MEMORY: u64 = 128 << 20;
/// Largest account file that is read, in bytes.
pub const MAX_ACCOUNTS: u64 = 1 << 20;

/// Asked now and then whether to go on: its error ends what a tree is being used for.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<Check>>);

type Check = dyn Fn() -> Result<()> + Send + Sync;

impl Watch {
    /// Asks `check`.
    pub fn new(check: impl Fn() -> Result<()> + Send + Sync + 'static) -> Watch {
        Watch(Some(Arc::new(check)))
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |check| check())
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Watch"
        } else {
            "no watch"
        })
    }
}
