//! The guest of the probe: what every kernel does early.

use std::arch::global_asm;

use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

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
pub const MEMORY_SIZE: usize = 0x10000;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const VECTOR_BREAKPOINT: u64 = 3;
const VECTOR_PAGE_FAULT: u64 = 14;

/// Where the guest writes the number of the step it begins, or how it ended.
pub const PORT: u16 = 0x80;
pub const STEPS: [&str; 6] = [
    "loading descriptor tables",
    "executing cpuid",
    "reading and writing MSRs",
    "taking a breakpoint exception (int3)",
    "taking a page fault",
    "executing lock cmpxchg16b",
];
pub const SUCCESS: u8 = 0xff;
/// A step went through and its result was wrong.
pub const WRONG: u8 = 0xfe;

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

/// Returns the guest's code, and the offsets of its handlers of #BP and #PF.
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
pub fn load(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
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

/// Sets the registers for its first instruction, in long mode at CPL 0.
pub fn enter(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_fits_where_it_is_loaded() {
        let (code, breakpoint, page_fault) = guest_code();
        assert!(CODE as usize + code.len() <= MEMORY_SIZE);
        assert_eq!(code[breakpoint as usize], 0x41); // a REX prefix: mov r8d
        assert!(breakpoint < page_fault && (page_fault as usize) < code.len());
    }
}
