//! The Debian packages that building and testing need.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// A program, or an absolute path, and the package that brings it.
type Need = (&'static str, &'static str);

/// To build kernels, root file systems and machines, and to run them anywhere.
const BUILD: &[Need] = &[
    ("/usr/include/libelf.h", "libelf-dev"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("bc", "bc"),
    ("bison", "bison"),
    ("flex", "flex"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("mmdebstrap", "mmdebstrap"),
    ("patch", "patch"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
];

/// To look at what was built with other people's eyes, and to make system calls fail.
const TEST: &[Need] = &[
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("dnsmasq", "dnsmasq-base"),
    ("docker-registry", "docker-registry"),
    ("fsck.erofs", "erofs-utils"),
    ("gosu", "gosu"),
    ("ip", "iproute2"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("skopeo", "skopeo"),
    ("strace", "strace"),
    ("tinyproxy", "tinyproxy-bin"),
    ("umoci", "umoci"),
];

/// To measure the network of a guest, and what others do.
const BENCH: &[Need] = &[
    ("dnsmasq", "dnsmasq-base"),
    ("ip", "iproute2"),
    ("pasta", "passt"),
    ("slirp4netns", "slirp4netns"),
    ("tinyproxy", "tinyproxy-bin"),
];

/// To build libFuzzer.
const FUZZ: &[Need] = &[("c++", "g++")];

/// What a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Building and running machines.
    Build,
    /// The tests as well.
    Test,
    /// Measuring.
    Bench,
    /// Fuzzing alone.
    Fuzz,
}

/// Installs what is missing.
///
/// # Errors
/// With the command that installs it, for those who are not root; or when that command fails.
pub fn install(purpose: For) -> Result<()> {
    let needs = match purpose {
        For::Build => [BUILD, &[]],
        For::Test => [BUILD, TEST],
        For::Bench => [BUILD, BENCH],
        For::Fuzz => [FUZZ, &[]],
    };
    let missing: Vec<&str> = needs
        .into_iter()
        .flatten()
        .filter(|(need, _)| !is_here(need))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_here("apt-get") {
        bail!("these are missing, by the names of Debian's packages: {list}");
    }
    if !is_root()? {
        bail!("packages are missing; install them with\n\n    sudo apt-get install {list}\n");
    }
    println!("installing {list}");
    let apt = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .arg("--quiet=2");
        command
    };
    shell::run(apt().arg("update"))?;
    shell::run(
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing),
    )
}

/// Looks where root's programs are, too: a user's PATH may lack that.
fn is_here(need: &str) -> bool {
    if need.starts_with('/') {
        return Path::new(need).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .into_iter()
        .any(|folder| folder.join(need).is_file())
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::metadata("/proc/self").context("cannot look at /proc/self")?;
    Ok(own.uid() == 0)
}
