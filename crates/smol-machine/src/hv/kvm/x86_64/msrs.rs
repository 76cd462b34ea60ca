//! The model-specific registers of the pinned CPU (AMD64 APM volume 2, appendix A).

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};

use crate::arch::state::{Msr, VcpuState};
use crate::paravirt::Phase;
use crate::{Error, Result};

/// What a captured vCPU holds, in ascending order. Those that KVM carries in the system registers
/// (EFER, FS and GS base, APIC base) are not repeated.
const CAPTURED: &[u32] = &[
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
const TSC: u32 = 0x0000_0010;
/// Time of machines on the host's clock: TSC, the LAPIC's TSC deadline, KVM's clock.
/// The TSC comes before the deadline, which is relative to it.
const TIME: &[u32] = &[TSC, 0x0000_06e0, 0x4b56_4d00, 0x4b56_4d01];

/// What a guest may read and write while it is built: first index, count. These are the captured
/// ones, and those that KVM carries in the system registers.
const PINNED: [(u32, u32); 5] = [
    (0x0000_001b, 1), // APIC_BASE
    (0x0000_0174, 3), // SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP
    (0x0000_0277, 1), // PAT
    (0xc000_0080, 5), // EFER, STAR, LSTAR, CSTAR, SFMASK
    (0xc000_0100, 3), // FS_BASE, GS_BASE, KERNEL_GS_BASE
];

/// Lets guests of this machine have the pinned ones; any other raises #GP.
pub fn pin(vm: &VmFd) -> Result<()> {
    let ranges = PINNED.map(|(base, msr_count)| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count,
        // KVM reads whole 64-bit words, whatever the count.
        bitmap: &[0xff; 8],
    });
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
        .map_err(Error::hv("KVM_X86_SET_MSR_FILTER"))
}

/// Captures them; on the host's clock with those of time. A machine on virtual time has never
/// seen a TSC.
pub(super) fn save(fd: &VcpuFd, phase: Phase) -> Result<Vec<Msr>> {
    let time = match phase {
        Phase::Virtual => &[],
        Phase::Host => TIME,
    };
    let mut found = Vec::new();
    for &index in CAPTURED.iter().chain(time) {
        let mut msrs = list(&[Msr { index, value: 0 }])?;
        let count = fd.get_msrs(&mut msrs).map_err(Error::hv("KVM_GET_MSRS"))?;
        // A KVM without its own clock or the deadline timer has no such register to lose.
        if count == 1 {
            let value = msrs.as_slice()[0].data;
            found.push(Msr { index, value });
        }
    }
    Ok(found)
}

/// Restores captured ones.
pub(super) fn restore(fd: &VcpuFd, msrs: &[Msr]) -> Result<()> {
    accept(msrs)?;
    set(fd, msrs)
}

/// Returns KVM's list of captured ones.
pub(super) fn accept(msrs: &[Msr]) -> Result<Msrs> {
    let known = |msr: &&Msr| CAPTURED.contains(&msr.index) || TIME.contains(&msr.index);
    if let Some(odd) = msrs.iter().find(|msr| !known(msr)) {
        return Err(Error::bad_state(format!(
            "MSR {:#x} is not part of a machine",
            odd.index
        )));
    }
    list(msrs)
}

/// Sets the TSC to that of a captured vCPU, if it holds one.
pub fn follow_tsc(fd: &VcpuFd, of: &VcpuState) -> Result<()> {
    match of.msrs.iter().find(|msr| msr.index == TSC) {
        Some(tsc) => set(fd, std::slice::from_ref(tsc)),
        None => Ok(()),
    }
}

fn set(fd: &VcpuFd, msrs: &[Msr]) -> Result<()> {
    let set = fd
        .set_msrs(&list(msrs)?)
        .map_err(Error::hv("KVM_SET_MSRS"))?;
    match msrs.get(set) {
        None => Ok(()),
        Some(refused) => Err(Error::bad_state(format!(
            "this host refuses {:#x} in MSR {:#x}",
            refused.value, refused.index
        ))),
    }
}

fn list(msrs: &[Msr]) -> Result<Msrs> {
    let entries: Vec<_> = msrs
        .iter()
        .map(|msr| kvm_msr_entry {
            index: msr.index,
            data: msr.value,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|e| Error::bad_state(format!("list of MSRs: {e:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_captured_register_is_one_that_a_guest_may_have_while_it_is_built() {
        for index in CAPTURED {
            let pinned = |(base, count): &(u32, u32)| (*base..base + count).contains(index);
            assert!(PINNED.iter().any(pinned), "{index:#x}");
        }
        assert!(CAPTURED.is_sorted());
    }
}
