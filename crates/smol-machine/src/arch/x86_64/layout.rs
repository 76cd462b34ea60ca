//! The guest-physical memory map of an x86-64 machine.
//!
//! ```text
//! 0x0000_0000  real-mode leftovers, of which the boot structures below use a few pages
//!   0x0500       GDT
//!   0x6000       PVH start_info, its module list and memory map; or setup_data with the RNG seed
//!   0x7000       boot_params ("zero page")
//!   0x9000       page tables: PML4, PDPT, PD (1 GiB identity mapped)
//!   0x20000      kernel command line
//!   0x9fc00      MP floating pointer and table
//! 0x0010_0000  kernel where its ELF headers put it; initramfs at the top of low RAM
//! 0xc000_0000  end of low RAM
//! 0xd000_0000  virtio-mmio windows, 4 KiB each
//! 0xfec0_0000  IOAPIC      0xfee0_0000  LAPIC      0xfffb_d000  KVM's TSS and identity map (4 pages)
//! 0x1_0000_0000 high RAM, then (1 GiB aligned) the virtio-pmem region
//! ```

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// setup_data node, or PVH start_info.
pub const SETUP_DATA: u64 = 0x6000;
/// boot_params.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// PML4; PDPT and PD follow it.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// Bytes of the command line with its NUL (COMMAND_LINE_SIZE of x86 Linux).
pub const CMDLINE_MAX: usize = 2048;
/// MP floating pointer; above it no conventional memory.
pub const MP_TABLE: u64 = 0x9fc00;
/// Start of extended memory.
pub const HIMEM: u64 = 0x10_0000;
/// End of RAM below the device hole.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// First virtio-mmio window.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Size of a virtio-mmio window.
pub const MMIO_SIZE: u64 = 0x1000;
/// Interrupt lines of the virtio-mmio windows: ISA lines that nothing else on the board has.
pub const MMIO_IRQS: [u32; 4] = [5, 9, 10, 11];
/// Interrupt line of the paravirtual clock's timer.
pub const TIMER_IRQ: u32 = 0;
/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// LAPIC registers.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages for KVM's task state segment (Intel hosts without unrestricted guest).
pub const KVM_TSS: usize = 0xfffb_d000;
/// RAM above the device hole.
pub const HIGH_RAM: u64 = 1 << 32;
/// Least RAM that makes sense.
pub const MIN_RAM: u64 = 16 << 20;
/// Most RAM.
pub const MAX_RAM: u64 = 64 << 30;
/// Largest virtio-pmem image.
pub const MAX_PMEM: u64 = 64 << 30;
/// Unit of the virtio-pmem region (memory hot-add section alignment of Linux on x86-64).
pub const PMEM_ALIGN: u64 = 2 << 20;

/// Returns RAM as (GPA, length) pieces in the order in which a memory image holds them.
pub fn ram(memory: u64) -> Vec<(u64, u64)> {
    let low = memory.min(LOW_RAM_END);
    let mut pieces = vec![(0, low)];
    if memory > low {
        pieces.push((HIGH_RAM, memory - low));
    }
    pieces
}

/// Returns the GPA of the virtio-pmem region of a machine with `memory` bytes of RAM.
pub fn pmem_gpa(memory: u64) -> u64 {
    let high_end = HIGH_RAM + memory.saturating_sub(LOW_RAM_END);
    high_end.next_multiple_of(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_device_hole_free() {
        assert_eq!(ram(256 << 20), [(0, 256 << 20)]);
        assert_eq!(ram(5 << 30), [(0, 3 << 30), (HIGH_RAM, 2 << 30)]);
    }

    #[test]
    fn pmem_lies_above_all_ram() {
        assert_eq!(pmem_gpa(256 << 20), HIGH_RAM);
        assert_eq!(pmem_gpa((3 << 30) + (1 << 20)), HIGH_RAM + (1 << 30));
    }
}
