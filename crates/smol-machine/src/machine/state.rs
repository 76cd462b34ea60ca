//! Everything of a machine but its RAM and its disks, as versioned wire types of our own.
//!
//! Serialised as canonical JSON: field order as declared, byte strings in hex, no floats. The
//! types are ours so that the format outlives a dependency; nothing of KVM is stored as such.
//! A state comes from a bundle and may be hostile: whoever loads one checks it.

use serde::{Deserialize, Serialize};

use crate::arch;
use crate::devices::Slot;
use crate::devices::virtio::mmio::TransportState;
use crate::paravirt::{ParavirtState, Phase};

/// Version of [`MachineState`]; a reader refuses any other.
pub const VERSION: u32 = 1;

/// The captured machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The processor's architecture, as Rust names it: `x86_64`.
    pub arch: String,
    /// RAM in bytes.
    pub memory: u64,
    /// vCPUs that the guest may bring online.
    pub possible_vcpus: u8,
    /// Size of the virtio-pmem image in bytes, 0 without one.
    pub pmem: u64,
    /// The CPU that the guest was shown.
    pub cpu: arch::cpu::Cpu,
    /// The vCPUs that were online, by their numbers from 0.
    pub vcpus: Vec<arch::state::VcpuState>,
    /// Interrupt controllers.
    pub irqchip: arch::state::IrqchipState,
    /// Legacy timer and paravirtual clock of machines on the host's clock.
    pub timers: Option<arch::state::TimerState>,
    /// The paravirtual clock, for smol kernels.
    pub paravirt: Option<ParavirtState>,
    /// virtio devices by slot; a slot may be empty.
    pub devices: Vec<Option<TransportState>>,
}

impl MachineState {
    /// Returns where the machine's time came from.
    pub fn phase(&self) -> Phase {
        self.paravirt.as_ref().map_or(Phase::Host, |p| p.phase)
    }

    /// Whether the machine has the device of this slot.
    pub fn has_device(&self, slot: Slot) -> bool {
        self.devices.get(slot.index()).is_some_and(Option::is_some)
    }

    /// Whether the machine can be restored into memory in which accesses of the kernel fail instead
    /// of waiting ([`LazyMemory::in_user_mode`](crate::memory::lazy::LazyMemory::in_user_mode)).
    /// KVM must not write into it for the guest then. It does for kernels that use KVM's own
    /// interfaces, such as its clock, which smol kernels are not shown; nor do they use 32-bit
    /// paging with PAE, for which KVM reads memory when a register is loaded.
    pub fn tolerates_failed_accesses(&self) -> bool {
        self.paravirt.is_some()
    }

    /// Returns the state as canonical JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data serialises")
    }

    /// Reads a state, refusing versions and shapes that this build does not know.
    pub fn from_json(bytes: &[u8]) -> crate::Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let err = |e: serde_json::Error| crate::Error::State(e.to_string());
        let Version { version } = serde_json::from_slice(bytes).map_err(err)?;
        if version != VERSION {
            return Err(crate::Error::State(format!(
                "it has version {version}, this build reads version {VERSION}"
            )));
        }
        let state: Self = serde_json::from_slice(bytes).map_err(err)?;
        if state.arch != std::env::consts::ARCH {
            return Err(crate::Error::State(format!(
                "it is for {}, this host is {}",
                state.arch,
                std::env::consts::ARCH
            )));
        }
        Ok(state)
    }
}
