//! The files that a build step changed: the upper directory of the overlay as a tar archive, sorted by
//! name, each directory before what is in it.
//!
//! A name that is gone, and a directory that replaces another one, are sent as overlayfs has them
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). Names and link
//! targets are verbatim: what has no place in a header goes into a pax record.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

/// So begin the names of the attributes that overlayfs keeps for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// The one of them that belongs to the layer.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Places for names in a header (POSIX.1-2001, pax, "ustar Interchange Format").
const NAME: std::ops::Range<usize> = 0..100;
const LINK: std::ops::Range<usize> = 157..257;
/// Pieces that the host gets.
const BUFFER: usize = 256 * 1024;
/// Largest extended attribute, or list of them (xattr(7)).
const MAX_XATTR: usize = 64 * 1024;

/// Sends all that is below the directory `upper`. No time is younger than `epoch`, in seconds since the
/// Unix epoch. Returns how many bytes were sent.
pub(super) fn send(upper: &OwnedFd, to: File, epoch: u64) -> io::Result<u64> {
    // The directory is on a file system that is mounted nowhere any more.
    let root = PathBuf::from(format!("/proc/self/fd/{}", upper.as_raw_fd()));
    write(&root, BufWriter::with_capacity(BUFFER, to), epoch)
}

/// Writes all that is below `root` as a tar archive, and returns its length.
fn write(root: &Path, to: impl Write, epoch: u64) -> io::Result<u64> {
    let mut layer = Layer {
        root,
        archive: tar::Builder::new(Counted { to, bytes: 0 }),
        links: HashMap::new(),
        epoch,
    };
    let top = fs::metadata(root)?;
    if (top.mode() & 0o7777, top.uid(), top.gid()) != (0o755, 0, 0) {
        layer.put(Path::new("./"), &top)?;
    }
    let mut to_do = vec![names(root, Path::new(""))?];
    while let Some(siblings) = to_do.last_mut() {
        let Some(path) = siblings.next() else {
            to_do.pop();
            continue;
        };
        let found = fs::symlink_metadata(root.join(&path))?;
        layer
            .put(&path, &found)
            .map_err(|e| io::Error::new(e.kind(), format!("/{}: {e}", path.display())))?;
        if found.is_dir() {
            to_do.push(names(root, &path)?);
        }
    }
    let mut counted = layer.archive.into_inner()?;
    counted.flush()?;
    Ok(counted.bytes)
}

/// The paths in a directory, sorted.
fn names(root: &Path, directory: &Path) -> io::Result<std::vec::IntoIter<PathBuf>> {
    let entries = fs::read_dir(root.join(directory))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    let paths: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
    Ok(paths.into_iter())
}

struct Layer<'a, W: Write> {
    root: &'a Path,
    archive: tar::Builder<Counted<W>>,
    /// The first name of each inode that has several.
    links: HashMap<u64, PathBuf>,
    epoch: u64,
}

impl<W: Write> Layer<'_, W> {
    fn put(&mut self, path: &Path, found: &Metadata) -> io::Result<()> {
        let kind = found.file_type();
        if kind.is_socket() {
            // It is nothing without the process that listened.
            return Ok(());
        }
        let mut header = Header::new_ustar();
        header.set_mode(found.mode() & 0o7777);
        header.set_uid(found.uid().into());
        header.set_gid(found.gid().into());
        // Before 1970 is 1970.
        let mtime = u64::try_from(found.mtime()).unwrap_or(0);
        header.set_mtime(mtime.min(self.epoch));
        header.set_size(0);
        // All whiteouts may be one inode.
        let is_whiteout = kind.is_char_device() && found.rdev() == 0;
        if !kind.is_dir() && !is_whiteout && found.nlink() > 1 {
            if let Some(first) = self.links.get(&found.ino()) {
                let first = first.clone();
                header.set_entry_type(EntryType::Link);
                return self.append(header, path, Some(first.as_os_str()), Vec::new(), None);
            }
            self.links.insert(found.ino(), path.to_owned());
        }
        let xattrs = self.xattrs(path)?;
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(found.len());
            let content = File::open(self.root.join(path))?;
            return self.append(header, path, None, xattrs, Some(content));
        }
        let mut target = None;
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            target = Some(fs::read_link(self.root.join(path))?);
        } else if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
        } else {
            header.set_entry_type(match kind.is_char_device() {
                true => EntryType::Char,
                false => EntryType::Block,
            });
            let device = found.rdev();
            header.set_device_major(rustix::fs::major(device))?;
            header.set_device_minor(rustix::fs::minor(device))?;
        }
        let target = target.as_ref().map(|target| target.as_os_str());
        self.append(header, path, target, xattrs, None)
    }

    /// Writes a member. What its header cannot hold goes into pax records before it.
    fn append(
        &mut self,
        mut header: Header,
        path: &Path,
        link: Option<&OsStr>,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        content: Option<File>,
    ) -> io::Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let named = [
            ("path", NAME, Some(path.as_os_str())),
            ("linkpath", LINK, link),
        ];
        for (key, place, name) in named {
            let Some(name) = name.map(OsStr::as_bytes) else {
                continue;
            };
            if name.len() > place.len() {
                records.push((key.to_owned(), name.to_vec()));
            }
            let fits = &name[..name.len().min(place.len())];
            header.as_mut_bytes()[place.start..place.start + fits.len()].copy_from_slice(fits);
        }
        for (name, value) in xattrs {
            let name = String::from_utf8(name).map_err(io::Error::other)?;
            records.push((format!("SCHILY.xattr.{name}"), value));
        }
        header.set_cksum();
        let records: Vec<(&str, &[u8])> = records
            .iter()
            .map(|(key, value)| (&key[..], &value[..]))
            .collect();
        if !records.is_empty() {
            self.archive.append_pax_extensions(records)?;
        }
        match content {
            Some(file) => self.archive.append(&header, file.take(header.size()?)),
            None => self.archive.append(&header, io::empty()),
        }
    }

    /// The extended attributes, sorted, without those of overlayfs that say nothing about the layer.
    fn xattrs(&self, path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let place = self.root.join(path);
        let mut list = vec![0; MAX_XATTR];
        let length = match rustix::fs::llistxattr(&place, &mut list[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::OPNOTSUPP) => 0,
            Err(e) => return Err(e.into()),
        };
        let mut names: Vec<&[u8]> = list[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .filter(|name| !name.starts_with(OVERLAY) || *name == OPAQUE)
            .collect();
        names.sort();
        let mut value = vec![0; if names.is_empty() { 0 } else { MAX_XATTR }];
        let value_of = |name: &[u8]| {
            let length = rustix::fs::lgetxattr(&place, OsStr::from_bytes(name), &mut value[..])?;
            Ok((name.to_vec(), value[..length].to_vec()))
        };
        names.into_iter().map(value_of).collect()
    }
}

/// Counts what is written.
struct Counted<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use smol_rootfs::{DirOptions, Ignore, Inode, Modes, Node, Owner, Tree};

    use super::*;

    const EPOCH: u64 = 1_000_000_000;

    /// What a command may do to a root file system.
    const CHANGES: &str = r#"
        echo new > new; mkdir -p deep/er; echo x > deep/er/file
        echo more >> changed; chmod 4711 changed-mode; chown 7:8 changed-owner
        rm gone; rm -r gone-dir; rm -r replaced; mkdir replaced; echo y > replaced/other
        rm -r dir-to-file; echo z > dir-to-file; rm file-to-dir; mkdir file-to-dir
        rm link-to-dir; mkdir link-to-dir; echo in > link-to-dir/in
        rm back; echo back > back
        ln new new-link; ln -s /abs/./target link; ln -s ./x/../y relative; mkfifo pipe
        mknod device c 1 3
        touch -d @2000000000 young; touch -d @500000000 old
        long=$(printf 'n%.0s' $(seq 120)); mkdir $long; echo l > $long/$long
        ln -s $long$long to-long; ln $long/$long linked-long
        printf x > "$(printf 'odd\377\n name')"; mkdir mode-000; chmod 000 mode-000
        chmod 0711 .
    "#;

    fn tree(folder: &Path) -> Tree {
        let options = DirOptions {
            owner: Owner::Keep,
            modes: Modes::Keep,
            ignore: Ignore::default(),
        };
        let mut tree = Tree::new();
        tree.apply_dir(folder, "", &options).unwrap();
        tree
    }

    fn listing(tree: &Tree) -> Vec<String> {
        let mut first = HashMap::new();
        let of = |(path, id, inode): (Vec<u8>, _, &Inode)| {
            let node = match &inode.node {
                Node::Directory(_) => "directory".to_owned(),
                Node::File(data) => {
                    let mut content = Vec::new();
                    data.copy_to(&mut content).unwrap();
                    format!("file {}", content.escape_ascii())
                }
                other => format!("{other:?}"),
            };
            let meta = &inode.meta;
            let first = first.entry(id).or_insert_with(|| path.clone());
            let (path, first) = (path.escape_ascii(), first.escape_ascii());
            let owner = (meta.mode, meta.uid, meta.gid, &meta.xattrs);
            format!("{path} = {first}: {owner:?} {node}")
        };
        tree.walk().map(of).collect()
    }

    fn sh(script: &str, folder: &Path) {
        let shell = Command::new("unshare")
            .args(["--mount", "sh", "-ec", script])
            .current_dir(folder)
            .status();
        assert!(shell.unwrap().success(), "{script}");
    }

    /// The layer of `CHANGES`, as the kernel leaves them in an overlay over the folder `lower`; `merged`
    /// is a copy of what the overlay shows.
    fn overlay(scratch: &Path) -> Vec<u8> {
        let lower = r#"
            mkdir lower upper work over merged
            cd lower
            for name in changed changed-mode changed-owner gone file-to-dir back kept; do
                echo $name > $name
            done
            mkdir gone-dir replaced dir-to-file kept-dir
            touch gone-dir/a replaced/a dir-to-file/a kept-dir/a
            ln -s kept-dir link-to-dir
        "#;
        sh(lower, scratch);
        let changes = format!(
            "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work over\n\
             (cd over\n{CHANGES})\ncp -a over/. merged"
        );
        sh(&changes, scratch);
        for folder in ["upper", "merged"] {
            let file = scratch.join(folder).join("new");
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(file, "trusted.colour", b"b\nue", flags).unwrap();
        }
        let mut layer = Vec::new();
        let length = write(&scratch.join("upper"), &mut layer, EPOCH).unwrap();
        assert_eq!(length, layer.len() as u64);
        layer
    }

    #[test]
    fn what_was_written_to_an_overlay_makes_the_same_tree_again() {
        if !rustix::process::geteuid().is_root() {
            return smol_testing::left_out("needs root, to mount an overlay");
        }
        // A file system that can be the upper one.
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let layer = overlay(scratch.path());
        let file = scratch.path().join("layer.tar");
        fs::write(&file, &layer).unwrap();
        let mut changed = tree(&scratch.path().join("lower"));
        changed.apply_overlay(&file, &[]).unwrap();
        let merged = tree(&scratch.path().join("merged"));
        assert_eq!(listing(&changed), listing(&merged));
        let time = |name: &str| {
            let id = changed.lookup(name).unwrap().unwrap();
            changed.inode(id).meta.mtime
        };
        assert_eq!(time("young"), Some(EPOCH));
        assert_eq!(time("old"), Some(500_000_000));
        let mut without = tree(&scratch.path().join("lower"));
        without.apply_overlay(&file, &["deep"]).unwrap();
        assert!(without.lookup("deep").unwrap().is_none());
        assert!(without.lookup("changed-mode").unwrap().is_some());
    }
}
