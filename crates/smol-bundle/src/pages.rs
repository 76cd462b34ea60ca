//! From an image on disk to frames and extents: finds zero and equal pages, compresses the rest.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

use rustix::fs::{SeekFrom, seek};

use crate::archive::BlobWriter;
use crate::frame::{self, Grain, Packed};
use crate::index::{Content, Image, Run};
use crate::limits::*;
use crate::{Error, ImageKind, Result};

/// Bytes read at a time; whole pages.
const READ: usize = 1 << 20;
/// Frames compressed together, for each thread.
const BATCH: usize = 8;
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

/// Writes the frames of `source` to `blob` and returns the image's part of the index. The pages of
/// `touched` come first, in that order and in frames of their own, then the others in theirs.
/// `advance` is told the bytes of the image that are done; its error ends the writing.
pub(crate) fn pack(
    source: &Source,
    touched: &[Run],
    known: &mut Known,
    blob: &mut BlobWriter<'_, '_>,
    advance: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Image> {
    let mut packer = Packer {
        image: Image::new(source.kind, source.size),
        own: HashMap::new(),
        early: HashMap::new(),
        frames: Frames::new(blob),
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

struct Packer<'b, 'w, 'a> {
    image: Image,
    own: HashMap<PageHash, u32>,
    /// What was decided on the pages of the working set.
    early: HashMap<u32, Content>,
    frames: Frames<'b, 'w, 'a>,
    /// Number of the next page.
    page: u32,
}

impl Packer<'_, '_, '_> {
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

/// Collects stored pages into frames: where one ends depends on the pages in it, so that a page more
/// or less changes one frame or two, and not all that follow. Compresses a batch of them on all cores, writes them in order.
struct Frames<'b, 'w, 'a> {
    blob: &'b mut BlobWriter<'w, 'a>,
    threads: usize,
    grain: Grain,
    /// Raw frames; all but the last are done.
    batch: Vec<Vec<u8>>,
    /// The last is done as well.
    ended: bool,
    /// Stored pages so far.
    stored: u32,
}

impl<'b, 'w, 'a> Frames<'b, 'w, 'a> {
    fn new(blob: &'b mut BlobWriter<'w, 'a>) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Frames {
            blob,
            threads,
            grain: frame::FINE,
            batch: Vec::new(),
            ended: false,
            stored: 0,
        }
    }

    /// Takes a page and returns its slot.
    fn page(&mut self, bytes: &[u8], hash: &PageHash, image: &mut Image) -> Result<u32> {
        let Grain { fewest, most, ends } = self.grain;
        let pages = |pages: u32| pages as usize * PAGE_SIZE;
        if self.ended || self.batch.is_empty() {
            if self.batch.len() == self.threads * BATCH {
                self.flush(image)?;
            }
            self.batch.push(Vec::with_capacity(pages(most)));
        }
        let frame = self.batch.last_mut().expect("there is one now");
        frame.extend_from_slice(bytes);
        let len = frame.len();
        self.ended = len == pages(most) || len >= pages(fewest) && hash[0].is_multiple_of(ends);
        self.stored += 1;
        Ok(self.stored - 1)
    }

    /// The next page begins a new frame, of this grain.
    fn set_grain(&mut self, grain: Grain, image: &mut Image) -> Result<()> {
        self.flush(image)?;
        self.grain = grain;
        Ok(())
    }

    fn flush(&mut self, image: &mut Image) -> Result<()> {
        let packed = pack_all(&self.batch, self.threads).map_err(|e| {
            Error::InvalidSpec(format!(
                "zstd cannot compress the {} image: {e}",
                image.kind()
            ))
        })?;
        for (raw, packed) in self.batch.iter().zip(packed) {
            self.blob.write(&packed.bytes)?;
            image.push_frame(
                packed.bytes.len() as u32,
                (raw.len() / PAGE_SIZE) as u32,
                packed.hash,
            );
        }
        self.batch.clear();
        Ok(())
    }

    fn finish(mut self, image: &mut Image) -> Result<()> {
        self.flush(image)
    }
}

fn pack_all(raw: &[Vec<u8>], threads: usize) -> std::io::Result<Vec<Packed>> {
    let next = AtomicUsize::new(0);
    let done: Vec<OnceLock<Packed>> = raw.iter().map(|_| OnceLock::new()).collect();
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads.min(raw.len()) {
            scope.spawn(|| {
                while let Some((i, raw)) = take(&next, raw) {
                    match frame::pack(raw) {
                        Ok(packed) => drop(done[i].set(packed)),
                        Err(e) => *failed.lock().expect("no thread panics holding it") = Some(e),
                    }
                }
            });
        }
    });
    match failed.into_inner().expect("no thread panics holding it") {
        Some(error) => Err(error),
        None => Ok(done
            .into_iter()
            .map(|p| p.into_inner().expect("packed or failed"))
            .collect()),
    }
}

/// The next item that no thread has taken.
fn take<'i, T>(next: &AtomicUsize, items: &'i [T]) -> Option<(usize, &'i T)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    items.get(i).map(|item| (i, item))
}
