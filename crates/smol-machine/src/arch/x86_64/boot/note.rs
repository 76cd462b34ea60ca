//! The ELF note by which a kernel says that it speaks smol's paravirtual interface.

use std::fs::File;
use std::os::unix::fs::FileExt;

use object::elf::{FileHeader64, NoteType};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use object::{LittleEndian, ReadCache, ReadRef, U32};

const OWNER: &[u8] = b"smol";
const TYPE_ABI: NoteType = NoteType(1);
/// Names and descriptors of notes are padded to four bytes, whatever the program header says.
const ALIGN: u64 = 4;

/// Returns the ABI version of the note with owner `smol` and type 1; `None` when the image has no
/// such note.
///
/// # Errors
/// In words, when the file is no 64-bit little-endian ELF image.
pub(super) fn smol_abi(file: &mut File) -> Result<Option<u32>, String> {
    // Told apart from an image of another kind by the operating system's reason.
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)
        .map_err(|e| format!("it is not an ELF image: {e}"))?;
    find(&ReadCache::new(file))
}

fn find<'a>(image: impl ReadRef<'a>) -> Result<Option<u32>, String> {
    let e = LittleEndian;
    let header = FileHeader64::<LittleEndian>::parse(image);
    let header = header
        .ok()
        .filter(|header| header.is_little_endian())
        .ok_or(
            "it is not a 64-bit little-endian ELF image (a bzImage must be unpacked to its vmlinux)",
        )?;
    let segments = header.program_headers(e, image);
    for segment in segments.map_err(|e| format!("its program headers: {e}"))? {
        if segment.p_type(e) != object::elf::PT_NOTE {
            continue;
        }
        let notes = segment
            .data(e, image)
            .map_err(|()| "its notes are cut off")?;
        if let Some(abi) = abi_of(notes) {
            return Ok(Some(abi));
        }
    }
    Ok(None)
}

/// Looks for our note; one that contradicts itself ends the search.
fn abi_of(notes: &[u8]) -> Option<u32> {
    let e = LittleEndian;
    let mut notes = NoteIterator::<FileHeader64<LittleEndian>>::new(e, ALIGN, notes).ok()?;
    while let Some(note) = notes.next().ok()? {
        if note.name() == OWNER && note.n_type(e) == TYPE_ABI && note.desc().len() == 4 {
            let (version, _) = object::pod::from_bytes::<U32<LittleEndian>>(note.desc()).ok()?;
            return Some(version.get(e));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut n = Vec::new();
        for v in [name.len() as u32, desc.len() as u32, kind] {
            n.extend(v.to_le_bytes());
        }
        for part in [name, desc] {
            n.extend(part);
            n.resize(n.len().next_multiple_of(4), 0);
        }
        n
    }

    #[test]
    fn the_note_is_found_among_others() {
        let mut notes = note(b"Xen\0", 18, &[0; 8]);
        notes.extend(note(b"Linux\0", 257, &[0; 5]));
        notes.extend(note(b"smol\0", 2, &[9, 0, 0, 0]));
        notes.extend(note(b"smol\0", 1, &[1, 0, 0, 0]));
        assert_eq!(abi_of(&notes), Some(1));
        assert_eq!(abi_of(&notes[..24]), None);
    }

    #[test]
    fn lying_sizes_end_the_search() {
        for at in [0, 4] {
            let mut notes = note(b"smol\0", 1, &[1, 0, 0, 0]);
            notes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert_eq!(abi_of(&notes), None);
        }
    }

    #[test]
    fn images_that_are_cut_off_or_of_another_kind_are_refused() {
        let image = super::super::relocate::tests::movable_kernel();
        assert_eq!(find(&image[..]), Ok(None));
        let not_elf = find(&image[..63]).unwrap_err();
        assert!(not_elf.starts_with("it is not a 64-bit little-endian ELF image"));
        let mut big_endian = image.clone();
        big_endian[5] = 2;
        assert_eq!(find(&big_endian[..]), Err(not_elf));
        let error = find(&image[..100]).unwrap_err();
        assert!(error.starts_with("its program headers: "), "{error}");
    }
}
