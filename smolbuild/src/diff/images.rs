//! Kernel, initramfs and root file system: as bytes, and file by file where they hold files.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use smol_bundle::ImageKind;
use smol_cli::Interrupt;
use smol_rootfs::{Tree, cpio, erofs};

use super::files::{self, FileChange};
use super::pages::{self, PAGE, Side};
use crate::input::watch;

/// The largest kernel or initramfs that is looked into, bytes.
const MAX_BOOT_IMAGE: u64 = 128 << 20;

/// An image that is not the same in both bundles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageChange {
    /// Sizes in bytes; `null` for a bundle without the image.
    pub sizes: [Option<u64>; 2],
    /// Pages that differ.
    pub pages: u64,
    /// The first byte that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<u64>,
    /// What the kernels call themselves, if that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<[Option<String>; 2]>,
    /// What differs by file, in images that hold files.
    pub files: Vec<FileChange>,
    /// How many more files there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_files: u64,
    /// Why files could not be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opaque: Option<String>,
}

/// Compares an image; `None` if it is the same.
pub fn compare(
    a: &Side<'_>,
    b: &Side<'_>,
    kind: ImageKind,
    interrupt: &Interrupt,
) -> Result<Option<ImageChange>> {
    if pages::provably_same(a.bundle, b.bundle, kind) {
        return Ok(None);
    }
    let sizes = [a, b].map(|side| side.bundle.image_size(kind));
    let mut change = ImageChange {
        sizes,
        pages: 0,
        first_byte: None,
        versions: None,
        files: Vec::new(),
        more_files: 0,
        opaque: None,
    };
    if sizes.contains(&None) {
        return Ok(Some(change));
    }
    let ((path_a, x), (path_b, y)) = (a.image(kind, interrupt)?, b.image(kind, interrupt)?);
    let differing = pages::differing((a, &x), (b, &y), kind, interrupt)?.pages;
    let Some(first) = differing.first() else {
        // Only the lengths, or how it is stored; equal lengths are the same image.
        return Ok((sizes[0] != sizes[1]).then_some(change));
    };
    change.pages = differing.len() as u64;
    change.first_byte = Some(first_byte(&x, &y, *first)?);
    if kind == ImageKind::Kernel {
        let versions = [version(&path_a)?, version(&path_b)?];
        change.versions = (versions[0] != versions[1]).then_some(versions);
        return Ok(Some(change));
    }
    let tree = |path| tree(kind, path, interrupt);
    let trees = tree(&path_a).and_then(|a| Ok((a, tree(&path_b)?)));
    interrupt.check()?;
    match trees {
        Ok((a, b)) => {
            let changes = files::compare(&a, &b, interrupt)?;
            (change.files, change.more_files) = (changes.list, changes.more);
        }
        Err(error) => change.opaque = Some(format!("{error:#}")),
    }
    Ok(Some(change))
}

fn first_byte(x: &File, y: &File, page: u32) -> Result<u64> {
    let (mut left, mut right) = ([0; PAGE], [0; PAGE]);
    pages::read(x, page, &mut left)?;
    pages::read(y, page, &mut right)?;
    let same = left.iter().zip(&right).take_while(|(x, y)| x == y).count();
    Ok(u64::from(page) * PAGE as u64 + same as u64)
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn tree(kind: ImageKind, path: &Path, interrupt: &Interrupt) -> Result<Tree> {
    let tree = Tree::watched(watch(interrupt));
    match kind {
        ImageKind::Rootfs => erofs::read_into(tree, path),
        _ => cpio::read_into(tree, &small(path)?, path),
    }
}

/// What an uncompressed kernel calls itself.
fn version(path: &Path) -> Result<Option<String>> {
    let banner = regex::bytes::Regex::new(r"Linux version [\x20-\x7e]{1,400}");
    let banner = banner.context("a constant")?;
    // One that is too large says nothing.
    let Ok(image) = small(path) else {
        return Ok(None);
    };
    let found = banner.find(&image);
    Ok(found.map(|found| String::from_utf8_lossy(found.as_bytes()).into_owned()))
}

fn small(path: &Path) -> Result<Vec<u8>> {
    let size = path.metadata().map_or(0, |m| m.len());
    anyhow::ensure!(
        size <= MAX_BOOT_IMAGE,
        "it has {size} bytes (at most {MAX_BOOT_IMAGE})"
    );
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
