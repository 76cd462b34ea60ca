//! The network of a guest that has no network device: IP packets come over a stream
//! ([`smol_protocol::net`] says how), and go on as connections that this process makes.
//!
//! ```text
//! engine ──> link, packet                        packets of the guest
//!    ├─────> flow ──> conn (smoltcp), relay      TCP
//!    │          └───> dns, proxy                 what is at addresses of ours
//!    ├─────> exchange                            UDP, ICMP echo
//!    └─────> core ──> gate ──> policy, report    what may be reached; timers, descriptors
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | `policy` | [`Policy`] and [`Rule`]: what may be reached; kinds of addresses |
//! | `gate` | the policy now: which addresses are whose, by what DNS has said |
//! | `report` | [`Report`]: what the guest did, and did not reach |
//! | `upstream` | [`Upstream`]: DNS servers and proxies of the host |
//! | `link`, `packet` | the stream; IP packets |
//! | `conn` | the guest's end of a TCP connection |
//! | `relay` | bytes between it and a socket |
//! | `flow` | TCP connections: accepted when the host is connected |
//! | `exchange` | datagrams that go out and come back |
//! | `dns` | messages, queries that wait for a server, DNS over TCP |
//! | `proxy` | HTTP: what is asked of the proxy, and how it goes on |
//! | `core`, `poller` | what they share; waiting for descriptors |
//! | `engine` | the loop |
//! | [`fuzz`] | parsers, for the fuzz targets |
//!
//! Everything that comes from a guest is hostile, and so is what servers answer: each is bounded, and
//! nothing of it makes this panic. `docs/network.md` says what is allowed, and what is refused and why.

mod conn;
mod core;
mod dns;
mod engine;
mod exchange;
mod flow;
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod link;
mod packet;
mod policy;
mod poller;
mod proxy;
mod relay;
mod report;
mod upstream;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::EventfdFlags;

pub use self::policy::{Denial, InvalidRule, Policy, Rule};
pub use self::report::{Refusal, Report};
pub use self::upstream::{Exceptions, InvalidProxy, Proxies, Proxy, Upstream};

/// Why a guest has no network, or none any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Names may be reached, and nobody can be asked for their addresses.
    #[error(
        "no DNS server is known: /etc/resolv.conf has no line \"nameserver ADDRESS\", \
         and no proxy is set that could look names up"
    )]
    NoServer,
    /// The guest does not speak the protocol.
    #[error("the guest's network stream is broken: {0}")]
    Guest(smol_protocol::net::NotAPacket),
    /// The stream cannot be used.
    #[error("cannot use the guest's network stream: {0}")]
    Stream(#[source] io::Error),
    /// The host lacks something.
    #[error("cannot serve the guest's network: {0}")]
    Host(#[source] io::Error),
}

/// Ends [`serve`] from elsewhere.
#[derive(Clone, Debug)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// A handle, to be given to [`serve`] and kept.
    ///
    /// # Errors
    /// If there are no descriptors any more.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Stop(Arc::new(rustix::event::eventfd(0, flags)?)))
    }

    /// Ends every [`serve`] that has this handle, also one that begins later.
    pub fn stop(&self) {
        // It can only fail where it has been written to very often before.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// Serves the network of a guest on this thread, until the guest closes the stream or `stop` says so.
/// Then all of its connections are closed.
///
/// `stream` is a stream socket, at whose other end are the packets of the guest.
///
/// # Errors
/// If names may be reached and the host knows no DNS server, if the stream cannot be used or does not
/// carry packets.
pub fn serve(
    stream: impl Into<OwnedFd>,
    policy: &Policy,
    upstream: &Upstream,
    stop: &Stop,
) -> Result<Report, Error> {
    let proxies = &upstream.proxies;
    let resolves =
        proxies.http.is_some() || proxies.https.is_some() || !upstream.servers.is_empty();
    if policy.has_names() && !resolves {
        return Err(Error::NoServer);
    }
    let engine = engine::Engine::new(policy.clone(), upstream.clone(), Instant::now());
    let mut engine = engine.map_err(Error::Host)?;
    engine.run(stream.into(), stop)?;
    Ok(engine.into_report())
}
