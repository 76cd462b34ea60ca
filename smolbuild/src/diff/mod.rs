//! What differs between two bundles.
//!
//! | module | section |
//! |---|---|
//! | [`manifest`] | configuration, parent, Smolfile, lock |
//! | [`images`], [`files`] | kernel, initramfs and root file system, by file |
//! | [`state`] | vCPUs and devices, by path |
//! | [`memory`], [`guest`] | pages of memory, by owner |
//! | [`pages`], [`values`] | what these stand on: images by page, documents by key |
//! | [`summary`] | owners of pages by kind |
//! | [`report`] | all of it as text |
//!
//! Nothing is read that has not been verified: images are unpacked by the bundle's own reader,
//! frame by frame, into a temporary folder, and what the page indexes prove to be equal is left out.
//! What is inside of images is hostile all the same, see [`guest::ram`] and
//! [`smol_rootfs::erofs::read`].

pub mod files;
pub mod guest;
pub mod images;
pub mod manifest;
pub mod memory;
pub mod pages;
pub mod report;
pub mod state;
pub mod summary;
pub mod values;

use anyhow::Result;
use serde::Serialize;
use smol_bundle::{Bundle, ImageKind};
use smol_cli::Interrupt;

use self::images::ImageChange;
use self::memory::Memory;
use self::pages::Side;
use self::values::Change;
use crate::work::WorkDir;

/// Everything in which two bundles differ. As JSON it is what docs/cli.md describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Digests of the first and the second bundle.
    pub digests: [String; 2],
    /// Configuration, parent, Smolfile, lock.
    pub manifest: Vec<Change>,
    /// The kernel.
    pub kernel: Option<ImageChange>,
    /// The initramfs.
    pub initramfs: Option<ImageChange>,
    /// The root file system.
    pub rootfs: Option<ImageChange>,
    /// State of vCPUs and devices.
    pub state: Vec<Change>,
    /// Memory.
    pub memory: Memory,
}

impl Report {
    /// Whether the bundles are the same: have one digest. Signatures have no part in it.
    pub fn is_same(&self) -> bool {
        self.digests[0] == self.digests[1]
    }

    fn of_digests(a: &Bundle, b: &Bundle) -> Self {
        Report {
            digests: [a, b].map(|bundle| bundle.digest().to_string()),
            manifest: Vec::new(),
            kernel: None,
            initramfs: None,
            rootfs: None,
            state: Vec::new(),
            memory: Memory::default(),
        }
    }
}

/// Compares two bundles. Images that may differ are unpacked into `folder`.
///
/// Whatever the bundles hold, it takes less than 512 MiB of memory: of pages of memory the first
/// [`memory::MAX_PLACES`] are looked into, of files [`files::MAX_CHANGES`] are told, of documents
/// [`values::MAX_CHANGES`] values, and larger documents are compared as bytes.
///
/// # Errors
/// Frames and blobs that do not verify (exit code 4), a full disk, an interrupt.
pub fn compare(a: &Bundle, b: &Bundle, folder: &WorkDir, interrupt: &Interrupt) -> Result<Report> {
    let mut report = Report::of_digests(a, b);
    if report.is_same() {
        return Ok(report);
    }
    let place = folder.path().canonicalize()?;
    let a = Side::new(a, &place.join("a"))?;
    let b = Side::new(b, &place.join("b"))?;
    report.manifest = manifest::compare(a.bundle, b.bundle)?;
    for (kind, change) in [
        (ImageKind::Kernel, &mut report.kernel),
        (ImageKind::Initramfs, &mut report.initramfs),
        (ImageKind::Rootfs, &mut report.rootfs),
    ] {
        interrupt.check()?;
        *change = images::compare(&a, &b, kind, interrupt)?;
    }
    report.state = state::compare(a.bundle, b.bundle)?;
    interrupt.check()?;
    report.memory = memory::compare(&a, &b, interrupt)?;
    Ok(report)
}
