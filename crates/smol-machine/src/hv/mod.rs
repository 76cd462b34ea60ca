//! Hypervisor back ends behind two traits. The only place, with the boot code, that knows the
//! operating system or the processor it was compiled for.

use crate::arch::boot::Entry;
use crate::arch::cpu::{Cpu, CpuidEntry, Model};
use crate::arch::state::{IrqchipState, TimerState, VcpuState};
use crate::{Error, Result};

#[cfg(target_os = "linux")]
pub mod kvm;
#[cfg(target_os = "linux")]
pub use kvm::{
    KvmVcpu as HostVcpu, KvmVm as HostVm, prepare, retries_failed_accesses, supported_cpuid,
};

/// Why a vCPU came out of the guest.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Port read; the handler fills `data`.
    IoIn {
        /// Port number.
        port: u16,
        /// Where the value goes, little endian.
        data: &'a mut [u8],
    },
    /// Port write.
    IoOut {
        /// Port number.
        port: u16,
        /// The value, little endian.
        data: &'a [u8],
    },
    /// Read of a guest-physical address that is not RAM, or that the hypervisor cannot read by
    /// itself; the handler fills `data`.
    MmioRead {
        /// GPA.
        address: u64,
        /// Where the value goes, little endian.
        data: &'a mut [u8],
    },
    /// Write to a guest-physical address that is not RAM, or that the hypervisor cannot write.
    MmioWrite {
        /// GPA.
        address: u64,
        /// The value, little endian.
        data: &'a [u8],
    },
    /// The guest needs a page of its memory that is mapped but cannot be had. Nothing happened in
    /// the guest: it does the same again when it is run again.
    Absent {
        /// GPA in that page, where the hypervisor tells.
        address: Option<u64>,
    },
    /// Triple fault or reset.
    Shutdown,
    /// A signal; nothing happened in the guest.
    Interrupted,
    /// The hypervisor cannot go on; in words.
    Broken(String),
}

/// A virtual machine of a hypervisor. Calls come in the order of the methods.
pub trait Vm: Sized + Send + Sync + 'static {
    /// Its vCPU.
    type Vcpu: Vcpu;

    /// A machine without memory, controllers or vCPUs.
    fn new() -> Result<Self>;

    /// CPUID leaves that guests can be given here.
    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>>;

    /// Puts host memory into the guest-physical address space.
    ///
    /// # Safety
    /// `host..host + len` must stay mapped (writable unless `readonly`) until the machine is gone.
    unsafe fn map(
        &self,
        slot: u32,
        gpa: u64,
        host: *mut u8,
        len: u64,
        readonly: bool,
    ) -> Result<()>;

    /// Interrupt controllers; with `pit` also the legacy timer. After all [`Vm::map`] calls:
    /// a memslot costs milliseconds once the controllers stand.
    fn create_irqchip(&self, pit: bool) -> Result<()>;

    /// Lets the guest have the MSRs of the pinned CPU and no others, which raise #GP. What the
    /// hypervisor would make of them is up to the host: its processor, its settings.
    fn pin_msrs(&self) -> Result<()>;

    /// vCPU with this APIC id, showing this CPU.
    fn create_vcpu(&self, id: u8, cpu: &Cpu) -> Result<Self::Vcpu>;

    /// Drives an interrupt line of the board.
    fn set_irq_line(&self, gsi: u32, asserted: bool) -> Result<()>;

    /// Captures the interrupt controllers.
    fn save_irqchip(&self) -> Result<IrqchipState>;
    /// Brings them back.
    fn restore_irqchip(&self, state: &IrqchipState) -> Result<()>;
    /// Captures the timers of a machine on the host's clock.
    fn save_timers(&self) -> Result<TimerState>;
    /// Brings them back.
    fn restore_timers(&self, state: &TimerState) -> Result<()>;
}

/// A vCPU. It is run by one thread at a time.
pub trait Vcpu: Send {
    /// Runs the guest until it needs the VMM.
    fn run(&mut self) -> Result<Exit<'_>>;
    /// GPA of the instruction that the guest is at, unless its page tables do not say.
    fn instruction(&self) -> Option<u64>;
    /// Completes the instruction that caused the last exit, without running another.
    fn finish_exit(&mut self) -> Result<()>;
    /// Registers for the first instruction of a kernel.
    fn enter(&self, entry: &Entry) -> Result<()>;
    /// Makes this vCPU known to the interrupt controllers before it is started by another.
    fn await_startup(&self) -> Result<()>;
    /// Frequency of the time-stamp counter, kHz; 0 if unknown.
    fn tsc_khz(&self) -> u32;
    /// Captures the vCPU.
    fn save(&self, model: Model) -> Result<VcpuState>;
    /// Brings it back.
    fn restore(&self, state: &VcpuState) -> Result<()>;
}

impl Error {
    /// The state asks for something that no machine of ours can have.
    pub(crate) fn bad_state(what: impl Into<String>) -> Error {
        Error::State(what.into())
    }
}
