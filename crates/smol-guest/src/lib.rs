//! The guest's side of smol, and what it shares with the host.
//!
//! - [`protocol`]: configuration, events and requests, shared with the host
//! - [`log`]: the framing of the service's output, shared with the host
//! - [`init`]: PID 1 itself, everything the binary does

#[cfg(target_os = "linux")]
pub mod init;
pub mod log;
pub mod protocol;
