//! KVM.
//!
//! API: Documentation/virt/kvm/api.rst of the Linux kernel.
//!
//! | module | purpose |
//! |---|---|
//! | [`probe`] | finds out by trying whether this host's KVM runs a real kernel |
//! | `vcpu`, `kicker` | a vCPU run, and interrupted |
//! | `x86_64` | what depends on the processor |

mod kicker;
pub mod probe;
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};

use super::Vm;
use crate::arch::cpu::{Cpu, HostCpu};
use crate::arch::state::{IrqchipState, TimerState, VcpuState};
use crate::{Error, Result};

pub use kicker::KvmKicker;
pub use vcpu::KvmVcpu;

#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

/// Converts a captured vCPU and its board to the form that KVM takes, and does no more: what the fuzz
/// targets call.
pub(crate) fn accept(
    vcpu: &VcpuState,
    irqchip: &IrqchipState,
    timers: Option<&TimerState>,
) -> Result<()> {
    arch::vcpu::accept(vcpu)?;
    arch::vm::accept(irqchip, timers)
}

impl Error {
    /// Wraps the failure of hypervisor call `call`.
    fn hv(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |e| Error::Hypervisor {
            call,
            source: std::io::Error::from_raw_os_error(e.errno()),
        }
    }
}

/// A machine of KVM.
#[derive(Debug)]
pub struct KvmVm {
    vm: VmFd,
}

/// Returns the system file descriptor; opened once, all machines of the process share it.
fn kvm() -> Result<&'static Kvm> {
    static KVM: OnceLock<Kvm> = OnceLock::new();
    if let Some(kvm) = KVM.get() {
        return Ok(kvm);
    }
    let kvm = Kvm::new().map_err(Error::hv("open /dev/kvm"))?;
    Ok(KVM.get_or_init(|| kvm))
}

/// What [`prepare`] has made.
struct Prepared {
    host_cpu: HostCpu,
    vm: Mutex<Option<VmFd>>,
}

static PREPARING: Mutex<Option<JoinHandle<Result<Prepared>>>> = Mutex::new(None);

/// Starts a thread that does what every machine needs, whichever it is: opens KVM, asks what it
/// supports and creates one machine. KVM takes about as long for that as a program needs to find
/// out which machine it wants.
pub fn prepare() {
    let make = || {
        let host_cpu = arch::vm::host_cpu(kvm()?)?;
        let vm = kvm()?.create_vm().map_err(Error::hv("KVM_CREATE_VM"))?;
        Ok(Prepared {
            host_cpu,
            vm: Mutex::new(Some(vm)),
        })
    };
    // Without a thread, or with an error, all of it is done when it is asked for.
    let thread = crate::threads::spawn("prepare", make).ok();
    *PREPARING.lock().unwrap_or_else(PoisonError::into_inner) = thread;
}

/// Returns what was prepared, waiting for it while it is being made.
fn prepared() -> Option<&'static Prepared> {
    static PREPARED: OnceLock<Option<Prepared>> = OnceLock::new();
    let wait = || {
        let mut preparing = PREPARING.lock().unwrap_or_else(PoisonError::into_inner);
        preparing.take()?.join().ok()?.ok()
    };
    PREPARED.get_or_init(wait).as_ref()
}

/// Returns what guests can be given of this host's processor; no machine is needed to ask.
pub fn host_cpu() -> Result<HostCpu> {
    match prepared() {
        Some(prepared) => Ok(prepared.host_cpu.clone()),
        None => arch::vm::host_cpu(kvm()?),
    }
}

/// Whether a vCPU whose access to an absent page failed can be run again and again until the page
/// is loaded, without the guest noticing.
///
/// It can where the processor walks the guest's page tables (EPT, NPT) and executes all modes of a
/// CPU itself. Elsewhere KVM does part of that in software; what it cannot read then becomes a page
/// fault in the guest, or an instruction that cannot be emulated. A KVM that does not say counts
/// as one that does it in software.
pub fn retries_failed_accesses() -> bool {
    let is_on = |module: &str, parameter: &str| {
        let path = format!("/sys/module/{module}/parameters/{parameter}");
        std::fs::read_to_string(path).is_ok_and(|text| matches!(text.trim(), "Y" | "1"))
    };
    is_on("kvm_amd", "npt") || is_on("kvm_intel", "ept") && is_on("kvm_intel", "unrestricted_guest")
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn new() -> Result<Self> {
        let spare = prepared().and_then(|prepared| {
            prepared
                .vm
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        });
        let vm = match spare {
            Some(vm) => vm,
            None => kvm()?.create_vm().map_err(Error::hv("KVM_CREATE_VM"))?,
        };
        arch::vm::set_up(&vm)?;
        Ok(Self { vm })
    }

    unsafe fn map(
        &self,
        slot: u32,
        gpa: u64,
        host: *mut u8,
        len: u64,
        readonly: bool,
    ) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if readonly { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller keeps the host range mapped for the life of the machine.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(Error::hv("KVM_SET_USER_MEMORY_REGION"))
    }

    fn create_irqchip(&self, legacy_timers: bool) -> Result<()> {
        arch::vm::create_irqchip(&self.vm, legacy_timers)
    }

    fn pin_system_registers(&self) -> Result<()> {
        arch::vm::pin_system_registers(&self.vm)
    }

    fn create_vcpu(&self, id: u8, cpu: &Cpu) -> Result<KvmVcpu> {
        let fd = self
            .vm
            .create_vcpu(u64::from(id))
            .map_err(Error::hv("KVM_CREATE_VCPU"))?;
        arch::vm::set_cpu(&fd, id, cpu)?;
        Ok(KvmVcpu::new(fd))
    }

    fn set_irq_line(&self, irq: u32, asserted: bool) -> Result<()> {
        self.vm
            .set_irq_line(irq, asserted)
            .map_err(Error::hv("KVM_IRQ_LINE"))
    }

    fn save_irqchip(&self) -> Result<IrqchipState> {
        arch::vm::save_irqchip(&self.vm)
    }

    fn restore_irqchip(&self, state: &IrqchipState) -> Result<()> {
        arch::vm::restore_irqchip(&self.vm, state)
    }

    fn save_timers(&self) -> Result<TimerState> {
        arch::vm::save_timers(&self.vm)
    }

    fn restore_timers(&self, state: &TimerState) -> Result<()> {
        arch::vm::restore_timers(&self.vm, state)
    }
}
