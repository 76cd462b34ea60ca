//! The way of a build step to the network: IP packets of its guest, carried to this process, which makes
//! the connections that its policy allows.
//!
//! ```text
//! guest -- vsock 1029 --> machine's process -- socket, or the emulated host's channel --> smol-net, here
//! ```
//! The machine's process is confined as any other, and has no socket of its own.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use rustix::fs::FileType;
use smol_cli::{ErrorExt, ExitKind};
use smol_host::emulated::{Controller, job_channel};
use smol_net::{Policy, Report, Stop, Upstream};
use smol_sandbox::{Access, Filter, Mode};

/// Read at a time, bytes.
const PIECE: usize = 64 << 10;

/// A network that is served on a thread of this process.
pub struct Uplink {
    /// The other end of the guest's packets; taken by whoever carries them.
    guest: Option<UnixStream>,
    stop: Stop,
    thread: JoinHandle<Result<Report>>,
}

impl Uplink {
    /// Begins to serve, on a thread that can reach no file but random numbers, and make no system calls but
    /// those of connections ([`Filter::Network`]). `upstream` says how this host gets to the world.
    ///
    /// # Errors
    /// If there are no descriptors or threads any more.
    pub fn start(policy: Policy, upstream: Upstream, sandbox: Mode) -> Result<Self> {
        let (ours, guest) = UnixStream::pair().context("cannot create a socket")?;
        let stop = Stop::new().context("cannot create an event")?;
        let until = stop.clone();
        let serve = move || {
            // A statically linked program has its random numbers from there.
            let random = Access::none().read("/dev/random").read("/dev/urandom");
            let restricted = random.connect().restrict_thread(sandbox);
            restricted.kind(ExitKind::Host)?;
            let filtered = Filter::Network.restrict_thread(sandbox);
            filtered.kind(ExitKind::Host)?;
            smol_net::serve(ours, &policy, &upstream, &until).kind(ExitKind::Failed)
        };
        let thread = thread::Builder::new().name("network".into());
        Ok(Self {
            guest: Some(guest),
            stop,
            thread: thread.spawn(serve).context("cannot start a thread")?,
        })
    }

    /// The end for the process that runs the machine.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn guest_end(&mut self) -> Result<UnixStream> {
        self.guest.take().context("the network is used already")
    }

    /// Ends it, and returns what the guest did with it.
    ///
    /// # Errors
    /// Those of [`smol_net::serve`].
    pub fn end(self) -> Result<Report> {
        self.stop.stop();
        drop(self.guest);
        self.thread
            .join()
            .map_err(|_| anyhow!("the network's thread has died"))?
    }
}

/// Carries what comes from the guest's end of an uplink into the emulated host; the other direction is the
/// caller's, by the socket that is returned.
///
/// # Errors
/// If there are no descriptors or threads any more.
pub(super) fn into_emulated_host(guest: UnixStream, control: Controller) -> Result<UnixStream> {
    let mut from = guest.try_clone().context("cannot copy a socket")?;
    let carry = move || {
        let mut piece = vec![0; PIECE];
        // The end of the host, or of the network, is told elsewhere.
        while let Ok(count @ 1..) = from.read(&mut piece) {
            if control.send(&piece[..count]).is_err() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("network-in".into());
    thread.spawn(carry).context("cannot start a thread")?;
    Ok(guest)
}

/// In the process that runs the machine: the socket to the process that serves the network. Standard input
/// is that, or else, as the job of an emulated host, its channel.
///
/// # Errors
/// If there is none.
pub(super) fn of_this_process() -> io::Result<UnixStream> {
    let stdin = io::stdin();
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&stdin)?.st_mode);
    if kind == FileType::Socket {
        return Ok(UnixStream::from(rustix::io::dup(stdin)?));
    }
    job_channel().unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
}

/// Carries bytes between two sockets on threads, until one direction ends.
///
/// # Errors
/// If there are no descriptors or threads any more.
pub(super) fn join(a: UnixStream, b: UnixStream) -> io::Result<()> {
    for (from, to) in [(a.try_clone()?, b.try_clone()?), (b, a)] {
        thread::Builder::new()
            .name("network".into())
            .spawn(move || carry(from, to))?;
    }
    Ok(())
}

fn carry(mut from: UnixStream, mut to: UnixStream) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}
