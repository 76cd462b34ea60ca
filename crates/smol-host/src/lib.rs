//! What the host can do, and what to do when it cannot.
//!
//! - [`emulated`]: a Linux with KVM in QEMU, for hosts without usable KVM; runs this very program inside.
//! - [`apt`]: finding programs and naming the command that installs them.
//! - [`error`]: the crate's error: what is wrong and the command that mends it.

pub mod apt;
pub mod emulated;
pub mod error;

pub use error::HostError;
