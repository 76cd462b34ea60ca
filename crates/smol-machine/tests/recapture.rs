//! A machine that was built on virtual time is restored on the host's clock, captured again there,
//! and restored once more. Its kernel is of a hundred bytes, which even a software KVM runs.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use smol_machine::config::{Clock, MachineConfig};
use smol_machine::cpu::{Level, Model};
use smol_machine::machine::{Hooks, RestoreConfig};
use smol_machine::paravirt::{Paravirt, Phase};
use smol_machine::{Machine, MachineState, Stop, StopHandle, memory, probe};
use smol_testing::left_out;

const MEMORY: u64 = 32 << 20;
const ENTRY: u64 = 0x10_0000;
const TSC: u32 = 0x10;

/// Prints `B` and a line feed; then in a loop the phase, whether the TSC has grown since the last
/// time (`+`, else `-`), and a line feed.
fn kernel() -> Vec<u8> {
    let print = |byte| [0x66, 0xba, 0xf8, 0x03, 0xb0, byte, 0xee]; // mov dx, 0x3f8; mov al, byte; out dx, al
    let print_al = [0x66, 0xba, 0xf8, 0x03, 0xee]; // mov dx, 0x3f8; out dx, al
    let mut code = print(b'B').to_vec();
    code.extend([0x31, 0xdb]); // xor ebx, ebx
    code.extend(print(b'\n'));
    let again = code.len();
    code.extend([0x66, 0xba, 0x34, 0x05, 0xed, 0x04, b'0']); // mov dx, 0x534; in eax, dx; add al, '0'
    code.extend(print_al);
    code.extend([0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0]); // rdtsc; shl rdx, 32; or rax, rdx
    code.extend([0x48, 0x39, 0xd8, 0x48, 0x89, 0xc3]); // cmp rax, rbx; mov rbx, rax
    code.extend([0xb0, b'+', 0x77, 2, 0xb0, b'-']); // mov al, '+'; ja over; mov al, '-'
    code.extend(print_al);
    code.extend(print(b'\n'));
    let back = again.wrapping_sub(code.len() + 2) as u8;
    code.extend([0xeb, back]); // jmp again
    image(&code)
}

/// An ELF64 executable of one segment.
fn image(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let shorts = |s: &[u16]| s.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<_>>();
    let words = |w: &[u32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
    let quads = |q: &[u64]| q.iter().flat_map(|q| q.to_le_bytes()).collect::<Vec<_>>();
    let len = code.len() as u64;
    [
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        shorts(&[2, 62]), // ET_EXEC, EM_X86_64
        words(&[1]),
        quads(&[ENTRY, 64, 0]),
        words(&[0]),
        shorts(&[64, 56, 1, 64, 0, 0]),
        words(&[1, 5]), // PT_LOAD, readable and executable
        quads(&[HEADERS, ENTRY, ENTRY, len, len, 4]),
        code.to_vec(),
    ]
    .concat()
}

/// Stops its machine for a snapshot at the end of each line.
#[derive(Clone, Default)]
struct Console {
    text: Arc<Mutex<String>>,
    handle: Arc<Mutex<Option<StopHandle>>>,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text
            .lock()
            .unwrap()
            .push_str(&String::from_utf8_lossy(bytes));
        if bytes.contains(&b'\n')
            && let Some(handle) = &*self.handle.lock().unwrap()
        {
            handle.request(Stop::Snapshot);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Console {
    fn hooks(&self) -> Hooks {
        Hooks {
            console: Box::new(std::io::sink()),
            serial: Box::new(self.clone()),
            vsock: None,
        }
    }

    /// Runs the machine to its next stop, and returns what it printed.
    fn run(&self, machine: &mut Machine) -> String {
        *self.handle.lock().unwrap() = Some(machine.stop_handle());
        assert_eq!(machine.run().unwrap(), Stop::Snapshot);
        std::mem::take(&mut self.text.lock().unwrap())
    }
}

fn boot(dir: &Path, vcpus: u8, console: &Console) -> Machine {
    let path = dir.join("kernel");
    std::fs::write(&path, kernel()).unwrap();
    let config = MachineConfig {
        vcpus,
        cpu: Level::V2,
        memory: MEMORY,
        kernel: path,
        initramfs: None,
        cmdline: String::new(),
        rootfs: None,
        clock: Clock::Host,
        seed: [0; 32],
        kernel_seed: [0; 32],
    };
    Machine::boot(&config, console.hooks()).unwrap()
}

/// Makes the state of a machine that booted on the host's clock that of one that was built on
/// virtual time: few software KVMs have the CPU that a build asks for.
fn as_built(mut state: MachineState) -> MachineState {
    state.cpu.model = Model::SmolWithoutTsc;
    state.timers = None;
    state.vcpus[0]
        .msrs
        .retain(|msr| ![TSC, 0x6e0, 0x4b56_4d00, 0x4b56_4d01].contains(&msr.index));
    state.paravirt = Some(Paravirt::building(1_000).save());
    state
}

/// Captures the machine; its state goes by way of JSON, as in a bundle.
fn freeze(machine: &mut Machine, memory: PathBuf) -> (MachineState, RestoreConfig) {
    let json = machine.capture().unwrap().to_json();
    memory::write_image(machine.ram(), &File::create(&memory).unwrap()).unwrap();
    let config = RestoreConfig {
        memory,
        rootfs: None,
        memory_first: Vec::new(),
        rootfs_first: Vec::new(),
    };
    (MachineState::from_json(&json).unwrap(), config)
}

fn tsc(state: &MachineState) -> Option<u64> {
    let msrs = &state.vcpus[0].msrs;
    msrs.iter()
        .find(|msr| msr.index == TSC)
        .map(|msr| msr.value)
}

#[test]
fn a_machine_that_was_restored_from_a_build_can_be_captured_again_and_goes_on_with_its_tsc() {
    if let Err(e) = probe::open(Path::new(probe::DEVICE)) {
        return left_out(e);
    }
    let dir = tempfile::tempdir().unwrap();
    for vcpus in [1, 2] {
        let console = Console::default();
        let mut machine = boot(dir.path(), vcpus, &console);
        assert_eq!(console.run(&mut machine), "B\n");
        let (booted, image) = freeze(&mut machine, dir.path().join("built"));
        let built = as_built(booted);
        assert_eq!(built.phase(), Phase::Virtual);

        let mut live = Machine::restore(&image, &built, console.hooks()).unwrap();
        assert_eq!(console.run(&mut live), "1+\n");
        let (captured, image) = freeze(&mut live, dir.path().join("live"));
        assert_eq!(captured.phase(), Phase::Host);
        assert_eq!(captured.cpu, built.cpu);
        assert!(tsc(&captured).is_some_and(|tsc| tsc > 0));

        // The one that was captured goes on, and so do any number of restored ones.
        assert_eq!(console.run(&mut live), "1+\n");
        for _ in 0..2 {
            let mut restored = Machine::restore(&image, &captured, console.hooks()).unwrap();
            assert_eq!(console.run(&mut restored), "1+\n");
            let again = restored.capture().unwrap();
            assert_eq!(again.phase(), Phase::Host);
            assert!(tsc(&again) > tsc(&captured));
        }
    }
}
