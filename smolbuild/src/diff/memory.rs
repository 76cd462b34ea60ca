//! Pages of memory that differ, and whose they are.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Serialize;
use smol_bundle::ImageKind;
use smol_cli::Interrupt;
use smol_machine::state::MachineState;

use super::guest::owner::{Owner, Owners};
use super::guest::ram::Ram;
use super::pages::{self, PAGE, Side};
use super::state::MAX_STATE;
use crate::error::ResultExt;

/// Pages that are looked into; of more, the number is told. 256 MiB of memory, and with their owners
/// less than 100 MiB of ours.
pub const MAX_PLACES: usize = 1 << 16;
/// The owner of pages that are not looked into.
const MORE: &str = "not looked into";

/// What differs in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Pages that differ.
    pub pages: u64,
    /// Bytes that differ, in the pages that were looked into.
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
    /// Each of them, by address; none if they were not looked into.
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

/// Compares the memory of two snapshots.
pub fn compare(a: &Side<'_>, b: &Side<'_>, interrupt: &Interrupt) -> Result<Memory> {
    let sizes = [a, b].map(|side| side.bundle.image_size(ImageKind::Memory));
    let [Some(size), Some(size_b)] = sizes else {
        return Ok(Memory::default());
    };
    if pages::provably_same(a.bundle, b.bundle, ImageKind::Memory) {
        return Ok(Memory::default());
    }
    let image = |side: &Side<'_>| side.image(ImageKind::Memory, interrupt);
    let ((_, x), (_, y)) = (image(a)?, image(b)?);
    let found = pages::differing((a, &x), (b, &y), ImageKind::Memory, interrupt)?;
    let ram_a = Ram::watched(&x, size, interrupt);
    let ram_b = Ram::watched(&y, size_b, interrupt);
    let gpa = |number| {
        // Memory beyond the end of either side has no address there.
        let gpa = ram_a.gpa(number).or(ram_b.gpa(number));
        gpa.context("a page beyond the end of memory")
    };
    let looked_into = &found.pages[..found.pages.len().min(MAX_PLACES)];
    let wanted: Result<BTreeSet<u64>> = looked_into.iter().map(|number| gpa(*number)).collect();
    let wanted = wanted?;
    let mut notes = Vec::new();
    let (state_a, state_b) = (state(a)?, state(b)?);
    let mut learn = |name, ram, state: Option<&MachineState>| {
        let owners = state.and_then(|state| Owners::learn(ram, state, &wanted, interrupt));
        notes.extend(shortcomings(name, owners.as_ref()));
        owners
    };
    let owners = [
        learn("A", &ram_a, state_a.as_ref()),
        learn("B", &ram_b, state_b.as_ref()),
    ];
    let mut groups = Groups::default();
    let (mut left, mut right) = ([0; PAGE], [0; PAGE]);
    for number in looked_into {
        interrupt.check()?;
        pages::read(&x, *number, &mut left)?;
        pages::read(&y, *number, &mut right)?;
        let differ = |at: &usize| left[*at] != right[*at];
        let offsets: Vec<usize> = (0..PAGE).filter(differ).collect();
        groups.add(gpa(*number)?, &offsets, &owners);
    }
    Ok(groups.memory((found.pages.len() - looked_into.len()) as u64, notes))
}

fn state(side: &Side<'_>) -> Result<Option<MachineState>> {
    let bytes = side.bundle.state().classify()?;
    let bytes = bytes.filter(|bytes| bytes.len() <= MAX_STATE);
    Ok(bytes.and_then(|bytes| MachineState::from_json(&bytes).ok()))
}

/// What is not known of the owners of a side, a line each.
fn shortcomings(side: &str, owners: Option<&Owners<'_>>) -> Vec<String> {
    let Some(owners) = owners else {
        return vec![format!("{side}: the page tables are of an unknown form")];
    };
    let mut notes = Vec::new();
    if !owners.knows_symbols() {
        notes.push(format!("{side}: the kernel's symbols were not found"));
    }
    if !owners.knows_layout() {
        notes.push(format!(
            "{side}: the kernel has no layout table, so files, slabs and free memory are not told and \
             processes are guessed"
        ));
    }
    notes
}

/// Pages by owner.
#[derive(Default)]
struct Groups {
    bytes: u64,
    pages: u64,
    places: BTreeMap<String, Vec<Place>>,
}

impl Groups {
    /// Adds the page at `gpa`, which differs at `offsets`, by its owners in A and B.
    fn add(&mut self, gpa: u64, offsets: &[usize], owners: &[Option<Owners<'_>>; 2]) {
        let unknown = || Owner {
            name: "unknown".into(),
            place: None,
        };
        let [in_a, in_b] = owners.each_ref().map(|owners| {
            let owners = owners.as_ref();
            owners.map_or_else(unknown, |owners| owners.of(gpa, offsets))
        });
        self.pages += 1;
        self.bytes += offsets.len() as u64;
        let first = offsets.first().map_or(0, |offset| *offset as u64);
        let place = Place {
            gpa: gpa + first,
            bytes: offsets.len() as u64,
            place: in_a.place,
            owner_in_b: (in_b.name != in_a.name).then_some(in_b.name),
        };
        self.places.entry(in_a.name).or_default().push(place);
    }

    /// All of it, and `more` pages that were not looked into.
    fn memory(self, more: u64, notes: Vec<String>) -> Memory {
        let group = |(owner, places): (String, Vec<Place>)| Group {
            owner,
            pages: places.len() as u64,
            places,
        };
        let mut owners: Vec<Group> = self.places.into_iter().map(group).collect();
        if more > 0 {
            owners.push(Group {
                owner: MORE.to_owned(),
                pages: more,
                places: Vec::new(),
            });
        }
        owners.sort_by_key(|group| std::cmp::Reverse(group.pages));
        Memory {
            pages: self.pages + more,
            bytes: self.bytes,
            owners,
            notes,
        }
    }
}
