//! A vCPU: set up for a kernel, captured, restored.

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::VcpuFd;

use super::{boot, convert, fpu, msrs};
use crate::arch::boot::Entry;
use crate::arch::state::VcpuState;
use crate::paravirt::Phase;
use crate::{Error, Result};

pub use msrs::follow_tsc as follow_counter;

/// Sets the registers for the first instruction of a kernel.
pub fn enter(fd: &VcpuFd, entry: &Entry) -> Result<()> {
    let mut sregs = fd.get_sregs().map_err(Error::hv("KVM_GET_SREGS"))?;
    boot::system_registers(&mut sregs, entry);
    fd.set_sregs(&sregs).map_err(Error::hv("KVM_SET_SREGS"))?;
    fd.set_regs(&boot::registers(entry))
        .map_err(Error::hv("KVM_SET_REGS"))
}

/// Has KVM deliver INIT to the vCPU: it does so only to LAPICs in its map, and writing one puts
/// it there.
pub fn await_startup(fd: &VcpuFd) -> Result<()> {
    let lapic = fd.get_lapic().map_err(Error::hv("KVM_GET_LAPIC"))?;
    fd.set_lapic(&lapic).map_err(Error::hv("KVM_SET_LAPIC"))
}

/// Captures the vCPU.
pub fn save(fd: &VcpuFd, phase: Phase) -> Result<VcpuState> {
    let regs = fd.get_regs().map_err(Error::hv("KVM_GET_REGS"))?;
    let sregs = fd.get_sregs().map_err(Error::hv("KVM_GET_SREGS"))?;
    let (fxsave, xsave) = fpu::save(fd)?;
    let debug = fd
        .get_debug_regs()
        .map_err(Error::hv("KVM_GET_DEBUGREGS"))?;
    let events = fd
        .get_vcpu_events()
        .map_err(Error::hv("KVM_GET_VCPU_EVENTS"))?;
    let lapic = fd.get_lapic().map_err(Error::hv("KVM_GET_LAPIC"))?;
    let mp = fd.get_mp_state().map_err(Error::hv("KVM_GET_MP_STATE"))?;
    Ok(VcpuState {
        regs: convert::regs_from_kvm(&regs),
        system: convert::sregs_from_kvm(&sregs),
        fxsave,
        xsave,
        debug: convert::debug_from_kvm(&debug),
        msrs: msrs::save(fd, phase)?,
        events: convert::events_from_kvm(&events),
        lapic: lapic.regs.iter().map(|b| b.cast_unsigned()).collect(),
        halted: mp.mp_state == KVM_MP_STATE_HALTED,
    })
}

/// Restores the vCPU, in the order that KVM asks for: the CPUID is set already, system registers
/// before the rest (the LAPIC's mode comes with them), the TSC before its deadline, the LAPIC
/// before events.
pub fn restore(fd: &VcpuFd, state: &VcpuState) -> Result<()> {
    let mut sregs = fd.get_sregs().map_err(Error::hv("KVM_GET_SREGS"))?;
    convert::sregs_to_kvm(&state.system, &mut sregs);
    fd.set_sregs(&sregs).map_err(Error::hv("KVM_SET_SREGS"))?;
    fpu::restore(fd, state)?;
    fd.set_regs(&convert::regs_to_kvm(&state.regs))
        .map_err(Error::hv("KVM_SET_REGS"))?;
    fd.set_debug_regs(&convert::debug_to_kvm(&state.debug))
        .map_err(Error::hv("KVM_SET_DEBUGREGS"))?;
    msrs::restore(fd, &state.msrs)?;
    fd.set_lapic(&convert::lapic_to_kvm(&state.lapic)?)
        .map_err(Error::hv("KVM_SET_LAPIC"))?;
    let events = convert::events_to_kvm(&state.events);
    fd.set_vcpu_events(&events)
        .map_err(Error::hv("KVM_SET_VCPU_EVENTS"))?;
    let mp_state = if state.halted {
        KVM_MP_STATE_HALTED
    } else {
        KVM_MP_STATE_RUNNABLE
    };
    fd.set_mp_state(kvm_mp_state { mp_state })
        .map_err(Error::hv("KVM_SET_MP_STATE"))
}

/// Converts a state to KVM's form, and does no more.
pub fn accept(state: &VcpuState) -> Result<()> {
    convert::sregs_to_kvm(&state.system, &mut Default::default());
    fpu::accept(state)?;
    convert::regs_to_kvm(&state.regs);
    convert::debug_to_kvm(&state.debug);
    msrs::accept(&state.msrs)?;
    convert::lapic_to_kvm(&state.lapic)?;
    convert::events_to_kvm(&state.events);
    Ok(())
}
