//! Waiting for descriptors: epoll, edge-triggered. Who is told that a descriptor is readable remembers
//! it until a read says that nothing is left; so no interest has ever to be changed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

/// Descriptors that are told of at a time.
const MOST_EVENTS: usize = 256;

/// Waits for descriptors.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Poller({:?})", self.epoll)
    }
}

/// What is said of a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The number that it was added under.
    pub id: u64,
    /// There is something to read, an end, or an error.
    pub readable: bool,
    /// There is space to write, or an error.
    pub writable: bool,
}

impl Poller {
    /// One that waits for nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Poller {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(MOST_EVENTS),
        })
    }

    /// Tells of this descriptor under this number, until it is closed.
    pub fn add(&self, fd: impl AsFd, id: u64) -> rustix::io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, fd, EventData::new_u64(id), flags)
    }

    /// Waits until there is something to tell, or no longer than this.
    pub fn wait(&mut self, limit: Option<Duration>) -> io::Result<Vec<Event>> {
        // Rounded up: who waits for a moment should not be woken before it.
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: limit.subsec_nanos().into(),
        });
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            limit.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ends = EventFlags::HUP | EventFlags::ERR;
        let told = self.events.drain(..).map(|event| {
            let (data, flags) = (event.data, event.flags);
            Event {
                id: data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | ends),
                writable: flags.intersects(EventFlags::OUT | ends),
            }
        });
        Ok(told.collect())
    }
}
