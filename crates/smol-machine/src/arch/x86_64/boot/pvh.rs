//! PVH direct boot (Xen's docs/misc/pvh.pandoc and include/public/arch-x86/hvm/start_info.h).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::linux64::write_cpu_tables;
use super::{BootInfo, Entry, usable_ram};
use crate::arch::layout;
use crate::memory::Ram;
use crate::{Error, Result};

const MAGIC: u32 = 0x336e_c578;
const RAM_TYPE: u32 = 1;
const MODULES: u64 = layout::SETUP_DATA + 0x100;
const MEMORY_MAP: u64 = layout::SETUP_DATA + 0x200;

/// Writes start_info with the memory map and, as its only module, the initramfs.
pub(super) fn prepare(rip: u64, info: &BootInfo, ram: &Ram) -> Result<Entry> {
    write_cpu_tables(ram)?;
    let map: Vec<_> = usable_ram(info.memory)
        .into_iter()
        .map(|(addr, size)| hvm_memmap_table_entry {
            addr,
            size,
            type_: RAM_TYPE,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = info
        .initramfs
        .iter()
        .map(|(paddr, size)| hvm_modlist_entry {
            paddr: *paddr,
            size: *size,
            ..Default::default()
        })
        .collect();
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { MODULES },
        cmdline_paddr: layout::CMDLINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::SETUP_DATA));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, ram)
        .map_err(|e| Error::Memory(format!("PVH start_info: {e}")))?;
    Ok(Entry::Pvh {
        rip,
        start_info: layout::SETUP_DATA,
    })
}
