//! The Debian package of a release, made by dpkg-deb, which takes the same bytes from the same files:
//! their owner is root, their time is ours.
//!
//! The programs are linked statically, so the package depends on nothing. What they use if it is there
//! is recommended: what `smolbuild doctor` asks for. What compiles a kernel is only suggested, for the
//! package includes the kernel.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};

use super::content::{Content, Entry};
use super::{FOLDERS, write as write_file};
use crate::shell::{self, capture};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const HOMEPAGE: &str = "https://github.com/smol-machines/smol";
const MAINTAINER: &str = "The smol authors <smol-machines@users.noreply.github.com>";
/// An emulated host, root file systems out of Debian packages, and users who are not root.
const RECOMMENDS: &str = "mmdebstrap, qemu-system-x86, uidmap";
/// What compiles a kernel.
const SUGGESTS: &str = "bc, binutils, bison, flex, gcc, libelf-dev, make, patch, xz-utils";
/// Licences (Debian Policy, section 12.5).
const COPYRIGHT: &str = include_str!("copyright");
/// Where the documents go.
const DOC: &str = "usr/share/doc/smol";
/// What lintian would say of things that are meant.
const OVERRIDES: &str = "\
# They are linked statically: one file runs on every distribution, and is the only program of an
# emulated host.
smol: shared-library-lacks-prerequisites [usr/bin/smolbuild]
smol: shared-library-lacks-prerequisites [usr/bin/smolrun]
";

/// Whether there is dpkg-deb.
pub fn possible() -> bool {
    let mut command = Command::new("dpkg-deb");
    let quiet = command.arg("--version").stdout(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Writes `smol_VERSION_ARCH.deb` into the folder `out`; all files have the time `time`.
///
/// # Errors
/// If it cannot be written.
pub fn write(content: &Content, arch: &str, time: u64, out: &Path) -> Result<PathBuf> {
    let arch = debian_arch(arch);
    let mut files = installed(content)?;
    files.extend(documents(content, time)?);
    let control = control(&files, arch);
    let sums = md5sums(&files)?;
    files.insert("DEBIAN/control".into(), text(control));
    files.insert("DEBIAN/md5sums".into(), text(sums));
    let tree = tempfile::tempdir_in(out).context("cannot create a folder in target/dist")?;
    lay_out(&files, time, tree.path())?;
    let deb = out.join(format!("smol_{VERSION}_{arch}.deb"));
    // Several threads would cut what they compress by their number.
    let mut build = Command::new("dpkg-deb");
    build
        .args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"])
        .args([tree.path(), &deb])
        .env("SOURCE_DATE_EPOCH", time.to_string());
    shell::run(&mut build)?;
    Ok(deb)
}

fn debian_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The files of a release but its documents, in their places in a Debian system.
fn installed(content: &Content) -> Result<Content> {
    let mut files = Content::new();
    for (path, Entry { bytes, executable }) in content {
        let (mut path, mut bytes) = (path.clone(), bytes.clone());
        if let Some(name) = path.strip_prefix("share/zsh/site-functions/") {
            path = format!("share/zsh/vendor-completions/{name}");
        } else if path.starts_with("share/man/") {
            path += ".gz";
            bytes = gzip(&bytes)?;
        } else if FOLDERS
            .iter()
            .any(|folder| path.starts_with(&format!("{folder}/")))
        {
            path = format!("share/doc/smol/{path}");
        } else if !path.contains('/') {
            continue;
        }
        let executable = *executable;
        files.insert(format!("usr/{path}"), Entry { bytes, executable });
    }
    Ok(files)
}

/// What every Debian package has, and the README.
fn documents(content: &Content, time: u64) -> Result<Content> {
    let document = |name: &str| {
        let entry = content.get(name);
        let entry = entry.with_context(|| format!("a release has a {name}"))?;
        Ok::<_, anyhow::Error>(&entry.bytes[..])
    };
    let date = capture(Command::new("date").args(["-u", "-R", "-d", &format!("@{time}")]))?;
    let changelog = format!(
        "smol ({VERSION}) unstable; urgency=medium\n\n  * See {HOMEPAGE}/blob/main/CHANGELOG.md\n\n -- {MAINTAINER}  {}\n",
        date.trim()
    );
    Ok(BTreeMap::from([
        (format!("{DOC}/README.md"), raw(document("README.md")?)),
        (
            format!("{DOC}/CHANGELOG.md.gz"),
            raw(&gzip(document("CHANGELOG.md")?)?),
        ),
        (
            format!("{DOC}/changelog.gz"),
            raw(&gzip(changelog.as_bytes())?),
        ),
        (format!("{DOC}/copyright"), text(COPYRIGHT.to_owned())),
        (
            "usr/share/lintian/overrides/smol".to_owned(),
            text(OVERRIDES.into()),
        ),
    ]))
}

fn control(files: &Content, arch: &str) -> String {
    // In KiB, each file rounded up (deb-substvars(5)).
    let sizes = files
        .values()
        .map(|entry| (entry.bytes.len() as u64).div_ceil(1024));
    let size: u64 = sizes.sum();
    format!(
        "\
Package: smol
Version: {VERSION}
Architecture: {arch}
Maintainer: {MAINTAINER}
Installed-Size: {size}
Recommends: {RECOMMENDS}
Suggests: {SUGGESTS}
Section: admin
Priority: optional
Homepage: {HOMEPAGE}
Description: frozen Linux machines in one reproducible, signed file
 smolbuild turns a Smolfile into a running Linux machine, freezes it at the
 moment its service is ready, and writes one signed file: a .smolmachine.
 smolrun verifies that file and resumes the machine from its snapshot, memory
 and all, as often as one likes.
 .
 Both need KVM, or QEMU, in which they run a KVM host of their own. The kernel
 of the machines is in this package.
"
    )
}

/// Digests of the files, as dpkg keeps them.
fn md5sums(files: &Content) -> Result<String> {
    let mut sums = String::new();
    for (path, entry) in files {
        let mut md5sum = Command::new("md5sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run md5sum")?;
        // Dropped at the end of the statement, which ends the input.
        let stdin = md5sum.stdin.take().context("md5sum has an input")?;
        { stdin }
            .write_all(&entry.bytes)
            .context("cannot write to md5sum")?;
        let output = md5sum.wait_with_output().context("md5sum does not end")?;
        let digest = String::from_utf8_lossy(&output.stdout);
        let digest = digest
            .split_whitespace()
            .next()
            .context("md5sum said nothing")?;
        sums += &format!("{digest}  {path}\n");
    }
    Ok(sums)
}

/// Writes the files into the folder `tree`, with the modes of a package, and the time `time` on all.
fn lay_out(files: &Content, time: u64, tree: &Path) -> Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time);
    let finish = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        File::open(path)?.set_modified(time)
    };
    let mut folders = vec![tree.to_owned()];
    for (path, entry) in files {
        let path = tree.join(path);
        let folder = path.parent().context("it is in the tree")?;
        fs::create_dir_all(folder)?;
        folders.extend(
            folder
                .ancestors()
                .take_while(|f| *f != tree)
                .map(Path::to_owned),
        );
        write_file(&path, &entry.bytes)?;
        let mode = if entry.executable { 0o755 } else { 0o644 };
        finish(&path, mode).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // After what is in them, which changes their time.
    for folder in folders {
        finish(&folder, 0o755).with_context(|| format!("cannot write {}", folder.display()))?;
    }
    Ok(())
}

/// As `gzip -9n` does: neither a name nor a time is in it.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish().context("cannot compress")
}

fn text(text: String) -> Entry {
    raw(text.as_bytes())
}

fn raw(bytes: &[u8]) -> Entry {
    Entry {
        bytes: bytes.to_owned(),
        executable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests;
    use super::*;

    /// What `dpkg-deb --option` says of a package that was made.
    fn ask(option: &str) -> String {
        let place = tempfile::tempdir().unwrap();
        let deb = write(&tests::content(), "x86_64", 1_234_567, place.path()).unwrap();
        let output = Command::new("dpkg-deb")
            .arg(option)
            .arg(deb)
            .env("TZ", "UTC")
            .output();
        let output = output.unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_package_has_the_same_bytes_each_time_and_its_files_are_roots() {
        if !possible() {
            return smol_testing::left_out("there is no dpkg-deb");
        }
        let made = |name: &str| {
            let place = tempfile::Builder::new().prefix(name).tempdir().unwrap();
            let deb = write(&tests::content(), "x86_64", 1_234_567, place.path()).unwrap();
            assert_eq!(
                deb.file_name().unwrap().to_str(),
                Some(&*format!("smol_{VERSION}_amd64.deb"))
            );
            fs::read(deb).unwrap()
        };
        assert!(made("a") == made("b"));
        let listed = ask("--contents");
        assert!(
            listed.lines().all(|line| line.contains("root/root")),
            "{listed}"
        );
        assert!(
            listed.lines().all(|line| line.contains("1970-01-15 06:56")),
            "{listed}"
        );
        for line in [
            "-rwxr-xr-x root/root",
            " ./usr/bin/smolrun\n",
            " ./usr/share/man/man1/smolbuild.1.gz\n",
            " ./usr/share/bash-completion/completions/smolrun\n",
            " ./usr/share/zsh/vendor-completions/_smolrun\n",
            " ./usr/share/fish/vendor_completions.d/smolrun.fish\n",
            " ./usr/share/smol/kernels/smol-1/vmlinux.zst\n",
            " ./usr/share/doc/smol/copyright\n",
        ] {
            assert!(listed.contains(line), "{line} is not in {listed}");
        }
        let control = ask("--field");
        for field in [
            "Package: smol\n",
            "Architecture: amd64\n",
            "qemu-system-x86",
        ] {
            assert!(control.contains(field), "{control}");
        }
    }

    #[test]
    fn digests_of_files_are_those_of_md5sum() {
        let files = Content::from([("usr/empty".to_owned(), raw(b""))]);
        assert_eq!(
            md5sums(&files).unwrap(),
            "d41d8cd98f00b204e9800998ecf8427e  usr/empty\n"
        );
    }
}
