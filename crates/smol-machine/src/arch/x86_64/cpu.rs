//! The CPU that a guest sees: pinned, the same on every host.
//!
//! It is a fixed table of what all processors of an x86-64 [`Level`] have. Of XSAVE it has the plain
//! instruction alone: the variants that leave out what is not in use (XSAVEOPT, XSAVEC, XSAVES) leave
//! to the processor what it writes.

use serde::{Deserialize, Serialize};

use super::contract::Register::*;
pub use super::contract::{
    CpuidEntry, Features, HostCpu, Level, PHYSICAL_ADDRESS_BITS, check_host,
};
use super::{ports, xsave};
use crate::Result;
use crate::paravirt::{self, Phase};

/// Which variant of the pinned CPU a machine has: what CPUID shows of time, and of the hypervisor.
/// Where its time comes from now is another matter ([`Phase`]): a machine that was built on virtual
/// time goes on without a TSC in CPUID after it was restored on the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Model {
    /// Of smol kernels that boot on virtual time: no TSC.
    #[serde(rename = "smol-build")]
    SmolWithoutTsc,
    /// Of smol kernels that boot on the host's clock: a TSC.
    #[serde(rename = "smol-live")]
    SmolWithTsc,
    /// Of any other kernel: TSC, TSC deadline timer and KVM's clock.
    #[serde(rename = "generic")]
    Generic,
}

/// Input clock of KVM's LAPIC timer, kHz.
pub const TIMER_KHZ: u32 = 1_000_000;

const LEAF1_EDX_TSC: u32 = 1 << 4;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Family 17h, model 31h: a CPU for which Linux and libc have no errata to look up in MSRs.
pub(super) const SIGNATURE: u32 = 0x0083_0f10;
const VENDOR: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65]; // EBX "Auth", ECX "cAMD", EDX "enti"

/// The CPU of a machine: what CPUID shows on each of its vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Variant.
    pub model: Model,
    /// Features shown.
    pub features: Features,
}

impl Cpu {
    /// Returns the CPU for a machine that boots on a host like this. A smol kernel
    /// gets the whole CPU of the level, any other what there is of the highest level that the host has.
    ///
    /// # Errors
    /// [`Error::Cpu`](crate::Error::Cpu) if the host lacks what a smol kernel needs.
    pub fn for_boot(model: Model, level: Level, host: &HostCpu) -> Result<Self> {
        let features = match model {
            // Half a level would be AVX without XSAVE, or XSAVE with nothing to it.
            Model::Generic => {
                let supported = Features::supported(host);
                Features::of(level.min(Level::of(supported))).and(supported)
            }
            Model::SmolWithoutTsc | Model::SmolWithTsc => {
                check_host(host, Features::of(level).names())?;
                Features::of(level)
            }
        };
        Ok(Self { model, features })
    }

    /// Whether its guest speaks the paravirtual interface.
    pub fn has_paravirt(self) -> bool {
        self.model != Model::Generic
    }

    /// Returns the whole CPUID table of the vCPU with this APIC id.
    pub fn cpuid(self, apic_id: u8) -> Vec<CpuidEntry> {
        let e = CpuidEntry::leaf;
        let (tsc, deadline) = match self.model {
            Model::SmolWithoutTsc => (0, 0),
            Model::SmolWithTsc => (LEAF1_EDX_TSC, 0),
            Model::Generic => (LEAF1_EDX_TSC, LEAF1_ECX_TSC_DEADLINE),
        };
        let highest = if self.features.xcr0() == 0 { 7 } else { 0xd };
        let mut table = vec![
            e(0, highest, VENDOR[0], VENDOR[1], VENDOR[2]),
            // EBX: initial APIC id, one logical CPU, CLFLUSH of 64 bytes.
            e(
                1,
                SIGNATURE,
                u32::from(apic_id) << 24 | 0x0001_0800,
                self.features.bits(Leaf1Ecx) | LEAF1_ECX_HYPERVISOR | deadline,
                self.features.bits(Leaf1Edx) | tsc,
            ),
            CpuidEntry {
                index: Some(0),
                ..e(7, 0, self.features.bits(Leaf7Ebx), 0, 0)
            },
            e(0x8000_0000, 0x8000_0008, VENDOR[0], VENDOR[1], VENDOR[2]),
            e(
                0x8000_0001,
                SIGNATURE,
                0,
                self.features.bits(ExtendedEcx),
                self.features.bits(ExtendedEdx),
            ),
            e(
                0x8000_0008,
                0x3000 | u32::from(PHYSICAL_ADDRESS_BITS),
                0,
                0,
                0,
            ),
        ];
        let xsave = xsave_leaves(self.features.xcr0());
        table.splice(
            3..3,
            xsave.into_iter().chain(self.model.hypervisor_leaves()),
        );
        table
    }
}

/// Returns leaf 0xd, which describes the area of XSAVE (Intel SDM volume 1, section 13.2), for these
/// components: nothing without any.
fn xsave_leaves(xcr0: u64) -> Vec<CpuidEntry> {
    if xcr0 == 0 {
        return Vec::new();
    }
    let sub_leaf = |index, eax, ebx, ecx| CpuidEntry {
        index: Some(index),
        ..CpuidEntry::leaf(0xd, eax, ebx, ecx, 0)
    };
    let (offset, size) = (xsave::AVX_OFFSET as u32, xsave::AVX_SIZE as u32);
    let area = offset + size;
    vec![
        sub_leaf(0, xcr0 as u32, area, area),
        sub_leaf(1, 0, 0, 0),
        sub_leaf(2, size, offset, 0),
    ]
}

impl Model {
    /// Returns the variant for a smol kernel, or another one, that boots in this phase.
    pub fn for_boot(smol: bool, phase: Phase) -> Self {
        match (smol, phase) {
            (true, Phase::Virtual) => Model::SmolWithoutTsc,
            (true, Phase::Host) => Model::SmolWithTsc,
            (false, _) => Model::Generic,
        }
    }

    fn hypervisor_leaves(self) -> [CpuidEntry; 2] {
        let e = CpuidEntry::leaf;
        let word = |s: &[u8; 4]| u32::from_le_bytes(*s);
        match self {
            Model::SmolWithoutTsc | Model::SmolWithTsc => [
                e(
                    0x4000_0000,
                    0x4000_0001,
                    word(b"smol"),
                    word(b"mach"),
                    word(b"ine\0"),
                ),
                e(0x4000_0001, paravirt::ABI, u32::from(ports::PARAVIRT), 0, 0),
            ],
            // KVM_FEATURE_CLOCKSOURCE2 and KVM_FEATURE_CLOCKSOURCE_STABLE_BIT
            // (Documentation/virt/kvm/x86/cpuid.rst).
            Model::Generic => [
                e(
                    0x4000_0000,
                    0x4000_0001,
                    word(b"KVMK"),
                    word(b"VMKV"),
                    word(b"M\0\0\0"),
                ),
                e(0x4000_0001, 1 << 3 | 1 << 24, 0, 0, 0),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(model: Model) -> Cpu {
        Cpu {
            model,
            features: Features::of(Level::V3),
        }
    }

    #[test]
    fn the_pinned_cpu_satisfies_its_own_contract() {
        check_host(
            &whole(Model::SmolWithoutTsc).cpuid(0),
            Features::of(Level::V3).names(),
        )
        .unwrap();
    }

    #[test]
    fn other_kernels_get_what_the_host_has_and_the_state_says_what() {
        let mut host = whole(Model::Generic).cpuid(0);
        host.iter_mut().find(|e| e.function == 1).unwrap().ecx = 0;
        let cpu = Cpu::for_boot(Model::Generic, Level::V3, &host).unwrap();
        assert!(!cpu.features.names().contains(&"sse4_2"));
        let json = serde_json::to_string(&cpu).unwrap();
        assert_eq!(serde_json::from_str::<Cpu>(&json).unwrap(), cpu);
        check_host(&host, cpu.features.names()).unwrap();
        assert!(Cpu::for_boot(Model::SmolWithoutTsc, Level::V3, &host).is_err());
        assert!(serde_json::from_str::<Cpu>(&json.replace("sse2", "sse9")).is_err());
    }

    #[test]
    fn xsave_and_avx_are_there_together_or_not_at_all() {
        let mut host = whole(Model::Generic).cpuid(0);
        let leaf1 = host.iter_mut().find(|e| e.function == 1).unwrap();
        leaf1.ecx &= !(1 << 28);
        let cpu = Cpu::for_boot(Model::Generic, Level::V3, &host).unwrap();
        assert_eq!(cpu.features, Features::of(Level::V2));
        let has_leaf = |cpu: Cpu| cpu.cpuid(0).iter().any(|e| e.function == 0xd);
        assert!(!has_leaf(cpu) && has_leaf(whole(Model::Generic)));
    }

    #[test]
    fn a_missing_feature_is_named() {
        let mut host = whole(Model::Generic).cpuid(0);
        host.iter_mut().find(|e| e.function == 1).unwrap().ecx &= !(1 << 20);
        let error = check_host(&host, Features::of(Level::V3).names())
            .unwrap_err()
            .to_string();
        assert_eq!(error, "this host's CPU lacks sse4_2");
        assert!(check_host(&host, ["avx9000"]).is_err());
    }

    #[test]
    fn only_machines_on_the_hosts_clock_see_a_tsc() {
        let tsc = |m: Model| {
            whole(m)
                .cpuid(0)
                .iter()
                .any(|e| e.function == 1 && e.edx & LEAF1_EDX_TSC != 0)
        };
        assert!(!tsc(Model::SmolWithoutTsc));
        assert!(tsc(Model::SmolWithTsc) && tsc(Model::Generic));
    }

    #[test]
    fn the_names_of_the_variants_are_those_that_snapshots_hold() {
        let models = [Model::SmolWithoutTsc, Model::SmolWithTsc, Model::Generic];
        let json = serde_json::to_string(&models).unwrap();
        assert_eq!(json, r#"["smol-build","smol-live","generic"]"#);
    }
}
