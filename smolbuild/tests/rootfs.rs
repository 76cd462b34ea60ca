//! The root file system and the initramfs: what goes into them, from every kind of
//! source.

#[path = "rootfs/base.rs"]
mod base;
#[path = "common/mod.rs"]
mod bundles;
#[path = "../../crates/smol-rootfs/tests/codecs/common.rs"]
#[expect(dead_code, reason = "these tests use a part of it")]
mod common;
#[path = "rootfs/initramfs.rs"]
mod initramfs;
#[path = "rootfs/system.rs"]
mod system;
