//! What the fuzz targets call; no interface. Kernels and machine states of strangers, taken as far as
//! is possible without a hypervisor.

use std::io::sink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::arch::boot::{self, Entry};
use crate::arch::cpu::Level;
use crate::arch::layout;
use crate::devices::bus::Bus;
use crate::devices::serial::Serial;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::{DeviceSet, Slot};
use crate::hv::none::NoVm;
use crate::hv::{self, Address};
use crate::machine::check_state;
use crate::machine::config::{Clock, MachineConfig};
use crate::memory::lazy::Contents;
use crate::memory::{Ram, anonymous};
use crate::paravirt::{Paravirt, Phase};
use crate::state::MachineState;
use crate::{Result, Stop};

/// Loads a kernel and an initramfs as [`crate::Machine::boot`] does. Returns the entry and the RAM.
///
/// # Errors
/// As for that.
pub fn load(
    kernel: PathBuf,
    initramfs: Option<PathBuf>,
    memory: u64,
    cmdline: &str,
) -> Result<(Entry, Ram)> {
    let config = MachineConfig {
        vcpus: 1,
        cpu: Level::V2,
        memory,
        kernel,
        initramfs,
        cmdline: cmdline.to_owned(),
        rootfs: None,
        clock: Clock::Virtual {
            epoch: 0,
            watchdog: Duration::from_secs(1),
        },
        seed: [0; 32],
        kernel_seed: [1; 32],
    };
    config.validate()?;
    let smol = boot::is_smol_kernel(&config.kernel)?;
    let ram = anonymous(memory)?;
    let entry = boot::load(&config, smol, cmdline, &ram)?;
    Ok((entry, ram))
}

/// A machine that was restored from a state, but for its vCPUs: what a guest can reach by addresses.
pub struct Board {
    bus: Bus,
    /// The machine's RAM.
    pub ram: Ram,
}

impl Board {
    /// Restores the devices of a state as [`crate::Machine::restore`] does, or as in a test restore
    /// if `building`; the rest of it is brought into the form that the hypervisor takes.
    ///
    /// # Errors
    /// As for that.
    pub fn restore(state: &MachineState, building: bool) -> Result<Self> {
        check_state(state)?;
        for vcpu in &state.vcpus {
            hv::kvm::accept(vcpu, &state.irqchip, state.timers.as_ref())?;
        }
        let ram = anonymous(state.memory)?;
        let (vsock, phase) = match building {
            true => (Vsock::deaf(3), state.phase()),
            false => (live(), Phase::Host),
        };
        let mut devices = DeviceSet::default();
        devices.insert(Slot::Console, Console::new(Box::new(sink())));
        if state.pmem > 0 {
            devices.insert(
                Slot::Pmem,
                Pmem::new(layout::pmem_gpa(state.memory), state.pmem),
            );
        }
        devices.insert(Slot::Vsock, vsock);
        devices.insert(Slot::Rng, Rng::seeded(&[7; 32]));
        let paravirt = state.paravirt.as_ref();
        let paravirt = paravirt.map(|paravirt| Paravirt::restored(paravirt, phase, 0));
        let (contents, serial) = (
            Contents {
                ram: ram.clone(),
                rootfs: None,
            },
            Serial::new(Box::new(sink())),
        );
        let bus = Bus::new(&Arc::new(NoVm), contents, serial, devices, paravirt);
        bus.restore(&state.devices)?;
        bus.resume();
        Ok(Self { bus, ram })
    }

    /// Reads as the guest.
    pub fn read(&self, at: Address, data: &mut [u8]) {
        self.bus.exit();
        self.bus.read(at, data);
    }

    /// Writes as the guest.
    pub fn write(&self, at: Address, data: &[u8]) -> Option<Stop> {
        self.bus.exit();
        self.bus.write(at, data)
    }

    /// Captures the devices, and lets them run on.
    pub fn save(&self) -> Vec<Option<crate::devices::virtio::TransportState>> {
        self.bus.pause();
        let saved = self.bus.save();
        self.bus.resume();
        saved
    }
}

/// A vsock device that nobody listens to, with the host's side of a live machine.
fn live() -> Vsock {
    let live = Vsock::live(3, None);
    live.map_or_else(|_| Vsock::deaf(3), |(device, _)| device)
}
