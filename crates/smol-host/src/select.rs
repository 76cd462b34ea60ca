//! Which accelerator a machine runs with: the host's KVM, or the emulated host's.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use smol_machine::probe::{self, ProbeError};

use crate::apt;
use crate::emulated::{self, QEMU};
use crate::error::{HostError, Result};

/// What the user asks for: `--accel auto|kvm|emulated`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where it runs a real kernel, else the emulated host.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// The emulated host.
    Emulated,
}

/// `--accel`, to be flattened into the arguments of a command that runs a machine.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct AccelArg {
    /// How to run the machine
    #[arg(
        long,
        value_name = "auto|kvm|emulated",
        default_value = "auto",
        env = "SMOL_ACCEL"
    )]
    pub accel: Accel,
}

impl Accel {
    const NAMES: [(&str, Accel); 3] = [
        ("auto", Accel::Auto),
        ("kvm", Accel::Kvm),
        ("emulated", Accel::Emulated),
    ];
}

impl FromStr for Accel {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Accel::NAMES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, accel)| *accel)
            .ok_or_else(|| "it is one of auto, kvm, emulated".into())
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Accel::NAMES.iter().find(|(_, accel)| accel == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

/// Where the machine really runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In this process, with this host's KVM.
    Kvm,
    /// In an [`emulated::EmulatedHost`].
    Emulated,
}

/// The outcome of [`select`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Where to run.
    pub accel: Backend,
    /// One line for the user when it is not what one would expect; `doctor` says more.
    pub why: Option<String>,
}

/// What a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// An ordinary kernel.
    Linux,
    /// A program without an operating system, which even a software KVM may run.
    Bare,
}

/// Chooses the accelerator. KVM is probed (milliseconds); where it fails, `Auto` falls back to the
/// emulated host, and says so. A bare guest that asks for `Kvm` gets it unprobed. Inside an emulated
/// host nothing nests: there it is always KVM.
///
/// # Errors
/// `Kvm`: it cannot be opened, or cannot run the guest. `Emulated`: there is no QEMU. `Auto`: neither
/// works. Each with what fixes it.
pub fn select(requested: Accel, guest: GuestKind) -> Result<Selected> {
    let host = Probes {
        inside: emulated::is_inside(),
        open: &|| probe::open(Path::new(probe::DEVICE)).map(drop),
        probe: &probe::probe,
        qemu: &|| apt::find_program(QEMU).is_some(),
    };
    decide(requested, guest, &host)
}

/// What [`decide`] asks of the host.
struct Probes<'a> {
    inside: bool,
    open: &'a dyn Fn() -> std::result::Result<(), ProbeError>,
    probe: &'a dyn Fn() -> std::result::Result<(), ProbeError>,
    qemu: &'a dyn Fn() -> bool,
}

fn decide(requested: Accel, guest: GuestKind, host: &Probes) -> Result<Selected> {
    let plain = |accel| Selected { accel, why: None };
    match requested {
        _ if host.inside => Ok(plain(Backend::Kvm)),
        Accel::Kvm => {
            let tried = match guest {
                GuestKind::Linux => (host.probe)(),
                GuestKind::Bare => (host.open)(),
            };
            tried.map_err(|e| HostError {
                fix: Some(kvm_fix(&e).unwrap_or_else(|| USE_EMULATED.to_owned())),
                ..HostError::new(e.to_string())
            })?;
            Ok(plain(Backend::Kvm))
        }
        Accel::Emulated if (host.qemu)() => Ok(plain(Backend::Emulated)),
        Accel::Emulated => Err(emulated::qemu_missing()),
        Accel::Auto => match (host.probe)() {
            Ok(()) => Ok(plain(Backend::Kvm)),
            Err(_) if (host.qemu)() => Ok(Selected {
                accel: Backend::Emulated,
                why: Some("KVM is not usable here; using QEMU, which is slow".to_owned()),
            }),
            Err(e) => Err(nothing_works(&e)),
        },
    }
}

/// What to do where KVM cannot be had.
const USE_EMULATED: &str = "use --accel emulated, which needs QEMU and is slow";

/// Fixing KVM is better than the emulated host, where it can be fixed.
fn nothing_works(e: &ProbeError) -> HostError {
    let emulated = emulated::qemu_missing();
    HostError {
        fix: kvm_fix(e).or(emulated.fix),
        ..HostError::new(format!("{e}, and {}", emulated.message))
    }
}

/// Returns the command that makes KVM usable, if one does.
pub(crate) fn kvm_fix(error: &ProbeError) -> Option<String> {
    match error {
        ProbeError::NoDevice => {
            let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            module_command(&flags)
        }
        ProbeError::Permission { path } => Some(permission_command(path)),
        ProbeError::ApiVersion { .. } | ProbeError::Failed { .. } => None,
    }
}

/// Returns the command that loads the module for this CPU; none helps when the CPU has no virtualization.
fn module_command(cpuinfo: &str) -> Option<String> {
    let has = |flag| cpuinfo.split_whitespace().any(|word| word == flag);
    let module = match (has("vmx"), has("svm")) {
        (true, _) => "kvm_intel",
        (_, true) => "kvm_amd",
        _ => return None,
    };
    Some(format!("sudo modprobe {module}"))
}

/// Returns the command that adds the user to the group that may open the device, or, where no group
/// may, that gives access to this user alone.
fn permission_command(device: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    const GROUP_READ_WRITE: u32 = 0o060;
    let meta = std::fs::metadata(device)
        .ok()
        .filter(|meta| meta.mode() & GROUP_READ_WRITE == GROUP_READ_WRITE);
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    match meta.and_then(|meta| group_name(&groups, meta.gid())) {
        Some(group) if group != "root" => {
            format!("sudo usermod -aG {group} $USER && newgrp {group}")
        }
        _ => format!("sudo setfacl -m u:$USER:rw {}", device.display()),
    }
}

/// Returns a group's name by its number, from the text of /etc/group (group(5)).
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad() -> std::result::Result<(), ProbeError> {
        Err(ProbeError::Failed {
            what: "int3".into(),
            detail: "the emulator gave up".into(),
        })
    }

    fn decide_on(
        requested: Accel,
        probe_passes: bool,
        qemu: bool,
        inside: bool,
    ) -> Result<Selected> {
        let good = || Ok(());
        let host = Probes {
            inside,
            open: &good,
            probe: if probe_passes { &good } else { &bad },
            qemu: &|| qemu,
        };
        decide(requested, GuestKind::Linux, &host)
    }

    #[test]
    fn auto_takes_kvm_when_the_probe_passes() {
        let selected = decide_on(Accel::Auto, true, true, false).unwrap();
        assert_eq!(
            selected,
            Selected {
                accel: Backend::Kvm,
                why: None
            }
        );
    }

    #[test]
    fn auto_falls_back_and_says_so_in_one_line() {
        let selected = decide_on(Accel::Auto, false, true, false).unwrap();
        assert_eq!(selected.accel, Backend::Emulated);
        assert_eq!(
            selected.why.as_deref(),
            Some("KVM is not usable here; using QEMU, which is slow")
        );
    }

    #[test]
    fn auto_with_neither_names_both_and_the_command() {
        let error = decide_on(Accel::Auto, false, false, false).unwrap_err();
        assert!(
            error.message.contains("int3") && error.message.contains(QEMU),
            "{error}"
        );
        assert!(error.fix.unwrap().contains("qemu-system-x86"));
    }

    #[test]
    fn a_software_kvm_is_for_bare_guests_alone() {
        let error = decide_on(Accel::Kvm, false, true, false).unwrap_err();
        assert!(error.message.contains("int3"), "{error}");
        assert_eq!(error.fix.as_deref(), Some(USE_EMULATED));
        let host = Probes {
            inside: false,
            open: &|| Ok(()),
            probe: &bad,
            qemu: &|| true,
        };
        let selected = decide(Accel::Kvm, GuestKind::Bare, &host).unwrap();
        assert_eq!(selected.accel, Backend::Kvm);
    }

    #[test]
    fn forced_kvm_without_the_device_is_an_error_not_a_fallback() {
        let gone = || Err(ProbeError::NoDevice);
        let host = Probes {
            inside: false,
            open: &gone,
            probe: &gone,
            qemu: &|| true,
        };
        for guest in [GuestKind::Linux, GuestKind::Bare] {
            let error = decide(Accel::Kvm, guest, &host).unwrap_err();
            assert!(error.message.contains("/dev/kvm"), "{error}");
        }
    }

    #[test]
    fn nothing_nests_inside_an_emulated_host() {
        for requested in [Accel::Auto, Accel::Kvm, Accel::Emulated] {
            assert_eq!(
                decide_on(requested, false, true, true).unwrap().accel,
                Backend::Kvm
            );
        }
    }

    #[test]
    fn the_module_to_load_goes_by_the_cpu() {
        assert_eq!(
            module_command("flags\t: fpu vmx sse").as_deref(),
            Some("sudo modprobe kvm_intel")
        );
        assert_eq!(
            module_command("flags\t: fpu svm").as_deref(),
            Some("sudo modprobe kvm_amd")
        );
        assert_eq!(module_command("flags\t: fpu svm_lock vmxx"), None);
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nkvm:x:104:me\nbroken\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 7), None);
    }

    #[test]
    fn names_of_accelerators_are_read_as_they_are_written() {
        for (name, accel) in Accel::NAMES {
            assert_eq!(name.parse(), Ok(accel));
            assert_eq!(accel.to_string(), name);
        }
        assert!("tcg".parse::<Accel>().is_err());
    }
}
