//! The CPU contract of a snapshot, compared with what this host has.

use std::fs;

use smol_bundle::{CpuContract, TscNeeds};
use smol_machine::cpu::{self, CpuidEntry, Features, Level};
use smol_machine::{Error, hv};

/// Checks whether this host has what the snapshot needs; the inner error says what it lacks.
///
/// # Errors
/// If the hypervisor does not say what it supports.
pub fn check(contract: &CpuContract) -> Result<Result<(), String>, Error> {
    if contract.arch != std::env::consts::ARCH {
        return Ok(Err(format!(
            "it is for {}, this host is {}",
            contract.arch,
            std::env::consts::ARCH
        )));
    }
    let supports = hv::host_cpu()?;
    Ok(compare(contract, &supports, clocksources().as_deref()))
}

/// Returns the CPU for a cold boot: that of the snapshot, or what this host has of it.
///
/// # Errors
/// If the hypervisor does not say what it supports.
pub fn level(contract: &CpuContract) -> Result<Level, Error> {
    let here = Features::supported(&hv::host_cpu()?);
    Ok(built_for(contract).min(Level::of(here)))
}

/// Returns the CPU that the snapshot was made with.
pub fn built_for(contract: &CpuContract) -> Level {
    let names = contract.features.iter().map(String::as_str);
    Level::of(Features::named(names))
}

fn compare(
    contract: &CpuContract,
    supports: &[CpuidEntry],
    clocksources: Option<&str>,
) -> Result<(), String> {
    let leaf = |function, index| {
        let found = supports
            .iter()
            .find(|e| e.function == function && e.index.unwrap_or(0) == index);
        found.copied().unwrap_or_default()
    };
    cpu::check_host(supports, contract.features.iter().map(String::as_str))
        .map_err(|e| e.to_string())?;
    // CPUID 0x80000008 EAX[7:0]: physical address bits.
    let bits = leaf(0x8000_0008, 0).eax & 0xff;
    if bits != 0 && bits < contract.physical_address_bits {
        let wanted = contract.physical_address_bits;
        return Err(format!(
            "this host's CPU has {bits} bits of physical addresses, not {wanted}"
        ));
    }
    // CPUID 0xd, sub-leaf 0, EDX:EAX: the XCR0 bits that can be set.
    let states = leaf(0xd, 0);
    let xcr0 = u64::from(states.edx) << 32 | u64::from(states.eax);
    if contract.xcr0 & !xcr0 != 0 {
        return Err(format!(
            "this host's CPU lacks XSAVE components {:#x}",
            contract.xcr0 & !xcr0
        ));
    }
    match contract.tsc.needs {
        TscNeeds::None => Ok(()),
        // CPUID 0x80000007 EDX[8]: invariant TSC. Nested hosts often hide it; then the host
        // kernel decides, which takes an unstable TSC off this list.
        TscNeeds::Invariant => {
            let told = leaf(0x8000_0007, 0).edx & 1 << 8 != 0;
            let used = clocksources.is_none_or(|list| list.split_whitespace().any(|name| name == "tsc"));
            if told || used { Ok(()) } else { Err("this host's time stamp counter is not stable".into()) }
        }
        TscNeeds::Frequency => Err("it needs a time stamp counter of a given frequency, which this version does not provide".into()),
    }
}

/// Returns the clock sources that the host's kernel trusts; `None` if they cannot be read.
fn clocksources() -> Option<String> {
    fs::read_to_string("/sys/devices/system/clocksource/clocksource0/available_clocksource").ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol_bundle::Tsc;
    use smol_machine::cpu::{Cpu, Model};

    fn whole_cpu() -> Vec<CpuidEntry> {
        Cpu {
            model: Model::Generic,
            features: Features::of(Level::V2),
        }
        .cpuid(0)
    }

    fn contract() -> CpuContract {
        CpuContract {
            arch: "x86_64".into(),
            features: Features::of(Level::V2)
                .names()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            physical_address_bits: 40,
            xcr0: 0,
            tsc: Tsc {
                needs: TscNeeds::Invariant,
                khz: None,
            },
        }
    }

    #[test]
    fn the_pinned_cpu_keeps_its_own_contract() {
        assert_eq!(
            compare(&contract(), &whole_cpu(), Some("tsc hpet\n")),
            Ok(())
        );
        assert_eq!(compare(&contract(), &whole_cpu(), None), Ok(()));
    }

    #[test]
    fn what_a_host_lacks_is_named() {
        type Change = fn(&mut CpuContract);
        let cases: [(&str, Change); 4] = [
            ("lacks avx512f", |c| c.features.push("avx512f".into())),
            ("40 bits of physical addresses, not 48", |c| {
                c.physical_address_bits = 48
            }),
            ("XSAVE components 0x4", |c| c.xcr0 = 4),
            ("given frequency", |c| {
                c.tsc = Tsc {
                    needs: TscNeeds::Frequency,
                    khz: Some(1),
                }
            }),
        ];
        for (wanted, change) in cases {
            let mut contract = contract();
            change(&mut contract);
            let why = compare(&contract, &whole_cpu(), None).unwrap_err();
            assert!(why.contains(wanted), "{why}");
        }
        let unstable = compare(&contract(), &whole_cpu(), Some("hpet acpi_pm\n"));
        assert!(unstable.unwrap_err().contains("not stable"));
    }
}
