//! What the fuzz targets call; no interface. Parts of a bundle without the digests above them.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::format::{frame, json};
use crate::oci::{self, Manifest};
use crate::{Config, Digest, PageIndex, PrivateKey, Signature};

/// Reads a page index. Returns it, and its bytes written again.
pub fn page_index(bytes: &[u8]) -> Option<(PageIndex, Vec<u8>)> {
    let index = PageIndex::parse(bytes).ok()?;
    let written = index.encode();
    Some((index, written))
}

/// Compresses whole pages into a frame.
///
/// # Errors
/// Those of zstd.
pub fn pack(pages: &[u8]) -> std::io::Result<Vec<u8>> {
    frame::pack(pages).map(|packed| packed.bytes)
}

/// Decompresses a frame of so many pages whose hash is right.
///
/// # Errors
/// Why it is none, in words.
pub fn unpack(bytes: &[u8], pages: u32) -> Result<Vec<u8>, String> {
    let mut unpacker = frame::Unpacker::new().map_err(|e| e.to_string())?;
    let len = bytes.len() as u32;
    unpacker.input(len).copy_from_slice(bytes);
    let hash = blake3::hash(bytes);
    let pages = unpacker.unpack(len, pages, hash.as_bytes())?;
    Ok(pages.to_vec())
}

/// Which of the documents of a bundle.
#[derive(Clone, Copy, Debug)]
pub enum Document {
    /// The configuration.
    Config,
    /// A manifest.
    Manifest,
    /// index.json.
    Index,
    /// A signature.
    Signature,
}

/// Reads a document, and writes it again. `None` for one that is refused.
pub fn document(kind: Document, bytes: &[u8]) -> Option<Vec<u8>> {
    match kind {
        Document::Config => {
            let config: Config = json::parse(bytes).ok()?;
            config.validate().ok()?;
            Some(json::canonical(&config))
        }
        Document::Manifest => again::<Manifest>(bytes),
        Document::Index => {
            oci::newer_version(bytes);
            again::<oci::Index>(bytes)
        }
        Document::Signature => Some(Signature::from_blob(bytes).ok()?.to_blob()),
    }
}

fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(json::canonical(&json::parse::<T>(bytes).ok()?))
}

/// Returns the canonical form of a document.
pub fn canonical(document: &impl Serialize) -> Vec<u8> {
    json::canonical(document)
}

/// Returns the blob of a true signature.
pub fn signature(key: &PrivateKey, machine: &Digest) -> Vec<u8> {
    Signature::new(key, machine).to_blob()
}
