//! The root file system and the initramfs: what goes into them, from every kind of
//! source.

#[path = "rootfs/base.rs"]
mod base;
#[path = "common/mod.rs"]
mod bundles;
#[path = "../../crates/smol-rootfs/tests/codecs/common.rs"]
#[expect(dead_code, reason = "these tests use a part of it")]
mod common;
#[path = "rootfs/image.rs"]
mod image;
#[path = "rootfs/initramfs.rs"]
mod initramfs;
#[path = "rootfs/system.rs"]
mod system;

use std::path::Path;

use anyhow::Result;
use smol_cli::Interrupt;
use smol_rootfs::CopySpec;
use smolbuild::input::{Input, InputDirs};
use smolbuild::lock::{Builder, InputFile, Lock, VERSION};
use smolbuild::rootfs::{self, RootfsImage};

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
        runs: Vec::new(),
    }
}

/// Builds the image `out` of an input with these files copied over it, as a build does.
fn build(
    input: &dyn Input,
    lock: &Lock,
    copies: &[CopySpec],
    epoch: u64,
    dirs: &InputDirs,
    out: &Path,
) -> Result<RootfsImage> {
    let interrupt = Interrupt::detached()?;
    let mut loaded = input.load(lock, dirs, &mut |_| {}, &interrupt)?;
    for copy in copies {
        loaded.tree.copy(copy)?;
    }
    rootfs::write(&mut loaded.tree, epoch, input.mtimes(), out)
}
