/* The service of the machines that tests build: one static program, the only file of its root file
 * system. Each connection to port 7777 brings one line, and gets one answer.
 *
 *   service                 serves
 *   service --never         does not listen, and does not end
 *   service --exit N        complains and ends with exit code N
 *   service --daemon        goes into the background, and does not listen
 *   service --late SECONDS  sleeps, then serves
 *   service --spin          computes until another process stops it, then serves
 *   service --avx           uses AVX2, then serves
 *   service --draw FILE     writes a random number to a file
 *   service ask WORDS...    sends a line to the running service, prints its answer
 *
 * SIGTERM ends it with code 0, after a line on stdout.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 1024, TICK_MS = 20 };

static int port = 7777;

static char remembered[LINE] = "nothing";
/* Time since boot when that was said, ns. */
static uint64_t remembered_at;
/* How often the main loop looked at the clock, and how often that ran backwards. */
static uint64_t ticks, backwards, last_tick;

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void stop(int signal)
{
    static const char text[] = "stopping\n";
    (void)signal;
    _exit(write(1, text, sizeof text - 1) < 0);
}

static int fail(const char *what)
{
    fprintf(stderr, "service: %s: %s\n", what, strerror(errno));
    return 1;
}

static void tick(void)
{
    uint64_t t = now(CLOCK_MONOTONIC);
    ticks++;
    backwards += t < last_tick;
    last_tick = t;
}

/* "read PATH" */
static void send_file(FILE *to, const char *path)
{
    char block[4096];
    size_t n;
    FILE *from = fopen(path, "r");
    if (!from) {
        fprintf(to, "error: %s\n", strerror(errno));
        return;
    }
    while ((n = fread(block, 1, sizeof block, from)) > 0)
        fwrite(block, 1, n, to);
    fclose(from);
}

/* "sleep MS": how long it was, by our own clock, ns. */
static uint64_t sleep_for(unsigned long ms)
{
    struct timespec wanted = {ms / 1000, ms % 1000 * 1000000};
    uint64_t begin = now(CLOCK_MONOTONIC);
    nanosleep(&wanted, NULL);
    return now(CLOCK_MONOTONIC) - begin;
}

/* "naps MS COUNT": how long each was. */
static void send_naps(FILE *to, unsigned long ms, unsigned long count)
{
    for (unsigned long i = 0; i < count; i++)
        fprintf(to, "%llu%s", (unsigned long long)sleep_for(ms), i + 1 < count ? " " : "\n");
}

/* The kernel refuses clock_gettime from now on. */
static int refuse_clock(void)
{
    struct sock_filter lines[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof lines / sizeof *lines, lines};
    struct timespec t;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) ||
           !syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
}

/* "vdso N": how many of so many readings of the clock needed the kernel. */
static void send_kernel_clocks(FILE *to, unsigned long count)
{
    unsigned long asked = 0;
    int ends[2], status;
    if (pipe(ends))
        return;
    pid_t child = fork();
    if (child == 0) {
        struct timespec t;
        if (refuse_clock())
            _exit(1);
        for (unsigned long i = 0; i < count; i++)
            asked += clock_gettime(CLOCK_MONOTONIC, &t) != 0;
        _exit(write(ends[1], &asked, sizeof asked) != sizeof asked);
    }
    close(ends[1]);
    if (child < 0 || waitpid(child, &status, 0) < 0 || status || read(ends[0], &asked, sizeof asked) != sizeof asked)
        fprintf(to, "error: no readings\n");
    else
        fprintf(to, "%lu\n", asked);
    close(ends[0]);
}

/* Two threads that pass a turn to and fro, each on a CPU of its own. */
struct player {
    pthread_t thread;
    int cpu;
    unsigned long count;
    atomic_ulong *turn;
};

static void choose_cpu(int cpu)
{
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    if (sched_setaffinity(0, sizeof only, &only))
        exit(fail("cannot choose a CPU"));
}

static void *play(void *argument)
{
    struct player *player = argument;
    choose_cpu(player->cpu);
    for (unsigned long turn = player->cpu; turn < 2 * player->count; turn += 2) {
        while (atomic_load(player->turn) != turn)
            ;
        atomic_store(player->turn, turn + 1);
    }
    return NULL;
}

/* "pass COUNT": how often the turn came back. */
static void send_passes(FILE *to, unsigned long count)
{
    atomic_ulong turn = 0;
    struct player players[2];
    for (int i = 0; i < 2; i++) {
        players[i] = (struct player){.cpu = i, .count = count, .turn = &turn};
        if (pthread_create(&players[i].thread, NULL, play, &players[i]))
            exit(fail("cannot start a thread"));
    }
    for (int i = 0; i < 2; i++)
        pthread_join(players[i].thread, NULL);
    fprintf(to, "%lu\n", atomic_load(&turn) / 2);
}

/* Page faults on the second CPU until it is told to stop; their number. */
struct faults {
    atomic_bool stop;
    unsigned long count;
};

static void *fault(void *argument)
{
    struct faults *faults = argument;
    choose_cpu(1);
    volatile char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (page != MAP_FAILED && !atomic_load(&faults->stop)) {
        page[0] = 1;
        madvise((void *)page, 4096, MADV_DONTNEED);
        faults->count++;
    }
    return NULL;
}

/* "patch COUNT": the kernel patches its code for page faults twice, so many times, while the other CPU
 * runs it: page faults are counted, and are not. How often that was possible, and whether there were
 * page faults meanwhile. */
static void send_patches(FILE *to, unsigned long count)
{
    struct perf_event_attr counter = {
        .type = PERF_TYPE_SOFTWARE, .size = sizeof counter, .config = PERF_COUNT_SW_PAGE_FAULTS, .exclude_kernel = 1};
    struct faults faults = {.stop = false};
    unsigned long patched = 0;
    pthread_t thread;
    if (pthread_create(&thread, NULL, fault, &faults))
        exit(fail("cannot start a thread"));
    for (unsigned long i = 0; i < count; i++) {
        int fd = syscall(SYS_perf_event_open, &counter, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
        patched += fd >= 0 && !close(fd);
    }
    atomic_store(&faults.stop, true);
    pthread_join(thread, NULL);
    fprintf(to, "%lu %d\n", patched, faults.count > count);
}

/* How often a thread has found in all YMM registers what it had put there, and how often not. */
static atomic_ulong kept, damaged;

/* One round: fills the registers, lets 1 ms pass in the kernel and looks what they hold now. */
static int keep_once(void)
{
    static const struct timespec pause = {0, 1000000};
    static uint8_t pattern[16 * 32], found[16 * 32];
    long result = SYS_nanosleep;
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (uint8_t)(i * 7 + 1);
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define LOAD(n) "vmovdqu " #n "*32(%[pattern]), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[found])\n"
    __asm__ volatile(EACH(LOAD) "syscall\n" EACH(STORE) "vzeroupper"
                     : "+a"(result)
                     : [pattern] "r"(pattern), [found] "r"(found), "D"(&pause), "S"(NULL)
                     : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    return !memcmp(pattern, found, sizeof found);
}

static void *keep(void *argument)
{
    for (;;)
        atomic_fetch_add(keep_once() ? &kept : &damaged, 1);
    return argument;
}

/* "keep" begins it; "kept": both numbers. */
static void start_keeping(FILE *to)
{
    pthread_t thread;
    if (!__builtin_cpu_supports("avx2") || pthread_create(&thread, NULL, keep, NULL))
        fprintf(to, "error: no AVX2, or no thread\n");
    else
        fputs("ok\n", to);
}

static void send_random(FILE *to)
{
    unsigned char bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        fprintf(to, "error: ");
    for (size_t i = 0; i < sizeof bytes; i++)
        fprintf(to, "%02x", bytes[i]);
    fputc('\n', to);
}

/* "bytes N": N bytes that a reader can check. */
static void send_bytes(FILE *to, unsigned long count)
{
    for (unsigned long i = 0; i < count; i++)
        fputc((int)(i * 31 + (i >> 8)) & 0xff, to);
}

/* "touch MIB": writes to so much memory that nobody has used yet. */
static void touch(FILE *to, size_t mib)
{
    volatile char *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        fprintf(to, "error: %s\n", strerror(errno));
        return;
    }
    for (size_t i = 0; i < mib << 20; i += 4096)
        memory[i] = 1;
    fputs("ok\n", to);
}

static int vsock(unsigned cid, unsigned port, int (*use)(int, const struct sockaddr *, socklen_t))
{
    struct sockaddr_vm where = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return fd < 0 || use(fd, (struct sockaddr *)&where, sizeof where) ? -1 : fd;
}

/* "forge": speaks to the host as if it were smol-guest, and tries to take the ports on which that
 * listens. The error of each of the four attempts, 0 if it succeeded. */
static void forge(FILE *to)
{
    static const char event[] = "{\"service_exited\":{\"status\":{\"exited\":4}}}\n";
    for (unsigned port = 1024; port < 1028; port++) {
        bool to_host = port < 1026;
        int fd = vsock(to_host ? VMADDR_CID_HOST : VMADDR_CID_ANY, port, to_host ? connect : bind);
        fprintf(to, "%s%d", port > 1024 ? " " : "", fd < 0 ? errno : 0);
        if (fd >= 0 && to_host && write(fd, event, sizeof event - 1) < 0)
            fprintf(to, "(unsent)");
    }
    fputc('\n', to);
}

/* "console": prints the text on the console. */
static void print_on_console(FILE *to, const char *text)
{
    FILE *console = fopen("/dev/console", "w");
    fputs(console && fprintf(console, "%s\n", text) > 0 && !fclose(console) ? "ok\n" : "error\n", to);
}

static void answer(FILE *to, const char *command, const char *rest)
{
    char *after;
    unsigned long number = strtoul(rest, &after, 10);

    if (!strcmp(command, "ping")) {
        fputs("pong\n", to);
    } else if (!strcmp(command, "remember")) {
        snprintf(remembered, sizeof remembered, "%s", rest);
        remembered_at = now(CLOCK_MONOTONIC);
        fputs("ok\n", to);
    } else if (!strcmp(command, "recall")) {
        fprintf(to, "%s\n", remembered);
    } else if (!strcmp(command, "since")) { /* when it was told to remember, and now, ns since boot */
        fprintf(to, "%llu %llu\n", (unsigned long long)remembered_at, (unsigned long long)now(CLOCK_MONOTONIC));
    } else if (!strcmp(command, "clock")) { /* wall clock, time since boot, ns */
        fprintf(to, "%llu %llu\n", (unsigned long long)now(CLOCK_REALTIME), (unsigned long long)now(CLOCK_MONOTONIC));
    } else if (!strcmp(command, "ticks")) {
        fprintf(to, "%llu %llu\n", (unsigned long long)ticks, (unsigned long long)backwards);
    } else if (!strcmp(command, "random")) {
        send_random(to);
    } else if (!strcmp(command, "sleep")) {
        fprintf(to, "%llu\n", (unsigned long long)sleep_for(number));
    } else if (!strcmp(command, "naps")) {
        send_naps(to, number, strtoul(after, NULL, 10));
    } else if (!strcmp(command, "vdso")) {
        send_kernel_clocks(to, number);
    } else if (!strcmp(command, "pass")) {
        send_passes(to, number);
    } else if (!strcmp(command, "patch")) {
        send_patches(to, number);
    } else if (!strcmp(command, "keep")) {
        start_keeping(to);
    } else if (!strcmp(command, "kept")) {
        fprintf(to, "%lu %lu\n", atomic_load(&kept), atomic_load(&damaged));
    } else if (!strcmp(command, "read")) {
        send_file(to, rest);
    } else if (!strcmp(command, "bytes")) {
        send_bytes(to, number);
    } else if (!strcmp(command, "touch")) {
        touch(to, number);
    } else if (!strcmp(command, "forge")) {
        forge(to);
    } else if (!strcmp(command, "console")) {
        print_on_console(to, rest);
    } else if (!strcmp(command, "say")) {
        printf("%s\n", rest);
        fputs("ok\n", to);
    } else if (!strcmp(command, "ignore-term")) {
        signal(SIGTERM, SIG_IGN);
        fputs("ok\n", to);
    } else if (!strcmp(command, "exit")) {
        fputs("ok\n", to);
        fclose(to);
        exit(atoi(rest));
    } else {
        fprintf(to, "error: no command %s\n", command);
    }
}

static void serve_one(int connection)
{
    char line[LINE];
    FILE *stream = fdopen(connection, "r+");
    if (!stream) {
        close(connection);
        return;
    }
    if (fgets(line, sizeof line, stream)) {
        line[strcspn(line, "\r\n")] = 0;
        char *rest = strchr(line, ' ');
        if (rest)
            *rest++ = 0;
        answer(stream, line, rest ? rest : "");
    }
    fclose(stream);
}

static struct sockaddr_in address(void)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int serve(void)
{
    struct sockaddr_in where = address();
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    signal(SIGTERM, stop);
    signal(SIGPIPE, SIG_IGN);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&where, sizeof where) || listen(listener, 64))
        return fail("cannot listen");
    printf("serving\n");
    for (;;) {
        struct pollfd ready = {.fd = listener, .events = POLLIN};
        int n = poll(&ready, 1, TICK_MS);
        tick();
        if (n > 0) {
            int connection = accept(listener, NULL, NULL);
            if (connection >= 0)
                serve_one(connection);
        }
    }
}

static int ask(int count, char **words)
{
    struct sockaddr_in where = address();
    char block[4096];
    ssize_t n;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&where, sizeof where))
        return fail("cannot connect");
    for (int i = 0; i < count; i++)
        dprintf(fd, "%s%s", words[i], i + 1 < count ? " " : "\n");
    while ((n = read(fd, block, sizeof block)) > 0)
        fwrite(block, 1, n, stdout);
    return n < 0;
}

static int draw(const char *path)
{
    uint64_t number;
    FILE *file = fopen(path, "w");
    if (!file || getrandom(&number, sizeof number, 0) != sizeof number)
        return fail(path);
    fprintf(file, "%016llx\n", (unsigned long long)number);
    return fclose(file) ? fail(path) : 0;
}

/* Waits for another process without ever letting it run: only a timer interrupt can. */
static int spin(void)
{
    volatile int *stop = mmap(NULL, sizeof *stop, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child;
    if (stop == MAP_FAILED)
        return fail("mmap");
    child = fork();
    if (child < 0)
        return fail("fork");
    if (child == 0) {
        poll(NULL, 0, 1);
        *stop = 1;
        _exit(0);
    }
    while (!*stop)
        ;
    return serve();
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && !strcmp(argv[1], "--never")) {
        printf("not going to listen\n");
        for (;;)
            pause();
    }
    if (argc > 2 && !strcmp(argv[1], "--exit")) {
        fprintf(stderr, "service: there is no configuration\n");
        return atoi(argv[2]);
    }
    if (argc > 1 && !strcmp(argv[1], "--daemon")) {
        if (fork() != 0)
            return 0;
        for (;;)
            pause();
    }
    if (argc > 2 && !strcmp(argv[1], "--draw"))
        return draw(argv[2]);
    if (argc > 2 && !strcmp(argv[1], "--late")) {
        sleep(atoi(argv[2]));
        return serve();
    }
    if (argc > 2 && !strcmp(argv[1], "--port")) {
        port = atoi(argv[2]);
        return serve();
    }
    if (argc > 1 && !strcmp(argv[1], "--spin"))
        return spin();
    if (argc > 1 && !strcmp(argv[1], "--avx"))
        __asm__ volatile("vpaddd %ymm0, %ymm0, %ymm0; vzeroupper");
    if (argc > 2 && !strcmp(argv[1], "ask"))
        return ask(argc - 2, argv + 2);
    return serve();
}
