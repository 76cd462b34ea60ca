//! Capture and restore.

use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::config::MAX_VCPUS;
use super::control::{Control, StopHandle};
use super::state::{self, MachineState};
use super::{Hooks, Machine, create_vm, map_rootfs};
use crate::arch::layout;
use crate::devices::bus::Bus;
use crate::devices::virtio::rng::Rng;
use crate::hv::{HostVcpu, HostVm, Vcpu, Vm};
use crate::memory::arrivals::Arrivals;
use crate::memory::lazy::{Contents, LazyMemory};
use crate::memory::prefetch::{Prefetch, Runs};
use crate::memory::{self, Ram};
use crate::paravirt::{Paravirt, Phase};
use crate::threads;
use crate::{Error, Result};

/// A machine to restore.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// RAM as [`memory::write_image`] wrote it.
    pub memory: PathBuf,
    /// The image that was attached as virtio-pmem.
    pub rootfs: Option<PathBuf>,
    /// Pages of RAM that will be accessed first.
    pub memory_first: Runs,
    /// Pages of the rootfs that will be accessed first.
    pub rootfs_first: Runs,
}

/// How time goes on in a restored machine.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    /// On the host's clock, with the host's randomness.
    Live,
    /// As if it had not been stopped: it is still being built. A machine that was on the host's
    /// clock stays on it.
    Building {
        /// Seeds virtio-rng anew.
        seed: [u8; 32],
    },
}

impl Machine {
    /// Restores a captured machine on the host's clock. RAM is copy-on-write over its image.
    ///
    /// # Errors
    /// For states that this build or this host cannot take, and files that cannot be read.
    pub fn restore(config: &RestoreConfig, state: &MachineState, hooks: Hooks) -> Result<Self> {
        check(state)?;
        let (ram, image) = memory::copy_on_write(state.memory, &config.memory)?;
        let rootfs = map_rootfs(config.rootfs.as_deref(), state.memory)?;
        let rootfs_first = rootfs.as_ref().map(|image| (image, &config.rootfs_first));
        let prefetch =
            Prefetch::new(&ram, image, &config.memory_first, rootfs_first).map_err(prefetching)?;
        let prefetch = match prefetch.can_wait() {
            true => Some(prefetch),
            false => prefetch.finish().map(|()| None).map_err(prefetching)?,
        };
        let contents = Contents { ram, rootfs };
        let machine = Self::restore_into(contents, None, state, hooks, Time::Live)?;
        Ok(Self {
            prefetch,
            ..machine
        })
    }

    /// Restores a captured machine into memory that is filled while it runs: somebody must serve
    /// `memory` from now on. The sizes of `memory` are those of the state.
    ///
    /// # Errors
    /// As for [`Machine::restore`].
    pub fn restore_lazy(
        memory: &LazyMemory,
        state: &MachineState,
        hooks: Hooks,
        time: Time,
    ) -> Result<Self> {
        check(state)?;
        let size = size_of_ram(&memory.ram);
        if size != state.memory {
            return Err(Error::bad_state(format!(
                "it has {} bytes of RAM, not {size}",
                state.memory
            )));
        }
        let arrivals = memory.arrivals.clone();
        Self::restore_into(memory.contents(), arrivals, state, hooks, time)
    }

    /// Returns a machine that is paused: nothing has accessed its memory yet.
    fn restore_into(
        contents: Contents,
        arrivals: Option<Arc<Arrivals>>,
        state: &MachineState,
        hooks: Hooks,
        time: Time,
    ) -> Result<Self> {
        let rootfs_size = contents.rootfs.as_ref().map_or(0, |image| image.len);
        if rootfs_size != state.pmem {
            return Err(Error::bad_state(format!(
                "its rootfs image has {} bytes, the one given {rootfs_size}",
                state.pmem
            )));
        }
        let (rng, phase) = match time {
            Time::Live => (Rng::host(), Phase::Host),
            Time::Building { seed } => (Rng::seeded(&seed), state.phase()),
        };
        let (serial, devices) = hooks.into_devices(contents.rootfs.as_deref(), rng);
        let (vm, vcpus) = create_vm(&contents, &state.cpu, state.possible_vcpus)?;
        if phase == Phase::Virtual {
            vm.pin_system_registers()?;
        }
        restore_hypervisor(&vm, &vcpus, state)?;
        let paravirt = state.paravirt.as_ref().map(|paravirt| {
            let counter_khz = match phase {
                Phase::Virtual => 0,
                Phase::Host => vcpus[0].counter_khz(),
            };
            Paravirt::restored(paravirt, phase, counter_khz)
        });
        let bus = Bus::new(&vm, contents.clone(), serial, devices, paravirt);
        bus.restore(&state.devices)?;
        Ok(Self {
            vcpus,
            bus: Arc::new(bus),
            vm,
            control: Arc::new(Control::new(arrivals)),
            cpu: state.cpu,
            possible_vcpus: state.possible_vcpus,
            watchdog: None,
            paused: true,
            prefetch: None,
            contents,
        })
    }

    /// Captures everything but RAM and rootfs. The machine must have stopped for
    /// [`Stop::Snapshot`](super::Stop::Snapshot) or [`Stop::Requested`](super::Stop::Requested),
    /// with one vCPU online. Nothing of it changes, RAM included, until it is run on.
    ///
    /// # Errors
    /// If the hypervisor does not give its state away.
    pub fn capture(&mut self) -> Result<MachineState> {
        self.bus.pause();
        self.paused = true;
        let vcpu = &mut self.vcpus[0];
        vcpu.finish_exit()?;
        let timers = match self.cpu.has_paravirt() {
            true => None,
            false => Some(self.vm.save_timers()?),
        };
        Ok(MachineState {
            version: state::VERSION,
            arch: std::env::consts::ARCH.to_owned(),
            memory: size_of_ram(&self.contents.ram),
            possible_vcpus: self.possible_vcpus,
            pmem: self.contents.rootfs.as_ref().map_or(0, |image| image.len),
            cpu: self.cpu,
            vcpus: vec![vcpu.save(self.bus.phase())?],
            irqchip: self.vm.save_irqchip()?,
            timers,
            paravirt: self.bus.paravirt(),
            devices: self.bus.save(),
        })
    }
}

/// Restores what the hypervisor holds of a machine.
fn restore_hypervisor(vm: &HostVm, vcpus: &[HostVcpu], state: &MachineState) -> Result<()> {
    let (online, offline) = vcpus.split_at(state.vcpus.len());
    for (vcpu, state) in online.iter().zip(&state.vcpus) {
        vcpu.restore(state)?;
    }
    for vcpu in offline {
        vcpu.follow_counter(&state.vcpus[0])?;
    }
    vm.restore_irqchip(&state.irqchip)?;
    match &state.timers {
        Some(timers) => vm.restore_timers(timers),
        None => Ok(()),
    }
}

/// Loads the working set on a thread of its own.
pub(super) fn start_prefetch(prefetch: Prefetch, handle: StopHandle) -> Result<()> {
    let load = move || {
        if let Err(e) = prefetch.finish() {
            handle.stop(Err(prefetching(e)));
        }
    };
    threads::spawn("prefetch", load)
        .map(drop)
        .map_err(prefetching)
}

fn prefetching(e: std::io::Error) -> Error {
    Error::Memory(format!("the working set: {e}"))
}

fn size_of_ram(ram: &Ram) -> u64 {
    ram.iter().map(|region| region.len()).sum()
}

/// Checks the numbers of a state that size things, before anything is sized by them.
pub(crate) fn check(state: &MachineState) -> Result<()> {
    let bad = |what: &str| Err(Error::bad_state(what));
    if state.possible_vcpus == 0 || state.possible_vcpus > MAX_VCPUS {
        return bad("its number of vCPUs is out of range");
    }
    if state.vcpus.len() != 1 {
        return bad("it does not have exactly one vCPU online");
    }
    if !(layout::MIN_RAM..=layout::MAX_RAM).contains(&state.memory)
        || !state.memory.is_multiple_of(1 << 20)
    {
        return bad("its RAM size is out of range");
    }
    if state.cpu.has_paravirt() != state.paravirt.is_some() {
        return bad("its CPU model and its paravirtual clock contradict each other");
    }
    Ok(())
}
