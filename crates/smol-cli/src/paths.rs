//! Where smol keeps its files, by the XDG Base Directory Specification 0.8.
//!
//! | what | override | else | else |
//! |---|---|---|---|
//! | cache (can be deleted at any time) | `SMOL_CACHE_DIR` | `$XDG_CACHE_HOME/smol` | `~/.cache/smol` |
//! | config (trusted keys) | `SMOL_CONFIG_DIR` | `$XDG_CONFIG_HOME/smol` | `~/.config/smol` |
//! | runtime (running machines) | `SMOL_RUNTIME_DIR` | `$XDG_RUNTIME_DIR/smol` | `/run/user/UID/smol`, a private `smol-UID` in the temporary folder |

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::{ErrorExt, ExitKind, Failure};

/// Returns the cache folder, which is created when absent. Everything in it can be made
/// again.
///
/// What is found in it is used without further questions, so nobody else may have put it there.
///
/// # Errors
/// It, or a folder in it, belongs to somebody else or can be written to by others (of kind Host).
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    let dir = base_dir(&env, "SMOL_CACHE_DIR", "XDG_CACHE_HOME", ".cache")?;
    require_cache(&dir)?;
    Ok(dir)
}

fn require_cache(dir: &Path) -> anyhow::Result<()> {
    const ELSEWHERE: &str = "SMOL_CACHE_DIR names another cache folder";
    // Users that mmdebstrap becomes go through it.
    create(dir, 0o755).hint(ELSEWHERE)?;
    require_ours(dir, "the cache folder").hint(ELSEWHERE)?;
    let cannot = || format!("cannot read the cache folder {}", dir.display());
    let entries = fs::read_dir(dir).with_context(cannot);
    for entry in entries.kind(ExitKind::Host)? {
        let entry = entry.with_context(cannot).kind(ExitKind::Host)?;
        // A link of ours may lead to a folder elsewhere; one that is gone by now is none of ours.
        let path = entry.path();
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                check_ours(&path, &found, "the cache folder").hint(ELSEWHERE)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Creates a folder of the cache, with those above it, such that nobody else can write to it, whatever
/// the umask is: [`cache_dir`] would refuse it the next time.
///
/// # Errors
/// Those of the file system.
pub fn create_in_cache(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
}

/// Checks that a folder or file belongs to this user, and that nobody else can write to it. `what` it is
/// begins the error.
///
/// # Errors
/// It does not, with what to do about it (of kind Host); it cannot be looked at.
pub fn require_ours(path: &Path, what: &str) -> anyhow::Result<()> {
    let found = fs::metadata(path);
    let found = found.with_context(|| format!("cannot look at {}", path.display()));
    check_ours(path, &found.kind(ExitKind::Host)?, what)
}

fn check_ours(path: &Path, found: &fs::Metadata, what: &str) -> anyhow::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let shown = path.display();
    let (wrong, fix) = if found.uid() != uid {
        let whose = format!("belongs to user {}, not to user {uid}", found.uid());
        (
            whose,
            format!("remove it, if it is of no use to them: rm -r {shown}"),
        )
    } else if found.mode() & 0o022 != 0 {
        let open = format!(
            "can be written to by others (mode {:o})",
            found.mode() & 0o7777
        );
        let remedy = "if you trust what they may have put there";
        (
            open,
            format!("{remedy}: chmod -R go-w {shown}; else: rm -r {shown}"),
        )
    } else {
        return Ok(());
    };
    let failure = Failure::new(ExitKind::Host, format!("{what} {shown} {wrong}"));
    Err(failure.hint(fix).into())
}

/// Returns the config folder. It need not exist.
pub fn config_dir() -> anyhow::Result<PathBuf> {
    base_dir(&env, "SMOL_CONFIG_DIR", "XDG_CONFIG_HOME", ".config")
}

/// Returns the folder of running machines, which is created when absent: ours alone (mode 0700), so
/// that nobody else can reach a machine's sockets or put files in their place.
pub fn runtime_dir() -> anyhow::Result<PathBuf> {
    let dir = runtime_path(
        &env,
        rustix::process::getuid().as_raw(),
        Path::new("/run/user"),
    );
    private_dir(&dir)
        .kind(ExitKind::Host)
        .hint("SMOL_RUNTIME_DIR names another runtime folder")?;
    Ok(dir)
}

type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Returns a folder named by the environment. XDG says that relative paths are to be ignored; our
/// own variables may be relative to the working folder.
fn named(env: Env, name: &str, relative: bool) -> Option<PathBuf> {
    let path = PathBuf::from(env(name).filter(|value| !value.is_empty())?);
    match path.is_absolute() {
        true => Some(path),
        false if relative => std::path::absolute(path).ok(),
        false => None,
    }
}

fn base_dir(env: Env, own: &str, xdg: &str, in_home: &str) -> anyhow::Result<PathBuf> {
    if let Some(dir) = named(env, own, true) {
        return Ok(dir);
    }
    if let Some(base) = named(env, xdg, false) {
        return Ok(base.join("smol"));
    }
    let home = named(env, "HOME", false).ok_or_else(|| {
        Failure::new(
            ExitKind::Host,
            format!("none of {own}, {xdg} and HOME names a folder"),
        )
        .hint(format!("set {own} to the folder to use"))
    })?;
    Ok(home.join(in_home).join("smol"))
}

fn runtime_path(env: Env, uid: u32, run_user: &Path) -> PathBuf {
    if let Some(dir) = named(env, "SMOL_RUNTIME_DIR", true) {
        return dir;
    }
    let ours = |dir: &Path| fs::metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid);
    // Under sudo, XDG_RUNTIME_DIR may still be that of the calling user.
    if let Some(base) = named(env, "XDG_RUNTIME_DIR", false).filter(|base| ours(base)) {
        return base.join("smol");
    }
    let base = run_user.join(uid.to_string());
    if ours(&base) {
        return base.join("smol");
    }
    let temporary = named(env, "TMPDIR", false).unwrap_or_else(|| PathBuf::from("/tmp"));
    temporary.join(format!("smol-{uid}"))
}

fn create(dir: &Path, mode: u32) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .with_context(|| format!("cannot create the folder {}", dir.display()))
        .kind(ExitKind::Host)
}

/// Creates a folder of mode 0700, or checks that the existing one is a real folder, ours, and
/// closed to others: a name in the temporary folder may have been taken by anyone.
fn private_dir(dir: &Path) -> anyhow::Result<()> {
    if let Some(parent) = dir.parent() {
        create(parent, 0o755)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot create the folder {}", dir.display()));
        }
    }
    let meta =
        fs::symlink_metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    let uid = rustix::process::getuid().as_raw();
    let wrong = if !meta.is_dir() {
        "is not a folder".to_owned()
    } else if meta.uid() != uid {
        format!("belongs to user {}, not to user {uid}", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        format!("is open to other users (mode {:o})", meta.mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(Failure::new(
        ExitKind::Host,
        format!("the runtime folder {} {wrong}", dir.display()),
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_cache_are_closed_to_others_under_every_umask() {
        const UMASK: &str = "TEST_WITH_UMASK";
        let name = "paths::tests::folders_of_the_cache_are_closed_to_others_under_every_umask";
        if std::env::var_os(UMASK).is_none() {
            // The umask is the whole process's.
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let status = again.args(["--exact", name]).env(UMASK, "2").status();
            assert!(status.unwrap().success());
            return;
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o002));
        let scratch = tempfile::tempdir().unwrap();
        let cache = scratch.path().join("cache");
        require_cache(&cache).unwrap();
        create_in_cache(&cache.join("kernels/one")).unwrap();
        require_cache(&cache).unwrap();
        fs::create_dir(cache.join("open")).unwrap();
        assert!(require_cache(&cache).is_err());
    }

    #[test]
    fn a_cache_that_others_can_write_to_is_refused_with_the_folder() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = tempfile::tempdir().unwrap();
        let cache = scratch.path().join("cache");
        require_cache(&cache).unwrap();
        fs::create_dir(cache.join("built")).unwrap();
        fs::set_permissions(cache.join("built"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(cache.join("console.log"), "").unwrap();
        require_cache(&cache).unwrap();
        for (folder, mode) in [
            ("", 0o770),
            ("", 0o1777),
            ("built", 0o775),
            ("built", 0o757),
        ] {
            let folder = if folder.is_empty() {
                cache.clone()
            } else {
                cache.join(folder)
            };
            let before = fs::metadata(&folder).unwrap().permissions();
            fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).unwrap();
            let error = require_cache(&cache).unwrap_err();
            let text = crate::error::render(&error, false);
            let says = format!(
                "{} can be written to by others (mode {mode:o})",
                folder.display()
            );
            assert!(
                text.contains(&says) && text.contains("chmod -R go-w"),
                "{text}"
            );
            assert_eq!(crate::exit_kind(&error), ExitKind::Host);
            fs::set_permissions(&folder, before).unwrap();
        }
        // Only root can give a folder away.
        if std::os::unix::fs::chown(cache.join("built"), Some(65534), None).is_ok() {
            let error = require_cache(&cache).unwrap_err().to_string();
            assert!(
                error.contains("built belongs to user 65534, not to user 0"),
                "{error}"
            );
        }
    }
    use std::os::unix::fs::PermissionsExt;

    fn lookup<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.into())
        }
    }

    fn cache(pairs: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
        base_dir(&lookup(pairs), "SMOL_CACHE_DIR", "XDG_CACHE_HOME", ".cache")
    }

    /// A folder of this test alone, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("smol-cli-{name}-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn our_own_variable_wins_over_xdg_and_xdg_over_home() {
        let all = [
            ("SMOL_CACHE_DIR", "/own"),
            ("XDG_CACHE_HOME", "/xdg"),
            ("HOME", "/home/u"),
        ];
        assert_eq!(cache(&all).unwrap(), Path::new("/own"));
        assert_eq!(cache(&all[1..]).unwrap(), Path::new("/xdg/smol"));
        assert_eq!(cache(&all[2..]).unwrap(), Path::new("/home/u/.cache/smol"));
    }

    #[test]
    fn empty_and_relative_xdg_variables_are_ignored() {
        let home = ("HOME", "/home/u");
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "rel"), home]).unwrap(),
            Path::new("/home/u/.cache/smol")
        );
        assert_eq!(
            cache(&[("SMOL_CACHE_DIR", ""), home]).unwrap(),
            Path::new("/home/u/.cache/smol")
        );
    }

    #[test]
    fn without_home_the_message_says_what_to_set() {
        let error = cache(&[]).unwrap_err();
        assert_eq!(
            crate::error::render(&error, false),
            "error: none of SMOL_CACHE_DIR, XDG_CACHE_HOME and HOME names a folder\n  hint: set SMOL_CACHE_DIR to the folder to use\n"
        );
        assert_eq!(crate::exit_kind(&error), ExitKind::Host);
    }

    #[test]
    fn the_runtime_folder_is_in_a_base_that_is_ours_else_in_the_temporary_folder() {
        let scratch = Scratch::new("runtime");
        let uid = rustix::process::getuid().as_raw();
        let base = scratch.0.to_str().unwrap();
        let none = Path::new("/nonexistent");
        assert_eq!(
            runtime_path(&lookup(&[("XDG_RUNTIME_DIR", base)]), uid, none),
            scratch.0.join("smol")
        );
        // A base of another user is passed over.
        let of_other = runtime_path(
            &lookup(&[("XDG_RUNTIME_DIR", base), ("TMPDIR", "/t")]),
            uid + 1,
            none,
        );
        assert_eq!(of_other, Path::new(&format!("/t/smol-{}", uid + 1)));
        fs::create_dir(scratch.0.join(uid.to_string())).unwrap();
        assert_eq!(
            runtime_path(&lookup(&[]), uid, &scratch.0),
            scratch.0.join(uid.to_string()).join("smol")
        );
    }

    #[test]
    fn a_new_runtime_folder_is_closed_to_others_and_accepted_again() {
        let scratch = Scratch::new("private");
        let dir = scratch.0.join("smol");
        private_dir(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        private_dir(&dir).unwrap();
    }

    #[test]
    fn a_runtime_folder_open_to_others_is_refused() {
        let scratch = Scratch::new("open");
        let dir = scratch.0.join("smol");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let error = private_dir(&dir).unwrap_err().to_string();
        assert!(
            error.ends_with("is open to other users (mode 755)"),
            "{error}"
        );
    }

    #[test]
    fn a_symlink_in_place_of_the_runtime_folder_is_refused() {
        let scratch = Scratch::new("symlink");
        let dir = scratch.0.join("smol");
        std::os::unix::fs::symlink(&scratch.0, &dir).unwrap();
        let error = private_dir(&dir).unwrap_err().to_string();
        assert!(error.ends_with("is not a folder"), "{error}");
    }
}
