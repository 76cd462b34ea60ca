//! From a Smolfile and its lock to the Plan: everything that can change a byte of the bundle,
//! resolved, in one value. Pure.
//!
//! A Plan with the digests of its images is [`Sealed`]: it determines the seed of all randomness that
//! the guest sees while it is built. Without them, it is part of the key in the bundle cache. Nothing
//! of this host is in it: no absolute path, no user, no time.

mod guest;
mod step;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use anyhow::Context;
use serde::Serialize;
use smol_cli::{ErrorExt, ExitKind};
use smol_machine::cpu::Level;
use smol_protocol::{GuestConfig, RUN_MODE_WORD};

pub use self::guest::assumed_port;
use self::guest::{guest_config, ready};
pub use self::step::{PlannedNetwork, PlannedRun, PlannedStep, StepChain};
use crate::input::Rootfs;
use crate::lock::Lock;
use crate::smolfile::{KernelSource, Smolfile};
use crate::source_dir::SourceDir;

/// Wall clock of the guest at power-on and time of all files, unless SOURCE_DATE_EPOCH says
/// otherwise: 2026-01-01T00:00:00Z in seconds since the Unix epoch.
pub const DEFAULT_EPOCH: u32 = 1_767_225_600;

/// Version of the Plan's own shape and meaning; part of its digest.
const FORMAT: u32 = 4;

/// Everything that can change a byte of the bundle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    format: u32,
    /// Version of smolbuild: VMM and writers come with it.
    builder: &'static str,
    /// Architecture of the guest.
    arch: &'static str,
    /// Name of the machine.
    pub name: String,
    /// Version of what is inside.
    pub version: Option<String>,
    /// Most vCPUs; the build uses one.
    pub cpus: u32,
    /// Level of the CPU.
    pub cpu: Level,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The kernel and its command lines.
    pub kernel: PlannedKernel,
    /// The root file system; without one the machine is just a kernel.
    pub rootfs: Option<Rootfs>,
    /// What is done to the root file system, in order.
    pub steps: Vec<PlannedStep>,
    /// What PID 1 has to do: there exactly when there is a root file system.
    pub guest: Option<GuestConfig>,
    /// For a machine that is just a kernel: the line of the console that makes it ready.
    pub console_ready: Option<smol_protocol::Ready>,
    /// Every input, pinned.
    pub lock: Lock,
    /// Folder of the Smolfile, which the host paths of the Plan are relative to.
    #[serde(skip)]
    pub base_dir: SourceDir,
}

/// The kernel of a Plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedKernel {
    /// Where it comes from.
    pub source: KernelSource,
    /// Command line of the build, without the VMM's own part (its virtio devices).
    pub build_cmdline: String,
    /// Command line of a cold boot, likewise.
    pub run_cmdline: String,
}

/// What a boot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// The build, up to the snapshot.
    Build,
    /// A cold boot where the snapshot cannot be restored.
    Run,
}

impl Plan {
    /// Resolves a Smolfile whose folder is `base_dir`, with the inputs that `lock` pins.
    ///
    /// Errors: what the Smolfile leaves out is not in an image either (of kind [`ExitKind::Usage`]);
    /// the guest could not act on the result (of kind [`ExitKind::Internal`] without an image, for the
    /// parser of the Smolfile lets nothing of that kind pass).
    pub fn resolve(smolfile: &Smolfile, base_dir: &SourceDir, lock: Lock) -> anyhow::Result<Self> {
        let image = lock.image.as_ref().map(|image| &image.config);
        let guest = guest_config(smolfile, image)?;
        if let Some(guest) = &guest {
            let kind = match image {
                Some(_) => ExitKind::Usage,
                None => ExitKind::Internal,
            };
            let checked = guest.check().context("the machine cannot be run so");
            checked.kind(kind)?;
        }
        let rootfs = smolfile.rootfs().cloned();
        let epoch = lock.builder.epoch;
        let steps = smolfile.steps().iter();
        let steps = steps
            .map(|step| PlannedStep::of(step, image, epoch))
            .collect();
        let cmdline = |boot| kernel_cmdline(boot, rootfs.is_none(), &smolfile.kernel.cmdline);
        Ok(Self {
            format: FORMAT,
            builder: env!("CARGO_PKG_VERSION"),
            arch: "x86_64",
            name: smolfile.name.clone(),
            version: smolfile.version.clone(),
            cpus: smolfile.cpus,
            cpu: smolfile.cpu,
            memory: smolfile.memory,
            kernel: PlannedKernel {
                source: smolfile.kernel.source.clone(),
                build_cmdline: cmdline(Boot::Build),
                run_cmdline: cmdline(Boot::Run),
            },
            console_ready: match rootfs {
                Some(_) => None,
                None => smolfile.ready.as_ref().map(ready),
            },
            rootfs,
            steps,
            guest,
            lock,
            base_dir: base_dir.clone(),
        })
    }

    /// Wall clock at power-on and time of all files, in seconds since the Unix epoch.
    pub fn epoch(&self) -> u64 {
        self.lock.builder.epoch.into()
    }

    /// The number of `[[warm]]` commands, if there are any.
    pub fn warm_commands(&self) -> Option<NonZeroU32> {
        let guest = self.guest.as_ref()?;
        // The parser allows few.
        NonZeroU32::new(u32::try_from(guest.warm.len()).ok()?)
    }

    /// Folders that the service finds in a container of its image, which the files of the image need not
    /// have: its working directory, and its volumes.
    pub fn image_folders(&self) -> Vec<&str> {
        let Some(image) = &self.lock.image else {
            return Vec::new();
        };
        let workdir = self
            .guest
            .as_ref()
            .and_then(|guest| guest.service.workdir.as_deref());
        let volumes = image.config.volumes.iter().map(String::as_str);
        workdir.into_iter().chain(volumes).collect()
    }

    /// TCP ports of the service.
    pub fn ports(&self) -> &[u16] {
        self.guest.as_ref().map_or(&[], |guest| &guest.ports)
    }

    /// The Plan as JSON, the same bytes for the same Plan.
    pub fn to_json(&self) -> String {
        canonical_json(self)
    }
}

/// A Plan whose images are made. With their digests it identifies the machine, and its seeds follow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sealed {
    /// What was built. Where a pinned input was not to be had, its lock has the one that was taken
    /// instead.
    #[serde(flatten)]
    pub plan: Plan,
    /// Digests of the images, by name.
    #[serde(rename = "inputs")]
    pub digests: BTreeMap<String, String>,
}

impl Sealed {
    /// Seals `plan`, with the lock that its images were made by, and their digests.
    pub fn new(plan: &Plan, lock: Lock, digests: BTreeMap<String, String>) -> Self {
        let plan = Plan {
            lock,
            ..plan.clone()
        };
        Self { plan, digests }
    }

    /// BLAKE3 of the canonical JSON: that of the Plan, and the digests.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(canonical_json(self).as_bytes()).as_bytes()
    }

    /// Seed of all randomness in the guest during the build; public, as the digest is.
    pub fn seed(&self) -> [u8; 32] {
        blake3::derive_key(
            "smol 2026-01-01 guest randomness during the build v1",
            &self.digest(),
        )
    }

    /// Decides where a kernel of ours lies: by the kernel and the machine's name alone. So the
    /// versions of a machine have one image of the kernel, and share its bytes.
    pub fn kernel_seed(&self) -> [u8; 32] {
        let kernel = self.digests.get("kernel").map_or("", String::as_str);
        let context = "smol 2026-12-01 place of the kernel v1";
        blake3::derive_key(context, format!("{kernel} {}", self.plan.name).as_bytes())
    }
}

/// The same bytes for the same value: fields as declared, maps sorted, no white space.
fn canonical_json(value: &impl Serialize) -> String {
    // Strings, integers and maps with string keys: there is nothing that JSON could not hold.
    serde_json::to_string(value).expect("a Plan is plain data")
}

/// The kernel command line, without the VMM's own part. Just a kernel gets what the Smolfile says
/// and nothing else: it need not be Linux.
pub fn kernel_cmdline(boot: Boot, kernel_only: bool, extra: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    if !kernel_only {
        words.extend(machine_words());
        if boot == Boot::Run {
            words.push(RUN_MODE_WORD);
        }
    }
    // Last, so that it wins where the kernel takes the last of two words.
    if !extra.is_empty() {
        words.push(extra);
    }
    words.join(" ")
}

/// The kernel parameters of every machine with a PID 1 of ours
/// (Documentation/admin-guide/kernel-parameters.txt).
fn machine_words() -> [&'static str; 11] {
    [
        "console=hvc0",
        // Until hvc0 is there.
        "earlyprintk=serial,ttyS0",
        // A guest that is done resets by triple fault, at once also after a panic.
        "quiet",
        "reboot=t",
        "panic=-1",
        // PID 1 brings the other CPUs online.
        "maxcpus=1",
        // There is no PIT interrupt to check the IOAPIC with.
        "no_timer_check",
        // No text patching when a second CPU comes: it costs 0.4 s.
        "noreplace-smp",
        // Our kernel has no return thunks (docs/security.md), which it would complain about.
        "spec_rstack_overflow=off",
        // The seed that the VMM hands over is all the randomness of a build.
        "random.trust_bootloader=on",
        "random.trust_cpu=off",
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smolfile;

    const SERVICE: &str = r#"
        name = "my_app"
        cpus = 2
        ports = [8080]
        [kernel]
        cmdline = "loglevel=4"
        [rootfs]
        debian = { suite = "bookworm", packages = ["redis", "curl"] }
        [[copy]]
        src = "./conf/../app.conf"
        dest = "/etc/app.conf"
        [service]
        cmd = "exec app"
        [ready]
        http = { port = 8080, status = [200, 204] }
        timeout = "5s"
        [[warm]]
        cmd = ["curl", "localhost:8080"]
        [[restore]]
        cmd = ["rekey"]
        [[warm_restore]]
        http = { port = 8080, path = "/first" }
        [[warm_restore]]
        exec = ["ask"]
        timeout = "2s"
    "#;

    const KERNEL: &str = r#"
        name = "native"
        [kernel]
        path = "guest.elf"
        cmdline = "root=whatever it likes"
        [ready]
        log = "^up$"
    "#;

    fn plan(source: &str) -> Plan {
        Plan::resolve(
            &smolfile::parse(source).unwrap(),
            &SourceDir::bare("/base"),
            Lock::of_epoch(DEFAULT_EPOCH),
        )
        .unwrap()
    }

    fn sealed(plan: Plan) -> Sealed {
        Sealed {
            plan,
            digests: BTreeMap::new(),
        }
    }

    fn with_images(plan: Plan, digests: &[(&str, &str)]) -> Sealed {
        let digests = digests.iter();
        Sealed {
            plan,
            digests: digests
                .map(|(name, digest)| (name.to_string(), digest.to_string()))
                .collect(),
        }
    }

    #[test]
    fn sigterm_is_the_default_of_a_service_and_said_on_purpose_of_an_init() {
        let stopped_by = |cmd: &str, more: &str| {
            let text = SERVICE.replace("cmd = \"exec app\"", &format!("cmd = [{cmd:?}]\n{more}"));
            let service = plan(&text).guest.unwrap().service;
            (service.init, service.stop_signal)
        };
        let sigterm = "stop_signal = \"SIGTERM\"";
        assert_eq!(stopped_by("app", sigterm), (None, None));
        assert_eq!(stopped_by("/sbin/init", ""), (None, None));
        assert_eq!(stopped_by("/sbin/init", sigterm), (None, Some(15)));
        let said = format!("init = true\n{sigterm}");
        assert_eq!(stopped_by("app", &said), (Some(true), Some(15)));
    }

    #[test]
    fn a_service_is_resolved_into_what_the_guest_has_to_do() {
        let plan = plan(SERVICE);
        let guest = plan.guest.as_ref().unwrap();
        assert_eq!(guest.hostname, "my-app");
        assert_eq!(guest.service.cmd, ["/bin/sh", "-c", "exec app"]);
        assert_eq!(
            guest.warm,
            [smol_protocol::Warm {
                cmd: vec!["curl".into(), "localhost:8080".into()],
                timeout_ms: 60_000
            }]
        );
        let requests = [
            smol_protocol::WarmRestore {
                probe: smol_protocol::Probe::Http {
                    port: 8080,
                    path: "/first".into(),
                    status: vec![200],
                    body: None,
                },
                timeout_ms: 60_000,
            },
            smol_protocol::WarmRestore {
                probe: smol_protocol::Probe::Exec {
                    cmd: vec!["ask".into()],
                },
                timeout_ms: 2_000,
            },
        ];
        assert_eq!(guest.warm_restore, requests);
        assert_eq!(
            (
                guest.ready.timeout_ms,
                guest.ready.interval_ms,
                guest.ready.successes
            ),
            (5_000, 100, 1)
        );
        assert_eq!(
            guest.ready.probe,
            smol_protocol::Probe::Http {
                port: 8080,
                path: "/".into(),
                status: vec![200, 204],
                body: None
            }
        );
        assert_eq!(plan.ports(), [8080]);
        assert_eq!(plan.console_ready, None);
        let [PlannedStep::Copy(copy)] = plan.steps.as_slice() else {
            panic!("{:?}", plan.steps)
        };
        assert_eq!(copy.src.get_ref(), "app.conf");
        // What the guest reads is what it was told.
        let json = serde_json::to_vec(guest).unwrap();
        assert_eq!(&GuestConfig::parse(&json).unwrap(), guest);
    }

    #[test]
    fn just_a_kernel_gets_its_own_command_line_and_no_guest() {
        let plan = plan(KERNEL);
        assert_eq!((plan.guest.as_ref(), plan.rootfs.as_ref()), (None, None));
        assert!(
            matches!(&plan.kernel.source, KernelSource::Path(path) if path.get_ref() == "guest.elf")
        );
        assert_eq!(plan.kernel.build_cmdline, "root=whatever it likes");
        assert_eq!(plan.kernel.run_cmdline, plan.kernel.build_cmdline);
        assert_eq!(
            plan.console_ready.unwrap().probe,
            smol_protocol::Probe::Log {
                pattern: "^up$".into()
            }
        );
    }

    #[test]
    fn a_cold_boot_differs_from_the_build_by_one_word() {
        let kernel = plan(SERVICE).kernel;
        assert!(kernel.build_cmdline.starts_with("console=hvc0 "));
        assert!(kernel.build_cmdline.ends_with(" loglevel=4"));
        assert_eq!(
            kernel.run_cmdline.replace(" smol.mode=run", ""),
            kernel.build_cmdline
        );
    }

    #[test]
    fn the_digest_does_not_depend_on_where_the_smolfile_lies_or_how_it_is_laid_out() {
        let smolfile = smolfile::parse(SERVICE).unwrap();
        let lock = Lock::of_epoch(DEFAULT_EPOCH);
        let elsewhere = Plan::resolve(&smolfile, &SourceDir::bare("/elsewhere"), lock).unwrap();
        assert_eq!(elsewhere.to_json(), plan(SERVICE).to_json());
        let other_order = SERVICE.replace(r#"["redis", "curl"]"#, r#"[ "curl",  "redis" ]"#);
        assert_eq!(plan(&other_order).to_json(), plan(SERVICE).to_json());
    }

    #[test]
    fn the_kernels_place_follows_from_kernel_and_name_alone() {
        let with = |plan: Plan, kernel: &str, rootfs: &str| {
            with_images(plan, &[("kernel", kernel), ("rootfs", rootfs)])
        };
        let one = with(plan(SERVICE), "1", "2");
        let next = with(plan(&SERVICE.replace("exec app", "exec app 2")), "1", "3");
        assert_ne!(next.seed(), one.seed());
        assert_eq!(next.kernel_seed(), one.kernel_seed());
        let other = with(plan(&SERVICE.replace("my_app", "app")), "1", "2");
        assert_ne!(other.kernel_seed(), one.kernel_seed());
        assert_ne!(
            with(plan(SERVICE), "4", "2").kernel_seed(),
            one.kernel_seed()
        );
        assert_ne!(one.kernel_seed(), one.seed());
    }

    #[test]
    fn everything_that_can_change_a_byte_changes_the_digest_and_the_seed() {
        let first = sealed(plan(SERVICE));
        let mut seen = vec![first.digest(), first.seed()];
        for (from, to) in [
            ("my_app", "my_ape"),
            ("cpus = 2", "cpus = 3"),
            ("cpus = 2", "memory = \"512MiB\""),
            ("cpus = 2", "version = \"2\""),
            ("[8080]", "[8081]"),
            ("loglevel=4", "mitigations=auto"),
            ("[kernel]", "[kernel]\nrecipe = \"other\""),
            ("bookworm", "trixie"),
            ("\"redis\", ", ""),
            ("[[copy]]", "slim = true\n[[copy]]"),
            ("[[copy]]", "slim = true\nwithout = [\"perl\"]\n[[copy]]"),
            ("/etc/app.conf", "/etc/app.cfg"),
            ("app.conf\"\n        dest", "app.cfg\"\n        dest"),
            ("dest =", "mode = 0o600\ndest ="),
            ("dest =", "owner = \"app\"\ndest ="),
            ("exec app", "exec app -v"),
            ("cmd = \"exec", "user = \"app\"\ncmd = \"exec"),
            ("cmd = \"exec", "env = { A = \"b\" }\ncmd = \"exec"),
            ("cmd = \"exec", "workdir = \"/srv\"\ncmd = \"exec"),
            ("\"5s\"", "\"6s\""),
            ("204", "301"),
            ("[[warm]]", "[snapshot]\ndrop_caches = false\n[[warm]]"),
            ("\"localhost:8080\"", "\"localhost:8080/x\""),
            ("\"rekey\"", "\"rekey\", \"-A\""),
            ("\"/first\"", "\"/second\""),
            ("[\"ask\"]", "[\"ask\", \"twice\"]"),
            ("exec = [\"ask\"]", "tcp = 8080"),
            ("\"2s\"", "\"3s\""),
        ] {
            let changed = SERVICE.replace(from, to);
            assert_ne!(changed, SERVICE, "{from}");
            let changed = sealed(plan(&changed));
            seen.extend([changed.digest(), changed.seed()]);
        }
        let more = with_images(plan(SERVICE), &[("kernel", "blake3:00")]);
        seen.extend([more.digest(), more.seed()]);
        let smolfile = smolfile::parse(SERVICE).unwrap();
        let lock = Lock::of_epoch(0);
        let epoch = Plan::resolve(&smolfile, &SourceDir::bare("/base"), lock).unwrap();
        seen.push(sealed(epoch).digest());
        let on_base = SERVICE.replace("[rootfs]", "[base]").replace(
            r#"debian = { suite = "bookworm", packages = ["redis", "curl"] }"#,
            r#"bundle = "base.smolmachine""#,
        );
        let smolfile = smolfile::parse(&on_base).unwrap();
        for base in ["1", "2"] {
            let mut lock = Lock::of_epoch(DEFAULT_EPOCH);
            lock.files.push(crate::lock::InputFile {
                role: crate::lock::Role::Base,
                path: "base.smolmachine".into(),
                sha256: base.repeat(64),
            });
            let plan = Plan::resolve(&smolfile, &SourceDir::bare("/base"), lock).unwrap();
            seen.push(sealed(plan).digest());
        }
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn the_canonical_form_is_pinned() {
        let json =
            canonical_json(&sealed(plan(KERNEL))).replace(env!("CARGO_PKG_VERSION"), "VERSION");
        assert_eq!(
            json,
            r#"{"format":4,"builder":"VERSION","arch":"x86_64","name":"native","version":null,"cpus":1,"cpu":"x86-64-v3","memory":268435456,"kernel":{"source":{"path":"guest.elf"},"build_cmdline":"root=whatever it likes","run_cmdline":"root=whatever it likes"},"rootfs":null,"steps":[],"guest":null,"console_ready":{"probe":{"log":{"pattern":"^up$"}},"timeout_ms":60000,"interval_ms":100,"successes":1},"lock":{"version":1,"builder":{"smolbuild":"VERSION","bundle-format":1,"guest-sha256":"0000000000000000000000000000000000000000000000000000000000000000","epoch":1767225600},"kernel":null,"debian":null,"file":[],"copy":[]},"inputs":{}}"#
        );
    }

    #[test]
    fn the_seeds_are_pinned() {
        let hex = |seed| blake3::Hash::from_bytes(seed).to_hex().to_string();
        let tar = SERVICE.replace(
            r#"debian = { suite = "bookworm", packages = ["redis", "curl"] }"#,
            r#"tar = "a.tar""#,
        );
        for (smolfile, seed) in [
            (
                SERVICE,
                "c843289d40e8e6642a6b261fbccb92294e82d93496fbf1f51a9591ae4ac33169",
            ),
            (
                &tar,
                "595333dc222acbf5f92fe4e468db324f470aa0865f1ec46a64a187a1b24805c9",
            ),
        ] {
            let mut plan = plan(smolfile);
            plan.builder = "VERSION";
            plan.lock.builder.smolbuild = "VERSION".into();
            let images = [("kernel", "1"), ("rootfs", "2"), ("initramfs", "3")];
            let sealed = with_images(plan, &images);
            assert_eq!(hex(sealed.seed()), seed);
            assert_eq!(
                hex(sealed.kernel_seed()),
                "e1265c805ab1094fac8082aef279b7cfaf080ad206faa43d754181fde293be45"
            );
        }
    }
}
