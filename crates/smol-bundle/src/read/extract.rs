//! Frames back to images. Nothing leaves this file that has not been verified.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::format::frame::Unpacker;
use crate::format::index::Frame;
use crate::format::limits::PAGE_SIZE;
use crate::{Bundle, Error, ImageKind, Piece, ReadAt, Result};

/// Reads frames one after the other with the same buffers; one for each thread.
pub struct FrameReader<'b, S = File> {
    bundle: &'b Bundle<S>,
    unpacker: Unpacker,
}

impl<'b, S: ReadAt> FrameReader<'b, S> {
    /// Returns a reader of the frames of `bundle`.
    pub fn new(bundle: &'b Bundle<S>) -> Result<Self> {
        let unpacker =
            Unpacker::new().map_err(|e| Error::io("prepare to decompress", bundle.path(), e))?;
        Ok(FrameReader { bundle, unpacker })
    }

    /// Returns the pages of frame `number` of an image, verified and decompressed.
    pub fn read(&mut self, kind: ImageKind, number: usize) -> Result<&[u8]> {
        let bundle = self.bundle;
        let frame = bundle
            .index()
            .image(kind)
            .and_then(|i| i.frames().get(number));
        let (Some(frame), Some(begin)) = (frame, bundle.frames_offset(kind)) else {
            return Err(bundle.source().missing("such frame"));
        };
        let Frame {
            offset,
            len,
            pages,
            hash,
            ..
        } = *frame;
        let offset = begin + offset;
        let input = self.unpacker.input(len);
        bundle.source().read(input, offset)?;
        self.unpacker
            .unpack(len, pages, &hash)
            .map_err(|reason| Error::Frame {
                path: bundle.path().to_owned(),
                image: kind.name(),
                frame: number,
                offset,
                reason,
            })
    }
}

impl<S: ReadAt> Bundle<S> {
    /// Returns the pages of frame `number` of an image, verified and decompressed: its page count
    /// times 4096 bytes. [`FrameReader`] does the same for many frames.
    pub fn frame(&self, kind: ImageKind, number: usize) -> Result<Vec<u8>> {
        FrameReader::new(self)?
            .read(kind, number)
            .map(<[u8]>::to_vec)
    }

    /// Returns how many bytes of an image are in frames: what it takes to hold all of it that is not
    /// zero. Much of it may be the same few frames.
    pub fn held_bytes(&self, kind: ImageKind) -> u64 {
        let stats = self
            .stats()
            .images
            .into_iter()
            .find(|image| image.kind == kind);
        stats.map_or(0, |image| (image.pages - image.zero) * PAGE_SIZE as u64)
    }

    /// Writes an image to `out`, which is emptied first. Zero pages become holes, those in frames
    /// as well, which writers of the format do not make. Each frame is
    /// verified before its pages are written, so what is written is right, but after an error
    /// `out` is incomplete.
    ///
    /// `threads` (at least 1) decompress; `progress` is told bytes written and to be written.
    pub fn extract(
        &self,
        kind: ImageKind,
        out: &File,
        threads: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let size = self.require(kind)?;
        let io = |source| Error::Io {
            action: "write an image of",
            path: self.path().to_owned(),
            source,
        };
        out.set_len(0)
            .and_then(|()| out.set_len(size))
            .map_err(io)?;
        self.unpack_image(kind, threads, progress, |offset, bytes| {
            out.write_all_at(bytes, offset).map_err(io)
        })
    }

    /// Reads an image as a whole, for small ones: at most `limit` bytes.
    pub fn read_image(&self, kind: ImageKind, limit: u64) -> Result<Vec<u8>> {
        let found = self.require(kind)?;
        if found > limit {
            let what = format!("the size of the {kind} image");
            return Err(self.source().too_large(what, found, limit));
        }
        let mut image = vec![0; found as usize];
        let mut frames = FrameReader::new(self)?;
        for pieces in self.pieces_by_frame(kind).chunk_by(same_frame) {
            let raw = frames.read(pieces[0].source, pieces[0].frame as usize)?;
            for piece in pieces {
                let (offset, bytes) = place(piece, raw, found);
                image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(image)
    }

    fn require(&self, kind: ImageKind) -> Result<u64> {
        self.image_size(kind)
            .ok_or_else(|| self.source().missing(what(kind)))
    }

    /// Returns everything of an image that is not zero, in the order in which it lies in the
    /// bundle.
    fn pieces_by_frame(&self, kind: ImageKind) -> Vec<Piece> {
        let Some(image) = self.index().image(kind) else {
            return Vec::new();
        };
        let mut pieces = self.index().pieces(kind, 0, image.pages());
        pieces.sort_unstable();
        pieces
    }

    /// Hands every piece of an image to `write`, with its offset, from `threads` threads.
    fn unpack_image(
        &self,
        kind: ImageKind,
        threads: usize,
        progress: &mut dyn FnMut(u64, u64),
        write: impl Fn(u64, &[u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let size = self.require(kind)?;
        let pieces = self.pieces_by_frame(kind);
        let frames: Vec<&[Piece]> = pieces.chunk_by(same_frame).collect();
        let total = pieces
            .iter()
            .map(|p| u64::from(p.pages) * PAGE_SIZE as u64)
            .sum();
        self.each_frame(&frames, threads, total, progress, |reader, pieces| {
            let raw = reader.read(pieces[0].source, pieces[0].frame as usize)?;
            let mut done = 0;
            for piece in *pieces {
                let (offset, bytes) = place(piece, raw, size);
                if bytes.iter().any(|byte| *byte != 0) {
                    write(offset, bytes)?;
                }
                done += u64::from(piece.pages) * PAGE_SIZE as u64;
            }
            Ok(done)
        })
    }

    /// Does `work` for every item on `threads` threads until the first error. `work` returns how
    /// much of `total` it has done.
    pub(crate) fn each_frame<T: Sync>(
        &self,
        items: &[T],
        threads: usize,
        total: u64,
        progress: &mut dyn FnMut(u64, u64),
        work: impl Fn(&mut FrameReader<'_, S>, &T) -> Result<u64> + Sync,
    ) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (report, reports) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..threads.clamp(1, items.len().max(1)) {
                let (report, next, failed, work) = (report.clone(), &next, &failed, &work);
                scope.spawn(move || {
                    let outcome = FrameReader::new(self).and_then(|mut reader| {
                        while !failed.load(Ordering::Relaxed)
                            && let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed))
                        {
                            // The receiver outlives the threads.
                            let _ = report.send(Ok(work(&mut reader, item)?));
                        }
                        Ok(())
                    });
                    if let Err(error) = outcome {
                        failed.store(true, Ordering::Relaxed);
                        let _ = report.send(Err(error));
                    }
                });
            }
            drop(report);
            let (mut done, mut first_error) = (0, Ok(()));
            for outcome in reports {
                match outcome {
                    Ok(bytes) => {
                        done += bytes;
                        progress(done, total);
                    }
                    Err(error) if first_error.is_ok() => first_error = Err(error),
                    Err(_) => {}
                }
            }
            first_error
        })
    }
}

/// Which pages of one image are in which frame: for readers that take pages as they are asked for.
#[derive(Debug)]
pub struct FrameMap {
    /// By frame.
    pieces: Vec<Piece>,
    /// Where each frame's begin in `pieces`.
    begins: Vec<usize>,
}

impl<S: ReadAt> Bundle<S> {
    /// Returns the map of an image; empty if the bundle does not hold it.
    pub fn frame_map(&self, kind: ImageKind) -> FrameMap {
        let pieces = self.pieces_by_frame(kind);
        let mut begins = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            if i == 0 || !same_frame(&pieces[i - 1], piece) {
                begins.push(i);
            }
        }
        FrameMap { pieces, begins }
    }

    /// Returns the piece that holds one page of an image; `None` for a page of zeros.
    ///
    /// # Panics
    /// If the bundle does not hold the image or the page lies beyond its end.
    pub fn piece(&self, kind: ImageKind, page: u32) -> Option<Piece> {
        self.index().pieces(kind, page, 1).into_iter().next()
    }
}

impl FrameMap {
    /// Returns how many frames hold pages of the image.
    pub fn frames(&self) -> usize {
        self.begins.len()
    }

    /// Returns the place in this map of the frame that a piece is in.
    pub fn find(&self, piece: &Piece) -> Option<usize> {
        let key = |piece: &Piece| (piece.source, piece.frame);
        let at = self
            .begins
            .binary_search_by_key(&key(piece), |&begin| key(&self.pieces[begin]));
        at.ok()
    }

    /// Returns what the frame at place `at` holds of the image, which is never empty.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn pieces(&self, at: usize) -> &[Piece] {
        let end = self
            .begins
            .get(at + 1)
            .copied()
            .unwrap_or(self.pieces.len());
        &self.pieces[self.begins[at]..end]
    }
}

impl Piece {
    /// Returns the piece's pages out of its frame.
    ///
    /// # Panics
    /// If that is not its frame.
    pub fn of<'r>(&self, frame: &'r [u8]) -> &'r [u8] {
        let begin = self.page_in_frame as usize * PAGE_SIZE;
        &frame[begin..begin + self.pages as usize * PAGE_SIZE]
    }
}

/// Returns where a piece belongs in an image of `size` bytes, and its bytes out of its frame.
fn place<'r>(piece: &Piece, raw: &'r [u8], size: u64) -> (u64, &'r [u8]) {
    let offset = u64::from(piece.page) * PAGE_SIZE as u64;
    let bytes = piece.of(raw);
    (offset, &bytes[..bytes.len().min((size - offset) as usize)])
}

fn same_frame(a: &Piece, b: &Piece) -> bool {
    (a.source, a.frame) == (b.source, b.frame)
}

fn what(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Kernel => "kernel",
        ImageKind::Initramfs => "initramfs",
        ImageKind::Rootfs => "root file system",
        ImageKind::Memory => "snapshot",
    }
}
