//! Installing exactly the packages of a lock, once for each distinct system, without the network.
//!
//! An entry of the cache is a tar archive named by the digest of all that determines it. It is made
//! under another name while its lock file is held and renamed when complete, so there is never half
//! an entry; what a killed run left is removed by the next. Whoever uses an entry holds its lock
//! shared. Its bytes are checked by their BLAKE3, in a file beside it, each time it is taken.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File, remove_file};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;
use smol_cli::{ErrorExt, ExitKind, Interrupt, paths};
use smol_host::cache::{open_lock, record_use};
use smol_host::lock_dir::{ScratchDir, lock_file};

use super::mmdebstrap::{self, Network};
use super::{DebianSpec, packages};
use crate::fetch;
use crate::hash;
use crate::lock::{Debian, PackagePin};

/// Ending of the file with the BLAKE3 of an archive.
const DIGEST: &str = "blake3";
/// Part of the cache key: count up when the command below gives different archives.
const RECIPE: u32 = 4;
/// A release of which all of /bin, /sbin and /lib is in /usr has this package, and its essential
/// packages need it or `usrmerge`, which depends on 45 MB of Perl.
const MERGED: &str = "usr-is-merged";
/// What mmdebstrap would copy of this host, and scripts would read: its name, and who it asks for
/// the addresses of others.
const HOST_HOOK: &str = r#"echo localhost > "$1/etc/hostname" && : > "$1/etc/resolv.conf" &&
    printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$1/etc/hosts""#;
/// The name by the kernel's word, in a UTS namespace.
const NAME_HOOK: &str = r#"chroot "$1" hostname localhost"#;
/// Installs the packages that follow. They are named by what is installed next, or are gone at the end.
const FIRST_HOOK: &str = r#"APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes \
    -oDPkg::Chroot-Directory="$1" install"#;
/// Removes the packages that follow, by their own scripts. Nothing that stays depends on them. Some
/// are protected: a running Debian would miss them.
const LAST_HOOK: &str = r#"force=; if chroot "$1" dpkg --force-help | grep -q remove-protected; then
    force=--force-remove-protected; fi; chroot "$1" dpkg $force --purge"#;
/// The links that it expects. (mmdebstrap has a hook for the same, but not every host has it.)
const MERGE_HOOK: &str = r#"for name in bin sbin lib lib32 lib64 libx32; do
    mkdir -p "$1/usr/$name" && ln -s "usr/$name" "$1/$name" || exit 1; done"#;

/// A complete entry of the cache, locked shared.
pub struct InstalledSystem {
    /// The installed system, a tar archive.
    pub archive: PathBuf,
    /// Keeps the archive as it is.
    pub lock: File,
}

/// Whether `cache` has an entry for these packages.
pub fn is_installed(debian: &Debian, cache: &Path) -> bool {
    let archive = cache.join(format!("{}.tar", cache_key(debian)));
    archive.exists() && archive.with_extension(DIGEST).exists()
}

/// The entry for `spec`, installed now if there is none.
pub fn installed(
    spec: &DebianSpec,
    cache: &Path,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<InstalledSystem> {
    let key = cache_key(&spec.debian);
    let cannot = || format!("cannot use the cache directory {}", cache.display());
    paths::create_in_cache(cache).with_context(cannot)?;
    // mmdebstrap runs elsewhere.
    let cache = &cache.canonicalize().with_context(cannot)?;
    let lock = open_lock(&cache.join(format!("{key}.lock"))).with_context(cannot)?;
    let archive = cache.join(format!("{key}.tar"));
    lock.lock_shared().with_context(cannot)?;
    if !is_whole(&archive) {
        // The lock that is held becomes one that nobody shares.
        lock_file(&lock, interrupt, || {
            progress("waiting for another smolbuild that uses the same packages");
        })
        .with_context(cannot)?;
        interrupt.check()?;
        if !is_whole(&archive) {
            let damaged = archive.exists();
            if damaged {
                progress("the installed packages in the cache are damaged: installing them again");
                remove_file(&archive).with_context(cannot)?;
            }
            let done = install(spec, &archive, progress, interrupt);
            match damaged {
                true => done.hint("if packages are missing: the next build fetches them")?,
                false => done?,
            }
        }
        // Between the two locks another may replace the entry, but there will be one.
        lock.lock_shared().with_context(cannot)?;
    }
    record_use(&archive);
    Ok(InstalledSystem { archive, lock })
}

/// Whether the entry is there, with the bytes that it was made with.
fn is_whole(archive: &Path) -> bool {
    let Ok(digest) = fs::read_to_string(archive.with_extension(DIGEST)) else {
        return false;
    };
    hash::blake3(archive).is_ok_and(|found| found.to_hex().as_str() == digest)
}

fn cache_key(debian: &Debian) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("smolbuild debian root file system cache key");
    let mut put = |part: &str| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    put(&RECIPE.to_string());
    put(MERGE_HOOK);
    put(env::consts::ARCH);
    for part in debian.packages.iter().flat_map(parts) {
        put(part);
    }
    if let Some(pins) = &debian.install_only {
        // No package has this name.
        put("install only:");
        for part in pins.iter().flat_map(parts) {
            put(part);
        }
    }
    hasher.finalize().to_hex()[..32].to_string()
}

fn parts(pin: &PackagePin) -> [&str; 4] {
    [&pin.name, &pin.version, &pin.arch, &pin.sha256]
}

/// Make the entry `archive`; its lock is held.
fn install(
    spec: &DebianSpec,
    archive: &Path,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<()> {
    let work = Work::new(archive.with_extension("work"))?;
    let made = work.0.join("rootfs.tar");
    let debian = &spec.debian;
    let mut command = mmdebstrap::command(&work.0, Network::Loopback)?;
    progress("preparing the packages");
    let pins = debian.to_install();
    let repository = Repository::new(&pins, &spec.downloads, &work.0, interrupt)?;
    command
        .arg("--variant=essential")
        .arg("--dpkgopt=force-unsafe-io")
        .arg(format!("--include={}", apt_names(&debian.packages, ",")))
        .arg(format!("--setup-hook={HOST_HOOK}"));
    if mmdebstrap::has_own_host_name() {
        command.arg(format!("--extract-hook={NAME_HOOK}"));
    }
    if debian.packages.iter().any(|pin| pin.name == MERGED) {
        command.arg(format!("--setup-hook={MERGE_HOOK}"));
    }
    if let Some(install_only) = &debian.install_only {
        let first = apt_names(&repository.required, " ");
        command.arg(format!("--essential-hook={FIRST_HOOK} {first}"));
        if !install_only.is_empty() {
            let last: Vec<_> = install_only.iter().map(|pin| pin.name.as_str()).collect();
            command.arg(format!("--customize-hook={LAST_HOOK} {}", last.join(" ")));
        }
    }
    // Without a release: all that the repository has.
    command
        .args(["--", ""])
        .arg(&made)
        .arg(repository.sources_line());
    let done = mmdebstrap::run(command, progress, interrupt)
        .context("cannot install the packages of the lock");
    match debian.install_only {
        Some(_) => done,
        None => done.hint(
            "this lock has no packages for the installation alone, which the scripts of others may \
             need: `smolbuild lock` adds them",
        ),
    }?;
    keep_digest(&made, &archive.with_extension(DIGEST)).context("cannot store the packages")?;
    fs::rename(&made, archive).with_context(|| format!("cannot make {}", archive.display()))
}

/// Writes an archive that was made to the disk, and its digest to the file `digest`: before the archive has its
/// name, so that it has none without.
fn keep_digest(made: &Path, digest: &Path) -> Result<()> {
    File::open(made)?.sync_all()?;
    let new = made.with_extension(DIGEST);
    let mut file = File::create(&new)?;
    file.write_all(hash::blake3(made)?.to_hex().as_bytes())?;
    file.sync_all()?;
    Ok(fs::rename(&new, digest)?)
}

/// `NAME=VERSION` of each package, as apt takes them.
fn apt_names<'a>(pins: impl IntoIterator<Item = &'a PackagePin>, separator: &str) -> String {
    let names: Vec<_> = pins
        .into_iter()
        .map(|pin| format!("{}={}", pin.name, pin.version))
        .collect();
    names.join(separator)
}

/// A package repository of exactly the wanted packages, in a folder (sources.list(5), "exact path").
struct Repository {
    folder: PathBuf,
    /// Those of the priority *required*, by their own word, and what their installation needs.
    required: Vec<PackagePin>,
    /// Where it is not in the folder of the installation.
    _temporary: Option<ScratchDir>,
}

impl Repository {
    /// Takes the packages from `downloads`, each checked once more.
    fn new(
        pins: &[&PackagePin],
        downloads: &Path,
        work: &Path,
        interrupt: &Interrupt,
    ) -> Result<Repository> {
        // The user that mmdebstrap becomes without root may not look into our cache.
        let public = || ScratchDir::create_with_mode(&env::temp_dir(), "smol-packages-", 0o755);
        let temporary = (!geteuid().is_root()).then(public).transpose();
        let temporary = temporary.context("cannot make a temporary folder")?;
        let folder = match &temporary {
            Some(temporary) => temporary.path().to_owned(),
            None => work.join("packages"),
        };
        fs::create_dir_all(&folder)
            .and_then(|()| fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)))
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let (mut index, mut required) = (String::new(), Vec::new());
        for &pin in pins {
            interrupt.check()?;
            let record = add(pin, downloads, &folder)
                .with_context(|| format!("the package {} {}", pin.name, pin.version))?;
            if pin.name == MERGED || packages::is_required(&record) {
                required.push(pin.clone());
            }
            index += &record;
        }
        fs::write(folder.join("Packages"), index).context("cannot write the index of packages")?;
        Ok(Repository {
            folder,
            required,
            _temporary: temporary,
        })
    }

    /// For apt. It need not be signed: the packages come from our cache, by their digests.
    fn sources_line(&self) -> String {
        let path = self.folder.display().to_string();
        let path = path.bytes().fold(String::new(), |mut uri, byte| {
            match byte {
                b'/' | b'.' | b'-' | b'_' | b'~' => uri.push(byte.into()),
                _ if byte.is_ascii_alphanumeric() => uri.push(byte.into()),
                _ => {
                    let _ = write!(uri, "%{byte:02X}");
                }
            }
            uri
        });
        format!("deb [trusted=yes] copy:{path} ./")
    }
}

/// Puts a package into the repository; returns its paragraph of the index.
fn add(pin: &PackagePin, downloads: &Path, folder: &Path) -> Result<String> {
    let from = fetch::place(downloads, &pin.sha256);
    let name = format!("{}.deb", pin.sha256);
    let to = folder.join(&name);
    if fs::hard_link(&from, &to).is_err() {
        fs::copy(&from, &to).with_context(|| format!("cannot read {}", from.display()))?;
    }
    ensure!(
        hash::sha256(&to)? == pin.sha256,
        "{} is damaged: delete it",
        from.display()
    );
    let size = fs::metadata(&to)?.len();
    let fields = Command::new("dpkg-deb")
        .arg("--field")
        .arg(&to)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot run dpkg-deb")?;
    if !fields.status.success() {
        bail!(
            "dpkg-deb: {}",
            String::from_utf8_lossy(&fields.stderr).trim()
        );
    }
    let fields = String::from_utf8_lossy(&fields.stdout);
    let is = packages::parse_record(&format!("{fields}SHA256: {}\n", pin.sha256));
    if is.as_ref() != Some(pin) {
        return Err(anyhow::anyhow!(
            "the file with the SHA-256 {} is another package",
            pin.sha256
        ))
        .kind(ExitKind::Verification);
    }
    Ok(format!(
        "{}\nFilename: ./{name}\nSize: {size}\nSHA256: {}\n\n",
        fields.trim_end(),
        pin.sha256
    ))
}

/// A directory to work in, removed at the end.
struct Work(PathBuf);

impl Work {
    fn new(path: PathBuf) -> Result<Work> {
        // What a killed run has left behind. Its processes are gone with it, and their mounts too.
        remove(&path);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        // apt's own user reads in it.
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(Work(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    // Nothing to be done about an error here: making the directory will say what is wrong.
    let _ = fs::remove_dir_all(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(name: &str, version: &str, sha256: &str) -> PackagePin {
        PackagePin {
            name: name.into(),
            version: version.into(),
            arch: "all".into(),
            sha256: sha256.into(),
        }
    }

    #[test]
    fn an_archive_with_other_bytes_than_it_was_made_with_or_without_its_digest_is_not_taken() {
        let cache = tempfile::tempdir().unwrap();
        let debian = Debian {
            suite: "bookworm".into(),
            requested: Vec::new(),
            packages: vec![pin("bash", "5.2", "bb")],
            install_only: None,
        };
        let archive = cache.path().join(format!("{}.tar", cache_key(&debian)));
        let made = cache.path().join("rootfs.tar");
        let digest = archive.with_extension(DIGEST);
        fs::write(&made, [7; 50_000]).unwrap();
        keep_digest(&made, &digest).unwrap();
        assert!(!is_installed(&debian, cache.path()) && !is_whole(&archive));
        fs::rename(&made, &archive).unwrap();
        assert!(is_installed(&debian, cache.path()) && is_whole(&archive));
        let mut bytes = fs::read(&archive).unwrap();
        bytes[40_000] ^= 1;
        fs::write(&archive, &bytes).unwrap();
        assert!(!is_whole(&archive));
        bytes[40_000] ^= 1;
        fs::write(&archive, &bytes).unwrap();
        assert!(is_whole(&archive));
        fs::remove_file(&digest).unwrap();
        assert!(!is_installed(&debian, cache.path()) && !is_whole(&archive));
    }

    #[test]
    fn the_packages_and_their_digests_decide_the_cache_key() {
        let base = [pin("adduser", "3.134", "aa"), pin("bash", "5.2", "bb")];
        let key = |packages: &[PackagePin], install_only: Option<&[PackagePin]>| {
            cache_key(&Debian {
                suite: "bookworm".into(),
                requested: Vec::new(),
                packages: packages.to_vec(),
                install_only: install_only.map(<[_]>::to_vec),
            })
        };
        let keys = [
            key(&base, None),
            key(&base[..1], None),
            key(&[pin("adduser", "3.135", "aa"), base[1].clone()], None),
            key(&[pin("adduser", "3.134", "ab"), base[1].clone()], None),
            key(&[base[1].clone(), base[0].clone()], None),
            key(&base, Some(&[])),
            key(&base[..1], Some(&base[1..])),
            key(&[], Some(&base)),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(key(&base, None), keys[0]);
    }

    #[test]
    fn a_folder_with_an_odd_name_is_one_word_for_apt() {
        let repository = Repository {
            folder: "/home/a b/100%".into(),
            required: Vec::new(),
            _temporary: None,
        };
        assert_eq!(
            repository.sources_line(),
            "deb [trusted=yes] copy:/home/a%20b/100%25 ./"
        );
    }

    #[test]
    fn a_package_that_is_damaged_or_another_one_is_not_installed() {
        let scratch = tempfile::tempdir().unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let place = fetch::place(scratch.path(), sha256);
        let add = |content: &str| {
            fs::write(&place, content).unwrap();
            let to = tempfile::tempdir_in(scratch.path()).unwrap();
            let error = super::add(&pin("adduser", "3.134", sha256), scratch.path(), to.path());
            format!("{:#}", error.unwrap_err())
        };
        assert!(add("abd").contains("is damaged"));
        // "abc" has the digest, but it is no package.
        assert!(add("abc").contains("dpkg-deb"));
    }
}
