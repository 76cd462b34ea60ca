//! Loads a kernel: from files to a guest before its first instruction.
//!
//! A smol kernel (by its ELF note) takes the 64-bit Linux boot protocol, because only that carries
//! the seed of its random number generator, and is moved to a virtual address that follows from
//! the seed. Any other image is entered by PVH if it has that note, else by the 64-bit protocol
//! too, where it was linked for.

mod linux64;
mod mptable;
mod note;
mod pvh;
mod relocate;

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use crate::arch::layout;
use crate::machine::config::MachineConfig;
use crate::memory::Ram;
use crate::{Error, Result};

/// Registers with which a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit Linux boot protocol (Documentation/x86/boot.rst): long mode, RSI = boot_params.
    Linux64 {
        /// First instruction.
        rip: u64,
        /// GPA of boot_params.
        boot_params: u64,
    },
    /// PVH (Xen's docs/misc/pvh.pandoc): 32-bit protected mode without paging, EBX = start_info.
    Pvh {
        /// First instruction.
        rip: u64,
        /// GPA of hvm_start_info.
        start_info: u64,
    },
}

/// What the loader is told besides the files.
pub(crate) struct BootInfo<'a> {
    pub(crate) cmdline: &'a str,
    pub(crate) memory: u64,
    /// (GPA, size) of the initramfs.
    pub(crate) initramfs: Option<(u64, u64)>,
    pub(crate) seed: &'a [u8; 32],
    /// Whether the kernel is to place its own regions at random as well.
    pub(crate) random: bool,
}

/// Largest smol kernel, bytes: it is moved in memory of ours.
const MAX_KERNEL: u64 = 256 << 20;

/// The kernel's command line word against the randomisation of its addresses
/// (Documentation/admin-guide/kernel-parameters.txt).
const FIXED_WORD: &str = "nokaslr";

/// Tells whether the ELF image at `path` is a smol kernel of an ABI that this build speaks.
pub fn is_smol_kernel(path: &Path) -> Result<bool> {
    let mut file = open("kernel", path)?;
    note::smol_abi(&mut file)
        .map_err(|reason| Error::Kernel {
            path: path.to_owned(),
            reason,
        })
        .map(|abi| abi == Some(crate::paravirt::ABI))
}

/// Returns the smol kernel at `path`, moved to where [`crate::Machine::boot`] would move it with
/// this command line and this seed. A kernel that was moved before can be moved on. `None` for one
/// that cannot be moved: it has no table of relocations.
///
/// # Errors
/// [`Error::File`] if it cannot be read, [`Error::Kernel`] if it contradicts itself.
pub fn place_kernel(path: &Path, cmdline: &str, seed: &[u8; 32]) -> Result<Option<Vec<u8>>> {
    let err = |source| Error::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let bad = |reason| Error::Kernel {
        path: path.to_owned(),
        reason,
    };
    let file = open("kernel", path)?;
    let len = file.metadata().map_err(err)?.len();
    let mut image = Vec::with_capacity(len.min(MAX_KERNEL) as usize + 1);
    file.take(MAX_KERNEL + 1)
        .read_to_end(&mut image)
        .map_err(err)?;
    if image.len() as u64 > MAX_KERNEL {
        return Err(bad(format!("it is larger than {} MiB", MAX_KERNEL >> 20)));
    }
    let seed = is_random(cmdline).then_some(seed);
    let slide = relocate::place(&mut image, seed).map_err(bad)?;
    Ok(slide.map(|_| image))
}

fn is_random(cmdline: &str) -> bool {
    !cmdline.split_whitespace().any(|word| word == FIXED_WORD)
}

fn open(what: &'static str, path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::File {
        what,
        path: path.to_owned(),
        source,
    })
}

/// Loads kernel, initramfs and boot structures into `ram`.
pub(crate) fn load(config: &MachineConfig, smol: bool, cmdline: &str, ram: &Ram) -> Result<Entry> {
    let bad = |reason: String| Error::Kernel {
        path: config.kernel.clone(),
        reason,
    };
    let placed = match smol {
        true => place_kernel(&config.kernel, cmdline, &config.kernel_seed)?,
        false => None,
    };
    let random = placed.is_some() && is_random(cmdline);
    let loaded = match placed {
        Some(image) => load_elf(&mut Cursor::new(image), ram),
        None => load_elf(&mut open("kernel", &config.kernel)?, ram),
    };
    let loaded = loaded.map_err(|e| {
        bad(format!(
            "it is not an ELF vmlinux that fits into {} MiB: {e}",
            config.memory >> 20
        ))
    })?;
    let initramfs = match &config.initramfs {
        Some(path) => Some(load_initramfs(path, config.memory, loaded.kernel_end, ram)?),
        None => None,
    };
    let info = BootInfo {
        cmdline,
        memory: config.memory,
        initramfs,
        seed: &config.seed,
        random,
    };
    write_cmdline(cmdline, ram)?;
    mptable::write(config.vcpus, ram)?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) if !smol => pvh::prepare(entry.0, &info, ram),
        _ => linux64::prepare(loaded.kernel_load.0, &info, ram),
    }
    .map_err(|e| bad(e.to_string()))
}

fn load_elf(
    image: &mut (impl Read + ReadVolatile + Seek),
    ram: &Ram,
) -> linux_loader::loader::Result<KernelLoaderResult> {
    Elf::load(ram, None, image, Some(GuestAddress(layout::HIMEM)))
}

/// Puts the initramfs at the top of low RAM, above the kernel.
fn load_initramfs(path: &Path, memory: u64, kernel_end: u64, ram: &Ram) -> Result<(u64, u64)> {
    let err = |source| Error::File {
        what: "initramfs",
        path: path.to_owned(),
        source,
    };
    let mut file = open("initramfs", path)?;
    let size = file.seek(SeekFrom::End(0)).map_err(err)?;
    file.rewind().map_err(err)?;
    let low = memory.min(layout::LOW_RAM_END);
    let gpa = low
        .checked_sub(size)
        .map(|at| at & !0xfff)
        .filter(|at| {
            // The end is what a kernel's headers say it is.
            let end = kernel_end.checked_next_multiple_of(0x1000);
            end.is_some_and(|end| *at >= end)
        })
        .ok_or_else(|| {
            Error::Memory(format!(
                "the initramfs of {} KiB does not fit above the kernel in {} MiB",
                size >> 10,
                memory >> 20
            ))
        })?;
    ram.read_exact_volatile_from(GuestAddress(gpa), &mut file.by_ref(), size as usize)
        .map_err(|e| Error::Memory(format!("loading the initramfs {}: {e}", path.display())))?;
    Ok((gpa, size))
}

fn write_cmdline(cmdline: &str, ram: &Ram) -> Result<()> {
    if cmdline.len() >= layout::CMDLINE_MAX || cmdline.bytes().any(|b| b == 0) {
        return Err(Error::Config(format!(
            "the kernel command line is over {} bytes or holds a NUL",
            layout::CMDLINE_MAX - 1
        )));
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    write(ram, layout::CMDLINE, &bytes)
}

/// Writes boot structures, which lie in the first MiB of a RAM that is never smaller.
fn write(ram: &Ram, gpa: u64, bytes: &[u8]) -> Result<()> {
    ram.write_slice(bytes, GuestAddress(gpa))
        .map_err(|e| Error::Memory(format!("boot structures at {gpa:#x}: {e}")))
}

/// Returns RAM as the firmware's memory map describes it: conventional memory up to the MP table,
/// all of extended memory. (GPA, length) pairs.
fn usable_ram(memory: u64) -> Vec<(u64, u64)> {
    let mut map = vec![(0, layout::MP_TABLE)];
    for (gpa, len) in layout::ram(memory) {
        map.push(if gpa == 0 {
            (layout::HIMEM, len - layout::HIMEM)
        } else {
            (gpa, len)
        });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_lies_where_its_seed_says_unless_the_command_line_forbids_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinux");
        let linked = relocate::tests::movable_kernel();
        std::fs::write(&path, &linked).unwrap();
        let place = |cmdline, seed| place_kernel(&path, cmdline, &[seed; 32]).unwrap();
        assert_ne!(place("quiet", 1).unwrap(), linked);
        assert_eq!(place("quiet", 1), place("nokaslr.x=1 quiet", 1));
        assert_ne!(place("quiet", 1), place("quiet", 2));
        assert_eq!(place("quiet nokaslr", 1).unwrap(), linked);
    }

    #[test]
    fn kernels_that_cannot_be_moved_are_told_from_those_that_contradict_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinux");
        let mut kernel = relocate::tests::movable_kernel();
        kernel.truncate(kernel.len() - 1);
        std::fs::write(&path, &kernel).unwrap();
        let error = place_kernel(&path, "", &[1; 32]).unwrap_err().to_string();
        assert!(
            error.contains("its table of relocations is cut off"),
            "{error}"
        );
        kernel[60] = 0; // no sections
        std::fs::write(&path, &kernel).unwrap();
        assert_eq!(place_kernel(&path, "", &[1; 32]).unwrap(), None);
    }
}
