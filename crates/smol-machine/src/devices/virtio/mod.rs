//! Virtio devices over the MMIO transport (virtio 1.2), as far as a smol machine needs them.
//!
//! | module | purpose |
//! |---|---|
//! | [`mmio`] | the transport, version 2 (section 4.2): registers, status machine, features, interrupts |
//! | [`queue`] | split virtqueues over memory that the guest may change at any time |
//! | [`state`] | what a snapshot holds of a device and of its transport |
//! | [`console`] | hvc0: output to a writer, input by a handle |
//! | [`pmem`] | the read-only root image as persistent memory |
//! | [`rng`] | random bytes: a seeded stream while building, the host's when live |
//! | [`vsock`] | streams between guest and host |
//!
//! A device sees its queues only while the transport's lock is held, and a `QueueNotify` is
//! served to the end on the vCPU thread that wrote it: all completions are in the used rings and
//! the interrupt line is raised when the write returns. Nothing else touches the guest, except
//! where a live machine asks for it ([`Waker::wake`]).
//!
//! The guest is hostile: every chain is checked whole before a device sees it, and what breaks
//! the protocol puts the device into `DEVICE_NEEDS_RESET`, never the VMM into a panic.

pub mod console;
pub mod mmio;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod vsock;

pub use mmio::{IrqLine, MmioTransport, Waker};
pub use queue::{Fault, VirtQueue};
pub use state::{DeviceState, QueueState, StateError, TransportState};

/// Guest RAM as devices see it: writable regions only. A read-only mapping (the virtio-pmem
/// image) must not be among them, or a hostile descriptor could make the VMM write to it.
pub type Mem = vm_memory::GuestMemoryMmap<()>;

/// One kind of virtio device behind an [`MmioTransport`].
///
/// All methods are called with the transport's lock held, so a device needs no lock of its own
/// and must not call back into its transport (other than by [`Waker::wake`] from another thread).
pub trait VirtioDevice: Send {
    /// Returns the virtio device id (section 5).
    fn id(&self) -> u32;

    /// Returns the device-specific feature bits that are offered; the transport adds its own.
    fn features(&self) -> u64 {
        0
    }

    /// Returns the largest size of each virtqueue: powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Returns the device configuration space, little-endian. Reads beyond it yield zeros; none of
    /// our devices has a writable field.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called once, before anything else, with the means to be served from another thread.
    fn attach(&mut self, waker: Waker) {
        let _ = waker;
    }

    /// The driver has announced buffers in queue `index`, or the device has just become active
    /// (then called for every ready queue).
    ///
    /// # Errors
    /// A violation of the protocol by the driver: the device stops until it is reset.
    fn notify(&mut self, index: usize, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault>;

    /// Something outside of the guest wants to be served ([`Waker::wake`]); also called on resume.
    ///
    /// # Errors
    /// As for [`VirtioDevice::notify`].
    fn service(&mut self, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault> {
        let _ = (queues, mem);
        Ok(())
    }

    /// The driver has reset the device, or the device has failed: forget all that it was told.
    fn reset(&mut self);

    /// Returns the state beyond the transport's, for a snapshot.
    fn save(&self) -> DeviceState;

    /// Takes over the state of a device like this one.
    ///
    /// # Errors
    /// If it is the state of another kind of device, or does not fit this machine.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}
