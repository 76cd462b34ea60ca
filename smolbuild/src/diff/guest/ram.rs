//! Guest memory by physical and by virtual address.
//!
//! What is read here was written by a guest and may be anything: every address is checked, every
//! walk has an end, and what cannot be read is `None`. There is an end to all of it, too: after so many
//! reads, or after an interrupt, nothing can be read any more.

use std::cell::Cell;
use std::ops::ControlFlow;

use smol_cli::Interrupt;
use smol_rootfs::erofs::ReadAt;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Where the kernel's half of the address space begins.
pub const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// Bits of a page table entry: it is there; it maps a large page; where it leads.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Page tables that may be read in all walks together.
const TABLES: u32 = 1 << 16;
/// Reads of memory altogether; the owners of as many pages as are asked for take less than half.
const READS: u64 = 1 << 25;
/// Reads between two looks at the interrupt.
const CHECK: u64 = 1 << 10;

/// A memory image as the guest's physical address space.
pub struct Ram<'i> {
    image: &'i dyn ReadAt,
    /// (GPA, bytes), in the order of the image.
    pieces: Vec<(u64, u64)>,
    budget: Cell<u32>,
    reads: Cell<u64>,
    interrupt: Option<&'i Interrupt>,
}

impl<'i> Ram<'i> {
    /// Memory of `size` bytes, laid out as the monitor does it.
    pub fn new(image: &'i dyn ReadAt, size: u64) -> Self {
        Ram {
            image,
            pieces: smol_machine::layout::ram(size),
            budget: Cell::new(TABLES),
            reads: Cell::new(READS),
            interrupt: None,
        }
    }

    /// The same, of which nothing can be read after an interrupt.
    pub fn watched(image: &'i dyn ReadAt, size: u64, interrupt: &'i Interrupt) -> Self {
        Ram {
            interrupt: Some(interrupt),
            ..Ram::new(image, size)
        }
    }

    /// Counts a read, or something as costly.
    pub fn spend(&self) -> Option<()> {
        let mut left = self.reads.get().checked_sub(1)?;
        let stop = |interrupt: &Interrupt| interrupt.check().is_err();
        if left.is_multiple_of(CHECK) && self.interrupt.is_some_and(stop) {
            left = 0;
        }
        self.reads.set(left);
        Some(())
    }

    /// The address of a page of the image; `None` beyond its end.
    pub fn gpa(&self, page: u32) -> Option<u64> {
        let mut offset = u64::from(page) * PAGE;
        for (gpa, len) in &self.pieces {
            if offset < *len {
                return Some(gpa + offset);
            }
            offset -= len;
        }
        None
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.pieces.iter().map(|(_, len)| len).sum()
    }

    /// Fills `bytes` from `gpa` on, all from one piece of RAM.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Option<()> {
        self.spend()?;
        let mut begin = 0;
        for (at, len) in &self.pieces {
            if let Some(offset) = gpa.checked_sub(*at).filter(|offset| offset < len) {
                let fits = offset.checked_add(bytes.len() as u64)? <= *len;
                let read = fits.then(|| self.image.read_exact_at(bytes, begin + offset))?;
                return read.ok();
            }
            begin += len;
        }
        None
    }

    fn entry(&self, table: u64, index: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read((table & ADDRESS) + index * 8, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// The 512 entries of a page table, as long as the budget of all walks lasts.
    pub fn table(&self, gpa: u64) -> Option<Vec<u64>> {
        self.budget.set(self.budget.get().checked_sub(1)?);
        let mut bytes = [0; PAGE as usize];
        self.read(gpa & ADDRESS, &mut bytes)?;
        let entries = bytes.as_chunks::<8>().0.iter();
        Some(entries.map(|entry| u64::from_le_bytes(*entry)).collect())
    }
}

/// An address space: memory seen through four levels of page tables.
#[derive(Clone, Copy)]
pub struct Space<'r> {
    /// The memory.
    pub ram: &'r Ram<'r>,
    /// GPA of the top-level page table.
    pub top: u64,
}

/// What a walk through page tables meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// A page table at this GPA.
    Table(u64),
    /// Pages.
    Pages {
        /// Virtual address.
        va: u64,
        /// Physical address.
        gpa: u64,
        /// Bytes: 4 KiB, 2 MiB or 1 GiB.
        size: u64,
    },
}

impl Space<'_> {
    /// The physical address behind `va`.
    pub fn translate(&self, va: u64) -> Option<u64> {
        let mut table = self.top;
        for level in (0..4).rev() {
            let shift = 12 + 9 * level;
            let entry = self.ram.entry(table, va >> shift & 511)?;
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || level < 3 && entry & LARGE != 0 {
                let within = (1 << shift) - 1;
                return Some(entry & ADDRESS & !within | va & within);
            }
            table = entry;
        }
        None
    }

    /// Fills `bytes` from `va` on.
    pub fn read(&self, va: u64, bytes: &mut [u8]) -> Option<()> {
        let (mut va, mut rest) = (va, bytes);
        while !rest.is_empty() {
            let len = (PAGE - va % PAGE).min(rest.len() as u64) as usize;
            let (piece, tail) = rest.split_at_mut(len);
            self.ram.read(self.translate(va)?, piece)?;
            (va, rest) = (va.checked_add(len as u64)?, tail);
        }
        Some(())
    }

    /// A 64-bit number.
    pub fn u64(&self, va: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(va, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// A 32-bit number.
    pub fn u32(&self, va: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(va, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// A pointer into the kernel.
    pub fn pointer(&self, va: u64) -> Option<u64> {
        self.u64(va).filter(|to| *to >= KERNEL_HALF)
    }

    /// A string that ends with NUL, of at most `limit` bytes, escaped where it is not printable.
    pub fn text(&self, va: u64, limit: usize) -> Option<String> {
        let mut text = Vec::new();
        while text.len() < limit {
            let va = va.checked_add(text.len() as u64)?;
            let len = ((PAGE - va % PAGE) as usize).min(limit - text.len());
            let mut piece = vec![0; len];
            self.read(va, &mut piece)?;
            let end = piece.iter().position(|byte| *byte == 0);
            text.extend(&piece[..end.unwrap_or(len)]);
            if end.is_some() {
                break;
            }
        }
        Some(text.escape_ascii().to_string())
    }

    /// Walks the tables of addresses from `first` to `last` (both included), in ascending order,
    /// until `visit` has seen enough.
    pub fn walk(&self, first: u64, last: u64, visit: &mut dyn FnMut(Met) -> ControlFlow<()>) {
        let range = first & 0xffff_ffff_ffff..=last & 0xffff_ffff_ffff;
        // Stopped, or at its end: it is all the same.
        let _ = self.level(self.top, 3, 0, &range, visit);
    }

    fn level(
        &self,
        table: u64,
        level: u32,
        base: u64,
        range: &std::ops::RangeInclusive<u64>,
        visit: &mut dyn FnMut(Met) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(entries) = self.ram.table(table) else {
            // Beyond memory, or enough altogether.
            return match (self.ram.budget.get(), self.ram.reads.get()) {
                (0, _) | (_, 0) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
        };
        visit(Met::Table(table & ADDRESS))?;
        let size = 1u64 << (12 + 9 * level);
        for (index, entry) in (0..).zip(entries) {
            let begin = base + index * size;
            let outside = begin > *range.end() || begin + (size - 1) < *range.start();
            if entry & PRESENT == 0 || outside {
                continue;
            }
            if level > 0 && (level == 3 || entry & LARGE == 0) {
                self.level(entry, level - 1, begin, range, visit)?;
                continue;
            }
            let gpa = entry & ADDRESS & !(size - 1);
            let va = canonical(begin);
            visit(Met::Pages { va, gpa, size })?;
        }
        ControlFlow::Continue(())
    }
}

/// 48 bits of address as the processor wants them.
fn canonical(va: u64) -> u64 {
    ((va << 16) as i64 >> 16) as u64
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Memory with page tables, made by hand.
    pub struct Builder {
        /// The bytes from GPA 0 on.
        pub bytes: Vec<u8>,
        next: u64,
    }

    impl Builder {
        /// `pages` of zeros; page tables come from page 1 on, the top-level one first.
        pub fn new(pages: u64) -> Self {
            let bytes = vec![0; (pages * PAGE) as usize];
            let next = 2 * PAGE;
            Builder { bytes, next }
        }

        /// GPA of the first top-level page table.
        pub const TOP: u64 = PAGE;

        /// A number in memory.
        pub fn put(&mut self, gpa: u64, value: u64) {
            self.bytes[gpa as usize..][..8].copy_from_slice(&value.to_le_bytes());
        }

        /// A page for another table.
        pub fn page(&mut self) -> u64 {
            self.next += PAGE;
            self.next - PAGE
        }

        /// Maps one page in the address space `top`.
        pub fn map(&mut self, top: u64, va: u64, gpa: u64) {
            let mut table = top;
            for level in (1..4).rev() {
                let at = table + (va >> (12 + 9 * level) & 511) * 8;
                let entry = u64::from_le_bytes(self.bytes[at as usize..][..8].try_into().unwrap());
                table = if entry == 0 {
                    let new = self.page();
                    self.put(at, new | 7);
                    new
                } else {
                    entry & ADDRESS
                };
            }
            self.put(table + (va >> 12 & 511) * 8, gpa | 7);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Builder;
    use super::*;

    #[test]
    fn virtual_addresses_lead_to_memory_or_nowhere() {
        let mut memory = Builder::new(32);
        let (user, kernel) = (0x5555_0000_0000, 0xffff_ffff_8100_0000);
        memory.map(Builder::TOP, user, 20 * PAGE);
        memory.map(Builder::TOP, user + PAGE, 22 * PAGE);
        memory.map(Builder::TOP, kernel, 21 * PAGE);
        memory.map(Builder::TOP, kernel + PAGE, 1 << 40);
        memory.bytes[21 * 4096 - 2..21 * 4096].copy_from_slice(b"he");
        memory.bytes[22 * 4096..][..4].copy_from_slice(b"llo\0");
        let ram = Ram::new(&memory.bytes, memory.bytes.len() as u64);
        let space = Space {
            ram: &ram,
            top: Builder::TOP,
        };
        assert_eq!(space.translate(user + 5), Some(20 * PAGE + 5));
        assert_eq!(space.translate(user + 2 * PAGE), None);
        assert_eq!(space.text(user + PAGE - 2, 100).as_deref(), Some("hello"));
        assert_eq!(space.text(user + PAGE - 2, 3).as_deref(), Some("hel"));
        assert_eq!(space.u64(kernel + PAGE), None);
        assert_eq!(space.u64(u64::MAX - 3), None);

        let mut met = Vec::new();
        space.walk(KERNEL_HALF, u64::MAX, &mut |found| {
            met.push(found);
            ControlFlow::Continue(())
        });
        let pages = |va, gpa| Met::Pages {
            va,
            gpa,
            size: PAGE,
        };
        assert_eq!(met.len(), 6);
        assert_eq!(
            met[4..],
            [pages(kernel, 21 * PAGE), pages(kernel + PAGE, 1 << 40)]
        );
    }

    #[test]
    fn page_tables_that_lead_in_circles_are_left_at_last() {
        let mut memory = Builder::new(4);
        for entry in 0..512 {
            memory.put(Builder::TOP + entry * 8, Builder::TOP | 7);
        }
        let ram = Ram::new(&memory.bytes, memory.bytes.len() as u64);
        let space = Space {
            ram: &ram,
            top: Builder::TOP,
        };
        let mut tables = 0u32;
        space.walk(0, u64::MAX, &mut |met| {
            tables += u32::from(matches!(met, Met::Table(_)));
            ControlFlow::Continue(())
        });
        assert_eq!(tables, TABLES);
    }
}
