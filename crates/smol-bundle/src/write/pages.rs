//! From an image on disk to frames and extents: finds zero and equal pages, compresses the rest.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

use crate::format::frame::{self, Grain, Packed};
use crate::format::index::{Content, Image, Run};
use crate::format::limits::*;
use crate::write::pool::Pool;
use crate::{Error, ImageKind, Result};

/// Bytes read at a time; whole pages.
const READ: usize = 1 << 20;
/// How pages are compared: blake3 of the page. Collision-resistant, so equal hashes are equal pages
/// even if the guest chose them.
type PageHash = [u8; 32];

/// Stored pages of the images before memory, to which memory may refer.
#[derive(Default)]
pub(crate) struct Known(HashMap<PageHash, (ImageKind, u32)>);

impl Known {
    /// Remembers the stored pages of `kind`. A page that several images have counts as the
    /// rootfs's: that one the host's page cache shares.
    fn add(&mut self, kind: ImageKind, stored: HashMap<PageHash, u32>) {
        for (hash, page) in stored {
            match kind {
                ImageKind::Rootfs => drop(self.0.insert(hash, (kind, page))),
                _ => drop(self.0.entry(hash).or_insert((kind, page))),
            }
        }
    }
}

/// An image file that is read page by page.
pub(crate) struct Source {
    kind: ImageKind,
    path: PathBuf,
    file: File,
    size: u64,
}

impl Source {
    pub(crate) fn open(kind: ImageKind, path: &Path) -> Result<Self> {
        let io = |e| Error::io("read the image", path, e);
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let invalid = |what| {
            Err(Error::InvalidSpec(format!(
                "the {kind} image {} {what}",
                path.display()
            )))
        };
        if !metadata.is_file() {
            return invalid("is not a regular file".to_string());
        }
        match metadata.len() {
            0 => invalid("is empty".into()),
            size if size > MAX_IMAGE_SIZE => {
                invalid(format!("has {size} bytes, the limit is {MAX_IMAGE_SIZE}"))
            }
            size => Ok(Source {
                kind,
                path: path.to_owned(),
                file,
                size,
            }),
        }
    }

    pub(crate) fn kind(&self) -> ImageKind {
        self.kind
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The next stretch at or after `at` (a page border) that may hold something other than
    /// zeros, widened to whole pages; empty at the end of the image.
    fn next_data(&self, at: u64) -> Result<std::ops::Range<u64>> {
        let page = PAGE_SIZE as u64;
        let find = |from| match seek(&self.file, from) {
            Ok(found) => Ok(found.min(self.size)),
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => Ok(self.size),
            Err(e) => Err(Error::io("read the image", &self.path, e.into())),
        };
        let start = find(SeekFrom::Data(at))?;
        if start >= self.size {
            return Ok(self.size..self.size);
        }
        let end = find(SeekFrom::Hole(start))?;
        Ok((start - start % page).max(at)..end.next_multiple_of(page).min(self.size))
    }

    /// Fills `buffer` from `at`; what lies beyond the image's end is zero.
    fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        let len = (self.size - at).min(buffer.len() as u64) as usize;
        let (data, padding) = buffer.split_at_mut(len);
        padding.fill(0);
        self.file
            .read_exact_at(data, at)
            .map_err(|e| Error::io("read the image", &self.path, e))
    }
}

/// Sends the frames of `source` through `pool` to `sink`, in their order, and returns the image's part
/// of the index. The pages of `touched` come first, in that order and in frames of their own, then
/// the others in theirs. `advance` is told the bytes of the image that are read; its error, or the
/// sink's, ends the work.
pub(crate) fn pack(
    source: &Source,
    touched: &[Run],
    known: &mut Known,
    pool: &mut Pool,
    sink: Sink<'_>,
    advance: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Image> {
    let mut packer = Packer {
        image: Image::new(source.kind, source.size),
        own: HashMap::new(),
        early: HashMap::new(),
        frames: Frames::new(pool, sink),
        page: 0,
    };
    packer.image.set_working_set(touched);
    let others = match source.kind {
        ImageKind::Memory => Some(&*known),
        _ => None,
    };
    packer.working_set(source, others)?;
    let mut buffer = vec![0; READ];
    let mut at = 0;
    while at < source.size {
        let data = source.next_data(at)?;
        packer.zeros(
            ((data.start.next_multiple_of(PAGE_SIZE as u64) - at) / PAGE_SIZE as u64) as u32,
        );
        advance(data.start - at)?;
        at = data.start;
        while at < data.end {
            let len = (data.end - at).min(READ as u64);
            let pages = &mut buffer[..len.next_multiple_of(PAGE_SIZE as u64) as usize];
            source.read(pages, at)?;
            for page in pages.chunks_exact(PAGE_SIZE) {
                packer.page(page, others)?;
            }
            advance(len)?;
            at += len;
        }
    }
    packer.frames.finish(&mut packer.image)?;
    if source.kind != ImageKind::Memory {
        known.add(source.kind, packer.own);
    }
    Ok(packer.image)
}

struct Packer<'p> {
    image: Image,
    own: HashMap<PageHash, u32>,
    /// What was decided on the pages of the working set.
    early: HashMap<u32, Content>,
    frames: Frames<'p>,
    /// Number of the next page.
    page: u32,
}

impl Packer<'_> {
    fn zeros(&mut self, pages: u32) {
        if pages > 0 {
            self.image.push_pages(pages, Content::Zero);
            self.page += pages;
        }
    }

    /// The pages that come first.
    fn working_set(&mut self, source: &Source, others: Option<&Known>) -> Result<()> {
        let mut bytes = vec![0; PAGE_SIZE];
        for run in self.image.working_set().to_vec() {
            for page in run.first..run.first + run.pages {
                source.read(&mut bytes, u64::from(page) * PAGE_SIZE as u64)?;
                let content = self.content(page, &bytes, others)?;
                self.early.insert(page, content);
            }
        }
        let rest = match source.kind {
            ImageKind::Rootfs => frame::COARSE,
            _ => frame::FINE,
        };
        self.frames.set_grain(rest, &mut self.image)
    }

    fn page(&mut self, bytes: &[u8], others: Option<&Known>) -> Result<()> {
        let content = match self.early.get(&self.page) {
            Some(&content) => content,
            None => self.content(self.page, bytes, others)?,
        };
        self.image.push_pages(1, content);
        self.page += 1;
        Ok(())
    }

    /// Where the bytes of a page are; puts them into a frame if they are nowhere yet.
    fn content(&mut self, page: u32, bytes: &[u8], others: Option<&Known>) -> Result<Content> {
        if is_zero(bytes) {
            return Ok(Content::Zero);
        }
        let hash: PageHash = blake3::hash(bytes).into();
        Ok(
            if let Some(&(image, page)) = others.and_then(|o| o.0.get(&hash)) {
                Content::Same { image, page }
            } else if let Some(&page) = self.own.get(&hash) {
                Content::Same {
                    image: self.image.kind(),
                    page,
                }
            } else {
                self.own.insert(hash, page);
                Content::Stored {
                    slot: self.frames.page(bytes, &hash, &mut self.image)?,
                }
            },
        )
    }
}

/// Zero test that the compiler turns into wide loads.
fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(128)
        .all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
}

/// Where compressed frames go.
pub(crate) type Sink<'s> = &'s mut dyn FnMut(Packed) -> Result<()>;

/// Collects stored pages into frames: where one ends depends on the pages in it, so that a page more
/// or less changes one frame or two, and not all that follow. They are compressed while the next ones
/// are read.
struct Frames<'p> {
    pool: &'p mut Pool,
    sink: Sink<'p>,
    grain: Grain,
    /// The raw frame that is being filled.
    current: Vec<u8>,
    /// Pages of the frames that are in the pool.
    on_the_way: VecDeque<u32>,
    /// Stored pages so far.
    stored: u32,
}

impl<'p> Frames<'p> {
    fn new(pool: &'p mut Pool, sink: Sink<'p>) -> Self {
        Frames {
            pool,
            sink,
            grain: frame::FINE,
            current: Vec::new(),
            on_the_way: VecDeque::new(),
            stored: 0,
        }
    }

    /// Takes a page and returns its slot.
    fn page(&mut self, bytes: &[u8], hash: &PageHash, image: &mut Image) -> Result<u32> {
        let Grain { fewest, most, ends } = self.grain;
        let pages = |pages: u32| pages as usize * PAGE_SIZE;
        if self.current.is_empty() {
            self.current.reserve_exact(pages(most));
        }
        self.current.extend_from_slice(bytes);
        let len = self.current.len();
        if len == pages(most) || len >= pages(fewest) && hash[0].is_multiple_of(ends) {
            self.end(image)?;
        }
        self.stored += 1;
        Ok(self.stored - 1)
    }

    /// The next page begins a new frame, of this grain.
    fn set_grain(&mut self, grain: Grain, image: &mut Image) -> Result<()> {
        self.end(image)?;
        self.grain = grain;
        Ok(())
    }

    /// Ends the frame that is being filled.
    fn end(&mut self, image: &mut Image) -> Result<()> {
        let raw = std::mem::take(&mut self.current);
        if raw.is_empty() {
            return Ok(());
        }
        while self.pool.is_full() {
            self.put(image)?;
        }
        self.on_the_way.push_back((raw.len() / PAGE_SIZE) as u32);
        self.pool.push(raw);
        Ok(())
    }

    /// Waits for the oldest frame in the pool, and puts it where it belongs.
    fn put(&mut self, image: &mut Image) -> Result<()> {
        let (Some(pages), Some(packed)) = (self.on_the_way.pop_front(), self.pool.pop()) else {
            return Ok(());
        };
        let packed = packed.map_err(|e| {
            Error::InvalidSpec(format!(
                "zstd cannot compress the {} image: {e}",
                image.kind()
            ))
        })?;
        image.push_frame(packed.bytes.len() as u32, pages, packed.hash);
        (self.sink)(packed)
    }

    fn finish(mut self, image: &mut Image) -> Result<()> {
        self.end(image)?;
        while !self.on_the_way.is_empty() {
            self.put(image)?;
        }
        Ok(())
    }
}
