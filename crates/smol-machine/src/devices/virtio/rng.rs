//! virtio-rng (section 5.4).
//!
//! While building, the bytes are a function of the seed and of how many were drawn before, so
//! that two builds draw the same; a live machine hands out the host's randomness.

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{DeviceState, Fault, Mem, StateError, VirtQueue, VirtioDevice};

/// Most bytes given for one request; a driver that wants more asks again.
const MAX_REQUEST: usize = 64 << 10;

/// Fills a buffer with random bytes, or fails.
pub type Source = Box<dyn FnMut(&mut [u8]) -> io::Result<()> + Send>;

/// The device.
pub struct Rng {
    source: Source,
}

impl Rng {
    /// Returns a device that draws from `source`.
    pub fn new(source: Source) -> Self {
        Self { source }
    }

    /// Returns the build's device: the blake3 stream of `seed`, public to everyone who knows the
    /// build.
    pub fn seeded(seed: &[u8; 32]) -> Self {
        let mut stream = blake3::Hasher::new_keyed(seed)
            .update(b"virtio-rng")
            .finalize_xof();
        Self::new(Box::new(move |buf| {
            stream.fill(buf);
            Ok(())
        }))
    }

    /// Returns the live machine's device: getrandom(2).
    pub fn host() -> Self {
        Self::new(Box::new(|buf| {
            getrandom::fill(buf).map_err(io::Error::from)
        }))
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[8]
    }

    fn notify(&mut self, _index: usize, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault> {
        let mut buf = [0; 4096];
        while let Some(mut chain) = queues[0].pop(mem)? {
            let mut left = chain.writable().min(MAX_REQUEST);
            if left == 0 {
                return Err(Fault::Request(
                    "a request for random bytes has no room for any",
                ));
            }
            while left > 0 {
                let part = &mut buf[..left.min(4096)];
                (self.source)(part)?;
                left -= chain.write(part);
            }
            queues[0].complete(mem, chain)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Rng {}
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Rng {} => Ok(()),
            other => Err(other.mismatch("rng")),
        }
    }
}
