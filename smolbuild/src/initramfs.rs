//! The initramfs of a machine: smol-guest as PID 1, and its configuration.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use smol_protocol::step::{STEP_PATH, StepConfig};
use smol_protocol::{CONFIG_PATH, GuestConfig};
use smol_rootfs::{Device, Inode, Meta, Node, Tree, cpio};

/// smol-guest, the guest's PID 1: built with this program and part of it.
pub const GUEST_BINARY: &[u8] = include_bytes!(env!("SMOL_GUEST_BINARY"));

/// The initramfs of a smol machine: `guest_binary` as /init, the file `config_json` at `config_path`, a
/// console node (the kernel opens /dev/console for init before anything is mounted) and the mount
/// points init needs.
pub fn smol_initramfs(guest_binary: &[u8], config_path: &str, config_json: &[u8]) -> Result<Tree> {
    let mut tree = Tree::new();
    for (path, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("run", 0o755),
        ("mnt", 0o755),
    ] {
        tree.mkdir(path, mode)?;
    }
    for (path, major, minor) in [
        ("dev/console", 5, 1),
        ("dev/null", 1, 3),
        ("dev/kmsg", 1, 11),
    ] {
        let node = Node::CharDevice(Device { major, minor });
        tree.insert(
            path,
            Inode {
                meta: Meta::root(0o600),
                node,
            },
        )?;
    }
    tree.file("init", 0o755, guest_binary.to_vec())?;
    tree.file(config_path, 0o644, config_json.to_vec())?;
    Ok(tree)
}

/// Writes the initramfs of a machine with the configuration `guest` to the file `out`.
///
/// # Errors
/// The file cannot be written.
pub fn build(guest: &GuestConfig, out: &Path) -> Result<()> {
    let tree = smol_initramfs(GUEST_BINARY, CONFIG_PATH, &serde_json::to_vec(guest)?)?;
    write(&tree, out)
}

/// Writes the initramfs of a build step's machine to the file `out`.
///
/// # Errors
/// The file cannot be written.
pub fn build_step(step: &StepConfig, out: &Path) -> Result<()> {
    let tree = smol_initramfs(GUEST_BINARY, STEP_PATH, &serde_json::to_vec(step)?)?;
    write(&tree, out)
}

fn write(tree: &Tree, out: &Path) -> Result<()> {
    let fail = || format!("cannot write {}", out.display());
    let mut file = BufWriter::new(File::create(out).with_context(fail)?);
    cpio::write(tree, &mut file)
        .and_then(|_| Ok(file.flush()?))
        .with_context(fail)
}
