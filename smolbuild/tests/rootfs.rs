//! The root file system and the initramfs: images against the tools that know their formats, hostile archives,
//! reproducibility.

#[path = "rootfs/archive.rs"]
mod archive;
#[path = "rootfs/base.rs"]
mod base;
#[path = "common/mod.rs"]
mod bundles;
#[path = "rootfs/common.rs"]
mod common;
#[path = "rootfs/host.rs"]
mod host;
#[path = "rootfs/image.rs"]
mod image;
#[path = "rootfs/initramfs.rs"]
mod initramfs;
#[path = "rootfs/readback.rs"]
mod readback;
#[path = "rootfs/system.rs"]
mod system;
