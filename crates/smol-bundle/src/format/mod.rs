//! The format: what the bytes of a bundle are, whoever reads or writes them.
//!
//! | module | purpose |
//! |---|---|
//! | `config` | what the machine is, and what it needs from a host |
//! | `index` | the page index: images, frames, extents |
//! | `frame` | one frame: compress, verify, decompress |
//! | `oci`, `json`, `digest` | the OCI documents and their canonical form |
//! | `archive` | the tar's one header form |
//! | `key`, `signature` | ed25519 keys, signatures and which of them are accepted |
//! | `limits` | every maximum |

pub(crate) mod archive;
pub(crate) mod config;
pub(crate) mod digest;
pub(crate) mod frame;
pub(crate) mod index;
pub(crate) mod json;
pub(crate) mod key;
pub mod limits;
pub mod oci;
pub(crate) mod signature;
