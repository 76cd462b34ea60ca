//! Lazy memory: it is filled while the machine runs. Every page is absent at first, and an access
//! to an absent page waits until the page has been loaded (demand paging by userfaultfd(2)).
//!
//! ```text
//! LazyMemory::new --> Machine::restore_lazy --> run() ---page fault---> next() -> page
//!                                                 ^                               |
//!                                                 +----continues---- fill(), zero() +
//! ```
//!
//! **In user mode.** When a vCPU accesses a page, it is the kernel (KVM) that faults. A userfaultfd
//! that makes faults of the kernel wait needs privileges. Without them there is one for faults of
//! user space only, which are those of the devices; an access by the kernel fails instead. KVM_RUN
//! then returns EFAULT with the guest's state unchanged, so the vCPU waits until more pages have
//! been loaded, and is run again to execute the same instruction (`arrivals`). This requires:
//!
//! - Usually KVM does not say which page it was (before Linux 6.8 never). So all pages must be
//!   loaded, the working set first, and the machine begins to run when that is complete. The
//!   page of the guest's instruction is a fair guess, and is loaded out of turn.
//! - KVM must leave the guest's page tables to the processor, and emulate only what concerns
//!   devices: see [`crate::hv::retries_failed_accesses`]. Where it emulates an instruction one of
//!   whose operands is absent, it takes the page for a device's registers; the bus accesses memory
//!   then, and waits as a device does (`Bus::read`).
//! - KVM must not write to guest memory on its own, its clock for one: such a write would be lost.
//!   See [`MachineState::tolerates_failed_accesses`](crate::MachineState::tolerates_failed_accesses).
//! - If the guest has interrupts enabled, KVM does not return at once: it lets a thread of its own
//!   access the page and halts the vCPU meanwhile (an "asynchronous page fault"), finds that the
//!   access failed, and tries again. That costs CPU time, and only until the page is loaded or a
//!   signal comes.
//! - Guest memory must not be passed to system calls of our own: they would fail instead of
//!   waiting. Devices copy by way of buffers of their own (`Chain::read`, `Chain::write`).
//!
//! The kernel's log says once that an access of the kernel was not handled; this is why.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::layout;
pub use crate::memory::Area;
use crate::memory::arrivals::{self, Arrivals, Place};
use crate::memory::uffd::Uffd;
use crate::memory::{self, PAGE, PmemImage, Ram};
use crate::{Error, Result};

/// RAM and root file system of one machine, of which every page is absent at first.
#[derive(Debug)]
pub struct LazyMemory {
    uffd: Uffd,
    spans: Vec<Span>,
    /// Keeps the mappings for as long as pages can be put into them.
    pub(crate) ram: Ram,
    pub(crate) rootfs: Option<Arc<PmemImage>>,
    /// Only in user mode.
    pub(crate) arrivals: Option<Arc<Arrivals>>,
    ended: AtomicBool,
    /// An eventfd, readable once it has ended or a page is wanted.
    wakeup: Arc<OwnedFd>,
    /// One caller at a time waits for faults.
    waiting: Mutex<()>,
}

/// A mapping, and the pages that it holds.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    place: Place,
}

impl LazyMemory {
    /// Returns memory of `memory` bytes of RAM and an image of `rootfs` bytes (0: none).
    ///
    /// # Errors
    /// [`Error::Memory`] where userfaultfd(2) is not permitted, or memory cannot be mapped.
    pub fn new(memory: u64, rootfs: u64) -> Result<Self> {
        Self::with(Uffd::new(), memory, rootfs, false)
    }

    /// As [`LazyMemory::new`], but only accesses from user space wait: see above. All pages must be
    /// loaded, each announced by [`LazyMemory::arrived`] and the last by [`LazyMemory::complete`].
    ///
    /// # Errors
    /// [`Error::Memory`] before Linux 5.11, where system calls are filtered, or memory cannot be
    /// mapped.
    pub fn in_user_mode(memory: u64, rootfs: u64) -> Result<Self> {
        Self::with(Uffd::in_user_mode(), memory, rootfs, true)
    }

    fn with(uffd: io::Result<Uffd>, memory: u64, rootfs: u64, user_mode: bool) -> Result<Self> {
        let uffd = uffd.map_err(|e| fail("userfaultfd", e))?;
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
            let place = Place {
                gpa: region.start_addr().0,
                area: Area::Memory,
                first,
                pages,
            };
            spans.push(Span { start, place });
            first += pages;
        }
        if let Some(image) = &rootfs {
            let (start, pages) = (image.host as usize, page_count(image.len)?);
            let place = Place {
                gpa: image.gpa,
                area: Area::Rootfs,
                first: 0,
                pages,
            };
            spans.push(Span { start, place });
        }
        for span in &spans {
            // SAFETY: a private anonymous mapping of ours, kept by `ram` or `rootfs`. The caller
            // loads what is accessed; if it did not, the machine would wait, no more.
            unsafe { uffd.register(span.start as *mut u8, span.place.pages as usize * PAGE) }
                .map_err(|e| fail("UFFDIO_REGISTER", e))?;
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wakeup = Arc::new(eventfd(0, flags).map_err(|e| fail("eventfd", e.into()))?);
        let places = spans.iter().map(|span| span.place).collect();
        let arrivals = user_mode.then(|| Arc::new(Arrivals::new(places, wakeup.clone())));
        Ok(Self {
            uffd,
            spans,
            ram,
            rootfs,
            arrivals,
            ended: AtomicBool::new(false),
            wakeup,
            waiting: Mutex::new(()),
        })
    }

    /// Waits for the next access to an absent page and returns the page; `None` once it has ended.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn next(&self) -> io::Result<Option<(Area, u32)>> {
        let _one = self.waiting.lock();
        while !self.ended.load(Ordering::SeqCst) {
            if let Some(page) = self.arrivals.as_ref().and_then(|a| a.wanted()) {
                return Ok(Some(page));
            }
            if let Some(address) = self.uffd.next()?
                && let Some(page) = self.page_at(address)
            {
                return Ok(Some(page));
            }
            let mut fds = [
                PollFd::from_borrowed_fd(self.uffd.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.wakeup.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            // What it was written for is looked at next; if it was not, there is nothing to read.
            let _ = rustix::io::read(&self.wakeup, &mut [0; 8]);
        }
        Ok(None)
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Lets [`LazyMemory::next`] return `None`: nothing will be accessed any more.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        arrivals::signal(&self.wakeup);
    }

    /// Whether only accesses from user space wait: [`LazyMemory::in_user_mode`].
    pub fn is_in_user_mode(&self) -> bool {
        self.arrivals.is_some()
    }

    /// In user mode: notes that pages were loaded, so vCPUs whose accesses failed try again.
    pub fn arrived(&self) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.arrived();
        }
    }

    /// In user mode: notes that the working set is loaded. Before, no vCPU begins to run.
    pub fn open(&self) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.open();
        }
    }

    /// In user mode: notes that every page is loaded. An access that fails from here on fails for
    /// good.
    pub fn complete(&self) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.complete();
        }
    }

    fn page_at(&self, address: usize) -> Option<(Area, u32)> {
        self.spans.iter().find_map(|span| {
            let page = u32::try_from(address.checked_sub(span.start)? / PAGE).ok()?;
            let place = span.place;
            (page < place.pages).then_some((place.area, place.first + page))
        })
    }

    /// Loads whole pages from `first` on, except those that are present already.
    ///
    /// # Errors
    /// If the pages are not all in the area, `bytes` are no whole pages, or there is no memory.
    pub fn fill(&self, area: Area, first: u32, bytes: &[u8]) -> io::Result<()> {
        self.each_span(area, first, bytes.len(), |at, range| {
            // SAFETY: `each_span` gives addresses inside a registered mapping.
            unsafe { self.uffd.copy(at as *mut u8, &bytes[range]) }
        })
    }

    /// Returns the contents. Reading an absent page waits for it.
    pub fn contents(&self) -> Contents {
        Contents {
            ram: self.ram.clone(),
            rootfs: self.rootfs.clone(),
        }
    }

    /// Loads pages of zeros from `first` on, except those that are present already.
    ///
    /// # Errors
    /// As for [`LazyMemory::fill`].
    pub fn zero(&self, area: Area, first: u32, pages: u32) -> io::Result<()> {
        self.each_span(area, first, pages as usize * PAGE, |at, range| {
            // SAFETY: `each_span` gives addresses inside a registered mapping.
            unsafe { self.uffd.zero(at as *mut u8, range.len()) }
        })
    }

    /// Makes pages from `first` on ordinary anonymous memory: each becomes a page of zeros when it
    /// is accessed, except those that are present already. This splits the mapping, of which a
    /// process may have some ten thousand, so it is for long runs.
    ///
    /// # Errors
    /// If the pages are not all in the area, or there would be too many mappings.
    pub fn release(&self, area: Area, first: u32, pages: u32) -> io::Result<()> {
        self.each_span(area, first, pages as usize * PAGE, |at, range| {
            // SAFETY: `each_span` gives addresses inside a registered mapping; that zeros belong
            // there is the caller's promise.
            unsafe { self.uffd.release(at as *mut u8, range.len()) }
        })
    }

    /// Calls `put` with address and byte range of each part of `len` bytes from page `first` on;
    /// they are cut at the borders of mappings.
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
        for Span { start, place } in self.spans.iter().filter(|span| span.place.area == area) {
            let (lowest, highest) = (place.first as usize, (place.first + place.pages) as usize);
            let (from, to) = (begin.max(lowest), end.min(highest));
            if from < to {
                let at = start + (from - lowest) * PAGE;
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

/// RAM and root file system of a machine. Of one that is stopped they can be read, for instance to
/// fill the lazy memory of another.
#[derive(Clone, Debug)]
pub struct Contents {
    pub(crate) ram: Ram,
    pub(crate) rootfs: Option<Arc<PmemImage>>,
}

impl Contents {
    /// Reads at a guest-physical address, where RAM or the root file system's image is; false
    /// elsewhere.
    pub(crate) fn read_at(&self, gpa: u64, to: &mut [u8]) -> bool {
        if self.ram.read_slice(to, GuestAddress(gpa)).is_ok() {
            return true;
        }
        let image = self.rootfs.as_ref();
        let inside = image.and_then(|image| image.read(gpa.checked_sub(image.gpa)?, to));
        inside.is_some()
    }

    /// Writes at a guest-physical address, where RAM is; elsewhere nothing happens.
    pub(crate) fn write_at(&self, gpa: u64, from: &[u8]) {
        let _ = self.ram.write_slice(from, GuestAddress(gpa));
    }

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

fn fail(what: &str, e: io::Error) -> Error {
    Error::Memory(format!("{what}: {e}"))
}

/// Returns the number of pages, which fits 32 bits: RAM and images have at most 64 GiB.
fn page_count(len: u64) -> Result<u32> {
    let pages = len / PAGE as u64;
    u32::try_from(pages).map_err(|_| Error::Memory(format!("{pages} pages are too many")))
}

#[cfg(test)]
mod tests {
    use smol_testing::left_out;

    use super::*;

    /// `None`, with a message, where userfaultfd is not permitted.
    fn lazy(rootfs: u64) -> Option<Arc<LazyMemory>> {
        let memory = LazyMemory::new(16 << 20, rootfs);
        memory.map_err(left_out).ok().map(Arc::new)
    }

    #[test]
    fn faults_are_reported_in_order_and_the_pages_get_their_bytes() {
        let Some(memory) = lazy(0) else { return };
        let filler = std::thread::spawn({
            let memory = memory.clone();
            move || {
                let mut seen = Vec::new();
                while let Some((area, page)) = memory.next().unwrap() {
                    assert_eq!(area, Area::Memory);
                    seen.push(page);
                    match page {
                        9 => memory.zero(area, page, 1).unwrap(),
                        _ => memory.fill(area, page, &[page as u8; PAGE]).unwrap(),
                    }
                }
                seen
            }
        });
        let read =
            |page: u64| -> u8 { memory.ram.read_obj(GuestAddress(page * 4096 + 7)).unwrap() };
        assert_eq!([read(200), read(3), read(9), read(3)], [200, 3, 0, 3]);
        memory.end();
        assert_eq!(filler.join().unwrap(), [200, 3, 9]);
    }

    /// Has the kernel access the page on our behalf: it writes a byte into it.
    fn kernel_accesses(
        memory: &LazyMemory,
        page: u64,
    ) -> std::result::Result<(), rustix::io::Errno> {
        let address = memory.ram.get_host_address(GuestAddress(page * 4096));
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, b"k").unwrap();
        // SAFETY: one byte of a mapping that `memory` keeps, and that nobody refers to.
        let bytes = unsafe { std::slice::from_raw_parts_mut(address.unwrap(), 1) };
        rustix::io::read(&read, bytes).map(drop)
    }

    #[test]
    fn in_user_mode_accesses_of_ours_wait_and_those_of_the_kernel_fail_until_the_page_is_present() {
        let memory = match LazyMemory::in_user_mode(16 << 20, 2 << 20) {
            Ok(memory) => Arc::new(memory),
            Err(e) => return left_out(e),
        };
        assert!(memory.is_in_user_mode());
        let filler = std::thread::spawn({
            let memory = memory.clone();
            move || {
                let mut seen = Vec::new();
                while let Some((area, page)) = memory.next().unwrap() {
                    seen.push((area, page));
                    memory.fill(area, page, &[page as u8; PAGE]).unwrap();
                    memory.arrived();
                }
                seen
            }
        });
        let fault = Err(rustix::io::Errno::FAULT);
        assert_eq!(kernel_accesses(&memory, 7), fault);
        let read = |page: u64| -> u8 { memory.ram.read_obj(GuestAddress(page * 4096)).unwrap() };
        assert_eq!([read(200), read(7)], [200, 7]);
        assert_eq!(kernel_accesses(&memory, 7), Ok(()));
        assert_eq!(read(7), b'k');
        // As a vCPU does that was told the address.
        let arrivals = memory.arrivals.clone().unwrap();
        let mut failed = 0;
        loop {
            let before = arrivals.step().unwrap();
            match kernel_accesses(&memory, 9) {
                Ok(()) => break,
                outcome => assert_eq!(outcome, fault),
            }
            failed += 1;
            arrivals.want(9 << 12);
            arrivals.wait(before, || false);
        }
        // Once for this page, and once more if the last one was told only now.
        assert!((1..3).contains(&failed), "{failed}");
        memory.end();
        let pages = [200, 7, 9].map(|page| (Area::Memory, page));
        assert_eq!(filler.join().unwrap(), pages);
    }

    #[test]
    fn pages_that_are_released_are_zeros_for_everybody_and_the_others_are_absent() {
        let memory = match LazyMemory::in_user_mode(16 << 20, 2 << 20) {
            Ok(memory) => memory,
            Err(e) => return left_out(e),
        };
        memory.fill(Area::Memory, 600, &[6; PAGE]).unwrap();
        memory.release(Area::Memory, 512, 1024).unwrap();
        memory.release(Area::Rootfs, 0, 512).unwrap();
        assert!(memory.release(Area::Rootfs, 0, 513).is_err());
        let read = |page: u64| -> u8 { memory.ram.read_obj(GuestAddress(page * 4096)).unwrap() };
        assert_eq!([read(512), read(600), read(1535)], [0, 6, 0]);
        assert_eq!(kernel_accesses(&memory, 700), Ok(()));
        for page in [511, 1536] {
            assert_eq!(
                kernel_accesses(&memory, page),
                Err(rustix::io::Errno::FAULT)
            );
        }
        // What is around it is as it was.
        memory.fill(Area::Memory, 500, &[5; 12 * PAGE]).unwrap();
        memory.fill(Area::Memory, 1536, &[7; PAGE]).unwrap();
        assert_eq!([read(511), read(1536)], [5, 7]);
    }

    #[test]
    fn memory_is_read_and_written_for_a_hypervisor_that_cannot() {
        let Some(memory) = lazy(2 << 20) else {
            return;
        };
        memory.fill(Area::Memory, 0, &[1; PAGE]).unwrap();
        memory.fill(Area::Rootfs, 511, &[2; PAGE]).unwrap();
        let image = memory.rootfs.as_ref().unwrap().gpa;
        let contents = memory.contents();
        contents.write_at(16, &[3, 4]);
        let read = |gpa| {
            let mut bytes = [9; 2];
            contents.read_at(gpa, &mut bytes).then_some(bytes)
        };
        assert_eq!(read(15), Some([1, 3]));
        assert_eq!(read(image + (2 << 20) - 2), Some([2, 2]));
        contents.write_at(image + (2 << 20) - 2, &[5, 5]);
        assert_eq!(read(image + (2 << 20) - 2), Some([2, 2]));
        assert_eq!([read(image + (2 << 20) - 1), read(17 << 20)], [None, None]);
    }

    #[test]
    fn pages_that_are_present_stay_as_they_are() {
        let Some(memory) = lazy(0) else { return };
        memory.fill(Area::Memory, 5, &[1; PAGE]).unwrap();
        memory.fill(Area::Memory, 4, &[2; 3 * PAGE]).unwrap();
        memory.zero(Area::Memory, 6, 2).unwrap();
        let read = |page: u64| -> u8 { memory.ram.read_obj(GuestAddress(page * 4096)).unwrap() };
        assert_eq!([read(4), read(5), read(6), read(7)], [2, 1, 2, 0]);
    }

    #[test]
    fn pages_beyond_the_end_are_refused() {
        let Some(memory) = lazy(2 << 20) else {
            return;
        };
        assert!(memory.fill(Area::Memory, 4095, &[0; 2 * PAGE]).is_err());
        assert!(memory.fill(Area::Memory, 0, &[0; 100]).is_err());
        assert!(memory.zero(Area::Rootfs, 512, 1).is_err());
        assert!(memory.zero(Area::Rootfs, u32::MAX, u32::MAX).is_err());
        memory.zero(Area::Rootfs, 511, 1).unwrap();
    }
}
