//! Images whose members have all that an inode can have: modes, owners, devices, attributes, links.

use tar::{Builder, EntryType, Header};

use crate::common::{am_root, assert_same, have};
use crate::layers::by_both;

/// A layer of members that have all that an inode can have.
#[derive(Default)]
struct Full(Vec<u8>);

impl Full {
    fn add(
        mut self,
        name: &str,
        kind: EntryType,
        mode: u32,
        owner: (u64, u64),
        rest: Rest,
    ) -> Self {
        let mut tar = Builder::new(Vec::new());
        if !rest.xattrs.is_empty() {
            let records = rest
                .xattrs
                .iter()
                .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value));
            let records: Vec<_> = records.collect();
            let records = records.iter().map(|(name, value)| (name.as_str(), *value));
            tar.append_pax_extensions(records).unwrap();
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1000);
        header.set_size(rest.content.len() as u64);
        if let Some((major, minor)) = rest.device {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
        match rest.link {
            "" => tar.append_data(&mut header, name, rest.content).unwrap(),
            link => tar.append_link(&mut header, name, link).unwrap(),
        }
        let bytes = tar.into_inner().unwrap();
        self.0.extend(&bytes[..bytes.len() - 1024]);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// What few members have.
#[derive(Default)]
struct Rest {
    content: &'static [u8],
    link: &'static str,
    device: Option<(u32, u32)>,
    xattrs: &'static [(&'static str, &'static [u8])],
}

fn content(content: &'static [u8]) -> Rest {
    Rest {
        content,
        ..Rest::default()
    }
}

fn link(link: &'static str) -> Rest {
    Rest {
        link,
        ..Rest::default()
    }
}

fn device(major: u32, minor: u32) -> Rest {
    let device = Some((major, minor));
    Rest {
        device,
        ..Rest::default()
    }
}

/// A version 2 capability, CAP_NET_RAW, effective (linux/capability.h, struct vfs_cap_data).
const CAPABILITY: &[(&str, &[u8])] = &[
    (
        "security.capability",
        b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ),
    ("user.note", b"of the lowest\nlayer"),
];

/// Three layers: all kinds of files with modes, owners and attributes; changes of each of them; and changes of
/// these.
fn full_image() -> Vec<Vec<u8>> {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    const ROOT: (u64, u64) = (0, 0);
    let capable = |content| Rest {
        content,
        xattrs: CAPABILITY,
        ..Rest::default()
    };
    let none = Rest::default;
    let long = "a-long-name-of-a-folder/".repeat(9);
    let lowest = Full::default()
        .add("bin", Directory, 0o755, ROOT, none())
        .add("bin/su", Regular, 0o4755, ROOT, content(b"su"))
        .add("bin/ping", Regular, 0o755, ROOT, capable(b"ping"))
        .add("bin/ping6", Link, 0o755, ROOT, link("bin/ping"))
        .add("bin/bare", Regular, 0o755, ROOT, capable(b"bare"))
        .add(
            "secret",
            Regular,
            0,
            (1000, 1000),
            content(b"nobody reads it"),
        )
        .add("closed", Directory, 0, (1000, 100), none())
        .add("closed/in", Regular, 0o600, (1000, 100), content(b"in"))
        .add("shared", Directory, 0o2770, (70_000, 4_000_000_000), none())
        .add("tmp", Directory, 0o1777, ROOT, none())
        .add("dev/null", Char, 0o666, ROOT, device(1, 3))
        .add("dev/disk", Block, 0o660, (0, 6), device(259, 70_000))
        .add("dev/pipe", Fifo, 0o622, (1, 2), none())
        .add("dev/file", Char, 0o600, ROOT, device(5, 1))
        .add("hollow", Symlink, 0o777, (5, 6), link("/nowhere/at all"))
        .add(
            &format!("{long}file"),
            Regular,
            0o640,
            ROOT,
            content(b"deep"),
        )
        .add("removed/a/b", Regular, 0o644, ROOT, content(b"gone"))
        .add("emptied/old", Regular, 0o644, ROOT, content(b"gone"));
    let middle = Full::default()
        // The other name keeps what it has.
        .add("bin/ping6", Regular, 0o700, (7, 7), content(b"changed"))
        .add("bin/bare", Regular, 0o755, ROOT, content(b"without a capability"))
        .add("bin/also", Link, 0o755, ROOT, link("bin/ping"))
        .add("closed", Directory, 0o500, (2, 2), none())
        .add("tmp", Directory, 0o700, (3, 3), none())
        .add("dev/.wh.disk", Regular, 0, ROOT, none())
        .add("dev/file", Regular, 0o600, ROOT, content(b"no device"))
        .add("dev/null", Char, 0o644, (8, 8), device(1, 5))
        .add("hollow", Directory, 0o711, ROOT, none())
        .add(".wh.removed", Regular, 0, ROOT, none())
        .add("emptied", Directory, 0o755, ROOT, none())
        .add("emptied/.wh..wh..opq", Regular, 0, ROOT, none())
        .add("emptied/new", Regular, 0o4711, (9, 9), capable(b"new"));
    let highest = Full::default()
        .add("dev/disk", Fifo, 0o600, ROOT, none())
        .add("removed", Directory, 0o1700, (4, 4), none())
        .add("removed/a", Symlink, 0o777, ROOT, link("b"))
        .add("bin/.wh.ping", Regular, 0, ROOT, none())
        .add("emptied/twice", Link, 0o644, ROOT, link("emptied/new"))
        .add("secret", Regular, 0o7777, (0, 1), content(b"all bits"));
    [lowest, middle, highest].map(Full::end).to_vec()
}

#[test]
fn umoci_unpacks_modes_owners_devices_and_attributes_to_the_same_tree() {
    if !have("umoci") || !am_root() {
        return;
    }
    let [ours, theirs] = by_both(&full_image());
    assert_same(&ours, &theirs);
    for line in [
        "    security.capability=",
        "bin/also 755 0:0 file 4",
        "dev/null 644 8:8 char 1:5",
        "secret 7777 0:1 file 8",
        " = emptied/new",
    ] {
        assert!(ours.contains(line), "{line:?} is not in {ours}");
    }
}
