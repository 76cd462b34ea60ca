//! A vCPU of KVM.

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::KvmKicker;
use super::arch::vcpu as arch;
use crate::arch::boot::Entry;
use crate::arch::state::VcpuState;
use crate::hv::{Address, Exit, Vcpu};
use crate::paravirt::Phase;
use crate::{Error, Result};

/// A vCPU of KVM.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd) -> Self {
        Self { fd }
    }
}

impl Vcpu for KvmVcpu {
    type Kicker = KvmKicker;

    fn kicker(&self) -> Result<KvmKicker> {
        KvmKicker::of_this_thread()
    }

    fn run(&mut self) -> Result<Exit<'_>> {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(Exit::Interrupted);
            }
            Err(e) if e.errno() == libc::EFAULT => return Ok(Exit::Absent { address: None }),
            Err(e) => return Err(Error::hv("KVM_RUN")(e)),
        };
        Ok(match exit {
            VcpuExit::IoIn(port, data) => Exit::Read {
                at: Address::Port(port),
                data,
            },
            VcpuExit::IoOut(port, data) => Exit::Write {
                at: Address::Port(port),
                data,
            },
            VcpuExit::MmioRead(gpa, data) => Exit::Read {
                at: Address::Memory(gpa),
                data,
            },
            VcpuExit::MmioWrite(gpa, data) => Exit::Write {
                at: Address::Memory(gpa),
                data,
            },
            // Since Linux 6.8 (KVM_CAP_MEMORY_FAULT_INFO), with EFAULT.
            VcpuExit::MemoryFault { gpa, .. } => Exit::Absent { address: Some(gpa) },
            VcpuExit::Shutdown => Exit::Shutdown,
            VcpuExit::Intr => Exit::Interrupted,
            other => Exit::Broken(format!("KVM stopped with {other:?}")),
        })
    }

    fn instruction(&self) -> Option<u64> {
        let rip = self.fd.get_regs().ok()?.rip;
        let found = self.fd.translate_gva(rip).ok()?;
        (found.valid != 0).then_some(found.physical_address)
    }

    fn finish_exit(&mut self) -> Result<()> {
        self.fd.set_kvm_immediate_exit(1);
        let outcome = self.fd.run().map(|_| ());
        self.fd.set_kvm_immediate_exit(0);
        match outcome {
            Err(e) if e.errno() != libc::EINTR => Err(Error::hv("KVM_RUN")(e)),
            _ => Ok(()),
        }
    }

    fn enter(&self, entry: &Entry) -> Result<()> {
        arch::enter(&self.fd, entry)
    }

    fn await_startup(&self) -> Result<()> {
        arch::await_startup(&self.fd)
    }

    fn counter_khz(&self) -> u32 {
        self.fd.get_tsc_khz().unwrap_or(0)
    }

    fn save(&self, phase: Phase) -> Result<VcpuState> {
        arch::save(&self.fd, phase)
    }

    fn restore(&self, state: &VcpuState) -> Result<()> {
        arch::restore(&self.fd, state)
    }

    fn follow_counter(&self, of: &VcpuState) -> Result<()> {
        arch::follow_counter(&self.fd, of)
    }
}
