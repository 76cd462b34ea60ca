//! Getting source packages from the distribution, and the folder of downloads. (The packages of root
//! file systems come through mmdebstrap: `input/debian/archive.rs`.)
//!
//! A package is pinned by version and digest. It is kept under its digest, by a rename once that was
//! checked. What is in the folder of downloads is pinned, so
//! it is never out of date; it can be deleted at any time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, paths};
use smol_host::apt::{self, DownloadDir};
use smol_host::cache;
use smol_host::lock_dir::ScratchDir;

use crate::{hash, subprocess};

/// Lines of a failing program that an error shows.
const LAST_LINES: usize = 10;

/// What may be downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// Nothing.
    Offline,
    /// Inputs that are pinned, in exactly that version.
    Pinned,
    /// Where a pinned version is not to be had any more, another one.
    Open,
}

impl Net {
    /// What may be downloaded before it is known what the lock allows.
    pub fn allowed(offline: bool) -> Net {
        match offline {
            true => Net::Offline,
            false => Net::Open,
        }
    }
}

/// A package, exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Name: `linux-source-6.1`.
    pub package: String,
    /// Version as Debian writes it: `6.1.192-2`.
    pub version: String,
    /// SHA-256 of the package file, in hexadecimal.
    pub sha256: String,
}

/// The package file of `pin` in the folder `downloads`, fetched by apt if it is not there yet and
/// `net` allows it; or, when the archive no longer offers that version, the one it offers instead.
/// The second result says which one it is; `say` is called when something is downloaded.
///
/// # Errors
/// It is not there, and may not be fetched; no apt here, or a package that it does not know (exit
/// kind Host); only another version is available, and may not be taken (LockStale); a failing
/// download; a digest that differs (Verification).
pub fn package(
    pin: &Pin,
    downloads: &Path,
    net: Net,
    say: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<(PathBuf, Pin)> {
    if let Some(file) = downloaded(pin, downloads)? {
        return Ok((file, pin.clone()));
    }
    let Pin {
        package, version, ..
    } = pin;
    if net == Net::Offline {
        let what = format!("offline, and the package {package} {version} is not in the cache");
        return Err(Failure::new(ExitKind::Failed, what)
            .hint("build once without --offline")
            .into());
    }
    let chosen = choose(pin, &offers(package)?)?;
    if net == Net::Pinned && chosen != *pin {
        let what = format!(
            "the archive no longer offers {package} {version}, which the lock pins, but {}",
            chosen.version
        );
        return Err(Failure::new(ExitKind::LockStale, what)
            .hint("`smolbuild lock` takes what the archive offers now")
            .into());
    }
    if let Some(file) = downloaded(&chosen, downloads)? {
        return Ok((file, chosen));
    }
    say(&format!("fetching {} {}", chosen.package, chosen.version));
    Ok((download(&chosen, downloads, interrupt)?, chosen))
}

/// Unpacks the package file `deb` into the folder `into`, without installing it.
///
/// # Errors
/// If dpkg-deb is missing or fails.
pub fn unpack(deb: &Path, into: &Path, interrupt: &Interrupt) -> Result<()> {
    let mut command = subprocess::command("dpkg-deb");
    command.arg("-x").arg(deb).arg(into);
    finish(command, interrupt).with_context(|| format!("cannot unpack {}", deb.display()))
}

/// Where in the folder `downloads` a package with this SHA-256 is, or goes.
pub fn place(downloads: &Path, sha256: &str) -> PathBuf {
    downloads.join(format!("{sha256}.deb"))
}

/// The file of an earlier download, if it is still what it was.
fn downloaded(pin: &Pin, downloads: &Path) -> Result<Option<PathBuf>> {
    let file = place(downloads, &pin.sha256);
    let found = (file.exists() && hash::sha256(&file)? == pin.sha256).then_some(file);
    found.iter().for_each(|file| cache::record_use(file));
    Ok(found)
}

/// The versions of a package that apt's lists offer, its candidate first.
fn offers(package: &str) -> Result<Vec<Pin>> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
        if apt::find_program(tool).is_none() {
            let what =
                format!("the Debian package {package} is needed, and {tool} is not installed");
            return Err(Failure::new(ExitKind::Host, what).into());
        }
    }
    let show = Command::new("apt-cache")
        .args(["show", package])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    let show = show.context("cannot run apt-cache")?;
    let offers = parse_offers(package, &String::from_utf8_lossy(&show.stdout));
    if offers.is_empty() {
        let what = format!("apt does not know the package {package}");
        return Err(Failure::new(ExitKind::Host, what).hint(update()).into());
    }
    Ok(offers)
}

/// Reads what `apt-cache show` prints: stanzas of `Field: value` lines.
fn parse_offers(package: &str, records: &str) -> Vec<Pin> {
    let field = |stanza: &str, name: &str| {
        let value = |line: &str| Some(line.strip_prefix(name)?.trim().to_owned());
        stanza.lines().find_map(value)
    };
    let offer = |stanza: &str| {
        let (version, sha256) = (field(stanza, "Version:")?, field(stanza, "SHA256:")?);
        Some(Pin {
            package: package.to_owned(),
            version,
            sha256: sha256.to_lowercase(),
        })
    };
    records.split("\n\n").filter_map(offer).collect()
}

/// The pinned one of the offers, or else the candidate.
fn choose(pin: &Pin, offers: &[Pin]) -> Result<Pin> {
    let Some(same) = offers.iter().find(|offer| offer.version == pin.version) else {
        return offers
            .first()
            .cloned()
            .with_context(|| format!("no version of {} is available", pin.package));
    };
    if same.sha256 != pin.sha256 {
        let Pin {
            package, version, ..
        } = pin;
        let what = format!(
            "the archive's {package} {version} has the SHA-256 {}, which is not the pinned {}",
            same.sha256, pin.sha256
        );
        return Err(Failure::new(ExitKind::Verification, what).into());
    }
    Ok(same.clone())
}

fn download(pin: &Pin, downloads: &Path, interrupt: &Interrupt) -> Result<PathBuf> {
    let cannot = || format!("cannot write in {}", downloads.display());
    let folder = Scratch::new(downloads)?;
    let fetched = DownloadDir::new(folder.path()).context("cannot make a folder for downloads")?;
    let mut command = subprocess::command("apt-get");
    fetched.configure(&mut command);
    command.arg(format!("{}={}", pin.package, pin.version));
    finish(command, interrupt)
        .with_context(|| {
            format!(
                "cannot download the Debian package {} {}",
                pin.package, pin.version
            )
        })
        .hint(format!(
            "check the network, or renew the package lists: {}",
            update()
        ))?;
    let mut files = fetched.take(folder.path()).with_context(cannot)?;
    let deb = files.pop().with_context(|| {
        format!(
            "apt-get downloaded nothing for {} {}",
            pin.package, pin.version
        )
    })?;
    let found = hash::sha256(&deb)?;
    if found != pin.sha256 {
        let what = format!(
            "{} {} came with the SHA-256 {found} instead of {}",
            pin.package, pin.version, pin.sha256
        );
        return Err(Failure::new(ExitKind::Verification, what).into());
    }
    let place = place(downloads, &pin.sha256);
    File::open(&deb)
        .and_then(|file| file.sync_all())
        .with_context(cannot)?;
    fs::rename(&deb, &place).with_context(cannot)?;
    // Its time is that of the server's file.
    cache::record_use(&place);
    Ok(place)
}

/// A folder among the downloads for what is not complete yet, removed on drop, and by the next one
/// if we are killed.
pub struct Scratch(ScratchDir);

impl Scratch {
    /// A fresh one in the folder `downloads`, which is made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(downloads: &Path) -> Result<Scratch> {
        let cannot = || format!("cannot write in {}", downloads.display());
        paths::create_in_cache(downloads).with_context(cannot)?;
        // apt's own user works in it, too.
        let folder =
            ScratchDir::create_with_mode(downloads, "fetching-", 0o755).with_context(cannot)?;
        Ok(Scratch(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Runs a command of which only a failure is of interest.
fn finish(mut command: Command, interrupt: &Interrupt) -> Result<()> {
    command.env("LC_ALL", "C");
    let mut said = Vec::new();
    let status = subprocess::run(command, interrupt, &mut |line| said.push(line.to_owned()))?;
    if status.success() {
        return Ok(());
    }
    let last = said
        .split_off(said.len().saturating_sub(LAST_LINES))
        .join("\n");
    Err(if last.is_empty() {
        anyhow!("{status}")
    } else {
        anyhow!("{last}")
    })
}

fn update() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "apt-get update"
    } else {
        "sudo apt-get update"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(version: &str, sha256: &str) -> Pin {
        Pin {
            package: "linux-source-6.1".into(),
            version: version.into(),
            sha256: sha256.into(),
        }
    }

    const RECORDS: &str = "Package: linux-source-6.1\nSource: linux\nVersion: 6.1.192-2\nSHA256: AE95\nDescription: source\n \
                           Version: not this\n\nPackage: linux-source-6.1\nVersion: 6.1.176-1\nSHA256: 9305\n\n";
    /// SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_offers_of_apt_are_read_in_order() {
        assert_eq!(
            parse_offers("linux-source-6.1", RECORDS),
            [pin("6.1.192-2", "ae95"), pin("6.1.176-1", "9305")]
        );
        assert_eq!(parse_offers("linux-source-6.1", ""), []);
    }

    #[test]
    fn the_pinned_version_is_chosen_as_long_as_it_is_offered_and_then_the_candidate() {
        let offers = parse_offers("linux-source-6.1", RECORDS);
        assert_eq!(
            choose(&pin("6.1.176-1", "9305"), &offers).unwrap().version,
            "6.1.176-1"
        );
        assert_eq!(
            choose(&pin("6.1.1-1", "01"), &offers).unwrap().version,
            "6.1.192-2"
        );
    }

    #[test]
    fn a_pinned_version_with_another_digest_is_refused() {
        let error = choose(
            &pin("6.1.176-1", "beef"),
            &parse_offers("linux-source-6.1", RECORDS),
        )
        .unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Verification);
        assert!(error.to_string().contains("beef"), "{error}");
    }

    #[test]
    fn a_package_that_was_downloaded_before_needs_no_apt_unless_its_bytes_changed() {
        let downloads = tempfile::tempdir().unwrap();
        let abc = Pin {
            package: "no-such-package-anywhere".into(),
            ..pin("1", ABC)
        };
        let ask = || {
            package(
                &abc,
                downloads.path(),
                Net::Open,
                &mut |_| panic!("nothing to fetch"),
                &Interrupt::detached().unwrap(),
            )
        };
        assert!(ask().is_err());
        fs::write(place(downloads.path(), &abc.sha256), "abc").unwrap();
        assert_eq!(
            ask().unwrap(),
            (place(downloads.path(), &abc.sha256), abc.clone())
        );
        fs::write(place(downloads.path(), &abc.sha256), "abd").unwrap();
        assert!(ask().is_err());
    }

    #[test]
    fn offline_a_missing_package_is_named_and_nobody_is_asked() {
        let downloads = tempfile::tempdir().unwrap();
        let error = package(
            &pin("6.1.192-2", "ae95"),
            downloads.path(),
            Net::Offline,
            &mut |_| panic!("nothing to fetch"),
            &Interrupt::detached().unwrap(),
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("linux-source-6.1 6.1.192-2"), "{error}");
    }

    #[test]
    fn the_folder_of_a_killed_download_goes_and_that_of_a_living_one_stays() {
        let downloads = tempfile::tempdir().unwrap();
        let living = Scratch::new(downloads.path()).unwrap();
        fs::create_dir(downloads.path().join("fetching-dead")).unwrap();
        let next = Scratch::new(downloads.path()).unwrap();
        assert!(living.path().exists() && next.path().exists());
        assert!(!downloads.path().join("fetching-dead").exists());
    }
}
