//! KVM's structures for a vCPU to and from our wire types. Pure.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_lapic_state,
    kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};

use super::same_fields;
use crate::arch::cpu::CpuidEntry;
use crate::arch::state::{Events, Regs, Segment, SystemRegs, Table};
use crate::{Error, Result};

pub(super) fn cpuid_from_kvm(e: &kvm_cpuid_entry2) -> CpuidEntry {
    let indexed = e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    CpuidEntry {
        function: e.function,
        index: indexed.then_some(e.index),
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    }
}

pub(super) fn cpuid_to_kvm(table: &[CpuidEntry]) -> Result<CpuId> {
    let entries: Vec<_> = table
        .iter()
        .map(|e| kvm_cpuid_entry2 {
            function: e.function,
            index: e.index.unwrap_or(0),
            flags: if e.index.is_some() {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|e| Error::Config(format!("CPUID table: {e:?}")))
}

same_fields! {
    regs_from_kvm, regs_to_kvm: Regs = kvm_regs {
        rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
    }
}

same_fields! {
    table_from_kvm, table_to_kvm: Table = kvm_dtable { base, limit }
}

const UNUSABLE: u32 = 1 << 16;

fn segment_from_kvm(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let attributes = u32::from(s.type_ & 15)
        | bit(s.s, 4)
        | u32::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15)
        | if s.unusable != 0 { UNUSABLE } else { 0 };
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        attributes,
    }
}

fn segment_to_kvm(s: &Segment) -> kvm_segment {
    let bits = |at: u32, mask: u32| (s.attributes >> at & mask) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: bits(0, 15),
        present: bits(7, 1),
        dpl: bits(5, 3),
        db: bits(14, 1),
        s: bits(4, 1),
        l: bits(13, 1),
        g: bits(15, 1),
        avl: bits(12, 1),
        unusable: bits(16, 1),
        padding: 0,
    }
}

pub(super) fn sregs_from_kvm(s: &kvm_sregs) -> SystemRegs {
    SystemRegs {
        cs: segment_from_kvm(&s.cs),
        ds: segment_from_kvm(&s.ds),
        es: segment_from_kvm(&s.es),
        fs: segment_from_kvm(&s.fs),
        gs: segment_from_kvm(&s.gs),
        ss: segment_from_kvm(&s.ss),
        tr: segment_from_kvm(&s.tr),
        ldt: segment_from_kvm(&s.ldt),
        gdt: table_from_kvm(&s.gdt),
        idt: table_from_kvm(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
    }
}

/// Pending interrupts travel in the events and the LAPIC, so the bitmap stays empty.
pub(super) fn sregs_to_kvm(s: &SystemRegs, to: &mut kvm_sregs) {
    to.cs = segment_to_kvm(&s.cs);
    to.ds = segment_to_kvm(&s.ds);
    to.es = segment_to_kvm(&s.es);
    to.fs = segment_to_kvm(&s.fs);
    to.gs = segment_to_kvm(&s.gs);
    to.ss = segment_to_kvm(&s.ss);
    to.tr = segment_to_kvm(&s.tr);
    to.ldt = segment_to_kvm(&s.ldt);
    to.gdt = table_to_kvm(&s.gdt);
    to.idt = table_to_kvm(&s.idt);
    (to.cr0, to.cr2, to.cr3, to.cr4, to.cr8) = (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8);
    (to.efer, to.apic_base) = (s.efer, s.apic_base);
    to.interrupt_bitmap = [0; 4];
}

pub(super) fn debug_from_kvm(d: &kvm_debugregs) -> [u64; 6] {
    let [d0, d1, d2, d3] = d.db;
    [d0, d1, d2, d3, d.dr6, d.dr7]
}

pub(super) fn debug_to_kvm(d: &[u64; 6]) -> kvm_debugregs {
    kvm_debugregs {
        db: [d[0], d[1], d[2], d[3]],
        dr6: d[4],
        dr7: d[5],
        ..Default::default()
    }
}

pub(super) fn lapic_to_kvm(bytes: &[u8]) -> Result<kvm_lapic_state> {
    let mut lapic = kvm_lapic_state::default();
    if bytes.len() != lapic.regs.len() {
        return Err(Error::bad_state(format!(
            "the LAPIC has {} bytes instead of {}",
            bytes.len(),
            lapic.regs.len()
        )));
    }
    for (to, from) in lapic.regs.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(lapic)
}

pub(super) fn events_from_kvm(e: &kvm_vcpu_events) -> Events {
    let exception = (e.exception.injected | e.exception.pending != 0).then(|| {
        (
            e.exception.nr,
            (e.exception.has_error_code != 0).then_some(e.exception.error_code),
        )
    });
    Events {
        exception,
        interrupt: (e.interrupt.injected != 0).then_some((e.interrupt.nr, e.interrupt.soft != 0)),
        interrupt_shadow: e.interrupt.shadow,
        nmi: (e.nmi.injected != 0, e.nmi.pending != 0, e.nmi.masked != 0),
    }
}

pub(super) fn events_to_kvm(e: &Events) -> kvm_vcpu_events {
    let mut to = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some((vector, code)) = e.exception {
        to.exception.injected = 1;
        to.exception.nr = vector;
        to.exception.has_error_code = u8::from(code.is_some());
        to.exception.error_code = code.unwrap_or(0);
    }
    if let Some((vector, soft)) = e.interrupt {
        to.interrupt.injected = 1;
        to.interrupt.nr = vector;
        to.interrupt.soft = u8::from(soft);
    }
    to.interrupt.shadow = e.interrupt_shadow;
    (to.nmi.injected, to.nmi.pending, to.nmi.masked) =
        (u8::from(e.nmi.0), u8::from(e.nmi.1), u8::from(e.nmi.2));
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_way_there_and_back() {
        let code = kvm_segment {
            limit: u32::MAX,
            selector: 0x33,
            type_: 11,
            present: 1,
            dpl: 3,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let none = kvm_segment {
            unusable: 1,
            ..Default::default()
        };
        for s in [code, none] {
            assert_eq!(segment_to_kvm(&segment_from_kvm(&s)), s);
        }
        assert_eq!(
            segment_from_kvm(&code).attributes,
            0xa0fb,
            "as a descriptor holds it"
        );
    }

    #[test]
    fn odd_sizes_from_a_bundle_are_refused() {
        assert!(lapic_to_kvm(&[0; 4096]).is_err());
    }
}
