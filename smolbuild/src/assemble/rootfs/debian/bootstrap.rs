//! Running mmdebstrap, once for each distinct system.
//!
//! An entry of the cache is a directory named by the digest of all that determines it. It is made under another name while
//! its lock file is held and renamed when complete, so there is never half an entry; what a killed run left is removed by
//! the next. Whoever uses an entry holds its lock shared.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, geteuid, kill_process_group, set_parent_process_death_signal};

use super::DebianSpec;

/// Part of the cache key: count up when the command below gives different archives.
const RECIPE: u32 = 1;
/// Time given to files that have none of their own. Any value that never changes will do; the image clamps times itself.
const EPOCH: &str = "1700000000";
/// A hook that comes with mmdebstrap: links /bin and the like into /usr itself instead of installing `usrmerge`, which would
/// bring 45 MB of Perl along.
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/maybe-merged-usr";
/// Lines of mmdebstrap's output shown when it fails.
const LAST_LINES: usize = 15;

/// Hook that saves name, version, architecture and SHA-256 of all packages on offer, from the indexes apt has verified.
const INDEX_HOOK: &str = r#"/usr/lib/apt/apt-helper cat-file "$1"/var/lib/apt/lists/*_Packages* | awk '
    function put() { if (p != "") print p, v, a, s; p = v = a = s = "" }
    /^Package: / { p = $2 } /^Version: / { v = $2 } /^Architecture: / { a = $2 } /^SHA256: / { s = $2 } /^$/ { put() }
    END { put() }' > "$SMOL_INDEXES""#;

/// A complete entry of the cache, locked shared.
pub struct Entry {
    path: PathBuf,
    pub lock: File,
}

impl Entry {
    /// The installed system.
    pub fn archive(&self) -> PathBuf {
        self.path.join("rootfs.tar")
    }

    /// What the package archive offered.
    pub fn indexes(&self) -> PathBuf {
        self.path.join("packages")
    }
}

/// The entry for `spec`, installed now if there is none.
pub fn installed(spec: &DebianSpec, cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Entry> {
    let sources = spec.sources.as_ref().map(fs::read).transpose();
    let sources = sources.with_context(|| format!("cannot read apt sources {:?}", spec.sources))?;
    let key = cache_key(spec, sources.as_deref());
    fs::create_dir_all(cache)
        .with_context(|| format!("cannot make the cache directory {}", cache.display()))?;
    let lock_path = cache.join(format!("{key}.lock"));
    let lock = File::options().create(true).append(true).open(&lock_path);
    let lock = lock.with_context(|| format!("cannot make {}", lock_path.display()))?;
    let path = cache.join(&key);
    lock.lock_shared().context("cannot lock the cache")?;
    if spec.refresh || !path.exists() {
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            progress("waiting for another smolbuild that installs the same packages");
        }
        lock.lock().context("cannot lock the cache")?;
        if spec.refresh || !path.exists() {
            install(spec, cache, &key, progress)?;
        }
        // Between the two locks another may replace the entry, but there will be one.
        lock.lock_shared().context("cannot lock the cache")?;
    }
    Ok(Entry { path, lock })
}

fn cache_key(spec: &DebianSpec, sources: Option<&[u8]>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("smolbuild debian root file system cache key");
    let packages = spec.packages.join(" ");
    let recipe = RECIPE.to_string();
    let parts: [&[u8]; 8] = [
        recipe.as_bytes(),
        if Path::new(MERGED_USR).exists() {
            b"merged"
        } else {
            b""
        },
        INDEX_HOOK.as_bytes(),
        env::consts::ARCH.as_bytes(),
        spec.suite.as_bytes(),
        packages.as_bytes(),
        sources.unwrap_or(b"default"),
        spec.snapshot.as_bytes(),
    ];
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..32].to_string()
}

/// Make the entry `key`; its lock is held.
fn install(
    spec: &DebianSpec,
    cache: &Path,
    key: &str,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let Some(mmdebstrap) = find_program("mmdebstrap") else {
        bail!(
            "mmdebstrap is not installed; it installs the packages of [rootfs] debian. \
             Install it with `apt-get install mmdebstrap`, or give [rootfs] a tar archive or a directory"
        );
    };
    let work = Work::new(cache.join(format!("{key}.work")))?;
    let entry = work.path.join("entry");
    let temporary = work.path.join("tmp");
    for directory in [&entry, &temporary] {
        fs::create_dir(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    // apt's own user reads below TMPDIR.
    fs::set_permissions(
        &temporary,
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )?;
    let mut command = confined(mmdebstrap.as_os_str());
    command
        .args([
            "--variant=essential",
            "--format=tar",
            "--aptopt=Acquire::Languages \"none\"",
        ])
        .args([
            "--dpkgopt=force-unsafe-io",
            &format!("--customize-hook={INDEX_HOOK}"),
        ])
        .arg(if geteuid().is_root() {
            "--mode=root"
        } else {
            "--mode=unshare"
        });
    if Path::new(MERGED_USR).exists() {
        command.arg(format!("--hook-dir={MERGED_USR}"));
    }
    if !spec.packages.is_empty() {
        command.arg(format!("--include={}", spec.packages.join(" ")));
    }
    command
        .arg(&spec.suite)
        .arg(entry.join("rootfs.tar"))
        .args(&spec.sources);
    command
        .env("SMOL_INDEXES", entry.join("packages"))
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("TMPDIR", &temporary)
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir("/");
    run(command, progress)
        .with_context(|| format!("cannot install a Debian {} system", spec.suite))?;
    let complete = cache.join(key);
    if complete.exists() {
        fs::remove_dir_all(&complete)
            .with_context(|| format!("cannot replace {}", complete.display()))?;
    }
    File::open(entry.join("rootfs.tar"))
        .and_then(|file| file.sync_all())
        .context("cannot store the packages")?;
    fs::rename(&entry, &complete).with_context(|| format!("cannot make {}", complete.display()))
}

/// A directory to work in, removed at the end.
struct Work {
    path: PathBuf,
}

impl Work {
    fn new(path: PathBuf) -> Result<Work> {
        // What a killed run has left behind. Its processes are gone with it, and their mounts with them.
        remove(&path);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Work { path })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    // Nothing to be done about an error here: making the directory will say what is wrong.
    let _ = fs::remove_dir_all(path);
}

/// A command that runs `program` such that it ends with us, however we end: as root in a PID and mount namespace of its own,
/// whose first process dies with its parent and takes all others and their mounts along.
fn confined(program: &OsStr) -> Command {
    let mut command = match find_program("unshare") {
        Some(unshare) if geteuid().is_root() => {
            let mut command = Command::new(unshare);
            command
                .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--"])
                .arg(program);
            command
        }
        _ => Command::new(program),
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command
}

/// Run to the end. What it says goes to `progress`, the last lines of it into the error if it fails.
fn run(mut command: Command, progress: &mut dyn FnMut(&str)) -> Result<()> {
    let mut group = Group(command.spawn().context("cannot start mmdebstrap")?);
    let (mut last, mut first_error) = (VecDeque::new(), None);
    let stderr = group.0.stderr.take().context("mmdebstrap has no output")?;
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("cannot read what mmdebstrap says")?)
            .into_owned();
        // Progress bars overwrite themselves.
        let line = line
            .rsplit('\r')
            .find(|part| !part.trim().is_empty())
            .unwrap_or_default()
            .trim_end();
        // "I: installing essential packages..." and the like; the rest is about mmdebstrap itself.
        if let Some(step) = line
            .strip_prefix("I: ")
            .and_then(|step| step.strip_suffix("..."))
        {
            progress(step);
        }
        if line.starts_with("E: ") {
            first_error.get_or_insert_with(|| line.to_owned());
        }
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line.to_owned());
    }
    let status = group.0.wait().context("cannot wait for mmdebstrap")?;
    if status.success() {
        return Ok(());
    }
    let said = Vec::from(last).join("\n  ");
    let hint = if geteuid().is_root() {
        "check the package names and the network"
    } else {
        "check the package names and the network; without root mmdebstrap also needs the package uidmap \
         and a range for you in /etc/subuid and /etc/subgid"
    };
    let error = first_error.unwrap_or_else(|| status.to_string());
    bail!("mmdebstrap failed: {error}; {hint}. Its last lines:\n  {said}")
}

/// A child that leads a process group, none of which outlives us.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            if let Some(group) = rustix::process::Pid::from_raw(self.0.id() as i32) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.0.wait();
        }
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_decides_the_result_changes_the_cache_key() {
        let base = DebianSpec {
            suite: "bookworm".into(),
            packages: vec!["redis-server".into()],
            ..Default::default()
        };
        let key = cache_key(&base, None);
        assert_eq!(
            key,
            cache_key(
                &DebianSpec {
                    refresh: true,
                    ..base.clone()
                },
                None
            )
        );
        let others = [
            cache_key(
                &DebianSpec {
                    suite: "trixie".into(),
                    ..base.clone()
                },
                None,
            ),
            cache_key(
                &DebianSpec {
                    packages: vec![],
                    ..base.clone()
                },
                None,
            ),
            cache_key(
                &DebianSpec {
                    snapshot: "2".into(),
                    ..base.clone()
                },
                None,
            ),
            cache_key(&base, Some(b"deb file:/mirror bookworm main")),
        ];
        for other in others {
            assert_ne!(other, key);
        }
    }

    #[test]
    fn a_failing_command_reports_its_last_lines() {
        let mut command = confined(OsStr::new("/bin/sh"));
        command.args([
            "-c",
            "for n in $(seq 50); do echo I: line $n... >&2; done; exit 3",
        ]);
        let mut lines = Vec::new();
        let error = run(command, &mut |line| lines.push(line.to_string()))
            .unwrap_err()
            .to_string();
        assert_eq!(lines.len(), 50);
        assert!(
            error.contains("line 50") && error.contains("line 36") && !error.contains("line 35"),
            "{error}"
        );
    }
}
