//! Frames that are compressed before the bundle is written.
//!
//! Which pages a restored machine touches first, and so which of them lie in frames of their own, is
//! known only when the machine has run. Its images are known before. So they are cut into frames as if
//! nothing were touched, and those are compressed while the machine runs. Where a frame of the bundle
//! holds the same pages, and most do, its bytes are there already.
//!
//! This is only a cache: [`frame::pack`] makes the same bytes of the same pages, and a frame is looked
//! up by all of its pages. So a bundle has the same bytes with it and without, and whatever goes wrong
//! here leaves more to do for the writer, which reports it if it fails, too.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::frame::{self, Packed};
use crate::write::pages::{self, ImageFile, KnownPages};
use crate::write::pool::{self, Pool};
use crate::{Error, ImageKind, Result};

/// Most compressed bytes that are kept: 64 MiB, those of a root file system of some 180 MiB. With what
/// is in flight in the pool this stays below the 256 MiB that a build may take beside the guest's
/// memory.
const MAX_BYTES: usize = 64 << 20;

/// Frames that are compressed already, for [`write_while`](crate::write_while). The default has none.
#[derive(Default)]
pub struct Prepared {
    frames: Mutex<Frames>,
    used: AtomicU64,
}

#[derive(Default)]
struct Frames {
    /// By the blake3 of their pages.
    packed: HashMap<[u8; 32], Packed>,
    /// Compressed bytes in them.
    bytes: usize,
    /// Whether a frame did not fit any more.
    full: bool,
}

impl Prepared {
    /// Compresses the frames of these images (all but memory) until all are done, 64 MiB are kept
    /// or `proceed` says no: it is asked for each frame and each MiB, by several threads. They have
    /// the priority of the caller, and leave one core to other work.
    ///
    /// An image that cannot be read, too, ends the work: what was prepared until then remains.
    pub fn of(images: &[(ImageKind, &Path)], proceed: &(dyn Fn() -> bool + Sync)) -> Self {
        Self::up_to(MAX_BYTES, images, proceed)
    }

    fn up_to(
        most: usize,
        images: &[(ImageKind, &Path)],
        proceed: &(dyn Fn() -> bool + Sync),
    ) -> Self {
        let prepared = Self::default();
        let proceed = || proceed() && !prepared.lock().full;
        let work = |raw: &[u8]| match proceed() {
            true => frame::pack(raw).map(|packed| prepared.keep(most, raw, packed)),
            false => Err(io::ErrorKind::Interrupted.into()),
        };
        let threads = pool::cores().saturating_sub(1);
        let _: io::Result<Result<()>> = Pool::with(threads, &work, |pool| {
            for (kind, path) in images {
                prepare(*kind, path, pool, &proceed)?;
            }
            Ok(())
        });
        prepared
    }

    /// Returns how many frames a writer has taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a frame, if it fits. What is returned, for the pool to pass on, has no bytes.
    fn keep(&self, most: usize, raw: &[u8], mut packed: Packed) -> Packed {
        let nothing = Packed {
            bytes: Vec::new(),
            hash: packed.hash,
        };
        // Its capacity is for the worst case of compression.
        packed.bytes.shrink_to_fit();
        let mut frames = self.lock();
        frames.full |= frames.bytes + packed.bytes.len() > most;
        if !frames.full {
            frames.bytes += packed.bytes.len();
            frames.packed.insert(blake3::hash(raw).into(), packed);
        }
        nothing
    }

    /// Returns the frame of these pages: the one that was prepared, or one that is compressed now.
    pub(crate) fn pack(&self, raw: &[u8]) -> io::Result<Packed> {
        match self.take(raw) {
            Some(packed) => Ok(packed),
            None => frame::pack(raw),
        }
    }

    /// Takes the frame of these pages out. None is wanted twice: it would hold pages that are
    /// stored already.
    fn take(&self, raw: &[u8]) -> Option<Packed> {
        if self.lock().packed.is_empty() {
            return None;
        }
        let hash = blake3::hash(raw);
        let mut frames = self.lock();
        let packed = frames.packed.remove(hash.as_bytes())?;
        frames.bytes -= packed.bytes.len();
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(packed)
    }
}

/// Sends the frames of an image through the pool.
fn prepare(
    kind: ImageKind,
    path: &Path,
    pool: &mut Pool,
    proceed: &dyn Fn() -> bool,
) -> Result<()> {
    let file = ImageFile::open(kind, path)?;
    let mut advance = |_| match proceed() {
        true => Ok(()),
        false => Err(Error::Stopped {
            path: path.to_owned(),
        }),
    };
    let mut forget = |_| Ok(());
    pages::pack(
        &file,
        &[],
        &mut KnownPages::default(),
        pool,
        &mut forget,
        &mut advance,
    )
    .map(drop)
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = self.lock();
        f.debug_struct("Prepared")
            .field("frames", &frames.packed.len())
            .field("bytes", &frames.bytes)
            .field("used", &self.used())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::limits::PAGE_SIZE;

    /// Returns an image of pages that do not compress, each another.
    fn image(pages: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![0; pages * PAGE_SIZE];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn prepared(image: &Path, most: usize, proceed: &(dyn Fn() -> bool + Sync)) -> Frames {
        let prepared = Prepared::up_to(most, &[(ImageKind::Rootfs, image)], proceed);
        prepared.frames.into_inner().unwrap()
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_work_ends_there() {
        let image = image(2000);
        let all = prepared(image.path(), MAX_BYTES, &|| true);
        assert!(!all.full && all.bytes > 2000 * PAGE_SIZE);
        let most = 3 << 20;
        let some = prepared(image.path(), most, &|| true);
        assert!(some.full && some.bytes <= most && !some.packed.is_empty());
        let held: usize = some.packed.values().map(|p| p.bytes.capacity()).sum();
        assert!(held <= most + some.packed.len() * 64, "{held}");
        assert!(some.packed.len() < all.packed.len());
    }

    #[test]
    fn a_frame_is_given_once_and_is_what_the_writer_would_have_made() {
        let raw = vec![7; 20 * PAGE_SIZE];
        let prepared = Prepared::default();
        prepared.keep(MAX_BYTES, &raw, frame::pack(&raw).unwrap());
        for used in [1, 1] {
            let packed = prepared.pack(&raw).unwrap();
            let fresh = frame::pack(&raw).unwrap();
            assert!(packed.bytes == fresh.bytes && packed.hash == fresh.hash);
            assert_eq!(prepared.used(), used);
        }
        assert_eq!(prepared.lock().bytes, 0);
    }
}
