//! A file tree in memory, and the formats that it is read from and written as.
//!
//! ```text
//! dir  (a folder of the host) ──┐
//! tar, layer (an OCI layer) ────┼─> tree ──> erofs (root file system image)
//! copy (one file or folder) ────┤      └───> cpio  (initramfs)
//! erofs, cpio (images) ─────────┘
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | [`tree`], `inode`, `path` | the tree, what is in it, how paths are resolved inside it |
//! | `dir`, `copy`, [`host`] | files of the host into a tree |
//! | [`ignore`] | which of them are left out |
//! | [`compression`], `unpack` | archives that are compressed, and unpacking them |
//! | `tar`, `layer` | tar archives and OCI layers into a tree |
//! | [`limits`], `budget` | every maximum, and what a tree has used of them |
//! | [`erofs`], [`cpio`] | images from a tree, and a tree from an image |
//!
//! Archives and images are hostile input: every length and offset is checked, and [`limits`] has what
//! they can make a tree hold. No path of an archive is ever looked up on the host. Output depends on
//! the tree alone: the same tree gives the same bytes.

mod budget;
pub mod compression;
mod copy;
pub mod cpio;
mod dir;
pub mod erofs;
pub mod host;
pub mod ignore;
mod inode;
mod layer;
pub mod limits;
mod path;
mod tar;
pub mod tree;
mod unpack;

pub use self::copy::CopySpec;
pub use self::dir::{DirOptions, Modes, Owner};
pub use self::ignore::Ignore;
pub use self::inode::{Device, FileData, HostFile, Inode, Meta, Name, Node, Xattrs};
pub use self::limits::Watch;
pub use self::tree::{InodeId, Tree};
pub use self::unpack::unpack;
