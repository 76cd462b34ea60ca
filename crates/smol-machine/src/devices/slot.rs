//! The places of the virtio devices, by name.
//!
//! The order of [`Slot::ALL`] is the only place that says which device comes where. MMIO window,
//! interrupt line, kernel command line and the place in a snapshot follow from it.

use crate::arch::layout;

/// The place of a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The console, hvc0.
    Console,
    /// The image of the root file system as persistent memory, /dev/pmem0.
    Pmem,
    /// Streams between guest and host.
    Vsock,
    /// Random numbers.
    Rng,
}

const _: () = assert!(Slot::ALL.len() <= layout::MMIO_IRQS.len());

impl Slot {
    /// All slots in their order. A captured machine holds its devices in this order, so new ones
    /// come last.
    pub const ALL: [Slot; 4] = [Slot::Console, Slot::Pmem, Slot::Vsock, Slot::Rng];

    /// Returns its position in [`Slot::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Returns the GPA of its MMIO window.
    pub fn gpa(self) -> u64 {
        layout::MMIO_BASE + self.index() as u64 * layout::MMIO_SIZE
    }

    /// Returns its interrupt line.
    pub fn irq(self) -> u32 {
        layout::MMIO_IRQS[self.index()]
    }

    /// Returns the slot whose window holds this GPA, and the offset in the window.
    pub fn at(gpa: u64) -> Option<(Self, u64)> {
        let offset = gpa.checked_sub(layout::MMIO_BASE)?;
        let index = usize::try_from(offset / layout::MMIO_SIZE).ok()?;
        Some((*Self::ALL.get(index)?, offset % layout::MMIO_SIZE))
    }

    /// Returns the parameter by which Linux learns of the device
    /// (Documentation/admin-guide/kernel-parameters.txt, `virtio_mmio.device`).
    pub(super) fn parameter(self) -> String {
        format!("virtio_mmio.device=4K@{:#x}:{}", self.gpa(), self.irq())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_found_by_every_address_of_its_window_and_by_no_other() {
        for (index, slot) in Slot::ALL.into_iter().enumerate() {
            assert_eq!(slot.index(), index);
            assert_eq!(Slot::at(slot.gpa()), Some((slot, 0)));
            assert_eq!(Slot::at(slot.gpa() + 0xfff), Some((slot, 0xfff)));
        }
        assert_eq!(Slot::at(layout::MMIO_BASE - 1), None);
        assert_eq!(Slot::at(Slot::Rng.gpa() + 0x1000), None);
        assert_eq!(Slot::at(u64::MAX), None);
    }

    #[test]
    fn the_kernel_is_told_window_and_interrupt_line() {
        assert_eq!(
            Slot::ALL.map(Slot::parameter),
            [
                "virtio_mmio.device=4K@0xd0000000:5",
                "virtio_mmio.device=4K@0xd0001000:9",
                "virtio_mmio.device=4K@0xd0002000:10",
                "virtio_mmio.device=4K@0xd0003000:11",
            ]
        );
    }
}
