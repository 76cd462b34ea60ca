//! Owners of pages by kind: a line for all slabs, all files, all variables of the kernel, each process.

use std::collections::HashMap;

use super::memory::{Group, Memory};

/// Owners that a line names.
const NAMED: usize = 3;
/// Longest name in such a line, in characters.
const MAX_NAME: usize = 40;

/// Pages of owners of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The kind: `slabs`, `process redis-server (57)`.
    pub name: String,
    /// How many pages.
    pub pages: u64,
    /// The owners without the words that make their kind, the one with the most pages first; none if
    /// the kind says all.
    pub owners: Vec<String>,
}

impl Kind {
    /// The first owners, as a remark behind the kind; empty if there is nothing to add.
    pub fn remark(&self) -> String {
        let shown = self.owners.iter().take(NAMED).map(|name| short(name));
        let shown: Vec<String> = shown.collect();
        match self.owners.len().saturating_sub(NAMED) {
            _ if shown.is_empty() => String::new(),
            0 => format!(": {}", shown.join(", ")),
            more => format!(": {}, and {more} more", shown.join(", ")),
        }
    }
}

fn short(name: &str) -> String {
    match name.char_indices().nth(MAX_NAME) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

/// The kinds of owners that have pages, the one with the most pages first.
pub fn kinds(memory: &Memory) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for Group { owner, pages, .. } in &memory.owners {
        let (name, rest) = kind_of(owner);
        let at = *known.entry(name).or_insert_with(|| {
            kinds.push(Kind {
                name: name.to_owned(),
                pages: 0,
                owners: Vec::new(),
            });
            kinds.len() - 1
        });
        kinds[at].pages += pages;
        kinds[at].owners.extend(rest.map(str::to_owned));
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.pages));
    kinds
}

/// The kind of an owner, and what else its name says.
fn kind_of(owner: &str) -> (&str, Option<&str>) {
    const KINDS: [(&str, &str); 6] = [
        ("kernel: ", "variables of the kernel"),
        ("kernel, per CPU: ", "per-CPU variables of the kernel"),
        ("kernel stack of ", "kernel stacks"),
        ("page tables of ", "page tables"),
        ("slab ", "slabs"),
        ("file ", "files in the page cache"),
    ];
    let mut kinds = KINDS.into_iter();
    let found = kinds.find_map(|(start, kind)| Some((kind, Some(owner.strip_prefix(start)?))));
    // `process redis-server (57), heap`
    let process = || {
        let (process, mapping) = owner.split_once("), ")?;
        process.starts_with("process ").then_some(())?;
        Some((&owner[..process.len() + 1], Some(mapping)))
    };
    found.or_else(process).unwrap_or((owner, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_of_a_kind_are_one_line_and_each_process_is_its_own() {
        let group = |owner: &str, pages| Group {
            owner: owner.into(),
            pages,
            places: Vec::new(),
        };
        let memory = Memory {
            owners: vec![
                group("process sh (7), heap", 9),
                group("slab dentry", 4),
                group("free memory", 8),
                group("process sh (7), stack", 1),
                group("process a, b (8), heap", 2),
                group("slab inode_cache", 2),
                group("page tables", 1),
                group("page tables of the kernel", 1),
                group("slab a", 1),
                group(&format!("slab {}", "b".repeat(50)), 1),
            ],
            ..Memory::default()
        };
        let lines: Vec<String> = kinds(&memory)
            .iter()
            .map(|kind| format!("{} {}{}", kind.pages, kind.name, kind.remark()))
            .collect();
        assert_eq!(
            lines,
            [
                "10 process sh (7): heap, stack",
                "8 slabs: dentry, inode_cache, a, and 1 more",
                "8 free memory",
                "2 process a, b (8): heap",
                "2 page tables: the kernel",
            ]
        );
    }
}
