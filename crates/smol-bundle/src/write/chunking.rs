//! Content-defined chunking: which pages of an image are compressed together.
//!
//! Where a frame ends depends on the pages in it, so that a page more or less changes one frame or
//! two, and not all that follow.

use std::collections::VecDeque;

use crate::format::frame::Packed;
use crate::format::index::Image;
use crate::format::limits::PAGE_SIZE;
use crate::write::pool::Pool;
use crate::{Error, Result};

/// How this library gathers pages into frames. Larger frames compress better, smaller ones waste less
/// when a single page is wanted (docs/measurements.md has figures).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunking {
    /// Fewest pages in a frame, but for the last one.
    min: u32,
    /// Most pages.
    max: u32,
    /// A page whose hash is a multiple of it ends a frame that has enough of them.
    divisor: u8,
}

/// Frames of 30 pages on average: for what a restored machine waits for.
pub(crate) const FINE: Chunking = Chunking {
    min: 16,
    max: 48,
    divisor: 16,
};

/// Frames of 240 pages on average: for the bulk of a root file system, of which most is never read.
pub(crate) const COARSE: Chunking = Chunking {
    min: 128,
    max: 384,
    divisor: 128,
};

/// How pages are compared: blake3 of the page. Collision-resistant, so equal hashes are equal pages
/// even if the guest chose them.
pub(crate) type PageHash = [u8; 32];

/// Where compressed frames go.
pub(crate) type Sink<'s> = &'s mut dyn FnMut(Packed) -> Result<()>;

/// Collects stored pages into frames, which are compressed while the next pages are read.
pub(crate) struct Chunker<'p> {
    pool: &'p mut Pool,
    sink: Sink<'p>,
    chunking: Chunking,
    /// The raw frame that is being filled.
    current: Vec<u8>,
    /// Pages of the frames that are in the pool.
    in_flight: VecDeque<u32>,
    /// Stored pages so far.
    stored: u32,
}

impl<'p> Chunker<'p> {
    pub(crate) fn new(pool: &'p mut Pool, sink: Sink<'p>) -> Self {
        Chunker {
            pool,
            sink,
            chunking: FINE,
            current: Vec::new(),
            in_flight: VecDeque::new(),
            stored: 0,
        }
    }

    /// Takes a page and returns its slot.
    pub(crate) fn page(&mut self, bytes: &[u8], hash: &PageHash, image: &mut Image) -> Result<u32> {
        let Chunking { min, max, divisor } = self.chunking;
        let pages = |pages: u32| pages as usize * PAGE_SIZE;
        if self.current.is_empty() {
            self.current.reserve_exact(pages(max));
        }
        self.current.extend_from_slice(bytes);
        let len = self.current.len();
        if len == pages(max) || len >= pages(min) && hash[0].is_multiple_of(divisor) {
            self.end(image)?;
        }
        self.stored += 1;
        Ok(self.stored - 1)
    }

    /// Ends the frame that is being filled; the next ones are chunked in this way.
    pub(crate) fn set_chunking(&mut self, chunking: Chunking, image: &mut Image) -> Result<()> {
        self.end(image)?;
        self.chunking = chunking;
        Ok(())
    }

    /// Ends the frame that is being filled.
    fn end(&mut self, image: &mut Image) -> Result<()> {
        let raw = std::mem::take(&mut self.current);
        if raw.is_empty() {
            return Ok(());
        }
        while self.pool.is_full() {
            self.flush_one(image)?;
        }
        self.in_flight.push_back((raw.len() / PAGE_SIZE) as u32);
        self.pool.push(raw);
        Ok(())
    }

    /// Waits for the oldest frame in the pool, lists it in `image` and gives it to the sink.
    fn flush_one(&mut self, image: &mut Image) -> Result<()> {
        let (Some(pages), Some(packed)) = (self.in_flight.pop_front(), self.pool.pop()) else {
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

    /// Ends the last frame and waits for all that are in the pool.
    pub(crate) fn finish(mut self, image: &mut Image) -> Result<()> {
        self.end(image)?;
        while !self.in_flight.is_empty() {
            self.flush_one(image)?;
        }
        Ok(())
    }
}
