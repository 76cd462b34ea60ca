/* The native guest: a machine that has memory worth saving and a working set worth measuring.
 *
 *   native: ready     after writing 64 MiB
 *   round 1           "round " at once, the number after reading and writing 16 MiB
 *   round 2           after a pause ...
 *
 * So a restored guest answers twice: with its first byte, before it touches its memory, and with
 * the end of the line, after it has touched its working set.
 *
 * With IDLE it says "idle" instead of the rounds and touches nothing more: how much memory does one
 * more machine take? */
#include <stdint.h>

enum { SERIAL = 0x3f8, PAGE = 4096 };
static const uint64_t MIB = 1 << 20;
static const uint64_t DATA_AT = 64 * MIB, DATA_SIZE = 64 * MIB, WORKING_SET = 16 * MIB;
/* About 10 ms on hardware of 2025. */
static const uint64_t PAUSE = 20 * 1000 * 1000;

static void put(char c)
{
    __asm__ volatile("outb %0, %1" : : "a"(c), "Nd"((uint16_t)SERIAL));
}

static void print(const char *text)
{
    while (*text)
        put(*text++);
}

static void print_number(uint64_t n)
{
    char digits[21], *at = digits + 20;
    *at = 0;
    do
        *--at = '0' + n % 10;
    while (n /= 10);
    print(at);
}

/* Half of each page random, half of it like pointers: it compresses as the memory of programs does. */
static void fill(uint64_t *words, uint64_t count)
{
    uint64_t random = 88172645463325252; /* xorshift64, Marsaglia 2003 */
    for (uint64_t i = 0; i < count; i++) {
        if (i % (PAGE / 8) < PAGE / 16) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            words[i] = random;
        } else {
            words[i] = 0xffff888000000000 + (i % 16) * PAGE;
        }
    }
}

static void touch(volatile uint8_t *bytes, uint64_t size)
{
    for (uint64_t i = 0; i < size; i += PAGE)
        bytes[i]++;
}

static void pause(void)
{
    for (uint64_t i = 0; i < PAUSE; i++)
        __asm__ volatile("");
}

void guest_main(void)
{
    fill((uint64_t *)DATA_AT, DATA_SIZE / 8);
    print("native: ready\n");
#ifdef IDLE
    print("idle\n");
    for (;;)
        pause();
#endif
    for (uint64_t round = 1;; round++) {
        print("round ");
        touch((volatile uint8_t *)DATA_AT, WORKING_SET);
        print_number(round);
        put('\n');
        pause();
    }
}
