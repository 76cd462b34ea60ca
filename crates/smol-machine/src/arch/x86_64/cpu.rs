//! The CPU that a guest sees: pinned, the same on every host.
//!
//! A snapshot is only as portable as the CPU that its guest has looked at. So the guest sees a
//! fixed table of about x86-64-v2 without XSAVE state, and [`check_host`] refuses a host that
//! cannot provide it, by the names of the missing features.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, paravirt};

/// Which variant of the pinned CPU a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// smol kernel under construction, and whatever is restored from it: no TSC in CPUID.
    SmolBuild,
    /// smol kernel that boots on the host's clock.
    SmolLive,
    /// Any other kernel: TSC, TSC deadline timer and KVM's clock.
    Generic,
}

/// One CPUID leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CpuidEntry {
    pub function: u32,
    /// Sub-leaf, where it matters.
    pub index: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Physical address bits that the guest is told of.
pub const PHYSICAL_ADDRESS_BITS: u8 = 40;

/// Where CPUID shows a feature.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    Leaf1Ecx,
    Leaf1Edx,
    ExtendedEcx,
    ExtendedEdx,
}
use Register::*;

/// The features of the pinned CPU: register, bit, name as /proc/cpuinfo has it.
const FEATURES: &[(Register, u32, &str)] = &[
    (Leaf1Edx, 0, "fpu"),
    (Leaf1Edx, 2, "de"),
    (Leaf1Edx, 3, "pse"),
    (Leaf1Edx, 5, "msr"),
    (Leaf1Edx, 6, "pae"),
    (Leaf1Edx, 8, "cx8"),
    (Leaf1Edx, 9, "apic"),
    (Leaf1Edx, 11, "sep"),
    (Leaf1Edx, 13, "pge"),
    (Leaf1Edx, 15, "cmov"),
    (Leaf1Edx, 16, "pat"),
    (Leaf1Edx, 17, "pse36"),
    (Leaf1Edx, 19, "clflush"),
    (Leaf1Edx, 23, "mmx"),
    (Leaf1Edx, 24, "fxsr"),
    (Leaf1Edx, 25, "sse"),
    (Leaf1Edx, 26, "sse2"),
    (Leaf1Ecx, 0, "pni"),
    (Leaf1Ecx, 9, "ssse3"),
    (Leaf1Ecx, 13, "cx16"),
    (Leaf1Ecx, 19, "sse4_1"),
    (Leaf1Ecx, 20, "sse4_2"),
    (Leaf1Ecx, 23, "popcnt"),
    (ExtendedEcx, 0, "lahf_lm"),
    (ExtendedEdx, 11, "syscall"),
    (ExtendedEdx, 20, "nx"),
    (ExtendedEdx, 29, "lm"),
];

const LEAF1_EDX_TSC: u32 = 1 << 4;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Family 17h, model 31h: a CPU for which Linux and libc have no errata to look up in MSRs.
const SIGNATURE: u32 = 0x0083_0f10;
const VENDOR: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65]; // EBX "Auth", ECX "cAMD", EDX "enti"

/// A set of features of the pinned CPU; a list of their names when serialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// All of the pinned CPU.
    pub fn all() -> Self {
        Self((1 << FEATURES.len()) - 1)
    }

    /// Those that a hypervisor with these leaves can give.
    pub fn supported(leaves: &[CpuidEntry]) -> Self {
        let there = (0..FEATURES.len()).filter(|i| is_supported(leaves, FEATURES[*i].2));
        Self(there.fold(0, |set, i| set | 1 << i))
    }

    /// Their names, sorted.
    pub fn names(self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.iter().map(|f| f.2).collect();
        names.sort_unstable();
        names
    }

    fn iter(self) -> impl Iterator<Item = &'static (Register, u32, &'static str)> {
        (0..)
            .zip(FEATURES)
            .filter(move |(i, _)| self.0 & 1 << i != 0)
            .map(|(_, f)| f)
    }

    fn bits(self, register: Register) -> u32 {
        self.iter()
            .filter(|f| f.0 == register)
            .fold(0, |mask, f| mask | 1 << f.1)
    }
}

impl Serialize for Features {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.names().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut set = 0;
        for name in Vec::<String>::deserialize(from)? {
            let known = FEATURES.iter().position(|f| f.2 == name);
            set |= 1
                << known.ok_or_else(|| {
                    serde::de::Error::custom(format!("unknown CPU feature {name:?}"))
                })?;
        }
        Ok(Self(set))
    }
}

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
    /// The CPU for a machine that boots on a host whose hypervisor supports `leaves`. A smol kernel
    /// gets the whole pinned CPU, any other what of it there is.
    ///
    /// # Errors
    /// [`Error::Cpu`] if the host lacks what a smol kernel needs.
    pub fn for_boot(model: Model, leaves: &[CpuidEntry]) -> Result<Self> {
        let features = match model {
            Model::Generic => Features::supported(leaves),
            Model::SmolBuild | Model::SmolLive => {
                check_host(leaves, Features::all().names())?;
                Features::all()
            }
        };
        Ok(Self { model, features })
    }

    /// The whole CPUID table of the vCPU with this APIC id.
    pub fn cpuid(self, apic_id: u8) -> Vec<CpuidEntry> {
        let e = |function, eax, ebx, ecx, edx| CpuidEntry {
            function,
            index: None,
            eax,
            ebx,
            ecx,
            edx,
        };
        let (tsc, deadline) = match self.model {
            Model::SmolBuild => (0, 0),
            Model::SmolLive => (LEAF1_EDX_TSC, 0),
            Model::Generic => (LEAF1_EDX_TSC, LEAF1_ECX_TSC_DEADLINE),
        };
        let mut table = vec![
            e(0, 7, VENDOR[0], VENDOR[1], VENDOR[2]),
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
                ..e(7, 0, 0, 0, 0)
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
        table.splice(3..3, self.model.hypervisor_leaves());
        table
    }
}

impl Model {
    fn hypervisor_leaves(self) -> [CpuidEntry; 2] {
        let e = |function, eax, ebx, ecx, edx| CpuidEntry {
            function,
            index: None,
            eax,
            ebx,
            ecx,
            edx,
        };
        let word = |s: &[u8; 4]| u32::from_le_bytes(*s);
        match self {
            Model::SmolBuild | Model::SmolLive => [
                e(
                    0x4000_0000,
                    0x4000_0001,
                    word(b"smol"),
                    word(b"mach"),
                    word(b"ine\0"),
                ),
                e(
                    0x4000_0001,
                    paravirt::ABI,
                    u32::from(paravirt::PORT_BASE),
                    0,
                    0,
                ),
            ],
            // KVM_FEATURE_CLOCKSOURCE2 and KVM_FEATURE_CLOCKSOURCE_STABLE_BIT (Documentation/virt/kvm/x86/cpuid.rst).
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

/// Checks what a snapshot `needs` against the leaves that this host's hypervisor `supports`.
///
/// # Errors
/// [`Error::Cpu`] with the names of the missing features; a name that this build does not know is missing.
pub fn check_host<'a>(
    supports: &[CpuidEntry],
    needs: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let missing: Vec<String> = needs
        .into_iter()
        .filter(|n| !is_supported(supports, n))
        .map(str::to_owned)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::Cpu { missing })
    }
}

fn is_supported(leaves: &[CpuidEntry], name: &str) -> bool {
    let leaf = |function| {
        leaves
            .iter()
            .find(|e| e.function == function)
            .copied()
            .unwrap_or_default()
    };
    let (basic, extended) = (leaf(1), leaf(0x8000_0001));
    FEATURES
        .iter()
        .find(|f| f.2 == name)
        .is_some_and(|(register, bit, _)| {
            let value = match register {
                Leaf1Ecx => basic.ecx,
                Leaf1Edx => basic.edx,
                ExtendedEcx => extended.ecx,
                ExtendedEdx => extended.edx,
            };
            // KVM reports the APIC bit only once the irqchip stands; every back end emulates one.
            value & 1 << bit != 0 || name == "apic"
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(model: Model) -> Cpu {
        Cpu {
            model,
            features: Features::all(),
        }
    }

    #[test]
    fn the_pinned_cpu_satisfies_its_own_contract() {
        check_host(&whole(Model::SmolBuild).cpuid(0), Features::all().names()).unwrap();
    }

    #[test]
    fn other_kernels_get_what_the_host_has_and_the_state_says_what() {
        let mut host = whole(Model::Generic).cpuid(0);
        host.iter_mut().find(|e| e.function == 1).unwrap().ecx = 0;
        let cpu = Cpu::for_boot(Model::Generic, &host).unwrap();
        assert!(!cpu.features.names().contains(&"sse4_2"));
        let json = serde_json::to_string(&cpu).unwrap();
        assert_eq!(serde_json::from_str::<Cpu>(&json).unwrap(), cpu);
        check_host(&host, cpu.features.names()).unwrap();
        assert!(Cpu::for_boot(Model::SmolBuild, &host).is_err());
        assert!(serde_json::from_str::<Cpu>(&json.replace("sse2", "sse9")).is_err());
    }

    #[test]
    fn a_missing_feature_is_named() {
        let mut host = whole(Model::Generic).cpuid(0);
        host.iter_mut().find(|e| e.function == 1).unwrap().ecx &= !(1 << 20);
        let error = check_host(&host, Features::all().names())
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
        assert!(!tsc(Model::SmolBuild));
        assert!(tsc(Model::SmolLive) && tsc(Model::Generic));
    }
}
