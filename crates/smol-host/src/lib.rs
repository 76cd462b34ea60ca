//! What the host can do, and what to do when it cannot.
//!
//! | module | purpose |
//! |---|---|
//! | [`select`](mod@select) | `--accel`: this host's KVM, or the emulated host |
//! | [`emulated`] | a Linux with KVM in QEMU, for hosts without usable KVM; it runs this very program inside |
//! | [`doctor`] | looks over the host and names the commands that fix it |
//! | [`child`] | child processes that are killed when this program ends |
//! | [`cache`] | the folders of the cache, and entries of it that are in use |
//! | [`lock_dir`] | folders that one process owns, and scratch folders that the next run removes |
//! | [`apt`] | finding programs, and the command that installs them |
//! | [`error`] | the crate's error: what is wrong with the host, and the command that fixes it |

pub mod apt;
pub mod cache;
pub mod child;
pub mod doctor;
pub mod emulated;
pub mod error;
pub mod lock_dir;
pub mod select;

pub use error::HostError;
pub use select::{Accel, AccelArg, Backend, GuestKind, Selected, select};
