//! No hypervisor: where a board is wanted without one.

use std::convert::Infallible;

use super::{Exit, Kicker, Vcpu, Vm};
use crate::arch::boot::Entry;
use crate::arch::cpu::Cpu;
use crate::arch::state::{IrqchipState, TimerState, VcpuState};
use crate::paravirt::Phase;
use crate::{Error, Result};

/// A hypervisor that does nothing and has no vCPUs.
pub(crate) struct NoVm;

fn none<T>() -> Result<T> {
    Err(Error::Config("there is no hypervisor here".into()))
}

impl Vm for NoVm {
    type Vcpu = NoVcpu;

    fn new() -> Result<Self> {
        Ok(NoVm)
    }
    unsafe fn map(&self, _: u32, _: u64, _: *mut u8, _: u64, _: bool) -> Result<()> {
        Ok(())
    }
    fn create_irqchip(&self, _: bool) -> Result<()> {
        Ok(())
    }
    fn pin_system_registers(&self) -> Result<()> {
        Ok(())
    }
    fn create_vcpu(&self, _: u8, _: &Cpu) -> Result<NoVcpu> {
        none()
    }
    fn set_irq_line(&self, _: u32, _: bool) -> Result<()> {
        Ok(())
    }
    fn save_irqchip(&self) -> Result<IrqchipState> {
        none()
    }
    fn restore_irqchip(&self, _: &IrqchipState) -> Result<()> {
        Ok(())
    }
    fn save_timers(&self) -> Result<TimerState> {
        none()
    }
    fn restore_timers(&self, _: &TimerState) -> Result<()> {
        Ok(())
    }
}

/// There is none.
pub(crate) struct NoVcpu(Infallible);

impl Vcpu for NoVcpu {
    type Kicker = NoVcpu;

    fn kicker(&self) -> Result<NoVcpu> {
        match self.0 {}
    }
    fn run(&mut self) -> Result<Exit<'_>> {
        match self.0 {}
    }
    fn instruction(&self) -> Option<u64> {
        match self.0 {}
    }
    fn finish_exit(&mut self) -> Result<()> {
        match self.0 {}
    }
    fn enter(&self, _: &Entry) -> Result<()> {
        match self.0 {}
    }
    fn await_startup(&self) -> Result<()> {
        match self.0 {}
    }
    fn counter_khz(&self) -> u32 {
        match self.0 {}
    }
    fn save(&self, _: Phase) -> Result<VcpuState> {
        match self.0 {}
    }
    fn restore(&self, _: &VcpuState) -> Result<()> {
        match self.0 {}
    }
    fn follow_counter(&self, _: &VcpuState) -> Result<()> {
        match self.0 {}
    }
}

impl Kicker for NoVcpu {
    fn kick(&self) {
        match self.0 {}
    }
}
