//! Whose a page is.
//!
//! What is asked first: a CPU's variables, the kernel image, the page tables of kernel and
//! processes and all that they map outside of the direct mapping, then the kernel's `struct page`.
//! Without the layout table of our kernels the last is left out, and processes are guessed.

use std::collections::{BTreeSet, HashMap};
use std::ops::{ControlFlow, Range};

use smol_cli::Interrupt;
use smol_machine::state::MachineState;

use super::kallsyms::Kallsyms;
use super::layout::Layout;
use super::names::KernelView;
use super::ram::{KERNEL_HALF, Met, PAGE, Ram, Space};
use super::tasks::{self, Process, Task};

/// Where the kernel image may run, and most bytes of it.
const IMAGE: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;
const MAX_IMAGE: u64 = 128 << 20;
/// The direct mapping of kernels that do not tell (4-level page tables, no randomisation), and its
/// length.
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const DIRECT_MAP_LEN: u64 = 64 << 40;
/// The array of `struct page` of the same kernels; and entry stacks and tables, where they are in
/// all kernels (Linux, Documentation/x86/x86_64/mm.rst).
const VMEMMAP: Range<u64> = 0xffff_ea00_0000_0000..0xffff_eb00_0000_0000;
const CPU_ENTRY_AREA: Range<u64> = 0xffff_fe00_0000_0000..0xffff_fe80_0000_0000;
/// The registers that hold the address of the system call entry, and of the CPU's area while the
/// processor is in user space.
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
/// `page_type` of pages that are none of the usual, and the bit that is cleared for page tables
/// (Linux 6.1, include/linux/page-flags.h).
const PAGE_TYPE_BASE: u32 = 0xf000_0000;
const PG_TABLE: u32 = 0x200;

/// Whose a page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What pages are grouped by: `kernel: jiffies`, `process redis-server (57), heap`.
    pub name: String,
    /// The place in it, if there is more to say.
    pub place: Option<String>,
}

impl Owner {
    fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Owner { name, place: None }
    }

    fn at(name: impl Into<String>, place: String) -> Self {
        let (name, place) = (name.into(), Some(place));
        Owner { name, place }
    }
}

/// What maps a page.
#[derive(Clone, Copy)]
enum Use {
    Kernel(u64),
    KernelTable,
    User(usize, u64),
    UserTable(usize),
}

/// A machine's memory, with all that is known of its owners.
pub struct Owners<'r> {
    space: Space<'r>,
    symbols: Kallsyms,
    layout: Option<Layout>,
    tasks: Vec<Task>,
    processes: Vec<Process>,
    uses: HashMap<u64, Use>,
    /// GPA of the first CPU's area.
    per_cpu: Option<u64>,
}

impl<'r> Owners<'r> {
    /// Learns who owns `pages` (GPAs), by the page tables of the first vCPU.
    ///
    /// `None` for a machine whose page tables have not four levels, or that has no vCPU.
    pub fn learn(
        ram: &'r Ram<'r>,
        state: &MachineState,
        pages: &BTreeSet<u64>,
        interrupt: &Interrupt,
    ) -> Option<Self> {
        const CR4_LA57: u64 = 1 << 12;
        let vcpu = state.vcpus.first()?;
        if vcpu.system.cr4 & CR4_LA57 != 0 {
            return None;
        }
        let msr = |index| vcpu.msrs.iter().find(|m| m.index == index).map(|m| m.value);
        let space = Space {
            ram,
            top: vcpu.system.cr3 & !(PAGE - 1),
        };
        let image = image(space);
        let mut symbols = Kallsyms::find(&image, interrupt).unwrap_or_default();
        // The base in memory has been relocated with the kernel, so this is 0 with any KASLR that
        // relocates as the kernel's own does.
        if let (Some(entry), Some(symbol)) = (msr(MSR_LSTAR), symbols.address("entry_SYSCALL_64")) {
            symbols.slide(entry.wrapping_sub(symbol));
        }
        let area = [Some(vcpu.system.gs.base), msr(MSR_KERNEL_GS_BASE)];
        let area = area.into_iter().flatten().find(|base| *base >= KERNEL_HALF);
        let mut owners = Owners {
            space,
            symbols,
            layout: Layout::find(&image),
            tasks: Vec::new(),
            processes: Vec::new(),
            uses: HashMap::new(),
            per_cpu: area.and_then(|base| space.translate(base)),
        };
        owners.find_processes();
        owners.find_uses(pages);
        Some(owners)
    }

    /// Whether the kernel has a layout table.
    pub fn knows_layout(&self) -> bool {
        self.layout.is_some()
    }

    /// Whether the kernel's symbols were found.
    pub fn knows_symbols(&self) -> bool {
        !self.symbols.is_empty()
    }

    fn kernel(&self) -> Option<KernelView<'_>> {
        let (space, layout) = (self.space, self.layout.as_ref()?);
        Some(KernelView { space, layout })
    }

    fn find_processes(&mut self) {
        let ram = self.space.ram;
        (self.tasks, self.processes) = match self.kernel() {
            Some(kernel) => tasks::listed(kernel),
            None => {
                let pages = (0..(ram.size() / PAGE) as u32).filter_map(|page| ram.gpa(page));
                (Vec::new(), tasks::guessed(ram, self.space.top, pages))
            }
        };
    }

    fn find_uses(&mut self, pages: &BTreeSet<u64>) {
        let mut uses = HashMap::new();
        let ram = self.space.ram;
        let mut each = |gpa: u64, size: u64, make: &dyn Fn(u64) -> Use| {
            let mapped = pages.range(gpa..gpa.saturating_add(size));
            // Large pages may be mapped any number of times.
            for page in mapped.take_while(|_| ram.spend().is_some()) {
                let new = make(page - gpa);
                // The kernel image wins over other mappings of the kernel, but not over processes:
                // what was needed for booting alone is free memory now, and still mapped there.
                let is_image = |user: &Use| matches!(user, Use::Kernel(va) if IMAGE.contains(va));
                let known = uses.entry(*page).or_insert(new);
                let of_process = matches!(new, Use::User(..) | Use::UserTable(_));
                if is_image(&new) || of_process && is_image(known) {
                    *known = new;
                }
            }
        };
        let direct = self.layout.map_or(DIRECT_MAP, |layout| layout.direct_map);
        let direct = direct..direct.saturating_add(DIRECT_MAP_LEN);
        self.space.walk(KERNEL_HALF, u64::MAX, &mut |met| {
            match met {
                Met::Table(gpa) => each(gpa, PAGE, &|_| Use::KernelTable),
                Met::Pages { va, .. } if direct.contains(&va) => {}
                Met::Pages { va, gpa, size } => each(gpa, size, &|at| Use::Kernel(va + at)),
            }
            ControlFlow::Continue(())
        });
        for (n, process) in self.processes.iter().enumerate() {
            let space = Space {
                ram: self.space.ram,
                top: process.top,
            };
            space.walk(0, 0x7fff_ffff_ffff, &mut |met| {
                match met {
                    Met::Table(gpa) => each(gpa, PAGE, &|_| Use::UserTable(n)),
                    Met::Pages { va, gpa, size } => each(gpa, size, &|at| Use::User(n, va + at)),
                }
                ControlFlow::Continue(())
            });
        }
        self.uses = uses;
    }

    /// The owner of the page at `gpa`, of which the bytes at `offsets` are asked for (ascending,
    /// less than 4096).
    pub fn of(&self, gpa: u64, offsets: &[usize]) -> Owner {
        let first = offsets.first().map_or(0, |offset| *offset as u64);
        if let Some(owner) = self.per_cpu_variable(gpa, offsets) {
            return owner;
        }
        match self.uses.get(&gpa) {
            Some(Use::Kernel(va)) if IMAGE.contains(va) => self.image_memory(gpa, *va, offsets),
            Some(Use::Kernel(va)) => self.kernel_memory(va + first),
            Some(Use::KernelTable) => Owner::new("page tables of the kernel"),
            Some(Use::UserTable(n)) => Owner::new(format!(
                "page tables of process {}",
                self.processes[*n].name
            )),
            Some(Use::User(n, va)) => self.process_memory(gpa, *n, va + first),
            None => self.by_page(gpa, first).unwrap_or_else(|| fallback(gpa)),
        }
    }

    fn per_cpu_variable(&self, gpa: u64, offsets: &[usize]) -> Option<Owner> {
        let base = gpa.checked_sub(self.per_cpu?)?;
        let names = names(offsets, |offset| {
            self.symbols.per_cpu_at(base + offset as u64)
        });
        (!names.is_empty()).then(|| Owner::new(format!("kernel, per CPU: {}", names.join(", "))))
    }

    /// The kernel image; what was freed of it after booting is not reserved any more.
    fn image_memory(&self, gpa: u64, va: u64, offsets: &[usize]) -> Owner {
        let first = offsets.first().map_or(0, |offset| *offset as u64);
        let freed = self.kernel().and_then(|kernel| {
            let at = &kernel.layout.page;
            let flags = kernel.u64(kernel.page_at(gpa)?, at.flags)?;
            let reserved = flags >> (kernel.layout.values.pg_reserved & 63) & 1 == 1;
            (!reserved).then(|| self.by_page(gpa, first)).flatten()
        });
        if let Some(owner) = freed {
            return owner;
        }
        let names = names(offsets, |offset| self.symbols.at(va + offset as u64));
        let name = match names.is_empty() {
            true => "kernel image, data without names".into(),
            false => format!("kernel: {}", names.join(", ")),
        };
        Owner::at(name, format!("{:#x}", va + first))
    }

    /// What the kernel maps outside of its image and of the direct mapping.
    fn kernel_memory(&self, va: u64) -> Owner {
        let at = |name: &str| Owner::at(name, format!("{va:#x}"));
        let end = self.tasks.partition_point(|task| task.stack.start <= va);
        let last = self.tasks[..end].last();
        if let Some(task) = last.filter(|task| task.stack.contains(&va)) {
            return at(&format!("kernel stack of {} ({})", task.comm, task.pid));
        }
        if CPU_ENTRY_AREA.contains(&va) {
            return at("kernel, CPU entry area");
        }
        match &self.layout {
            Some(layout) if va >= layout.vmemmap => {
                let number = (va - layout.vmemmap).checked_div(layout.page.size);
                let page = number.and_then(|number| number.checked_mul(PAGE));
                let place = format!("that of the page at {:#x}", page.unwrap_or(0));
                Owner::at("page structures", place)
            }
            None if VMEMMAP.contains(&va) => at("page structures"),
            _ => at("kernel, vmalloc"),
        }
    }

    fn process_memory(&self, gpa: u64, number: usize, va: u64) -> Owner {
        if let Some(file) = self.kernel().and_then(|kernel| page_file(kernel, gpa)) {
            return file;
        }
        let process = &self.processes[number];
        let name = format!("process {}, {}", process.name, process.mapping(va));
        Owner::at(name, format!("{va:#x}"))
    }

    /// What the kernel's `struct page` says.
    fn by_page(&self, gpa: u64, first: u64) -> Option<Owner> {
        let kernel = self.kernel()?;
        let (at, values) = (&kernel.layout.page, &kernel.layout.values);
        let page = kernel.page_at(gpa)?;
        let head = kernel.u64(page, at.head)?;
        let page = if head & 1 == 1 { head - 1 } else { page };
        let flags = kernel.u64(page, at.flags)?;
        let flag = |bit: u64| flags >> (bit & 63) & 1 == 1;
        if flag(values.pg_slab) {
            return slab(kernel, page, gpa, first);
        }
        if kernel.u32(page, at.refcount)? == 0 {
            return Some(Owner::new("free memory"));
        }
        if kernel.u32(page, at.kind)? & (PAGE_TYPE_BASE | PG_TABLE) == PAGE_TYPE_BASE {
            return Some(Owner::new("page tables"));
        }
        if let Some(file) = page_file(kernel, gpa) {
            return Some(file);
        }
        if kernel.u64(page, at.mapping)? & 1 == 1 {
            return Some(Owner::new("anonymous memory of no process"));
        }
        Some(match flag(values.pg_reserved) {
            true => boot_memory(gpa),
            false => Owner::new("kernel, pages"),
        })
    }
}

/// The kernel image as it is mapped, from the first address on; unmapped pages are zero.
fn image(space: Space<'_>) -> Vec<u8> {
    let mut begin = None;
    let mut bytes = Vec::new();
    space.walk(IMAGE.start, IMAGE.end - 1, &mut |met| {
        let Met::Pages { va, gpa, size } = met else {
            return ControlFlow::Continue(());
        };
        let at = va - *begin.get_or_insert(va);
        if at + size > MAX_IMAGE {
            return ControlFlow::Break(());
        }
        bytes.resize((at + size) as usize, 0);
        // What is not RAM stays zero.
        let _ = space.ram.read(gpa, &mut bytes[at as usize..]);
        ControlFlow::Continue(())
    });
    bytes
}

/// Symbols that mark an end: what lies behind them has no name.
const ENDS: &[&str] = &[
    "_etext",
    "_einittext",
    "_edata",
    "_end",
    "__end_rodata",
    "__bss_stop",
];

/// The symbols that cover the bytes at `offsets`, the first few, each once.
fn names<'s>(
    offsets: &[usize],
    symbol: impl Fn(usize) -> Option<&'s super::kallsyms::Symbol>,
) -> Vec<&'s str> {
    const MOST: usize = 3;
    let mut names: Vec<&str> = Vec::new();
    let symbols = offsets.iter().filter_map(|offset| symbol(*offset));
    for name in symbols.filter(|symbol| !ENDS.contains(&symbol.name.as_str())) {
        if names.last() != Some(&name.name.as_str()) {
            if names.len() == MOST {
                names.push("...");
                break;
            }
            names.push(&name.name);
        }
    }
    names
}

/// The file of a page of the page cache.
fn page_file(kernel: KernelView<'_>, gpa: u64) -> Option<Owner> {
    let at = &kernel.layout.page;
    let page = kernel.page_at(gpa)?;
    let mapping = kernel.u64(page, at.mapping)?;
    let is_file = mapping & 3 == 0 && mapping >= KERNEL_HALF;
    let file = is_file.then(|| kernel.file(mapping))??;
    let index = kernel.u64(page, at.index)?;
    let place = format!("byte {}", index.checked_mul(PAGE)?);
    Some(Owner::at(format!("file {file}"), place))
}

fn slab(kernel: KernelView<'_>, head: u64, gpa: u64, first: u64) -> Option<Owner> {
    let (at, layout) = (&kernel.layout.page, kernel.layout);
    let cache = kernel.follow(head, at.slab_cache)?;
    let (name, size) = kernel.cache(cache)?;
    let number = head.checked_sub(layout.vmemmap)?.checked_div(at.size)?;
    let offset = (gpa + first).checked_sub(number.checked_mul(PAGE)?)?;
    let (object, byte) = (
        offset.checked_div(size.into())?,
        offset.checked_rem(size.into())?,
    );
    let place = format!("byte {byte} of {size} of object {object}");
    Some(Owner::at(format!("slab {name}"), place))
}

fn fallback(gpa: u64) -> Owner {
    match gpa < smol_machine::layout::HIMEM {
        true => boot_memory(gpa),
        false => Owner::new("unknown: nothing maps it"),
    }
}

/// What the monitor puts below 1 MiB; else memory that the kernel set aside at boot.
fn boot_memory(gpa: u64) -> Owner {
    use smol_machine::layout::*;
    let name = match gpa {
        0..0x1000 => "boot: descriptor table",
        SETUP_DATA..BOOT_PARAMS => "boot: seed or start_info",
        BOOT_PARAMS..0x8000 => "boot: boot_params",
        PAGE_TABLES..0xc000 => "boot: page tables",
        CMDLINE..0x21000 => "boot: command line",
        0x9f000..0xa0000 => "boot: MP table",
        _ if gpa < HIMEM => "boot: below 1 MiB",
        _ => "kernel, set aside at boot",
    };
    Owner::at(name, format!("{gpa:#x}"))
}
