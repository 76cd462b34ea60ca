//! The machine: booted or restored, run until it stops, captured.
//!
//! ```text
//! Machine::boot ----+                        +-> Stop::Snapshot -> capture() + memory::write_image()
//!                   +--> run() --> Stop -----+
//! Machine::restore -+                        +-> Stop::Reset, Stop::Crashed, ...
//! ```
//! Every vCPU has a thread of its own; the first runs on the caller's.

pub mod config;
pub(crate) mod control;
pub mod state;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::cpu::{Cpu, Model};
use crate::arch::{boot, layout};
use crate::devices::bus::{self, Board, DeviceSet};
use crate::devices::serial::Serial;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::hv::{self, HostVcpu, HostVm, Vcpu, Vm};
use crate::machine::config::{Clock, MAX_VCPUS, MachineConfig};
use crate::machine::control::{Control, Stop, StopHandle, install_kick_handler};
use crate::machine::state::MachineState;
use crate::memory::arrivals::Arrivals;
use crate::memory::lazy::{Contents, LazyMemory};
use crate::memory::prefetch::{Prefetch, Runs};
use crate::memory::{self, PmemImage, Ram};
use crate::paravirt::Paravirt;
use crate::threads;
use crate::{Error, Result};

/// What the machine is connected to.
pub struct Hooks {
    /// Takes what the guest prints on hvc0.
    pub console: Box<dyn Write + Send>,
    /// Takes what the guest prints on its serial port.
    pub serial: Box<dyn Write + Send>,
    /// Streams between guest and host.
    pub vsock: Option<Vsock>,
}

/// A machine to bring back.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// RAM as [`memory::write_image`] wrote it.
    pub memory: PathBuf,
    /// The image that was attached as virtio-pmem.
    pub rootfs: Option<PathBuf>,
    /// Pages of RAM that will be touched first.
    pub memory_first: Runs,
    /// Pages of the rootfs that will be touched first.
    pub rootfs_first: Runs,
}

/// How time goes on in a machine that is brought back.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    /// On the host's clock, with the host's randomness.
    Live,
    /// As if it had not been stopped: it is still being built. Kernels without the paravirtual
    /// interface go on on the host's clock.
    Building {
        /// Seeds virtio-rng anew.
        seed: [u8; 32],
    },
}

/// A machine that stands still.
pub struct Machine {
    vcpus: Vec<HostVcpu>,
    board: Arc<Board>,
    vm: Arc<HostVm>,
    ram: Ram,
    control: Arc<Control>,
    cpu: Cpu,
    pmem: Option<Arc<PmemImage>>,
    possible_vcpus: u8,
    /// The watchdog's; only on virtual time.
    patience: Option<Duration>,
}

impl Machine {
    /// Builds the machine of `config` and loads its kernel.
    ///
    /// # Errors
    /// For files that cannot be read, kernels that cannot be booted, and hosts that refuse.
    pub fn boot(config: &MachineConfig, hooks: Hooks) -> Result<Self> {
        config.validate()?;
        let smol = boot::is_smol_kernel(&config.kernel)?;
        let (virtual_epoch, patience) = match config.clock {
            Clock::Virtual { epoch, watchdog } if smol => (Some(epoch), Some(watchdog)),
            _ => (None, None),
        };
        let model = match (smol, virtual_epoch) {
            (true, Some(_)) => Model::SmolBuild,
            (true, None) => Model::SmolLive,
            (false, _) => Model::Generic,
        };
        let ram = memory::anonymous(config.memory)?;
        let pmem = config
            .rootfs
            .as_deref()
            .map(|p| PmemImage::map(p, layout::pmem_gpa(config.memory)).map(Arc::new))
            .transpose()?;
        let building = matches!(config.clock, Clock::Virtual { .. });
        let rng = if building {
            Rng::seeded(&config.seed)
        } else {
            Rng::host()
        };
        let devices = device_set(hooks.console, pmem.as_deref(), hooks.vsock, rng);
        let cmdline = format!("{} {}", config.cmdline, bus::cmdline(devices.occupied()));
        let entry = boot::load(config, smol, cmdline.trim(), &ram)?;

        let cpu = Cpu::for_boot(model, &hv::supported_cpuid()?)?;
        let (vm, vcpus) = assemble(&ram, pmem.as_deref(), &cpu, config.vcpus)?;
        if virtual_epoch.is_some() {
            // What a kernel learns from MSRs at boot is in the snapshot.
            vm.pin_msrs()?;
        }
        vcpus[0].enter(&entry)?;
        let paravirt = smol.then(|| match virtual_epoch {
            Some(epoch) => Paravirt::building(epoch),
            None => Paravirt::live(None, vcpus[0].tsc_khz()),
        });
        let board = Board::new(
            &vm,
            Contents {
                ram: ram.clone(),
                rootfs: pmem.clone(),
            },
            Serial::new(hooks.serial),
            devices,
            paravirt,
            virtual_epoch.is_some(),
        );
        Ok(Self {
            vcpus,
            board: Arc::new(board),
            vm,
            ram,
            control: Arc::default(),
            cpu,
            pmem,
            possible_vcpus: config.vcpus,
            patience,
        })
    }

    /// Brings a captured machine back, on the host's clock. RAM is copy-on-write over its image.
    ///
    /// # Errors
    /// For states that this build or this host cannot take, and files that cannot be read.
    pub fn restore(config: &RestoreConfig, state: &MachineState, hooks: Hooks) -> Result<Self> {
        check(state)?;
        let (ram, image) = memory::copy_on_write(state.memory, &config.memory)?;
        let pmem = config
            .rootfs
            .as_deref()
            .map(|p| PmemImage::map(p, layout::pmem_gpa(state.memory)).map(Arc::new))
            .transpose()?;
        let rootfs = pmem.as_ref().map(|pmem| (pmem, &config.rootfs_first));
        let err = |e: std::io::Error| Error::Memory(format!("the working set: {e}"));
        let prefetch = Prefetch::new(&ram, image, &config.memory_first, rootfs).map_err(err)?;
        let launch = |handle: StopHandle| {
            if !prefetch.can_wait() {
                return prefetch.finish().map_err(err);
            }
            let bring = move || {
                if let Err(e) = prefetch.finish() {
                    handle.stop(Err(err(e)));
                }
            };
            threads::spawn("prefetch", bring).map(drop).map_err(err)
        };
        let contents = Contents { ram, rootfs: pmem };
        Self::revive(contents, None, state, hooks, Time::Live, launch)
    }

    /// Brings a captured machine back into memory that is filled while it runs: somebody must
    /// serve `demand` from now on. The sizes of `demand` are those of the state.
    ///
    /// # Errors
    /// As for [`Machine::restore`].
    pub fn restore_lazy(
        demand: &LazyMemory,
        state: &MachineState,
        hooks: Hooks,
        time: Time,
    ) -> Result<Self> {
        check(state)?;
        let memory: u64 = demand.ram.iter().map(|r| r.len()).sum();
        if memory != state.memory {
            return Err(Error::bad_state(format!(
                "it has {} bytes of RAM, not {memory}",
                state.memory
            )));
        }
        let arrivals = demand.arrivals.clone();
        Self::revive(demand.contents(), arrivals, state, hooks, time, |_| Ok(()))
    }

    /// `launch` is called when the hypervisor has its part and before anything touches memory.
    fn revive(
        contents: Contents,
        arrivals: Option<Arc<Arrivals>>,
        state: &MachineState,
        hooks: Hooks,
        time: Time,
        launch: impl FnOnce(StopHandle) -> Result<()>,
    ) -> Result<Self> {
        let (ram, pmem) = (contents.ram.clone(), contents.rootfs.clone());
        let pmem_size = pmem.as_ref().map_or(0, |p| p.len);
        if pmem_size != state.pmem {
            return Err(Error::bad_state(format!(
                "its rootfs image has {} bytes, the one given {pmem_size}",
                state.pmem
            )));
        }
        let rng = match time {
            Time::Live => Rng::host(),
            Time::Building { seed } => Rng::seeded(&seed),
        };
        let devices = device_set(hooks.console, pmem.as_deref(), hooks.vsock, rng);
        let (vm, vcpus) = assemble(&ram, pmem.as_deref(), &state.cpu, state.possible_vcpus)?;
        if state.paravirt.is_some() && matches!(time, Time::Building { .. }) {
            vm.pin_msrs()?;
        }
        for (vcpu, state) in vcpus.iter().zip(&state.vcpus) {
            vcpu.restore(state)?;
        }
        vm.restore_irqchip(&state.irqchip)?;
        if let Some(timers) = &state.timers {
            vm.restore_timers(timers)?;
        }
        let paravirt = state.paravirt.clone().map(|p| match time {
            Time::Live => Paravirt::live(Some(p), vcpus[0].tsc_khz()),
            Time::Building { .. } => Paravirt::still_building(p),
        });
        let virtual_time = paravirt.is_some() && matches!(time, Time::Building { .. });
        let board = Board::new(
            &vm,
            contents,
            Serial::new(hooks.serial),
            devices,
            paravirt,
            virtual_time,
        );
        let control = Arc::new(Control::new(arrivals));
        launch(StopHandle::of(&control))?;
        board.restore(&state.devices)?;
        board.resume();
        Ok(Self {
            vcpus,
            board: Arc::new(board),
            vm,
            ram,
            control,
            cpu: state.cpu,
            pmem,
            possible_vcpus: state.possible_vcpus,
            patience: None,
        })
    }

    /// A handle that stops the machine from elsewhere.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle::of(&self.control)
    }

    /// The guest's RAM. Nobody may touch it while the machine runs.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// RAM and root file system, to be read. Nobody may touch them while the machine runs.
    pub fn contents(&self) -> Contents {
        Contents {
            ram: self.ram.clone(),
            rootfs: self.pmem.clone(),
        }
    }

    /// VM exits so far.
    pub fn exits(&self) -> u64 {
        self.control.exits()
    }

    /// Virtual time since power-on, ns; `None` for kernels without the paravirtual interface.
    pub fn virtual_time(&self) -> Option<u64> {
        self.board.paravirt().map(|p| p.now)
    }

    /// Virtual time of the watchdog's first tick, ns: the guest ran so long without a VM exit
    /// that nothing would have preempted it any more. From then on time came from the host, so no
    /// second build can be expected to give the same bits.
    pub fn first_tick(&self) -> Option<u64> {
        self.control.first_tick()
    }

    /// Runs all vCPUs until the machine stops, for the first reason that comes up.
    ///
    /// # Errors
    /// If the hypervisor refuses to run a vCPU at all.
    pub fn run(&mut self) -> Result<Stop> {
        install_kick_handler()?;
        let control = &*self.control;
        control.begin(self.vcpus.len());
        let board = &*self.board;
        let (first, others) = self.vcpus.split_first_mut().expect("a machine has a vCPU");
        std::thread::scope(|scope| {
            if let Some(patience) = self.patience {
                scope.spawn(move || control.watch(board, patience));
            }
            for vcpu in others {
                scope.spawn(|| control.run_vcpu(vcpu, board));
            }
            control.run_vcpu(first, board);
        });
        control.take_outcome()
    }

    /// Captures everything but RAM and rootfs. The machine must have stopped for
    /// [`Stop::Snapshot`] or [`Stop::Requested`], with one vCPU online.
    ///
    /// # Errors
    /// If the hypervisor does not give its state away.
    pub fn capture(&mut self) -> Result<MachineState> {
        let vcpu = &mut self.vcpus[0];
        vcpu.finish_exit()?;
        let timers = if self.cpu.model == Model::Generic {
            Some(self.vm.save_timers()?)
        } else {
            None
        };
        Ok(MachineState {
            version: state::VERSION,
            arch: std::env::consts::ARCH.to_owned(),
            memory: self.ram.iter().map(|r| r.len()).sum(),
            possible_vcpus: self.possible_vcpus,
            pmem: self.pmem.as_ref().map_or(0, |p| p.len),
            cpu: self.cpu,
            vcpus: vec![vcpu.save(self.cpu.model)?],
            irqchip: self.vm.save_irqchip()?,
            timers,
            paravirt: self.board.paravirt(),
            devices: self.board.save(),
        })
    }
}

/// The numbers of a state that size things, before anything is sized by them.
fn check(state: &MachineState) -> Result<()> {
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
    if (state.cpu.model == Model::Generic) == state.paravirt.is_some() {
        return bad("its CPU model and its paravirtual clock contradict each other");
    }
    Ok(())
}

fn device_set(
    console: Box<dyn Write + Send>,
    pmem: Option<&PmemImage>,
    vsock: Option<Vsock>,
    rng: Rng,
) -> DeviceSet {
    DeviceSet {
        console: Some(Console::new(console)),
        pmem: pmem.map(|p| Pmem::new(p.gpa, p.len)),
        vsock,
        rng: Some(rng),
    }
}

/// Hypervisor objects of a machine. Memslots come before the interrupt controllers (they are
/// thirty times cheaper then), and all vCPUs at once, so that their TSCs agree.
fn assemble(
    ram: &Ram,
    pmem: Option<&PmemImage>,
    cpu: &Cpu,
    vcpus: u8,
) -> Result<(Arc<HostVm>, Vec<HostVcpu>)> {
    let vm = HostVm::new()?;
    let mut slot = 0;
    for region in ram.iter() {
        // SAFETY: the machine keeps `ram`, and with it this mapping, as long as the VM.
        unsafe {
            vm.map(
                slot,
                region.start_addr().0,
                region.get_mmap().as_ptr(),
                region.len(),
                false,
            )?
        };
        slot += 1;
    }
    if let Some(pmem) = pmem {
        // SAFETY: the machine keeps the image mapped as long as the VM; the slot is read-only.
        unsafe { vm.map(slot, pmem.gpa, pmem.host, pmem.len, true)? };
    }
    vm.create_irqchip(cpu.model == Model::Generic)?;
    let vcpus = (0..vcpus)
        .map(|id| vm.create_vcpu(id, cpu))
        .collect::<Result<Vec<_>>>()?;
    for vcpu in &vcpus[1..] {
        vcpu.await_startup()?;
    }
    Ok((Arc::new(vm), vcpus))
}
