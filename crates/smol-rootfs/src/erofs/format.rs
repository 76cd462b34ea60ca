//! On-disk structures of EROFS, as Linux 6.1 defines them in fs/erofs/erofs_fs.h. All numbers are
//! little-endian.

use anyhow::{Result, bail, ensure};

use crate::{Device, Node, Xattrs};

/// Block size in bytes: the page size, which DAX demands.
pub const BLOCK: u64 = 4096;
/// An inode's number is its offset in the metadata area in units of this many bytes.
pub const SLOT: u64 = 32;

const SUPER_OFFSET: usize = 1024;
const SUPER_MAGIC: u32 = 0xe0f5_e1e2;
const FEATURE_COMPAT_SB_CHKSUM: u32 = 1;
const FEATURE_COMPAT_MTIME: u32 = 2;

/// How an inode's data is stored (`i_format`, bits 1 to 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataLayout {
    /// Whole blocks.
    FlatPlain = 0,
    /// Whole blocks, and the rest of the data right behind the inode.
    FlatInline = 2,
}

/// What the superblock says.
pub struct SuperBlock {
    pub root_nid: u16,
    pub inodes: u64,
    pub epoch: u64,
    pub blocks: u32,
    pub meta_block: u32,
    pub uuid: [u8; 16],
}

impl SuperBlock {
    /// Block 0 of the image, checksum included.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; SUPER_OFFSET];
        block.extend(SUPER_MAGIC.to_le_bytes());
        block.extend([0; 4]); // checksum
        block.extend((FEATURE_COMPAT_SB_CHKSUM | FEATURE_COMPAT_MTIME).to_le_bytes());
        block.extend([BLOCK.trailing_zeros() as u8, 0]); // block size; extension slots
        block.extend(self.root_nid.to_le_bytes());
        block.extend(self.inodes.to_le_bytes());
        block.extend(self.epoch.to_le_bytes());
        block.extend([0; 4]); // nanoseconds of the epoch
        block.extend(self.blocks.to_le_bytes());
        block.extend(self.meta_block.to_le_bytes());
        block.extend([0; 4]); // shared xattr area: none
        block.extend(self.uuid);
        // Volume name, incompatible features, compression, devices, prefixes, packed inode: none.
        block.resize(BLOCK as usize, 0);
        let sum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// Reads block 0 of an image, and refuses features that are not written here.
    pub fn decode(block: &[u8; BLOCK as usize]) -> Result<Self> {
        let at = |offset: usize| SUPER_OFFSET + offset;
        ensure!(u32_at(block, at(0)) == SUPER_MAGIC, "it is not EROFS");
        let mut summed = block[SUPER_OFFSET..].to_vec();
        summed[4..8].fill(0);
        let has_sum = u32_at(block, at(8)) & FEATURE_COMPAT_SB_CHKSUM != 0;
        let sum = u32_at(block, at(4));
        ensure!(
            !has_sum || sum == crc32c(&summed),
            "the superblock's checksum is wrong"
        );
        let (bits, incompatible) = (block[at(12)], u32_at(block, at(80)));
        ensure!(
            u32::from(bits) == BLOCK.trailing_zeros(),
            "it has blocks of 2^{bits} bytes, not of {BLOCK}"
        );
        ensure!(
            incompatible == 0,
            "it has features that smolbuild does not write ({incompatible:#x})"
        );
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[at(48)..at(64)]);
        Ok(SuperBlock {
            root_nid: u16_at(block, at(14)),
            inodes: u64_at(block, at(16)),
            epoch: u64_at(block, at(24)),
            blocks: u32_at(block, at(36)),
            meta_block: u32_at(block, at(40)),
            uuid,
        })
    }

    /// Where the metadata area begins in the image, in bytes.
    pub fn meta_offset(&self) -> u64 {
        u64::from(self.meta_block) * BLOCK
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// CRC-32C (Castagnoli, reflected) from all ones and without the final inversion, as the kernel's
/// `crc32c(~0, ...)`.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// An inode's head, compact (32 bytes) or extended (64 bytes).
pub struct InodeHead {
    pub extended: bool,
    pub layout: DataLayout,
    /// Bytes of encoded attributes behind the head.
    pub xattr_size: usize,
    /// Type and permissions.
    pub mode: u32,
    pub nlink: u32,
    pub size: u64,
    /// Start block, or an encoded device number.
    pub union: u32,
    /// Serial number for 32-bit `stat`.
    pub serial: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
}

impl InodeHead {
    /// Length of the head of an extended or compact inode.
    pub fn size(extended: bool) -> usize {
        if extended { 64 } else { 32 }
    }

    /// Appends the encoded head to `out`. A compact head holds its numbers' low halves: the caller
    /// has checked that they fit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let format = self.extended as u16 | (self.layout as u16) << 1;
        // The field counts 4-byte units behind a header of 12 bytes, plus one.
        let xattr_count = if self.xattr_size == 0 {
            0
        } else {
            (self.xattr_size - 12) / 4 + 1
        };
        out.extend(format.to_le_bytes());
        out.extend((xattr_count as u16).to_le_bytes());
        out.extend((self.mode as u16).to_le_bytes());
        if self.extended {
            out.extend([0; 2]);
            out.extend(self.size.to_le_bytes());
            out.extend(self.union.to_le_bytes());
            out.extend(self.serial.to_le_bytes());
            out.extend(self.uid.to_le_bytes());
            out.extend(self.gid.to_le_bytes());
            out.extend(self.mtime.to_le_bytes());
            out.extend([0; 4]); // nanoseconds
            out.extend(self.nlink.to_le_bytes());
            out.extend([0; 16]);
        } else {
            out.extend((self.nlink as u16).to_le_bytes());
            out.extend((self.size as u32).to_le_bytes());
            out.extend([0; 4]);
            out.extend(self.union.to_le_bytes());
            out.extend(self.serial.to_le_bytes());
            out.extend((self.uid as u16).to_le_bytes());
            out.extend((self.gid as u16).to_le_bytes());
            out.extend([0; 4]);
        }
    }

    /// Reads a head; a compact one is in the first 32 bytes and has the image's time.
    pub fn decode(bytes: &[u8; 64], epoch: u64) -> Result<Self> {
        let format = u16_at(bytes, 0);
        let layout = match format >> 1 & 7 {
            0 => DataLayout::FlatPlain,
            2 => DataLayout::FlatInline,
            other => bail!("data layout {other}, which smolbuild does not write"),
        };
        let xattr_size = match usize::from(u16_at(bytes, 2)) {
            0 => 0,
            count => 12 + (count - 1) * 4,
        };
        let head = InodeHead {
            extended: format & 1 == 1,
            layout,
            xattr_size,
            mode: u16_at(bytes, 4).into(),
            nlink: u16_at(bytes, 6).into(),
            size: u32_at(bytes, 8).into(),
            union: u32_at(bytes, 16),
            serial: u32_at(bytes, 20),
            uid: u16_at(bytes, 24).into(),
            gid: u16_at(bytes, 26).into(),
            mtime: epoch,
        };
        if !head.extended {
            return Ok(head);
        }
        Ok(InodeHead {
            size: u64_at(bytes, 8),
            uid: u32_at(bytes, 24),
            gid: u32_at(bytes, 28),
            mtime: u64_at(bytes, 32),
            nlink: u32_at(bytes, 44),
            ..head
        })
    }

    /// Whether the mode is that of a directory.
    pub fn is_directory(&self) -> bool {
        self.mode & 0o170000 == 0o040000
    }
}

/// The kernel's 32-bit encoding of a device number (`new_encode_dev`).
pub fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | device.major << 8 | (device.minor & !0xff) << 12
}

/// The device number that [`encode_device`] encoded.
pub fn decode_device(encoded: u32) -> Device {
    Device {
        major: encoded >> 8 & 0xfff,
        minor: encoded & 0xff | encoded >> 12 & 0xfff00,
    }
}

/// Extended attributes as they stand behind the inode: a header, then entries padded to four bytes.
pub fn encode_xattrs(xattrs: &Xattrs) -> Vec<u8> {
    let mut out = vec![0; 12]; // no name filter, no shared attributes
    for (name, value) in xattrs {
        let Some((index, suffix)) = xattr_index(name) else {
            continue;
        };
        out.extend([suffix.len() as u8, index]);
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(suffix);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    // The kernel takes a header without entries for an unknown format.
    if out.len() == 12 { Vec::new() } else { out }
}

/// Attribute names are stored as the number of a namespace and the rest.
fn xattr_index(name: &[u8]) -> Option<(u8, &[u8])> {
    match name {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        _ => [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
            .into_iter()
            .find_map(|(index, prefix)| name.strip_prefix(prefix).map(|suffix| (index, suffix))),
    }
}

/// The name that was split into a namespace's number and `suffix`.
pub fn xattr_name(index: u8, suffix: &[u8]) -> Result<Vec<u8>> {
    let prefix: &[u8] = match index {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        _ => bail!("an extended attribute in the unknown namespace {index}"),
    };
    Ok([prefix, suffix].concat())
}

/// Length of a directory entry without its name.
pub const DIRENT: usize = 12;

/// A directory entry: the number of an inode, its type, its name.
pub struct Dirent<'a> {
    pub nid: u64,
    pub file_type: u8,
    pub name: &'a [u8],
}

/// The type byte of a directory entry.
pub fn file_type(node: &Node) -> u8 {
    match node {
        Node::File(_) => 1,
        Node::Directory(_) => 2,
        Node::CharDevice(_) => 3,
        Node::BlockDevice(_) => 4,
        Node::Fifo => 5,
        Node::Socket => 6,
        Node::Symlink(_) => 7,
    }
}

/// Sizes of directory blocks: feed names in order, then ask for the size of it all.
#[derive(Default)]
pub struct DirectorySize {
    full_blocks: u64,
    used: usize,
}

impl DirectorySize {
    /// Count one entry.
    pub fn add(&mut self, name: &[u8]) {
        let entry = DIRENT + name.len();
        if self.used + entry > BLOCK as usize {
            self.full_blocks += 1;
            self.used = 0;
        }
        self.used += entry;
    }

    /// Size of the directory in bytes: whole blocks, and what is used of the last one.
    pub fn bytes(&self) -> u64 {
        self.full_blocks * BLOCK + self.used as u64
    }
}

/// Encode a directory: each block holds its entries, then their names; names are sorted over all of
/// them, for the kernel searches by halves. All blocks but the last are full-sized.
pub fn encode_directory(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fits = rest.iter().take_while(|entry| {
            used += DIRENT + entry.name.len();
            used <= BLOCK as usize
        });
        let (block, next) = rest.split_at(fits.count());
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let mut name_offset = block.len() * DIRENT;
        for entry in block {
            out.extend(entry.nid.to_le_bytes());
            out.extend((name_offset as u16).to_le_bytes());
            out.extend([entry.file_type, 0]);
            name_offset += entry.name.len();
        }
        block.iter().for_each(|entry| out.extend(entry.name));
        rest = next;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_check_value() {
        // The check value of CRC-32C is that of "123456789" with the final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn directory_size_agrees_with_the_encoding() {
        for count in [1, 2, 100, 255, 256, 257, 1000] {
            let names: Vec<_> = (0..count)
                .map(|n| format!("{n:05}{}", "x".repeat(n * 7 % 200)))
                .collect();
            let mut size = DirectorySize::default();
            names.iter().for_each(|name| size.add(name.as_bytes()));
            let entries: Vec<_> = names
                .iter()
                .map(|name| Dirent {
                    nid: 1,
                    file_type: 1,
                    name: name.as_bytes(),
                })
                .collect();
            assert_eq!(
                size.bytes(),
                encode_directory(&entries).len() as u64,
                "{count} names"
            );
        }
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(encode_device(Device { major: 5, minor: 1 }), 0x501);
        assert_eq!(
            encode_device(Device {
                major: 259,
                minor: 0x12345
            }),
            0x1230_0000 | 259 << 8 | 0x45
        );
    }
}
