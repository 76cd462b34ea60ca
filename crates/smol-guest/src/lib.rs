//! The guest's side of smol.
//!
//! - [`protocol`]: configuration, events and requests, shared with the host
//! - [`log`]: the framing of the service's output, shared with the host

pub mod log;
pub mod protocol;
