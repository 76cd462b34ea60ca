/* Entry of the native guest: PVH (Xen's docs/misc/pvh.pandoc), then long mode, then CPL 3.
 *
 * All that takes time happens at CPL 3: a software KVM emulates CPL 0 instruction by instruction
 * and runs CPL 3 at the speed of the hardware. The I/O permission bitmap of the TSS lets it print
 * there (such a KVM ignores IOPL).
 */
#define CODE0  0x08     /* 64-bit code, CPL 0 */
#define DATA0  0x10
#define DATA3  0x1b     /* with requested privilege 3 */
#define CODE3  0x23
#define TSS    0x28
#define RFLAGS 0x2      /* interrupts off */

#define TSS_SIZE 104
#define IO_PORTS 0x400  /* that CPL 3 may use */

#define CR4_PAE        (1 << 5)
#define CR4_OSFXSR     (1 << 9)
#define CR4_OSXMMEXCPT (1 << 10)
#define CR0            0x80000033   /* PG, NE, ET, MP, PE */
#define MSR_EFER       0xc0000080
#define EFER_LME       (1 << 8)

    .section .note.Xen, "a", @note
    .align 4
    .long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long start32

    .section .text.boot, "ax"
    .code32
    .globl start32
start32:
    lgdt gdt_pointer
    mov $(CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT), %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $MSR_EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov $CR0, %eax
    mov %eax, %cr0
    ljmp $CODE0, $start64

    .code64
start64:
    mov $DATA0, %eax
    mov %eax, %ss
    mov $DATA3, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov $stack_top, %rsp
    mov $TSS, %eax
    ltr %ax
    pushq $DATA3
    pushq $(stack_top - 8)          /* as after a call: 16-byte alignment less the return address */
    pushq $RFLAGS
    pushq $CODE3
    pushq $guest_main
    iretq

    .data
    .align 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* CODE0 */
    .quad 0x00cf93000000ffff        /* DATA0 */
    .quad 0x00cff3000000ffff        /* DATA3 */
    .quad 0x00affb000000ffff        /* CODE3 */
    .word TSS_SIZE + IO_PORTS / 8, 0, 0x8900, 0x0100  /* TSS, at 16 MiB, where link.ld puts it */
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    /* The first GiB, mapped one to one in pages of 2 MiB, for CPL 3 too. */
    .align 4096
pml4:
    .quad pdpt + 7                  /* present, writable, user */
    .fill 511, 8, 0
pdpt:
    .quad pd + 7
    .fill 511, 8, 0
pd:
    .set page, 0
    .rept 512
    .quad page * 0x200000 + 0xe7    /* and accessed, dirty, large */
    .set page, page + 1
    .endr

    /* Interrupts are off and exceptions fatal: of all of it, only the I/O bitmap is ever looked at. */
    .section .tss, "aw", @progbits
    .fill TSS_SIZE - 2, 1, 0
    .word TSS_SIZE
    .fill IO_PORTS / 8, 1, 0
    .byte 0xff                      /* read together with the last byte of the bitmap */

    .bss
    .align 16
    .skip 16384
stack_top:

    .section .note.GNU-stack, "", @progbits
