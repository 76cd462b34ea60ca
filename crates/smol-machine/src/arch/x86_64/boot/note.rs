//! The ELF note by which a kernel says that it speaks smol's paravirtual interface.

use std::fs::File;

use super::read_at;

const PT_NOTE: u32 = 4;
const NOTE_ABI: u32 = 1;
/// Program headers and notes of a kernel are small; more is no kernel.
const MAX_HEADERS: u16 = 64;
const MAX_NOTES: u64 = 64 << 10;

/// ABI version of the note with owner `smol` and type 1; `None` when the image has no such note.
///
/// # Errors
/// In words, when the file is no 64-bit little-endian ELF image.
pub(super) fn smol_abi(file: &mut File) -> Result<Option<u32>, String> {
    let header = read_at(file, 0, 64).map_err(|e| format!("it is no ELF image: {e}"))?;
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Err(
            "it is no 64-bit little-endian ELF image (a bzImage must be unpacked to its vmlinux)"
                .into(),
        );
    }
    let (table, size, count) = (
        u64_at(&header, 32),
        u16_at(&header, 54),
        u16_at(&header, 56),
    );
    if size != 56 || count > MAX_HEADERS {
        return Err(format!("it has {count} program headers of {size} bytes"));
    }
    let headers = read_at(file, table, usize::from(size) * usize::from(count))
        .map_err(|e| format!("its program headers: {e}"))?;
    for ph in headers.as_chunks::<56>().0 {
        if u32_at(ph, 0) != PT_NOTE {
            continue;
        }
        let len = u64_at(ph, 32).min(MAX_NOTES) as usize;
        let notes = read_at(file, u64_at(ph, 8), len).map_err(|e| format!("its notes: {e}"))?;
        if let Some(abi) = find(&notes) {
            return Ok(Some(abi));
        }
    }
    Ok(None)
}

/// Walks notes: namesz, descsz, type, then name and descriptor, each padded to four bytes.
fn find(mut notes: &[u8]) -> Option<u32> {
    while notes.len() >= 12 {
        let (name_len, desc_len, kind) = (
            u32_at(notes, 0) as usize,
            u32_at(notes, 4) as usize,
            u32_at(notes, 8),
        );
        let desc_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let next = desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12 + name_len)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if name == b"smol\0" && kind == NOTE_ABI && desc.len() == 4 {
            return Some(u32_at(desc, 0));
        }
        notes = notes.get(next..)?;
    }
    None
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
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
        notes.extend(note(b"smol\0", 2, &[9, 0, 0, 0]));
        notes.extend(note(b"smol\0", 1, &[1, 0, 0, 0]));
        assert_eq!(find(&notes), Some(1));
        assert_eq!(find(&notes[..24]), None);
    }

    #[test]
    fn lying_sizes_end_the_search() {
        for at in [0, 4] {
            let mut notes = note(b"smol\0", 1, &[1, 0, 0, 0]);
            notes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert_eq!(find(&notes), None);
        }
    }
}
