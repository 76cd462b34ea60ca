//! The root file system: from any source to one reproducible EROFS image.
//!
//! ```text
//! tar, layer ─┐
//! dir ────────┼─> tree ──> copy steps ──> erofs ──> image
//! debian ─tar─┤
//! bundle ─────┘
//! ```

pub mod base;
mod build;
mod copy;
pub mod debian;
mod dir;
pub mod erofs;
mod inode;
mod layer;
mod path;
mod tar;
pub mod tree;

pub use self::base::BaseSpec;
pub use self::build::{RootfsImage, RootfsSource, RootfsSpec, build, build_interruptible};
pub use self::copy::CopySpec;
pub use self::debian::{DebianSpec, PackagePin};
pub use self::dir::{DirOptions, Modes, Owner};
