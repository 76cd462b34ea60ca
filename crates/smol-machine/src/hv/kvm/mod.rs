//! KVM.
//!
//! API: Documentation/virt/kvm/api.rst of the Linux kernel.

mod vcpu;
mod x86_64;

use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_irqchip, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use self::x86_64::convert;
use super::Vm;
use crate::arch::cpu::{Cpu, CpuidEntry};
use crate::arch::layout;
use crate::arch::state::{IrqchipState, TimerState};
use crate::{Error, Result};

pub use vcpu::KvmVcpu;

const PIC_MASTER: u32 = 0;
const PIC_SLAVE: u32 = 1;
const IOAPIC: u32 = 2;

/// What a guest may read and write while it is built: first index, count. These are the MSRs that
/// a captured vCPU holds, and those that KVM carries in the system registers.
const PINNED_MSRS: [(u32, u32); 5] = [
    (0x0000_001b, 1), // APIC_BASE
    (0x0000_0174, 3), // SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP
    (0x0000_0277, 1), // PAT
    (0xc000_0080, 5), // EFER, STAR, LSTAR, CSTAR, SFMASK
    (0xc000_0100, 3), // FS_BASE, GS_BASE, KERNEL_GS_BASE
];

/// A machine of KVM.
#[derive(Debug)]
pub struct KvmVm {
    vm: VmFd,
}

/// The system file descriptor; opened once, all machines of the process share it.
fn kvm() -> Result<&'static Kvm> {
    static KVM: OnceLock<Kvm> = OnceLock::new();
    if let Some(kvm) = KVM.get() {
        return Ok(kvm);
    }
    let kvm = Kvm::new().map_err(Error::hv("open /dev/kvm"))?;
    Ok(KVM.get_or_init(|| kvm))
}

/// What [`prepare`] has made ahead of need.
struct Ahead {
    cpuid: Vec<CpuidEntry>,
    vm: Mutex<Option<VmFd>>,
}

static PREPARING: Mutex<Option<JoinHandle<Result<Ahead>>>> = Mutex::new(None);

/// Begins with what every machine needs, whichever it is, on a thread of its own: opens KVM, asks
/// what it supports and creates one machine. That takes KVM as long as a program needs to find out
/// which machine it wants.
pub fn prepare() {
    let make = || {
        let cpuid = ask_supported_cpuid()?;
        let vm = kvm()?.create_vm().map_err(Error::hv("KVM_CREATE_VM"))?;
        Ok(Ahead {
            cpuid,
            vm: Mutex::new(Some(vm)),
        })
    };
    // Without a thread, or with an error, all of it is done when it is asked for.
    let thread = crate::threads::spawn("prepare", make).ok();
    *PREPARING.lock().unwrap_or_else(PoisonError::into_inner) = thread;
}

/// What was made ahead, waiting for it if it is being made.
fn ahead() -> Option<&'static Ahead> {
    static AHEAD: OnceLock<Option<Ahead>> = OnceLock::new();
    let wait = || {
        let mut preparing = PREPARING.lock().unwrap_or_else(PoisonError::into_inner);
        preparing.take()?.join().ok()?.ok()
    };
    AHEAD.get_or_init(wait).as_ref()
}

/// CPUID leaves that guests can be given here; no machine is needed to ask.
pub fn supported_cpuid() -> Result<Vec<CpuidEntry>> {
    match ahead() {
        Some(ahead) => Ok(ahead.cpuid.clone()),
        None => ask_supported_cpuid(),
    }
}

/// Whether a vCPU that needs a page which cannot be had yet can be run again and again until it is
/// there, without the guest noticing.
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

fn ask_supported_cpuid() -> Result<Vec<CpuidEntry>> {
    let table = kvm()?
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::hv("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(table
        .as_slice()
        .iter()
        .map(convert::cpuid_from_kvm)
        .collect())
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn new() -> Result<Self> {
        let spare = ahead().and_then(|ahead| {
            ahead
                .vm
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        });
        let vm = match spare {
            Some(vm) => vm,
            None => kvm()?.create_vm().map_err(Error::hv("KVM_CREATE_VM"))?,
        };
        vm.set_tss_address(layout::KVM_TSS)
            .map_err(Error::hv("KVM_SET_TSS_ADDR"))?;
        Ok(Self { vm })
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        supported_cpuid()
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

    fn create_irqchip(&self, pit: bool) -> Result<()> {
        self.vm
            .create_irq_chip()
            .map_err(Error::hv("KVM_CREATE_IRQCHIP"))?;
        if pit {
            let config = kvm_pit_config {
                flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            };
            self.vm
                .create_pit2(config)
                .map_err(Error::hv("KVM_CREATE_PIT2"))?;
        }
        Ok(())
    }

    fn pin_msrs(&self) -> Result<()> {
        let ranges = PINNED_MSRS.map(|(base, msr_count)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count,
            // KVM reads whole 64-bit words, whatever the count.
            bitmap: &[0xff; 8],
        });
        self.vm
            .set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
            .map_err(Error::hv("KVM_X86_SET_MSR_FILTER"))
    }

    fn create_vcpu(&self, id: u8, cpu: &Cpu) -> Result<KvmVcpu> {
        let fd = self
            .vm
            .create_vcpu(u64::from(id))
            .map_err(Error::hv("KVM_CREATE_VCPU"))?;
        let table = convert::cpuid_to_kvm(&cpu.cpuid(id))?;
        fd.set_cpuid2(&table).map_err(Error::hv("KVM_SET_CPUID2"))?;
        Ok(KvmVcpu::new(fd))
    }

    fn set_irq_line(&self, gsi: u32, asserted: bool) -> Result<()> {
        self.vm
            .set_irq_line(gsi, asserted)
            .map_err(Error::hv("KVM_IRQ_LINE"))
    }

    fn save_irqchip(&self) -> Result<IrqchipState> {
        let get = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.vm
                .get_irqchip(&mut chip)
                .map_err(Error::hv("KVM_GET_IRQCHIP"))?;
            Ok::<_, Error>(chip)
        };
        Ok(IrqchipState {
            pics: [
                convert::pic_from_kvm(&get(PIC_MASTER)?),
                convert::pic_from_kvm(&get(PIC_SLAVE)?),
            ],
            ioapic: convert::ioapic_from_kvm(&get(IOAPIC)?),
        })
    }

    fn restore_irqchip(&self, state: &IrqchipState) -> Result<()> {
        let set = |chip: &kvm_irqchip| {
            self.vm
                .set_irqchip(chip)
                .map_err(Error::hv("KVM_SET_IRQCHIP"))
        };
        set(&convert::pic_to_kvm(PIC_MASTER, &state.pics[0]))?;
        set(&convert::pic_to_kvm(PIC_SLAVE, &state.pics[1]))?;
        set(&convert::ioapic_to_kvm(IOAPIC, &state.ioapic)?)
    }

    fn save_timers(&self) -> Result<TimerState> {
        let pit = self.vm.get_pit2().map_err(Error::hv("KVM_GET_PIT2"))?;
        let clock = self.vm.get_clock().map_err(Error::hv("KVM_GET_CLOCK"))?;
        Ok(TimerState {
            pit: pit.channels.map(|c| convert::pit_from_kvm(&c)),
            pit_flags: pit.flags,
            kvmclock: clock.clock,
        })
    }

    fn restore_timers(&self, state: &TimerState) -> Result<()> {
        let mut pit = self.vm.get_pit2().map_err(Error::hv("KVM_GET_PIT2"))?;
        for (to, from) in pit.channels.iter_mut().zip(&state.pit) {
            let count_load_time = to.count_load_time;
            *to = convert::pit_to_kvm(from);
            to.count_load_time = count_load_time;
        }
        pit.flags = state.pit_flags;
        self.vm.set_pit2(&pit).map_err(Error::hv("KVM_SET_PIT2"))?;
        let clock = kvm_bindings::kvm_clock_data {
            clock: state.kvmclock,
            ..Default::default()
        };
        self.vm
            .set_clock(&clock)
            .map_err(Error::hv("KVM_SET_CLOCK"))
    }
}
