//! From an image on disk to frames and extents: finds zero and equal pages, compresses the rest.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

use crate::format::index::{Content, Image, Run};
use crate::format::limits::*;
use crate::write::chunking::{self, Chunker, PageHash, Sink};
use crate::write::pool::Pool;
use crate::{Error, ImageKind, Result};

/// Bytes read at a time; whole pages.
const READ: usize = 1 << 20;
/// Stored pages of the images before memory, to which memory may refer.
#[derive(Default)]
pub(crate) struct KnownPages(HashMap<PageHash, (ImageKind, u32)>);

impl KnownPages {
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
pub(crate) struct ImageFile {
    kind: ImageKind,
    path: PathBuf,
    file: File,
    size: u64,
}

impl ImageFile {
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
            size => Ok(ImageFile {
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

    /// Returns the next stretch at or after `at` (a page border) that may hold something other than
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

/// Sends the frames of `file` through `pool` to `sink`, in their order, and returns the image's part
/// of the index. The pages of `working_set` come first, in that order and in frames of their own, then
/// the others in theirs. `advance` is told the bytes of the image that are read; its error, or the
/// sink's, ends the work.
pub(crate) fn pack(
    file: &ImageFile,
    working_set: &[Run],
    known: &mut KnownPages,
    pool: &mut Pool,
    sink: Sink<'_>,
    advance: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Image> {
    let mut packer = Packer {
        image: Image::new(file.kind, file.size),
        own: HashMap::new(),
        early: HashMap::new(),
        frames: Chunker::new(pool, sink),
        page: 0,
    };
    packer.image.set_working_set(working_set);
    let others = match file.kind {
        ImageKind::Memory => Some(&*known),
        _ => None,
    };
    packer.working_set(file, others)?;
    let mut buffer = vec![0; READ];
    let mut at = 0;
    while at < file.size {
        let data = file.next_data(at)?;
        packer.zeros(
            ((data.start.next_multiple_of(PAGE_SIZE as u64) - at) / PAGE_SIZE as u64) as u32,
        );
        advance(data.start - at)?;
        at = data.start;
        while at < data.end {
            let len = (data.end - at).min(READ as u64);
            let pages = &mut buffer[..len.next_multiple_of(PAGE_SIZE as u64) as usize];
            file.read(pages, at)?;
            for page in pages.chunks_exact(PAGE_SIZE) {
                packer.page(page, others)?;
            }
            advance(len)?;
            at += len;
        }
    }
    packer.frames.finish(&mut packer.image)?;
    if file.kind != ImageKind::Memory {
        known.add(file.kind, packer.own);
    }
    Ok(packer.image)
}

struct Packer<'p> {
    image: Image,
    own: HashMap<PageHash, u32>,
    /// What was decided on the pages of the working set.
    early: HashMap<u32, Content>,
    frames: Chunker<'p>,
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

    /// Takes the pages of the working set, which come first.
    fn working_set(&mut self, file: &ImageFile, others: Option<&KnownPages>) -> Result<()> {
        let mut bytes = vec![0; PAGE_SIZE];
        for run in self.image.working_set().to_vec() {
            for page in run.first..run.first + run.pages {
                file.read(&mut bytes, u64::from(page) * PAGE_SIZE as u64)?;
                let content = self.content(page, &bytes, others)?;
                self.early.insert(page, content);
            }
        }
        let rest = match file.kind {
            ImageKind::Rootfs => chunking::COARSE,
            _ => chunking::FINE,
        };
        self.frames.set_chunking(rest, &mut self.image)
    }

    fn page(&mut self, bytes: &[u8], others: Option<&KnownPages>) -> Result<()> {
        let content = match self.early.get(&self.page) {
            Some(&content) => content,
            None => self.content(self.page, bytes, others)?,
        };
        self.image.push_pages(1, content);
        self.page += 1;
        Ok(())
    }

    /// Returns where the bytes of a page are; puts them into a frame if they are nowhere yet.
    fn content(&mut self, page: u32, bytes: &[u8], others: Option<&KnownPages>) -> Result<Content> {
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

/// Tests for zeros in a way that the compiler turns into wide loads.
fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(128)
        .all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
}
