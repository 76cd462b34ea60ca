//! Wire types of the x86-64 processor, its interrupt controllers and timers.
//!
//! Field names are those of the AMD64 Architecture Programmer's Manual, volume 2.

use serde::{Deserialize, Serialize};

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// General registers.
    pub regs: Regs,
    /// Segments, control registers, descriptor tables.
    pub system: SystemRegs,
    /// x87 and SSE state: the 512 bytes of FXSAVE64, reserved and software areas zero.
    #[serde(with = "hex")]
    pub fxsave: Vec<u8>,
    /// What XSAVE has besides; absent if XCR0 is as after a reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xsave: Option<Xsave>,
    /// DR0..DR3, DR6, DR7.
    pub debug: [u64; 6],
    /// Model-specific registers by ascending index.
    pub msrs: Vec<Msr>,
    /// Interrupt, exception and NMI state that is in flight.
    pub events: Events,
    /// Local APIC: its first 1024 register bytes.
    #[serde(with = "hex")]
    pub lapic: Vec<u8>,
    /// Whether the vCPU was halted.
    pub halted: bool,
}

/// State of AVX.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xsave {
    /// XCR0: the components that the guest has enabled.
    pub xcr0: u64,
    /// Upper halves of YMM0 to YMM15, 16 bytes each.
    #[serde(with = "hex")]
    pub ymm_high: Vec<u8>,
}

/// General-purpose registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// Segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Attributes as in descriptor bits 40..55 (type, S, DPL, P, limit hole, AVL, L, D/B, G),
    /// with bit 16 for "unusable".
    pub attributes: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// System registers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SystemRegs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}

/// Model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Msr {
    /// Register number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// Events in flight at the moment of capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// Exception that is being delivered: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// Interrupt that is being delivered: vector and whether it is a software interrupt.
    pub interrupt: Option<(u8, bool)>,
    /// In the shadow of STI or MOV SS (KVM_X86_SHADOW_INT_*).
    pub interrupt_shadow: u8,
    /// NMI being delivered, NMI pending, NMIs masked.
    pub nmi: (bool, bool, bool),
}

/// Interrupt controllers of the board.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IrqchipState {
    /// The two 8259s, master first.
    pub pics: [PicState; 2],
    /// The IOAPIC.
    pub ioapic: IoapicState,
}

/// 8259A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PicState {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub elcr: u8,
    pub elcr_mask: u8,
}

/// 82093AA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct IoapicState {
    pub base_address: u64,
    pub ioregsel: u32,
    pub id: u32,
    pub irr: u32,
    /// 24 redirection entries.
    pub redirection: Vec<u64>,
}

/// 8254 and KVM clock, of machines on the host's clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimerState {
    /// The three channels of the 8254.
    pub pit: [PitChannel; 3],
    /// Speaker-port flags of the PIT (KVM_PIT_FLAGS_*).
    pub pit_flags: u32,
    /// KVM's paravirtual clock, ns.
    pub kvmclock: u64,
}

/// Channel of the 8254; times are not kept, a restored channel is loaded afresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PitChannel {
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
}
