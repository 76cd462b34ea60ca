//! The page index: for every page of every image, where its bytes are.
//!
//! The byte layout is in docs/bundle-format.md, "Page index". Everything here is checked before
//! it is believed: counts against the blob's length before allocation, references for existence,
//! run lengths for being the longest possible (one map, one encoding).

use crate::limits::*;

pub(crate) const MAGIC: [u8; 8] = *b"smolpidx";
pub(crate) const VERSION: u32 = 1;
const HEADER_LEN: usize = 24;
const IMAGE_LEN: usize = 32;
const FRAME_LEN: usize = 40;
const EXTENT_LEN: usize = 12;

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

    /// The kind's name: `kernel`, `initramfs`, `rootfs` or `memory`.
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
    /// Frames.
    pub frames: u64,
    /// The stored pages before compression, bytes.
    pub raw_bytes: u64,
    /// The frames, bytes.
    pub compressed_bytes: u64,
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
        }
    }

    /// Which image.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// Exact size, bytes; the last page may go beyond it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of pages.
    pub fn pages(&self) -> u32 {
        self.size.div_ceil(PAGE_SIZE as u64) as u32
    }

    /// The frames, in the order in which they lie in the blob.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The runs that make up the image, from its first page to its last.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Length of the frames blob, bytes; 0 means that there is none.
    pub fn blob_len(&self) -> u64 {
        self.frames
            .last()
            .map_or(0, |f| f.offset + u64::from(f.len))
    }

    /// Number of stored pages.
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

    /// The images that the bundle holds, in order.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// One image's part.
    pub fn image(&self, kind: ImageKind) -> Option<&Image> {
        self.images.iter().find(|i| i.kind == kind)
    }

    /// Counts of pages and bytes.
    pub fn stats(&self) -> Stats {
        Stats {
            images: self.images.iter().map(Image::stats).collect(),
        }
    }

    /// Everything of `pages` pages of `kind` from `first` on that is not zero, as pieces of frames,
    /// in page order.
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

    /// The blob.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((PAGE_SIZE as u32).to_le_bytes());
        out.extend((self.images.len() as u32).to_le_bytes());
        out.extend([0; 4]);
        for image in &self.images {
            out.extend([image.kind.id(), 0, 0, 0, 0, 0, 0, 0]);
            out.extend(image.size.to_le_bytes());
            out.extend(image.blob_len().to_le_bytes());
            out.extend((image.frames.len() as u32).to_le_bytes());
            out.extend((image.extents.len() as u32).to_le_bytes());
        }
        for image in &self.images {
            for frame in &image.frames {
                out.extend(frame.len.to_le_bytes());
                out.extend(frame.pages.to_le_bytes());
                out.extend(frame.hash);
            }
            for extent in &image.extents {
                let (kind, image, start) = match extent.content {
                    Content::Zero => (0, 0, 0),
                    Content::Stored { slot } => (1, 0, slot),
                    Content::Same { image, page } => (2, image.id(), page),
                };
                out.extend(extent.pages.to_le_bytes());
                out.extend([kind, image, 0, 0]);
                out.extend(start.to_le_bytes());
            }
        }
        out
    }

    /// Reads and checks the blob.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        let mut at = Cursor { bytes, at: 0 };
        let count = parse_header(&mut at)?;
        let mut images = Vec::with_capacity(count);
        let mut expected_len = (HEADER_LEN + count * IMAGE_LEN) as u64;
        for _ in 0..count {
            let head = ImageHead::parse(&mut at, images.last())?;
            expected_len += u64::from(head.frames) * FRAME_LEN as u64;
            expected_len += u64::from(head.extents) * EXTENT_LEN as u64;
            images.push(head);
        }
        if expected_len != bytes.len() as u64 {
            let found = bytes.len();
            return Err(at.flaw(format!(
                "counts that need {expected_len} bytes in a blob of {found}"
            )));
        }
        // From here on nothing is larger than the blob itself.
        let parsed = images
            .iter()
            .map(|head| head.parse_tables(&mut at))
            .collect::<Result<Vec<_>, _>>()?;
        let index = PageIndex { images: parsed };
        if index.image(ImageKind::Kernel).is_none() {
            return Err(Flaw::new(0, "no kernel image"));
        }
        index.check_references()?;
        Ok(index)
    }

    /// Every reference leads to stored pages, so there are no chains and no cycles; and only
    /// memory refers to other images, so that their frames depend on nothing but themselves.
    fn check_references(&self) -> Result<(), Flaw> {
        let indirect: Vec<Vec<u32>> = self.images.iter().map(Image::indirect_before).collect();
        for image in &self.images {
            for extent in &image.extents {
                let Content::Same { image: kind, page } = extent.content else {
                    continue;
                };
                let what = format!("page {} of {}", extent.first_page, image.kind);
                if kind != image.kind && image.kind != ImageKind::Memory {
                    return Err(Flaw::new(0, format!("{what} refers to another image")));
                }
                let target = self.images.iter().position(|i| i.kind == kind);
                let target = target.ok_or_else(|| {
                    Flaw::new(
                        0,
                        format!("{what} refers to the {kind} image, which is absent"),
                    )
                })?;
                let end = page.checked_add(extent.pages);
                let end = end
                    .filter(|end| *end <= self.images[target].pages())
                    .ok_or_else(|| {
                        Flaw::new(
                            0,
                            format!("{what} refers beyond the end of the {kind} image"),
                        )
                    })?;
                let before = |page| self.images[target].indirect_pages(&indirect[target], page);
                if before(page) != before(end) {
                    return Err(Flaw::new(
                        0,
                        format!("{what} refers to pages that are not stored"),
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Image {
    /// For each extent, how many pages before it are not stored in frames of this image.
    fn indirect_before(&self) -> Vec<u32> {
        let mut sum = 0;
        let before = |extent: &Extent| {
            let before = sum;
            if !matches!(extent.content, Content::Stored { .. }) {
                sum += extent.pages;
            }
            before
        };
        self.extents.iter().map(before).collect()
    }

    /// How many pages before `page` are not stored in frames of this image.
    fn indirect_pages(&self, before: &[u32], page: u32) -> u32 {
        if page == 0 {
            return 0;
        }
        let i = self.extent_of(page - 1);
        match self.extents[i].content {
            Content::Stored { .. } => before[i],
            _ => before[i] + (page - self.extents[i].first_page),
        }
    }

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

    /// The pieces of pages that are known to be stored, seen from another place (`page`).
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

/// A rule that the page index breaks.
#[derive(Debug)]
pub(crate) struct Flaw {
    /// Where in the blob, as far as known.
    pub(crate) offset: usize,
    pub(crate) reason: String,
    /// The version, if that is what is wrong.
    pub(crate) newer: Option<u32>,
}

impl Flaw {
    fn new(offset: usize, reason: impl Into<String>) -> Self {
        Flaw {
            offset,
            reason: reason.into(),
            newer: None,
        }
    }
}

fn parse_header(at: &mut Cursor<'_>) -> Result<usize, Flaw> {
    if at.take::<8>()? != MAGIC {
        return Err(Flaw::new(0, "not a page index (wrong magic)"));
    }
    let version = at.u32()?;
    if version != VERSION {
        let newer = (version > VERSION).then_some(version);
        return Err(Flaw {
            offset: 8,
            reason: format!("version {version}"),
            newer,
        });
    }
    let page_size = at.u32()?;
    if page_size as usize != PAGE_SIZE {
        return Err(at.flaw(format!("page size {page_size}, it must be {PAGE_SIZE}")));
    }
    let count = at.u32()? as usize;
    if !(1..=ImageKind::ALL.len()).contains(&count) {
        return Err(at.flaw(format!(
            "{count} images, there must be 1 to {}",
            ImageKind::ALL.len()
        )));
    }
    match at.u32()? {
        0 => Ok(count),
        _ => Err(at.flaw("a parent, which this version does not know")),
    }
}

/// The fixed part of an image's entry.
struct ImageHead {
    kind: ImageKind,
    size: u64,
    blob_len: u64,
    frames: u32,
    extents: u32,
}

impl ImageHead {
    fn parse(at: &mut Cursor<'_>, previous: Option<&ImageHead>) -> Result<Self, Flaw> {
        let [id, zeros @ ..] = at.take::<8>()?;
        let kind = ImageKind::from_id(id).filter(|_| zeros == [0; 7]);
        let kind = kind.ok_or_else(|| at.flaw(format!("unknown image {id}")))?;
        if previous.is_some_and(|p| p.kind >= kind) {
            return Err(at.flaw(format!("the {kind} image is out of order")));
        }
        let head = ImageHead {
            kind,
            size: at.u64()?,
            blob_len: at.u64()?,
            frames: at.u32()?,
            extents: at.u32()?,
        };
        if !(1..=MAX_IMAGE_SIZE).contains(&head.size) {
            return Err(at.flaw(format!(
                "{kind} has {} bytes, the limit is {MAX_IMAGE_SIZE}",
                head.size
            )));
        }
        let pages = head.size.div_ceil(PAGE_SIZE as u64);
        if u64::from(head.frames) > pages || u64::from(head.extents) > pages {
            return Err(at.flaw(format!(
                "{kind} has more frames or extents than its {pages} pages"
            )));
        }
        Ok(head)
    }

    fn parse_tables(&self, at: &mut Cursor<'_>) -> Result<Image, Flaw> {
        let mut image = Image::new(self.kind, self.size);
        image.frames.reserve_exact(self.frames as usize);
        image.extents.reserve_exact(self.extents as usize);
        for n in 0..self.frames {
            let (len, pages, hash) = (at.u32()?, at.u32()?, at.take::<32>()?);
            if !(1..=MAX_FRAME_PAGES).contains(&pages) {
                return Err(at.flaw(format!("{} frame {n} has {pages} pages", self.kind)));
            }
            if !(1..=pages * PAGE_SIZE as u32 + MAX_FRAME_OVERHEAD).contains(&len) {
                return Err(at.flaw(format!(
                    "{} frame {n}: {len} bytes for {pages} pages",
                    self.kind
                )));
            }
            image.push_frame(len, pages, hash);
        }
        if image.blob_len() != self.blob_len {
            let sum = image.blob_len();
            return Err(at.flaw(format!(
                "{} frames add up to {sum} bytes, not {}",
                self.kind, self.blob_len
            )));
        }
        if image.stored() > image.pages() {
            return Err(at.flaw(format!(
                "{} frames hold more pages than the image",
                self.kind
            )));
        }
        self.parse_extents(&mut image, at)?;
        Ok(image)
    }

    fn parse_extents(&self, image: &mut Image, at: &mut Cursor<'_>) -> Result<(), Flaw> {
        let mut total = 0u32;
        let mut stored = Vec::new();
        for n in 0..self.extents {
            let (pages, [kind, source, zero0, zero1], start) =
                (at.u32()?, at.take::<4>()?, at.u32()?);
            let content = match (kind, source, start) {
                (0, 0, 0) => Some(Content::Zero),
                (1, 0, slot) => Some(Content::Stored { slot }),
                (2, id, page) => ImageKind::from_id(id).map(|image| Content::Same { image, page }),
                _ => None,
            };
            let content = content.filter(|_| zero0 == 0 && zero1 == 0);
            let content =
                content.ok_or_else(|| at.flaw(format!("{} extent {n} is malformed", self.kind)))?;
            let sum = total
                .checked_add(pages)
                .filter(|sum| pages > 0 && *sum <= image.pages());
            total =
                sum.ok_or_else(|| at.flaw(format!("{} extent {n} has {pages} pages", self.kind)))?;
            let before = image.extents.len();
            image.push_pages(pages, content);
            if image.extents.len() == before {
                return Err(at.flaw(format!(
                    "{} extent {n} belongs to the one before it",
                    self.kind
                )));
            }
            if let Content::Stored { slot } = content {
                stored.push((slot, pages));
            }
        }
        if total != image.pages() {
            return Err(at.flaw(format!(
                "{} extents cover {total} of {} pages",
                self.kind,
                image.pages()
            )));
        }
        if !tiles(stored, image.stored()) {
            return Err(at.flaw(format!(
                "{} does not use each stored page exactly once",
                self.kind
            )));
        }
        Ok(())
    }
}

/// Whether the runs (first, length) cover 0 to `total` without gap or overlap.
fn tiles(mut runs: Vec<(u32, u32)>, total: u32) -> bool {
    runs.sort_unstable();
    let end = runs.iter().try_fold(0u32, |at, (first, len)| {
        if *first == at {
            at.checked_add(*len)
        } else {
            None
        }
    });
    end == Some(total)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let bytes = self.bytes.get(self.at..).and_then(|b| b.first_chunk::<N>());
        let bytes = *bytes.ok_or_else(|| self.flaw("the page index ends early"))?;
        self.at += N;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Flaw> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Flaw> {
        self.take().map(u64::from_le_bytes)
    }

    fn flaw(&self, reason: impl Into<String>) -> Flaw {
        Flaw::new(self.at, reason)
    }
}
