//! The DNS server that every guest has: names that it may reach are asked of the host's servers.

pub mod lookup;
pub mod message;
pub mod stream;
