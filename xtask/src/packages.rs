//! Debian packages that building, running and testing need.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::steps;

/// A program or file by which an installed package is recognised.
type Needed = (&'static str, &'static str);

/// What building a machine from source takes.
const BUILD: &[Needed] = &[
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("gcc", "/usr/bin/gcc"),
    ("make", "/usr/bin/make"),
    ("flex", "/usr/bin/flex"),
    ("bison", "/usr/bin/bison"),
    ("bc", "/usr/bin/bc"),
    ("patch", "/usr/bin/patch"),
    ("xz-utils", "/usr/bin/xz"),
    ("cpio", "/usr/bin/cpio"),
    ("libelf-dev", "/usr/include/libelf.h"),
    ("libc6-dev", "/usr/include/stdio.h"),
];

/// What the tests use beside that.
const TEST: &[Needed] = &[
    ("busybox-static", "/usr/share/doc/busybox-static"),
    ("erofs-utils", "/usr/bin/fsck.erofs"),
    ("skopeo", "/usr/bin/skopeo"),
    ("openssl", "/usr/bin/openssl"),
];

/// Makes sure that machines can be built.
///
/// # Errors
/// As [`install`].
pub fn for_building() -> Result<()> {
    install(BUILD)
}

/// Makes sure that the tests can run.
///
/// # Errors
/// As [`install`].
pub fn for_testing() -> Result<()> {
    install(&[BUILD, TEST].concat())
}

/// Installs what is missing if we are root; otherwise the error is the command that does.
fn install(needed: &[Needed]) -> Result<()> {
    let missing: Vec<_> = needed
        .iter()
        .filter(|(_, proof)| !Path::new(proof).exists())
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !steps::is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "packages are missing; install them with\n    sudo apt-get install --no-install-recommends {list}"
        );
    }
    println!("installing {list}");
    let apt = |args: &[&str]| {
        steps::run(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-qq", "-y"])
                .args(args),
        )
    };
    apt(&["update"])?;
    apt(&[&["install", "--no-install-recommends"][..], &missing].concat())
}
