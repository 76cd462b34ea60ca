//! The machine's configuration: the part of a bundle that says what the images are for.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::format::limits::*;

/// What the machine is: blob `application/vnd.smol.machine.config.v1+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name from the Smolfile: ASCII letters, digits, `.`, `_`, `-`; begins with a letter or digit.
    pub name: String,
    /// The version from the Smolfile, printable ASCII without spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Instruction set; this version knows `x86_64`.
    pub arch: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Guest RAM, bytes; a multiple of the page size.
    pub memory: u64,
    /// Kernel command line for a cold boot.
    pub cmdline: String,
    /// TCP ports that the service listens on, in the Smolfile's order.
    pub ports: Vec<u16>,
    /// How many commands a cold boot runs once the service is ready, to come to the state that the
    /// snapshot has; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<NonZeroU32>,
    /// The clock that the snapshot was taken under.
    pub clock: ClockMode,
    /// Whether building again gives the same bundle; absent: nothing is claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproducible: Option<Reproducible>,
    /// What the snapshot needs from a host's CPU.
    pub cpu: CpuContract,
}

/// Where the guest's time came from while it was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockMode {
    /// From the work that the guest did: the same in every build.
    Virtual,
    /// From the host.
    Host,
}

/// A claim about building again from the same inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reproducible {
    /// True when every build gives the same digest.
    pub claimed: bool,
    /// Why not, where it is not claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a host must have so that the snapshot can go on there. Only data: the one who restores
/// compares it with the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuContract {
    /// Instruction set; equal to [`Config::arch`].
    pub arch: String,
    /// CPU features that the guest saw: lower-case names as in Linux's /proc/cpuinfo, sorted, each once.
    pub features: Vec<String>,
    /// Width of guest physical addresses that the guest saw.
    pub physical_address_bits: u32,
    /// The XSAVE components that the guest could enable, as in register XCR0 (0: no XSAVE).
    pub xcr0: u64,
    /// What the guest expects from the time stamp counter.
    pub tsc: Tsc,
}

/// The snapshot's demands on the time stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tsc {
    /// The kind of demand.
    pub needs: TscNeeds,
    /// The frequency that the guest knows, kHz; present exactly when `needs` is [`TscNeeds::Frequency`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub khz: Option<u64>,
}

/// Kinds of demands on the time stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TscNeeds {
    /// None: it was hidden from the guest, or is not used.
    None,
    /// It must run at a constant rate; the guest learns the rate after the restore.
    Invariant,
    /// It must run, or be scaled to run, at the frequency that the guest measured.
    Frequency,
}

impl Config {
    /// Checks every rule that a single configuration must obey; the message names the field.
    pub fn validate(&self) -> Result<(), String> {
        let ascii_name = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
        let name = self.name.as_bytes();
        check(name.first().is_some_and(u8::is_ascii_alphanumeric), || {
            format!("name {:?} must begin with a letter or digit", self.name)
        })?;
        check(name.iter().all(ascii_name), || {
            format!(
                "name {:?} may hold letters, digits, '.', '_' and '-' only",
                self.name
            )
        })?;
        limit("name", name.len(), MAX_NAME_LEN)?;
        if let Some(version) = &self.version {
            check(
                !version.is_empty() && version.bytes().all(|b| b.is_ascii_graphic()),
                || format!("version {version:?} must be printable ASCII without spaces"),
            )?;
            limit("version", version.len(), MAX_NAME_LEN)?;
        }
        check(self.arch == "x86_64", || {
            format!("arch {:?} is unknown", self.arch)
        })?;
        check((1..=MAX_CPUS).contains(&self.cpus), || {
            format!("cpus is {}, it must be 1 to {MAX_CPUS}", self.cpus)
        })?;
        check(self.memory.is_multiple_of(PAGE_SIZE as u64), || {
            format!(
                "memory is {} bytes, not a multiple of {PAGE_SIZE}",
                self.memory
            )
        })?;
        check((1..=MAX_IMAGE_SIZE).contains(&self.memory), || {
            format!(
                "memory is {} bytes, it must be 1 to {MAX_IMAGE_SIZE}",
                self.memory
            )
        })?;
        limit("cmdline", self.cmdline.len(), MAX_CMDLINE_LEN)?;
        check(!self.cmdline.bytes().any(|b| b.is_ascii_control()), || {
            "cmdline holds a control character".into()
        })?;
        self.validate_ports()?;
        if let Some(reason) = self.reproducible.as_ref().and_then(|r| r.reason.as_ref()) {
            limit("reproducible.reason", reason.len(), MAX_REASON_LEN)?;
        }
        check(self.cpu.arch == self.arch, || {
            format!(
                "cpu.arch {:?} differs from arch {:?}",
                self.cpu.arch, self.arch
            )
        })?;
        self.cpu.validate()
    }

    fn validate_ports(&self) -> Result<(), String> {
        limit("ports", self.ports.len(), MAX_PORTS)?;
        for (i, port) in self.ports.iter().enumerate() {
            check(*port != 0, || "ports holds 0".into())?;
            check(!self.ports[..i].contains(port), || {
                format!("ports holds {port} twice")
            })?;
        }
        Ok(())
    }
}

impl CpuContract {
    fn validate(&self) -> Result<(), String> {
        limit("cpu.features", self.features.len(), MAX_FEATURES)?;
        for feature in &self.features {
            limit("a name in cpu.features", feature.len(), MAX_FEATURE_LEN)?;
            let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
            check(!feature.is_empty() && feature.bytes().all(valid), || {
                format!("cpu.features: {feature:?} is not a lower-case name")
            })?;
        }
        check(self.features.is_sorted_by(|a, b| a < b), || {
            "cpu.features is not sorted, or holds a name twice".into()
        })?;
        check((32..=52).contains(&self.physical_address_bits), || {
            format!(
                "cpu.physical_address_bits is {}, it must be 32 to 52",
                self.physical_address_bits
            )
        })?;
        let wants_khz = self.tsc.needs == TscNeeds::Frequency;
        check(self.tsc.khz.is_some_and(|khz| khz > 0) == wants_khz, || {
            "cpu.tsc.khz must be given exactly when needs is \"frequency\"".into()
        })?;
        check(wants_khz || self.tsc.khz.is_none(), || {
            "cpu.tsc.khz is 0".into()
        })
    }
}

fn check(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

fn limit(what: &str, found: usize, max: usize) -> Result<(), String> {
    check(found <= max, || {
        format!("{what} has length {found}, the limit is {max}")
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns a small valid configuration with `memory` bytes.
    pub(crate) fn sample(memory: u64) -> Config {
        Config {
            name: "hello".into(),
            version: Some("1.0".into()),
            arch: "x86_64".into(),
            cpus: 1,
            memory,
            cmdline: "console=hvc0".into(),
            ports: vec![8080],
            warm: NonZeroU32::new(2),
            clock: ClockMode::Virtual,
            reproducible: Some(Reproducible {
                claimed: true,
                reason: None,
            }),
            cpu: CpuContract {
                arch: "x86_64".into(),
                features: vec!["fxsr".into(), "sse2".into()],
                physical_address_bits: 40,
                xcr0: 3,
                tsc: Tsc {
                    needs: TscNeeds::None,
                    khz: None,
                },
            },
        }
    }

    #[test]
    fn a_configuration_survives_the_round_trip_through_json() {
        let config = sample(4096);
        assert_eq!(config.validate(), Ok(()));
        let bytes = crate::format::json::canonical(&config);
        assert_eq!(
            crate::format::json::parse::<Config>(&bytes).unwrap(),
            config
        );
    }

    #[test]
    fn a_configuration_without_warm_commands_does_not_speak_of_them() {
        let config = Config {
            warm: None,
            ..sample(4096)
        };
        let text = String::from_utf8(crate::format::json::canonical(&config)).unwrap();
        assert!(!text.contains("warm"), "{text}");
        let zero = text.replace("\"ports\"", "\"warm\":0,\"ports\"");
        assert!(crate::format::json::parse::<Config>(zero.as_bytes()).is_err());
    }

    #[test]
    fn every_rule_names_the_field_that_breaks_it() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 17] = [
            ("name", |c| c.name = "../x".into()),
            ("name", |c| c.name = "a/b".into()),
            ("name", |c| c.name = "a".repeat(129)),
            ("version", |c| c.version = Some("1 0".into())),
            ("arch", |c| c.arch = "riscv".into()),
            ("cpus", |c| c.cpus = 0),
            ("cpus", |c| c.cpus = 255),
            ("memory", |c| c.memory = 4097),
            ("memory", |c| c.memory = 0),
            ("cmdline", |c| c.cmdline = "a\nb".into()),
            ("cmdline", |c| c.cmdline = "a".repeat(2048)),
            ("ports", |c| c.ports = vec![80, 80]),
            ("ports", |c| c.ports = vec![0]),
            ("cpu.features", |c| c.cpu.features.reverse()),
            ("cpu.features", |c| c.cpu.features = vec!["SSE2".into()]),
            ("cpu.physical_address_bits", |c| {
                c.cpu.physical_address_bits = 64
            }),
            ("cpu.tsc", |c| c.cpu.tsc.khz = Some(0)),
        ];
        for (field, change) in cases {
            let mut config = sample(4096);
            change(&mut config);
            let message = config.validate().expect_err(field);
            assert!(message.contains(field), "{field}: {message}");
        }
    }
}
