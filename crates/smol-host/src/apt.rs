//! The little we ask of apt: is it here, the exact command that installs a package, and downloads.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lock_dir::ScratchDir;

/// The user that apt becomes when root runs it, for all that talks to the network.
const SANDBOX_USER: &str = "_apt";

/// A folder for `apt-get download`, removed on drop, or by the next one if we are killed.
///
/// When root runs apt, what talks to the network runs as a user of its own, who has to write into the
/// folder and cannot enter our cache. So the folder is his, in the folder for temporary files. Anybody
/// else's apt runs as who runs it, and has no such user.
#[derive(Debug)]
pub struct DownloadDir {
    folder: ScratchDir,
    sandbox: Sandbox,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sandbox {
    /// The folder belongs to this user.
    User(u32),
    /// We are not root.
    NotNeeded,
    /// There is no such user, as where apt is in no Debian.
    Missing,
}

impl Sandbox {
    fn of(is_root: bool, accounts: &str) -> Sandbox {
        let fields = |line: &str| {
            let mut fields = line.split(':');
            (fields.next() == Some(SANDBOX_USER)).then(|| fields.nth(1)?.parse().ok())?
        };
        match is_root {
            false => Sandbox::NotNeeded,
            true => accounts
                .lines()
                .find_map(fields)
                .map_or(Sandbox::Missing, Sandbox::User),
        }
    }
}

impl DownloadDir {
    /// Makes one, in `parent` unless apt's own user needs it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(parent: &Path) -> io::Result<Self> {
        let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let sandbox = Sandbox::of(rustix::process::geteuid().is_root(), &accounts);
        let folder = match sandbox {
            Sandbox::User(user) => {
                let folder = ScratchDir::create(&std::env::temp_dir(), "smol-apt-")?;
                std::os::unix::fs::chown(folder.path(), Some(user), None)?;
                folder
            }
            Sandbox::NotNeeded | Sandbox::Missing => ScratchDir::create(parent, "fetching-")?,
        };
        Ok(Self { folder, sandbox })
    }

    /// Makes `command`, an apt-get without arguments, download into the folder; the names of the
    /// packages are to be added.
    pub fn configure(&self, command: &mut Command) {
        command.arg("-qq");
        if self.sandbox == Sandbox::Missing {
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command.arg("download").current_dir(self.folder.path());
    }

    /// Copies the packages that were downloaded into the folder `into`, where they belong to us; returns
    /// their paths there. Only regular files are taken.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn take(&self, into: &Path) -> io::Result<Vec<PathBuf>> {
        let mut taken = Vec::new();
        for entry in fs::read_dir(self.folder.path())? {
            let entry = entry?;
            let from = entry.path();
            if from.extension().is_none_or(|extension| extension != "deb") {
                continue;
            }
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let mut file = OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(from)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("apt-get left something that is no file"));
            }
            let place = into.join(entry.file_name());
            io::copy(&mut file, &mut File::create_new(&place)?)?;
            taken.push(place);
        }
        Ok(taken)
    }
}

/// Finds `program` in `$PATH` (and in the sbin folders, which a user's `$PATH` may lack).
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}

/// Returns the command that installs `packages` (Debian names), or, where there is no apt, what to look for.
pub fn install_command(packages: &[&str]) -> String {
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        return format!("install these packages (Debian's names): {list}");
    }
    let sudo = if rustix::process::geteuid().is_root() {
        ""
    } else {
        "sudo "
    };
    format!("{sudo}apt-get install {list}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_downloads_as_apts_own_user_where_there_is_one() {
        let accounts =
            "root:x:0:0::/root:/bin/sh\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n";
        assert_eq!(Sandbox::of(true, accounts), Sandbox::User(42));
        assert_eq!(
            Sandbox::of(true, "_apt2:x:42:1::\n_apt:x\n"),
            Sandbox::Missing
        );
        assert_eq!(Sandbox::of(false, accounts), Sandbox::NotNeeded);
    }

    #[test]
    fn the_sandbox_is_off_only_where_its_user_is_missing() {
        let parent = tempfile::tempdir().unwrap();
        for (sandbox, off) in [
            (Sandbox::User(42), false),
            (Sandbox::NotNeeded, false),
            (Sandbox::Missing, true),
        ] {
            let folder = ScratchDir::create(parent.path(), "x-").unwrap();
            let mut command = Command::new("program");
            DownloadDir { folder, sandbox }.configure(&mut command);
            let args: Vec<_> = command.get_args().collect();
            assert_eq!(args.contains(&"APT::Sandbox::User=root".as_ref()), off);
            assert_eq!(args.last().unwrap(), &"download");
        }
    }

    #[test]
    fn packages_are_taken_as_files_of_ours_and_links_are_not() {
        let (parent, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dir = DownloadDir::new(parent.path()).unwrap();
        fs::write(dir.folder.path().join("a_1.deb"), "package").unwrap();
        fs::write(dir.folder.path().join("else"), "").unwrap();
        assert_eq!(
            dir.take(into.path()).unwrap(),
            [into.path().join("a_1.deb")]
        );
        assert_eq!(fs::read(into.path().join("a_1.deb")).unwrap(), b"package");
        std::os::unix::fs::symlink("/etc/passwd", dir.folder.path().join("b_1.deb")).unwrap();
        fs::remove_file(into.path().join("a_1.deb")).unwrap();
        assert!(dir.take(into.path()).is_err());
        assert!(!into.path().join("b_1.deb").exists());
    }
}
