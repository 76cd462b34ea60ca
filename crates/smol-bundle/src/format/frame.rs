//! Frames: up to 512 pages in one zstd frame of their own.
//!
//! Source of the bytes: RFC 8878.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, find_frame_compressed_size};

use crate::format::limits::{MAX_FRAME_OVERHEAD, MAX_FRAME_PAGES, PAGE_SIZE};

/// zstd's level for frames. Level 18 makes bundles 9% smaller and takes 30 times as long; levels
/// between the two gain 3% or less. On shared libraries in frames of 128 KiB level 3 takes half as long
/// for 6% more. Decompression costs much the same.
const LEVEL: i32 = 8;

/// A compressed frame and its blake3.
pub(crate) struct Packed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) hash: [u8; 32],
}

/// Compresses whole pages. The same pages give the same bytes, whatever was compressed before.
pub(crate) fn pack(raw: &[u8]) -> std::io::Result<Packed> {
    // A context for each frame: a used one salts the match finder's hash table (zstd since 1.5.5),
    // so its output may depend on its history, that is on how frames fall to threads.
    let mut compressor = Compressor::new(LEVEL)?;
    compressor.set_parameter(CParameter::ChecksumFlag(false))?; // blake3 does that
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    compressor.set_parameter(CParameter::DictIdFlag(false))?;
    let bytes = compressor.compress(raw)?;
    debug_assert!(bytes.len() <= raw.len() + MAX_FRAME_OVERHEAD as usize);
    let hash = blake3::hash(&bytes).into();
    Ok(Packed { bytes, hash })
}

/// The first bytes of a zstd frame (RFC 8878, section 3.1.1).
const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// Bits of the frame header descriptor (section 3.1.1.1.1).
const CONTENT_SIZE_FLAG: u8 = 0b1100_0000;
const SINGLE_SEGMENT: u8 = 0b0010_0000;
const RESERVED: u8 = 0b0000_1000;
const CHECKSUM: u8 = 0b0000_0100;
const DICTIONARY_ID: u8 = 0b0000_0011;

/// Checks that the frame is of the one form that the format allows: with content size, without
/// checksum and dictionary, and no skippable frame.
fn check_header(frame: &[u8]) -> Result<(), String> {
    let descriptor = match frame.split_first_chunk() {
        Some((&MAGIC, [descriptor, ..])) => descriptor,
        _ => return Err("its bytes are not exactly one zstd frame".into()),
    };
    let has = |bits: u8| descriptor & bits != 0;
    let wrong = if has(CHECKSUM) {
        "a checksum"
    } else if has(DICTIONARY_ID) {
        "a dictionary"
    } else if has(RESERVED) {
        "a reserved bit"
    } else if !has(CONTENT_SIZE_FLAG | SINGLE_SEGMENT) {
        return Err("its zstd frame does not tell its content size".into());
    } else {
        return Ok(());
    };
    Err(format!("its zstd frame has {wrong}"))
}

/// Verifies and decompresses frames; keeps its buffers from one to the next.
pub(crate) struct Unpacker {
    zstd: Decompressor<'static>,
    compressed: Vec<u8>,
    raw: Vec<u8>,
}

impl Unpacker {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Unpacker {
            zstd: Decompressor::new()?,
            compressed: Vec::new(),
            raw: Vec::new(),
        })
    }

    /// Returns a buffer of `len` bytes for the caller to fill with the compressed frame.
    pub(crate) fn input(&mut self, len: u32) -> &mut [u8] {
        let len = len as usize;
        if self.compressed.len() < len {
            self.compressed.resize(len, 0);
        }
        &mut self.compressed[..len]
    }

    /// Returns the pages of the frame in the first `len` bytes of the buffer, after its hash is
    /// checked.
    pub(crate) fn unpack(
        &mut self,
        len: u32,
        pages: u32,
        hash: &[u8; 32],
    ) -> Result<&[u8], String> {
        debug_assert!(pages <= MAX_FRAME_PAGES);
        let compressed = &self.compressed[..len as usize];
        if blake3::hash(compressed) != *hash {
            return Err("its bytes do not have the blake3 hash in the page index".into());
        }
        check_header(compressed)?;
        match find_frame_compressed_size(compressed) {
            Ok(size) if size == compressed.len() => {}
            _ => return Err("its bytes are not exactly one zstd frame".into()),
        }
        // Room for the pages and no more: whatever the frame says, it cannot write beyond.
        let expected = pages as usize * PAGE_SIZE;
        self.raw.resize(expected, 0);
        match self
            .zstd
            .decompress_to_buffer(compressed, self.raw.as_mut_slice())
        {
            Ok(found) if found == expected => Ok(&self.raw),
            Ok(found) => Err(format!("it holds {found} bytes and not {pages} pages")),
            Err(e) => Err(format!("it cannot be decompressed: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(packed: &[u8], pages: u32) -> Result<Vec<u8>, String> {
        let mut unpacker = Unpacker::new().unwrap();
        let len = packed.len() as u32;
        unpacker.input(len).copy_from_slice(packed);
        unpacker
            .unpack(len, pages, blake3::hash(packed).as_bytes())
            .map(<[u8]>::to_vec)
    }

    #[test]
    fn a_frame_holds_its_pages_and_depends_on_them_alone() {
        let raw: Vec<u8> = (0..3 * PAGE_SIZE).map(|i| ((i * i) >> 7) as u8).collect();
        let packed = pack(&raw).unwrap();
        pack(&[1; 32 * PAGE_SIZE]).unwrap();
        assert_eq!(pack(&raw).unwrap().bytes, packed.bytes);
        assert_eq!(unpack(&packed.bytes, 3).unwrap(), raw);
    }

    #[test]
    fn a_frame_that_holds_more_or_less_than_its_pages_is_refused() {
        let packed = pack(&[1; 2 * PAGE_SIZE]).unwrap().bytes;
        assert!(unpack(&packed, 1).is_err());
        assert!(unpack(&packed, 3).is_err());
        assert!(unpack(&[packed.clone(), packed.clone()].concat(), 4).is_err());
        assert!(unpack(&packed[..packed.len() - 1], 2).is_err());
        assert!(unpack(&[], 1).is_err());
    }

    #[test]
    fn a_zstd_frame_of_another_form_is_refused() {
        let raw = [7; PAGE_SIZE];
        let with = |parameter| {
            let mut compressor = Compressor::new(LEVEL).unwrap();
            compressor.set_parameter(parameter).unwrap();
            compressor.compress(&raw).unwrap()
        };
        let good = pack(&raw).unwrap().bytes;
        assert_eq!(unpack(&good, 1).unwrap(), raw);
        let refused = |frame: &[u8], why: &str| {
            let error = unpack(frame, 1).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(&with(CParameter::ChecksumFlag(true)), "has a checksum");
        refused(&with(CParameter::ContentSizeFlag(false)), "content size");
        // A dictionary id of one byte, which is 0: none, but said.
        let header = 5 + usize::from(good[4] & SINGLE_SEGMENT == 0);
        let named = [
            &good[..4],
            &[good[4] | 1],
            &good[5..header],
            &[0],
            &good[header..],
        ]
        .concat();
        refused(&named, "has a dictionary");
        let mut reserved = good.clone();
        reserved[4] |= RESERVED;
        refused(&reserved, "has a reserved bit");
        let skippable = [
            &0x184d_2a50_u32.to_le_bytes()[..],
            &1_u32.to_le_bytes(),
            &[0],
        ]
        .concat();
        for several in [
            skippable.clone(),
            [skippable.clone(), good.clone()].concat(),
            [good.clone(), skippable].concat(),
            [good.clone(), good.clone()].concat(),
            good[..4].to_vec(),
        ] {
            refused(&several, "not exactly one zstd frame");
        }
    }

    #[test]
    fn the_worst_case_of_compression_fits_the_limit() {
        for pages in 1..=MAX_FRAME_PAGES as usize {
            let raw = pages * PAGE_SIZE;
            assert!(zstd::zstd_safe::compress_bound(raw) <= raw + MAX_FRAME_OVERHEAD as usize);
        }
    }
}
