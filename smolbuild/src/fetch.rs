//! Getting source packages from the distribution: the only stage that goes to the network for
//! inputs of its own accord (root file systems get their packages through mmdebstrap).
//!
//! A package is pinned by version and digest. It is kept in a downloads folder under its full name,
//! which appears by a rename once the digest was checked.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};
use smol_host::apt;

use crate::subprocess;

/// Lines of a failing program that an error shows.
const LAST_LINES: usize = 10;

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

/// The package file of `pin` in the folder `downloads`, fetched by apt if it is not there yet; or,
/// when the archive no longer offers that version, the one it offers instead. What it is, is the
/// second result; `say` is told when something is downloaded.
///
/// # Errors
/// No apt here, or a package that it does not know (exit kind Host); a failing download; a digest
/// that differs (Verification).
pub fn package(
    pin: &Pin,
    downloads: &Path,
    say: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<(PathBuf, Pin)> {
    if let Some(file) = present(pin, downloads)? {
        return Ok((file, pin.clone()));
    }
    let chosen = choose(pin, &offers(&pin.package)?)?;
    if let Some(file) = present(&chosen, downloads)? {
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

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let fail = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(fail)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(fail),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn place(pin: &Pin, downloads: &Path) -> PathBuf {
    downloads.join(format!("{}_{}.deb", pin.package, pin.version))
}

/// The file of an earlier download, if it is still what it was.
fn present(pin: &Pin, downloads: &Path) -> Result<Option<PathBuf>> {
    let file = place(pin, downloads);
    Ok((file.exists() && sha256(&file)? == pin.sha256).then_some(file))
}

/// The versions of a package that apt's lists offer, its candidate first.
fn offers(package: &str) -> Result<Vec<Pin>> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
        if apt::find_program(tool).is_none() {
            let what = format!("the Debian package {package} is needed, and {tool} is not here");
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
            .with_context(|| format!("no version of {} is on offer", pin.package));
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
    fs::create_dir_all(downloads).with_context(cannot)?;
    sweep(downloads);
    let folder = tempfile::Builder::new()
        .prefix("new-")
        .tempdir_in(downloads)
        .with_context(cannot)?;
    let lock = File::create(folder.path().join("lock")).with_context(cannot)?;
    lock.try_lock().with_context(cannot)?;
    let mut command = subprocess::command("apt-get");
    // apt drops to its own user when run by root, who may not enter our folder; we only download.
    command.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]);
    command
        .arg(format!("{}={}", pin.package, pin.version))
        .current_dir(folder.path());
    finish(command, interrupt)
        .with_context(|| {
            format!(
                "cannot download the Debian package {} {}",
                pin.package, pin.version
            )
        })
        .hint(format!(
            "is the network up? are the package lists old? {}",
            update()
        ))?;
    let files = fs::read_dir(folder.path()).with_context(cannot)?;
    let mut files = files.flatten().map(|entry| entry.path());
    let deb = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let deb = deb.with_context(|| {
        format!(
            "apt-get downloaded nothing for {} {}",
            pin.package, pin.version
        )
    })?;
    let found = sha256(&deb)?;
    if found != pin.sha256 {
        let what = format!(
            "{} {} came with the SHA-256 {found} instead of {}",
            pin.package, pin.version, pin.sha256
        );
        return Err(Failure::new(ExitKind::Verification, what).into());
    }
    let place = place(pin, downloads);
    File::open(&deb)
        .and_then(|file| file.sync_all())
        .with_context(cannot)?;
    fs::rename(&deb, &place).with_context(cannot)?;
    Ok(place)
}

/// Removes the folders of downloads that were killed: nobody holds their locks.
fn sweep(downloads: &Path) {
    for entry in fs::read_dir(downloads).into_iter().flatten().flatten() {
        let Ok(lock) = File::open(entry.path().join("lock")) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
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
                &mut |_| panic!("nothing to fetch"),
                &Interrupt::detached().unwrap(),
            )
        };
        assert!(ask().is_err());
        fs::write(place(&abc, downloads.path()), "abc").unwrap();
        assert_eq!(ask().unwrap(), (place(&abc, downloads.path()), abc.clone()));
        fs::write(place(&abc, downloads.path()), "abd").unwrap();
        assert!(ask().is_err());
    }

    #[test]
    fn the_folder_of_a_killed_download_goes_and_that_of_a_living_one_stays() {
        let downloads = tempfile::tempdir().unwrap();
        let lock = |name: &str| {
            fs::create_dir(downloads.path().join(name)).unwrap();
            File::create(downloads.path().join(name).join("lock")).unwrap()
        };
        let living = lock("new-living");
        living.try_lock().unwrap();
        drop(lock("new-dead"));
        sweep(downloads.path());
        assert!(downloads.path().join("new-living").exists());
        assert!(!downloads.path().join("new-dead").exists());
    }
}
