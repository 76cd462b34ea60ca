//! 64-bit Linux boot protocol (Documentation/x86/boot.rst, "64-bit Boot Protocol").

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::GuestAddress;

use super::{BootInfo, Entry, usable_ram, write};
use crate::arch::layout;
use crate::memory::Ram;
use crate::{Error, Result};

const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
const PROTOCOL: u16 = 0x020f;
const LOADER_UNDEFINED: u8 = 0xff;
/// hdr.loadflags: a protected-mode kernel at 1 MiB; its addresses are random, and shall be.
const LOADED_HIGH: u8 = 1;
const KASLR_FLAG: u8 = 1 << 1;
const E820_RAM: u32 = 1;
/// setup_data node with entropy (arch/x86/include/uapi/asm/bootparam.h).
const SETUP_RNG_SEED: u32 = 9;
/// Bits of a page table entry: present and writable; the last for a 2 MiB page.
const TABLE: u64 = 3;
const LARGE_PAGE: u64 = 0x83;

/// Writes boot_params, page tables, GDT and the RNG seed.
pub(super) fn prepare(rip: u64, info: &BootInfo, ram: &Ram) -> Result<Entry> {
    write_cpu_tables(ram)?;
    write_seed(info.seed, ram)?;
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HDRS;
    params.hdr.version = PROTOCOL;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags = LOADED_HIGH | if info.random { KASLR_FLAG } else { 0 };
    params.hdr.kernel_alignment = 0x100_0000;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = info.cmdline.len() as u32 + 1;
    params.hdr.setup_data = layout::SETUP_DATA;
    if let Some((gpa, size)) = info.initramfs {
        // Below LOW_RAM_END, so 32 bits hold both.
        params.hdr.ramdisk_image = gpa as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    let map = usable_ram(info.memory);
    for (entry, (addr, size)) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: E820_RAM,
        };
    }
    params.e820_entries = map.len() as u8;
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, GuestAddress(layout::BOOT_PARAMS)),
        ram,
    )
    .map_err(|e| Error::Memory(format!("boot_params: {e}")))?;
    Ok(Entry::Linux64 {
        rip,
        boot_params: layout::BOOT_PARAMS,
    })
}

/// Writes GDT and the identity map of the first GiB.
pub(super) fn write_cpu_tables(ram: &Ram) -> Result<()> {
    let gdt: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let words = |table: &[u64]| {
        table
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<_>>()
    };
    write(ram, layout::GDT, &words(&gdt))?;
    let (pml4, pdpt, pd) = (
        layout::PAGE_TABLES,
        layout::PAGE_TABLES + 0x1000,
        layout::PAGE_TABLES + 0x2000,
    );
    write(ram, pml4, &words(&[pdpt | TABLE]))?;
    write(ram, pdpt, &words(&[pd | TABLE]))?;
    let large_pages: Vec<u64> = (0..512).map(|i| i << 21 | LARGE_PAGE).collect();
    write(ram, pd, &words(&large_pages))
}

/// Writes one setup_data node: next, type, length, bytes. The kernel wipes it after use.
fn write_seed(seed: &[u8; 32], ram: &Ram) -> Result<()> {
    let mut node = Vec::with_capacity(48);
    node.extend(0u64.to_le_bytes());
    node.extend(SETUP_RNG_SEED.to_le_bytes());
    node.extend((seed.len() as u32).to_le_bytes());
    node.extend(seed);
    write(ram, layout::SETUP_DATA, &node)
}
