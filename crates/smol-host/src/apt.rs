//! The little we ask of apt: is it here, and the exact command that installs a package.

use std::path::{Path, PathBuf};

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
