//! virtio-vsock (section 5.10): byte streams between ports of the guest and ports of the host.
//!
//! | module | purpose |
//! |---|---|
//! | this one | the device: queues, configuration, the reset event after a restore |
//! | [`packet`] | the packet header |
//! | `mux` | the table of connections |
//! | `connection` | one connection: buffering and credit |
//! | `stream` | the host's end of a connection |
//! | `host` | the interface of the host's side |
//! | [`sink`] | the host's side while building: callbacks, synchronous |
//! | [`unix`] | the host's side of a live machine: Unix sockets and a thread |
//!
//! Connections do not outlive a snapshot. A restored guest gets a transport reset event, which
//! ends its old connections, and only then the first new one.

mod connection;
mod host;
mod mux;
pub mod packet;
pub mod sink;
mod stream;
#[cfg(test)]
mod tests;
pub mod unix;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::mux::Mux;
use self::packet::{HEADER, Header, MAX_DATA};
pub use self::sink::StreamSink;
pub use self::unix::VsockHandle;
use super::queue::Chain;
use super::{DeviceState, Fault, Mem, StateError, VirtQueue, VirtioDevice, Waker};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;

/// Linux fills the receive queue with pages and needs 8 entries in the event queue.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: u32 = 0;

/// How long new connections wait for a guest that does not acknowledge the reset event.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the guest knows that its old connections have ended.
#[derive(Debug)]
enum Reset {
    /// It knows, or there was none.
    Done,
    /// It must be told.
    Owed,
    /// It was told when its event queue's available index was `avail`; a driver gives the
    /// event's buffer back when it is through with it.
    Told { avail: u16, until: Instant },
}

/// The device.
pub struct Vsock {
    guest_cid: u64,
    mux: Mux,
    reset: Reset,
    /// The data of the packet at hand.
    data: Vec<u8>,
}

impl Vsock {
    /// Returns the build's device: streams of the guest go to `sink`, nothing comes from the host.
    pub fn for_build(guest_cid: u64, sink: Box<dyn StreamSink>) -> Self {
        Self::new(guest_cid, Box::new(sink::SinkHost::new(sink)))
    }

    /// Returns a live machine's device, with a thread of its own, and the handle by which this
    /// process connects and listens.
    ///
    /// With a `path`, other processes can too: a client of the Unix socket `path` sends
    /// `CONNECT <port>\n`, reads `OK <n>\n`, and is connected to the guest's port; a guest that
    /// connects to port P of the host reaches the Unix socket `<path>_P`.
    ///
    /// # Errors
    /// If the socket cannot be created or the thread not be started.
    pub fn live(guest_cid: u64, path: Option<&Path>) -> io::Result<(Self, VsockHandle)> {
        let (host, handle) = unix::UnixHost::new(path)?;
        Ok((Self::new(guest_cid, Box::new(host)), handle))
    }

    /// Returns a live machine's device that nobody in the host listens to: every connection of the
    /// guest is refused, and no thread is needed for that.
    pub fn deaf(guest_cid: u64) -> Self {
        Self::new(
            guest_cid,
            Box::new(sink::SinkHost::new(Box::new(sink::Refuse))),
        )
    }

    fn new(guest_cid: u64, host: Box<dyn host::Host>) -> Self {
        Self {
            guest_cid,
            mux: Mux::new(guest_cid, host),
            reset: Reset::Done,
            data: Vec::with_capacity(MAX_DATA),
        }
    }

    /// Moves packets both ways until the guest has no more to say, or must first make room for
    /// the answers.
    fn exchange(&mut self, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault> {
        loop {
            let silent = self.transmit(&mut queues[TRANSMIT], mem)?;
            self.receive(&mut queues[RECEIVE], mem)?;
            if silent || self.mux.congested() {
                return Ok(());
            }
        }
    }

    /// Takes packets of the guest; true when there are no more.
    fn transmit(&mut self, queue: &mut VirtQueue, mem: &Mem) -> Result<bool, Fault> {
        while !self.mux.congested() {
            let Some(mut chain) = queue.pop(mem)? else {
                return Ok(true);
            };
            let header = read_packet(&mut chain, &mut self.data)?;
            self.mux.receive(&header, &self.data);
            queue.complete(mem, chain)?;
        }
        Ok(false)
    }

    /// Gives packets to the guest while there are any and it has buffers for them.
    fn receive(&mut self, queue: &mut VirtQueue, mem: &Mem) -> Result<(), Fault> {
        while self.mux.pending() {
            let Some(mut chain) = queue.pop(mem)? else {
                break;
            };
            let room = chain.writable().saturating_sub(HEADER);
            if room == 0 {
                return Err(Fault::Request("a vsock receive buffer has no room"));
            }
            match self.mux.next(room, &mut self.data) {
                Some(header) => {
                    chain.write(&header.to_bytes());
                    chain.write(&self.data);
                    queue.complete(mem, chain)?;
                }
                None => queue.unpop(),
            }
        }
        Ok(())
    }

    /// Tells a restored guest that its connections are gone, and finds out whether it knows.
    fn announce_reset(&mut self, queue: &mut VirtQueue, mem: &Mem) -> Result<(), Fault> {
        match self.reset {
            Reset::Owed => {
                let Some(mut chain) = queue.pop(mem)? else {
                    return Ok(());
                };
                if chain.write(&TRANSPORT_RESET.to_le_bytes()) < 4 {
                    return Err(Fault::Request("a vsock event buffer has no room"));
                }
                queue.complete(mem, chain)?;
                queue.notify_on_next(mem)?;
                self.reset = Reset::Told {
                    avail: queue.available(mem)?,
                    until: Instant::now() + RESET_TIMEOUT,
                };
            }
            Reset::Told { avail, until } => {
                if !queue.ready() || queue.available(mem)? != avail || Instant::now() >= until {
                    self.reset = Reset::Done;
                }
            }
            Reset::Done => {}
        }
        Ok(())
    }

    /// Returns how long connections of the host must be held back at most.
    fn hold(&self) -> Option<Duration> {
        match self.reset {
            Reset::Told { until, .. } => Some(until.saturating_duration_since(Instant::now())),
            _ => None,
        }
    }
}

/// Reads the packet in `chain`; its data goes to `data`.
fn read_packet(chain: &mut Chain<'_>, data: &mut Vec<u8>) -> Result<Header, Fault> {
    let mut bytes = [0; HEADER];
    chain.read_exact(&mut bytes)?;
    let header = Header::from_bytes(&bytes);
    let len = header.len as usize;
    if len > MAX_DATA {
        return Err(Fault::Request("a vsock packet of more than 64 KiB"));
    }
    data.resize(len, 0);
    chain.read_exact(data)?;
    Ok(header)
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    /// `guest_cid: le64`.
    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    fn attach(&mut self, waker: Waker) {
        self.mux.attach(waker);
    }

    fn notify(&mut self, index: usize, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault> {
        if index == EVENT {
            let held = self.hold().is_some();
            self.announce_reset(&mut queues[EVENT], mem)?;
            if held && self.hold().is_none() {
                self.mux.poke();
            }
            return Ok(());
        }
        self.exchange(queues, mem)?;
        self.mux.poke_if_stale();
        Ok(())
    }

    fn service(&mut self, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault> {
        self.announce_reset(&mut queues[EVENT], mem)?;
        self.mux.service(self.hold().is_some());
        self.exchange(queues, mem)?;
        self.mux.watch(self.hold());
        Ok(())
    }

    fn reset(&mut self) {
        self.mux.clear();
        self.reset = Reset::Done;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock {
            guest_cid: self.guest_cid,
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match *state {
            DeviceState::Vsock { guest_cid } if guest_cid == self.guest_cid => {
                self.mux.clear();
                self.reset = Reset::Owed;
                Ok(())
            }
            DeviceState::Vsock { guest_cid } => Err(StateError(format!(
                "the guest has context id {guest_cid}, this machine gives it {}",
                self.guest_cid
            ))),
            ref other => Err(other.mismatch("vsock")),
        }
    }
}
