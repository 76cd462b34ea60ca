//! The kernel's address space randomisation: moves an image to another virtual address.
//!
//! A kernel is linked for one address; a compressed one moves itself while it unpacks, but a
//! machine loads the vmlinux, so that is the loader's task here. Our recipe leaves the list of all
//! places that hold an address in the section [`SECTION`]:
//!
//! ```text
//! u64  the slide that the image has now, bytes
//! what arch/x86/tools/relocs of Linux writes (read by handle_relocations() in
//! arch/x86/boot/compressed/misc.c): 0, 64-bit places, 0, inverse 32-bit places, 0, 32-bit places,
//! each the lower half of a link address
//! ```
//!
//! Only virtual addresses move. Where the kernel lies in physical memory shows in the direct map
//! alone, whose base the kernel randomises by itself.

use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

/// Name of the section.
const SECTION: &[u8] = b".smol.relocs";
/// Where Linux maps its image (`__START_KERNEL_map`): virtual = this + physical, as linked.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// The address space for the image in a kernel with RANDOMIZE_BASE (`KERNEL_IMAGE_SIZE`).
const SPACE: u64 = 1 << 30;
/// Most bytes of the table, sections, bytes of their names, and segments: what a kernel has, several
/// times. Each place in the table is looked for in all segments, each section in all names.
const MAX_TABLE: u64 = 16 << 20;
const MAX_SECTIONS: usize = 1024;
const MAX_NAMES: u64 = 1 << 20;
const MAX_SEGMENTS: usize = 16;
/// Unit of the slide: the kernel maps itself by pages of this size.
const UNIT: u64 = 2 << 20;

/// Moves `kernel`, an ELF image, to the place that follows from `seed`; to where it was linked for
/// without one. Returns the slide in bytes; `None` if the image cannot be moved, and is as it was.
///
/// # Errors
/// In words, when the image contradicts itself. It may be changed in part then.
pub(super) fn place(kernel: &mut [u8], seed: Option<&[u8; 32]>) -> Result<Option<u64>, String> {
    let Some(table) = section(kernel)? else {
        return Ok(None);
    };
    let segments = segments(kernel)?;
    let now = u64_at(kernel, table.0).ok_or("its table of relocations is cut off")?;
    if now >= SPACE || !now.is_multiple_of(UNIT) {
        return Err(format!("it claims to be moved by {now:#x}"));
    }
    let slide = match seed {
        Some(seed) => UNIT * choose(seed, slots(&segments)?),
        None => 0,
    };
    let delta = slide.wrapping_sub(now);
    if delta != 0 {
        // A copy: what follows writes into the image.
        let words: Vec<u32> = kernel[table.0 + 8..table.1]
            .as_chunks()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        move_places(kernel, &segments, &words, delta)?;
        kernel[table.0..table.0 + 8].copy_from_slice(&slide.to_le_bytes());
    }
    Ok(Some(slide))
}

/// Returns one of `slots` by the seed. Their number is small, so the remainder favours none of
/// them.
fn choose(seed: &[u8; 32], slots: u64) -> u64 {
    let key = blake3::derive_key("smol 2026-11-26 virtual address of the kernel v1", seed);
    u64_at(&key, 0).expect("a key has 32 bytes") % slots
}

/// Returns how many slides keep the image within its address space.
fn slots(segments: &[Segment]) -> Result<u64, String> {
    let ends = segments.iter().map(|s| s.address.checked_add(s.in_memory));
    let end = ends.max().flatten().unwrap_or(u64::MAX);
    let free = SPACE.checked_sub(end);
    let free = free.ok_or("it does not fit into the address space of a kernel")?;
    Ok(free / UNIT + 1)
}

fn move_places(
    kernel: &mut [u8],
    segments: &[Segment],
    words: &[u32],
    delta: u64,
) -> Result<(), String> {
    // One more is enough to see that there are too many.
    let lists = words.split(|word| *word == 0).take(5);
    let lists: Vec<&[u32]> = lists.collect();
    let [&[], wide, inverse, narrow] = lists[..] else {
        return Err("its table of relocations does not hold three lists".into());
    };
    require_apart([(wide, 8), (inverse, 4), (narrow, 4)])?;
    for place in wide {
        let bytes = bytes_at(kernel, segments, *place)?;
        *bytes = u64::from_le_bytes(*bytes).wrapping_add(delta).to_le_bytes();
    }
    // Addresses are 32 bits wide, sign extended: the lower half of the slide is all there is of it.
    let delta = delta as u32;
    for place in inverse {
        let bytes = bytes_at(kernel, segments, *place)?;
        *bytes = u32::from_le_bytes(*bytes).wrapping_sub(delta).to_le_bytes();
    }
    for place in narrow {
        let bytes = bytes_at(kernel, segments, *place)?;
        *bytes = u32::from_le_bytes(*bytes).wrapping_add(delta).to_le_bytes();
    }
    Ok(())
}

/// Checks that no two places of these lists, with their lengths in bytes, have a byte in common: such an
/// image could not be moved on or back.
fn require_apart(lists: [(&[u32], u64); 3]) -> Result<(), String> {
    let places = lists.iter().flat_map(|(list, len)| {
        let range = move |place: &u32| (u64::from(*place), u64::from(*place) + len);
        list.iter().map(range)
    });
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    let overlap = places.windows(2).find(|pair| pair[0].1 > pair[1].0);
    match overlap {
        None => Ok(()),
        Some(pair) => Err(format!(
            "its table of relocations names the bytes at {:#x} twice",
            pair[1].0
        )),
    }
}

/// Returns the bytes of the image at a link address.
fn bytes_at<'a, const N: usize>(
    kernel: &'a mut [u8],
    segments: &[Segment],
    place: u32,
) -> Result<&'a mut [u8; N], String> {
    let linked = i64::from(place.cast_signed()).cast_unsigned();
    let offset = linked.checked_sub(KERNEL_MAP).and_then(|address| {
        segments.iter().find_map(|s| {
            let inside = address.checked_sub(s.address)?;
            (inside.checked_add(N as u64)? <= s.in_file).then_some(s.offset + inside)
        })
    });
    offset
        .and_then(|at| kernel.get_mut(at as usize..)?.first_chunk_mut::<N>())
        .ok_or_else(|| {
            format!("its table of relocations names {linked:#x}, which is outside of it")
        })
}

/// A piece of the file that is loaded: PT_LOAD.
struct Segment {
    offset: u64,
    /// Physical, which the per-CPU segment has, too; its virtual address is 0.
    address: u64,
    in_file: u64,
    in_memory: u64,
}

fn header(kernel: &[u8]) -> Option<&FileHeader64<LittleEndian>> {
    let header = FileHeader64::<LittleEndian>::parse(kernel).ok()?;
    header.is_little_endian().then_some(header)
}

/// Returns the segments with something in the file, all of it within the file.
fn segments(kernel: &[u8]) -> Result<Vec<Segment>, String> {
    let e = LittleEndian;
    let headers = header(kernel).and_then(|header| header.program_headers(e, kernel).ok());
    let headers = headers.ok_or("its program headers are cut off")?;
    let loaded = |s: &&ProgramHeader64<_>| s.p_type(e) == PT_LOAD && s.p_filesz(e) > 0;
    let segment = |s: &ProgramHeader64<_>| {
        s.data(e, kernel)
            .map_err(|()| "a segment of it is cut off")?;
        Ok(Segment {
            offset: s.p_offset(e),
            address: s.p_paddr(e),
            in_file: s.p_filesz(e),
            in_memory: s.p_memsz(e),
        })
    };
    let segments = headers.iter().filter(loaded).take(MAX_SEGMENTS + 1);
    let segments = segments.map(segment).collect::<Result<Vec<_>, String>>()?;
    match segments.len() <= MAX_SEGMENTS {
        true => Ok(segments),
        false => Err(format!("it has more than {MAX_SEGMENTS} segments")),
    }
}

/// Returns where the section with the table begins and ends in the file.
fn section(kernel: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let e = LittleEndian;
    let cut = "its section headers are cut off";
    let header = header(kernel).ok_or(cut)?;
    let headers = header.section_headers(e, kernel).map_err(|_| cut)?;
    let names = header.shstrndx(e, kernel).map_err(|_| cut)? as usize;
    let names = headers.get(names).map_or(0, |names| names.sh_size(e));
    if headers.len() > MAX_SECTIONS || names > MAX_NAMES {
        return Err(format!(
            "it has more than {MAX_SECTIONS} sections, or of their names {MAX_NAMES} bytes"
        ));
    }
    let sections = header.sections(e, kernel).map_err(|_| cut)?;
    let Some((_, section)) = sections.section_by_name(e, SECTION) else {
        return Ok(None);
    };
    let (begin, len) = (section.sh_offset(e), section.sh_size(e));
    match section.data(e, kernel) {
        Ok(_) if len > MAX_TABLE => Err(format!(
            "its table of relocations has {len} bytes (at most {MAX_TABLE})"
        )),
        Ok(data) if data.len() as u64 == len && len >= 8 => {
            Ok(Some((begin as usize, (begin + len) as usize)))
        }
        _ => Err("its table of relocations is cut off".into()),
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(super) mod tests {
    use object::elf::{SHT_PROGBITS, SHT_STRTAB};

    use super::*;

    const TEXT: u64 = 0x100;
    const NAMES: u64 = 0x280;
    const TABLE: u64 = 0x300;
    const PROGRAM_HEADER: usize = 64;
    const SECTION_HEADERS: usize = 0x140;
    /// Headers of the sections for names and for the table; one of zeros is before them.
    const NAMES_HEADER: usize = SECTION_HEADERS + 64;
    const TABLE_HEADER: usize = SECTION_HEADERS + 128;
    const LINKED: u32 = 0x8100_0000;

    /// A kernel of 64 bytes at 16 MiB with these lists of places.
    fn kernel(words: &[u32]) -> Vec<u8> {
        let mut image = vec![0; TABLE as usize];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(32, &(PROGRAM_HEADER as u64).to_le_bytes());
        put(40, &(SECTION_HEADERS as u64).to_le_bytes());
        for (at, value) in [(54, 56u16), (56, 1), (58, 64), (60, 3), (62, 1)] {
            put(at, &value.to_le_bytes());
        }
        put(PROGRAM_HEADER, &1u32.to_le_bytes());
        for (at, value) in [(8, TEXT), (24, 16 << 20), (32, 64), (40, 1 << 20)] {
            put(PROGRAM_HEADER + at, &value.to_le_bytes());
        }
        put(NAMES_HEADER + 4, &SHT_STRTAB.0.to_le_bytes());
        put(NAMES_HEADER + 24, &NAMES.to_le_bytes());
        put(NAMES_HEADER + 32, &32u64.to_le_bytes());
        put(NAMES as usize + 1, SECTION);
        put(TABLE_HEADER, &1u32.to_le_bytes());
        put(TABLE_HEADER + 4, &SHT_PROGBITS.0.to_le_bytes());
        put(TABLE_HEADER + 24, &TABLE.to_le_bytes());
        let len = 8 + 4 * words.len() as u64;
        put(TABLE_HEADER + 32, &len.to_le_bytes());
        put(TEXT as usize, &0xffff_ffff_8100_1000u64.to_le_bytes());
        put(TEXT as usize + 8, &0x7eff_0000u32.to_le_bytes());
        put(TEXT as usize + 12, &0x8100_2000u32.to_le_bytes());
        image.extend(0u64.to_le_bytes());
        image.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        image
    }

    /// A table with a place of each kind.
    const WORDS: [u32; 6] = [0, LINKED, 0, LINKED + 8, 0, LINKED + 12];

    /// A kernel with a place of each kind.
    pub fn movable_kernel() -> Vec<u8> {
        kernel(&WORDS)
    }

    fn refusal(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut image = kernel(&WORDS);
        change(&mut image);
        place(&mut image, Some(&[1; 32])).unwrap_err()
    }

    fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
    }

    fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn every_kind_of_place_moves_with_the_kernel() {
        let mut image = kernel(&WORDS);
        let slide = place(&mut image, Some(&[1; 32])).unwrap().unwrap();
        assert!(slide > 0 && slide.is_multiple_of(UNIT) && slide < SPACE);
        let at = TEXT as usize;
        assert_eq!(u64_at(&image, at), Some(0xffff_ffff_8100_1000 + slide));
        assert_eq!(u32_at(&image, at + 8), Some(0x7eff_0000 - slide as u32));
        assert_eq!(u32_at(&image, at + 12), Some(0x8100_2000 + slide as u32));
    }

    #[test]
    fn a_kernel_that_was_moved_can_be_moved_on_and_back() {
        let mut image = kernel(&WORDS);
        let first = place(&mut image, Some(&[1; 32])).unwrap();
        let moved = image.clone();
        assert_eq!(place(&mut image, Some(&[1; 32])).unwrap(), first);
        assert_eq!(image, moved, "it is there already");
        assert_ne!(place(&mut image, Some(&[2; 32])).unwrap(), first);
        assert_ne!(image, moved);
        assert_eq!(place(&mut image, None).unwrap(), Some(0));
        assert_eq!(image, kernel(&WORDS));
    }

    #[test]
    fn slides_reach_as_far_as_the_kernel_fits() {
        let slides: Vec<u64> = (0..=255)
            .map(|n| place(&mut kernel(&WORDS), Some(&[n; 32])).unwrap().unwrap())
            .collect();
        let (low, high) = (slides.iter().min().unwrap(), slides.iter().max().unwrap());
        assert!(*low < 64 << 20 && *high > 900 << 20, "{low:#x} {high:#x}");
        assert!(high + (17 << 20) <= SPACE);
        let mut image = kernel(&WORDS);
        put(
            &mut image,
            PROGRAM_HEADER + 40,
            &(SPACE - (16 << 20)).to_le_bytes(),
        );
        assert_eq!(
            place(&mut image, Some(&[1; 32])),
            Ok(Some(0)),
            "there is no room"
        );
    }

    #[test]
    fn headers_that_would_be_searched_again_and_again_are_refused() {
        let why = refusal(|image| {
            image.resize(1 << 20, 0);
            put(image, 60, &2000u16.to_le_bytes());
        });
        assert!(why.starts_with("it has more than 1024 sections"), "{why}");
        let why = refusal(|image| {
            image.resize(2 << 20, 0);
            put(image, NAMES_HEADER + 32, &((1u64 << 20) + 1).to_le_bytes());
        });
        assert!(why.starts_with("it has more than 1024 sections"), "{why}");
        let why = refusal(|image| {
            image.resize(32 << 20, 0);
            put(image, TABLE_HEADER + 32, &(20u64 << 20).to_le_bytes());
        });
        assert!(why.contains("bytes (at most 16777216)"), "{why}");
        // All of them the same one.
        let why = refusal(|image| {
            let one = image[PROGRAM_HEADER..PROGRAM_HEADER + 56].to_vec();
            let at = image.len();
            image.extend(one.repeat(17));
            put(image, 32, &(at as u64).to_le_bytes());
            put(image, 56, &17u16.to_le_bytes());
        });
        assert_eq!(why, "it has more than 16 segments");
    }

    #[test]
    fn a_kernel_without_a_table_stays_as_it_is() {
        let mut image = kernel(&WORDS);
        put(&mut image, NAMES as usize + 1, b".other.section");
        let before = image.clone();
        assert_eq!(place(&mut image, Some(&[1; 32])), Ok(None));
        assert_eq!(image, before);
        put(&mut image, 60, &[0, 0]);
        assert_eq!(
            place(&mut image, Some(&[1; 32])),
            Ok(None),
            "no sections at all"
        );
    }

    #[test]
    fn tables_that_name_places_outside_of_the_kernel_are_refused() {
        // Below it, above it, one byte too far, in the lower half of the address space, and a
        // segment that ends at the end of all addresses.
        for (list, place) in [
            (1, LINKED - 8),
            (1, LINKED + 64),
            (1, LINKED + 57),
            (3, LINKED + 61),
            (5, LINKED + 61),
            (5, 0x0100_0000),
            (5, 0x7fff_ffff),
            (1, u32::MAX),
        ] {
            let at = TABLE as usize + 8 + 4 * list;
            let why = refusal(|image| put(image, at, &place.to_le_bytes()));
            assert!(why.ends_with("which is outside of it"), "{place:#x}: {why}");
        }
        let why = refusal(|image| {
            put(image, PROGRAM_HEADER + 24, &(u64::MAX - 7).to_le_bytes());
        });
        assert_eq!(why, "it does not fit into the address space of a kernel");
    }

    #[test]
    fn tables_that_name_a_byte_twice_are_refused_and_the_image_stays_as_it_is() {
        for (words, twice) in [
            ([0, LINKED, 0, LINKED + 4, 0, LINKED + 12], LINKED + 4),
            ([0, LINKED, 0, LINKED + 8, 0, LINKED + 11], LINKED + 11),
            ([0, LINKED, 0, LINKED + 8, 0, LINKED + 8], LINKED + 8),
        ] {
            let mut image = kernel(&words);
            let why = place(&mut image, Some(&[1; 32])).unwrap_err();
            let expected = format!("its table of relocations names the bytes at {twice:#x} twice");
            assert_eq!(why, expected);
            assert_eq!(image, kernel(&words));
        }
    }

    #[test]
    fn tables_of_another_form_are_refused() {
        for words in [
            &[][..],
            &[0],
            &[0, 0],
            &[1, 0, 0],
            &[0, 0, 0, 0],
            &[LINKED, 0, 0, 0],
        ] {
            let why = place(&mut kernel(words), Some(&[1; 32])).unwrap_err();
            assert_eq!(why, "its table of relocations does not hold three lists");
        }
        for claim in [1, SPACE, UNIT + 1, u64::MAX] {
            let why = refusal(|image| put(image, TABLE as usize, &claim.to_le_bytes()));
            assert_eq!(why, format!("it claims to be moved by {claim:#x}"));
        }
    }

    #[test]
    fn headers_that_lead_out_of_the_file_are_refused() {
        let far = &u64::MAX.to_le_bytes();
        for (at, bytes, expected) in [
            (40, &far[..], "its section headers are cut off"),
            (58, &[63, 0], "its section headers are cut off"),
            (60, &[255, 255], "its section headers are cut off"),
            (62, &[3, 0], "its section headers are cut off"),
            (NAMES_HEADER + 24, far, "its section headers are cut off"),
            (
                TABLE_HEADER + 24,
                far,
                "its table of relocations is cut off",
            ),
            (
                TABLE_HEADER + 32,
                &[7],
                "its table of relocations is cut off",
            ),
            (32, far, "its program headers are cut off"),
            (54, &[55, 0], "its program headers are cut off"),
            (PROGRAM_HEADER + 8, far, "a segment of it is cut off"),
            (PROGRAM_HEADER + 32, far, "a segment of it is cut off"),
            (
                PROGRAM_HEADER + 40,
                far,
                "it does not fit into the address space of a kernel",
            ),
        ] {
            assert_eq!(
                refusal(|image| put(image, at, bytes)),
                expected,
                "at {at:#x}"
            );
        }
    }

    #[test]
    fn damaged_images_never_panic() {
        let image = kernel(&WORDS);
        for at in 0..image.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = image.clone();
                damaged[at] = value;
                let _ = place(&mut damaged, Some(&[1; 32]));
                damaged.truncate(at);
                let _ = place(&mut damaged, Some(&[1; 32]));
            }
        }
    }
}
