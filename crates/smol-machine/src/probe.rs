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

use std::arch::global_asm;
use std::fs::File;
use std::os::unix::thread::JoinHandleExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

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
    /// The device is there and we may not open it.
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
    /// KVM is there and an ordinary kernel does not run in it.
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
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])
        .map_err(|e| failed("allocating memory", e))?;
    load_guest(&memory).map_err(|e| failed("loading the probe guest", e))?;
    let vcpu = create_vcpu(&kvm, &memory)?;
    run_bounded(vcpu, memory)
}

fn failed(what: impl Into<String>, detail: impl std::fmt::Display) -> ProbeError {
    ProbeError::Failed {
        what: what.into(),
        detail: detail.to_string(),
    }
}

// ---- The guest -------------------------------------------------------------------------------

// Memory map of the guest (guest-physical = linear; one 2 MiB page identity-mapped).
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
/// Pointers for lgdt and lidt, 16 bytes apart; then, 16-aligned, the operand of cmpxchg16b.
const DATA: u64 = 0x6000;
const STACK_TOP: u64 = 0x8000;
const CODE: u64 = 0x8000;
const MEMORY_SIZE: usize = 0x10000;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const VECTOR_BREAKPOINT: u64 = 3;
const VECTOR_PAGE_FAULT: u64 = 14;

/// Where the guest writes the number of the step it begins, or how it ended.
const PORT: u16 = 0x80;
const STEPS: [&str; 6] = [
    "loading descriptor tables",
    "executing cpuid",
    "reading and writing MSRs",
    "taking a breakpoint exception (int3)",
    "taking a page fault",
    "executing lock cmpxchg16b",
];
const SUCCESS: u8 = 0xff;
/// A step went through and its result was wrong.
const WRONG: u8 = 0xfe;

// Entered in long mode at CPL 0 with rdi = DATA. Position-independent, copied to CODE.
global_asm!(
    ".pushsection .rodata.smol_probe, \"a\", @progbits",
    ".globl smol_probe_start, smol_probe_breakpoint, smol_probe_page_fault, smol_probe_end",
    "smol_probe_start:",
    // Step 0: our own descriptor tables, all segments, and the page tables anew.
    "   mov al, 0",
    "   out 0x80, al",
    "   lgdt [rdi]",
    "   lidt [rdi + 16]",
    "   push 0x08",
    "   lea rax, [rip + 20f]",
    "   push rax",
    "   .byte 0x48, 0xcb", // retfq
    "20: mov eax, 0x10",
    "   mov ss, eax",
    "   mov ds, eax",
    "   mov es, eax",
    "   mov rax, cr3",
    "   mov cr3, rax",
    // Step 1: cpuid must know 64-bit mode (0x80000001: edx bit 29).
    "   mov al, 1",
    "   out 0x80, al",
    "   mov eax, 0x80000001",
    "   cpuid",
    "   bt edx, 29",
    "   jnc 90f",
    // Step 2: EFER must read as long mode (bit 10), and GS_BASE hold what is written to it.
    "   mov al, 2",
    "   out 0x80, al",
    "   mov ecx, 0xc0000080",
    "   rdmsr",
    "   bt eax, 10",
    "   jnc 90f",
    "   wrmsr",
    "   mov ecx, 0xc0000101",
    "   mov eax, 0x12345678",
    "   mov edx, 0x00007abc",
    "   wrmsr",
    "   xor eax, eax",
    "   xor edx, edx",
    "   rdmsr",
    "   cmp eax, 0x12345678",
    "   jne 90f",
    "   cmp edx, 0x00007abc",
    "   jne 90f",
    // Step 3: the handler puts 3 into r8.
    "   mov al, 3",
    "   out 0x80, al",
    "   xor r8d, r8d",
    "   int3",
    "   cmp r8d, 3",
    "   jne 90f",
    // Step 4: 1 GiB is not mapped. The handler takes CR2 into r9 and returns to r10.
    "   mov al, 4",
    "   out 0x80, al",
    "   xor r9d, r9d",
    "   lea r10, [rip + 40f]",
    "   mov esi, 0x40000000",
    "   mov byte ptr [rsi], 1",
    "40: cmp r9, rsi",
    "   jne 90f",
    // Step 5: 0:0 -> rcx:rbx = 2:1.
    "   mov al, 5",
    "   out 0x80, al",
    "   xor eax, eax",
    "   xor edx, edx",
    "   mov ebx, 1",
    "   mov ecx, 2",
    "   lock cmpxchg16b [rdi + 32]",
    "   jne 90f",
    "   cmp qword ptr [rdi + 40], 2",
    "   jne 90f",
    "   mov al, 0xff",
    "   out 0x80, al",
    "80: hlt",
    "   jmp 80b",
    "90: mov al, 0xfe",
    "   out 0x80, al",
    "   jmp 80b",
    "smol_probe_breakpoint:",
    "   mov r8d, 3",
    "   iretq",
    "smol_probe_page_fault:",
    "   mov r9, cr2",
    "   add rsp, 8",     // the error code
    "   mov [rsp], r10", // where to go on
    "   iretq",
    "smol_probe_end:",
    ".popsection",
);

unsafe extern "C" {
    safe static smol_probe_start: u8;
    safe static smol_probe_breakpoint: u8;
    safe static smol_probe_page_fault: u8;
    safe static smol_probe_end: u8;
}

/// The guest's code, and the offsets of its handlers of #BP and #PF.
fn guest_code() -> (&'static [u8], u64, u64) {
    let start = &raw const smol_probe_start;
    let offset = |label: *const u8| label as u64 - start as u64;
    let length = offset(&raw const smol_probe_end) as usize;
    // SAFETY: the assembler laid `length` bytes of read-only data between these two labels.
    let code = unsafe { std::slice::from_raw_parts(start, length) };
    (
        code,
        offset(&raw const smol_probe_breakpoint),
        offset(&raw const smol_probe_page_fault),
    )
}

/// Writes code and tables (formats: Intel SDM volume 3, chapters 3 to 6).
fn load_guest(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE_PAGE: u64 = 0x80;
    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    put(PML4, PDPT | PRESENT_WRITABLE)?;
    put(PDPT, PD | PRESENT_WRITABLE)?;
    put(PD, LARGE_PAGE | PRESENT_WRITABLE)?;

    put(GDT + u64::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff)?; // 64-bit code, present, accessed
    put(GDT + u64::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff)?; // data, writable, present, accessed

    let (code, breakpoint, page_fault) = guest_code();
    memory.write_slice(code, GuestAddress(CODE))?;
    for (vector, offset) in [
        (VECTOR_BREAKPOINT, breakpoint),
        (VECTOR_PAGE_FAULT, page_fault),
    ] {
        let handler = CODE + offset; // below 64 KiB: the higher parts of the offset are 0
        put(
            IDT + vector * 16,
            handler | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32,
        )?; // interrupt gate, DPL 0
    }
    for (at, table, size) in [(DATA, GDT, 24u16), (DATA + 16, IDT, 16 * 16)] {
        memory.write_obj(size - 1, GuestAddress(at))?;
        put(at + 2, table)?;
    }
    Ok(())
}

// ---- The host --------------------------------------------------------------------------------

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
        memory_size: MEMORY_SIZE as u64,
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
    enter_long_mode(&vcpu).map_err(|e| failed("setting the vCPU's registers", e))?;
    Ok(vcpu)
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
    const CR4_PAE: u64 = 0x20;
    const EFER_LME_LMA: u64 = 0x500;
    const RFLAGS_RESERVED: u64 = 2;
    let mut sregs = vcpu.get_sregs()?;
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3,
        db: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE;
    regs.rsp = STACK_TOP;
    regs.rdi = DATA;
    regs.rflags = RFLAGS_RESERVED;
    vcpu.set_regs(&regs)
}

/// Runs the guest on a thread of its own, which is interrupted when the time is over.
fn run_bounded(mut vcpu: VcpuFd, memory: GuestMemoryMmap) -> Result<(), ProbeError> {
    let expired = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    install_kick_handler()?;
    let runner = thread::Builder::new().name("kvm-probe".into()).spawn({
        let expired = expired.clone();
        move || {
            let result = run(&mut vcpu, &expired);
            drop((vcpu, memory)); // in this order: the memory outlives the machine
            let _ = sender.send(result);
        }
    });
    let runner = runner.map_err(|e| failed("starting a thread", e))?;
    if let Ok(result) = receiver.recv_timeout(TIME_LIMIT) {
        return result;
    }
    expired.store(true, Ordering::SeqCst);
    let give_up = Instant::now() + GRACE;
    while Instant::now() < give_up {
        // SAFETY: the thread was not joined and its handle lives: the id is valid.
        unsafe { libc::pthread_kill(runner.as_pthread_t(), kick_signal()) };
        // A signal that comes just before KVM_RUN is lost, so it is sent again.
        if let Ok(result) = receiver.recv_timeout(Duration::from_millis(5)) {
            return result;
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
            Ok(VcpuExit::IoOut(PORT, &[SUCCESS])) => return Ok(()),
            Ok(VcpuExit::IoOut(PORT, &[WRONG])) => return Err(failed(what, "the result is wrong")),
            Ok(VcpuExit::IoOut(PORT, &[step])) if usize::from(step) < STEPS.len() => {
                what = STEPS[usize::from(step)].to_owned();
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

/// The signal that interrupts KVM_RUN, the same as the machine's.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn install_kick_handler() -> Result<(), ProbeError> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(kick_signal(), nothing)
        .map_err(|e| failed("installing a signal handler", e))
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
    fn the_guest_fits_where_it_is_loaded() {
        let (code, breakpoint, page_fault) = guest_code();
        assert!(CODE as usize + code.len() <= MEMORY_SIZE);
        assert_eq!(code[breakpoint as usize], 0x41); // a REX prefix: mov r8d
        assert!(breakpoint < page_fault && (page_fault as usize) < code.len());
    }

    #[test]
    fn the_probe_ends_whatever_the_host_is() {
        if let Err(e) = probe() {
            assert!(!e.to_string().is_empty());
            println!("{e}");
        }
    }
}
