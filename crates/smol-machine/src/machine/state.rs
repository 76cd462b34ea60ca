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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::cpu::{Cpu, Features, Level, Model};
    use crate::arch::state::{IoapicState, IrqchipState, PicState};
    use crate::devices::virtio::{DeviceState, TransportState};
    use crate::paravirt::Paravirt;

    fn state() -> MachineState {
        let rng = TransportState {
            device_id: 4,
            status: 0,
            features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            interrupt_status: 0,
            config_generation: 0,
            queues: Vec::new(),
            device: DeviceState::Rng {},
        };
        MachineState {
            version: VERSION,
            arch: std::env::consts::ARCH.to_owned(),
            memory: 256 << 20,
            possible_vcpus: 2,
            pmem: 0,
            cpu: Cpu {
                model: Model::SmolWithoutTsc,
                features: Features::of(Level::V2),
            },
            vcpus: Vec::new(),
            irqchip: IrqchipState {
                pics: [PicState::default(); 2],
                ioapic: IoapicState {
                    base_address: 0,
                    ioregsel: 0,
                    id: 0,
                    irr: 0,
                    redirection: Vec::new(),
                },
            },
            timers: None,
            paravirt: Some(Paravirt::building(7).save()),
            devices: vec![None, None, None, Some(rng)],
        }
    }

    #[test]
    fn a_state_is_json_in_the_order_of_its_fields_and_comes_back_the_same() {
        let state = state();
        let json = String::from_utf8(state.to_json()).unwrap();
        let begins = format!(
            r#"{{"version":1,"arch":"{}","memory":268435456,"possible_vcpus":2,"pmem":0,"cpu":{{"model":"smol-build","features":["apic","#,
            state.arch
        );
        assert!(json.starts_with(&begins), "{json}");
        assert!(
            json.contains(
                r#""deadline_low":0,"epoch":7},"devices":[null,null,null,{"device_id":4,"#
            ),
            "{json}"
        );
        assert_eq!(MachineState::from_json(json.as_bytes()).unwrap(), state);
    }

    #[test]
    fn what_another_version_or_another_processor_wrote_is_refused() {
        let json = String::from_utf8(state().to_json()).unwrap();
        for (from, to, why) in [
            (
                "\"version\":1",
                "\"version\":2",
                "this build reads version 1",
            ),
            (std::env::consts::ARCH, "vax", "it is for vax"),
            ("\"epoch\":7", "\"epoch\":7,\"phase\":\"lunar\"", "lunar"),
            ("\"pmem\":0", "\"pmem\":0,\"extra\":0", "extra"),
        ] {
            let changed = json.replacen(from, to, 1);
            let error = MachineState::from_json(changed.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn a_device_is_found_by_its_slot_also_in_a_list_that_is_too_short() {
        let mut state = state();
        assert!(state.has_device(Slot::Rng));
        assert!(!state.has_device(Slot::Vsock));
        state.devices.truncate(1);
        assert!(!state.has_device(Slot::Rng));
    }
}
