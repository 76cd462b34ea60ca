//! Frames back to images. Nothing leaves this file that has not been verified.

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::format::frame::Unpacker;
use crate::format::index::Frame;
use crate::format::limits::PAGE_SIZE;
use crate::{Bundle, Error, ImageKind, Piece, ReadAt, Result};

/// Pages of an image that are unpacked together: 16 GiB. The list of where they lie takes some 200 MiB
/// at worst; a small page index can refer to so many.
const WINDOW: u32 = 1 << 22;

/// Told bytes done and bytes in total, it says whether to go on.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

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
        self.extract_while(kind, out, threads, &mut |done, total| {
            progress(done, total);
            ControlFlow::Continue(())
        })
    }

    /// Does the same as [`Bundle::extract`] for as long as `progress` says to continue; then
    /// [`Error::Stopped`].
    pub fn extract_while(
        &self,
        kind: ImageKind,
        out: &File,
        threads: usize,
        progress: Progress<'_>,
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
        let pieces = self.pieces_by_frame(kind, 0..page_count(found));
        for pieces in pieces.chunk_by(same_frame) {
            let raw = frames.read(pieces[0].source, pieces[0].frame as usize)?;
            for piece in pieces {
                let (offset, bytes) = place(piece, raw, found);
                image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(image)
    }

    /// Returns the error of what was stopped by whoever waits for it.
    pub(crate) fn stopped(&self) -> Error {
        Error::Stopped {
            path: self.path().to_owned(),
        }
    }

    fn require(&self, kind: ImageKind) -> Result<u64> {
        self.image_size(kind)
            .ok_or_else(|| self.source().missing(what(kind)))
    }

    /// Returns everything of these pages of an image that is not zero, in the order in which it lies
    /// in the bundle.
    fn pieces_by_frame(&self, kind: ImageKind, pages: Range<u32>) -> Vec<Piece> {
        let count = pages.end - pages.start;
        let mut pieces = self.index().pieces(kind, pages.start, count);
        pieces.sort_unstable();
        pieces
    }

    /// Hands every piece of an image to `write`, with its offset, from `threads` threads.
    fn unpack_image(
        &self,
        kind: ImageKind,
        threads: usize,
        progress: Progress<'_>,
        write: impl Fn(u64, &[u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let size = self.require(kind)?;
        let total = self.held_bytes(kind);
        let work = |reader: &mut FrameReader<'_, S>, pieces: &&[Piece]| {
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
        };
        let mut before = 0;
        for window in windows(page_count(size), WINDOW) {
            let pieces = self.pieces_by_frame(kind, window);
            let frames: Vec<&[Piece]> = pieces.chunk_by(same_frame).collect();
            let mut advance = |done, _| progress(before + done, total);
            before += self.each_frame(&frames, threads, total, &mut advance, work)?;
        }
        Ok(())
    }

    /// Does `work` for every item on `threads` threads until the first error, or until `progress`
    /// wants an end. `work` returns how much of `total` it has done. Returns how much was done.
    pub(crate) fn each_frame<T: Sync>(
        &self,
        items: &[T],
        threads: usize,
        total: u64,
        progress: Progress<'_>,
        work: impl Fn(&mut FrameReader<'_, S>, &T) -> Result<u64> + Sync,
    ) -> Result<u64> {
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
            let (mut done, mut first_error) = (0, None);
            for outcome in reports {
                let error = match outcome {
                    Ok(bytes) => {
                        done += bytes;
                        let stopped = first_error.is_none() && progress(done, total).is_break();
                        stopped.then(|| self.stopped())
                    }
                    Err(error) => Some(error),
                };
                if let Some(error) = error {
                    failed.store(true, Ordering::Relaxed);
                    first_error.get_or_insert(error);
                }
            }
            first_error.map_or(Ok(done), Err)
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
    /// Takes 28 bytes for each of its pages at worst.
    pub fn frame_map(&self, kind: ImageKind) -> FrameMap {
        let pages = self.image_size(kind).map_or(0, page_count);
        let pieces = match pages {
            0 => Vec::new(),
            _ => self.pieces_by_frame(kind, 0..pages),
        };
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

/// Returns the number of pages, which fits 32 bits: images have at most 64 GiB.
fn page_count(size: u64) -> u32 {
    size.div_ceil(PAGE_SIZE as u64) as u32
}

/// Cuts so many pages into ranges of at most `most`.
fn windows(pages: u32, most: u32) -> impl Iterator<Item = Range<u32>> {
    let firsts = (0..pages).step_by(most as usize);
    firsts.map(move |first| first..first.saturating_add(most).min(pages))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_every_page_once() {
        for pages in [0, 1, 6, 7, 8, 14, 15, 1 << 24] {
            let windows: Vec<_> = windows(pages, 7).collect();
            assert!(
                windows
                    .iter()
                    .all(|w| w.start < w.end && w.end - w.start <= 7)
            );
            assert!(windows.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!(windows.first().map_or(0, |w| w.start), 0);
            assert_eq!(windows.last().map_or(0, |w| w.end), pages);
        }
        assert_eq!(
            windows(u32::MAX, u32::MAX - 1).last(),
            Some(u32::MAX - 1..u32::MAX)
        );
    }
}
