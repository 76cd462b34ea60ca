//! Memory that is filled while the machine runs: a page that nobody has touched yet is not there,
//! and who touches it waits until somebody has put it there.
//!
//! ```text
//! Demand::new --> Machine::restore_on_demand --> run() ----touches----> next() -> page
//!                                                  ^                               |
//!                                                  +----runs on---- fill(), zero() +
//! ```

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{self, PAGE, PmemImage, Ram};
use crate::uffd::Uffd;
use crate::{Error, Result, layout};

/// What a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    /// RAM; pages are numbered as in a memory image.
    Memory,
    /// The root file system's image.
    Rootfs,
}

/// RAM and root file system of one machine, both without a single page at first.
#[derive(Debug)]
pub struct Demand {
    uffd: Uffd,
    spans: Vec<Span>,
    /// Keeps the mappings for as long as anybody can put pages into them.
    pub(crate) ram: Ram,
    pub(crate) rootfs: Option<Arc<PmemImage>>,
    ended: AtomicBool,
    /// Readable once it has ended.
    end: std::os::fd::OwnedFd,
    /// One caller at a time waits for touches.
    waiting: Mutex<()>,
}

/// A mapping, and the pages that it holds.
#[derive(Clone, Copy, Debug)]
struct Span {
    area: Area,
    start: usize,
    first: u32,
    pages: u32,
}

impl Demand {
    /// Room for `memory` bytes of RAM and an image of `rootfs` bytes (0: none).
    ///
    /// # Errors
    /// [`Error::Memory`] where userfaultfd(2) is not permitted, or there is no room.
    pub fn new(memory: u64, rootfs: u64) -> Result<Self> {
        let fail = |what: &str, e: io::Error| Error::Memory(format!("{what}: {e}"));
        let uffd = Uffd::new().map_err(|e| fail("userfaultfd", e))?;
        let ram = memory::anonymous(memory)?;
        let rootfs = match rootfs {
            0 => None,
            len => {
                let image = PmemImage::anonymous(len, layout::pmem_gpa(memory))?;
                Some(Arc::new(image))
            }
        };
        let mut spans = Vec::new();
        let mut first = 0;
        for region in ram.iter() {
            let pages = page_count(region.len())?;
            let start = region.get_mmap().as_ptr() as usize;
            spans.push(Span {
                area: Area::Memory,
                start,
                first,
                pages,
            });
            first += pages;
        }
        if let Some(image) = &rootfs {
            let (start, pages) = (image.host as usize, page_count(image.len)?);
            spans.push(Span {
                area: Area::Rootfs,
                start,
                first: 0,
                pages,
            });
        }
        for span in &spans {
            // SAFETY: a private anonymous mapping of ours, kept by `ram` or `rootfs`. The caller
            // gives what is touched its bytes; if nobody did, the machine would wait, no more.
            unsafe { uffd.register(span.start as *mut u8, span.pages as usize * PAGE) }
                .map_err(|e| fail("UFFDIO_REGISTER", e))?;
        }
        let end = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| fail("eventfd", e.into()))?;
        Ok(Self {
            uffd,
            spans,
            ram,
            rootfs,
            ended: AtomicBool::new(false),
            end,
            waiting: Mutex::new(()),
        })
    }

    /// The next page that somebody waits for; `None` once it has ended.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn next(&self) -> io::Result<Option<(Area, u32)>> {
        let _one = self.waiting.lock();
        while !self.ended.load(Ordering::SeqCst) {
            if let Some(address) = self.uffd.next()?
                && let Some(page) = self.page_at(address)
            {
                return Ok(Some(page));
            }
            let mut fds = [
                PollFd::from_borrowed_fd(self.uffd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Lets [`Demand::next`] return `None`: nothing will be touched any more.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        // An eventfd takes any number of small writes.
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
    }

    fn page_at(&self, address: usize) -> Option<(Area, u32)> {
        self.spans.iter().find_map(|span| {
            let page = u32::try_from(address.checked_sub(span.start)? / PAGE).ok()?;
            (page < span.pages).then_some((span.area, span.first + page))
        })
    }

    /// Gives whole pages from `first` on their bytes, those that are there already excepted.
    ///
    /// # Errors
    /// If the pages are not all in the area, `bytes` are no whole pages, or there is no memory.
    pub fn fill(&self, area: Area, first: u32, bytes: &[u8]) -> io::Result<()> {
        self.each_span(area, first, bytes.len(), |at, range| {
            // SAFETY: `each_span` gives addresses inside a registered mapping.
            unsafe { self.uffd.copy(at as *mut u8, &bytes[range]) }
        })
    }

    /// Makes pages from `first` on pages of zeros, those that are there already excepted.
    ///
    /// # Errors
    /// As for [`Demand::fill`].
    pub fn zero(&self, area: Area, first: u32, pages: u32) -> io::Result<()> {
        self.each_span(area, first, pages as usize * PAGE, |at, range| {
            // SAFETY: `each_span` gives addresses inside a registered mapping.
            unsafe { self.uffd.zero(at as *mut u8, range.len()) }
        })
    }

    /// Cuts `len` bytes from page `first` on at the borders of mappings: address and byte range.
    fn each_span(
        &self,
        area: Area,
        first: u32,
        len: usize,
        mut put: impl FnMut(usize, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let begin = first as usize;
        let end = begin + len / PAGE;
        let mut done = 0;
        for span in self.spans.iter().filter(|span| span.area == area) {
            let (lowest, highest) = (span.first as usize, (span.first + span.pages) as usize);
            let (from, to) = (begin.max(lowest), end.min(highest));
            if from < to {
                let at = span.start + (from - lowest) * PAGE;
                put(at, (from - begin) * PAGE..(to - begin) * PAGE)?;
                done += (to - from) * PAGE;
            }
        }
        match done == len {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// What is in a machine that stands still: where the pages of another one can come from.
#[derive(Clone, Debug)]
pub struct Contents {
    pub(crate) ram: Ram,
    pub(crate) rootfs: Option<Arc<PmemImage>>,
}

impl Contents {
    /// Reads a page.
    ///
    /// # Errors
    /// If there is no such page.
    pub fn read(&self, area: Area, page: u32, to: &mut [u8; PAGE]) -> io::Result<()> {
        let none = || io::Error::from(io::ErrorKind::InvalidInput);
        let offset = u64::from(page) * PAGE as u64;
        match (area, &self.rootfs) {
            (Area::Memory, _) => {
                let mut offset = offset;
                let found = self.ram.iter().find_map(|region| {
                    let inside = (offset < region.len()).then(|| region.start_addr().0 + offset);
                    offset = offset.saturating_sub(region.len());
                    inside
                });
                let gpa = GuestAddress(found.ok_or_else(none)?);
                self.ram.read_slice(to, gpa).map_err(io::Error::other)
            }
            (Area::Rootfs, Some(image)) => image.read(offset, to).ok_or_else(none),
            (Area::Rootfs, None) => Err(none()),
        }
    }
}

/// What is touched is no more than 2^32 pages: RAM and images have at most 64 GiB.
fn page_count(len: u64) -> Result<u32> {
    let pages = len / PAGE as u64;
    u32::try_from(pages).map_err(|_| Error::Memory(format!("{pages} pages are too many")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None`, with a word, where userfaultfd is not permitted.
    fn demand(rootfs: u64) -> Option<Arc<Demand>> {
        let demand = Demand::new(16 << 20, rootfs);
        demand
            .map_err(|e| eprintln!("not tested here: {e}"))
            .ok()
            .map(Arc::new)
    }

    #[test]
    fn what_is_touched_is_told_in_order_and_gets_its_bytes() {
        let Some(demand) = demand(0) else { return };
        let filler = std::thread::spawn({
            let demand = demand.clone();
            move || {
                let mut seen = Vec::new();
                while let Some((area, page)) = demand.next().unwrap() {
                    assert_eq!(area, Area::Memory);
                    seen.push(page);
                    match page {
                        9 => demand.zero(area, page, 1).unwrap(),
                        _ => demand.fill(area, page, &[page as u8; PAGE]).unwrap(),
                    }
                }
                seen
            }
        });
        let read =
            |page: u64| -> u8 { demand.ram.read_obj(GuestAddress(page * 4096 + 7)).unwrap() };
        assert_eq!([read(200), read(3), read(9), read(3)], [200, 3, 0, 3]);
        demand.end();
        assert_eq!(filler.join().unwrap(), [200, 3, 9]);
    }

    #[test]
    fn pages_that_are_there_stay_as_they_are() {
        let Some(demand) = demand(0) else { return };
        demand.fill(Area::Memory, 5, &[1; PAGE]).unwrap();
        demand.fill(Area::Memory, 4, &[2; 3 * PAGE]).unwrap();
        demand.zero(Area::Memory, 6, 2).unwrap();
        let read = |page: u64| -> u8 { demand.ram.read_obj(GuestAddress(page * 4096)).unwrap() };
        assert_eq!([read(4), read(5), read(6), read(7)], [2, 1, 2, 0]);
    }

    #[test]
    fn pages_beyond_the_end_are_refused() {
        let Some(demand) = demand(2 << 20) else {
            return;
        };
        assert!(demand.fill(Area::Memory, 4095, &[0; 2 * PAGE]).is_err());
        assert!(demand.fill(Area::Memory, 0, &[0; 100]).is_err());
        assert!(demand.zero(Area::Rootfs, 512, 1).is_err());
        assert!(demand.zero(Area::Rootfs, u32::MAX, u32::MAX).is_err());
        demand.zero(Area::Rootfs, 511, 1).unwrap();
    }
}
