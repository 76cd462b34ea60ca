//! An allocator that counts, and refuses what is beyond any limit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Most bytes that any input may make a reader hold; docs/security.md.
pub const LIMIT: usize = 512 << 20;

static COUNTING: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Runs `work`. Returns what it does, and the most bytes that were allocated since its beginning at a time, by
/// whatever thread. More than [`LIMIT`] (and a bit) is not given, which ends the process.
///
/// One at a time: the counters are the process's. Memory that is mapped (guest RAM) and that of C
/// libraries does not count.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LIVE.store(0, Ordering::SeqCst);
    PEAK.store(0, Ordering::SeqCst);
    COUNTING.store(true, Ordering::SeqCst);
    let outcome = work();
    COUNTING.store(false, Ordering::SeqCst);
    (outcome, PEAK.load(Ordering::SeqCst))
}

/// The allocator.
pub struct Counting;

impl Counting {
    /// Counts `size` bytes more; false if there shall be none.
    fn grow(size: usize) -> bool {
        if !COUNTING.load(Ordering::Relaxed) {
            return true;
        }
        let before = LIVE.fetch_add(size, Ordering::Relaxed);
        // What was allocated before the count began, and freed in it, takes the number below zero.
        let live = before
            .wrapping_add(size)
            .cast_signed()
            .max(0)
            .cast_unsigned();
        PEAK.fetch_max(live, Ordering::Relaxed);
        let fits = live <= LIMIT + (LIMIT >> 3);
        if !fits {
            LIVE.fetch_sub(size, Ordering::Relaxed);
        }
        fits
    }

    fn shrink(size: usize) {
        if COUNTING.load(Ordering::Relaxed) {
            LIVE.fetch_sub(size, Ordering::Relaxed);
        }
    }
}

// SAFETY: memory comes from the system's allocator alone, by the same layout that it is given back
// with; the counters touch nothing of it. A null pointer is the answer of an allocator that has no
// more.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Self::grow(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !Self::grow(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // As if it were copied: both are there for a moment.
        if !Self::grow(size) {
            return std::ptr::null_mut();
        }
        Self::shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}
