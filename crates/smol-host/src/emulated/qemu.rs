//! [`EmulatedHost`]: what to run in an emulated host, and the QEMU command line for it.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::kernel::{self, HostKernel};
use super::process::{Fds, Launch, memory_file};
use super::running::{self, RunningHost};
use super::wire::{HostJob, Mount};
use super::{INIT_ARGUMENT, SELF, cpio};
use crate::apt;
use crate::error::{HostError, Result};
use smol_sandbox::{Access, Mode};

/// The emulator we run.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Its Debian package.
pub(crate) const QEMU_PACKAGE: &str = "qemu-system-x86";
/// Address of the emulated host in QEMU's user network.
pub(super) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Address of QEMU's side of it.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The emulated CPU, by QEMU's name for it: another than [`CPU`], with which builds must give the
/// same bytes.
pub const CPU_VARIABLE: &str = "SMOL_EMULATED_CPU";
/// The emulated CPU unless told otherwise: all that QEMU can emulate.
const CPU: &str = "max";
/// Two for the job, and a first one that runs no guest. QEMU's x86 emulation has each CPU that
/// restores FPU state clear a flag of the *first* CPU (`cpu_clear_ignne`, every XRSTOR and FXRSTOR),
/// not atomically, in the word that says whether that CPU translates addresses for a guest or takes
/// interrupts at all (`hflags2`). A VMRUN or #VMEXIT at that moment is undone by half: the guest is given
/// registers of its host, or the host dies. On the other CPUs nobody else writes that word.
const CPUS: usize = 3;
/// Memory beside what the job asks for: Linux, the initramfs and what lies in tmpfs.
const BASE_MEMORY_MIB: u32 = 1024;
/// What QEMU denies itself by seccomp once it is set up: programs, other users, priorities.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Name of the virtio-serial port that carries the frames.
pub(super) const PORT_NAME: &str = "smol";

/// An emulated host to be started: one job in a Linux with KVM.
///
/// ```no_run
/// use smol_host::emulated::{EmulatedHost, SELF};
/// let status = EmulatedHost::new("/var/cache/smol")
///     .share("/srv/in", "/in", true)
///     .share("/srv/out", "/out", false)
///     .memory(512)
///     .forward(std::net::Ipv4Addr::LOCALHOST, 8080, 80)
///     .job([SELF, "run", "/in/x.smolmachine"])
///     .spawn()?
///     .relay()?;
/// std::process::exit(status.shell_code());
/// # #[allow(unreachable_code)] Ok::<(), smol_host::HostError>(())
/// ```
#[derive(Clone, Debug)]
pub struct EmulatedHost {
    cache: PathBuf,
    shares: Vec<Share>,
    memory_mib: u32,
    forwards: Vec<Forward>,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
    silence_timeout: Duration,
    sandbox: Mode,
}

#[derive(Clone, Debug)]
struct Share {
    host: PathBuf,
    target: String,
    read_only: bool,
}

#[derive(Clone, Debug)]
struct Forward {
    address: Ipv4Addr,
    host_port: u16,
    inner_port: u16,
}

impl EmulatedHost {
    /// Describes an emulated host whose kernel is kept under `cache` (`emulated-host/` in it).
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        EmulatedHost {
            cache: cache.into(),
            shares: Vec::new(),
            memory_mib: 0,
            forwards: Vec::new(),
            argv: Vec::new(),
            env: Vec::new(),
            cwd: "/".into(),
            silence_timeout: running::SILENCE_TIMEOUT,
            sandbox: Mode::On,
        }
    }

    /// Shares the host's folder `dir` as `target` (an absolute path) inside.
    pub fn share(
        mut self,
        dir: impl Into<PathBuf>,
        target: impl Into<String>,
        read_only: bool,
    ) -> Self {
        self.shares.push(Share {
            host: dir.into(),
            target: target.into(),
            read_only,
        });
        self
    }

    /// Sets the memory for the job and its guests, MiB; about 1 GiB for the emulated host is added.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Forwards TCP connections to `address:host_port` of this host to `inner_port` inside.
    /// Nothing inside can reach out.
    pub fn forward(mut self, address: Ipv4Addr, host_port: u16, inner_port: u16) -> Self {
        self.forwards.push(Forward {
            address,
            host_port,
            inner_port,
        });
        self
    }

    /// Sets the program (absolute path inside; [`SELF`] for the running program) and its arguments.
    pub fn job<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.argv = argv.into_iter().map(Into::into).collect();
        self
    }

    /// Sets an environment variable of the job. PATH, HOME and the marker are set already,
    /// nothing else is passed on.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the job's working folder; `/` by default.
    pub fn cwd(mut self, dir: impl Into<String>) -> Self {
        self.cwd = dir.into();
        self
    }

    /// Sets how long nothing may be received from it, or one of its CPUs run nothing, until it counts as
    /// hanging; two minutes by default, because this host may be busy.
    pub fn silence_timeout(mut self, timeout: Duration) -> Self {
        self.silence_timeout = timeout;
        self
    }

    /// Sets whether QEMU is confined to what it needs of this host; it is by default.
    pub fn sandbox(mut self, mode: Mode) -> Self {
        self.sandbox = mode;
        self
    }

    /// Starts it. The kernel is fetched first if it is not cached.
    ///
    /// # Errors
    /// QEMU or the kernel package is missing (with the command that gets it); a shared folder does
    /// not exist; the running program is not static. What happens after the start (a port is taken,
    /// the kernel dies) comes out of [`RunningHost::next_event`].
    pub fn spawn(&self) -> Result<RunningHost> {
        let qemu = program()?;
        for share in &self.shares {
            if !share.host.is_dir() {
                return Err(HostError::new(format!(
                    "the folder to be shared, {}, is not a folder",
                    share.host.display()
                )));
            }
        }
        let cpu = cpu(std::env::var_os(CPU_VARIABLE))?;
        let kernel = HostKernel::obtain(&self.cache)?;
        let initramfs = memory_file("initramfs", &self.initramfs(&kernel)?)?;
        let host = self.clone();
        running::start(Launch {
            access: self.access()?,
            sandbox: self.sandbox,
            qemu,
            initramfs,
            arguments: Box::new(move |fds| host.command_line(&cpu, &kernel.vmlinux(), fds)),
            boot_timeouts: running::BOOT_TIMEOUTS,
            silence_timeout: self.silence_timeout,
            cache: self.cache.clone(),
        })
    }

    /// Returns the initramfs: this program as `/smol`, the modules, and the job.
    fn initramfs(&self, kernel: &HostKernel) -> Result<Vec<u8>> {
        let program = std::fs::read("/proc/self/exe")
            .map_err(HostError::io("cannot read the running program"))?;
        if is_dynamic(&program) {
            let message = "the emulated host runs this very program, which must be linked statically, and it is not";
            return Err(HostError::new(message).fix(
                "build it with RUSTFLAGS=-Ctarget-feature=+crt-static and an explicit --target",
            ));
        }
        let mut archive = cpio::CpioWriter::new();
        for dir in ["dev", "proc", "sys", "tmp", "run", "root", "modules"] {
            archive.dir(dir);
        }
        archive.char_device("dev/console", (5, 1));
        archive.char_device("dev/null", (1, 3));
        archive.file(SELF.trim_start_matches('/'), 0o755, &program);
        let mut job = self.description();
        for (name, bytes) in kernel.modules(&self.modules())? {
            let path = format!("modules/{name}.ko");
            archive.file(&path, 0o644, &bytes);
            job.modules.push(format!("/{path}"));
        }
        let json = serde_json::to_vec(&job)
            .map_err(|e| HostError::new(format!("cannot write the job: {e}")))?;
        archive.file("job.json", 0o644, &json);
        Ok(archive.finish())
    }

    fn description(&self) -> HostJob {
        let mount = |(n, share): (usize, &Share)| Mount {
            tag: format!("share{n}"),
            target: share.target.clone(),
            read_only: share.read_only,
        };
        HostJob {
            argv: self.argv.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            modules: Vec::new(),
            shares: self.shares.iter().enumerate().map(mount).collect(),
            network: !self.forwards.is_empty(),
            silence: self.silence_timeout.as_secs(),
        }
    }

    /// Returns the modules this job needs (loading one costs tens of milliseconds).
    fn modules(&self) -> Vec<&'static str> {
        let mut wanted = vec!["virtio_pci", "virtio_console", "kvm_amd"];
        if !self.shares.is_empty() {
            wanted.extend(["9pnet_virtio", "9p"]);
        }
        if !self.forwards.is_empty() {
            wanted.push("virtio_net");
        }
        wanted
    }

    /// Returns what QEMU may use of this host: itself, its kernel, what the job shares, and the ports
    /// that are forwarded.
    ///
    /// # Errors
    /// There is no QEMU.
    pub fn access(&self) -> Result<Access> {
        let mut access = qemu_access()?.read(kernel::kernels(&self.cache));
        for share in &self.shares {
            access = match share.read_only {
                true => access.read(&share.host),
                false => access.write(&share.host),
            };
        }
        let ports = self.forwards.iter().map(|forward| forward.host_port);
        Ok(ports.fold(access, Access::bind))
    }

    fn command_line(&self, cpu: &str, vmlinux: &Path, fds: &Fds) -> Vec<String> {
        let mut line = Vec::new();
        let mut option = |name: &str, value: String| line.extend([format!("-{name}"), value]);
        option("accel", "tcg,thread=multi".into());
        option("machine", "q35".into());
        option("cpu", cpu.into());
        option("smp", CPUS.to_string());
        option(
            "m",
            format!("{}M", self.memory_mib.saturating_add(BASE_MEMORY_MIB)),
        );
        option("kernel", vmlinux.display().to_string());
        option("initrd", fds.path(&fds.initramfs));
        option("append", kernel_command_line());
        option("rtc", "base=utc".into());
        option(
            "chardev",
            format!("file,id=console,path={}", fds.path(&fds.console)),
        );
        option("serial", "chardev:console".into());
        option("chardev", format!("socket,id=port,fd={}", fds.port));
        option("device", "virtio-serial-pci".into());
        option(
            "device",
            format!("virtserialport,chardev=port,name={PORT_NAME}"),
        );
        for (n, share) in self.shares.iter().enumerate() {
            let read_only = if share.read_only { ",readonly=on" } else { "" };
            let path = quote(&share.host.display().to_string());
            option(
                "fsdev",
                format!(
                    "local,id=share{n},path={path},security_model=none,multidevs=remap{read_only}"
                ),
            );
            option(
                "device",
                format!("virtio-9p-pci,fsdev=share{n},mount_tag=share{n}"),
            );
        }
        if !self.forwards.is_empty() {
            option("netdev", self.netdev());
            option("device", "virtio-net-pci,netdev=net,romfile=".into());
        }
        line.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from));
        line.extend(["-display", "none", "-monitor", "none"].map(String::from));
        if self.sandbox == Mode::On {
            line.extend(["-sandbox", SANDBOX].map(String::from));
        }
        line
    }

    /// Returns the option of the user network. `restrict=on` allows nothing but the forwards.
    fn netdev(&self) -> String {
        let mut netdev = String::from("user,id=net,restrict=on,ipv6=off");
        for Forward {
            address,
            host_port,
            inner_port,
        } in &self.forwards
        {
            netdev += &format!(",hostfwd=tcp:{address}:{host_port}-{GUEST_ADDRESS}:{inner_port}");
        }
        netdev
    }
}

fn program() -> Result<PathBuf> {
    apt::find_program(QEMU).ok_or_else(qemu_missing)
}

/// Returns what QEMU uses of this host whatever it emulates: itself, its firmware and its libraries.
///
/// # Errors
/// There is none.
pub fn qemu_access() -> Result<Access> {
    let qemu = program()?;
    let mut access = Access::none().write("/dev/null");
    for file in [
        "/dev/urandom",
        "/dev/random",
        "/proc",
        "/sys",
        "/etc/ld.so.cache",
    ] {
        access = access.read(file);
    }
    for folder in ["/usr", "/bin", "/lib", "/lib64"] {
        access = access.execute(folder);
    }
    if let Some(root) = std::env::var_os(kernel::KERNEL_ROOT_VARIABLE) {
        access = access.read(root);
    }
    // In the stores of Nix and Guix, each library is in a folder of its own.
    for store in ["/nix/store", "/gnu/store"] {
        access = access.execute(store);
    }
    let qemu = qemu.canonicalize().unwrap_or(qemu);
    if let Some(prefix) = qemu.parent().and_then(Path::parent) {
        for folder in ["bin", "lib", "libexec", "share"] {
            access = access.execute(prefix.join(folder));
        }
    }
    Ok(access.execute(&qemu))
}

/// Returns the emulated CPU by the value of [`CPU_VARIABLE`]: the name of a model, from which features can be
/// taken away (`max,-avx2`), as on an older host. Other options of QEMU, behind a comma, are refused.
fn cpu(wanted: Option<OsString>) -> Result<String> {
    let Some(name) = wanted else {
        return Ok(CPU.into());
    };
    let name = name.to_string_lossy();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.bytes().all(plain)
    };
    let mut parts = name.split(',');
    let model = parts.next().unwrap_or_default();
    if !is_name(model) || !parts.all(|part| part.strip_prefix('-').is_some_and(is_name)) {
        return Err(HostError::new(format!(
            "{CPU_VARIABLE} is {name:?}, which is not the name of a CPU model, such as max or max,-avx2"
        ))
        .fix(format!("{QEMU} -accel tcg -cpu help")));
    }
    Ok(name.into())
}

/// Returns the error for a host without QEMU.
pub(crate) fn qemu_missing() -> HostError {
    HostError::new(format!(
        "the emulated host needs {QEMU}, which is not installed"
    ))
    .fix(apt::install_command(&[QEMU_PACKAGE]))
}

/// - `panic=-1 oops=panic`: a kernel that is dead, or damaged, ends QEMU (with -no-reboot) and does not
///   go on.
/// - `tsc=reliable`: guests with several vCPUs need a stable TSC, which TCG gives but does not announce.
/// - `no_timer_check`: on a busy host the kernel's check that timer interrupts come in time fails, and
///   it panics.
/// - `maxcpus=1 noreplace-smp`: it boots on one CPU, and init brings the others online when all is set up.
///   Linux patches its own code while it boots, and one emulated CPU may not notice in time that another
///   has changed what it executes (see `last_machine` in [`super::init`]).
/// - `mitigations=off`: an emulated CPU has nothing to mitigate, and every indirect call is dear.
/// - `norandmaps`: a program that lies where it lay before starts sooner, as less of it is translated
///   anew (redis restored to its first answer: 270 ms, 400 without).
fn kernel_command_line() -> String {
    format!(
        "console=ttyS0 loglevel=4 panic=-1 oops=panic maxcpus=1 noreplace-smp tsc=reliable no_timer_check \
         mitigations=off nokaslr norandmaps random.trust_cpu=on rdinit={SELF} -- {INIT_ARGUMENT}"
    )
}

/// Doubles the commas of a value: QEMU's options are separated by commas.
fn quote(value: &str) -> String {
    value.replace(',', ",,")
}

/// Returns whether an ELF64 file asks for a dynamic loader (has a PT_INTERP program header).
fn is_dynamic(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| {
        elf.get(at..at + 2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]) as usize)
    };
    let offset = elf
        .get(32..40)
        .map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()) as usize);
    let (Some(offset), Some(size), Some(count)) = (offset, half(54), half(56)) else {
        return false;
    };
    (0..count).any(|n| {
        let at = offset.saturating_add(n * size);
        elf.get(at..at.saturating_add(4)) == Some(&PT_INTERP.to_le_bytes()[..])
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn line(host: &EmulatedHost) -> String {
        let file = || File::open("/dev/null").unwrap();
        let fds = Fds {
            initramfs: file(),
            console: file(),
            port: 9,
        };
        host.command_line(CPU, Path::new("/k/vmlinux"), &fds)
            .join(" ")
    }

    #[test]
    fn a_cpu_model_is_a_name_without_some_features() {
        assert_eq!(cpu(None).unwrap(), "max");
        for name in ["EPYC-Rome", "Opteron_G5-v1", "max", "max,-avx2,-bmi1"] {
            assert_eq!(cpu(Some(name.into())).unwrap(), name);
        }
        for wrong in [
            "",
            "max,+avx2",
            "max,-",
            "max,,-smp",
            "-smp",
            "EPYC Rome",
            "Épyc",
        ] {
            let error = cpu(Some(wrong.into())).unwrap_err();
            assert!(error.message.contains(CPU_VARIABLE), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn guest_memory_comes_on_top_of_the_emulated_hosts_own() {
        assert!(line(&EmulatedHost::new("/c").memory(512)).contains("-m 1536M"));
    }

    #[test]
    fn there_is_no_network_unless_a_port_is_forwarded() {
        let host = EmulatedHost::new("/c");
        assert!(!line(&host).contains("netdev"));
        let host = host.forward(Ipv4Addr::LOCALHOST, 8080, 80);
        assert!(
            line(&host).contains("restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:8080-10.0.2.15:80")
        );
        assert!(host.modules().contains(&"virtio_net"));
    }

    #[test]
    fn a_comma_in_a_shared_path_does_not_end_the_option() {
        let line = line(&EmulatedHost::new("/c").share("/a,b", "/in", true));
        assert!(
            line.contains("path=/a,,b,security_model=none,multidevs=remap,readonly=on"),
            "{line}"
        );
    }

    #[test]
    fn shares_have_the_same_tags_for_qemu_and_for_init() {
        let host = EmulatedHost::new("/c")
            .share("/a", "/in", true)
            .share("/b", "/out", false);
        let tags: Vec<String> = host
            .description()
            .shares
            .into_iter()
            .map(|mount| mount.tag)
            .collect();
        assert_eq!(tags, ["share0", "share1"]);
        assert!(
            tags.iter()
                .all(|tag| line(&host).contains(&format!("mount_tag={tag}")))
        );
    }

    #[test]
    fn a_program_with_a_dynamic_loader_is_told_from_a_static_one() {
        let mut elf = vec![0; 64 + 56];
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1u16.to_le_bytes());
        elf[64] = 1;
        assert!(!is_dynamic(&elf));
        elf[64] = 3;
        assert!(is_dynamic(&elf));
        assert!(!is_dynamic(b"no ELF"));
    }
}
