//! The `.smolmachine` format: one file that holds a machine, with its memory or without.
//!
//! The normative description is docs/bundle-format.md. In short: an uncompressed tar in one
//! canonical form, in it an OCI image layout, in it a manifest that names a configuration, the
//! frames of up to four images (kernel, initramfs, rootfs, memory) and a page index that says where
//! the bytes of each 4 KiB page are. Signatures are manifests of their own.
//!
//! | module | purpose |
//! |---|---|
//! | `format` | what the bytes are: documents, page index, frames, keys and signatures, limits |
//! | `write` | from image files to a bundle that appears whole or not at all; signing |
//! | `source` | where a bundle's bytes come from |
//! | `read` | from a bundle back to images, nothing used before it is verified |
//! | `fuzz` | what the fuzz targets call: parts of a bundle without the digests above them |
//!
//! **A bundle is treated as hostile, signed or not**: every number is checked before it is used, and
//! every frame is verified when it is read.
//! This crate knows nothing of hypervisors: machine state is opaque bytes, the CPU contract is data.

mod error;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod read;
mod source;
mod write;

pub use error::{Error, Result};
pub use format::config::{ClockMode, Config, CpuContract, Reproducible, Tsc, TscNeeds};
pub use format::digest::Digest;
pub use format::index::{
    Content, Extent, Frame, Image, ImageKind, ImageStats, PageIndex, Piece, Run, Shared, Stats,
};
pub use format::key::{KeyId, PrivateKey, PublicKey};
pub use format::signature::{Signature, SignatureError};
pub use format::{limits, oci};
pub use read::bundle::{Blob, Bundle};
pub use read::extract::{FrameMap, FrameReader};
pub use source::ReadAt;
pub use source::file::open_regular;
pub use write::output::{Output, check as check_output, copy};
pub use write::prepared::Prepared;
pub use write::sign::sign;
pub use write::writer::{BundleSpec, SnapshotSpec, WorkingSet, Written, write, write_while};

/// Major version of the format.
pub const FORMAT_VERSION: u32 = 1;
