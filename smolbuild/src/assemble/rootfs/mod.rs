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
pub mod debian;

pub use self::base::BaseSpec;
pub use self::build::{RootfsImage, RootfsSource, RootfsSpec, build, build_interruptible};
pub use self::debian::{DebianSpec, PackagePin};
