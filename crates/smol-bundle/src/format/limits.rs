//! Every maximum of the format. docs/bundle-format.md, section "Limits", lists the same numbers
//! and a test compares the two.

/// Bytes in a page of every image.
pub const PAGE_SIZE: usize = 4096;
/// Most pages that a frame may hold: 2 MiB.
pub const MAX_FRAME_PAGES: u32 = 512;
/// Most bytes by which a compressed frame may exceed its pages: what zstd adds to the
/// incompressible.
pub const MAX_FRAME_OVERHEAD: u32 = 8192;
/// Most bytes in an image: 64 GiB.
pub const MAX_IMAGE_SIZE: u64 = 64 << 30;
/// Most bytes in a blob: what eleven octal digits of a tar header express.
pub const MAX_BLOB_SIZE: u64 = (8 << 30) - 1;
/// Most bytes in the page index.
pub const MAX_INDEX_SIZE: u64 = 128 << 20;
/// Most bytes in the machine state.
pub const MAX_STATE_SIZE: u64 = 16 << 20;
/// Most bytes in index.json, in a manifest and in the configuration, each.
pub const MAX_JSON_SIZE: u64 = 64 << 10;
/// Most bytes in the Smolfile.
pub const MAX_TEXT_SIZE: u64 = 1 << 20;
/// Most bytes in the lock, which has a line for each package and each file.
pub const MAX_LOCK_SIZE: u64 = 16 << 20;
/// Most signatures.
pub const MAX_SIGNATURES: usize = 16;
/// Most entries in the archive.
pub const MAX_ENTRIES: usize = 64;
/// Most vCPUs: xAPIC ids are 8 bits and 255 is the broadcast.
pub const MAX_CPUS: u32 = 254;
/// Most bytes in the machine's name and in its version, each.
pub const MAX_NAME_LEN: usize = 128;
/// Most bytes in the kernel command line.
pub const MAX_CMDLINE_LEN: usize = 2047;
/// Most ports.
pub const MAX_PORTS: usize = 64;
/// Most features in a CPU contract.
pub const MAX_FEATURES: usize = 512;
/// Most bytes in a feature's name.
pub const MAX_FEATURE_LEN: usize = 64;
/// Most bytes in the reason why a machine is not reproducible.
pub const MAX_REASON_LEN: usize = 1024;
