//! The board's interrupt controllers and timers, and what a vCPU shows of its processor.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_irqchip, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{convert, fpu, irqchip};
use crate::arch::cpu::{Cpu, HostCpu};
use crate::arch::layout;
use crate::arch::state::{IrqchipState, TimerState};
use crate::{Error, Result};

pub use super::msrs::pin as pin_system_registers;

const PIC_MASTER: u32 = 0;
const PIC_SLAVE: u32 = 1;
const IOAPIC: u32 = 2;

/// Returns what guests can be given of this host's processor.
pub fn host_cpu(kvm: &Kvm) -> Result<HostCpu> {
    let table = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::hv("KVM_GET_SUPPORTED_CPUID"))?;
    let leaves = table.as_slice().iter();
    Ok(leaves.map(convert::cpuid_from_kvm).collect())
}

/// Prepares a new machine.
pub fn set_up(vm: &VmFd) -> Result<()> {
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(Error::hv("KVM_SET_TSS_ADDR"))
}

/// Has a new vCPU show this CPU. All that XSAVE handles is enabled from the start, as a kernel will have it
/// at once: QEMU's emulation of AMD's virtualization lets a guest execute XSETBV without telling the
/// hypervisor (it knows no such intercept), and KVM would hold XCR0 for what it is after a reset.
pub fn set_cpu(fd: &VcpuFd, id: u8, cpu: &Cpu) -> Result<()> {
    let table = convert::cpuid_to_kvm(&cpu.cpuid(id))?;
    fd.set_cpuid2(&table).map_err(Error::hv("KVM_SET_CPUID2"))?;
    match cpu.features.xcr0() {
        0 => Ok(()),
        xcr0 => fpu::set_xcr0(fd, xcr0),
    }
}

/// Creates PICs, IOAPIC and LAPICs, and with `pit` the 8254.
pub fn create_irqchip(vm: &VmFd, pit: bool) -> Result<()> {
    vm.create_irq_chip()
        .map_err(Error::hv("KVM_CREATE_IRQCHIP"))?;
    if !pit {
        return Ok(());
    }
    let config = kvm_pit_config {
        flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(config).map_err(Error::hv("KVM_CREATE_PIT2"))
}

pub fn save_irqchip(vm: &VmFd) -> Result<IrqchipState> {
    let get = |chip_id| {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip)
            .map_err(Error::hv("KVM_GET_IRQCHIP"))?;
        Ok::<_, Error>(chip)
    };
    Ok(IrqchipState {
        pics: [
            irqchip::pic_from_kvm(&get(PIC_MASTER)?),
            irqchip::pic_from_kvm(&get(PIC_SLAVE)?),
        ],
        ioapic: irqchip::ioapic_from_kvm(&get(IOAPIC)?),
    })
}

pub fn restore_irqchip(vm: &VmFd, state: &IrqchipState) -> Result<()> {
    let set = |chip: &kvm_irqchip| vm.set_irqchip(chip).map_err(Error::hv("KVM_SET_IRQCHIP"));
    set(&irqchip::pic_to_kvm(PIC_MASTER, &state.pics[0]))?;
    set(&irqchip::pic_to_kvm(PIC_SLAVE, &state.pics[1]))?;
    set(&irqchip::ioapic_to_kvm(IOAPIC, &state.ioapic)?)
}

/// Converts a state to KVM's form, and does no more.
pub fn accept(state: &IrqchipState, timers: Option<&TimerState>) -> Result<()> {
    irqchip::pic_to_kvm(PIC_MASTER, &state.pics[0]);
    irqchip::pic_to_kvm(PIC_SLAVE, &state.pics[1]);
    irqchip::ioapic_to_kvm(IOAPIC, &state.ioapic)?;
    if let Some(timers) = timers {
        timers.pit.iter().for_each(|channel| {
            irqchip::pit_to_kvm(channel);
        });
    }
    Ok(())
}

pub fn save_timers(vm: &VmFd) -> Result<TimerState> {
    let pit = vm.get_pit2().map_err(Error::hv("KVM_GET_PIT2"))?;
    let clock = vm.get_clock().map_err(Error::hv("KVM_GET_CLOCK"))?;
    Ok(TimerState {
        pit: pit.channels.map(|c| irqchip::pit_from_kvm(&c)),
        pit_flags: pit.flags,
        kvmclock: clock.clock,
    })
}

pub fn restore_timers(vm: &VmFd, state: &TimerState) -> Result<()> {
    let mut pit = vm.get_pit2().map_err(Error::hv("KVM_GET_PIT2"))?;
    for (to, from) in pit.channels.iter_mut().zip(&state.pit) {
        let count_load_time = to.count_load_time;
        *to = irqchip::pit_to_kvm(from);
        to.count_load_time = count_load_time;
    }
    pit.flags = state.pit_flags;
    vm.set_pit2(&pit).map_err(Error::hv("KVM_SET_PIT2"))?;
    let clock = kvm_bindings::kvm_clock_data {
        clock: state.kvmclock,
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(Error::hv("KVM_SET_CLOCK"))
}
