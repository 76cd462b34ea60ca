//! The root file system: from any source to one reproducible EROFS image.
//!
//! ```text
//! tar, layer ─┐
//! dir ────────┼─> tree ──> copy steps ──> erofs ──> image
//! debian ─tar─┘
//! ```

mod copy;
mod dir;
pub mod erofs;
mod layer;
mod tar;
pub mod tree;

pub use self::copy::CopySpec;
pub use self::dir::{DirOptions, Modes, Owner};
