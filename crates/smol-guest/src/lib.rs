//! PID 1 of smol's guests, as a library so that tests can run it: everything the binary does is in
//! [`init`]. What it says to the host, and the host to it, is in [`smol_protocol`].

#[cfg(target_os = "linux")]
pub mod init;
