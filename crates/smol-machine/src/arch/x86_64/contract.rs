//! What the pinned CPU needs of a host.
//!
//! A snapshot is only as portable as the CPU that its guest has looked at. So [`check_host`]
//! refuses a host that cannot provide the pinned CPU, by the names of the missing features.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

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

impl CpuidEntry {
    /// Returns a leaf without sub-leaves.
    pub(super) fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        Self {
            function,
            index: None,
            eax,
            ebx,
            ecx,
            edx,
        }
    }
}

/// What a hypervisor can give guests of this host's processor: CPUID leaves.
pub type HostCpu = Vec<CpuidEntry>;

/// Physical address bits that the guest is told of.
pub const PHYSICAL_ADDRESS_BITS: u8 = 40;

/// Where CPUID shows a feature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
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

/// A set of features of the pinned CPU; a list of their names when serialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// Returns all of the pinned CPU.
    pub fn all() -> Self {
        Self((1 << FEATURES.len()) - 1)
    }

    /// Returns those that a hypervisor with these leaves can give.
    pub fn supported(leaves: &[CpuidEntry]) -> Self {
        let found = (0..FEATURES.len()).filter(|i| is_supported(leaves, FEATURES[*i].2));
        Self(found.fold(0, |set, i| set | 1 << i))
    }

    /// Returns their names, sorted.
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

    pub(super) fn bits(self, register: Register) -> u32 {
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

/// Checks what a snapshot `needs` against the leaves that this host's hypervisor `supports`.
///
/// # Errors
/// [`Error::Cpu`] with the names of the missing features; a name that this build does not know is
/// missing.
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
            // KVM reports the APIC bit only once the irqchip exists; every back end emulates one.
            value & 1 << bit != 0 || name == "apic"
        })
}
