//! Registers for the first instruction of a kernel.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::arch::boot::Entry;
use crate::arch::layout;

/// Sets the system registers for the entry to a kernel: flat segments, and long mode with the
/// identity map of [`layout::PAGE_TABLES`] for the 64-bit protocol.
pub(super) fn system_registers(s: &mut kvm_sregs, entry: &Entry) {
    const PROTECTED: u64 = 1;
    const PAGING_AND_PROTECTED: u64 = 0x8000_0011;
    const PAE: u64 = 1 << 5;
    const LONG_MODE_ENABLED_AND_ACTIVE: u64 = 0x500;
    let flat = |selector, type_, l| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l,
        db: 1 - l,
        ..Default::default()
    };
    let long = u8::from(matches!(entry, Entry::Linux64 { .. }));
    s.cs = flat(0x10, 11, long);
    let data = flat(0x18, 3, 0);
    (s.ds, s.es, s.fs, s.gs, s.ss) = (data, data, data, data, data);
    s.tr = kvm_segment {
        limit: 0x67,
        selector: 0,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    s.gdt = kvm_dtable {
        base: layout::GDT,
        limit: 4 * 8 - 1,
        padding: [0; 3],
    };
    s.idt = kvm_dtable::default();
    if long == 1 {
        s.cr3 = layout::PAGE_TABLES;
        s.cr4 = PAE;
        s.cr0 = PAGING_AND_PROTECTED;
        s.efer = LONG_MODE_ENABLED_AND_ACTIVE;
    } else {
        s.cr0 = PROTECTED | 0x10;
        s.cr4 = 0;
        s.efer = 0;
    }
}

/// Returns the general registers for the entry to a kernel.
pub(super) fn registers(entry: &Entry) -> kvm_regs {
    const RESERVED_ONE: u64 = 2;
    let regs = kvm_regs {
        rflags: RESERVED_ONE,
        rsp: layout::BOOT_STACK,
        ..Default::default()
    };
    match *entry {
        Entry::Linux64 { rip, boot_params } => kvm_regs {
            rip,
            rsi: boot_params,
            ..regs
        },
        Entry::Pvh { rip, start_info } => kvm_regs {
            rip,
            rbx: start_info,
            rsp: 0,
            ..regs
        },
    }
}
