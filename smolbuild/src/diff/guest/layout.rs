//! The layout table: where things are in our kernels, as kernel patch 0011 writes it and
//! docs/paravirt.md describes it.
//!
//! The table is part of a guest's memory, so its numbers may be anything. They are only ever added
//! to addresses that are then looked up with checks.

/// What the table begins with.
pub const MAGIC: &[u8; 16] = b"smol layout tbl\0";
/// The version that this reads, and the bytes of its table.
pub const VERSION: u32 = 1;
const SIZE: usize = 16 + 8 + 5 * 8 + 48 * 4;

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),+ })+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default)]
            #[allow(missing_docs)]
            pub struct $name { $(pub $field: u64),+ }

            impl $name {
                fn read(numbers: &mut impl Iterator<Item = u64>) -> Option<Self> {
                    Some($name { $($field: numbers.next()?),+ })
                }
            }
        )+
    };
}

table! {
    /// Offsets in `struct task_struct`.
    Task { comm, pid, mm, tasks, stack, signal, thread_node }
    /// Offsets in `struct signal_struct`.
    Signal { thread_head }
    /// Offsets in `struct mm_struct`.
    Mm { pgd, tree_root, start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, env_end }
    /// Offsets in `struct vm_area_struct`.
    Vma { start, end, file }
    /// Offsets in `struct file`.
    File { dentry }
    /// Size of and offsets in `struct page`.
    Page { size, flags, mapping, index, kind, refcount, head, slab_cache }
    /// Offsets in `struct address_space`.
    Mapping { host }
    /// Offsets in `struct inode`.
    InodeAt { number, superblock, aliases }
    /// Offsets in `struct dentry`.
    Dentry { name, parent, alias }
    /// Offsets in `struct super_block`.
    Super { id, kind }
    /// Offsets in `struct file_system_type`.
    FsType { name }
    /// Offsets in `struct kmem_cache`.
    Cache { name, size }
    /// Sizes in bytes, and numbers of bits in a page's flags.
    Values { thread_size, comm_len, pg_slab, pg_reserved, pg_swapbacked }
}

/// The table.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Layout {
    /// First address of the kernel image.
    pub text: u64,
    /// First address behind it.
    pub end: u64,
    /// Where all memory is mapped.
    pub direct_map: u64,
    /// Where the array of `struct page` begins.
    pub vmemmap: u64,
    /// The first task.
    pub init_task: u64,
    pub task: Task,
    pub signal: Signal,
    pub mm: Mm,
    pub vma: Vma,
    pub file: File,
    pub page: Page,
    pub mapping: Mapping,
    pub inode: InodeAt,
    pub dentry: Dentry,
    pub superblock: Super,
    pub fs_type: FsType,
    pub cache: Cache,
    pub values: Values,
}

impl Layout {
    /// Looks for the table in a kernel image as it lies in memory.
    pub fn find(image: &[u8]) -> Option<Self> {
        let places = regex::bytes::Regex::new("smol layout tbl\\x00").expect("a constant");
        places
            .find_iter(image)
            .find_map(|found| Self::parse(&image[found.start()..]))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..SIZE)?.strip_prefix(MAGIC)?;
        let u32s = bytes.as_chunks::<4>().0;
        let mut head = u32s.iter().map(|b| u32::from_le_bytes(*b));
        // Later tables may be longer, with more at the end.
        if head.next()? != VERSION || (head.next()? as usize) < SIZE {
            return None;
        }
        let u64s = bytes[8..48].as_chunks::<8>().0;
        let mut addresses = u64s.iter().map(|b| u64::from_le_bytes(*b));
        let n = &mut u32s[12..].iter().map(|b| u64::from(u32::from_le_bytes(*b)));
        Some(Layout {
            text: addresses.next()?,
            end: addresses.next()?,
            direct_map: addresses.next()?,
            vmemmap: addresses.next()?,
            init_task: addresses.next()?,
            task: Task::read(n)?,
            signal: Signal::read(n)?,
            mm: Mm::read(n)?,
            vma: Vma::read(n)?,
            file: File::read(n)?,
            page: Page::read(n)?,
            mapping: Mapping::read(n)?,
            inode: InodeAt::read(n)?,
            dentry: Dentry::read(n)?,
            superblock: Super::read(n)?,
            fs_type: FsType::read(n)?,
            cache: Cache::read(n)?,
            values: Values::read(n)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(version: u32, size: u32) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend(MAGIC);
        bytes.extend(version.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        (1..=5u64).for_each(|n| bytes.extend((n << 40).to_le_bytes()));
        (1..=48u32).for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes
    }

    #[test]
    fn the_table_is_found_by_its_magic_and_read_in_its_order() {
        let found = Layout::find(&table(1, SIZE as u32)).unwrap();
        assert_eq!((found.text, found.init_task), (1 << 40, 5 << 40));
        assert_eq!((found.task.comm, found.task.thread_node), (1, 7));
        assert_eq!((found.page.size, found.page.slab_cache), (24, 31));
        assert_eq!(found.values.pg_swapbacked, 48);
    }

    #[test]
    fn tables_of_other_versions_and_cut_ones_are_left_alone() {
        assert!(Layout::find(&table(2, SIZE as u32)).is_none());
        assert!(Layout::find(&table(1, SIZE as u32 - 1)).is_none());
        assert!(Layout::find(&table(1, SIZE as u32 + 4)).is_some());
        let whole = table(1, SIZE as u32);
        assert!(Layout::find(&whole[..whole.len() - 1]).is_none());
    }

    #[test]
    fn the_table_is_as_long_as_that_of_the_kernel_patch() {
        let patch = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../kernels/smol-6.1/patches/0011-tell-where-things-are.patch"
        );
        let patch = std::fs::read_to_string(patch).unwrap();
        let begin = patch.find("struct smol_layout {").unwrap();
        let body = &patch[begin..][..patch[begin..].find("__packed").unwrap()];
        let declared = |kind: &str| -> usize {
            let lists = body.split(kind).skip(1);
            lists
                .map(|list| list.split(';').next().unwrap().split(',').count())
                .sum()
        };
        // `version` and `size` are u32, too.
        assert_eq!((declared("u32 "), declared("u64 ")), (48 + 2, 5));
    }
}
