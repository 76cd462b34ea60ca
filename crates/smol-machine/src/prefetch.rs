//! The working set of a restored machine, in memory before it is asked for.
//!
//! A page of a copy-on-write mapping costs a guest microseconds, each time that it is the first to
//! read it and again when it is the first to write it. So where a restored machine is known to
//! touch much, whole blocks of 2 MiB are read from the image, each in one stroke and into a huge
//! page, in the order in which the working set names them; and the pages in between are mapped in
//! advance.
//!
//! The machine does not wait for it: where userfaultfd(2) can move pages, a block is absent until
//! it is there as a whole, and who touches it earlier waits for that alone. Elsewhere the blocks
//! are read before the machine runs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{PAGE, PmemImage, Ram};
use crate::uffd::Uffd;

/// A huge page.
const BLOCK: usize = 2 << 20;
const BLOCK_PAGES: usize = BLOCK / PAGE;
/// Pages of a block that must be in the working set for it to be read whole: what is read whole is
/// shared with no other machine. Reading all of it takes as long as some hundred faults.
const DENSE: usize = BLOCK_PAGES / 2;
/// Pages that are mapped in vain rather than in another call.
const GAP: u32 = 16;

/// Pages, by the number of the first and how many, in the order in which to bring them.
pub type Runs = Vec<(u32, u32)>;

/// What is yet to be brought into memory.
pub(crate) struct Prefetch {
    image: Arc<File>,
    /// Where a block belongs, and its offset in the image.
    blocks: Vec<(usize, u64)>,
    /// Keeps waiting who touches a block that is not there yet.
    uffd: Option<Uffd>,
    /// Address and length of what is only to be mapped.
    sparse: Vec<(usize, usize)>,
    /// Keep the mappings.
    ram: Ram,
    _rootfs: Option<Arc<PmemImage>>,
}

impl Prefetch {
    /// Makes room in `ram`, a mapping of `image`, for the pages of `memory`; those of `rootfs` have
    /// theirs. Nothing may have touched either yet. Pages that do not exist do not count.
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
        for (address, len) in neighbours(&blocks) {
            // SAFETY: whole blocks inside a mapping of `ram`, which nothing has touched, so
            // nobody can see that they change; they stay mapped, readable and writable.
            unsafe { make_anonymous(address, len)? };
            if let Some(uffd) = &uffd {
                // SAFETY: just made. `finish` puts pages there.
                unsafe { uffd.register(address as *mut u8, len)? };
            }
        }
        let mut sparse = Vec::new();
        let not_dense = |page: u32| !dense.contains(&(page as usize / BLOCK_PAGES));
        for (first, pages) in joined(memory, not_dense) {
            sparse.extend(addresses(ram, first, pages));
        }
        if let Some((image, runs)) = rootfs {
            for (first, pages) in joined(runs, |_| true) {
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

    /// Brings everything into memory.
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
                        // zeros in the staging block by now, but they are there already.
                        // SAFETY: as above; and `to` is the registered block that it is for.
                        unsafe { uffd.copy(to, std::slice::from_raw_parts(from, BLOCK))? };
                    }
                }
            }
            None => {
                for &(address, offset) in &self.blocks {
                    // SAFETY: the machine does not run yet: nobody else touches its memory.
                    unsafe { read(&self.image, address, offset)? };
                }
            }
        }
        for &(address, len) in &self.sparse {
            // Only saves time: where it is not possible (before Linux 5.14), pages come when they
            // are touched.
            // SAFETY: a range of a mapping that `self` keeps; its contents do not change.
            unsafe { libc::madvise(address as *mut libc::c_void, len, libc::MADV_POPULATE_READ) };
        }
        debug_assert!(self.ram.num_regions() > 0);
        Ok(())
    }
}

/// The blocks to be read whole: their numbers, and in that order where they are in
/// memory and in the image.
fn dense_blocks(ram: &Ram, runs: &Runs) -> (HashSet<usize>, Vec<(usize, u64)>) {
    let mut counts = HashMap::new();
    let mut order = Vec::new();
    for page in runs
        .iter()
        .flat_map(|&(first, pages)| first..first.saturating_add(pages))
    {
        let block = page as usize / BLOCK_PAGES;
        let count = counts.entry(block).or_insert(0usize);
        if *count == 0 {
            order.push(block);
        }
        *count += 1;
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

/// Address and length of blocks that lie side by side.
fn neighbours(blocks: &[(usize, u64)]) -> Vec<(usize, usize)> {
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

/// Pages that pass, in ascending order, near ones joined.
fn joined(runs: &Runs, passes: impl Fn(u32) -> bool) -> Vec<(u32, u32)> {
    let pages = runs
        .iter()
        .flat_map(|&(first, pages)| first..first.saturating_add(pages));
    let mut pages: Vec<u32> = pages.filter(|page| passes(*page)).collect();
    pages.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for page in pages {
        match joined.last_mut() {
            Some((first, pages)) if page - (*first + *pages).min(page) <= GAP => {
                *pages = page - *first + 1;
            }
            _ => joined.push((page, 1)),
        }
    }
    joined
}

/// Where pages of the image are in memory: address and length, cut at the borders of regions.
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

/// Anonymous memory in place of what is mapped there, in huge pages if possible.
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

/// A block of our own, to be filled and taken away again and again.
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
    fn what_is_prefetched_is_the_image_whether_one_waits_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let bytes: Vec<u8> = (0..16u32 << 20)
            .map(|i| (i / 4096 * 7 + i % 251) as u8)
            .collect();
        std::fs::write(&path, &bytes).unwrap();
        // Block 3 as a whole, block 1 by 300 pages, some pages here and there, nonsense.
        let runs = vec![
            (1536, 512),
            (700, 300),
            (5, 1),
            (9, 2),
            (4095, 1),
            (4096, 9),
            (u32::MAX, 9),
        ];
        for early in [false, true] {
            let (ram, image) = memory::copy_on_write(16 << 20, &path).unwrap();
            let prefetch = Prefetch::new(&ram, image, &runs, None).unwrap();
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
        let runs = vec![(40, 2), (3, 1), (5, 1), (100, 1), (41, 1)];
        assert_eq!(joined(&runs, |page| page != 100), [(3, 3), (40, 2)]);
    }
}
