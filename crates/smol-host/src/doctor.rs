//! Looks over the host: what is there, what is missing, and the exact command that fixes it.
//!
//! Each check is a function of what was found, so that it can be tested without the host.

use std::path::Path;

use serde::Serialize;
use smol_machine::cpu::{Features, Level};
use smol_machine::hv;
use smol_machine::probe::{self, ProbeError};
use smol_sandbox::Support;

use crate::apt;
use crate::emulated::kernel::HostKernel;
use crate::emulated::{self, QEMU};
use crate::error::HostError;
use crate::select::kvm_fix;

/// The program whose needs are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `smolbuild`: also the tools that build root file systems, and where its kernel comes from, of
    /// which it knows itself: [`kernel_build`], unless it need not be compiled.
    Build(Check),
    /// `smolrun`.
    Run,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Ok,
    /// The main job can be done, slower or not for every input.
    Warn,
    /// Without it the main job cannot be done.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at; stable, for scripts.
    pub name: &'static str,
    /// The result.
    pub status: Status,
    /// What was found, one line.
    pub detail: String,
    /// The command (or action) that fixes it, when it is not [`Status::Ok`] and one is known.
    pub fix: Option<String>,
}

impl Check {
    fn new(
        name: &'static str,
        status: Status,
        detail: impl Into<String>,
        fix: Option<String>,
    ) -> Check {
        let fix = fix.filter(|_| status != Status::Ok);
        Check {
            name,
            status,
            detail: detail.into(),
            fix,
        }
    }
}

/// Looks at everything that `tool` needs. Asks no network; takes below a second.
pub fn checks(tool: Tool) -> Vec<Check> {
    let cache = smol_cli::paths::cache_dir();
    let cache_dir = cache.as_ref().ok().map(|dir| dir.as_path());
    let ways = Ways {
        kvm: probe::probe(),
        lacks: lacking_features(),
        qemu: qemu_version(),
        kernel: emulated_kernel(cache_dir),
    };
    let mut checks = ways.checks();
    if let Tool::Build(kernel) = &tool {
        checks.push(kernel.clone());
        checks.push(debian_tool(apt::find_program("mmdebstrap").is_some()));
    }
    checks.push(match &cache {
        Ok(dir) => disk(&tool, dir, free_space(dir)),
        Err(e) => Check::new("cache", Status::Missing, format!("{e:#}"), None),
    });
    checks.push(memory(&read("/proc/meminfo")));
    checks.push(sandbox(Support::here()));
    if tool == Tool::Run {
        checks.push(runtime_dir());
    }
    checks
}

/// Returns whether the main job can be done, in whatever way: the exit code is 0 then, else 5.
pub fn able(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Missing)
}

/// Returns the checks as text for people: a line each, and below it the command that fixes it.
pub fn render(checks: &[Check]) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for Check {
        name,
        status,
        detail,
        fix,
    } in checks
    {
        let status = match status {
            Status::Ok => "ok",
            Status::Warn => "warning",
            Status::Missing => "missing",
        };
        text += &format!(
            "{status:<8} {name:<width$}  {}\n",
            smol_cli::human::one_line(detail)
        );
        if let Some(fix) = fix {
            text += &format!(
                "{:8} {:width$}  fix it: {}\n",
                "",
                "",
                smol_cli::human::one_line(fix)
            );
        }
    }
    text
}

/// Returns the checks as JSON: `{"able": bool, "checks": [{"name", "status", "detail", "fix"}]}`.
pub fn to_json(checks: &[Check]) -> serde_json::Value {
    serde_json::json!({ "able": able(checks), "checks": checks })
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

// ---- Ways to run a machine ---------------------------------------------------------------------

/// Names of features by level, the lowest level first.
type Lacking = [Vec<&'static str>; Level::ALL.len()];

/// The two ways to run a machine, as found: KVM with a fitting CPU, or QEMU with a kernel.
struct Ways {
    kvm: Result<(), ProbeError>,
    /// Names of features that the CPU of each level has and KVM here cannot give a guest, the lowest
    /// level first; `None` where KVM does not say.
    lacks: Option<Lacking>,
    qemu: Result<String, HostError>,
    kernel: Result<String, HostError>,
}

impl Ways {
    /// Returns the checks of both ways; what one way lacks is only a warning when the other works.
    fn checks(self) -> Vec<Check> {
        let fits = self.lacks.as_ref().is_some_and(|lacks| lacks[0].is_empty());
        let kvm_works = self.kvm.is_ok() && fits;
        let emulated_works = self.qemu.is_ok() && self.kernel.is_ok();
        let lacking = |other_way| {
            if other_way {
                Status::Warn
            } else {
                Status::Missing
            }
        };
        let instead = if emulated_works {
            "; the emulated host will be used, which is slow"
        } else {
            ""
        };

        let kvm = match &self.kvm {
            Ok(()) => Check::new("kvm", Status::Ok, "runs an ordinary kernel", None),
            Err(e) => Check::new(
                "kvm",
                lacking(emulated_works),
                format!("{e}{instead}"),
                kvm_fix(e),
            ),
        };
        let part = |name, found: Result<String, HostError>| match found {
            Ok(detail) => Check::new(name, Status::Ok, detail, None),
            Err(e) => {
                let detail = if kvm_works {
                    format!("{} (not needed while KVM works)", e.message)
                } else {
                    e.message
                };
                Check::new(name, lacking(kvm_works), detail, e.fix)
            }
        };
        vec![
            kvm,
            match (&self.kvm, &self.lacks) {
                (Ok(()), Some(lacks)) => cpu(lacks, lacking(emulated_works), instead),
                _ => Check::new("cpu", Status::Ok, UNKNOWN_CPU, None),
            },
            part("qemu", self.qemu),
            part("emulated-kernel", self.kernel),
        ]
    }
}

/// Returns the check of what this CPU lacks of each level, the lowest first. `status` and `instead` are for
/// one that lacks the lowest.
fn cpu(lacks: &Lacking, status: Status, instead: &str) -> Check {
    let mut levels = Level::ALL.into_iter().zip(lacks);
    let Some((level, missing)) = levels.find(|(_, missing)| !missing.is_empty()) else {
        let detail = format!("has all of {}", Level::default().name());
        return Check::new("cpu", Status::Ok, detail, None);
    };
    let lacking = format!("lacks {} of {}", missing.join(", "), level.name());
    match level {
        Level::V2 => Check::new("cpu", status, format!("{lacking}{instead}"), None),
        Level::V3 => {
            let detail = format!(
                "{lacking}: with KVM, machines for it boot cold here; they are built with \
                 `--accel emulated`, or for `cpu = \"x86-64-v2\"`"
            );
            Check::new("cpu", Status::Warn, detail, None)
        }
    }
}

/// What is said of the CPU where KVM does not work.
const UNKNOWN_CPU: &str = "does not matter: KVM is not usable, and QEMU emulates another one";

/// Asks KVM, as a build and a restore do: it may offer less than the processor has.
fn lacking_features() -> Option<Lacking> {
    let here = Features::supported(&hv::host_cpu().ok()?);
    Some(Level::ALL.map(|level| here.lacking(level)))
}

fn qemu_version() -> Result<String, HostError> {
    let path = apt::find_program(QEMU).ok_or_else(emulated::qemu_missing)?;
    let output = std::process::Command::new(&path)
        .arg("--version")
        .output()
        .map_err(HostError::io(format!("cannot run {}", path.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(format!(
        "{}: {}",
        path.display(),
        text.lines().next().unwrap_or("of unknown version")
    ))
}

fn emulated_kernel(cache: Option<&Path>) -> Result<String, HostError> {
    match cache.and_then(HostKernel::cached) {
        Some(kernel) => Ok(format!("{}, cached", kernel.origin())),
        None => HostKernel::obtainable()
            .map(|origin| format!("{origin}, will be downloaded when needed (about 70 MB)")),
    }
}

// ---- Tools that build --------------------------------------------------------------------------

/// Programs that a kernel build needs, with the Debian packages that hold them.
const KERNEL_PROGRAMS: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("xz", "xz-utils"),
    ("patch", "patch"),
    ("tar", "tar"),
];

/// The name of the check of what builds a kernel.
const KERNEL_TOOLS: &str = "kernel-tools";

/// The check where nothing that builds a kernel is needed, because of `why`.
pub fn kernel_ready(why: impl Into<String>) -> Check {
    Check::new(KERNEL_TOOLS, Status::Ok, why, None)
}

/// The check where the kernel that should be ready is damaged, as `why` says.
pub fn kernel_damaged(why: impl Into<String>) -> Check {
    let fix = "unpack or install the release again".to_owned();
    Check::new(KERNEL_TOOLS, Status::Missing, why, Some(fix))
}

/// Checks for everything that builds a kernel.
pub fn kernel_build() -> Check {
    kernel_tools(&|program| apt::find_program(program).is_some(), &has_libelf)
}

fn kernel_tools(has_program: &dyn Fn(&str) -> bool, has_libelf: &dyn Fn() -> bool) -> Check {
    let mut missing: Vec<(&str, &str)> = KERNEL_PROGRAMS
        .iter()
        .filter(|(program, _)| !has_program(program))
        .copied()
        .collect();
    if !has_libelf() {
        missing.push(("libelf.h", "libelf-dev"));
    }
    if missing.is_empty() {
        return kernel_ready("everything that builds a kernel is installed");
    }
    let (names, packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    let detail = format!("a kernel cannot be built without {}", names.join(", "));
    Check::new(
        KERNEL_TOOLS,
        Status::Missing,
        detail,
        Some(apt::install_command(&packages)),
    )
}

/// Returns whether the header is installed; distributions other than Debian put it in the same place.
fn has_libelf() -> bool {
    Path::new("/usr/include/libelf.h").exists()
}

fn debian_tool(present: bool) -> Check {
    if present {
        return Check::new("mmdebstrap", Status::Ok, "is here", None);
    }
    let detail = "is not installed: Smolfiles with `[rootfs] debian` cannot be built";
    Check::new(
        "mmdebstrap",
        Status::Warn,
        detail,
        Some(apt::install_command(&["mmdebstrap"])),
    )
}

// ---- Space -------------------------------------------------------------------------------------

const MIB: u64 = 1 << 20;

/// Returns the bytes that this user may still write on the file system of `dir`.
fn free_space(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

fn disk(tool: &Tool, dir: &Path, free: Option<u64>) -> Check {
    // A kernel build tree takes most of the first; a bundle's unpacked memory most of the second.
    let (enough, least) = match tool {
        Tool::Build(_) => (4096 * MIB, 512 * MIB),
        Tool::Run => (1024 * MIB, 128 * MIB),
    };
    let place = dir.display();
    let Some(free) = free else {
        return Check::new(
            "cache",
            Status::Warn,
            format!("cannot determine the free space of {place}"),
            None,
        );
    };
    let status = match free {
        _ if free >= enough => Status::Ok,
        _ if free >= least => Status::Warn,
        _ => Status::Missing,
    };
    let wanted = if status == Status::Ok {
        String::new()
    } else {
        format!(", {} wanted", smol_cli::human::bytes(enough))
    };
    let detail = format!("{} free in {place}{wanted}", smol_cli::human::bytes(free));
    Check::new(
        "cache",
        status,
        detail,
        Some("free some space, or name another folder in SMOL_CACHE_DIR".into()),
    )
}

fn memory(meminfo: &str) -> Check {
    const ENOUGH: u64 = 1536 * MIB;
    const LEAST: u64 = 192 * MIB;
    let available = meminfo.lines().find_map(|line| {
        let value = line
            .strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix("kB")?;
        value.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let Some(available) = available else {
        return Check::new(
            "memory",
            Status::Warn,
            "/proc/meminfo does not state the available memory",
            None,
        );
    };
    let size = smol_cli::human::bytes(available);
    match available {
        ENOUGH.. => Check::new("memory", Status::Ok, format!("{size} available"), None),
        LEAST.. => Check::new(
            "memory",
            Status::Warn,
            format!("only {size} available: small machines only"),
            None,
        ),
        _ => Check::new(
            "memory",
            Status::Missing,
            format!("only {size} available"),
            None,
        ),
    }
}

/// Returns the check of what confines a machine's process.
fn sandbox(support: Support) -> Check {
    match support.missing() {
        None => {
            let detail = format!("Landlock (version {}) and seccomp", support.landlock);
            Check::new("sandbox", Status::Ok, detail, None)
        }
        Some(missing) => {
            let fix = match support.landlock {
                0 => "boot Linux 5.13 or later, with landlock among the modules of lsm=",
                _ => "boot a kernel with CONFIG_SECCOMP_FILTER",
            };
            Check::new("sandbox", Status::Warn, missing, Some(fix.to_owned()))
        }
    }
}

fn runtime_dir() -> Check {
    match smol_cli::paths::runtime_dir() {
        Ok(dir) => Check::new("runtime", Status::Ok, dir.display().to_string(), None),
        Err(e) => {
            let fix = "name a folder of your own in SMOL_RUNTIME_DIR".to_owned();
            Check::new("runtime", Status::Missing, format!("{e:#}"), Some(fix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn software_kvm() -> Result<(), ProbeError> {
        Err(ProbeError::Failed {
            what: "int3".into(),
            detail: "gave up".into(),
        })
    }

    fn statuses(ways: Ways) -> Vec<(&'static str, Status)> {
        ways.checks()
            .into_iter()
            .map(|check| (check.name, check.status))
            .collect()
    }

    #[test]
    fn a_kernel_that_cannot_confine_a_machine_is_told_with_what_would() {
        let check = |landlock, seccomp| sandbox(Support { landlock, seccomp });
        assert_eq!(check(6, true).detail, "Landlock (version 6) and seccomp");
        assert_eq!(check(6, true).status, Status::Ok);
        let none = check(0, true);
        assert_eq!(none.status, Status::Warn);
        assert!(none.detail.contains("no Landlock"));
        assert!(none.fix.unwrap().contains("lsm="));
        assert!(check(6, false).fix.unwrap().contains("SECCOMP"));
    }

    #[test]
    fn without_kvm_the_emulated_host_makes_it_a_warning() {
        let ways = Ways {
            kvm: software_kvm(),
            lacks: Some([vec![], vec![]]),
            qemu: Ok("qemu".into()),
            kernel: Ok("linux".into()),
        };
        let checks = ways.checks();
        assert!(able(&checks));
        assert_eq!(
            (checks[1].status, checks[1].detail.as_str()),
            (Status::Ok, UNKNOWN_CPU)
        );
        assert_eq!(checks[0].status, Status::Warn);
        assert!(
            checks[0].detail.contains("int3") && checks[0].detail.contains("emulated"),
            "{}",
            checks[0].detail
        );
    }

    #[test]
    fn without_kvm_and_qemu_nothing_runs() {
        let ways = Ways {
            kvm: software_kvm(),
            lacks: Some([vec![], vec![]]),
            qemu: Err(emulated::qemu_missing()),
            kernel: Ok("linux".into()),
        };
        let checks = ways.checks();
        assert!(!able(&checks));
        let qemu = checks.iter().find(|check| check.name == "qemu").unwrap();
        assert!(qemu.fix.as_ref().unwrap().contains("qemu-system-x86"));
    }

    #[test]
    fn with_kvm_a_missing_qemu_is_only_a_warning() {
        let ways = Ways {
            kvm: Ok(()),
            lacks: Some([vec![], vec![]]),
            qemu: Err(emulated::qemu_missing()),
            kernel: Err(HostError::new("no kernel")),
        };
        let expected = [
            ("kvm", Status::Ok),
            ("cpu", Status::Ok),
            ("qemu", Status::Warn),
            ("emulated-kernel", Status::Warn),
        ];
        assert_eq!(statuses(ways), expected);
    }

    #[test]
    fn a_cpu_below_the_guests_needs_the_emulated_host() {
        let ways = |qemu| Ways {
            kvm: Ok(()),
            lacks: Some([vec!["popcnt"], vec!["avx2", "popcnt"]]),
            qemu,
            kernel: Ok("linux".into()),
        };
        assert!(able(&ways(Ok("qemu".into())).checks()));
        assert!(!able(&ways(Err(emulated::qemu_missing())).checks()));
    }

    #[test]
    fn a_cpu_that_lacks_the_usual_level_alone_is_a_warning() {
        let ways = Ways {
            kvm: Ok(()),
            lacks: Some([vec![], vec!["avx2", "bmi1"]]),
            qemu: Ok("qemu".into()),
            kernel: Ok("linux".into()),
        };
        let cpu = ways.checks().remove(1);
        assert_eq!(cpu.status, Status::Warn);
        assert!(
            cpu.detail.contains("avx2, bmi1 of x86-64-v3"),
            "{}",
            cpu.detail
        );
    }

    #[test]
    fn all_missing_build_tools_come_in_one_command() {
        let check = kernel_tools(&|program| program != "bc" && program != "xz", &|| false);
        assert_eq!(check.status, Status::Missing);
        assert!(
            check.detail.ends_with("without bc, xz, libelf.h"),
            "{}",
            check.detail
        );
        assert!(check.fix.unwrap().ends_with("bc xz-utils libelf-dev"));
        assert_eq!(kernel_tools(&|_| true, &|| true).status, Status::Ok);
    }

    #[test]
    fn a_full_disk_is_missing_and_a_small_one_a_warning() {
        let build = Tool::Build(kernel_ready("it is here"));
        let status = |free| disk(&build, Path::new("/c"), free).status;
        assert_eq!(status(Some(100 << 30)), Status::Ok);
        assert_eq!(status(Some(1 << 30)), Status::Warn);
        assert_eq!(status(Some(1 << 20)), Status::Missing);
        assert_eq!(status(None), Status::Warn);
    }

    #[test]
    fn available_memory_is_read_in_kilobytes() {
        assert_eq!(
            memory("MemTotal: 9 kB\nMemAvailable:    4194304 kB\n").detail,
            "4.0 GiB available"
        );
        assert_eq!(memory("MemAvailable: 1000 kB\n").status, Status::Missing);
        assert_eq!(memory("garbage").status, Status::Warn);
    }

    #[test]
    fn a_line_has_status_name_and_detail_and_the_command_below() {
        let checks = [
            Check::new("kvm", Status::Ok, "fine", Some("never shown".into())),
            Check::new("memory", Status::Missing, "none", Some("buy some".into())),
        ];
        let expected =
            "ok       kvm     fine\nmissing  memory  none\n                 fix it: buy some\n";
        assert_eq!(render(&checks), expected);
    }

    #[test]
    fn the_json_form_has_the_verdict_and_every_check() {
        let checks = [Check::new("kvm", Status::Warn, "slow", None)];
        let json = to_json(&checks);
        assert_eq!(json["able"], true);
        assert_eq!(json["checks"][0]["status"], "warn");
        assert_eq!(json["checks"][0]["fix"], serde_json::Value::Null);
    }
}
