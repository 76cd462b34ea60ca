//! The features of the pinned CPU by level, and what it needs of a host.
//!
//! A snapshot is only as portable as the CPU that its guest has looked at. So [`check_host`]
//! refuses a host that cannot provide the pinned CPU, by the names of the missing features.

use serde::{Deserialize, Serialize};

use super::xsave::XCR0_AVX;
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
    Leaf7Ebx,
    ExtendedEcx,
    ExtendedEdx,
}
use Register::*;

/// A level of the x86-64 architecture (System V ABI, AMD64 supplement, section 3.1.1), as compilers and
/// distributions name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Up to SSE4.2: every 64-bit processor since 2011.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// With AVX2, BMI, FMA, and AES and PCLMULQDQ, which the level leaves open and all its processors have:
    /// since Intel's Haswell (2013) and AMD's Excavator (2015).
    #[default]
    #[serde(rename = "x86-64-v3")]
    V3,
}

impl Level {
    /// All levels, the lowest first.
    pub const ALL: [Level; 2] = [Level::V2, Level::V3];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::V2 => "x86-64-v2",
            Level::V3 => "x86-64-v3",
        }
    }

    /// Returns the highest level of which these are all features; the lowest if there is none.
    pub fn of(features: Features) -> Self {
        let whole = |level: &Level| features.contains(Features::of(*level));
        Level::ALL
            .into_iter()
            .rev()
            .find(whole)
            .unwrap_or(Level::V2)
    }
}

impl std::str::FromStr for Level {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Level::ALL.into_iter().find(|l| l.name() == name).ok_or(())
    }
}

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
    // From here on those of x86-64-v3.
    (Leaf1Ecx, 1, "pclmulqdq"),
    (Leaf1Ecx, 12, "fma"),
    (Leaf1Ecx, 22, "movbe"),
    (Leaf1Ecx, 25, "aes"),
    (Leaf1Ecx, 26, "xsave"),
    (Leaf1Ecx, 28, "avx"),
    (Leaf1Ecx, 29, "f16c"),
    (Leaf7Ebx, 3, "bmi1"),
    (Leaf7Ebx, 5, "avx2"),
    (Leaf7Ebx, 8, "bmi2"),
    (ExtendedEcx, 5, "abm"),
];
/// How many of them are x86-64-v2's.
const V2_FEATURES: usize = 27;

/// A set of features of the pinned CPU; a list of their names when serialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// Returns all of a level.
    pub fn of(level: Level) -> Self {
        let count = match level {
            Level::V2 => V2_FEATURES,
            Level::V3 => FEATURES.len(),
        };
        Self((1 << count) - 1)
    }

    /// Returns those among these names that the pinned CPU can have.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let known = |name| FEATURES.iter().position(|f| f.2 == name);
        let found = names.into_iter().filter_map(known);
        Self(found.fold(0, |set, i| set | 1 << i))
    }

    fn contains(self, other: Features) -> bool {
        other.0 & !self.0 == 0
    }

    /// Returns those that are in both.
    pub fn and(self, other: Features) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the components of XSAVE that the guest can enable, as in XCR0; 0 without XSAVE.
    pub fn xcr0(self) -> u64 {
        let has_avx = self.contains(Self::named(["xsave", "avx"]));
        if has_avx { XCR0_AVX } else { 0 }
    }

    /// Returns those that a hypervisor with these leaves can give.
    pub fn supported(leaves: &[CpuidEntry]) -> Self {
        let found = (0..FEATURES.len()).filter(|i| is_supported(leaves, FEATURES[*i].2));
        Self(found.fold(0, |set, i| set | 1 << i))
    }

    /// Returns the names of those of a level that are not among these, sorted.
    pub fn lacking(self, level: Level) -> Vec<&'static str> {
        Self(Self::of(level).0 & !self.0).names()
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
        let found = leaves
            .iter()
            .find(|e| e.function == function && e.index.unwrap_or(0) == 0);
        found.copied().unwrap_or_default()
    };
    let (basic, extended) = (leaf(1), leaf(0x8000_0001));
    FEATURES
        .iter()
        .find(|f| f.2 == name)
        .is_some_and(|(register, bit, _)| {
            let value = match register {
                Leaf1Ecx => basic.ecx,
                Leaf1Edx => basic.edx,
                Leaf7Ebx => leaf(7).ebx,
                ExtendedEcx => extended.ecx,
                ExtendedEdx => extended.edx,
            };
            // KVM reports the APIC bit only once the irqchip exists; every back end emulates one.
            value & 1 << bit != 0 || name == "apic"
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_told_by_their_features() {
        for level in Level::ALL {
            assert_eq!(Level::of(Features::of(level)), level);
            assert_eq!(level.name().parse(), Ok(level));
            let json = serde_json::to_string(&level).unwrap();
            assert_eq!(json, format!("{:?}", level.name()));
        }
        let without = |name: &str| {
            let all = Features::of(Level::V3).names();
            Features::named(all.into_iter().filter(|n| *n != name))
        };
        assert_eq!(Level::of(without("avx2")), Level::V2);
        assert_eq!("x86-64-v9".parse::<Level>(), Err(()));
    }

    #[test]
    fn xsave_comes_with_avx() {
        assert_eq!(Features::of(Level::V2).xcr0(), 0);
        assert_eq!(Features::of(Level::V3).xcr0(), 7);
        assert!(!Features::of(Level::V2).names().contains(&"xsave"));
    }
}
