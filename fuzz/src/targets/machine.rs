//! What a bundle gives the monitor besides its frames: the machine's state, and a kernel for a cold
//! boot.

use std::path::Path;

use smol_machine::boot::{Entry, is_smol_kernel, place_kernel};
use smol_machine::cpu::{Cpu, Features, Level, Model};
use smol_machine::devices::Slot;
use smol_machine::devices::virtio::{DeviceState, QueueState, TransportState};
use smol_machine::fuzz::{Board, load};
use smol_machine::hv::Address;
use smol_machine::layout;
use smol_machine::paravirt::Paravirt;
use smol_machine::state::{MachineState, VERSION};
use vm_memory::GuestMemoryBackend;

use super::devices::bend;
use crate::files::MemoryFile;
use crate::input::{Numbers, join, parts};

/// RAM of the machines of these targets, bytes.
const MEMORY: u64 = 32 << 20;
/// Most changes to a state.
const MOST_CHANGES: usize = 1000;

/// A state as JSON, then accesses of the guest. Numbers of the state are changed by the second part,
/// its RAM is made a small one.
///
/// Holds: what is accepted is written as the same; after a restore every access of the guest is
/// answered, and the devices can be captured and restored again.
pub fn state(data: &[u8]) -> bool {
    let parts = parts(data, 3);
    let mut changes = Numbers::new(parts.get(1).copied().unwrap_or_default());
    let building = changes.u8() & 1 == 1;
    let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(parts[0]) else {
        return MachineState::from_json(parts[0]).is_ok();
    };
    // Not all values take a number to be changed.
    for _ in 0..MOST_CHANGES {
        if changes.is_empty() {
            break;
        }
        bend(&mut json, &mut changes);
    }
    let text = serde_json::to_vec(&json).expect("it was JSON");
    let Ok(mut state) = MachineState::from_json(&text) else {
        return false;
    };
    assert_eq!(
        MachineState::from_json(&state.to_json()).as_ref().ok(),
        Some(&state)
    );
    if state.memory > 1 << 30 {
        state.memory = MEMORY;
    }
    let Ok(board) = Board::restore(&state, building) else {
        return false;
    };
    let accesses = parts.get(2).copied().unwrap_or_default();
    run(&board, &mut Numbers::new(accesses));
    state.devices = board.save();
    let again = Board::restore(&state, building).map(|board| board.save());
    assert!(again.is_ok(), "what was captured is restored");
    true
}

fn run(board: &Board, numbers: &mut Numbers<'_>) {
    for _ in 0..300 {
        if numbers.is_empty() {
            break;
        }
        let at = match numbers.below(4) {
            0 => {
                Address::Port(numbers.pick(&[0x3f8, 0x3fb, 0x3fc, 0x64, 0x60, 0x500, 0x504, 0x510]))
            }
            1 => Address::Port(numbers.u16()),
            2 => {
                let offset =
                    numbers.pick(&[0, 0x14, 0x24, 0x30, 0x44, 0x50, 0x64, 0x70, 0x80, 0x100]);
                Address::Memory(numbers.pick(&Slot::ALL).gpa() + offset)
            }
            _ => Address::Memory(numbers.number()),
        };
        if numbers.below(2) == 0 {
            board.write(at, &(numbers.number() as u32).to_le_bytes());
        } else {
            let mut bytes = [0; 8];
            board.read(at, &mut bytes[..1 << numbers.below(4)]);
        }
    }
}

/// A kernel, then an initramfs and a command line.
///
/// Holds: a kernel is moved to where its seed says, whatever it was moved by before, and back to
/// where it was; what is loaded is entered within RAM.
pub fn kernel(data: &[u8]) -> bool {
    let parts = parts(data, 3);
    let image = MemoryFile::new(parts[0]);
    let _ = is_smol_kernel(image.path());
    if let Ok(Some(placed)) = place_kernel(image.path(), "", &[1; 32]) {
        assert_eq!(placed.len(), parts[0].len());
        let back = move_to(&placed, [0; 32], "nokaslr");
        if let Some(back) = &back {
            assert_eq!(
                move_to(back, [1; 32], "").as_ref(),
                Some(&placed),
                "the way is the same"
            );
        }
    }
    let initramfs = MemoryFile::new(parts.get(1).copied().unwrap_or_default());
    let cmdline = String::from_utf8_lossy(parts.get(2).copied().unwrap_or_default());
    let initramfs = (parts.len() > 1).then(|| initramfs.path().to_owned());
    let loaded = load(image.path().to_owned(), initramfs, MEMORY, &cmdline);
    let Ok((entry, ram)) = loaded else {
        return false;
    };
    let info = match entry {
        Entry::Linux64 { boot_params, .. } => boot_params,
        Entry::Pvh { start_info, .. } => start_info,
    };
    assert!(ram.find_region(vm_memory::GuestAddress(info)).is_some());
    true
}

fn move_to(image: &[u8], seed: [u8; 32], cmdline: &str) -> Option<Vec<u8>> {
    let file = MemoryFile::new(image);
    place_kernel(Path::new(file.path()), cmdline, &seed).ok()?
}

fn transport(device_id: u32, queues: &[u16], device: DeviceState) -> TransportState {
    let queue = |(n, size): (u64, &u16)| QueueState {
        size: *size,
        ready: true,
        desc: 0x1_0000 + n * 0x1_0000,
        avail: 0x1_4000 + n * 0x1_0000,
        used: 0x1_8000 + n * 0x1_0000,
        next_avail: 3,
        next_used: 3,
        event_idx: true,
    };
    TransportState {
        device_id,
        status: 15,
        features: 1 << 32 | 1 << 29,
        device_features_sel: 0,
        driver_features_sel: 1,
        queue_sel: 0,
        interrupt_status: 0,
        config_generation: 0,
        queues: (0..).zip(queues).map(queue).collect(),
        device,
    }
}

/// A state with all devices, of which only the console and the vsock are set up by a driver.
pub fn sample_state() -> MachineState {
    let pmem = 2 << 20;
    let vcpu = serde_json::json!({
        "regs": zeros("rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"),
        "system": system(),
        "fxsave": "00".repeat(512),
        "debug": [0, 0, 0, 0, 0xffff_0ff0u32, 0x400],
        "msrs": [{"index": 0x277, "value": 0}, {"index": 0xc000_0082u32, "value": 1}],
        "events": {"exception": null, "interrupt": [32, false], "interrupt_shadow": 0,
            "nmi": [false, false, false]},
        "lapic": "00".repeat(1024),
        "halted": true,
    });
    let pic = zeros(
        "last_irr irr imr isr priority_add irq_base read_reg_select poll special_mask init_state \
         auto_eoi rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask",
    );
    let irqchip = serde_json::json!({
        "pics": [pic, pic],
        "ioapic": {"base_address": layout::IOAPIC, "ioregsel": 0, "id": 0, "irr": 0,
            "redirection": vec![0x1_0000; 24]},
    });
    let typed = "a state of the right form";
    MachineState {
        version: VERSION,
        arch: std::env::consts::ARCH.to_owned(),
        memory: MEMORY,
        possible_vcpus: 2,
        pmem,
        cpu: Cpu {
            model: Model::SmolWithoutTsc,
            features: Features::of(Level::V2),
        },
        vcpus: vec![serde_json::from_value(vcpu).expect(typed)],
        irqchip: serde_json::from_value(irqchip).expect(typed),
        timers: None,
        paravirt: Some(Paravirt::building(7).save()),
        devices: vec![
            Some(transport(3, &[16, 16], DeviceState::Console {})),
            Some(transport(
                27,
                &[32],
                DeviceState::Pmem {
                    start: layout::pmem_gpa(MEMORY),
                    size: pmem,
                },
            )),
            Some(transport(
                19,
                &[128, 128, 16],
                DeviceState::Vsock { guest_cid: 3 },
            )),
            Some(transport(4, &[8], DeviceState::Rng {})),
        ],
    }
}

fn zeros(names: &str) -> serde_json::Value {
    let fields = names
        .split_whitespace()
        .map(|name| (name.to_owned(), 0.into()));
    serde_json::Value::Object(fields.collect())
}

fn system() -> serde_json::Value {
    let mut system = zeros("cr0 cr2 cr3 cr4 cr8 efer apic_base");
    for name in ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"] {
        system[name] = zeros("selector base limit attributes");
    }
    for name in ["gdt", "idt"] {
        system[name] = zeros("base limit");
    }
    system
}

/// The sample, with changes and accesses.
pub fn state_seeds() -> Vec<Vec<u8>> {
    let json = sample_state().to_json();
    let accesses: Vec<u8> = (0..60).flat_map(|n| [n, n / 2, n, 0, 4 * n, 2]).collect();
    vec![
        join(&[&json, &[0], &accesses]),
        join(&[&json, &[1], &accesses]),
        join(&[&json, &[1, 10, 2, 3, 4, 40], &accesses]),
    ]
}

/// A kernel with a note of each kind and a table of relocations, as a small ELF file.
fn elf(smol: bool) -> Vec<u8> {
    const NOTES: u64 = 0x100;
    const TEXT: u64 = 0x200;
    const NAMES: u64 = 0x280;
    const TABLE: u64 = 0x300;
    const SECTIONS: usize = 0x340;
    let mut image = vec![0; SECTIONS + 3 * 64];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]); // an executable of x86-64
    put(24, &(16u64 << 20).to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(40, &(SECTIONS as u64).to_le_bytes());
    for (at, value) in [(52, 64u16), (54, 56), (56, 2), (58, 64), (60, 3), (62, 1)] {
        put(at, &value.to_le_bytes());
    }
    let segments = [(1u32, TEXT, 16u64 << 20, 0x80u64), (4, NOTES, 0, 0x40)];
    for (n, (kind, offset, address, len)) in segments.into_iter().enumerate() {
        let at = 64 + 56 * n;
        put(at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, len), (40, len), (48, 4)] {
            put(at + field, &value.to_le_bytes());
        }
    }
    let note = |owner: &[u8], kind: u32, desc: &[u8]| {
        let mut note = Vec::new();
        [owner.len() as u32, desc.len() as u32, kind]
            .iter()
            .for_each(|number| note.extend(number.to_le_bytes()));
        [owner, desc].iter().for_each(|part| note.extend(*part));
        note
    };
    let pvh = note(b"Xen\0", 18, &(0x100_0000u32).to_le_bytes());
    let ours = note(b"smol\0\0\0\0", 1, &1u32.to_le_bytes());
    put(NOTES as usize, &pvh);
    if smol {
        let mut ours = ours;
        ours[0] = 4;
        ours.drain(16..20);
        put(NOTES as usize + pvh.len(), &ours);
    }
    put(NAMES as usize + 1, b".smol.relocs");
    let linked = 0x8100_0000u32;
    let words = [0, 0, 0, linked, 0, linked + 8, 0, linked + 12];
    for (n, word) in words.into_iter().enumerate() {
        put(TABLE as usize + 4 * n, &word.to_le_bytes());
    }
    for (n, name, kind, offset, len) in [(1, 0u32, 3u32, NAMES, 32u64), (2, 1, 1, TABLE, 32)] {
        let at = SECTIONS + 64 * n;
        put(at, &name.to_le_bytes());
        put(at + 4, &kind.to_le_bytes());
        put(at + 24, &offset.to_le_bytes());
        put(at + 32, &len.to_le_bytes());
    }
    image
}

/// A smol kernel, and one that is entered by PVH.
pub fn kernel_seeds() -> Vec<Vec<u8>> {
    vec![
        elf(true),
        elf(false),
        join(&[&elf(true), b"an initramfs", b"quiet nokaslr"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_of_a_state_is_restored() {
        for building in [false, true] {
            Board::restore(&sample_state(), building).unwrap();
        }
    }

    #[test]
    fn the_samples_of_kernels_are_loaded_by_both_protocols() {
        let entry = |smol| {
            let file = MemoryFile::new(&elf(smol));
            assert_eq!(is_smol_kernel(file.path()).unwrap(), smol);
            load(file.path().to_owned(), None, MEMORY, "quiet")
                .unwrap()
                .0
        };
        assert!(matches!(entry(true), Entry::Linux64 { .. }));
        assert!(matches!(entry(false), Entry::Pvh { .. }));
    }
}
