//! The ELF note by which a kernel says that it speaks smol's paravirtual interface.
//!
//! A kernel is looked at here before anything else is made of it, and refused if reading it by its own
//! word would take longer than reading it once: whoever loads it walks through its notes and copies its
//! segments.

use std::fs::File;
use std::os::unix::fs::FileExt;

use object::elf::{FileHeader64, NoteType};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use object::{LittleEndian, ReadCache, ReadRef, U32};

const OWNER: &[u8] = b"smol";
const TYPE_ABI: NoteType = NoteType(1);
/// Names and descriptors of notes are padded to four bytes, whatever the program header says.
const ALIGN: u64 = 4;
/// Most bytes of notes, all together. Kernels have less than one KiB.
const MAX_NOTES: u64 = 64 << 10;

/// Returns the ABI version of the note with owner `smol` and type 1; `None` when the image has no
/// such note.
///
/// # Errors
/// In words, when the file is no 64-bit little-endian ELF image, has more than [`MAX_NOTES`], or segments
/// that are longer together than the file.
pub(super) fn smol_abi(file: &mut File) -> Result<Option<u32>, String> {
    // Told apart from an image of another kind by the operating system's reason.
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)
        .map_err(|e| format!("it is not an ELF image: {e}"))?;
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    find(&ReadCache::new(file), len)
}

fn find<'a>(image: impl ReadRef<'a>, len: u64) -> Result<Option<u32>, String> {
    let e = LittleEndian;
    let header = FileHeader64::<LittleEndian>::parse(image);
    let header = header
        .ok()
        .filter(|header| header.is_little_endian())
        .ok_or(
            "it is not a 64-bit little-endian ELF image (a bzImage must be unpacked to its vmlinux)",
        )?;
    // More are counted elsewhere (PN_XNUM), up to any number.
    if header.e_phnum(e) == u16::MAX {
        return Err("it has too many program headers".into());
    }
    let segments = header.program_headers(e, image);
    let segments = segments.map_err(|e| format!("its program headers: {e}"))?;
    let bytes = |kind| {
        let of_kind = segments.iter().filter(|segment| segment.p_type(e) == kind);
        of_kind.fold(0u64, |sum, segment| sum.saturating_add(segment.p_filesz(e)))
    };
    let notes = bytes(object::elf::PT_NOTE);
    if notes > MAX_NOTES {
        return Err(format!(
            "it has {notes} bytes of notes (at most {MAX_NOTES})"
        ));
    }
    if bytes(object::elf::PT_LOAD) > len {
        return Err("its segments overlap, or are cut off".into());
    }
    for segment in segments {
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

    fn whole(image: &[u8]) -> Result<Option<u32>, String> {
        find(image, image.len() as u64)
    }

    /// A kernel whose segment, of this kind, has so many bytes in the file.
    fn with_segment(kind: u32, len: u64) -> Vec<u8> {
        let mut image = super::super::relocate::tests::movable_kernel();
        image[64..68].copy_from_slice(&kind.to_le_bytes());
        image[64 + 32..64 + 40].copy_from_slice(&len.to_le_bytes());
        image
    }

    #[test]
    fn a_sparse_kernel_full_of_notes_is_refused_before_one_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        let notes = 256 << 20;
        std::fs::write(&path, with_segment(4, notes)).unwrap();
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        file.set_len(notes + (1 << 20)).unwrap();
        let error = smol_abi(&mut file).unwrap_err();
        assert_eq!(error, "it has 268435456 bytes of notes (at most 65536)");
    }

    #[test]
    fn segments_that_are_longer_than_the_file_are_refused() {
        assert_eq!(whole(&with_segment(1, 64)), Ok(None));
        let error = whole(&with_segment(1, 1 << 20)).unwrap_err();
        assert!(error.starts_with("its segments overlap"), "{error}");
        let mut image = with_segment(1, 64);
        image[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(whole(&image).unwrap_err().contains("too many"));
    }

    #[test]
    fn images_that_are_cut_off_or_of_another_kind_are_refused() {
        let image = super::super::relocate::tests::movable_kernel();
        assert_eq!(whole(&image), Ok(None));
        let not_elf = whole(&image[..63]).unwrap_err();
        assert!(not_elf.starts_with("it is not a 64-bit little-endian ELF image"));
        let mut big_endian = image.clone();
        big_endian[5] = 2;
        assert_eq!(whole(&big_endian), Err(not_elf));
        let error = whole(&image[..100]).unwrap_err();
        assert!(error.starts_with("its program headers: "), "{error}");
    }
}
