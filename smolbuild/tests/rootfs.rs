//! The root file system: images against the EROFS tools, hostile archives, reproducibility.

#[path = "rootfs/common.rs"]
mod common;
#[path = "rootfs/image.rs"]
mod image;
