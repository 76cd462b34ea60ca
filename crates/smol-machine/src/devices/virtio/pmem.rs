//! virtio-pmem (section 5.19): a region of guest-physical memory that holds the root image.
//!
//! The machine maps the image there read-only; the device only says where it is and answers
//! flush requests, which have nothing to do.

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;

use super::{DeviceState, Fault, Mem, StateError, VirtQueue, VirtioDevice};

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`.
const FLUSH: u32 = 0;
/// Result of a flush that succeeded.
const OK: i32 = 0;
/// Result of a request that failed.
const FAILED: i32 = 1;

/// The device.
#[derive(Debug)]
pub struct Pmem {
    start: u64,
    size: u64,
}

impl Pmem {
    /// Returns a device that announces `size` bytes at GPA `start`.
    pub fn new(start: u64, size: u64) -> Self {
        Self { start, size }
    }
}

impl VirtioDevice for Pmem {
    fn id(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[32]
    }

    /// `start: le64, size: le64`.
    fn config(&self) -> Vec<u8> {
        [self.start.to_le_bytes(), self.size.to_le_bytes()].concat()
    }

    fn notify(&mut self, _index: usize, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault> {
        while let Some(mut chain) = queues[0].pop(mem)? {
            let mut kind = [0; 4];
            chain.read_exact(&mut kind)?;
            let result = if u32::from_le_bytes(kind) == FLUSH {
                OK
            } else {
                FAILED
            };
            if chain.write(&result.to_le_bytes()) < 4 {
                return Err(Fault::Request("no room for the answer to a flush"));
            }
            queues[0].complete(mem, chain)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Pmem {
            start: self.start,
            size: self.size,
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match *state {
            DeviceState::Pmem { start, size } if (start, size) == (self.start, self.size) => Ok(()),
            DeviceState::Pmem { start, size } => Err(StateError(format!(
                "the guest knows {size} bytes of persistent memory at {start:#x}, this machine has {} at {:#x}",
                self.size, self.start
            ))),
            ref other => Err(other.mismatch("pmem")),
        }
    }
}
