//! The machine: booted or restored, run until it stops, captured.
//!
//! ```text
//! Machine::boot ----+                        +-> Stop::Snapshot -> capture() + memory::write_image()
//!                   +--> run() --> Stop -----+
//! Machine::restore -+                        +-> Stop::Reset, Stop::Crashed, ...
//! ```
//! Every vCPU has a thread of its own; the first runs on the caller's.
//!
//! | module | purpose |
//! |---|---|
//! | [`config`] | what a machine is made of |
//! | `snapshot` | capture and restore |
//! | [`state`] | versioned wire types of everything that is captured |
//! | `run_loop` | a vCPU, exit by exit |
//! | `control` | what the threads of a machine share: how it stops, the watchdog |

pub mod config;
pub(crate) mod control;
mod run_loop;
mod snapshot;
pub mod state;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use self::config::{Clock, MachineConfig};
use self::control::{Control, Stop, StopHandle, TimeLimit};
pub(crate) use self::snapshot::check as check_state;
pub use self::snapshot::{RestoreConfig, Time};
use crate::Result;
use crate::arch::cpu::{Cpu, Model};
use crate::arch::{boot, layout};
use crate::devices::bus::Bus;
use crate::devices::serial::Serial;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::{DeviceSet, Slot};
use crate::hv::{self, HostVcpu, HostVm, Vcpu, Vm};
use crate::memory::lazy::Contents;
use crate::memory::prefetch::Prefetch;
use crate::memory::{self, PmemImage, Ram};
use crate::paravirt::{Paravirt, Phase};

/// What the machine is connected to.
pub struct Hooks {
    /// Takes what the guest prints on hvc0.
    pub console: Box<dyn Write + Send>,
    /// Takes what the guest prints on its serial port.
    pub serial: Box<dyn Write + Send>,
    /// Streams between guest and host.
    pub vsock: Option<Vsock>,
}

impl Hooks {
    /// Returns the serial port and the virtio devices that are connected to these.
    fn into_devices(self, rootfs: Option<&PmemImage>, rng: Rng) -> (Serial, DeviceSet) {
        let mut devices = DeviceSet::default();
        devices.insert(Slot::Console, Console::new(self.console));
        if let Some(image) = rootfs {
            devices.insert(Slot::Pmem, Pmem::new(image.gpa, image.len));
        }
        if let Some(vsock) = self.vsock {
            devices.insert(Slot::Vsock, vsock);
        }
        devices.insert(Slot::Rng, rng);
        (Serial::new(self.serial), devices)
    }
}

/// A machine that does not run.
pub struct Machine {
    vcpus: Vec<HostVcpu>,
    bus: Arc<Bus>,
    vm: Arc<HostVm>,
    control: Arc<Control>,
    cpu: Cpu,
    possible_vcpus: u8,
    /// How long the guest may run without a VM exit; only on virtual time.
    watchdog: Option<Duration>,
    /// Whether the devices wait to be resumed.
    paused: bool,
    /// What is yet to be loaded of the working set.
    prefetch: Option<Prefetch>,
    /// Mapped for as long as the VM: dropped last.
    contents: Contents,
}

impl Machine {
    /// Builds the machine of `config` and loads its kernel.
    ///
    /// # Errors
    /// For files that cannot be read, kernels that cannot be booted, and hosts that refuse.
    pub fn boot(config: &MachineConfig, hooks: Hooks) -> Result<Self> {
        config.validate()?;
        let smol = boot::is_smol_kernel(&config.kernel)?;
        let (phase, watchdog) = match config.clock {
            Clock::Virtual { watchdog, .. } if smol => (Phase::Virtual, Some(watchdog)),
            _ => (Phase::Host, None),
        };
        let contents = Contents {
            ram: memory::anonymous(config.memory)?,
            rootfs: map_rootfs(config.rootfs.as_deref(), config.memory)?,
        };
        let rng = match config.clock {
            Clock::Virtual { .. } => Rng::seeded(&config.seed),
            Clock::Host => Rng::host(),
        };
        let (serial, devices) = hooks.into_devices(contents.rootfs.as_deref(), rng);
        let cmdline = format!("{} {}", config.cmdline, devices.cmdline());
        let entry = boot::load(config, smol, cmdline.trim(), &contents.ram)?;

        let cpu = Cpu::for_boot(Model::for_boot(smol, phase), config.cpu, &hv::host_cpu()?)?;
        let (vm, vcpus) = create_vm(&contents, &cpu, config.vcpus)?;
        if phase == Phase::Virtual {
            // What a kernel learns from system registers at boot is in the snapshot.
            vm.pin_system_registers()?;
        }
        vcpus[0].enter(&entry)?;
        let paravirt = smol.then(|| match config.clock {
            Clock::Virtual { epoch, .. } => Paravirt::building(epoch),
            Clock::Host => Paravirt::live(vcpus[0].counter_khz()),
        });
        let bus = Bus::new(&vm, contents.clone(), serial, devices, paravirt);
        Ok(Self {
            vcpus,
            bus: Arc::new(bus),
            vm,
            control: Arc::default(),
            cpu,
            possible_vcpus: config.vcpus,
            watchdog,
            paused: false,
            prefetch: None,
            contents,
        })
    }

    /// Returns a handle that stops the machine from elsewhere.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle::of(&self.control)
    }

    /// Returns what limits its virtual time.
    pub fn time_limit(&self) -> TimeLimit {
        TimeLimit(self.bus.clone())
    }

    /// Returns the guest's RAM. Nobody may access it while the machine runs.
    pub fn ram(&self) -> &Ram {
        &self.contents.ram
    }

    /// Returns RAM and root file system, to be read. Nobody may access them while the machine
    /// runs.
    pub fn contents(&self) -> Contents {
        self.contents.clone()
    }

    /// Returns the number of VM exits so far.
    pub fn exits(&self) -> u64 {
        self.control.exits()
    }

    /// Returns virtual time since power-on, ns; `None` for kernels without the paravirtual
    /// interface.
    pub fn virtual_time(&self) -> Option<u64> {
        self.bus.paravirt().map(|p| p.now)
    }

    /// Returns the virtual time of the watchdog's first tick, ns: the guest ran so long without a
    /// VM exit that nothing would have preempted it any more. From then on time came from the
    /// host, so no second build can be expected to give the same bits.
    pub fn first_tick(&self) -> Option<u64> {
        self.control.first_tick()
    }

    /// Begins to load the working set of a restored machine, which [`Machine::run`] does unless it was done
    /// before. The guest waits for the first pages, so begin early; but whoever makes a mapping
    /// meanwhile (the stack of a thread, say) waits for the lock of this process's memory, for
    /// milliseconds on small hosts.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub fn load(&mut self) -> Result<()> {
        match self.prefetch.take() {
            Some(prefetch) => snapshot::start_prefetch(prefetch, self.stop_handle()),
            None => Ok(()),
        }
    }

    /// Runs all vCPUs until the machine stops, for the first reason that comes up. A restored machine
    /// accesses its memory from here on, its devices included.
    ///
    /// # Errors
    /// If the hypervisor refuses to run a vCPU at all.
    pub fn run(&mut self) -> Result<Stop> {
        self.load()?;
        if std::mem::take(&mut self.paused) {
            self.bus.resume();
        }
        let control = &*self.control;
        control.begin(self.vcpus.len());
        let bus = &*self.bus;
        let (first, others) = self.vcpus.split_first_mut().expect("a machine has a vCPU");
        std::thread::scope(|scope| {
            if let Some(timeout) = self.watchdog {
                scope.spawn(move || control.watch(bus, timeout));
            }
            for (number, vcpu) in (1..).zip(others) {
                scope.spawn(move || control.run_vcpu(number, vcpu, bus));
            }
            control.run_vcpu(0, first, bus);
        });
        control.take_outcome()
    }
}

fn map_rootfs(path: Option<&Path>, memory: u64) -> Result<Option<Arc<PmemImage>>> {
    let map = |path| PmemImage::map(path, layout::pmem_gpa(memory)).map(Arc::new);
    path.map(map).transpose()
}

/// Creates the hypervisor's part of a machine. Memslots come before the interrupt controllers
/// (they are thirty times cheaper then), and all vCPUs at once, so that their counters agree.
fn create_vm(contents: &Contents, cpu: &Cpu, vcpus: u8) -> Result<(Arc<HostVm>, Vec<HostVcpu>)> {
    let vm = HostVm::new()?;
    let mut slot = 0;
    for region in contents.ram.iter() {
        let (gpa, host) = (region.start_addr().0, region.get_mmap().as_ptr());
        // SAFETY: the machine keeps `contents`, and with it this mapping, as long as the VM.
        unsafe { vm.map(slot, gpa, host, region.len(), false)? };
        slot += 1;
    }
    if let Some(image) = &contents.rootfs {
        // SAFETY: the machine keeps the image mapped as long as the VM; the slot is read-only.
        unsafe { vm.map(slot, image.gpa, image.host, image.len, true)? };
    }
    vm.create_irqchip(!cpu.has_paravirt())?;
    let vcpus = (0..vcpus)
        .map(|id| vm.create_vcpu(id, cpu))
        .collect::<Result<Vec<_>>>()?;
    for vcpu in &vcpus[1..] {
        vcpu.await_startup()?;
    }
    Ok((Arc::new(vm), vcpus))
}
