//! PID 1 of the emulated host: this program again, started by the kernel with [`INIT_ARGUMENT`].
//!
//! Modules, mounts, network, the job, its exit status, power off. Both tools call
//! [`main_if_requested`] first thing in `main`.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, Timespec};

use smol_machine::cpu::{Cpu, Level, Model};
use smol_machine::hv::{self, HostVcpu, HostVm, Vm};

use super::qemu::PORT_NAME;
use super::wire::{self, FrameKind, HostJob, JobStatus, Mount};
use super::{CHANNEL_VARIABLE, INIT_ARGUMENT, MARKER_VARIABLE, network, pulse};
use crate::child;

/// How long a device may take to appear after its module was loaded.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, String>;
type Port = Arc<Mutex<File>>;

/// Runs the init of an emulated host, and never returns, if this process is one; else returns at
/// once. Call it before anything else in `main`.
pub fn main_if_requested() {
    let requested = std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == INIT_ARGUMENT);
    if !requested || std::process::id() != 1 {
        return;
    }
    let Err(why) = run();
    // Without a port there is the console, whose last lines the host shows.
    smol_cli::print_error(&format!("smol: {why}\n"));
    power_off();
}

fn run() -> Result<Infallible> {
    mount_system()?;
    let text = fs::read("/job.json").map_err(context("cannot read /job.json"))?;
    let job: HostJob = serde_json::from_slice(&text).map_err(|e| format!("/job.json: {e}"))?;
    for module in &job.modules {
        load_module(module)?;
    }
    let port = open_port()?;
    let writer: Port = Arc::new(Mutex::new(
        port.try_clone()
            .map_err(context("cannot duplicate the port"))?,
    ));
    let ready = set_up(&job).and_then(|()| start_cpus());
    // If there is no KVM, the job finds that out.
    let _last = last_machine().ok();
    let (kind, payload) = match ready.and_then(|()| serve(&job, port, &writer)) {
        Ok(status) => (
            FrameKind::Exited,
            serde_json::to_vec(&status).unwrap_or_default(),
        ),
        Err(why) => (FrameKind::Failed, why.into_bytes()),
    };
    unmount(&job.shares);
    send(&writer, kind, &payload).map_err(context("cannot report the end"))?;
    // QEMU may still hold output that the host was too slow to take; with the power it would be
    // lost. So the host switches off, when it has read our last frame.
    loop {
        thread::park();
    }
}

/// Creates a machine that never runs and exists to the end, so that KVM rewrites none of its own code
/// while others are created and dropped.
///
/// Branches in KVM that depend on whether there is any vCPU of some kind are patched when the first
/// one comes and when the last one is gone: whether a local APIC is switched off by software, as that
/// of each new vCPU is, or (with the first machine) whether anybody wants to know of preemption. While
/// it patches, Linux puts a breakpoint over the branch. QEMU can miss the last of these writes if
/// another emulated CPU translates the code just then: that CPU hits the breakpoint for ever, for Linux
/// sees that there is none any more, and tries again.
///
/// With the last machine KVM also leaves the processors' virtualization mode, by interrupts between
/// them, in which emulated ones have been seen to hang.
fn last_machine() -> smol_machine::Result<(HostVm, HostVcpu)> {
    let cpu = Cpu::for_boot(Model::Generic, Level::V2, &hv::host_cpu()?)?;
    let vm = HostVm::new()?;
    vm.create_irqchip(false)?;
    let vcpu = vm.create_vcpu(0, &cpu)?;
    Ok((vm, vcpu))
}

fn mount_system() -> Result<()> {
    let none = MountFlags::empty();
    mount("devtmpfs", "/dev", "devtmpfs", none, "")?;
    mount("proc", "/proc", "proc", none, "")?;
    mount("sysfs", "/sys", "sysfs", none, "")?;
    // Bundles and images may lie in these: the default limit, half of the memory, is too small.
    for dir in ["/tmp", "/run", "/dev/shm"] {
        mount("tmpfs", dir, "tmpfs", none, "size=90%")?;
    }
    Ok(())
}

fn mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<()> {
    fs::create_dir_all(target).map_err(context(format!("cannot create {target}")))?;
    let data = std::ffi::CString::new(data).map_err(|e| e.to_string())?;
    rustix::mount::mount(source, target, kind, flags, data.as_c_str())
        .map_err(|e| format!("cannot mount {source} ({kind}) on {target}: {e}"))
}

fn load_module(path: &str) -> Result<()> {
    let file = File::open(path).map_err(context(format!("cannot open {path}")))?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(format!("cannot load the module {path}: {e}")),
    }
}

/// Finds our virtio-serial port by its name; it appears a moment after its driver.
fn open_port() -> Result<File> {
    let limit = Instant::now() + DEVICE_TIMEOUT;
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT_NAME {
                let path = std::path::Path::new("/dev").join(entry.file_name());
                if let Ok(file) = File::options().read(true).write(true).open(&path) {
                    return Ok(file);
                }
            }
        }
        if Instant::now() > limit {
            return Err(format!("the virtio-serial port {PORT_NAME} did not appear"));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn set_up(job: &HostJob) -> Result<()> {
    // While it boots, each line that it prints takes time. From here on it is silent, or says what one
    // must know.
    let _ = fs::write("/proc/sys/kernel/printk", "7");
    for share in &job.shares {
        mount_share(share)?;
    }
    network::bring_up_loopback().map_err(context("cannot bring up the loopback"))?;
    if job.network {
        network::bring_up_eth0().map_err(context("cannot bring up the network"))?;
    }
    Ok(())
}

/// Starts the other CPUs: Linux has booted on the first one alone.
fn start_cpus() -> Result<()> {
    for entry in fs::read_dir("/sys/devices/system/cpu").map_err(context("cannot list the CPUs"))? {
        let online = entry
            .map_err(context("cannot list the CPUs"))?
            .path()
            .join("online");
        // The first one, and what is no CPU, has no such file.
        if online.exists() {
            fs::write(&online, "1")
                .map_err(context(format!("cannot write to {}", online.display())))?;
        }
    }
    Ok(())
}

/// Mounts a share. `msize` and `cache` are the fastest ones of those measured (docs/measurements.md).
fn mount_share(share: &Mount) -> Result<()> {
    let (flags, cache) = if share.read_only {
        (MountFlags::RDONLY, "loose")
    } else {
        (MountFlags::empty(), "mmap")
    };
    let options = format!("trans=virtio,version=9p2000.L,msize=512000,cache={cache}");
    mount(&share.tag, &share.target, "9p", flags, &options)
}

fn unmount(shares: &[Mount]) {
    rustix::fs::sync();
    for share in shares.iter().rev() {
        let _ = rustix::mount::unmount(share.target.as_str(), UnmountFlags::empty());
    }
}

/// Runs the job to its end; when it returns, all that the job wrote has been sent.
fn serve(job: &HostJob, mut port: File, writer: &Port) -> Result<JobStatus> {
    send(writer, FrameKind::Started, &[]).map_err(context("cannot write to the host"))?;
    set_clock(&mut port)?;
    let beats = writer.clone();
    pulse::begin(job.silence, move |kind, payload| {
        send(&beats, kind, payload)
    })
    .map_err(context(
        "cannot start the threads that show that all is well",
    ))?;
    let (channel, inner) =
        UnixStream::pair().map_err(context("cannot create the job's channel"))?;
    let mut child = start_job(job, inner.into())?;
    let relays = [
        relay(child.stdout.take(), FrameKind::Stdout, writer),
        relay(child.stderr.take(), FrameKind::Stderr, writer),
        relay(channel.try_clone().ok(), FrameKind::Channel, writer),
    ];
    follow_host(port, channel, &child);
    let status = child.wait().map_err(context("cannot wait for the job"))?;
    // What the job left behind would keep the pipes open, and the shares busy.
    kill_all_others();
    for relay in relays.into_iter().flatten() {
        let _ = relay.join();
    }
    Ok(JobStatus {
        code: status.code(),
        signal: status.signal(),
    })
}

/// Kills every process but this one.
fn kill_all_others() {
    // SAFETY: kill touches no memory; -1 means everyone but PID 1 and the caller, which are the same.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Sets the clock to the time of day, with which the host answers [`FrameKind::Started`].
fn set_clock(port: &mut File) -> Result<()> {
    let frame = wire::read_frame(port).map_err(context("cannot read from the host"))?;
    let Some((FrameKind::Clock, payload)) = frame else {
        return Err("the host did not send the time".into());
    };
    let nanoseconds = u64::from_le_bytes(
        payload
            .try_into()
            .map_err(|_| "the host sent an invalid time")?,
    );
    let time = Timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|e| format!("cannot set the clock: {e}"))
}

fn start_job(job: &HostJob, channel: OwnedFd) -> Result<Child> {
    let (program, arguments) = job.argv.split_first().ok_or("there is no job to run")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(&job.cwd)
        .process_group(0);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root");
    command.envs(job.env.iter().cloned());
    let fd = channel.as_raw_fd();
    command
        .env(MARKER_VARIABLE, "1")
        .env(CHANNEL_VARIABLE, fd.to_string());
    let cpus = cpus_for_guests().map_err(context("cannot choose CPUs for the job"))?;
    child::inherit(&mut command, &[fd]);
    // SAFETY: between fork and exec only sched_setaffinity(2) is called, which is async-signal-safe.
    unsafe { command.pre_exec(move || Ok(sched_setaffinity(None, &cpus)?)) };
    command
        .spawn()
        .map_err(context(format!("cannot run {program}")))
}

/// Returns all CPUs but the first, on which no guest may run (see `CPUS` of the command line).
fn cpus_for_guests() -> io::Result<CpuSet> {
    let mut cpus = sched_getaffinity(None)?;
    cpus.unset(0);
    match cpus.count() {
        0 => Err(io::Error::other("only the first one is there")),
        _ => Ok(cpus),
    }
}

/// Sends everything readable from `from` as frames of `kind`, on a thread of its own.
fn relay(
    from: Option<impl Read + Send + 'static>,
    kind: FrameKind,
    to: &Port,
) -> Option<thread::JoinHandle<()>> {
    let (mut from, to) = (from?, to.clone());
    Some(thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(got @ 1..) = from.read(&mut buffer) {
            if send(&to, kind, &buffer[..got]).is_err() {
                break;
            }
        }
    }))
}

/// Follows the host's requests, on a thread of its own. Switches off if the host is gone.
fn follow_host(mut port: File, mut channel: UnixStream, child: &Child) {
    let group = Pid::from_raw(child.id() as i32);
    thread::spawn(move || {
        while let Ok(Some((kind, payload))) = wire::read_frame(&mut port) {
            match kind {
                FrameKind::Stop => drop(
                    group.map(|group| rustix::process::kill_process_group(group, Signal::TERM)),
                ),
                FrameKind::Channel => drop(io::Write::write_all(&mut channel, &payload)),
                _ => {}
            }
        }
        power_off();
    });
}

fn send(port: &Port, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    let mut port = port.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    wire::write_frame(&mut *port, kind, payload)
}

fn power_off() -> ! {
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    // Should that fail, PID 1's exit makes the kernel panic, which ends QEMU as well.
    std::process::exit(1);
}

fn context(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> String {
    move |e| format!("{what}: {e}")
}
