//! Finds out by trying whether this host's KVM runs a real kernel.
//!
//! That /dev/kvm opens says little: a software KVM opens too, creates machines and runs simple
//! code, and an ordinary kernel dies in its instruction emulator. So a tiny guest does, at CPL 0 in
//! long mode, what every kernel does early: it loads its own descriptor tables and page table
//! base, reads and writes MSRs, takes an exception through its IDT and returns from it, faults on
//! an unmapped page, and swaps 16 bytes atomically. Before each step it names the step on an I/O
//! port, so that a failure can be named.
//!
//! On real KVM it takes below 10 ms, most of it the creation of the machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::KvmKicker;
use super::arch::probe as guest;
use crate::hv::Kicker;

/// The device of KVM.
pub const DEVICE: &str = "/dev/kvm";

/// How long the probe guest may run; it needs milliseconds, on a host that is not busy.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest out of time may ignore signals before its thread is given up.
const GRACE: Duration = Duration::from_secs(1);
/// More exits than the guest makes when all is well.
const EXIT_LIMIT: usize = 64;

/// Why this host's KVM cannot be used.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// There is no KVM: no device, or a kernel without it behind it.
    #[error("there is no {DEVICE}")]
    NoDevice,
    /// The device exists and we may not open it.
    #[error("no permission to open {}", path.display())]
    Permission {
        /// The device.
        path: PathBuf,
    },
    /// Not the stable API.
    #[error("KVM speaks API version {found}, not {KVM_API_VERSION}")]
    ApiVersion {
        /// What KVM_GET_API_VERSION returned.
        found: i32,
    },
    /// There is a KVM and an ordinary kernel does not run in it.
    #[error("KVM here cannot run an ordinary kernel: {what}: {detail}")]
    Failed {
        /// The step of the probe that failed.
        what: String,
        /// What the host said.
        detail: String,
    },
}

/// Opens `path` (ordinarily [`DEVICE`]) and checks the API version: the part of the probe that
/// even a software KVM passes.
///
/// # Errors
/// All of [`ProbeError`], `Failed` only for unexpected errors of opening.
pub fn open(path: &Path) -> Result<Kvm, ProbeError> {
    use std::io::ErrorKind;
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| match (e.kind(), e.raw_os_error()) {
            (ErrorKind::NotFound, _) | (_, Some(libc::ENXIO | libc::ENODEV)) => {
                ProbeError::NoDevice
            }
            (ErrorKind::PermissionDenied, _) => ProbeError::Permission {
                path: path.to_owned(),
            },
            _ => failed(format!("opening {}", path.display()), e),
        })?;
    // SAFETY: the descriptor is open, ours, and given away here. That it is KVM's is found out by
    // the version request below, which any other device refuses.
    let kvm = unsafe {
        <Kvm as std::os::fd::FromRawFd>::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(file))
    };
    match kvm.get_api_version() {
        found if found == KVM_API_VERSION as i32 => Ok(kvm),
        found => Err(ProbeError::ApiVersion { found }),
    }
}

/// Tries whether this host's KVM runs a real kernel. Takes at most a few seconds.
///
/// # Errors
/// Why not; see [`ProbeError`].
pub fn probe() -> Result<(), ProbeError> {
    let kvm = open(Path::new(DEVICE))?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), guest::MEMORY_SIZE)])
        .map_err(|e| failed("allocating memory", e))?;
    guest::load(&memory).map_err(|e| failed("loading the probe guest", e))?;
    let vcpu = create_vcpu(&kvm, &memory)?;
    run_bounded(vcpu, memory)
}

fn failed(what: impl Into<String>, detail: impl std::fmt::Display) -> ProbeError {
    ProbeError::Failed {
        what: what.into(),
        detail: detail.to_string(),
    }
}

fn create_vcpu(kvm: &Kvm, memory: &GuestMemoryMmap) -> Result<VcpuFd, ProbeError> {
    let vm = kvm
        .create_vm()
        .map_err(|e| failed("creating a machine", e))?;
    let host_address = memory
        .get_host_address(GuestAddress(0))
        .map_err(|e| failed("allocating memory", e))? as u64;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: guest::MEMORY_SIZE as u64,
        userspace_addr: host_address,
    };
    // SAFETY: the region is mapped memory of this size; it moves with the vCPU to the thread that
    // runs it and is unmapped only when that thread has ended.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|e| failed("giving the machine memory", e))?;
    let vcpu = vm
        .create_vcpu(0)
        .map_err(|e| failed("creating a vCPU", e))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| failed("asking for the CPU's features", e))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(|e| failed("setting the CPU's features", e))?;
    guest::enter(&vcpu).map_err(|e| failed("setting the vCPU's registers", e))?;
    Ok(vcpu)
}

/// Runs the guest on a thread of its own, which is kicked when the time is over.
fn run_bounded(mut vcpu: VcpuFd, memory: GuestMemoryMmap) -> Result<(), ProbeError> {
    let expired = Arc::new(AtomicBool::new(false));
    let (kickers, kicker) = mpsc::channel();
    let (results, result) = mpsc::channel();
    let runner = thread::Builder::new().name("kvm-probe".into()).spawn({
        let expired = expired.clone();
        move || {
            let outcome = KvmKicker::of_this_thread()
                .map_err(|e| failed("installing a signal handler", e))
                .and_then(|kicker| {
                    let _ = kickers.send(kicker);
                    run(&mut vcpu, &expired)
                });
            drop((vcpu, memory)); // in this order: the memory outlives the machine
            let _ = results.send(outcome);
        }
    });
    runner.map_err(|e| failed("starting a thread", e))?;
    if let Ok(outcome) = result.recv_timeout(TIME_LIMIT) {
        return outcome;
    }
    expired.store(true, Ordering::SeqCst);
    let kicker = kicker.try_recv().ok();
    let give_up = Instant::now() + GRACE;
    while Instant::now() < give_up {
        kicker.iter().for_each(KvmKicker::kick);
        // A kick that comes just before KVM_RUN is lost, so it is repeated.
        if let Ok(outcome) = result.recv_timeout(Duration::from_millis(5)) {
            return outcome;
        }
    }
    Err(failed("running the probe guest", "it does not stop"))
}

fn run(vcpu: &mut VcpuFd, expired: &AtomicBool) -> Result<(), ProbeError> {
    let mut what = "starting a vCPU".to_owned();
    for _ in 0..EXIT_LIMIT {
        if expired.load(Ordering::SeqCst) {
            return Err(failed(
                what,
                format!("not done within {} s", TIME_LIMIT.as_secs()),
            ));
        }
        match vcpu.run() {
            Ok(VcpuExit::IoOut(guest::PORT, &[guest::SUCCESS])) => return Ok(()),
            Ok(VcpuExit::IoOut(guest::PORT, &[guest::WRONG])) => {
                return Err(failed(what, "the result is wrong"));
            }
            Ok(VcpuExit::IoOut(guest::PORT, &[step])) if usize::from(step) < guest::STEPS.len() => {
                what = guest::STEPS[usize::from(step)].to_owned();
            }
            Ok(VcpuExit::Shutdown) => return Err(failed(what, "triple fault")),
            Ok(VcpuExit::InternalError) => {
                return Err(failed(what, "KVM's instruction emulator gave up"));
            }
            Ok(exit) => return Err(failed(what, format!("unexpected exit {exit:?}"))),
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(failed(what, e)),
        }
    }
    Err(failed(what, format!("no end after {EXIT_LIMIT} exits")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_device_has_no_kvm() {
        assert!(matches!(
            open(Path::new("/nonexistent/kvm")),
            Err(ProbeError::NoDevice)
        ));
    }

    #[test]
    fn a_device_that_is_not_kvm_fails_by_its_version() {
        assert!(matches!(
            open(Path::new("/dev/null")),
            Err(ProbeError::ApiVersion { found: -1 })
        ));
    }

    #[test]
    fn the_probe_ends_whatever_the_host_is() {
        if let Err(e) = probe() {
            assert!(!e.to_string().is_empty());
            println!("{e}");
        }
    }
}
