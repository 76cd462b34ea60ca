//! Running mmdebstrap, once for each distinct system.
//!
//! An entry of the cache is a tar archive named by the digest of all that determines it. It is made
//! under another name while its lock file is held and renamed when complete, so there is never half
//! an entry; what a killed run left is removed by the next. Whoever uses an entry holds its lock
//! shared.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, geteuid, kill_process_group, set_parent_process_death_signal};
use smol_cli::{ErrorExt, ExitKind, Failure, Interrupt};

use super::DebianSpec;

/// Part of the cache key: count up when the command below gives different archives.
const RECIPE: u32 = 2;
/// Time given to files that have none of their own. Any value that never changes will do; the image
/// clamps times itself.
const EPOCH: &str = "1700000000";
/// A hook that comes with mmdebstrap: links /bin and the like into /usr itself instead of
/// installing `usrmerge`, which would bring 45 MB of Perl along.
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/maybe-merged-usr";
/// Lines of mmdebstrap's output shown when it fails.
const LAST_LINES: usize = 15;

/// Where the hook below leaves its list: `NAME VERSION ARCH SHA256` lines.
pub const OFFERED: &str = "var/cache/smol-offered";
/// Saves what packages were on offer and their digests, from the indexes that apt has verified.
const OFFERED_HOOK: &str = r#"/usr/lib/apt/apt-helper cat-file "$1"/var/lib/apt/lists/*_Packages* | awk '
    function put() { if (p != "") print p, v, a, s; p = v = a = s = "" }
    /^Package: / { p = $2 } /^Version: / { v = $2 } /^Architecture: / { a = $2 } /^SHA256: / { s = $2 }
    /^$/ { put() } END { put() }' > "$1/var/cache/smol-offered""#;

/// A complete entry of the cache, locked shared.
pub struct Entry {
    /// The installed system, a tar archive.
    pub archive: PathBuf,
    /// Keeps the archive as it is.
    pub lock: File,
}

/// The entry for `spec`, installed now if there is none.
pub fn installed(
    spec: &DebianSpec,
    cache: &Path,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<Entry> {
    let sources = spec.sources.as_ref().map(fs::read).transpose();
    let sources = sources.with_context(|| format!("cannot read apt sources {:?}", spec.sources))?;
    let key = cache_key(spec, sources.as_deref());
    let cannot = || format!("cannot use the cache directory {}", cache.display());
    fs::create_dir_all(cache).with_context(cannot)?;
    // mmdebstrap runs elsewhere.
    let cache = &cache.canonicalize().with_context(cannot)?;
    let lock = File::options()
        .create(true)
        .append(true)
        .open(cache.join(format!("{key}.lock")));
    let lock = lock.with_context(cannot)?;
    let archive = cache.join(format!("{key}.tar"));
    lock.lock_shared().with_context(cannot)?;
    if spec.refresh || !archive.exists() {
        lock_alone(&lock, progress, interrupt)?;
        if spec.refresh || !archive.exists() {
            install(spec, &archive, progress, interrupt)?;
        }
        // Between the two locks another may replace the entry, but there will be one.
        lock.lock_shared().with_context(cannot)?;
    }
    Ok(Entry { archive, lock })
}

/// Change a shared lock to an exclusive one.
fn lock_alone(lock: &File, progress: &mut dyn FnMut(&str), interrupt: &Interrupt) -> Result<()> {
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the cache"),
            Err(TryLockError::WouldBlock) if !told => {
                told = true;
                progress("waiting for another smolbuild that uses the same packages");
            }
            Err(TryLockError::WouldBlock) => {
                interrupt.wait(Some(Duration::from_millis(200)))?;
                interrupt.check()?;
            }
        }
    }
}

fn cache_key(spec: &DebianSpec, sources: Option<&[u8]>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("smolbuild debian root file system cache key");
    let packages = spec.packages.join(" ");
    let recipe = RECIPE.to_string();
    let merged = Path::new(MERGED_USR).exists().to_string();
    let parts: [&[u8]; 8] = [
        recipe.as_bytes(),
        merged.as_bytes(),
        OFFERED_HOOK.as_bytes(),
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

/// Make the entry `archive`; its lock is held.
fn install(
    spec: &DebianSpec,
    archive: &Path,
    progress: &mut dyn FnMut(&str),
    interrupt: &Interrupt,
) -> Result<()> {
    let Some(mmdebstrap) = find_program("mmdebstrap") else {
        let missing =
            "mmdebstrap, which installs the packages of [rootfs] debian, is not installed";
        return Err(Failure::new(ExitKind::Host, missing)
            .hint("install it: apt-get install mmdebstrap")
            .hint("or give [rootfs] a `tar` archive or a `dir` instead")
            .into());
    };
    let work = Work::new(archive.with_extension("work"))?;
    let made = work.0.join("rootfs.tar");
    let mut command = confined(mmdebstrap.as_os_str());
    command
        .args(["--variant=essential", "--format=tar"])
        .args([
            "--aptopt=Acquire::Languages \"none\"",
            "--dpkgopt=force-unsafe-io",
        ])
        .arg(format!("--customize-hook={OFFERED_HOOK}"));
    if Path::new(MERGED_USR).exists() {
        command.arg(format!("--hook-dir={MERGED_USR}"));
    }
    if !spec.packages.is_empty() {
        command.arg(format!("--include={}", spec.packages.join(" ")));
    }
    if geteuid().is_root() {
        command.arg("--mode=root").env("TMPDIR", &work.0);
    } else {
        // The user that mmdebstrap becomes may not look into our cache: leave it in /tmp.
        command.arg("--mode=unshare");
    }
    let sources = spec.sources.as_ref().map(fs::canonicalize).transpose()?;
    command.arg("--").arg(&spec.suite).arg(&made).args(&sources);
    command
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir("/");
    let done = run(command, progress, interrupt);
    let done = done.with_context(|| format!("cannot install a Debian {} system", spec.suite));
    if geteuid().is_root() {
        done?;
    } else {
        done.hint(
            "without root mmdebstrap needs the package uidmap, and a range of users for you in \
             /etc/subuid and /etc/subgid",
        )?;
    }
    File::open(&made)
        .and_then(|file| file.sync_all())
        .context("cannot store the packages")?;
    fs::rename(&made, archive).with_context(|| format!("cannot make {}", archive.display()))
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

/// A command that runs `program` such that it ends with us, however we end: as root in a PID and
/// mount namespace of its own, whose first process dies with its parent and takes all others and
/// their mounts along.
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
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe and
    // allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command
}

/// Run to the end, or until the interrupt. What it says goes to `progress`, its end into the error
/// if it fails.
fn run(mut command: Command, progress: &mut dyn FnMut(&str), interrupt: &Interrupt) -> Result<()> {
    let mut group = Group(command.spawn().context("cannot start mmdebstrap")?);
    let mut stderr = group.0.stderr.take().context("mmdebstrap has no output")?;
    let mut said = Said::default();
    while said.read(&mut stderr, interrupt)? {
        said.lines(progress);
    }
    let status = group.0.wait().context("cannot wait for mmdebstrap")?;
    if status.success() {
        return Ok(());
    }
    let error = said.first_error.unwrap_or_else(|| status.to_string());
    let last = Vec::from(said.last).join("\n  ");
    Err(anyhow!("mmdebstrap: {error}\nits last lines:\n  {last}"))
        .hint("check the package names and the network")
}

/// What a running mmdebstrap has said.
#[derive(Default)]
struct Said {
    /// Bytes that are not a whole line yet.
    rest: Vec<u8>,
    last: VecDeque<String>,
    first_error: Option<String>,
}

impl Said {
    /// Wait for more; `false` at the end.
    fn read(&mut self, stderr: &mut ChildStderr, interrupt: &Interrupt) -> Result<bool> {
        let mut fds = [
            PollFd::new(stderr, PollFlags::IN),
            PollFd::new(interrupt, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => interrupt.check()?,
            Err(error) => return Err(error).context("cannot wait for mmdebstrap"),
        }
        if fds[0].revents().is_empty() {
            return Ok(true);
        }
        let mut buffer = [0; 8192];
        let read = rustix::io::read(&*stderr, &mut buffer);
        let read = read.context("cannot read what mmdebstrap says")?;
        self.rest.extend(&buffer[..read]);
        Ok(read > 0)
    }

    /// Take note of the whole lines.
    fn lines(&mut self, progress: &mut dyn FnMut(&str)) {
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // Progress bars overwrite themselves.
            let shown = line
                .rsplit('\r')
                .map(str::trim)
                .find(|part| !part.is_empty());
            let line = shown.unwrap_or_default();
            // "I: installing essential packages...": the rest is about mmdebstrap itself.
            if let Some(step) = line
                .strip_prefix("I: ")
                .and_then(|step| step.strip_suffix("..."))
            {
                progress(step);
            }
            if line.starts_with("E: ") {
                self.first_error.get_or_insert_with(|| line.to_owned());
            }
            if self.last.len() == LAST_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line.to_owned());
        }
    }
}

/// A child that leads a process group, none of which outlives us.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            if let Some(group) = Pid::from_raw(self.0.id() as i32) {
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
            ..DebianSpec::default()
        };
        let key = cache_key(&base, None);
        let same = DebianSpec {
            refresh: true,
            ..base.clone()
        };
        assert_eq!(cache_key(&same, None), key);
        let others = [
            DebianSpec {
                suite: "trixie".into(),
                ..base.clone()
            },
            DebianSpec {
                packages: vec!["redis-server".into()],
                ..base.clone()
            },
            DebianSpec {
                snapshot: "2".into(),
                ..base.clone()
            },
        ];
        for other in others {
            assert_ne!(cache_key(&other, None), key, "{other:?}");
        }
        assert_ne!(
            cache_key(&base, Some(b"deb file:/mirror bookworm main")),
            key
        );
    }

    fn shell(script: &str) -> Command {
        let mut command = confined(OsStr::new("/bin/sh"));
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failing_command_reports_its_first_error_and_its_last_lines() {
        let script =
            "echo E: first >&2; for n in $(seq 50); do echo I: line $n... >&2; done; exit 3";
        let mut lines = Vec::new();
        let interrupt = Interrupt::detached().unwrap();
        let error = run(
            shell(script),
            &mut |line| lines.push(line.to_string()),
            &interrupt,
        );
        let error = format!("{:#}", error.unwrap_err());
        assert_eq!((lines.len(), lines[49].as_str()), (50, "line 50"));
        assert!(
            error.contains("E: first") && error.contains("line 50"),
            "{error}"
        );
        assert!(
            error.contains("line 36") && !error.contains("line 35"),
            "{error}"
        );
    }

    #[test]
    fn an_interrupt_ends_the_command_and_its_children() {
        let scratch = tempfile::tempdir().unwrap();
        let alive = scratch.path().join("alive");
        let script = "(while sleep 0.1; do date +%N > $0; done) & wait";
        let mut command = shell(script);
        command.arg(&alive);
        let interrupt = Interrupt::detached().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !alive.exists() {
                    std::thread::sleep(Duration::from_millis(20));
                }
                interrupt.trigger();
            });
            let error = run(command, &mut |_| {}, &interrupt).unwrap_err();
            assert_eq!(smol_cli::exit_kind(&error), ExitKind::Terminated);
        });
        let before = fs::read(&alive).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(fs::read(&alive).unwrap(), before, "a child lives on");
    }
}
