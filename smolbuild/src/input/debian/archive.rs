//! Asking Debian's archive: which packages a system takes, and the packages themselves.
//!
//! Both go through apt in an empty system that mmdebstrap sets up for a release, so that the host's
//! own apt and release do not matter. apt checks the signatures of its lists.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt, Session, Stage};
use smol_host::cache::record_use;

use super::mmdebstrap::{self, BYTES, DOWNLOAD, Network, quoted};
use super::packages;
use crate::fetch::{self, Net};
use crate::hash;
use crate::lock::PackagePin;
use smol_rootfs::{Node, Tree};

/// Largest list read.
const MAX_LIST: u64 = 64 << 20;
/// Most packages that an error names.
const MOST_NAMED: usize = 10;

/// What [`resolve`] chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// All packages of the system, sorted.
    pub packages: Vec<PackagePin>,
    /// What has to be there besides while those are installed, sorted.
    pub install_only: Vec<PackagePin>,
}

/// Asks for the packages without recommended ones, and then for all of the priority *required* with
/// them: the scripts of packages may use those, which need not be named as dependencies by custom.
/// One that conflicts with what is asked for is left out.
const CHOOSE: &str = r#"
chosen() { sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p' "$1"; }
simulate() { apt-get -qq --simulate --no-install-recommends install "$@"; }
simulate "$essential" $merged "$@" > "$root/plan"
chosen "$root/plan" > "$root/names"
names=$(cat "$root/names")
required=$(apt-cache dumpavail |
    awk '/^Package: / { name = $2 } /^Priority: required$/ { print name }' | sort -u)
if ! simulate $names $required > "$root/whole-plan" 2>/dev/null; then
    fitting=
    for name in $required; do
        if simulate $names $fitting $name >/dev/null 2>&1; then fitting="$fitting $name"; fi
    done
    simulate $names $fitting > "$root/whole-plan"
fi
chosen "$root/whole-plan" > "$root/whole"
apt-cache show $(cat "$root/whole") > "$root/records""#;

/// All packages of a system with the essential ones and `requested`, and those that they depend on,
/// in the newest versions that the release `suite` offers; and those that are needed to install
/// them. Nothing is downloaded but the lists.
///
/// # Errors
/// mmdebstrap is missing or fails: no network, or a package or release that is not there.
pub fn resolve(
    suite: &str,
    requested: &[String],
    downloads: &Path,
    interrupt: &Interrupt,
) -> Result<Chosen> {
    let requested: Vec<_> = requested.iter().map(|name| quoted(name)).collect();
    let script = format!(
        r#"set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
root=$1
merged=
if apt-cache show --no-all-versions usr-is-merged >/dev/null 2>&1; then merged=usr-is-merged; fi
essential={essential}
set -- {requested}
{CHOOSE}"#,
        essential = quoted(&format!(
            "?narrow(?or(?archive(^{suite}$),?codename(^{suite}$)),?essential)"
        )),
        requested = requested.join(" "),
    );
    let asked = ask(suite, &script, downloads, &mut |_| {}, interrupt)
        .with_context(|| format!("cannot choose the packages of a Debian {suite} system"))
        .hint("check the package names and the network")?;
    let records = packages::parse_records(&asked.text("records")?);
    split(&asked.text("names")?, &asked.text("whole")?, records)
}

/// Splits the packages of `records`, which are those that `whole` lists: those of `names` and the rest.
fn split(names: &str, whole: &str, records: Vec<PackagePin>) -> Result<Chosen> {
    let names: BTreeSet<_> = names.lines().collect();
    let whole: BTreeSet<_> = whole.lines().collect();
    let (packages, install_only): (Vec<_>, Vec<_>) = records
        .into_iter()
        .partition(|pin| names.contains(name_and_version(pin).as_str()));
    let recorded: BTreeSet<_> = packages.iter().chain(&install_only).collect();
    let recorded: BTreeSet<_> = recorded.into_iter().map(name_and_version).collect();
    ensure!(
        !names.is_empty()
            && packages.len() == names.len()
            && packages.len() + install_only.len() == whole.len()
            && recorded.iter().map(String::as_str).eq(whole),
        "apt chose {} packages and has records of {}",
        names.len(),
        packages.len()
    );
    Ok(Chosen {
        packages,
        install_only,
    })
}

fn name_and_version(pin: &PackagePin) -> String {
    format!("{}={}", pin.name, pin.version)
}

/// Downloads these packages of the release `suite` into the folder `downloads`, unless they are in it,
/// and returns those that are not offered any more.
///
/// # Errors
/// One is missing and `net` allows no download; mmdebstrap is missing or fails; no disk space.
pub fn fetch(
    suite: &str,
    pins: &[&PackagePin],
    downloads: &Path,
    net: Net,
    session: &Session,
) -> Result<Vec<PackagePin>> {
    let mut missing = Vec::new();
    for &pin in pins {
        let place = fetch::place(downloads, &pin.sha256);
        if !place.exists() || hash::sha256(&place)? != pin.sha256 {
            missing.push(pin.clone());
        } else {
            record_use(&place);
        }
    }
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    if net == Net::Offline {
        let what = format!(
            "offline, and {} of the lock {} not in the cache: {}",
            count(missing.len()),
            if missing.len() == 1 { "is" } else { "are" },
            name(missing.iter())
        );
        return Err(Failure::new(ExitKind::Failed, what)
            .hint("build once without --offline")
            .into());
    }
    let stage = session.stage("fetch", &format!("fetching {}", count(missing.len())));
    let script = download_script(&missing);
    let mut status = Status::default();
    let mut show = |line: &str| status.show(line, &stage);
    let asked = ask(suite, &script, downloads, &mut show, &session.interrupt)
        .with_context(|| format!("cannot fetch packages of Debian {suite}"))
        .hint("check the network")?;
    asked.keep(&mut missing, downloads)?;
    stage.finish(match missing.is_empty() {
        true => "all there",
        false => "some are not available any more",
    });
    Ok(missing)
}

/// A hook that downloads those of the packages that are offered as they are pinned.
fn download_script(missing: &[PackagePin]) -> String {
    let wanted = missing.iter().fold(String::new(), |mut lines, pin| {
        let _ = writeln!(lines, "{}={} {}", pin.name, pin.version, pin.sha256);
        lines
    });
    let names: Vec<_> = missing.iter().map(|pin| pin.name.as_str()).collect();
    // Only what is offered as it is pinned: apt-get downloads all or nothing.
    format!(
        r#"set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir "$1/debs" && cd "$1/debs"
printf %s {wanted} > ../wanted
(apt-cache show --all-versions {names} || true) 2>/dev/null | awk '
    function put() {{ if (p != "") print p "=" v " " s; p = v = s = "" }}
    /^Package: / {{ p = $2 }} /^Version: / {{ v = $2 }} /^SHA256: / {{ s = $2 }}
    /^$/ {{ put() }} END {{ put() }}' | sort -u > ../offered
grep -Fxf ../wanted ../offered | cut -d' ' -f1 > ../available || true
if [ -s ../available ]; then
    apt-cache show $(cat ../available) | awk '/^Size: / {{ n += $2 }} END {{ printf "{BYTES}%.0f\n", n }}' >&2
    apt-get -qq -oAPT::Status-Fd=2 download $(cat ../available)
fi"#,
        wanted = quoted(&wanted),
        names = names.join(" "),
    )
}

/// How far a download is, by what the hook and apt say ([`mmdebstrap::BYTES`], [`mmdebstrap::DOWNLOAD`]).
#[derive(Default)]
struct Status {
    /// Bytes of all packages.
    total: u64,
}

impl Status {
    fn show(&mut self, line: &str, stage: &Stage) {
        if let Some(total) = line.strip_prefix(BYTES) {
            self.total = total.parse().unwrap_or(0);
        } else if let Some(status) = line.strip_prefix(DOWNLOAD)
            && let Some((percent, what)) = of_apt(status)
            && self.total > 0
        {
            let done = self.total as f64 * percent / 100.0;
            stage.set_bytes((done as u64).min(self.total), self.total);
            stage.window(what);
        }
    }
}

/// Percent and words of a status of apt, `2:17.2993:Retrieving file 2 of 3`: of the bytes of all files.
fn of_apt(status: &str) -> Option<(f64, &str)> {
    let mut fields = status.splitn(3, ':').skip(1);
    let (percent, what) = (fields.next()?.parse::<f64>().ok()?, fields.next()?);
    (0.0..=100.0).contains(&percent).then_some((percent, what))
}

/// The error that pinned packages are gone.
pub fn gone(pins: &[PackagePin], suite: &str) -> Failure {
    let what = format!(
        "Debian {suite} no longer offers {} of the lock: {}",
        count(pins.len()),
        name(pins.iter())
    );
    Failure::new(ExitKind::LockStale, what)
        .hint("`smolbuild lock` takes the versions that are offered now")
}

fn count(packages: usize) -> String {
    match packages {
        1 => "1 package".into(),
        n => format!("{n} packages"),
    }
}

fn name<'a>(pins: impl ExactSizeIterator<Item = &'a PackagePin>) -> String {
    let more = pins.len().saturating_sub(MOST_NAMED);
    let mut names: Vec<_> = pins
        .take(MOST_NAMED)
        .map(|pin| format!("{} {}", pin.name, pin.version))
        .collect();
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

/// What a hook has left in an otherwise empty system.
struct Asked {
    tree: Tree,
    scratch: fetch::Scratch,
}

/// Runs `script` as a hook of an empty system of the release `suite`.
///
/// `status` gets what that says of downloads.
fn ask(
    suite: &str,
    script: &str,
    downloads: &Path,
    status: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<Asked> {
    let scratch = fetch::Scratch::new(downloads)?;
    let folder: PathBuf = scratch.path().canonicalize()?;
    let out = folder.join("asked.tar");
    let mut command = mmdebstrap::command(&folder, Network::Host)?;
    command
        .arg("--variant=custom")
        .arg(format!("--customize-hook={script}"))
        .arg("--")
        .arg(suite)
        .arg(&out);
    // Its other progress is about a system that is thrown away.
    mmdebstrap::run(command, status, interrupt)?;
    let mut tree = Tree::new();
    tree.apply_tar(&out)?;
    Ok(Asked { tree, scratch })
}

impl Asked {
    fn text(&self, path: &str) -> Result<String> {
        let bytes = self.tree.read(path, MAX_LIST)?;
        let bytes = bytes.with_context(|| format!("the hook of mmdebstrap left no {path}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Moves the packages that are missing into `downloads`, each under its digest.
    fn keep(&self, missing: &mut Vec<PackagePin>, downloads: &Path) -> Result<()> {
        for (path, _, inode) in self.tree.walk() {
            let Node::File(source) = &inode.node else {
                continue;
            };
            if !path.starts_with(b"debs/") {
                continue;
            }
            let sha256 = hash::sha256_of(|hasher| source.copy_to(hasher))?;
            let Some(at) = missing.iter().position(|pin| pin.sha256 == sha256) else {
                continue;
            };
            let place = fetch::place(downloads, &sha256);
            let store = || -> Result<()> {
                let mut new = tempfile::NamedTempFile::new_in(self.scratch.path())?;
                source.copy_to(&mut new)?;
                new.as_file().sync_all()?;
                fs::set_permissions(
                    new.path(),
                    std::os::unix::fs::PermissionsExt::from_mode(0o644),
                )?;
                new.persist(&place)?;
                Ok(())
            };
            store().with_context(|| format!("cannot store {}", place.display()))?;
            missing.remove(at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<PackagePin> {
        ["bash", "caddy", "passwd"]
            .map(|name| PackagePin {
                name: name.into(),
                version: "1".into(),
                arch: "all".into(),
                sha256: "ab".repeat(32),
            })
            .into()
    }

    #[test]
    fn what_the_request_does_not_need_is_for_the_installation_alone() {
        let whole = "passwd=1\nbash=1\ncaddy=1\n";
        let chosen = split("caddy=1\nbash=1\n", whole, records()).unwrap();
        assert_eq!(chosen.packages, records()[..2]);
        assert_eq!(chosen.install_only, records()[2..]);
    }

    /// An apt-get that installs what is named, unless a name is in the file `conflicts`, and an
    /// apt-cache that knows some packages.
    const FAKE_APT: [(&str, &str); 2] = [
        (
            "apt-get",
            r#"#!/bin/sh
shift 4
for name; do
    name=${name%%=*}
    if grep -qx "$name" "$0-conflicts"; then exit 100; fi
    echo "Inst $name (1 Debian:12/stable [all])"
    echo "Conf $name (1 Debian:12/stable [all])"
done"#,
        ),
        (
            "apt-cache",
            r#"#!/bin/sh
case $1 in
dumpavail)
    for name in tzdata passwd; do printf 'Package: %s\nPriority: required\n\n' $name; done
    printf 'Package: curl\nDescription: a\n Priority: required\nPriority: optional\n\n' ;;
show) shift; echo "$@" ;;
esac"#,
        ),
    ];

    #[test]
    fn packages_are_chosen_with_and_without_those_required_that_do_not_conflict() {
        let scratch = tempfile::tempdir().unwrap();
        let bin = scratch.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for (name, text) in FAKE_APT {
            fs::write(bin.join(name), text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(bin.join(name), mode).unwrap();
        }
        let choose = |conflicts: &str| {
            fs::write(bin.join("apt-get-conflicts"), conflicts).unwrap();
            let script = format!("set -e; essential=bash; root=$0; set -- 'caddy'; {CHOOSE}");
            let path = format!("{}:/usr/bin:/bin", bin.display());
            let status = std::process::Command::new("sh")
                .args(["-c", &script])
                .arg(scratch.path())
                .env("PATH", path)
                .status()
                .unwrap();
            let text = |name| fs::read_to_string(scratch.path().join(name)).unwrap();
            (
                status.success(),
                text("names"),
                text("whole"),
                text("records"),
            )
        };
        let names = "bash=1\ncaddy=1\n".to_owned();
        let whole = format!("{names}passwd=1\ntzdata=1\n");
        let records = "bash=1 caddy=1 passwd=1 tzdata=1\n".to_owned();
        assert_eq!(choose("vim\n"), (true, names.clone(), whole, records));
        let whole = format!("{names}tzdata=1\n");
        let records = "bash=1 caddy=1 tzdata=1\n".to_owned();
        assert_eq!(choose("passwd\n"), (true, names, whole, records));
        assert!(!choose("caddy\n").0);
    }

    #[test]
    fn the_status_of_a_download_is_read_and_what_is_none_is_left() {
        let read = of_apt("2:17.2993:Retrieving file 2 of 3");
        assert_eq!(read, Some((17.2993, "Retrieving file 2 of 3")));
        for wrong in ["", "2", "2:17", "2:x:y", "2:-1:y", "2:1e9:y", "2:NaN:y"] {
            assert_eq!(of_apt(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_package_without_a_record_or_in_another_version_is_an_error() {
        let whole = "bash=1\ncaddy=1\npasswd=1\n";
        for (names, whole) in [
            ("", whole),
            ("bash=1\ncaddy=2\n", whole),
            ("bash=1\nmawk=1\n", whole),
            ("bash=1\n", "bash=1\ncaddy=1\npasswd=2\n"),
            ("bash=1\n", "bash=1\ncaddy=1\n"),
            ("bash=1\n", "bash=1\ncaddy=1\nmawk=1\npasswd=1\n"),
        ] {
            let error = split(names, whole, records()).unwrap_err().to_string();
            assert!(error.contains("has records of"), "{names:?}: {error}");
        }
    }
}
