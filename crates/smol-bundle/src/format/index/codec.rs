//! The bytes of the page index, docs/bundle-format.md, "Page index".
//!
//! Everything is checked before it is believed: counts against the blob's length before
//! allocation, references for existence, run lengths for being the longest possible (one map, one
//! encoding).

use super::{Content, Extent, Image, ImageKind, PageIndex, Run};
use crate::format::limits::*;

const MAGIC: [u8; 8] = *b"smolpidx";
const VERSION: u32 = 3;
const HEADER_LEN: usize = 24;
const IMAGE_LEN: usize = 32;
const FRAME_LEN: usize = 40;
const EXTENT_LEN: usize = 12;
const RUN_LEN: usize = 12;

impl PageIndex {
    /// Returns the bytes of the blob.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((PAGE_SIZE as u32).to_le_bytes());
        out.extend((self.images.len() as u32).to_le_bytes());
        out.extend([0; 4]);
        for image in &self.images {
            out.extend([image.kind.id(), 0, 0, 0]);
            out.extend((image.working_set.len() as u32).to_le_bytes());
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
            for run in &image.working_set {
                out.extend(run.first.to_le_bytes());
                out.extend(run.pages.to_le_bytes());
                out.extend([u8::from(run.written), 0, 0, 0]);
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
            expected_len += u64::from(head.runs) * RUN_LEN as u64;
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

    /// Checks that every reference leads to stored pages, so there are no chains and no cycles; and
    /// only memory refers to other images, so that their frames depend on nothing but themselves.
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
    /// Returns for each extent how many pages before it are not stored in frames of this image.
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

    /// Returns how many pages before `page` are not stored in frames of this image.
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
            reason: format!("version {version}, which was never released: build the bundle again"),
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
    runs: u32,
}

impl ImageHead {
    fn parse(at: &mut Cursor<'_>, previous: Option<&ImageHead>) -> Result<Self, Flaw> {
        let [id, zeros @ ..] = at.take::<4>()?;
        let kind = ImageKind::from_id(id).filter(|_| zeros == [0; 3]);
        let kind = kind.ok_or_else(|| at.flaw(format!("unknown image {id}")))?;
        let runs = at.u32()?;
        if previous.is_some_and(|p| p.kind >= kind) {
            return Err(at.flaw(format!("the {kind} image is out of order")));
        }
        let head = ImageHead {
            kind,
            size: at.u64()?,
            blob_len: at.u64()?,
            frames: at.u32()?,
            extents: at.u32()?,
            runs,
        };
        if !(1..=MAX_IMAGE_SIZE).contains(&head.size) {
            return Err(at.flaw(format!(
                "{kind} has {} bytes, the limit is {MAX_IMAGE_SIZE}",
                head.size
            )));
        }
        let pages = head.size.div_ceil(PAGE_SIZE as u64);
        if [head.frames, head.extents, head.runs]
            .iter()
            .any(|n| u64::from(*n) > pages)
        {
            return Err(at.flaw(format!(
                "{kind} has more frames, extents or runs than its {pages} pages"
            )));
        }
        if head.runs > 0 && !matches!(kind, ImageKind::Rootfs | ImageKind::Memory) {
            return Err(at.flaw(format!("{kind} has a working set")));
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
        self.parse_runs(&mut image, at)?;
        Ok(image)
    }

    fn parse_runs(&self, image: &mut Image, at: &mut Cursor<'_>) -> Result<(), Flaw> {
        image.working_set.reserve_exact(self.runs as usize);
        for n in 0..self.runs {
            let (first, pages, kind) = (at.u32()?, at.u32()?, at.take::<4>()?);
            let run = Run {
                first,
                pages,
                written: kind != [0; 4],
            };
            let known = match kind {
                [0, 0, 0, 0] => true,
                [1, 0, 0, 0] => self.kind == ImageKind::Memory,
                _ => false,
            };
            let inside = run.pages > 0 && run.end().is_some_and(|end| end <= image.pages());
            let last = image.working_set.last();
            if !known || !inside || last.is_some_and(|last| last.continues_with(first, run.written))
            {
                return Err(at.flaw(format!("{} run {n} is malformed", self.kind)));
            }
            image.working_set.push(run);
        }
        let mut sorted: Vec<_> = image
            .working_set
            .iter()
            .map(|r| (r.first, r.pages))
            .collect();
        sorted.sort_unstable();
        match sorted.array_windows().all(|[a, b]| a.0 + a.1 <= b.0) {
            true => Ok(()),
            false => Err(at.flaw(format!("{} has a page twice in its working set", self.kind))),
        }
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

/// Returns whether the runs (first, length) cover 0 to `total` without gap or overlap.
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
