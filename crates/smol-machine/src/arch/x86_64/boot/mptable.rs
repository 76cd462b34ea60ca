//! The MP table (MultiProcessor Specification 1.4): how many CPUs there are and how interrupts
//! reach the IOAPIC. It spares the machine ACPI.

use super::super::cpu::SIGNATURE;
use crate::Result;
use crate::arch::layout;
use crate::memory::Ram;

const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const ENABLED: u8 = 1;
const BOOT_CPU: u8 = 2;
/// Interrupt types of the I/O and local interrupt entries.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ISA_IRQS: u8 = 16;

/// Writes the table for `vcpus` CPUs, all enabled: Linux brings up only the first while
/// `maxcpus=1`, and can bring up the others later because the table has held them from the start.
pub(super) fn write(vcpus: u8, ram: &Ram) -> Result<()> {
    super::write(ram, layout::MP_TABLE, &table(vcpus))
}

fn table(vcpus: u8) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOT_CPU } else { ENABLED };
        let mut cpu = [0u8; 20];
        cpu[1..4].copy_from_slice(&[id, LAPIC_VERSION, flags]);
        cpu[4..8].copy_from_slice(&SIGNATURE.to_le_bytes());
        cpu[8..12].copy_from_slice(&0x201u32.to_le_bytes()); // FPU and APIC
        add(&cpu);
    }
    add(b"\x01\x00ISA   ");
    let mut ioapic = [2, ioapic_id, IOAPIC_VERSION, 1, 0, 0, 0, 0];
    ioapic[4..].copy_from_slice(&layout::IOAPIC.to_le_bytes());
    add(&ioapic);
    for irq in (0..ISA_IRQS).filter(|irq| *irq != 2) {
        add(&[3, INT, 0, 0, 0, irq, ioapic_id, irq]);
    }
    add(&[4, EXT_INT, 0, 0, 0, 0, 0, 0]);
    add(&[4, NMI, 0, 0, 0, 0, 0xff, 1]);

    let mut header = [0u8; 44];
    header[..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&((44 + entries.len()) as u16).to_le_bytes());
    header[6] = 4;
    header[8..16].copy_from_slice(b"SMOL    ");
    header[16..28].copy_from_slice(b"SMOLMACHINE ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&layout::LAPIC.to_le_bytes());
    header[7] = checksum(header.iter().chain(&entries));

    let mut pointer = [0u8; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(layout::MP_TABLE as u32 + 16).to_le_bytes());
    (pointer[8], pointer[9]) = (1, 4);
    pointer[10] = checksum(&pointer);
    [&pointer[..], &header, &entries].concat()
}

/// Returns the byte that makes the sum of all come to zero.
fn checksum<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u8 {
    bytes.into_iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_sum_to_zero_and_fit_below_the_bios_area() {
        for vcpus in [1, 8] {
            let t = table(vcpus);
            assert_eq!(t[..16].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
            assert_eq!(t[16..].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
            assert!(layout::MP_TABLE + (t.len() as u64) < 0xa_0000);
        }
    }
}
