//! Mappings of RAM and of the root file system's image, and writing RAM out.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use crate::arch::layout;
use crate::{Error, Result};

/// The guest's RAM as every part of the VMM sees it.
pub type Ram = GuestMemoryMmap<()>;

/// Page of guest memory, bytes.
pub const PAGE: usize = 4096;

/// Maps RAM of `memory` zero bytes.
pub fn anonymous(memory: u64) -> Result<Ram> {
    build(memory, None)
}

/// Maps RAM whose pages are those of the memory image at `path` until they are written:
/// copy-on-write, so any number of machines share one image. Also returns the image.
pub fn copy_on_write(memory: u64, path: &Path) -> Result<(Ram, Arc<File>)> {
    let err = |source| Error::File {
        what: "memory image",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(err)?;
    let size = file.metadata().map_err(err)?.len();
    if size != memory {
        return Err(Error::State(format!(
            "the memory image has {size} bytes, the machine {memory}"
        )));
    }
    let file = Arc::new(file);
    Ok((build(memory, Some(file.clone()))?, file))
}

fn build(memory: u64, image: Option<Arc<File>>) -> Result<Ram> {
    let fail =
        |e: &dyn std::fmt::Display| Error::Memory(format!("cannot map {} MiB: {e}", memory >> 20));
    let mut offset = 0;
    let mut regions = Vec::new();
    for (gpa, len) in layout::ram(memory) {
        let size = usize::try_from(len).map_err(|e| fail(&e))?;
        let mut flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let mut builder =
            MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        match &image {
            Some(file) => {
                builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), offset))
            }
            None => flags |= libc::MAP_ANONYMOUS,
        }
        let mapping = builder
            .with_mmap_flags(flags)
            .build()
            .map_err(|e| fail(&e))?;
        regions.push(
            GuestRegionMmap::new(mapping, GuestAddress(gpa))
                .ok_or_else(|| fail(&"address overflow"))?,
        );
        offset += len;
    }
    Ram::from_regions(regions).map_err(|e| fail(&e))
}

/// The rootfs image, mapped shared and read-only: all machines of a host share its pages.
#[derive(Debug)]
pub(crate) struct PmemImage {
    pub(crate) gpa: u64,
    pub(crate) host: *mut u8,
    pub(crate) len: u64,
}

// SAFETY: nobody writes through the pointer, and the mapping never moves.
unsafe impl Send for PmemImage {}
// SAFETY: as above.
unsafe impl Sync for PmemImage {}

impl PmemImage {
    pub(crate) fn map(path: &Path, gpa: u64) -> Result<Self> {
        let err = |source| Error::File {
            what: "rootfs image",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(err)?;
        let len = file.metadata().map_err(err)?.len();
        if len == 0 || len > layout::MAX_PMEM || !len.is_multiple_of(layout::PMEM_ALIGN) {
            return Err(Error::Config(format!(
                "the rootfs image {} has {len} bytes; it must be a multiple of 2 MiB up to {} GiB",
                path.display(),
                layout::MAX_PMEM >> 30
            )));
        }
        Self::new(gpa, len, libc::MAP_SHARED, file.as_raw_fd()).map_err(err)
    }

    /// Maps memory for an image that is filled while the machine runs (see
    /// [`crate::memory::lazy`]).
    pub(crate) fn anonymous(len: u64, gpa: u64) -> Result<Self> {
        if len > layout::MAX_PMEM || !len.is_multiple_of(layout::PMEM_ALIGN) {
            return Err(Error::bad_state(format!(
                "its rootfs image has {len} bytes"
            )));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::new(gpa, len, flags, -1)
            .map_err(|e| Error::Memory(format!("cannot map {} MiB: {e}", len >> 20)))
    }

    /// Reads from `offset` on; `None` beyond the end.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(to.len() as u64)?;
        if end > self.len {
            return None;
        }
        // SAFETY: the range lies in the mapping, which is readable and never written; the source
        // of `to` is another allocation.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.host.add(offset as usize),
                to.as_mut_ptr(),
                to.len(),
            );
        }
        Some(())
    }

    fn new(gpa: u64, len: u64, flags: libc::c_int, fd: libc::c_int) -> std::io::Result<Self> {
        // SAFETY: a fresh mapping, at an address of the kernel's choice.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize,
                libc::PROT_READ,
                flags,
                fd,
                0,
            )
        };
        if host == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self {
            gpa,
            host: host.cast(),
            len,
        })
    }
}

impl Drop for PmemImage {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `map` and nothing refers to it any more.
        unsafe { libc::munmap(self.host.cast(), self.len as usize) };
    }
}

/// What [`write_image`] found.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageStats {
    /// Pages of RAM.
    pub pages: u64,
    /// Pages that hold something.
    pub nonzero: u64,
}

/// Writes RAM to `out` as one image, low RAM first; zero pages stay holes.
///
/// The machine must not run.
pub fn write_image(ram: &Ram, out: &File) -> std::io::Result<ImageStats> {
    let mut stats = ImageStats::default();
    let mut offset = 0u64;
    for region in ram.iter() {
        let len = region.len() as usize;
        // SAFETY: the region maps `len` readable bytes for as long as `ram` lives, and no vCPU or
        // device thread writes to them: the caller has stopped the machine.
        let bytes =
            unsafe { std::slice::from_raw_parts(region.get_mmap().as_ptr().cast_const(), len) };
        stats.pages += (len / PAGE) as u64;
        stats.nonzero += write_nonzero(bytes, out, offset)?;
        offset += len as u64;
    }
    out.set_len(offset)?;
    Ok(stats)
}

/// Writes the runs of non-zero pages of `bytes` at `base`; returns how many pages that were.
fn write_nonzero(bytes: &[u8], out: &File, base: u64) -> std::io::Result<u64> {
    const LONGEST_RUN: usize = 256;
    // Compared as a whole: a loop over bytes takes seconds in an emulated host.
    let pages = bytes
        .as_chunks::<PAGE>()
        .0
        .iter()
        .map(|page| *page != [0; PAGE]);
    let (mut run, mut written) = (0usize..0usize, 0u64);
    for (i, nonzero) in pages.chain([false]).enumerate() {
        if nonzero && run.len() < LONGEST_RUN && run.end == i {
            run.end = i + 1;
            continue;
        }
        if !run.is_empty() {
            out.write_all_at(
                &bytes[run.start * PAGE..run.end * PAGE],
                base + (run.start * PAGE) as u64,
            )?;
            written += run.len() as u64;
        }
        run = i..i + usize::from(nonzero);
        if !nonzero {
            run = i + 1..i + 1;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn an_image_restores_the_same_memory_and_is_not_written_through() {
        let ram = anonymous(16 << 20).unwrap();
        for gpa in [0u64, 5 << 20, (5 << 20) + 4096, (16 << 20) - 8] {
            ram.write_obj(gpa ^ 0xdead_beef, GuestAddress(gpa)).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let stats = write_image(&ram, &File::create(&path).unwrap()).unwrap();
        assert_eq!((stats.pages, stats.nonzero), (4096, 4));

        let (twin, _) = copy_on_write(16 << 20, &path).unwrap();
        for gpa in [0u64, 5 << 20, (5 << 20) + 4096, (16 << 20) - 8] {
            assert_eq!(
                twin.read_obj::<u64>(GuestAddress(gpa)).unwrap(),
                gpa ^ 0xdead_beef
            );
        }
        twin.write_obj(1u64, GuestAddress(5 << 20)).unwrap();
        let (third, _) = copy_on_write(16 << 20, &path).unwrap();
        assert_eq!(
            third.read_obj::<u64>(GuestAddress(5 << 20)).unwrap(),
            (5 << 20) ^ 0xdead_beef
        );
    }

    #[test]
    fn long_runs_of_pages_are_written_whole() {
        let ram = anonymous(16 << 20).unwrap();
        let bytes = vec![7u8; 3 << 20];
        ram.write_slice(&bytes, GuestAddress(1 << 20)).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(write_image(&ram, &file).unwrap().nonzero, 768);
        let mut back = vec![0; 3 << 20];
        file.read_exact_at(&mut back, 1 << 20).unwrap();
        assert_eq!(back, bytes);
    }

    #[test]
    fn an_image_of_another_size_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(17 << 20).unwrap();
        assert!(copy_on_write(16 << 20, file.path()).is_err());
    }
}
