//! A vCPU of KVM.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::x86_64::convert;
use crate::arch::boot::Entry;
use crate::arch::cpu::Model;
use crate::arch::state::{Msr, VcpuState};
use crate::hv::{Exit, Vcpu};
use crate::{Error, Result};

/// MSRs that the pinned CPU has (AMD64 APM volume 2, appendix A), in ascending order. Those that
/// KVM carries in the system registers (EFER, FS and GS base, APIC base) are not repeated.
const MSRS: &[u32] = &[
    0x0000_0174, // SYSENTER_CS
    0x0000_0175, // SYSENTER_ESP
    0x0000_0176, // SYSENTER_EIP
    0x0000_0277, // PAT
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0102, // KERNEL_GS_BASE
];
/// Time of machines on the host's clock: TSC, the LAPIC's TSC deadline, KVM's clock.
/// The TSC stands before the deadline, which is relative to it.
const TIME_MSRS: &[u32] = &[0x0000_0010, 0x0000_06e0, 0x4b56_4d00, 0x4b56_4d01];

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
            VcpuExit::IoIn(port, data) => Exit::IoIn { port, data },
            VcpuExit::IoOut(port, data) => Exit::IoOut { port, data },
            VcpuExit::MmioRead(address, data) => Exit::MmioRead { address, data },
            VcpuExit::MmioWrite(address, data) => Exit::MmioWrite { address, data },
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
        let mut sregs = self.fd.get_sregs().map_err(Error::hv("KVM_GET_SREGS"))?;
        convert::boot_sregs(&mut sregs, entry);
        self.fd
            .set_sregs(&sregs)
            .map_err(Error::hv("KVM_SET_SREGS"))?;
        self.fd
            .set_regs(&convert::boot_regs(entry))
            .map_err(Error::hv("KVM_SET_REGS"))
    }

    fn await_startup(&self) -> Result<()> {
        // KVM delivers INIT only to LAPICs in its map, and writing one puts it there.
        let lapic = self.fd.get_lapic().map_err(Error::hv("KVM_GET_LAPIC"))?;
        self.fd
            .set_lapic(&lapic)
            .map_err(Error::hv("KVM_SET_LAPIC"))
    }

    fn tsc_khz(&self) -> u32 {
        self.fd.get_tsc_khz().unwrap_or(0)
    }

    fn save(&self, model: Model) -> Result<VcpuState> {
        let regs = self.fd.get_regs().map_err(Error::hv("KVM_GET_REGS"))?;
        let sregs = self.fd.get_sregs().map_err(Error::hv("KVM_GET_SREGS"))?;
        let xsave = self.fd.get_xsave().map_err(Error::hv("KVM_GET_XSAVE"))?;
        let debug = self
            .fd
            .get_debug_regs()
            .map_err(Error::hv("KVM_GET_DEBUGREGS"))?;
        let events = self
            .fd
            .get_vcpu_events()
            .map_err(Error::hv("KVM_GET_VCPU_EVENTS"))?;
        let lapic = self.fd.get_lapic().map_err(Error::hv("KVM_GET_LAPIC"))?;
        let mp = self
            .fd
            .get_mp_state()
            .map_err(Error::hv("KVM_GET_MP_STATE"))?;
        Ok(VcpuState {
            regs: convert::regs_from_kvm(&regs),
            system: convert::sregs_from_kvm(&sregs),
            fxsave: convert::fxsave_from_kvm(&xsave),
            debug: [
                debug.db[0],
                debug.db[1],
                debug.db[2],
                debug.db[3],
                debug.dr6,
                debug.dr7,
            ],
            msrs: self.save_msrs(model)?,
            events: convert::events_from_kvm(&events),
            lapic: lapic.regs.iter().map(|b| b.cast_unsigned()).collect(),
            halted: mp.mp_state == KVM_MP_STATE_HALTED,
        })
    }

    /// In the order that KVM asks for: the CPUID is set already, system registers before the rest
    /// (the LAPIC's mode comes with them), the TSC before its deadline, the LAPIC before events.
    fn restore(&self, state: &VcpuState) -> Result<()> {
        let mut sregs = self.fd.get_sregs().map_err(Error::hv("KVM_GET_SREGS"))?;
        convert::sregs_to_kvm(&state.system, &mut sregs);
        self.fd
            .set_sregs(&sregs)
            .map_err(Error::hv("KVM_SET_SREGS"))?;
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = 1;
        self.fd.set_xcrs(&xcrs).map_err(Error::hv("KVM_SET_XCRS"))?;
        let xsave = convert::fxsave_to_kvm(&state.fxsave)?;
        // SAFETY: the guest has no state component beyond x87 and SSE, so KVM reads 4096 bytes and no more.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(Error::hv("KVM_SET_XSAVE"))?;
        self.fd
            .set_regs(&convert::regs_to_kvm(&state.regs))
            .map_err(Error::hv("KVM_SET_REGS"))?;
        self.fd
            .set_debug_regs(&convert::debug_to_kvm(&state.debug))
            .map_err(Error::hv("KVM_SET_DEBUGREGS"))?;
        self.restore_msrs(&state.msrs)?;
        self.fd
            .set_lapic(&convert::lapic_to_kvm(&state.lapic)?)
            .map_err(Error::hv("KVM_SET_LAPIC"))?;
        let events = convert::events_to_kvm(&state.events);
        self.fd
            .set_vcpu_events(&events)
            .map_err(Error::hv("KVM_SET_VCPU_EVENTS"))?;
        let mp_state = if state.halted {
            KVM_MP_STATE_HALTED
        } else {
            KVM_MP_STATE_RUNNABLE
        };
        self.fd
            .set_mp_state(kvm_mp_state { mp_state })
            .map_err(Error::hv("KVM_SET_MP_STATE"))
    }
}

impl KvmVcpu {
    fn save_msrs(&self, model: Model) -> Result<Vec<Msr>> {
        // A machine that was built in virtual time has never seen a TSC.
        let time = if model == Model::SmolBuild {
            &[]
        } else {
            TIME_MSRS
        };
        let mut found = Vec::new();
        for &index in MSRS.iter().chain(time) {
            let mut msrs = convert::msrs(&[kvm_msr_entry {
                index,
                ..Default::default()
            }])?;
            let count = self
                .fd
                .get_msrs(&mut msrs)
                .map_err(Error::hv("KVM_GET_MSRS"))?;
            // A KVM without its own clock or the deadline timer has no such register to lose.
            if count == 1 {
                found.push(Msr {
                    index,
                    value: msrs.as_slice()[0].data,
                });
            }
        }
        Ok(found)
    }

    fn restore_msrs(&self, msrs: &[Msr]) -> Result<()> {
        if let Some(odd) = msrs
            .iter()
            .find(|m| !MSRS.contains(&m.index) && !TIME_MSRS.contains(&m.index))
        {
            return Err(Error::bad_state(format!(
                "MSR {:#x} is not part of a machine",
                odd.index
            )));
        }
        let entries: Vec<_> = msrs
            .iter()
            .map(|m| kvm_msr_entry {
                index: m.index,
                data: m.value,
                ..Default::default()
            })
            .collect();
        let list: Msrs = convert::msrs(&entries)?;
        let set = self.fd.set_msrs(&list).map_err(Error::hv("KVM_SET_MSRS"))?;
        match entries.get(set) {
            None => Ok(()),
            Some(refused) => Err(Error::bad_state(format!(
                "this host refuses {:#x} in MSR {:#x}",
                refused.data, refused.index
            ))),
        }
    }
}
