//! The page index: for every page of every image, where its bytes are.
//!
//! `codec` holds the bytes and the checks, this file what they mean.

mod codec;
#[cfg(test)]
mod tests;

pub(crate) use codec::Flaw;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::format::limits::PAGE_SIZE;

/// The images that a bundle can hold, in the order in which they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageKind {
    /// The guest kernel, an ELF or bzImage file.
    Kernel,
    /// The initial RAM file system, a cpio archive.
    Initramfs,
    /// The root file system.
    Rootfs,
    /// Guest RAM at the snapshot.
    Memory,
}

impl ImageKind {
    /// Every kind, in order.
    pub const ALL: [ImageKind; 4] = [
        ImageKind::Kernel,
        ImageKind::Initramfs,
        ImageKind::Rootfs,
        ImageKind::Memory,
    ];

    /// Returns the kind's name: `kernel`, `initramfs`, `rootfs` or `memory`.
    pub fn name(self) -> &'static str {
        match self {
            ImageKind::Kernel => "kernel",
            ImageKind::Initramfs => "initramfs",
            ImageKind::Rootfs => "rootfs",
            ImageKind::Memory => "memory",
        }
    }

    fn from_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    pub(crate) fn id(self) -> u8 {
        self as u8
    }
}

impl std::fmt::Display for ImageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The page index of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageIndex {
    images: Vec<Image>,
}

/// One image's part of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    kind: ImageKind,
    size: u64,
    frames: Vec<Frame>,
    extents: Vec<Extent>,
    working_set: Vec<Run>,
}

/// Pages side by side in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first page's number.
    pub first: u32,
    /// Pages, at least 1.
    pub pages: u32,
    /// Whether the machine is known to write to them, too.
    pub written: bool,
}

impl Run {
    /// Returns the number after its last page's; `None` beyond what a number can be.
    pub fn end(self) -> Option<u32> {
        self.first.checked_add(self.pages)
    }

    /// Returns whether a run with this first page and of this kind would be one with it.
    fn continues_with(self, first: u32, written: bool) -> bool {
        self.end() == Some(first) && self.written == written
    }
}

/// A frame: consecutive stored pages, compressed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where the compressed bytes begin in the image's frames blob. The frames lie one behind the
    /// other, so this is a sum and not a stored number.
    pub offset: u64,
    /// Number of the frame's first page among the image's stored pages.
    pub first_slot: u32,
    /// Compressed bytes.
    pub len: u32,
    /// Pages.
    pub pages: u32,
    /// blake3 of the compressed bytes.
    pub hash: [u8; 32],
}

/// A run of pages of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The run's first page in the image. A sum, not a stored number.
    pub first_page: u32,
    /// Pages in the run.
    pub pages: u32,
    /// Where their bytes are.
    pub content: Content,
}

/// Where the bytes of a run of pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Every byte is zero.
    Zero,
    /// In the image's own frames: stored pages `slot`, `slot + 1`, and so on.
    Stored {
        /// The first page's number among the image's stored pages.
        slot: u32,
    },
    /// The same as the stored pages `page`, `page + 1`, and so on of `image`.
    Same {
        /// The image that stores them.
        image: ImageKind,
        /// The first page's number in that image.
        page: u32,
    },
}

/// Pages that lie side by side in a frame and side by side in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// The image whose frames hold the pages.
    pub source: ImageKind,
    /// The frame's number in that image.
    pub frame: u32,
    /// The first page's number in the frame.
    pub page_in_frame: u32,
    /// The first page's number in the image that is looked at.
    pub page: u32,
    /// Pages.
    pub pages: u32,
}

/// What an image is made of, in pages and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageStats {
    /// Which image.
    pub kind: ImageKind,
    /// Exact size, bytes.
    pub size: u64,
    /// All pages: the sum of the next five.
    pub pages: u64,
    /// Pages of zeros.
    pub zero: u64,
    /// Pages equal to another page of this image.
    pub duplicate: u64,
    /// Pages equal to a page of the rootfs (memory only).
    pub in_rootfs: u64,
    /// Pages equal to a page of the kernel or the initramfs (memory only).
    pub in_boot: u64,
    /// Pages stored in frames of this image.
    pub stored: u64,
    /// Pages of the working set, of whatever kind.
    pub working_set: u64,
    /// Frames.
    pub frames: u64,
    /// The stored pages before compression, bytes.
    pub raw_bytes: u64,
    /// The frames, bytes.
    pub compressed_bytes: u64,
}

/// What of an image's frames another bundle has, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Which image.
    pub kind: ImageKind,
    /// Its frames, bytes.
    pub bytes: u64,
    /// Those that the other bundle has, bytes.
    pub shared_bytes: u64,
}

/// [`ImageStats`] of every image of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// In the order of [`ImageKind::ALL`].
    pub images: Vec<ImageStats>,
}

impl Image {
    pub(crate) fn new(kind: ImageKind, size: u64) -> Self {
        Image {
            kind,
            size,
            frames: Vec::new(),
            extents: Vec::new(),
            working_set: Vec::new(),
        }
    }

    /// Returns which image it is.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// Returns the exact size in bytes; the last page may go beyond it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> u32 {
        self.size.div_ceil(PAGE_SIZE as u64) as u32
    }

    /// Returns the frames, in the order in which they lie in the blob.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Returns the runs that make up the image, from its first page to its last.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Returns the pages that a restored machine touches first, in that order; empty if nobody has
    /// looked. The runs do not overlap.
    pub fn working_set(&self) -> &[Run] {
        &self.working_set
    }

    /// Returns the length of the frames blob in bytes; 0 means that there is none.
    pub fn blob_len(&self) -> u64 {
        self.frames
            .last()
            .map_or(0, |f| f.offset + u64::from(f.len))
    }

    /// Returns the number of stored pages.
    pub fn stored(&self) -> u32 {
        self.frames.last().map_or(0, |f| f.first_slot + f.pages)
    }

    pub(crate) fn push_frame(&mut self, len: u32, pages: u32, hash: [u8; 32]) {
        let frame = Frame {
            offset: self.blob_len(),
            first_slot: self.stored(),
            len,
            pages,
            hash,
        };
        self.frames.push(frame);
    }

    /// Appends one page or a run, merged with the last run where that is possible.
    pub(crate) fn push_pages(&mut self, pages: u32, content: Content) {
        let first_page = self.extents.last().map_or(0, |e| e.first_page + e.pages);
        match self.extents.last_mut() {
            Some(last) if last.continues_with(content) => last.pages += pages,
            _ => self.extents.push(Extent {
                first_page,
                pages,
                content,
            }),
        }
    }

    /// Sets the working set: runs in the order in which to load them, which need be neither joined nor
    /// free of overlaps; pages beyond the image do not count.
    pub(crate) fn set_working_set(&mut self, touched: &[Run]) {
        let end = self.pages();
        let mut seen = vec![false; end as usize];
        self.working_set.clear();
        for run in touched {
            for page in run.first..run.end().unwrap_or(u32::MAX).min(end) {
                if std::mem::replace(&mut seen[page as usize], true) {
                    continue;
                }
                match self.working_set.last_mut() {
                    Some(last) if last.continues_with(page, run.written) => last.pages += 1,
                    _ => self.working_set.push(Run {
                        first: page,
                        pages: 1,
                        written: run.written,
                    }),
                }
            }
        }
    }

    fn extent_of(&self, page: u32) -> usize {
        self.extents.partition_point(|e| e.first_page <= page) - 1
    }

    fn frame_of(&self, slot: u32) -> usize {
        self.frames.partition_point(|f| f.first_slot <= slot) - 1
    }

    fn stats(&self) -> ImageStats {
        let mut stats = ImageStats {
            kind: self.kind,
            size: self.size,
            pages: u64::from(self.pages()),
            zero: 0,
            duplicate: 0,
            in_rootfs: 0,
            in_boot: 0,
            stored: u64::from(self.stored()),
            working_set: self
                .working_set
                .iter()
                .map(|run| u64::from(run.pages))
                .sum(),
            frames: self.frames.len() as u64,
            raw_bytes: u64::from(self.stored()) * PAGE_SIZE as u64,
            compressed_bytes: self.blob_len(),
        };
        for extent in &self.extents {
            let count = match extent.content {
                Content::Zero => &mut stats.zero,
                Content::Stored { .. } => continue,
                Content::Same { image, .. } if image == self.kind => &mut stats.duplicate,
                Content::Same {
                    image: ImageKind::Rootfs,
                    ..
                } => &mut stats.in_rootfs,
                Content::Same { .. } => &mut stats.in_boot,
            };
            *count += u64::from(extent.pages);
        }
        stats
    }
}

impl Extent {
    fn continues_with(&self, next: Content) -> bool {
        match (self.content, next) {
            (Content::Zero, Content::Zero) => true,
            (Content::Stored { slot }, Content::Stored { slot: next }) => {
                slot.checked_add(self.pages) == Some(next)
            }
            (
                Content::Same { image, page },
                Content::Same {
                    image: other,
                    page: next,
                },
            ) => image == other && page.checked_add(self.pages) == Some(next),
            _ => false,
        }
    }
}

impl PageIndex {
    pub(crate) fn new(images: Vec<Image>) -> Self {
        PageIndex { images }
    }

    /// Returns the images that the bundle holds, in order.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Returns one image's part.
    pub fn image(&self, kind: ImageKind) -> Option<&Image> {
        self.images.iter().find(|i| i.kind == kind)
    }

    /// Counts pages and bytes.
    pub fn stats(&self) -> Stats {
        Stats {
            images: self.images.iter().map(Image::stats).collect(),
        }
    }

    /// Returns how much of each image's frames another bundle has as well, in whatever image.
    pub fn shared_with(&self, other: &PageIndex) -> Vec<Shared> {
        let frames = other.images.iter().flat_map(|image| &image.frames);
        let theirs: HashSet<[u8; 32]> = frames.map(|frame| frame.hash).collect();
        let sum = |frames: &mut dyn Iterator<Item = &Frame>| frames.map(|f| u64::from(f.len)).sum();
        let images = self.images.iter().map(|image| Shared {
            kind: image.kind,
            bytes: sum(&mut image.frames.iter()),
            shared_bytes: sum(&mut image.frames.iter().filter(|f| theirs.contains(&f.hash))),
        });
        images.collect()
    }

    /// Returns everything of `pages` pages of `kind` from `first` on that is not zero, as pieces of
    /// frames, in page order.
    ///
    /// # Panics
    /// If the bundle does not hold the image or the range goes beyond its end.
    pub fn pieces(&self, kind: ImageKind, first: u32, pages: u32) -> Vec<Piece> {
        let image = self.image(kind).expect("the bundle holds the image");
        let end = first.checked_add(pages).filter(|end| *end <= image.pages());
        let end = end.expect("the range lies in the image");
        let mut out = Vec::new();
        if pages == 0 {
            return out;
        }
        for extent in &image.extents[image.extent_of(first)..] {
            if extent.first_page >= end {
                break;
            }
            let from = extent.first_page.max(first);
            let pages = (extent.first_page + extent.pages).min(end) - from;
            let skip = from - extent.first_page;
            match extent.content {
                Content::Zero => {}
                Content::Stored { slot } => image.stored_pieces(slot + skip, from, pages, &mut out),
                Content::Same {
                    image: source,
                    page,
                } => {
                    let source = self.image(source).expect("checked when parsed");
                    source.pieces_of_stored(page + skip, from, pages, &mut out);
                }
            }
        }
        out
    }
}

impl Image {
    /// Splits stored pages at the borders of frames.
    fn stored_pieces(&self, slot: u32, page: u32, pages: u32, out: &mut Vec<Piece>) {
        let mut done = 0;
        let mut number = self.frame_of(slot);
        while done < pages {
            let frame = &self.frames[number];
            let page_in_frame = slot + done - frame.first_slot;
            let n = (frame.pages - page_in_frame).min(pages - done);
            let source = self.kind;
            out.push(Piece {
                source,
                frame: number as u32,
                page_in_frame,
                page: page + done,
                pages: n,
            });
            done += n;
            number += 1;
        }
    }

    /// Returns the pieces of pages that are known to be stored, seen from another place (`page`).
    fn pieces_of_stored(&self, first: u32, page: u32, pages: u32, out: &mut Vec<Piece>) {
        let mut done = 0;
        for extent in &self.extents[self.extent_of(first)..] {
            if done == pages {
                break;
            }
            let Content::Stored { slot } = extent.content else {
                break;
            };
            let skip = first + done - extent.first_page;
            let n = (extent.pages - skip).min(pages - done);
            self.stored_pieces(slot + skip, page + done, n, out);
            done += n;
        }
    }
}
