//! Which packages of an installed system a service needs.
//!
//! Needed are those that the Smolfile names, [`BASE`], what these depend on, and what is named by the
//! `#!` line of a program of theirs: scripts may use essential packages without depending on them.
//! Dependencies on [`INSTALLERS`] do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use anyhow::Result;
use smol_rootfs::{Inode, Node, Tree};

use super::packages::Installed;

/// What the package manager knows of packages.
pub const DATABASE: &str = "var/lib/dpkg";

/// Packages that are always needed: what a shell script or a `[[warm]]` command takes for granted.
///
/// Essential packages that are not among them, and so stay only if something needs them: `bsdutils`,
/// `dpkg`, `init-system-helpers`, `login`, `ncurses-bin`, `perl-base`, `util-linux`.
const BASE: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "libc-bin",
    "libc6",
    "mawk",
    "ncurses-base",
    "sed",
    "sysvinit-utils",
    "tar",
];

/// Packages that others depend on for the sake of their installation or removal alone. They are
/// needed only if the Smolfile names them.
const INSTALLERS: &[&str] = &[
    "adduser",
    "apt",
    "cdebconf",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "install-info",
    "lsb-base",
    "passwd",
    "ucf",
    "update-inetd",
    "usr-is-merged",
    "usrmerge",
];

/// Programs whose `#!` line does not count: openssl(1) does the same in C (`openssl rehash`), or they
/// are for its own test certificates.
const NO_PROGRAMS: &[&str] = &["usr/bin/c_rehash", "usr/lib/ssl/misc/"];

/// Where programs are looked up, as in `#!/usr/bin/env NAME`.
const PATH: &[&str] = &["usr/bin", "usr/sbin"];

/// Largest list of a package's files read.
const MAX_LIST: u64 = 64 << 20;
/// Longest `#!` line looked at, as in the kernel (BINPRM_BUF_SIZE).
const MAX_LINE: u64 = 256;

/// Who depends on whom.
pub struct Graph<'a> {
    /// By the name of a package: the packages that it depends on.
    depends: BTreeMap<&'a str, Vec<&'a str>>,
    /// Those that are needed in any case.
    roots: Vec<&'a str>,
    /// Those that are not, whoever depends on them.
    cut: BTreeSet<&'a str>,
}

impl<'a> Graph<'a> {
    pub fn new(installed: &'a [Installed], requested: &[String], without: &'a [String]) -> Self {
        let mut by_name: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for package in installed {
            for name in package.provides().into_iter().chain([package.name.clone()]) {
                by_name.entry(name).or_default().push(&package.name);
            }
        }
        let named = |name: &str| by_name.get(name).into_iter().flatten().copied();
        let depends = installed.iter().map(|package| {
            let depends = package.depends();
            let depends = depends.iter().flat_map(|name| named(name)).collect();
            (package.name.as_str(), depends)
        });
        let requested: Vec<_> = requested.iter().flat_map(|name| named(name)).collect();
        let base = BASE.iter().flat_map(|name| named(name));
        Self {
            depends: depends.collect(),
            cut: INSTALLERS
                .iter()
                .copied()
                .filter(|name| !requested.contains(name))
                .chain(without.iter().map(String::as_str))
                .collect(),
            roots: requested.iter().copied().chain(base).collect(),
        }
    }

    /// Adds `package` and what it depends on to `needed`; returns what is new.
    fn add(&self, package: &'a str, needed: &mut BTreeSet<&'a str>) -> Vec<&'a str> {
        let (mut new, mut open) = (Vec::new(), vec![package]);
        while let Some(package) = open.pop() {
            if self.cut.contains(package) || !needed.insert(package) {
                continue;
            }
            new.push(package);
            open.extend(self.depends.get(package).into_iter().flatten());
        }
        new
    }
}

/// Which files the packages have, by dpkg's lists.
pub struct Files<'a> {
    /// Paths from the root, with the links `/bin` and so on resolved.
    pub of: BTreeMap<&'a str, Vec<String>>,
    owner: BTreeMap<String, &'a str>,
}

impl<'a> Files<'a> {
    pub fn read(tree: &Tree, installed: &'a [Installed]) -> Result<Self> {
        let (mut of, mut owner) = (BTreeMap::new(), BTreeMap::new());
        for package in installed {
            let mut paths = Vec::new();
            for name in [
                package.name.clone(),
                format!("{}:{}", package.name, package.arch),
            ] {
                let list = tree.read(&format!("{DATABASE}/info/{name}.list"), MAX_LIST)?;
                let list = String::from_utf8_lossy(&list.unwrap_or_default()).into_owned();
                for path in list.lines().filter(|path| *path != "/.") {
                    paths.push(resolved(tree, path)?);
                }
            }
            for path in &paths {
                owner.insert(path.clone(), package.name.as_str());
            }
            of.insert(package.name.as_str(), paths);
        }
        Ok(Self { of, owner })
    }
}

/// A path of a list, from the root: `/bin/sh` is `usr/bin/sh` if `/bin` is a link to `usr/bin`.
fn resolved(tree: &Tree, path: &str) -> Result<String> {
    let path = path.trim_start_matches('/');
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    if !rest.is_empty()
        && let Some(id) = tree.lookup(first)?
        && let Node::Symlink(target) = &tree.inode(id).node
    {
        let target = String::from_utf8_lossy(target);
        return Ok(format!("{}/{rest}", target.trim_start_matches('/')));
    }
    Ok(path.to_owned())
}

/// The packages that stay.
pub fn needed<'a>(tree: &Tree, files: &Files<'a>, graph: &Graph<'a>) -> Result<BTreeSet<&'a str>> {
    let mut needed = BTreeSet::new();
    let mut open = graph.roots.clone();
    while let Some(package) = open.pop() {
        for new in graph.add(package, &mut needed) {
            for path in files.of.get(new).into_iter().flatten() {
                open.extend(interpreter(tree, path)?.and_then(|program| {
                    let path = resolved(tree, &program).ok()?;
                    files.owner.get(&path).copied()
                }));
            }
        }
    }
    Ok(needed)
}

/// The path of the interpreter of a program that is a script.
fn interpreter(tree: &Tree, path: &str) -> Result<Option<String>> {
    if NO_PROGRAMS.iter().any(|other| path.starts_with(other)) {
        return Ok(None);
    }
    let Some(id) = tree.lookup(path)? else {
        return Ok(None);
    };
    let Inode { meta, node } = tree.inode(id);
    let Node::File(data) = node else {
        return Ok(None);
    };
    if meta.mode & 0o111 == 0 {
        return Ok(None);
    }
    let mut line = Vec::new();
    data.open()?.take(MAX_LINE).read_to_end(&mut line)?;
    let line = String::from_utf8_lossy(&line);
    let mut words = match line.lines().next().and_then(|line| line.strip_prefix("#!")) {
        Some(line) => line.split_ascii_whitespace(),
        None => return Ok(None),
    };
    match words.next() {
        Some(env) if env.ends_with("/env") => {
            let Some(name) = words.find(|word| !word.starts_with('-') && !word.contains('='))
            else {
                return Ok(None);
            };
            let places = PATH.iter().map(|folder| format!("{folder}/{name}"));
            for place in places {
                if tree.lookup(&place)?.is_some() {
                    return Ok(Some(place));
                }
            }
            Ok(None)
        }
        program => Ok(program.map(str::to_owned)),
    }
}
