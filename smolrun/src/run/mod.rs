//! One machine on this host's KVM, from its start to its end.
//!
//! ```text
//! spec, images -> start -> supervisor <- event: the guest (guest), requests (request), its end
//!                              |
//!                              +-> report, metrics, output, ports
//! ```

#[cfg(feature = "backdoor")]
pub mod backdoor;
pub mod contract;
pub mod event;
pub mod guest;
pub mod identity;
pub mod metrics;
pub mod output;
pub mod ports;
pub mod publish;
pub mod report;
pub mod request;
pub mod spec;
pub mod start;
pub mod supervisor;
pub mod warnings;
