//! Pages of memory that differ, and whose they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use anyhow::{Context, Result};
use serde::Serialize;
use smol_bundle::ImageKind;
use smol_cli::Interrupt;
use smol_machine::state::MachineState;

use super::guest::owner::{Owner, Owners};
use super::guest::ram::Ram;
use super::pages::{self, PAGE, Side};
use crate::error::ResultExt;

/// What differs in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Pages that differ.
    pub pages: u64,
    /// Bytes that differ.
    pub bytes: u64,
    /// By owner, the one with the most pages first.
    pub owners: Vec<Group>,
    /// What was not found, and so limits which owners could be named.
    pub notes: Vec<String>,
}

/// Pages of one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Whose they are, as the first bundle has it.
    pub owner: String,
    /// How many.
    pub pages: u64,
    /// Each of them, by address.
    pub places: Vec<Place>,
}

/// A page that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// Guest-physical address of the first byte that differs.
    pub gpa: u64,
    /// Bytes that differ in this page.
    pub bytes: u64,
    /// Where that is in what the owner has: a virtual address, an object, an offset in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Whose it is in the second bundle, if that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_in_b: Option<String>,
}

/// A page that differs: its GPA and the offsets of the bytes.
struct Page {
    gpa: u64,
    offsets: Vec<usize>,
}

/// Compares the memory of two snapshots.
pub fn compare(a: &Side<'_>, b: &Side<'_>, interrupt: &Interrupt) -> Result<Memory> {
    let sizes = [a, b].map(|side| side.bundle.image_size(ImageKind::Memory));
    let [Some(size), Some(size_b)] = sizes else {
        return Ok(Memory::default());
    };
    if pages::provably_same(a.bundle, b.bundle, ImageKind::Memory) {
        return Ok(Memory::default());
    }
    let ((_, x), (_, y)) = (a.image(ImageKind::Memory)?, b.image(ImageKind::Memory)?);
    let found = pages::differing((a, &x), (b, &y), ImageKind::Memory, interrupt)?;
    let (ram_a, ram_b) = (Ram::new(&x, size), Ram::new(&y, size_b));
    let mut differing = Vec::new();
    for number in found.pages {
        interrupt.check()?;
        // Memory beyond the end of either side has no address there.
        let gpa = ram_a.gpa(number).or(ram_b.gpa(number));
        let gpa = gpa.context("a page beyond the end of memory")?;
        let offsets = offsets(&x, &y, number)?;
        differing.push(Page { gpa, offsets });
    }
    let mut notes = Vec::new();
    let wanted: BTreeSet<u64> = differing.iter().map(|page| page.gpa).collect();
    let (state_a, state_b) = (state(a)?, state(b)?);
    let owners_a = learn("A", &ram_a, state_a.as_ref(), &wanted, &mut notes);
    let owners_b = learn("B", &ram_b, state_b.as_ref(), &wanted, &mut notes);
    let mut memory = group(&differing, owners_a.as_ref(), owners_b.as_ref());
    memory.notes = notes;
    Ok(memory)
}

fn state(side: &Side<'_>) -> Result<Option<MachineState>> {
    let bytes = side.bundle.state().classify()?;
    Ok(bytes.and_then(|bytes| MachineState::from_json(&bytes).ok()))
}

fn learn<'r>(
    name: &str,
    ram: &'r Ram<'r>,
    state: Option<&MachineState>,
    wanted: &BTreeSet<u64>,
    notes: &mut Vec<String>,
) -> Option<Owners<'r>> {
    let owners = state.and_then(|state| Owners::learn(ram, state, wanted));
    match &owners {
        None => notes.push(format!("{name}: the page tables are of an unknown form")),
        Some(owners) => {
            if !owners.knows_symbols() {
                notes.push(format!("{name}: the kernel's symbols were not found"));
            }
            if !owners.knows_layout() {
                notes.push(format!(
                    "{name}: the kernel has no layout table, so files, slabs and free memory are \
                     not told and processes are guessed"
                ));
            }
        }
    }
    owners
}

/// The offsets at which a page differs.
fn offsets(x: &File, y: &File, number: u32) -> Result<Vec<usize>> {
    let (mut left, mut right) = ([0; PAGE], [0; PAGE]);
    pages::read(x, number, &mut left)?;
    pages::read(y, number, &mut right)?;
    Ok((0..PAGE).filter(|&at| left[at] != right[at]).collect())
}

fn group(pages: &[Page], a: Option<&Owners<'_>>, b: Option<&Owners<'_>>) -> Memory {
    let unknown = || Owner {
        name: "unknown".into(),
        place: None,
    };
    let mut memory = Memory::default();
    let mut groups: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    for page in pages {
        let owner = |owners: Option<&Owners<'_>>| {
            owners.map_or_else(unknown, |owners| owners.of(page.gpa, &page.offsets))
        };
        let (in_a, in_b) = (owner(a), owner(b));
        memory.pages += 1;
        memory.bytes += page.offsets.len() as u64;
        let first = page.offsets.first().map_or(0, |offset| *offset as u64);
        groups.entry(in_a.name.clone()).or_default().push(Place {
            gpa: page.gpa + first,
            bytes: page.offsets.len() as u64,
            place: in_a.place,
            owner_in_b: (in_b.name != in_a.name).then_some(in_b.name),
        });
    }
    memory.owners = groups
        .into_iter()
        .map(|(owner, places)| Group {
            owner,
            pages: places.len() as u64,
            places,
        })
        .collect();
    memory
        .owners
        .sort_by_key(|group| std::cmp::Reverse(group.pages));
    memory
}
