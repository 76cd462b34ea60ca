//! Container images, as a root file system starts from them.
//!
//! ```text
//! reference ──> layout, archive (a tree of files) ──> manifest ──> config, layers
//!          └──> registry (crate smol-registry) ─────────┘
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | [`reference`] | how an image is named: by transport and place |
//! | [`manifest`] | image indexes and manifests |
//! | [`platform`], [`index`] | what an image is for; which one of an index is for this machine |
//! | [`config`] | the configuration: layers, and what a container of the image runs |
//! | [`store`] | images in a layout (a folder), an OCI archive, an archive of `docker save` |
//! | [`layer`] | a layer, unpacked and verified |
//!
//! All of this is hostile input: documents have a maximum, each blob is compared with its digest before
//! it is used, and an archive is read as a [`Tree`](smol_rootfs::Tree), which no link leaves.
//!
//! Formats: OCI image specification 1.1 (image-layout.md, manifest.md, config.md, image-index.md), and
//! Docker's image specification 1.3 for what `docker save` writes.

pub mod config;
pub mod index;
pub mod layer;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod store;

pub use self::config::{Healthcheck, ImageConfig, RunConfig};
pub use self::layer::{Layer, unpack};
pub use self::platform::Platform;
pub use self::reference::ImageRef;
pub use self::store::Image;

/// Largest index, manifest or configuration, in bytes (what registries take, too).
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Most indexes that are in each other.
pub const MAX_NESTED: usize = 4;
/// Most layers of an image: more than any container engine can put over each other.
pub const MAX_LAYERS: usize = 1000;
