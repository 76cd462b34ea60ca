//! Asking Debian's archive: which packages a system takes, and the packages themselves.
//!
//! Both go through apt in an empty system that mmdebstrap sets up for a release, so that the host's
//! own apt and release do not matter. apt checks the signatures of its lists.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};

use super::mmdebstrap::{self, quoted};
use super::packages;
use crate::fetch::{self, Net};
use crate::hash;
use crate::lock::PackagePin;
use smol_rootfs::{Node, Tree};

/// Largest list read.
const MAX_LIST: u64 = 64 << 20;
/// Most packages that an error names.
const MOST_NAMED: usize = 10;

/// All packages of a system with the essential ones and `requested`, and those that they depend on,
/// in the newest versions that the release `suite` offers. Nothing is downloaded but the lists.
///
/// # Errors
/// mmdebstrap is missing or fails: no network, or a package or release that is not there.
pub fn resolve(
    suite: &str,
    requested: &[String],
    downloads: &Path,
    interrupt: &Interrupt,
) -> Result<Vec<PackagePin>> {
    let requested: Vec<_> = requested.iter().map(|name| quoted(name)).collect();
    let script = format!(
        r#"set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
merged=
if apt-cache show --no-all-versions usr-is-merged >/dev/null 2>&1; then merged=usr-is-merged; fi
apt-get -qq --simulate --no-install-recommends install {essential} $merged {requested} > "$1/plan"
sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p' "$1/plan" > "$1/names"
apt-cache show $(cat "$1/names") > "$1/records""#,
        essential = quoted(&format!(
            "?narrow(?or(?archive(^{suite}$),?codename(^{suite}$)),?essential)"
        )),
        requested = requested.join(" "),
    );
    let asked = ask(suite, &script, downloads, interrupt)
        .with_context(|| format!("cannot choose the packages of a Debian {suite} system"))
        .hint("check the package names and the network")?;
    let names = asked.text("names")?;
    let pins = packages::parse_records(&asked.text("records")?);
    let mut chosen: Vec<_> = names.lines().map(str::to_owned).collect();
    let mut found: Vec<_> = pins
        .iter()
        .map(|pin| format!("{}={}", pin.name, pin.version))
        .collect();
    chosen.sort();
    found.sort();
    ensure!(
        !chosen.is_empty() && chosen == found,
        "apt chose {} packages and has records of {}",
        chosen.len(),
        found.len()
    );
    Ok(pins)
}

/// Downloads these packages of the release `suite` into the folder `downloads`, unless they are in it,
/// and returns those that are not offered any more.
///
/// # Errors
/// One is missing and `net` allows no download; mmdebstrap is missing or fails; no disk space.
pub fn fetch(
    suite: &str,
    pins: &[PackagePin],
    downloads: &Path,
    net: Net,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<Vec<PackagePin>> {
    let mut missing = Vec::new();
    for pin in pins {
        let place = fetch::place(downloads, &pin.sha256);
        if !place.exists() || hash::sha256(&place)? != pin.sha256 {
            missing.push(pin.clone());
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
    progress(&format!("fetching {}", count(missing.len())));
    let wanted = missing.iter().fold(String::new(), |mut lines, pin| {
        let _ = writeln!(lines, "{}={} {}", pin.name, pin.version, pin.sha256);
        lines
    });
    let names: Vec<_> = missing.iter().map(|pin| pin.name.as_str()).collect();
    // Only what is offered as it is pinned: apt-get downloads all or nothing.
    let script = format!(
        r#"set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir "$1/debs" && cd "$1/debs"
printf %s {wanted} > ../wanted
(apt-cache show --all-versions {names} || true) 2>/dev/null | awk '
    function put() {{ if (p != "") print p "=" v " " s; p = v = s = "" }}
    /^Package: / {{ p = $2 }} /^Version: / {{ v = $2 }} /^SHA256: / {{ s = $2 }}
    /^$/ {{ put() }} END {{ put() }}' | sort -u > ../offered
grep -Fxf ../wanted ../offered | cut -d' ' -f1 > ../available || true
if [ -s ../available ]; then apt-get -qq download $(cat ../available); fi"#,
        wanted = quoted(&wanted),
        names = names.join(" "),
    );
    let asked = ask(suite, &script, downloads, interrupt)
        .with_context(|| format!("cannot fetch packages of Debian {suite}"))
        .hint("check the network")?;
    asked.keep(&mut missing, downloads)?;
    Ok(missing)
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
fn ask(suite: &str, script: &str, downloads: &Path, interrupt: &Interrupt) -> Result<Asked> {
    let scratch = fetch::Scratch::new(downloads)?;
    let folder: PathBuf = scratch.path().canonicalize()?;
    let out = folder.join("asked.tar");
    let mut command = mmdebstrap::command(&folder)?;
    command
        .arg("--variant=custom")
        .arg(format!("--customize-hook={script}"))
        .arg("--")
        .arg(suite)
        .arg(&out);
    // Its progress is about a system that is thrown away.
    mmdebstrap::run(command, &mut |_| {}, interrupt)?;
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
