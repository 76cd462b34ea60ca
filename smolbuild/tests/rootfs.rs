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

use smolbuild::lock::{Builder, InputFile, Lock, VERSION};

/// A lock that pins these files and nothing else.
fn lock(files: Vec<InputFile>) -> Lock {
    Lock {
        version: VERSION,
        builder: Builder {
            smolbuild: "1".into(),
            bundle_format: 1,
            guest_sha256: "0".repeat(64),
            epoch: 0,
        },
        kernel: None,
        debian: None,
        image: None,
        files,
        copies: Vec::new(),
    }
}
