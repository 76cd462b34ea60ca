//! Split virtqueues (virtio 1.2, section 2.7) over memory that the guest may change at any time.
//!
//! A chain is walked once, completely, before a device sees any of it: its length and its bytes
//! are bounded, every buffer lies in RAM, and device-readable buffers come before device-writable
//! ones (2.7.4.2). What the device then holds are slices of RAM; the guest can still change the
//! bytes in them, but no longer where they are.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::Mem;
use super::state::{QueueState, StateError};

/// Most descriptors in one chain, indirect ones included.
pub const MAX_CHAIN: usize = 256;

/// Most bytes in one chain; Linux asks for 64 KiB at a time at most.
pub const MAX_CHAIN_BYTES: usize = 1 << 20;

/// Most chains that one notification may have served. Far above any honest use; it ends what a
/// driver can cause by laying buffers over its own rings.
const MAX_SERVED: u32 = 1 << 14;

/// A violation of the protocol by the driver. The device fails for it, the machine goes on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The rings themselves are unusable.
    #[error("unusable virtqueue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// One descriptor chain is malformed.
    #[error("malformed descriptor chain: {0}")]
    Chain(&'static str),
    /// A request that the device cannot understand.
    #[error("malformed request: {0}")]
    Request(&'static str),
    /// The host side of the device failed in a way that leaves it unusable.
    #[error("host: {0}")]
    Host(#[from] std::io::Error),
}

/// One virtqueue of a device.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    /// The driver wants to be interrupted for what was completed.
    signal: bool,
    /// Chains that may still be served at this notification.
    budget: u32,
}

impl VirtQueue {
    /// Returns an unconfigured queue that the driver may make up to `max_size` large.
    ///
    /// # Panics
    /// If `max_size` is no power of two up to 32768: it is a constant of the device.
    pub(super) fn new(max_size: u16) -> Self {
        let queue = Queue::new(max_size).expect("queue sizes of devices are powers of two");
        Self {
            queue,
            signal: false,
            budget: MAX_SERVED,
        }
    }

    /// Whether the driver has set the queue up.
    pub fn ready(&self) -> bool {
        self.queue.ready()
    }

    /// Returns the next available chain, or `None` if the driver has none to offer; it is then
    /// asked to notify when it has.
    ///
    /// # Errors
    /// If the ring or the chain breaks the protocol.
    pub fn pop<'m>(&mut self, mem: &'m Mem) -> Result<Option<Chain<'m>>, Fault> {
        if !self.queue.ready() {
            return Ok(None);
        }
        loop {
            if let Some(chain) = self.queue.iter(mem)?.next() {
                self.budget = self
                    .budget
                    .checked_sub(1)
                    .ok_or(Fault::Chain("the ring never runs dry"))?;
                return Chain::new(chain, mem).map(Some);
            }
            if !self.queue.enable_notification(mem)? {
                return Ok(None);
            }
        }
    }

    /// Puts the chain that was popped last back: the next [`VirtQueue::pop`] gives it again.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Hands a chain back to the driver; `written` bytes of its writable buffers were filled.
    ///
    /// # Errors
    /// If the used ring cannot be written.
    pub fn complete(&mut self, mem: &Mem, chain: Chain<'_>) -> Result<(), Fault> {
        // A chain holds at most MAX_CHAIN_BYTES.
        self.queue.add_used(mem, chain.head, chain.written as u32)?;
        self.signal |= self.queue.needs_notification(mem)?;
        Ok(())
    }

    /// Asks the driver to notify when it makes one more buffer available, even though the queue
    /// still holds some.
    ///
    /// # Errors
    /// If the rings cannot be accessed.
    pub fn notify_on_next(&mut self, mem: &Mem) -> Result<(), Fault> {
        if !self.queue.event_idx_enabled() {
            return Ok(()); // then every addition is announced
        }
        let idx = self.available(mem)?;
        // avail_event is the le16 behind the used ring (2.7.8); the ring was checked to lie in RAM.
        let offset = 4 + 8 * u64::from(self.queue.size());
        let addr = GuestAddress(self.queue.used_ring().saturating_add(offset));
        mem.store(idx.to_le(), addr, Ordering::SeqCst)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(())
    }

    /// Returns the driver's index into the available ring: it moves with every chain that is added.
    ///
    /// # Errors
    /// If the ring cannot be read.
    pub fn available(&self, mem: &Mem) -> Result<u16, Fault> {
        Ok(self.queue.avail_idx(mem, Ordering::Acquire)?.0)
    }

    /// Grants the queue its budget anew, at the start of a notification.
    pub(super) fn begin(&mut self) {
        self.budget = MAX_SERVED;
    }

    /// Whether an interrupt is due, and forgets it.
    pub(super) fn take_signal(&mut self) -> bool {
        std::mem::take(&mut self.signal)
    }

    /// Makes the queue unconfigured again.
    pub(super) fn reset(&mut self) {
        self.queue.reset();
        self.signal = false;
    }

    /// Marks the queue ready, if it lies in RAM.
    pub(super) fn enable(&mut self, mem: &Mem, event_idx: bool) -> Result<(), Fault> {
        self.queue.set_event_idx(event_idx);
        self.queue.set_ready(true);
        if self.queue.avail_ring() == 0 || !self.queue.is_valid(mem) {
            self.queue.reset();
            return Err(Fault::Ring(virtio_queue::Error::FindMemoryRegion));
        }
        Ok(())
    }

    /// Returns the ring's registers, for the transport.
    pub(super) fn registers(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Returns the state for a snapshot.
    pub(super) fn save(&self) -> QueueState {
        let q = self.queue.state();
        QueueState {
            size: q.size,
            ready: q.ready,
            desc: q.desc_table,
            avail: q.avail_ring,
            used: q.used_ring,
            next_avail: q.next_avail,
            next_used: q.next_used,
            event_idx: q.event_idx_enabled,
        }
    }

    /// Returns a queue of at most `max_size` entries in the given state, all of it checked.
    pub(super) fn restore(
        max_size: u16,
        state: &QueueState,
        mem: &Mem,
    ) -> Result<Self, StateError> {
        let queue = Queue::try_from(virtio_queue::QueueState {
            max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc,
            avail_ring: state.avail,
            used_ring: state.used,
        })
        .map_err(|e| StateError(format!("a virtqueue's {e}")))?;
        if state.ready && (state.avail == 0 || !queue.is_valid(mem)) {
            return Err(StateError(
                "a virtqueue lies outside of the guest's memory".into(),
            ));
        }
        Ok(Self {
            queue,
            signal: false,
            budget: MAX_SERVED,
        })
    }
}

/// A descriptor chain, checked whole: first what the device may read, then what it may write.
#[derive(Debug)]
pub struct Chain<'m> {
    head: u16,
    readable: Vec<VolatileSlice<'m, ()>>,
    writable: Vec<VolatileSlice<'m, ()>>,
    written: usize,
}

impl<'m> Chain<'m> {
    fn new(mut chain: virtio_queue::DescriptorChain<&Mem>, mem: &'m Mem) -> Result<Self, Fault> {
        let mut this = Self {
            head: chain.head_index(),
            readable: Vec::new(),
            writable: Vec::new(),
            written: 0,
        };
        let (mut count, mut bytes) = (0, 0usize);
        loop {
            // The iterator also ends at the first bad descriptor; a good chain ends below.
            let desc = chain
                .next()
                .ok_or(Fault::Chain("it leaves the descriptor table or is a loop"))?;
            count += 1;
            bytes = bytes.saturating_add(desc.len() as usize);
            if count > MAX_CHAIN || bytes > MAX_CHAIN_BYTES {
                return Err(Fault::Chain("too long"));
            }
            let (list, access) = if desc.is_write_only() {
                (&mut this.writable, Permissions::Write)
            } else if this.writable.is_empty() {
                (&mut this.readable, Permissions::Read)
            } else {
                return Err(Fault::Chain(
                    "a device-readable buffer after a device-writable one",
                ));
            };
            let slices = mem
                .get_slices(desc.addr(), desc.len() as usize, access)
                .map_err(|_| Fault::Chain("a buffer outside of RAM"))?;
            for slice in slices {
                list.push(slice.map_err(|_| Fault::Chain("a buffer outside of RAM"))?);
            }
            if !desc.has_next() {
                return Ok(this);
            }
        }
    }

    /// Bytes that are left to read.
    pub fn readable(&self) -> usize {
        self.readable.iter().map(VolatileSlice::len).sum()
    }

    /// Bytes that can still be written.
    pub fn writable(&self) -> usize {
        self.writable.iter().map(VolatileSlice::len).sum()
    }

    /// Reads as many bytes as there are, up to the length of `buf`; returns how many.
    pub fn read(&mut self, buf: &mut [u8]) -> usize {
        advance(&mut self.readable, buf.len(), |slice, at| {
            slice.copy_to(&mut buf[at..]);
        })
    }

    /// Reads exactly `buf.len()` bytes.
    ///
    /// # Errors
    /// If the chain holds fewer.
    pub fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), Fault> {
        if self.read(buf) < buf.len() {
            return Err(Fault::Request("shorter than its header says"));
        }
        Ok(())
    }

    /// Writes as many bytes of `data` as fit; returns how many.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let n = advance(&mut self.writable, data.len(), |slice, at| {
            slice.copy_from(&data[at..])
        });
        self.written += n;
        n
    }
}

/// Visits the first `want` bytes of `slices` with their offset, and drops them from the list.
fn advance<'m>(
    slices: &mut Vec<VolatileSlice<'m, ()>>,
    want: usize,
    mut visit: impl FnMut(VolatileSlice<'m, ()>, usize),
) -> usize {
    let (mut done, mut consumed) = (0, 0);
    for slice in slices.iter_mut() {
        let n = slice.len().min(want - done);
        // Both halves exist: n is at most the slice's length.
        let Ok((head, tail)) = slice.split_at(n) else {
            break;
        };
        visit(head, done);
        done += n;
        if tail.is_empty() {
            consumed += 1;
        } else {
            *slice = tail;
            break;
        }
    }
    slices.drain(..consumed);
    done
}
