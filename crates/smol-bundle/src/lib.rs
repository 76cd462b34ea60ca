//! The `.smolmachine` format: one file that holds a machine, with its memory or without.
//!
//! The normative description is docs/bundle-format.md. In short: an uncompressed tar in one
//! canonical form, in it an OCI image layout, in it a manifest that names a configuration, the
//! frames of up to four images (kernel, initramfs, rootfs, memory) and a page index that says where
//! the bytes of each 4 KiB page are. Signatures are manifests of their own.
//!
//! | room | purpose |
//! |---|---|
//! | `config` | what the machine is, and what it needs from a host |
//! | `index` | the page index: images, frames, extents |
//! | `frame` | one frame: compress, verify, decompress |
//! | `oci`, `json`, `digest` | the OCI documents and their canonical form |
//! | `archive` | the tar: one header form, written and checked |
//! | `pages`, `writer`, `output` | from image files to a bundle that appears whole or not at all |
//! | `pool`, `prepared` | frames compressed on all cores, and ahead of the writer |
//! | `reader`, `extract`, `verify` | from a bundle back to images, nothing used before it is verified |
//! | `key`, `signature` | ed25519 keys, signing, verifying |
//! | `limits` | every maximum |
//!
//! **A bundle is hostile** until its signature says otherwise, and then, too: every number is
//! checked before it is used, and every frame is verified when it is read.
//! This crate knows nothing of hypervisors: machine state is opaque bytes, the CPU contract is data.

mod archive;
mod config;
mod digest;
mod error;
mod extract;
mod frame;
#[cfg(test)]
mod hostile;
mod index;
mod json;
mod key;
pub mod limits;
pub mod oci;
mod output;
mod pages;
mod pool;
mod prepared;
mod reader;
mod signature;
mod verify;
mod writer;

pub use config::{ClockMode, Config, CpuContract, Reproducible, Tsc, TscNeeds};
pub use digest::Digest;
pub use error::{Error, Result};
pub use extract::{FrameMap, FrameReader};
pub use index::{
    Content, Extent, Frame, Image, ImageKind, ImageStats, PageIndex, Piece, Run, Shared, Stats,
};
pub use key::{KeyId, PrivateKey, PublicKey};
pub use output::copy;
pub use prepared::Prepared;
pub use reader::{Blob, Bundle};
pub use signature::{Signature, SignatureError, sign};
pub use writer::{BundleSpec, SnapshotSpec, WorkingSet, Written, write, write_while};

/// Major version of the format.
pub const FORMAT_VERSION: u32 = 1;
