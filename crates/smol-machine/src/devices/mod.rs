//! The devices of a machine.
//!
//! | module | purpose |
//! |---|---|
//! | [`slot`] | the places of the virtio devices, by name: address, interrupt line, parameter |
//! | `bus` | from addresses to devices, and from devices to interrupt lines |
//! | [`serial`] | the early serial port |
//! | [`virtio`] | the virtio devices |

pub(crate) mod bus;
pub mod serial;
pub mod slot;
pub mod virtio;

pub use slot::Slot;

use self::virtio::VirtioDevice;

/// The virtio devices of a machine, each in its slot. The guest is not told of an empty slot.
#[derive(Default)]
pub struct DeviceSet([Option<Box<dyn VirtioDevice>>; Slot::ALL.len()]);

impl DeviceSet {
    /// Puts a device into its slot.
    pub fn insert(&mut self, slot: Slot, device: impl VirtioDevice + 'static) {
        self.0[slot.index()] = Some(Box::new(device));
    }

    /// Returns the machine's own part of the kernel command line: where its virtio devices are.
    pub fn cmdline(&self) -> String {
        let occupied = Slot::ALL
            .into_iter()
            .filter(|slot| self.0[slot.index()].is_some());
        occupied.map(Slot::parameter).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_that_there_are_are_announced() {
        let mut devices = DeviceSet::default();
        assert_eq!(devices.cmdline(), "");
        devices.insert(Slot::Rng, virtio::rng::Rng::host());
        devices.insert(
            Slot::Console,
            virtio::console::Console::new(Box::new(std::io::sink())),
        );
        assert_eq!(
            devices.cmdline(),
            "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0003000:11"
        );
    }
}
