/* The floor under a restore: what is left when there is no bundle, no verification, no device and
 * no thread. It maps a memory image copy-on-write, sets the registers of one vCPU, and prints what
 * the guest prints on 0x3f8, from its first byte on, for ever.
 *
 *   floor MEMORY REGISTERS [OFFSET LENGTH]...   REGISTERS: lines of "name hex hex ..."; see `reg`
 *                                               and `segment`
 *
 * Ranges of the image that are named (bytes, multiples of 2 MiB) are read into huge pages before
 * the guest runs: the floor for a working set that is known.
 *
 * The order of the calls is what costs least: the memory slot comes before the interrupt
 * controllers, and there is no PIT. All that a real guest would need set is set, if only to what
 * it is already.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SERIAL = 0x3f8, CPUID_ENTRIES = 256 };
static const unsigned long TSS = 0xfffbd000;

static long check(long result, const char *what)
{
    if (result >= 0)
        return result;
    perror(what);
    exit(1);
}

#define CALL(fd, request, argument) check(ioctl(fd, request, argument), #request)
/* Reads a piece of state and writes it back. */
#define ROUND_TRIP(fd, name, value) (CALL(fd, KVM_GET_##name, value), CALL(fd, KVM_SET_##name, value))

struct registers {
    struct kvm_regs general;
    struct kvm_sregs system;
};

static void read_into_huge_pages(int fd, char *at, off_t offset, size_t length)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    void *block = mmap(at, length, PROT_READ | PROT_WRITE, flags, -1, 0);
    check(block == MAP_FAILED ? -1 : 0, "mmap of huge pages");
    check(madvise(block, length, MADV_HUGEPAGE), "MADV_HUGEPAGE");
    check(pread(fd, block, length, offset) == (ssize_t)length ? 0 : -1, "reading the working set");
}

static void *open_memory(const char *path, size_t *size, char **ranges)
{
    struct stat file;
    int fd = check(open(path, O_RDONLY | O_CLOEXEC), path);
    check(fstat(fd, &file), path);
    *size = file.st_size;
    void *memory = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    check(memory == MAP_FAILED ? -1 : 0, "mmap");
    for (; ranges[0] && ranges[1]; ranges += 2) {
        off_t offset = strtoull(ranges[0], NULL, 0);
        read_into_huge_pages(fd, (char *)memory + offset, offset, strtoull(ranges[1], NULL, 0));
    }
    close(fd);
    return memory;
}

/* "cs SELECTOR BASE LIMIT ATTRIBUTES": attributes as in bits 40 to 55 of a descriptor, 16 for unusable. */
static void segment(struct kvm_segment *to, const unsigned long long *v)
{
    *to = (struct kvm_segment){
        .selector = v[0], .base = v[1], .limit = v[2], .type = v[3] & 15, .s = v[3] >> 4 & 1,
        .dpl = v[3] >> 5 & 3, .present = v[3] >> 7 & 1, .avl = v[3] >> 12 & 1, .l = v[3] >> 13 & 1,
        .db = v[3] >> 14 & 1, .g = v[3] >> 15 & 1, .unusable = v[3] >> 16 & 1,
    };
}

static void reg(struct registers *r, const char *name, const unsigned long long *v)
{
    struct kvm_regs *g = &r->general;
    struct kvm_sregs *s = &r->system;
    struct { const char *name; __u64 *at; } words[] = {
        {"rax", &g->rax}, {"rbx", &g->rbx}, {"rcx", &g->rcx}, {"rdx", &g->rdx}, {"rsi", &g->rsi},
        {"rdi", &g->rdi}, {"rsp", &g->rsp}, {"rbp", &g->rbp}, {"r8", &g->r8}, {"r9", &g->r9},
        {"r10", &g->r10}, {"r11", &g->r11}, {"r12", &g->r12}, {"r13", &g->r13}, {"r14", &g->r14},
        {"r15", &g->r15}, {"rip", &g->rip}, {"rflags", &g->rflags}, {"cr0", &s->cr0},
        {"cr2", &s->cr2}, {"cr3", &s->cr3}, {"cr4", &s->cr4}, {"cr8", &s->cr8},
        {"efer", &s->efer}, {"apic_base", &s->apic_base},
    };
    struct { const char *name; struct kvm_segment *at; } segments[] = {
        {"cs", &s->cs}, {"ds", &s->ds}, {"es", &s->es}, {"fs", &s->fs},
        {"gs", &s->gs}, {"ss", &s->ss}, {"tr", &s->tr}, {"ldt", &s->ldt},
    };
    struct { const char *name; struct kvm_dtable *at; } tables[] = {{"gdt", &s->gdt}, {"idt", &s->idt}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(name, words[i].name))
            *words[i].at = v[0];
    for (size_t i = 0; i < sizeof segments / sizeof *segments; i++)
        if (!strcmp(name, segments[i].name))
            segment(segments[i].at, v);
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (!strcmp(name, tables[i].name))
            *tables[i].at = (struct kvm_dtable){.base = v[0], .limit = v[1]};
}

static void read_registers(const char *path, struct registers *r)
{
    char line[256], name[32];
    FILE *file = fopen(path, "re");
    check(file ? 0 : -1, path);
    while (fgets(line, sizeof line, file)) {
        unsigned long long v[4] = {0};
        if (sscanf(line, "%31s %llx %llx %llx %llx", name, &v[0], &v[1], &v[2], &v[3]) >= 2)
            reg(r, name, v);
    }
    fclose(file);
}

static void set_cpuid(int kvm, int vcpu)
{
    static struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[CPUID_ENTRIES]; } table;
    table.head.nent = CPUID_ENTRIES;
    CALL(kvm, KVM_GET_SUPPORTED_CPUID, &table);
    CALL(vcpu, KVM_SET_CPUID2, &table);
}

static void set_msrs(int vcpu)
{
    static const unsigned index[] = {
        0x174, 0x175, 0x176, 0x277, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102, 0x10,
    };
    static struct { struct kvm_msrs head; struct kvm_msr_entry entries[16]; } msrs;
    msrs.head.nmsrs = sizeof index / sizeof *index;
    for (size_t i = 0; i < msrs.head.nmsrs; i++)
        msrs.entries[i].index = index[i];
    ROUND_TRIP(vcpu, MSRS, &msrs);
}

static void set_vcpu(int vcpu, const char *path)
{
    static struct kvm_xsave xsave;
    static struct kvm_lapic_state lapic;
    struct registers r = {0};
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debug;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp;
    CALL(vcpu, KVM_GET_SREGS, &r.system);
    read_registers(path, &r);
    CALL(vcpu, KVM_SET_SREGS, &r.system);
    ROUND_TRIP(vcpu, XCRS, &xcrs);
    ROUND_TRIP(vcpu, XSAVE, &xsave);
    CALL(vcpu, KVM_SET_REGS, &r.general);
    ROUND_TRIP(vcpu, DEBUGREGS, &debug);
    set_msrs(vcpu);
    ROUND_TRIP(vcpu, LAPIC, &lapic);
    ROUND_TRIP(vcpu, VCPU_EVENTS, &events);
    ROUND_TRIP(vcpu, MP_STATE, &mp);
}

static void set_irqchip(int vm)
{
    static struct kvm_irqchip chip;
    for (chip.chip_id = 0; chip.chip_id < 3; chip.chip_id++)
        ROUND_TRIP(vm, IRQCHIP, &chip);
}

static void run(int vcpu, struct kvm_run *state)
{
    for (;;) {
        check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
        if (state->exit_reason != KVM_EXIT_IO || state->io.port != SERIAL) {
            fprintf(stderr, "floor: the guest stopped, KVM exit %u\n", state->exit_reason);
            exit(1);
        }
        check(write(1, (char *)state + state->io.data_offset, 1), "stdout");
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fputs("usage: floor MEMORY REGISTERS [OFFSET LENGTH]...\n", stderr);
        return 2;
    }
    size_t size;
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = CALL(kvm, KVM_CREATE_VM, 0);
    CALL(vm, KVM_SET_TSS_ADDR, TSS);
    struct kvm_userspace_memory_region region = {.userspace_addr = (__u64)open_memory(argv[1], &size, argv + 3)};
    region.memory_size = size;
    CALL(vm, KVM_SET_USER_MEMORY_REGION, &region);
    CALL(vm, KVM_CREATE_IRQCHIP, 0);
    int vcpu = CALL(vm, KVM_CREATE_VCPU, 0);
    set_cpuid(kvm, vcpu);
    set_vcpu(vcpu, argv[2]);
    set_irqchip(vm);
    size_t length = CALL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    void *state = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    check(state == MAP_FAILED ? -1 : 0, "mmap of kvm_run");
    run(vcpu, state);
}
