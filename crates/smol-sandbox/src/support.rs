//! What the kernel of this host offers.

use std::io;
use std::sync::OnceLock;

/// What the kernel of this host offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// Version of Landlock's interface; 0 where there is none, or it is switched off. Files are
    /// confined from 1 on, TCP ports from 4 on, signals and abstract sockets from 6 on.
    pub landlock: u32,
    /// Whether seccomp filters can kill a process.
    pub seccomp: bool,
}

impl Support {
    /// Asks the kernel, once.
    pub fn here() -> Self {
        static HERE: OnceLock<Support> = OnceLock::new();
        *HERE.get_or_init(|| Self {
            landlock: landlock_version(),
            seccomp: seccomp_kills(),
        })
    }

    /// Returns what is lacking and what that means, one sentence; `None` if nothing is.
    pub fn missing(self) -> Option<String> {
        let names = match (self.landlock, self.seccomp) {
            (1.., true) => return None,
            (0, true) => "Landlock",
            (0, false) => "Landlock and no seccomp filters",
            (_, false) => "seccomp filters",
        };
        Some(format!(
            "this host's kernel has no {names}: a machine that breaks out of its monitor would have \
             more of your rights than it should"
        ))
    }
}

/// Returns what this host's kernel lacks for confinement, one sentence; `None` if nothing is.
pub fn missing() -> Option<String> {
    Support::here().missing()
}

/// `LANDLOCK_CREATE_RULESET_VERSION` of include/uapi/linux/landlock.h.
const VERSION: libc::c_uint = 1;

fn landlock_version() -> u32 {
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no attributes, and returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

fn seccomp_kills() -> bool {
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one word.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    answer == 0
}

/// Wraps an error of one of the two libraries.
pub(crate) fn failed(what: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot confine this process: {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_told() {
        let missing = |landlock, seccomp| Support { landlock, seccomp }.missing();
        assert_eq!(missing(1, true), None);
        assert!(missing(0, true).unwrap().contains("no Landlock:"));
        assert!(missing(7, false).unwrap().contains("no seccomp filters:"));
        let both = missing(0, false).unwrap();
        assert!(
            both.contains("no Landlock and no seccomp filters:"),
            "{both}"
        );
    }
}
