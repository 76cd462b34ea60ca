//! What a machine is made of.

use std::path::PathBuf;
use std::time::Duration;

use crate::arch::cpu::Level;

/// Most vCPUs of a machine; the MP table and the kernel recipe know no more.
pub const MAX_VCPUS: u8 = 8;

/// Where the guest's time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Building: time is a function of what the guest did, see [`crate::paravirt`].
    Virtual {
        /// Seconds since the Unix epoch at power-on.
        epoch: u64,
        /// How long, by the host's clock, the guest may run without a VM exit until it gets ticks
        /// ([`crate::Machine::first_tick`]).
        watchdog: Duration,
    },
    /// The host's clocks.
    Host,
}

/// A machine to boot. The kernel decides by its ELF note whether it speaks smol's paravirtual
/// interface; one that does not runs on the host's clock whatever is asked for.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// vCPUs that the guest may bring online, 1 to [`MAX_VCPUS`]. While building one of them runs.
    pub vcpus: u8,
    /// Level of the CPU.
    pub cpu: Level,
    /// RAM in bytes, a multiple of 1 MiB.
    pub memory: u64,
    /// Kernel: an ELF `vmlinux` or any PVH image.
    pub kernel: PathBuf,
    /// Initramfs, a cpio archive as the kernel takes it.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line, without the machine's own part
    /// ([`DeviceSet::cmdline`](crate::devices::DeviceSet::cmdline)).
    pub cmdline: String,
    /// Image that is attached read-only as virtio-pmem; its size a multiple of 2 MiB.
    pub rootfs: Option<PathBuf>,
    /// Where time comes from.
    pub clock: Clock,
    /// Seeds all randomness that the guest sees while building.
    pub seed: [u8; 32],
    /// Decides where a kernel of ours lies in its address space
    /// ([`crate::arch::boot::place_kernel`]).
    pub kernel_seed: [u8; 32],
}

impl MachineConfig {
    /// Checks that there can be such a machine.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), which says what is out of range.
    pub fn validate(&self) -> crate::Result<()> {
        let bad = |m: String| Err(crate::Error::Config(m));
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return bad(format!(
                "{} vCPUs asked for; a machine has 1 to {MAX_VCPUS}",
                self.vcpus
            ));
        }
        if self.memory == 0 || !self.memory.is_multiple_of(1 << 20) {
            return bad(format!(
                "memory of {} bytes is not a multiple of 1 MiB",
                self.memory
            ));
        }
        if self.memory < crate::arch::layout::MIN_RAM || self.memory > crate::arch::layout::MAX_RAM
        {
            return bad(format!(
                "memory of {} MiB is outside {} to {} MiB",
                self.memory >> 20,
                crate::arch::layout::MIN_RAM >> 20,
                crate::arch::layout::MAX_RAM >> 20
            ));
        }
        if self.cmdline.len() >= crate::arch::layout::CMDLINE_MAX {
            return bad(format!(
                "the kernel command line has {} bytes, over {}",
                self.cmdline.len(),
                crate::arch::layout::CMDLINE_MAX - 1
            ));
        }
        Ok(())
    }
}
