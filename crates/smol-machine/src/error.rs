//! What can go wrong with a machine, in words for the person who runs it.

use std::io;
use std::path::PathBuf;

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the virtual machine monitor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A hypervisor call failed.
    #[error("the hypervisor refused {call}: {source}")]
    Hypervisor {
        /// The call, as the hypervisor's documentation names it.
        call: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file of the machine cannot be read.
    #[error("cannot read the {what} {path}: {source}")]
    File {
        /// Its part in the machine: kernel, initramfs, rootfs image, memory image.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The kernel image cannot be booted.
    #[error("cannot boot the kernel {path}: {reason}")]
    Kernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The machine is described wrongly.
    #[error("{0}")]
    Config(String),
    /// A snapshot's state is not one that this version can restore.
    #[error("the snapshot's machine state is unusable: {0}")]
    State(String),
    /// Guest memory could not be made or accessed.
    #[error("guest memory: {0}")]
    Memory(String),
    /// The host's CPU lacks what the machine needs.
    #[error("this host's CPU lacks {}", missing.join(", "))]
    Cpu {
        /// The missing features, by their lower-case names.
        missing: Vec<String>,
    },
}

impl Error {
    /// Returns the error for a state that asks for something that no machine of ours can have.
    pub(crate) fn bad_state(what: impl Into<String>) -> Error {
        Error::State(what.into())
    }
}
