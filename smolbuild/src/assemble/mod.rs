//! Assembling what a machine boots from: images on disk.

pub mod initramfs;
pub mod rootfs;
