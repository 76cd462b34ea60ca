//! Getting the sources that a build needs from where they are published.
//!
//! This is the only stage that goes to the network for inputs. What it brings is checked against
//! the lock before anything uses it, and kept in the cache by its digest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use smol_cli::{ErrorExt, ExitKind, Failure};

/// A source tarball inside a Debian package, locked by digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianSource {
    /// Binary package that carries the tarball.
    pub package: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the .deb, hex.
    pub deb_sha256: String,
    /// Path of the tarball in the package.
    pub tar: String,
    /// SHA-256 of the tarball, hex.
    pub tar_sha256: String,
}

/// A source tarball on this host.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// Its SHA-256, hex.
    pub sha256: String,
}

/// Gets the tarball that `lock` names: from the cache, else by apt-get.
///
/// If the archive no longer has the locked version its candidate is taken instead, with a warning
/// through `note`; the digest of the result then differs from the lock's.
///
/// # Errors
/// Where there is no apt-get, no network, no such package, or the bytes are not the locked ones.
pub fn debian_source(lock: &DebianSource, cache: &Path, note: &mut dyn FnMut(&str)) -> Result<Source> {
    let store = cache.join("sources");
    let cached = stored(&store, &lock.tar_sha256);
    // A cache may have been damaged since: look again.
    if cached.exists() && sha256_file(&cached)? == lock.tar_sha256 {
        return Ok(Source { path: cached, sha256: lock.tar_sha256.clone() });
    }
    fs::create_dir_all(&store).with_context(|| format!("cannot create the folder {}", store.display()))?;
    // Beside its destination, so that the tarball is only renamed.
    let work = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(&store)
        .with_context(|| format!("cannot create a folder in {}", store.display()))?;
    note(&format!("downloading {} {}", lock.package, lock.version));
    let (deb, locked) = download(lock, work.path(), note)?;
    if locked {
        let found = sha256_file(&deb)?;
        check(&found, &lock.deb_sha256, || format!("the package {} {}", lock.package, lock.version))?;
    }
    let (tarball, sha256) = unpack_member(&deb, &lock.tar, work.path())?;
    if locked {
        check(&sha256, &lock.tar_sha256, || format!("{} in the package {}", lock.tar, lock.package))?;
    }
    let path = stored(&store, &sha256);
    fs::rename(&tarball, &path).with_context(|| format!("cannot move the source to {}", path.display()))?;
    Ok(Source { path, sha256 })
}

/// The tarball `path` as a source.
///
/// # Errors
/// If it cannot be read.
pub fn source_file(path: &Path) -> Result<Source> {
    Ok(Source { path: path.to_owned(), sha256: sha256_file(path)? })
}

fn stored(store: &Path, sha256: &str) -> PathBuf {
    store.join(format!("sha256-{sha256}.tar.xz"))
}

fn check(found: &str, locked: &str, what: impl FnOnce() -> String) -> Result<()> {
    if found == locked {
        return Ok(());
    }
    Err(Failure::new(
        ExitKind::Verification,
        format!("{} is not the locked one: its SHA-256 is {found}, the lock says {locked}", what()),
    )
    .into())
}

/// Downloads the package into the folder `dir`; true when it is the locked version.
fn download(lock: &DebianSource, dir: &Path, note: &mut dyn FnMut(&str)) -> Result<(PathBuf, bool)> {
    if smol_host::apt::find_program("apt-get").is_none() {
        return Err(Failure::new(ExitKind::Host, format!("apt-get, which gets the source package {}, is not here", lock.package))
            .hint("on a host without apt, give a kernel source tarball: smolbuild kernel --source FILE")
            .into());
    }
    let exact = apt_download(&format!("{}={}", lock.package, lock.version), dir)?;
    let Err(reason) = exact else {
        return Ok((only_deb(dir)?, true));
    };
    match apt_download(&lock.package, dir)? {
        Ok(()) => {
            let deb = only_deb(dir)?;
            let name = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
            note(&format!(
                "warning: {} {} is no longer in the archive; taking {name} instead, which is not the locked source",
                lock.package, lock.version
            ));
            Ok((deb, false))
        }
        Err(_) => Err(anyhow::Error::msg(reason))
            .with_context(|| format!("cannot download the package {} {}", lock.package, lock.version))
            .hint("apt-get update, if the package lists are old; is the network up?"),
    }
}

/// The inner result is apt-get's verdict, with its messages.
fn apt_download(package: &str, dir: &Path) -> Result<std::result::Result<(), String>> {
    let output = Command::new("apt-get")
        .args(["-q", "download", package])
        .current_dir(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-get")?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn only_deb(dir: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get download left no package in {}", dir.display())
}

/// Copies one file out of a .deb, with its SHA-256.
fn unpack_member(deb: &Path, member: &str, dir: &Path) -> Result<(PathBuf, String)> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let pipe = dpkg.stdout.take().expect("stdout is piped");
    let result = copy_member(pipe, member, &dir.join("member"));
    // Stopping in the middle of the archive ends dpkg-deb by SIGPIPE: its exit code says nothing.
    let _ = dpkg.wait();
    result.with_context(|| format!("cannot unpack {}", deb.display()))
}

fn copy_member(archive: impl Read, member: &str, to: &Path) -> Result<(PathBuf, String)> {
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if path.strip_prefix(".").unwrap_or(&path) != Path::new(member) {
            continue;
        }
        let mut file = File::create_new(to)?;
        let mut hasher = Sha256::new();
        copy_hashing(&mut entry, &mut file, &mut hasher)?;
        file.sync_all()?;
        return Ok((to.to_owned(), hex(&hasher.finalize())));
    }
    bail!("it holds no {member}")
}

fn sha256_file(path: &Path) -> Result<String> {
    let read = || {
        let mut hasher = Sha256::new();
        copy_hashing(&mut File::open(path)?, &mut io::sink(), &mut hasher)?;
        io::Result::Ok(hex(&hasher.finalize()))
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

fn copy_hashing(from: &mut dyn Read, to: &mut dyn Write, hasher: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => {
                hasher.update(&buffer[..n]);
                to.write_all(&buffer[..n])?;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(path: &str, bytes: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_member_is_found_with_and_without_a_leading_dot() {
        let dir = tempfile::tempdir().unwrap();
        for (n, path) in ["./usr/src/a.tar.xz", "usr/src/a.tar.xz"].into_iter().enumerate() {
            let to = dir.path().join(n.to_string());
            let (file, sha256) = copy_member(&archive(path, b"abc")[..], "usr/src/a.tar.xz", &to).unwrap();
            assert_eq!(fs::read(file).unwrap(), b"abc");
            assert_eq!(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        }
    }

    #[test]
    fn a_package_without_the_member_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("member");
        let error = copy_member(&archive("usr/src/b", b"abc")[..], "usr/src/a", &to).unwrap_err();
        assert_eq!(error.to_string(), "it holds no usr/src/a");
        assert!(!to.exists());
    }

    #[test]
    fn a_wrong_digest_is_a_verification_failure() {
        let error = check("aa", "bb", || "the package p 1".into()).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Verification);
        assert!(error.to_string().contains("its SHA-256 is aa, the lock says bb"), "{error}");
    }

    #[test]
    fn a_cached_source_needs_no_network() {
        let cache = tempfile::tempdir().unwrap();
        let lock = DebianSource {
            package: "no-such-package".into(),
            version: "1".into(),
            deb_sha256: "00".into(),
            tar: "a".into(),
            tar_sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into(),
        };
        let path = stored(&cache.path().join("sources"), &lock.tar_sha256);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"abc").unwrap();
        let source = debian_source(&lock, cache.path(), &mut |_| panic!("nothing to say")).unwrap();
        assert_eq!((source.path, source.sha256), (path, lock.tar_sha256));
    }
}
