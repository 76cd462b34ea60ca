//! Assembling what a machine boots from: images on disk.

mod images;
pub mod rootfs;

pub use images::{Images, Site, assemble};
