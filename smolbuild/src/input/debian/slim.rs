//! `[rootfs] slim`: an image with the packages that a service needs, and without the others.
//!
//! All packages are installed, with their scripts; then the files of those that are not needed
//! (`needed.rs`) are taken out of the tree.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;
use smol_cli::{ExitKind, Failure};
use smol_rootfs::{FileData, Inode, Meta, Node, Tree};

use super::needed::{DATABASE, Files, Graph, needed};
use super::packages::Installed;

/// Files for interactive shells, desktops and debuggers, of whatever package.
const GONE: &[&str] = &[
    "usr/share/applications",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc-base",
    "usr/share/fish",
    "usr/share/gdb",
    "usr/share/menu",
    "usr/share/zsh",
];

/// Which packages are installed: stays where the rest of the database goes.
const STATUS: &str = "var/lib/dpkg/status";
/// Where update-alternatives(1) has its links.
const ALTERNATIVES: &str = "etc/alternatives";

/// The converters of iconv(3) that stay of those in [`LIBC`]: glibc's own base set (its file
/// `gconv-modules`; all others are in `gconv-modules-extra.conf`). UTF-8 is in the library itself.
const CONVERTERS: &[&str] = &[
    "ANSI_X3.110.so",
    "CP1252.so",
    "ISO8859-1.so",
    "ISO8859-15.so",
    "UNICODE.so",
    "UTF-16.so",
    "UTF-32.so",
    "UTF-7.so",
];
const LIBC: &str = "libc6";

/// What `slim` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Slim {
    /// Packages that are not in the image, although others depend on them; sorted.
    pub without: Vec<String>,
}

/// Takes everything that `requested` does not need out of `tree`, in which `installed` are installed.
///
/// # Errors
/// A package to leave out is not among them (of kind [`ExitKind::Usage`]); a file cannot be read.
pub fn slim(
    tree: &mut Tree,
    installed: &[Installed],
    requested: &[String],
    slim: &Slim,
) -> Result<()> {
    let absent = |name: &&String| !installed.iter().any(|package| package.name == **name);
    if let Some(name) = slim.without.iter().find(absent) {
        let what = format!("[rootfs] without names {name}, which is not among the packages");
        return Err(Failure::new(ExitKind::Usage, what)
            .hint("remove it there")
            .into());
    }
    let files = Files::read(tree, installed)?;
    let graph = Graph::new(installed, requested, &slim.without);
    let needed = needed(tree, &files, &graph)?;
    remove_packages(tree, &files, &needed)?;
    if !needed.contains("dpkg") {
        remove_database(tree)?;
    }
    if !needed.contains("apt") {
        // mmdebstrap makes them.
        for path in ["etc/apt", "var/cache/apt", "var/lib/apt", "var/log/apt"] {
            tree.remove(path)?;
        }
    }
    if !requested.iter().any(|name| name == LIBC) {
        remove_converters(tree, &files)?;
    }
    write_status(tree, installed, &needed)?;
    for path in GONE {
        tree.remove(path)?;
    }
    remove_alternatives(tree)?;
    remove_run_levels(tree)
}

/// Removes the files of all packages but `needed`, and the folders that are empty then.
fn remove_packages(tree: &mut Tree, files: &Files, needed: &BTreeSet<&str>) -> Result<()> {
    let stays = files.of.iter().filter(|(name, _)| needed.contains(*name));
    let stays: BTreeSet<_> = stays.flat_map(|(_, paths)| paths).collect();
    let goes = files.of.iter().filter(|(name, _)| !needed.contains(*name));
    let goes: BTreeSet<_> = goes
        .flat_map(|(_, paths)| paths)
        // Nor what the root has: links to where it is now.
        .filter(|path| !stays.contains(path) && path.contains('/'))
        .collect();
    // What is in a folder comes before the folder.
    for path in goes.into_iter().rev() {
        let Some(id) = tree.lookup(path)? else {
            continue;
        };
        // Bytecode that Python has made of what is gone now is in no list.
        let made = |name: &[u8]| name == b"__pycache__";
        let removed = match &tree.inode(id).node {
            Node::Directory(names) => names.keys().all(|name| made(name)),
            _ => true,
        };
        if removed {
            tree.remove(path)?;
        }
    }
    for (name, _) in files.of.iter().filter(|(name, _)| !needed.contains(*name)) {
        remove_records(tree, name)?;
    }
    Ok(())
}

/// Removes what dpkg has noted of a package: `NAME.list`, `NAME:ARCH.postinst` and so on.
fn remove_records(tree: &mut Tree, package: &str) -> Result<()> {
    let folder = format!("{DATABASE}/info");
    for name in names_in(tree, &folder)? {
        let rest = name.strip_prefix(package).unwrap_or_default();
        // No package has a dot right after another's name and a known ending.
        let is_record = match rest.strip_prefix(':') {
            Some(rest) => rest.split_once('.').is_some(),
            None => rest
                .strip_prefix('.')
                .is_some_and(|kind| !kind.contains('.')),
        };
        if is_record {
            tree.remove(format!("{folder}/{name}"))?;
        }
    }
    Ok(())
}

fn remove_database(tree: &mut Tree) -> Result<()> {
    for name in names_in(tree, DATABASE)? {
        if format!("{DATABASE}/{name}") != STATUS {
            tree.remove(format!("{DATABASE}/{name}"))?;
        }
    }
    tree.remove("etc/dpkg")?;
    Ok(())
}

fn remove_converters(tree: &mut Tree, files: &Files) -> Result<()> {
    for path in files.of.get(LIBC).into_iter().flatten() {
        let Some((folder, name)) = path.rsplit_once('/') else {
            continue;
        };
        if folder.ends_with("/gconv") && name.ends_with(".so") && !CONVERTERS.contains(&name) {
            tree.remove(path)?;
        }
    }
    Ok(())
}

/// Removes the links of System V's run levels to scripts that are gone.
fn remove_run_levels(tree: &mut Tree) -> Result<()> {
    for level in ["0", "1", "2", "3", "4", "5", "6", "S"] {
        let folder = format!("etc/rc{level}.d");
        for name in names_in(tree, &folder)? {
            let path = format!("{folder}/{name}");
            if let Some(id) = tree.lookup(&path)?
                && let Node::Symlink(target) = &tree.inode(id).node
                && let Some(script) = target.strip_prefix(b"../")
                && tree.lookup([b"etc/", script].concat())?.is_none()
            {
                tree.remove(&path)?;
            }
        }
    }
    Ok(())
}

/// Leaves in the status file what is still there.
fn write_status(tree: &mut Tree, installed: &[Installed], needed: &BTreeSet<&str>) -> Result<()> {
    let Some(id) = tree.lookup(STATUS)? else {
        return Ok(());
    };
    let stays = installed
        .iter()
        .filter(|package| needed.contains(package.name.as_str()));
    let text: String = stays
        .map(|package| format!("{}\n\n", package.paragraph.trim_matches('\n')))
        .collect();
    let meta = Meta {
        mtime: None,
        ..tree.inode(id).meta.clone()
    };
    let node = Node::File(FileData::from(text.into_bytes()));
    tree.insert(STATUS, Inode { meta, node })?;
    Ok(())
}

/// Removes the alternatives that lead nowhere now, and the links to them.
fn remove_alternatives(tree: &mut Tree) -> Result<()> {
    let mut dead = BTreeSet::new();
    for name in names_in(tree, ALTERNATIVES)? {
        let path = format!("{ALTERNATIVES}/{name}");
        if let Some(id) = tree.lookup(&path)?
            && let Node::Symlink(target) = &tree.inode(id).node
            && target.starts_with(b"/")
            && tree.lookup(target)?.is_none()
        {
            dead.insert(path);
        }
    }
    let leads_there = |node: &Node| match node {
        Node::Symlink(target) => {
            let target = String::from_utf8_lossy(target);
            dead.contains(target.trim_start_matches('/'))
        }
        _ => false,
    };
    let links: Vec<_> = tree
        .walk()
        .filter(|(_, _, inode)| leads_there(&inode.node))
        .map(|(path, ..)| path)
        .collect();
    for path in links {
        tree.remove(path)?;
    }
    for path in &dead {
        tree.remove(path)?;
        if let Some((_, name)) = path.rsplit_once('/') {
            tree.remove(format!("{DATABASE}/alternatives/{name}"))?;
        }
    }
    Ok(())
}

fn names_in(tree: &Tree, folder: &str) -> Result<Vec<String>> {
    let Some(id) = tree.lookup(folder)? else {
        return Ok(Vec::new());
    };
    Ok(match &tree.inode(id).node {
        Node::Directory(names) => names
            .keys()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect(),
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::packages;
    use super::*;

    /// A system of these packages: name, fields of its paragraph, and paths (a program is a script
    /// if it says so after a blank, a folder ends with `/`).
    fn system(packages: &[(&str, &str, &[&str])]) -> (Tree, String) {
        let (mut tree, mut status) = (Tree::new(), String::new());
        tree.mkdir("usr/bin", 0o755).unwrap();
        tree.symlink("bin", "usr/bin").unwrap();
        for (name, fields, paths) in packages {
            status += &format!(
                "Package: {name}\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n{fields}\n\n"
            );
            let mut list = "/.\n".to_owned();
            for path in *paths {
                let (path, line) = path.split_once(' ').unwrap_or((path, ""));
                list += &format!("{}\n", path.trim_end_matches('/'));
                match path.ends_with('/') {
                    true => tree.mkdir(path, 0o755).map(drop).unwrap(),
                    false => drop(tree.file(path, 0o755, line.as_bytes().to_vec()).unwrap()),
                }
            }
            let list_path = format!("var/lib/dpkg/info/{name}.list");
            tree.file(&list_path, 0o644, list.into_bytes()).unwrap();
            let script = format!("var/lib/dpkg/info/{name}.postinst");
            tree.file(&script, 0o755, Vec::new()).unwrap();
        }
        tree.file(STATUS, 0o644, status.clone().into_bytes())
            .unwrap();
        (tree, status)
    }

    const SYSTEM: &[(&str, &str, &[&str])] = &[
        (
            "libc6",
            "Depends: libgcc-s1",
            &["/usr/", "/usr/lib/", "/usr/lib/libc.so.6"],
        ),
        (
            "libgcc-s1",
            "Depends: libc6",
            &["/usr/lib/", "/usr/lib/libgcc_s.so.1"],
        ),
        (
            "dash",
            "Essential: yes\nDepends: dpkg (>= 1.19)",
            &["/bin/", "/bin/sh"],
        ),
        (
            "dpkg",
            "Essential: yes",
            &["/usr/bin/dpkg", "/etc/dpkg/", "/etc/dpkg/origins/"],
        ),
        ("perl-base", "Essential: yes", &["/usr/bin/perl"]),
        (
            "util-linux",
            "Essential: yes",
            &["/usr/bin/", "/usr/bin/flock", "/usr/share/shared"],
        ),
        (
            "server",
            "Depends: libevent (>= 2), adduser, a-tool | another-tool",
            &[
                "/usr/bin/server",
                "/usr/share/shared",
                "/usr/share/zsh/_server",
            ],
        ),
        (
            "libevent-2.1",
            "Provides: libevent (= 2.1)",
            &["/usr/lib/libevent.so"],
        ),
        ("another-tool", "", &["/usr/bin/tool #!/usr/bin/env perl"]),
        (
            "adduser",
            "Depends: passwd",
            &["/usr/sbin/adduser #!/usr/bin/perl"],
        ),
        (
            "passwd",
            "",
            &["/usr/sbin/useradd", "/etc/default/", "/etc/default/useradd"],
        ),
        ("helper.x", "", &["/usr/bin/helper #!/usr/bin/perl"]),
    ];

    fn names(tree: &Tree) -> BTreeSet<String> {
        tree.walk()
            .map(|(path, ..)| String::from_utf8(path).unwrap())
            .collect()
    }

    fn slimmed(requested: &[&str], without: &[&str]) -> Result<Tree> {
        let (mut tree, status) = system(SYSTEM);
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|word| word.to_string())
                .collect::<Vec<_>>()
        };
        let asked = Slim {
            without: words(without),
        };
        let installed = packages::installed(&status);
        slim(&mut tree, &installed, &words(requested), &asked)?;
        Ok(tree)
    }

    fn assert_has(tree: &Tree, present: &[&str], absent: &[&str]) {
        let names = names(tree);
        for path in present {
            assert!(names.contains(*path), "{path} is gone");
        }
        for path in absent {
            assert!(!names.contains(*path), "{path} is still there");
        }
    }

    #[test]
    fn what_is_asked_for_and_what_it_depends_on_stays() {
        let tree = slimmed(&["server"], &[]).unwrap();
        let present = [
            "bin",
            "usr/bin/sh",
            "usr/bin/server",
            "usr/bin/tool",
            // As the interpreter of the tool.
            "usr/bin/perl",
            "usr/lib/libc.so.6",
            "usr/lib/libevent.so",
            "usr/lib/libgcc_s.so.1",
            "usr/share/shared",
            "var/lib/dpkg/status",
        ];
        let absent = [
            "etc/default",
            "etc/dpkg",
            "usr/bin/dpkg",
            "usr/bin/flock",
            "usr/bin/helper",
            "usr/sbin/adduser",
            "usr/sbin/useradd",
            "usr/share/zsh",
            "var/lib/dpkg/info",
        ];
        assert_has(&tree, &present, &absent);
    }

    #[test]
    fn the_status_file_lists_what_is_left_as_dpkg_wrote_it() {
        let tree = slimmed(&["server"], &["another-tool"]).unwrap();
        let status = tree.read(STATUS, 1 << 20).unwrap().unwrap();
        let status = String::from_utf8(status).unwrap();
        let left: Vec<_> = packages::installed(&status)
            .into_iter()
            .map(|package| package.name)
            .collect();
        assert_eq!(
            left,
            ["dash", "libc6", "libevent-2.1", "libgcc-s1", "server"]
        );
        let whole = system(SYSTEM).1;
        for paragraph in status.trim_end().split("\n\n") {
            assert!(whole.contains(paragraph), "{paragraph}");
        }
        // Nothing else ran on Perl.
        assert_has(&tree, &[], &["usr/bin/perl", "usr/bin/tool"]);
    }

    #[test]
    fn a_package_that_is_named_stays_with_all_that_it_needs_whatever_it_is() {
        let tree = slimmed(&["dpkg", "adduser"], &[]).unwrap();
        let present = [
            "etc/dpkg/origins",
            "usr/bin/dpkg",
            "usr/bin/perl",
            "usr/sbin/adduser",
            "var/lib/dpkg/info/dpkg.postinst",
            "var/lib/dpkg/info/perl-base.list",
        ];
        let absent = [
            // For the installation of adduser alone.
            "usr/sbin/useradd",
            "usr/bin/server",
            "var/lib/dpkg/info/passwd.list",
            "var/lib/dpkg/info/helper.x.list",
        ];
        assert_has(&tree, &present, &absent);
    }

    #[test]
    fn a_package_to_leave_out_that_is_not_there_is_an_error_that_names_it() {
        let error = slimmed(&["server"], &["perl"]).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        assert!(error.to_string().contains("names perl,"), "{error}");
    }

    #[test]
    fn rare_converters_and_links_to_scripts_that_are_gone_go() {
        let packages: &[(&str, &str, &[&str])] = &[
            (
                "libc6",
                "",
                &[
                    "/usr/lib/x/gconv/",
                    "/usr/lib/x/gconv/UTF-16.so",
                    "/usr/lib/x/gconv/IBM037.so",
                    "/usr/lib/x/gconv/gconv-modules",
                ],
            ),
            ("more", "", &["/usr/lib/x/gconv/BIG5.so"]),
            ("gone", "", &["/etc/init.d/gone"]),
        ];
        let slimmed = |requested: &[&str]| {
            let (mut tree, status) = system(packages);
            for script in ["gone", "kept"] {
                let link = format!("etc/rc2.d/S01{script}");
                tree.symlink(link, format!("../init.d/{script}")).unwrap();
            }
            tree.file("etc/init.d/kept", 0o755, Vec::new()).unwrap();
            let requested: Vec<_> = requested.iter().map(|name| name.to_string()).collect();
            let installed = packages::installed(&status);
            slim(&mut tree, &installed, &requested, &Slim::default()).unwrap();
            tree
        };
        let present = [
            "etc/rc2.d/S01kept",
            "usr/lib/x/gconv/BIG5.so",
            "usr/lib/x/gconv/UTF-16.so",
            "usr/lib/x/gconv/gconv-modules",
        ];
        let absent = ["etc/rc2.d/S01gone"];
        let tree = slimmed(&["more"]);
        assert_has(&tree, &present, &absent);
        assert_has(&tree, &[], &["usr/lib/x/gconv/IBM037.so"]);
        let tree = slimmed(&["more", "libc6"]);
        assert_has(&tree, &present, &absent);
        assert_has(&tree, &["usr/lib/x/gconv/IBM037.so"], &[]);
    }

    #[test]
    fn links_of_alternatives_that_lead_nowhere_go_and_others_stay() {
        let (mut tree, status) = system(SYSTEM);
        for (name, target) in [("flock", "/usr/bin/flock"), ("sh", "/bin/sh")] {
            tree.symlink(format!("etc/alternatives/{name}"), target)
                .unwrap();
            let link = format!("usr/bin/my-{name}");
            tree.symlink(&link, format!("/etc/alternatives/{name}"))
                .unwrap();
        }
        let installed = packages::installed(&status);
        slim(&mut tree, &installed, &[], &Slim::default()).unwrap();
        assert_has(
            &tree,
            &["etc/alternatives/sh", "usr/bin/my-sh"],
            &["etc/alternatives/flock", "usr/bin/my-flock"],
        );
    }
}
