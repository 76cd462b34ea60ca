//! Tasks and address spaces: by the kernel's list where its layout is known, by the looks of page
//! tables and stacks elsewhere.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::names::KernelView;
use super::ram::{KERNEL_HALF, Met, PAGE, Ram, Space};

/// Most tasks that are believed, and most mappings of all processes together.
const MAX_TASKS: usize = 1 << 16;
const MAX_MAPPINGS: usize = 1 << 16;

/// A thread, of a process or of the kernel.
#[derive(Clone, Debug)]
pub struct Task {
    /// What it calls itself.
    pub comm: String,
    /// Its number.
    pub pid: u32,
    /// Virtual addresses of its kernel stack.
    pub stack: std::ops::Range<u64>,
}

/// An address space with the process that has it.
#[derive(Clone, Debug)]
pub struct Process {
    /// `redis-server (57)`.
    pub name: String,
    /// GPA of its top-level page table.
    pub top: u64,
    /// What is known of its addresses, in their order.
    pub mappings: Vec<Mapping>,
}

/// Addresses of a process that serve one purpose.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Virtual addresses.
    pub range: std::ops::Range<u64>,
    /// `heap`, `stack`, a path.
    pub name: String,
}

impl Process {
    /// What the address is for.
    pub fn mapping(&self, va: u64) -> String {
        let end = self.mappings.partition_point(|m| m.range.start <= va);
        let last = self.mappings[..end].last();
        let found = last.filter(|mapping| mapping.range.contains(&va));
        found.map_or_else(|| guess(va).to_owned(), |m| m.name.clone())
    }
}

/// By the address alone: where Linux puts things on x86-64.
fn guess(va: u64) -> &'static str {
    match va >> 40 {
        0x55 | 0x56 => "program or heap",
        0x7f if va >> 36 == 0x7ff => "stack",
        0x7f => "library or anonymous memory",
        _ => "memory",
    }
}

/// All tasks, by their stacks, and all address spaces, by the kernel's own lists.
pub fn listed(kernel: KernelView<'_>) -> (Vec<Task>, Vec<Process>) {
    let (mut tasks, mut processes) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    let at = &kernel.layout.task;
    for leader in list(kernel, kernel.layout.init_task, at.tasks, at.tasks) {
        let Some(first) = task(kernel, leader) else {
            continue;
        };
        if let Some(mm) = kernel.follow(leader, at.mm)
            && seen.insert(mm)
            && let Some(process) = process(kernel, mm, &first)
        {
            processes.push(process);
        }
        let threads = kernel.follow(leader, at.signal).map(|signal| {
            let head = kernel.layout.signal.thread_head;
            list(kernel, signal, head, at.thread_node)
        });
        let threads = threads.into_iter().flatten().skip(1);
        let others = threads.filter(|thread| *thread != leader);
        tasks.extend(others.filter_map(|thread| task(kernel, thread)));
        tasks.push(first);
        let mappings = |process: &Process| process.mappings.len();
        if tasks.len() > MAX_TASKS || processes.iter().map(mappings).sum::<usize>() > MAX_MAPPINGS {
            break;
        }
    }
    tasks.sort_by_key(|task| task.stack.start);
    (tasks, processes)
}

/// The members of a ring of `struct list_head`: `first` whose link is at `head`, then those whose
/// link is at `link`.
fn list(kernel: KernelView<'_>, first: u64, head: u64, link: u64) -> Vec<u64> {
    let mut out = vec![first];
    let begin = first.checked_add(head);
    let mut next = begin.and_then(|begin| kernel.space.pointer(begin));
    while let Some(at) = next.filter(|at| Some(*at) != begin && out.len() < MAX_TASKS) {
        out.extend(at.checked_sub(link));
        next = kernel.space.pointer(at);
    }
    out
}

fn task(kernel: KernelView<'_>, task: u64) -> Option<Task> {
    let (at, values) = (&kernel.layout.task, &kernel.layout.values);
    let stack = kernel.follow(task, at.stack)?;
    Some(Task {
        comm: kernel
            .space
            .text(task.checked_add(at.comm)?, values.comm_len.min(64) as usize)?,
        pid: kernel.u32(task, at.pid)?,
        stack: stack..stack.checked_add(values.thread_size)?,
    })
}

fn process(kernel: KernelView<'_>, mm: u64, leader: &Task) -> Option<Process> {
    let top = kernel.follow(mm, kernel.layout.mm.pgd)?;
    Some(Process {
        name: format!("{} ({})", leader.comm, leader.pid),
        top: kernel.space.translate(top)?,
        mappings: mappings(kernel, mm).unwrap_or_default(),
    })
}

/// The mappings of a process: those of files by their path, the others by what `mm_struct` says.
fn mappings(kernel: KernelView<'_>, mm: u64) -> Option<Vec<Mapping>> {
    let at = &kernel.layout.mm;
    let root = kernel.u64(mm, at.tree_root)?;
    let number = |offset| kernel.u64(mm, offset);
    let (brk, stack) = (
        number(at.start_brk)?..number(at.brk)?,
        number(at.start_stack)?,
    );
    let data = number(at.start_data)?..number(at.end_data)?;
    let mut out = Vec::new();
    for area in areas(kernel, root) {
        let vma = &kernel.layout.vma;
        let range = kernel.u64(area, vma.start)?..kernel.u64(area, vma.end)?;
        let file = kernel.follow(area, vma.file);
        let path =
            file.and_then(|file| kernel.path(kernel.follow(file, kernel.layout.file.dentry)?));
        let name = match path {
            Some(path) => path,
            None if range.contains(&stack) => "stack".into(),
            None if range.start < brk.end && brk.start < range.end => "heap".into(),
            None if range.contains(&data.end) => "data of the program".into(),
            None => "anonymous memory".into(),
        };
        out.push(Mapping { range, name });
    }
    out.sort_by_key(|mapping| mapping.range.start);
    Some(out)
}

/// The entries of a maple tree (Linux, include/linux/maple_tree.h), in which a process has its
/// `vm_area_struct`s.
fn areas(kernel: KernelView<'_>, root: u64) -> Vec<u64> {
    let mut out = Vec::new();
    // Bit 1 marks a root that is a node; a single entry is the root itself.
    match root & 3 {
        2 => maple_node(kernel, root, u64::MAX, 0, &mut out),
        _ if root >= KERNEL_HALF => out.push(root),
        _ => {}
    }
    out
}

/// Entries below the encoded node `entry`, whose last index is `max`.
fn maple_node(kernel: KernelView<'_>, entry: u64, max: u64, depth: u32, out: &mut Vec<u64>) {
    if entry < KERNEL_HALF || depth > 8 || out.len() >= MAX_MAPPINGS {
        return;
    }
    // The kinds of nodes: a parent, so many pivots, one slot more.
    let (leaf, pivots) = match entry >> 3 & 15 {
        1 => (true, 15),
        2 => (false, 15),
        3 => (false, 9),
        _ => return,
    };
    let (node, slots_at) = (entry & !0xff, 8 * (1 + pivots));
    for slot in 0..=pivots {
        let pivot = match slot < pivots {
            true => kernel
                .u64(node, 8 * (1 + slot))
                .filter(|pivot| *pivot != 0 || slot == 0),
            false => None,
        };
        let last = pivot.unwrap_or(max).min(max);
        match kernel.u64(node, slots_at + 8 * slot) {
            Some(child) if leaf && child >= KERNEL_HALF => out.push(child),
            Some(child) if !leaf => maple_node(kernel, child, last, depth + 1, out),
            _ => {}
        }
        if last == max || out.len() >= MAX_MAPPINGS {
            break;
        }
    }
}

/// Address spaces without the kernel's help: pages whose upper half is that of a known top-level
/// page table, and that map something below.
pub fn guessed<'r>(
    ram: &'r Ram<'r>,
    known_top: u64,
    pages: impl Iterator<Item = u64>,
) -> Vec<Process> {
    let Some(known) = ram.table(known_top) else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for gpa in pages {
        let mut page = [0; PAGE as usize];
        if ram.read(gpa, &mut page).is_none() {
            continue;
        }
        let entries: Vec<u64> = page
            .as_chunks::<8>()
            .0
            .iter()
            .map(|e| u64::from_le_bytes(*e))
            .collect();
        // The kernel may set Accessed bits in one of them only.
        let same = |a: u64, b: u64| a & !0x60 == b & !0x60;
        let upper = entries[256..]
            .iter()
            .zip(&known[256..])
            .all(|(a, b)| same(*a, *b));
        // What starts further CPUs has a piece of the kernel's half in its lower one, too.
        let lower = || entries[..256].iter().filter(|entry| **entry != 0);
        let borrowed = lower().any(|entry| known[256..].iter().any(|e| same(*entry, *e)));
        if !upper || borrowed || lower().next().is_none() {
            continue;
        }
        let space = Space { ram, top: gpa };
        out.push(Process {
            name: program(space).unwrap_or_else(|| "of an unknown program".into()),
            top: gpa,
            mappings: Vec::new(),
        });
    }
    out
}

/// The name of the program that the kernel leaves at the top of its first stack: a string, and
/// eight zero bytes at the end of the page.
fn program(space: Space<'_>) -> Option<String> {
    let mut found = None;
    space.walk(0x7ff0_0000_0000, 0x7fff_ffff_ffff, &mut |met| {
        if let Met::Pages {
            gpa, size: PAGE, ..
        } = met
        {
            let mut page = [0; PAGE as usize];
            if space.ram.read(gpa, &mut page).is_some() {
                found = name_at_end(&page).or(found.take());
            }
        }
        ControlFlow::Continue(())
    });
    found
}

fn name_at_end(page: &[u8; PAGE as usize]) -> Option<String> {
    let text = page[..PAGE as usize - 8].strip_suffix(&[0])?;
    let begin = text.iter().rposition(|byte| *byte == 0)? + 1;
    let name = &text[begin..];
    let printable = name.len() > 1 && name.iter().all(u8::is_ascii_graphic);
    (printable && page[PAGE as usize - 8..] == [0; 8])
        .then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::ram::testing::Builder;
    use super::*;

    #[test]
    fn a_process_is_known_by_its_page_table_and_its_stack() {
        let mut memory = Builder::new(40);
        memory.map(Builder::TOP, 0xffff_ffff_8100_0000, 30 * PAGE);
        let other = memory.page();
        let upper = Builder::TOP as usize + 2048;
        let kernel: Vec<u8> = memory.bytes[upper..upper + 2048].to_vec();
        memory.bytes[other as usize + 2048..][..2048].copy_from_slice(&kernel);
        memory.map(other, 0x7fff_1234_5000, 31 * PAGE);
        memory.bytes[32 * 4096 - 8 - 15..32 * 4096 - 8].copy_from_slice(b"\0/usr/bin/redis");
        memory.bytes[32 * 4096 - 9] = 0;
        let ram = Ram::new(&memory.bytes, memory.bytes.len() as u64);
        let found = guessed(&ram, Builder::TOP, (0..40).map(|page| page * PAGE));
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].name.as_str(), found[0].top),
            ("/usr/bin/redi", other)
        );
        assert_eq!(found[0].mapping(0x7fff_1234_5000), "stack");
    }
}
