//! Reading tar archives: ustar, GNU (long names, base-256 numbers) and pax (POSIX.1-2001) with
//! extended attributes.
//!
//! The `tar` crate decodes header fields; walking from header to header is ours, because contents
//! must stay in the archive (we keep offsets), because attribute values are binary (they may hold
//! newlines), and because every length is checked against the archive's before it is believed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tar::{EntryType, Header};

use crate::compression::Compression;
use crate::inode::{Device, FileData, HostFile, Inode, Meta, Node, Xattrs, is_linux_xattr};
use crate::limits::{MAX_ENTRIES, MAX_EXTENSION, MAX_PATH, MAX_XATTRS};
use crate::path::show;

const BLOCK: u64 = 512;
/// The fields of a header that are numbers (mode, owner, group, size, time, device). Writers leave those
/// blank that they have no use for, and all readers take that as 0.
const NUMBERS: [Range<usize>; 7] = [
    100..108,
    108..116,
    116..124,
    124..136,
    136..148,
    329..337,
    337..345,
];

/// A member of an archive.
pub(crate) struct Member {
    /// Name as the archive has it.
    pub path: Vec<u8>,
    pub content: Content,
}

/// What a member is.
pub(crate) enum Content {
    Inode(Inode),
    /// Another name for the member with this name.
    HardLink(Vec<u8>),
}

/// An open archive.
pub(crate) struct Archive {
    path: Arc<Path>,
    file: Arc<File>,
    len: u64,
    /// Offset of the next header.
    next: u64,
    /// What global pax records say: defaults for all members that follow.
    global: Overrides,
}

/// What extended headers say about the member that follows them.
#[derive(Clone, Default)]
struct Overrides {
    path: Option<Arc<[u8]>>,
    link: Option<Arc<[u8]>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<u64>,
    /// Shared until a member has some of its own: not every member gets what the archive says of all.
    xattrs: Arc<Xattrs>,
    /// Bytes of names and values in `xattrs`, also of those that were replaced.
    xattr_bytes: usize,
}

impl Archive {
    pub fn open(path: &Path) -> Result<Archive> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Archive::of(file, path)
    }

    /// The archive in `file`, which messages call by its path.
    pub fn of(file: File, path: &Path) -> Result<Archive> {
        let len = file.metadata()?.len();
        let mut magic = [0; 6];
        ensure!(
            len >= BLOCK,
            "{} is not a tar archive: it has only {len} bytes",
            path.display()
        );
        file.read_exact_at(&mut magic, 0)?;
        if let Some((name, tool)) = compression(&magic) {
            bail!(
                "{} is compressed with {name}: unpack it with `{tool}` first",
                path.display()
            );
        }
        Ok(Archive {
            path: path.into(),
            file: file.into(),
            len,
            next: 0,
            global: Overrides::default(),
        })
    }

    /// The next member; `None` at the end-of-archive mark.
    pub fn next(&mut self) -> Result<Option<Member>> {
        let start = self.next;
        self.next_member()
            .with_context(|| format!("archive {}, header at byte {start}", self.path.display()))
    }

    fn next_member(&mut self) -> Result<Option<Member>> {
        let mut overrides = self.global.clone();
        let mut extended = false;
        loop {
            let Some(header) = self.header()? else {
                ensure!(!extended, "the archive ends after an extended header");
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::GNULongName => overrides.path = Some(name(&self.long_name(&header)?)?),
                EntryType::GNULongLink => overrides.link = Some(name(&self.long_name(&header)?)?),
                EntryType::XHeader => {
                    for record in pax_records(&self.extension(&header)?)? {
                        overrides.apply(&record)?;
                    }
                }
                EntryType::XGlobalHeader => {
                    for record in pax_records(&self.extension(&header)?)? {
                        self.global.apply(&record)?;
                        // What a member says of itself rules.
                        if !extended {
                            overrides.apply(&record)?;
                        }
                    }
                    continue;
                }
                _ => return self.member(&header, overrides).map(Some),
            }
            extended = true;
        }
    }

    /// Reads and checks the header at `next` and steps over it. `None` at the end mark, a block of
    /// zeros.
    fn header(&mut self) -> Result<Option<Header>> {
        ensure!(
            self.len - self.next >= BLOCK,
            "the archive ends without an end mark after {} bytes: it was cut short",
            self.len
        );
        let mut header = Header::new_old();
        self.file.read_exact_at(header.as_mut_bytes(), self.next)?;
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum: u32 = bytes[..148]
            .iter()
            .chain(&bytes[156..])
            .map(|&byte| u32::from(byte))
            .sum();
        let expected = header.cksum().context("not a tar header")?;
        ensure!(
            sum + 8 * u32::from(b' ') == expected,
            "not a tar header: its checksum does not match"
        );
        self.next += BLOCK;
        for field in NUMBERS {
            let field = &mut header.as_mut_bytes()[field];
            if field.iter().all(|byte| [0, b' '].contains(byte)) {
                field[0] = b'0';
            }
        }
        Ok(Some(header))
    }

    /// Steps over the `size` bytes of content at `next`; returns their offset.
    fn content(&mut self, size: u64) -> Result<u64> {
        let offset = self.next;
        let left = self.len - offset;
        ensure!(
            size <= left,
            "its content has {size} bytes but only {left} are left: the archive was cut short"
        );
        self.next = size.next_multiple_of(BLOCK).min(left) + offset;
        Ok(offset)
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.entry_size()?;
        ensure!(
            size <= MAX_EXTENSION,
            "an extended header of {size} bytes (at most {MAX_EXTENSION})"
        );
        let offset = self.content(size)?;
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>> {
        let mut name = self.extension(header)?;
        name.truncate(
            name.iter()
                .position(|&byte| byte == 0)
                .unwrap_or(name.len()),
        );
        Ok(name)
    }

    fn member(&mut self, header: &Header, overrides: Overrides) -> Result<Member> {
        let path = match &overrides.path {
            Some(path) => path.to_vec(),
            None => header.path_bytes().into_owned(),
        };
        let content = self.member_content(header, overrides, &path);
        let content = content.with_context(|| format!("member {}", show(&path)))?;
        Ok(Member { path, content })
    }

    fn member_content(
        &mut self,
        header: &Header,
        overrides: Overrides,
        path: &[u8],
    ) -> Result<Content> {
        let size = match overrides.size {
            Some(size) => size,
            None => header.entry_size()?,
        };
        let link = overrides
            .link
            .as_ref()
            .map(|link| link.to_vec())
            .or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        let link = link.unwrap_or_default();
        let node = match header.entry_type() {
            // Before POSIX a directory was a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => Node::directory(),
            EntryType::Regular | EntryType::Continuous => {
                let offset = self.content(size)?;
                Node::File(FileData::Range {
                    file: HostFile::Open(self.file.clone(), self.path.clone()),
                    offset,
                    len: size,
                })
            }
            // These have no content, whatever their size field says (as GNU tar and others read
            // them).
            EntryType::Directory => Node::directory(),
            EntryType::Symlink => Node::Symlink(link),
            EntryType::Link => return Ok(Content::HardLink(link)),
            EntryType::Char => Node::CharDevice(device(header)?),
            EntryType::Block => Node::BlockDevice(device(header)?),
            EntryType::Fifo => Node::Fifo,
            EntryType::GNUSparse => {
                bail!("sparse files are not supported; make the archive without --sparse")
            }
            other => bail!("unknown member type {:?}", char::from(other.as_byte())),
        };
        let mut meta = meta(header, overrides)?;
        if let Node::Symlink(_) = node {
            // Linux knows no other (symlink(7)).
            meta.mode = 0o777;
        }
        Ok(Content::Inode(Inode { meta, node }))
    }
}

/// Counts the members of an archive while it is being written to a file.
pub(crate) struct Counter {
    archive: Archive,
    members: u64,
    /// How long the archive has to be for the next look.
    again: u64,
}

impl Counter {
    /// Of an archive in this file, which can be read, too.
    ///
    /// # Errors
    /// The file cannot be opened once more.
    pub fn new(file: &File) -> io::Result<Counter> {
        Ok(Counter {
            archive: Archive {
                path: Path::new("").into(),
                file: file.try_clone()?.into(),
                len: 0,
                next: 0,
                global: Overrides::default(),
            },
            members: 0,
            again: BLOCK,
        })
    }

    /// Counts on: so many bytes of the archive are there. What cannot be read stays uncounted: it is not
    /// whole yet, or no archive, which is for those to say who read it.
    ///
    /// # Errors
    /// There are more members than a tree has names.
    pub fn count(&mut self, len: u64) -> Result<()> {
        self.archive.len = len;
        while len >= self.again {
            let (begin, global) = (self.archive.next, self.archive.global.clone());
            match self.archive.next() {
                Ok(Some(_)) => self.members += 1,
                Ok(None) => self.again = u64::MAX,
                Err(_) => {
                    (self.archive.next, self.archive.global) = (begin, global);
                    // Not at each piece of a long member, nor of many extended headers in a row.
                    self.again = len + (len - begin).max(BLOCK);
                }
            }
            ensure!(
                self.members <= MAX_ENTRIES,
                "it holds more than {MAX_ENTRIES} names"
            );
        }
        Ok(())
    }
}

fn meta(header: &Header, overrides: Overrides) -> Result<Meta> {
    let uid = overrides.uid.map_or_else(|| header.uid(), Ok)?;
    let gid = overrides.gid.map_or_else(|| header.gid(), Ok)?;
    // Times before 1970 are negative base-256 numbers, which read as huge ones: they count as 1970.
    let mtime = overrides.mtime.map_or_else(|| header.mtime(), Ok)?;
    Ok(Meta {
        mode: header.mode()? & 0o7777,
        uid: uid
            .try_into()
            .with_context(|| format!("user id {uid} is out of range"))?,
        gid: gid
            .try_into()
            .with_context(|| format!("group id {gid} is out of range"))?,
        mtime: Some(if mtime > i64::MAX as u64 { 0 } else { mtime }),
        xattrs: Arc::unwrap_or_clone(overrides.xattrs),
    })
}

fn device(header: &Header) -> Result<Device> {
    let major = header
        .device_major()?
        .context("a device without a number")?;
    let minor = header
        .device_minor()?
        .context("a device without a number")?;
    Ok(Device { major, minor })
}

impl Overrides {
    fn apply(&mut self, (key, value): &(Vec<u8>, Vec<u8>)) -> Result<()> {
        match key.as_slice() {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.link = Some(name(value)?),
            b"size" => self.size = Some(number(key, value)?),
            b"uid" => self.uid = Some(number(key, value)?),
            b"gid" => self.gid = Some(number(key, value)?),
            b"mtime" if value.starts_with(b"-") => self.mtime = Some(0),
            b"mtime" => {
                let seconds = value.split(|&byte| byte == b'.').next().unwrap_or_default();
                self.mtime = Some(number(key, seconds)?);
            }
            _ if key.starts_with(b"GNU.sparse.") => {
                bail!("sparse files are not supported; make the archive without --sparse")
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                    && is_linux_xattr(name)
                {
                    self.xattr_bytes += name.len() + value.len();
                    ensure!(
                        self.xattr_bytes <= MAX_XATTRS,
                        "more than {MAX_XATTRS} bytes of extended attributes"
                    );
                    Arc::make_mut(&mut self.xattrs).insert(name.to_vec(), value.clone());
                }
            }
        }
        Ok(())
    }
}

/// A path or a link's target.
fn name(bytes: &[u8]) -> Result<Arc<[u8]>> {
    ensure!(
        bytes.len() <= MAX_PATH,
        "a name of {} bytes (at most {MAX_PATH})",
        bytes.len()
    );
    Ok(bytes.into())
}

fn number(key: &[u8], digits: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok());
    text.with_context(|| format!("pax record {} has the value {}", show(key), show(digits)))
}

/// Parse pax records, each `LENGTH KEY=VALUE\n` where LENGTH counts all of it (POSIX.1-2001, pax).
/// Values are binary.
fn pax_records(mut bytes: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = pax_record(bytes).context("a malformed pax header")?;
        records.push(record);
        bytes = rest;
    }
    Ok(records)
}

type PaxRecord = (Vec<u8>, Vec<u8>);

fn pax_record(bytes: &[u8]) -> Option<(PaxRecord, &[u8])> {
    let space = bytes.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    Some(((body[..equals].to_vec(), body[equals + 1..].to_vec()), rest))
}

/// Name of the compression with these first bytes, and the command that undoes it.
fn compression(mark: &[u8; 6]) -> Option<(&'static str, &'static str)> {
    match Compression::of(mark) {
        Some(Compression::Gzip) => Some(("gzip", "gunzip -k")),
        Some(Compression::Zstd) => Some(("zstd", "unzstd")),
        Some(Compression::Xz) => Some(("xz", "unxz -k")),
        None if mark.starts_with(b"BZh") => Some(("bzip2", "bunzip2 -k")),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn many_extended_headers_in_a_row_are_not_read_at_each_look() {
        const HEADERS: u64 = 50_000;
        const PIECE: u64 = 64 << 10;
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(0);
        header.set_cksum();
        let mut file = tempfile::tempfile().unwrap();
        let mut counter = Counter::new(&file).unwrap();
        let mut looks = 0;
        for len in (PIECE..=HEADERS * BLOCK).step_by(PIECE as usize) {
            let piece = header.as_bytes().repeat((PIECE / BLOCK) as usize);
            file.write_all(&piece).unwrap();
            let before = counter.again;
            counter.count(len).unwrap();
            looks += u32::from(counter.again != before);
        }
        // Each time at twice as many.
        assert!((5..15).contains(&looks), "{looks}");
        assert_eq!(counter.members, 0);
    }
}
