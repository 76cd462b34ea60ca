//! Prefetch: loads the working set of a restored machine before the guest accesses it.
//!
//! A page of a copy-on-write mapping costs a guest microseconds, each time that it is the first to
//! read it and again when it is the first to write it. So where a restored machine is known to
//! write much, whole blocks of 2 MiB are read from the image, each at once and into a huge page, in
//! the order of the working set; all else is mapped in advance, and shared with other machines until
//! it is written.
//!
//! The machine does not wait for it: where userfaultfd(2) can move pages, a block is absent until it
//! is loaded as a whole, and an earlier access waits for that block alone. It begins just before
//! the machine runs, and nothing may access that memory before. Elsewhere the blocks are
//! read before the machine runs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::uffd::Uffd;
use crate::memory::{PAGE, PmemImage, Ram};

/// A huge page.
const BLOCK: usize = 2 << 20;
const BLOCK_PAGES: usize = BLOCK / PAGE;
/// Pages of a block that must be written for it to be read whole: what is read whole is shared
/// with no other machine. Reading all of it takes as long as some hundred faults.
const DENSE: usize = BLOCK_PAGES / 2;
/// Pages that are mapped in vain rather than in another call.
const GAP: u32 = 16;

/// Adjacent pages that a machine is known to access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the first one.
    pub first: u32,
    /// How many.
    pub pages: u32,
    /// Whether it will write to them, too.
    pub written: bool,
}

impl Run {
    /// Returns its parts in each block: the block's number, the first page and the number of pages.
    fn by_block(self) -> impl Iterator<Item = (usize, (u32, u32))> {
        let end = self.first.saturating_add(self.pages);
        let mut first = self.first;
        std::iter::from_fn(move || {
            let block = first as usize / BLOCK_PAGES;
            let border = (block as u32 + 1).saturating_mul(BLOCK_PAGES as u32);
            let piece = (first, border.min(end) - first);
            first = border.min(end);
            (piece.1 > 0).then_some((block, piece))
        })
    }
}

/// Pages in the order in which to load them.
pub type Runs = Vec<Run>;

/// What is yet to be loaded.
pub(crate) struct Prefetch {
    image: Arc<File>,
    /// Address of each block and its offset in the image.
    blocks: Vec<(usize, u64)>,
    /// Has accesses to absent blocks wait.
    uffd: Option<Uffd>,
    /// Address and length of what is only to be mapped.
    sparse: Vec<(usize, usize)>,
    /// Keep the mappings.
    ram: Ram,
    _rootfs: Option<Arc<PmemImage>>,
}

impl Prefetch {
    /// Prepares `ram`, a mapping of `image`, for the pages of `memory`; for those of `rootfs` there
    /// is nothing to prepare. Nothing may have accessed either yet. Pages that do not exist are
    /// ignored.
    pub(crate) fn new(
        ram: &Ram,
        image: Arc<File>,
        memory: &Runs,
        rootfs: Option<(&Arc<PmemImage>, &Runs)>,
    ) -> io::Result<Self> {
        let (dense, blocks) = dense_blocks(ram, memory);
        let uffd = match blocks.is_empty() {
            true => None,
            false => Uffd::new().ok().filter(Uffd::moves),
        };
        for (address, len) in adjacent(&blocks) {
            // SAFETY: whole blocks inside a mapping of `ram`, which nothing has accessed, so
            // nobody can see that they change; they stay mapped, readable and writable.
            unsafe { make_anonymous(address, len)? };
            if let Some(uffd) = &uffd {
                // SAFETY: just made. `finish` loads the pages.
                unsafe { uffd.register(address as *mut u8, len)? };
            }
        }
        let pieces = memory.iter().flat_map(|run| run.by_block());
        let pieces = pieces.filter_map(|(block, piece)| (!dense.contains(&block)).then_some(piece));
        let mut sparse: Vec<_> = joined(pieces, GAP)
            .into_iter()
            .flat_map(|(first, pages)| addresses(ram, first, pages))
            .collect();
        if let Some((image, runs)) = rootfs {
            let runs = runs.iter().map(|run| (run.first, run.pages));
            for (first, pages) in joined(runs, GAP) {
                let from = (first as usize * PAGE).min(image.len as usize);
                let len = (pages as usize * PAGE).min(image.len as usize - from);
                sparse.push((image.host as usize + from, len));
            }
        }
        Ok(Self {
            image,
            blocks,
            uffd,
            sparse,
            ram: ram.clone(),
            _rootfs: rootfs.map(|(image, _)| image.clone()),
        })
    }

    /// Whether the machine may run before [`Prefetch::finish`] has returned.
    pub(crate) fn can_wait(&self) -> bool {
        self.blocks.is_empty() || self.uffd.is_some()
    }

    /// Loads everything.
    pub(crate) fn finish(self) -> io::Result<()> {
        match &self.uffd {
            Some(uffd) => {
                let staging = Staging::new()?;
                for &(address, offset) in &self.blocks {
                    let (to, from) = (address as *mut u8, staging.block as *mut u8);
                    // SAFETY: the staging block is nobody else's; afterwards it is empty again.
                    let taken = unsafe {
                        read(&self.image, staging.block, offset)?;
                        uffd.take(to, from, BLOCK)
                    };
                    if taken.is_err() {
                        // A page that cannot be moved now is copied. Those that were moved are
                        // zeros in the staging block by now, but they are present already.
                        // SAFETY: as above; and `to` is the registered block that it is for.
                        unsafe { uffd.copy(to, std::slice::from_raw_parts(from, BLOCK))? };
                    }
                }
            }
            None => {
                for &(address, offset) in &self.blocks {
                    // SAFETY: the machine does not run yet: nobody else accesses its memory.
                    unsafe { read(&self.image, address, offset)? };
                }
            }
        }
        // Single pages that will be written are not copied ahead (MADV_POPULATE_WRITE): replacing
        // them stops a running vCPU each time, and redis answered no sooner.
        for &(address, len) in &self.sparse {
            // Only saves time: where it is not possible (before Linux 5.14), pages are mapped when
            // they are accessed.
            // SAFETY: a range of a mapping that `self` keeps; its contents do not change.
            unsafe { libc::madvise(address as *mut libc::c_void, len, libc::MADV_POPULATE_READ) };
        }
        debug_assert!(self.ram.num_regions() > 0);
        Ok(())
    }
}

/// Returns the blocks to be read whole: their numbers, and in that order where they are in memory
/// and in the image.
fn dense_blocks(ram: &Ram, runs: &Runs) -> (HashSet<usize>, Vec<(usize, u64)>) {
    let mut counts = HashMap::new();
    let mut order = Vec::new();
    let written = runs.iter().filter(|run| run.written);
    for (block, (_, pages)) in written.flat_map(|run| run.by_block()) {
        let count = counts.entry(block).or_insert(0usize);
        if *count == 0 {
            order.push(block);
        }
        *count += pages as usize;
    }
    order.retain(|block| counts[block] >= DENSE);
    let place = |block: &usize| {
        let page = u32::try_from(block * BLOCK_PAGES).ok()?;
        let (address, len) = addresses(ram, page, BLOCK_PAGES as u32).next()?;
        let whole = len == BLOCK && address.is_multiple_of(BLOCK);
        whole.then_some((*block, (address, *block as u64 * BLOCK as u64)))
    };
    order.iter().filter_map(place).unzip()
}

/// Returns address and length of adjacent blocks.
fn adjacent(blocks: &[(usize, u64)]) -> Vec<(usize, usize)> {
    let mut addresses: Vec<_> = blocks.iter().map(|(address, _)| *address).collect();
    addresses.sort_unstable();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for address in addresses {
        match ranges.last_mut() {
            Some((start, len)) if *start + *len == address => *len += BLOCK,
            _ => ranges.push((address, BLOCK)),
        }
    }
    ranges
}

/// Returns the same pages in ascending order, as first page and number of pages; runs with no more
/// than `gap` pages between them are joined.
fn joined(runs: impl Iterator<Item = (u32, u32)>, gap: u32) -> Vec<(u32, u32)> {
    let mut runs: Vec<_> = runs.collect();
    runs.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::with_capacity(runs.len());
    for (first, pages) in runs {
        let end = first.saturating_add(pages);
        match joined.last_mut() {
            Some((begin, len)) if first.saturating_sub(*begin + *len) <= gap => {
                *len = (*len).max(end - *begin);
            }
            _ => joined.push((first, end - first)),
        }
    }
    joined
}

/// Returns where pages of the image are in memory: address and length, cut at the borders of
/// regions.
fn addresses(ram: &Ram, first: u32, pages: u32) -> impl Iterator<Item = (usize, usize)> {
    let begin = u64::from(first) * PAGE as u64;
    let end = begin + u64::from(pages) * PAGE as u64;
    let mut offset = 0;
    ram.iter().filter_map(move |region| {
        let (from, to) = (begin.max(offset), end.min(offset + region.len()));
        let address = region.get_mmap().as_ptr() as usize + from.saturating_sub(offset) as usize;
        offset += region.len();
        (from < to).then_some((address, (to - from) as usize))
    })
}

/// Maps anonymous memory in place of what is mapped there, in huge pages if possible.
///
/// # Safety
/// `address..address + len` must be the caller's to replace.
unsafe fn make_anonymous(address: usize, len: usize) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let at = address as *mut libc::c_void;
    // SAFETY: as the caller promises; advice changes no contents.
    unsafe {
        if libc::mmap(at, len, protection, flags, -1, 0) == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::madvise(at, len, libc::MADV_HUGEPAGE);
    }
    Ok(())
}

/// Reads a block of the image.
///
/// # Safety
/// `address..address + BLOCK` must be mapped and writable, and nobody else's for now.
unsafe fn read(image: &File, address: usize, offset: u64) -> io::Result<()> {
    // SAFETY: as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, BLOCK) };
    image.read_exact_at(bytes, offset)
}

/// A block that is filled from the image and whose pages are moved to the guest, for one block
/// after the other.
struct Staging {
    mapping: *mut libc::c_void,
    block: usize,
}

impl Staging {
    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping, at an address of the kernel's choice.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                2 * BLOCK,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let block = (mapping as usize).next_multiple_of(BLOCK);
        let staging = Self { mapping, block };
        // SAFETY: the aligned half of the mapping just made.
        unsafe { make_anonymous(block, BLOCK)? };
        Ok(staging)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing refers to it any more.
        unsafe { libc::munmap(self.mapping, 2 * BLOCK) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn what_is_prefetched_is_the_image_whether_the_reader_waits_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let bytes: Vec<u8> = (0..16u32 << 20)
            .map(|i| (i / 4096 * 7 + i % 251) as u8)
            .collect();
        std::fs::write(&path, &bytes).unwrap();
        // Block 3 as a whole, block 1 by 300 pages, block 4 only to be read, single pages, and
        // pages that do not exist.
        let runs: Runs = [
            (1536, 512, true),
            (700, 300, true),
            (2048, 512, false),
            (5, 1, true),
            (9, 2, false),
            (4095, 1, true),
            (4096, 9, true),
            (u32::MAX, 9, false),
        ]
        .map(|(first, pages, written)| Run {
            first,
            pages,
            written,
        })
        .into();
        for early in [false, true] {
            let (ram, image) = memory::copy_on_write(16 << 20, &path).unwrap();
            let prefetch = Prefetch::new(&ram, image, &runs, None).unwrap();
            assert_eq!(prefetch.blocks.len(), 2);
            let may_wait = prefetch.can_wait();
            let finish = std::thread::spawn(move || prefetch.finish());
            if !(early && may_wait) {
                finish.join().unwrap().unwrap();
            }
            let mut found = vec![0; 16 << 20];
            ram.read_slice(&mut found, GuestAddress(0)).unwrap();
            assert!(found == bytes, "early: {early}");
            ram.write_obj(1u8, GuestAddress(3 * BLOCK as u64)).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "written through");
    }

    #[test]
    fn near_pages_are_mapped_together() {
        let runs = [
            (40, 1),
            (41, 1),
            (3, 1),
            (5, 1),
            (200, 9),
            (40, 2),
            (u32::MAX, 9),
        ];
        let near = [(3, 3), (40, 2), (200, 9), (u32::MAX, 0)];
        assert_eq!(joined(runs.into_iter(), 16), near);
        let touching = [(3, 1), (5, 1), (40, 2), (200, 9), (u32::MAX, 0)];
        assert_eq!(joined(runs.into_iter(), 0), touching);
    }

    #[test]
    fn a_run_is_cut_at_the_borders_of_blocks() {
        let cut = |first, pages| {
            let written = true;
            let run = Run {
                first,
                pages,
                written,
            };
            run.by_block().collect::<Vec<_>>()
        };
        assert_eq!(cut(510, 4), [(0, (510, 2)), (1, (512, 2))]);
        assert_eq!(cut(512, 512), [(1, (512, 512))]);
        assert_eq!(cut(1, 0), []);
        let last = (u32::MAX as usize / 512, (u32::MAX - 1, 1));
        assert_eq!(cut(u32::MAX - 1, 9), [last]);
    }
}
