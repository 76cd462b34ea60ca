//! Reads every byte of a bundle.

use std::ops::ControlFlow;
use std::thread;

use sha2::{Digest as _, Sha256};

use crate::format::archive::Entry;
use crate::format::limits::PAGE_SIZE;
use crate::format::oci;
use crate::read::extract::Progress;
use crate::{Bundle, Digest, Error, FrameReader, Image, ImageKind, ReadAt, Result, SignatureError};

/// Bytes read at a time.
const READ: u64 = 1 << 20;

impl<S: ReadAt> Bundle<S> {
    /// Verifies the whole file: the sha256 of every blob, every frame, the zeros between the
    /// archive's entries, and that each signature is true for the key that it names. Together with
    /// what [`Bundle::open`] checks, no bit of the file is left out.
    ///
    /// It does not say whom to trust: that is [`Bundle::verify_signature`].
    /// `progress` is told bytes done and bytes in total.
    pub fn verify_all(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.verify_while(&mut |done, total| {
            progress(done, total);
            ControlFlow::Continue(())
        })
    }

    /// Does the same as [`Bundle::verify_all`] for as long as `progress` says to continue; then
    /// [`Error::Stopped`].
    pub fn verify_while(&self, progress: Progress<'_>) -> Result<()> {
        let blobs: u64 = self.entries().iter().map(|e| e.size).sum();
        let frames: u64 = self.index().images().iter().map(Image::blob_len).sum();
        let total = blobs + frames;
        let mut done = 0;
        for entry in self.entries() {
            self.verify_entry(entry, &mut |bytes| {
                done += bytes;
                match progress(done, total) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(self.stopped()),
                }
            })?;
        }
        for signature in self.signatures() {
            if !signature.holds(&self.digest()) {
                let reason = SignatureError::Bad {
                    key_id: signature.key_id,
                };
                return Err(Error::Signature {
                    path: self.path().to_owned(),
                    reason,
                });
            }
        }
        self.verify_frames(&mut |bytes, _| progress(blobs + bytes, total))?;
        self.index()
            .images()
            .iter()
            .try_for_each(|image| self.verify_last_page(image))
    }

    /// Checks a blob's digest and the zeros after it. The other two entries are compared when the
    /// bundle is opened.
    fn verify_entry(
        &self,
        entry: &Entry,
        advance: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; entry.size.min(READ) as usize];
        let mut at = 0;
        while at < entry.size {
            let len = (entry.size - at).min(READ);
            let bytes = &mut buffer[..len as usize];
            self.source().read(bytes, entry.offset + at)?;
            hasher.update(&*bytes);
            at += len;
            advance(len)?;
        }
        let found = Digest::finish(hasher);
        let is_blob = entry.name != "oci-layout" && entry.name != "index.json";
        if is_blob && oci::blob_name(&found) != entry.name {
            let hex = entry.name.rsplit('/').next().unwrap_or_default();
            let expected = format!("sha256:{hex}")
                .parse()
                .map_err(|reason| self.source().corrupt(&entry.name, entry.offset, reason))?;
            let (path, offset) = (self.path().to_owned(), entry.offset);
            return Err(Error::DigestMismatch {
                path,
                offset,
                expected,
                found,
            });
        }
        let mut padding = vec![0; (entry.end() - entry.offset - entry.size) as usize];
        let offset = entry.offset + entry.size;
        self.source().read(&mut padding, offset)?;
        match padding.iter().position(|b| *b != 0) {
            Some(i) => Err(self.source().corrupt(
                &entry.name,
                offset + i as u64,
                "the padding is not zero",
            )),
            None => Ok(()),
        }
    }

    fn verify_frames(&self, progress: Progress<'_>) -> Result<()> {
        let images = self.index().images();
        let all = |image: &Image| {
            (0..image.frames().len())
                .map(|n| (image.kind(), n))
                .collect::<Vec<_>>()
        };
        let frames: Vec<(ImageKind, usize)> = images.iter().flat_map(all).collect();
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let verify = |reader: &mut FrameReader<'_, S>, &(kind, n): &(ImageKind, usize)| {
            reader.read(kind, n)?;
            let image = self.index().image(kind);
            Ok(image.map_or(0, |image| u64::from(image.frames()[n].len)))
        };
        self.each_frame(&frames, threads, 0, progress, verify)?;
        Ok(())
    }

    /// Checks that what lies in the last page beyond the image's size is zero.
    fn verify_last_page(&self, image: &Image) -> Result<()> {
        let used = (image.size() % PAGE_SIZE as u64) as usize;
        if used == 0 {
            return Ok(());
        }
        for piece in self.index().pieces(image.kind(), image.pages() - 1, 1) {
            let raw = self.frame(piece.source, piece.frame as usize)?;
            let page = &raw[piece.page_in_frame as usize * PAGE_SIZE..][..PAGE_SIZE];
            if page[used..].iter().any(|b| *b != 0) {
                let reason = "the image's last page is not zero beyond its end";
                return Err(self.source().corrupt(image.kind().name(), 0, reason));
            }
        }
        Ok(())
    }
}
