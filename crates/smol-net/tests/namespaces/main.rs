//! The kernel's TCP/IP in a network namespace, with the TUN interface that smol-guest makes, against the
//! stack of this crate and real servers. It takes root, for namespaces, and says so where it is left out.

mod dns;
mod policy;
mod proxy;
mod tcp;
mod udp;
mod world;
