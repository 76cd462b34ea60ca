//! Hypervisor back ends behind two traits, [`Vm`] and [`Vcpu`]. What is in them depends on the
//! processor only by the types of [`crate::arch`].

use crate::Result;
use crate::arch::boot::Entry;
use crate::arch::cpu::Cpu;
use crate::arch::state::{IrqchipState, TimerState, VcpuState};
use crate::paravirt::Phase;

#[cfg(target_os = "linux")]
pub mod kvm;
pub(crate) mod none;
#[cfg(target_os = "linux")]
pub use kvm::{
    KvmKicker as HostKicker, KvmVcpu as HostVcpu, KvmVm as HostVm, host_cpu, prepare, probe,
    retries_failed_accesses,
};

/// An address that the guest accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// An I/O port, on processors that have them.
    Port(u16),
    /// A GPA.
    Memory(u64),
}

/// Why a vCPU came out of the guest.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Read of an I/O port or of a GPA that is not RAM, or that the hypervisor cannot read by
    /// itself; the handler fills `data`.
    Read {
        /// Where from.
        at: Address,
        /// Where the value goes, little endian.
        data: &'a mut [u8],
    },
    /// Write to an I/O port or to a GPA that is not RAM, or that the hypervisor cannot write.
    Write {
        /// Where to.
        at: Address,
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
    /// A kick; nothing happened in the guest.
    Interrupted,
    /// The hypervisor cannot go on; in words.
    Broken(String),
}

/// A virtual machine of a hypervisor. Calls come in the order of the methods.
pub trait Vm: Sized + Send + Sync + 'static {
    /// Its vCPU.
    type Vcpu: Vcpu;

    /// Creates a machine without memory, controllers or vCPUs.
    fn new() -> Result<Self>;

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

    /// Creates the interrupt controllers, and with `legacy_timers` the timers of a board whose
    /// guest has no paravirtual clock. After all [`Vm::map`] calls: a memslot costs milliseconds
    /// once the controllers exist.
    fn create_irqchip(&self, legacy_timers: bool) -> Result<()>;

    /// Lets the guest have the system registers of the pinned CPU and no others. What the
    /// hypervisor would make of the others is up to the host: its processor, its settings.
    fn pin_system_registers(&self) -> Result<()>;

    /// Creates the vCPU with this number, which shows this CPU.
    fn create_vcpu(&self, id: u8, cpu: &Cpu) -> Result<Self::Vcpu>;

    /// Drives an interrupt line of the board.
    fn set_irq_line(&self, irq: u32, asserted: bool) -> Result<()>;

    /// Captures the interrupt controllers.
    fn save_irqchip(&self) -> Result<IrqchipState>;
    /// Restores them.
    fn restore_irqchip(&self, state: &IrqchipState) -> Result<()>;
    /// Captures the legacy timers.
    fn save_timers(&self) -> Result<TimerState>;
    /// Restores them.
    fn restore_timers(&self, state: &TimerState) -> Result<()>;
}

/// A vCPU. It is run by one thread at a time.
pub trait Vcpu: Send {
    /// What interrupts it.
    type Kicker: Kicker;

    /// Returns its kicker. To be called on the thread that runs it, before it is run.
    fn kicker(&self) -> Result<Self::Kicker>;
    /// Runs the guest until it needs the VMM.
    fn run(&mut self) -> Result<Exit<'_>>;
    /// Returns the GPA of the instruction that the guest is at, unless its page tables do not say.
    fn instruction(&self) -> Option<u64>;
    /// Completes the instruction that caused the last exit, without running another.
    fn finish_exit(&mut self) -> Result<()>;
    /// Sets the registers for the first instruction of a kernel.
    fn enter(&self, entry: &Entry) -> Result<()>;
    /// Makes this vCPU known to the interrupt controllers before it is started by another.
    fn await_startup(&self) -> Result<()>;
    /// Returns the frequency of the processor's counter, kHz; 0 if unknown.
    fn counter_khz(&self) -> u32;
    /// Captures the vCPU; on the host's clock with its counter and timers.
    fn save(&self, phase: Phase) -> Result<VcpuState>;
    /// Restores it.
    fn restore(&self, state: &VcpuState) -> Result<()>;
    /// Sets the counter of a vCPU that is not online to that of one that was captured, so that
    /// all agree. A state without a counter changes nothing.
    fn follow_counter(&self, of: &VcpuState) -> Result<()>;
}

/// Makes a vCPU leave the guest, from any thread.
pub trait Kicker: Send {
    /// Interrupts the vCPU if it is in the guest. A kick just before it enters the guest may be
    /// lost, so kicks are repeated until the vCPU is seen to be out. After the end of the thread
    /// that ran the vCPU, it does nothing.
    fn kick(&self);
}
