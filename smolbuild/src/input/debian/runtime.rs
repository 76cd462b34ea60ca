//! The directories in /run that a service finds when Debian's init starts it: tmpfiles.d(5) and
//! `RuntimeDirectory=` of a unit (systemd.exec(5)). In a machine of ours the guest makes them from
//! those that the image has.

use anyhow::Result;
use smol_rootfs::{Node, Tree};

/// Largest file read.
const MAX_FILE: u64 = 1 << 20;
/// Where packages and administrators describe directories; the former give way.
const TMPFILES: &[&str] = &["etc/tmpfiles.d", "usr/lib/tmpfiles.d"];
const UNITS: &[&str] = &[
    "etc/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// Makes the directories that are not there yet. What cannot be understood is passed over: systemd is
/// not there to do it, and most services make their directory themselves if they can.
///
/// # Errors
/// A file cannot be read.
pub fn make_directories(tree: &mut Tree) -> Result<()> {
    let users = text(tree, "etc/passwd")?;
    let groups = text(tree, "etc/group")?;
    let mut wanted = Vec::new();
    for (folders, ending, parse) in [
        (TMPFILES, ".conf", tmpfile as fn(&str) -> Vec<Directory>),
        (UNITS, ".service", unit),
    ] {
        for folder in folders {
            for name in files_in(tree, folder, ending)? {
                wanted.extend(parse(&text(tree, &format!("{folder}/{name}"))?));
            }
        }
    }
    for directory in wanted {
        let (Some(user), Some(group)) = (
            id(&users, &directory.user, 2),
            match directory.group.as_str() {
                // The group of the user.
                "" => id(&users, &directory.user, 3),
                group => id(&groups, group, 2),
            },
        ) else {
            continue;
        };
        if tree.lookup(&directory.path)?.is_some() {
            continue;
        }
        let made = tree.mkdir(&directory.path, directory.mode)?;
        let meta = tree.meta_mut(made);
        (meta.uid, meta.gid) = (user, group);
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Directory {
    /// In /run, from the root.
    path: String,
    mode: u32,
    user: String,
    /// Empty: that of the user.
    group: String,
}

/// The directories of a file of tmpfiles.d: `d /run/php 0755 www-data www-data - -`.
fn tmpfile(text: &str) -> Vec<Directory> {
    let directory = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next()?;
        if !matches!(kind.trim_end_matches(['!', '-', '=']), "d" | "D") {
            return None;
        }
        let path = words.next()?;
        let path = path
            .strip_prefix("/var/run/")
            .or_else(|| path.strip_prefix("/run/"))?;
        let mut or_default = |default: &str| match words.next() {
            None | Some("-") => default.to_owned(),
            Some(word) => word.to_owned(),
        };
        let (mode, user, group) = (or_default("0755"), or_default("root"), or_default("root"));
        directory(path, &mode, user, group)
    };
    text.lines().filter_map(directory).collect()
}

/// Those of a unit's `[Service]`: `RuntimeDirectory=redis`.
fn unit(text: &str) -> Vec<Directory> {
    let value = |name: &str| {
        let value = |line: &'_ str| {
            let value = line.strip_prefix(name)?.trim_start().strip_prefix('=')?;
            Some(value.trim().to_owned())
        };
        // The last one counts.
        text.lines()
            .filter_map(value)
            .next_back()
            .unwrap_or_default()
    };
    let or = |value: String, default: &str| match value.as_str() {
        "" => default.to_owned(),
        _ => value,
    };
    let user = or(value("User"), "root");
    let mode = or(value("RuntimeDirectoryMode"), "0755");
    value("RuntimeDirectory")
        .split_ascii_whitespace()
        .filter_map(|path| directory(path, &mode, user.clone(), value("Group")))
        .collect()
}

/// `path` in /run; nothing if it has a specifier (`%i`), is hidden or leads elsewhere.
fn directory(path: &str, mode: &str, user: String, group: String) -> Option<Directory> {
    let path = path.trim_end_matches('/');
    let is_plain = |name: &str| !name.is_empty() && !name.starts_with('.');
    if path.contains(['%', ':', '\\', '"', '\'']) || !path.split('/').all(is_plain) {
        return None;
    }
    let mode = u32::from_str_radix(mode.trim_start_matches(['~', ':']), 8).ok()?;
    Some(Directory {
        path: format!("run/{path}"),
        mode: (mode <= 0o7777).then_some(mode)?,
        user,
        group,
    })
}

/// The number in `column` of the line of `name` in a file like /etc/passwd, or `name` as a number.
fn id(lines: &str, name: &str, column: usize) -> Option<u32> {
    let of = |line: &str| {
        let columns: Vec<_> = line.split(':').collect();
        (columns.first() == Some(&name)).then_some(())?;
        columns.get(column)?.parse().ok()
    };
    lines.lines().find_map(of).or_else(|| name.parse().ok())
}

fn text(tree: &Tree, path: &str) -> Result<String> {
    let bytes = tree.read(path, MAX_FILE)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The names of the files in `folder` with this ending, sorted.
fn files_in(tree: &Tree, folder: &str, ending: &str) -> Result<Vec<String>> {
    let Some(id) = tree.lookup(folder)? else {
        return Ok(Vec::new());
    };
    let Node::Directory(names) = &tree.inode(id).node else {
        return Ok(Vec::new());
    };
    let is_file = |id| matches!(tree.inode(id).node, Node::File(_));
    Ok(names
        .iter()
        .filter(|(_, name)| is_file(name.inode))
        .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
        .filter(|name| name.ends_with(ending))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new();
        for (path, text) in files {
            tree.file(path, 0o644, text.as_bytes().to_vec()).unwrap();
        }
        tree
    }

    /// Mode and owner of each directory in /run.
    fn made(tree: &Tree) -> Vec<String> {
        tree.walk()
            .filter(|(path, ..)| path.starts_with(b"run/"))
            .map(|(path, _, inode)| {
                let (path, meta) = (String::from_utf8(path).unwrap(), &inode.meta);
                format!("{path} {:o} {}:{}", meta.mode & 0o7777, meta.uid, meta.gid)
            })
            .collect()
    }

    const PASSWD: (&str, &str) = (
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nwww-data:x:33:34:www:/var/www:/bin/false\n",
    );
    const GROUP: (&str, &str) = ("etc/group", "root:x:0:\nwww-data:x:33:\nadm:x:4:\n");

    #[test]
    fn directories_are_made_with_mode_and_owner_and_nothing_else_is() {
        let conf = "# d /run/no\n\nd /run/php 0755 www-data www-data - -\nD! /var/run/a/b 2750 - adm\n\
                    d /run/plain\nf /run/file 0644 root root\nd /var/lib/x\nd /run/%b\nd /run/../etc\n\
                    d /run/odd 99999 root\nd /run/nobody 0755 nobody\nd /run/number 700 7 8\n";
        let service = "[Unit]\nDescription=x\n[Service]\nUser=www-data\nRuntimeDirectory=redis x/y\n\
                       RuntimeDirectoryMode=2755\nRuntimeDirectoryPreserve=yes\n";
        let mut tree = tree(&[
            PASSWD,
            GROUP,
            ("usr/lib/tmpfiles.d/php.conf", conf),
            ("usr/lib/tmpfiles.d/other", "d /run/other"),
            ("usr/lib/systemd/system/redis.service", service),
            (
                "usr/lib/systemd/system/at@.service",
                "[Service]\nRuntimeDirectory=%i\n",
            ),
        ]);
        make_directories(&mut tree).unwrap();
        assert_eq!(
            made(&tree),
            [
                "run/a 755 0:0",
                "run/a/b 2750 0:4",
                "run/number 700 7:8",
                "run/php 755 33:33",
                "run/plain 755 0:0",
                "run/redis 2755 33:34",
                "run/x 755 0:0",
                "run/x/y 2755 33:34",
            ]
        );
    }

    #[test]
    fn what_is_there_and_what_the_administrator_says_comes_first() {
        let mut tree = tree(&[
            PASSWD,
            GROUP,
            (
                "usr/lib/tmpfiles.d/a.conf",
                "d /run/a 0700\nd /run/b 0700\n",
            ),
            ("etc/tmpfiles.d/a.conf", "d /run/a 0711\n"),
        ]);
        tree.mkdir("run/b", 0o1777).unwrap();
        make_directories(&mut tree).unwrap();
        assert_eq!(made(&tree), ["run/a 711 0:0", "run/b 1777 0:0"]);
    }
}
