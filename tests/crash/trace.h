/* trace.h - children that can be stopped after any of their instructions, and the traces by which they are brought there. */
#ifndef TRACE_H
#define TRACE_H

#include "internal.h"
#include "report.h"

#ifndef __x86_64__
#error "single steps, breakpoints and the decoding of instructions here are those of x86-64"
#endif

#define PAYLOAD 256u

/* ---- the journal of a child ----------------------------------------------------------------------------------------------- */

typedef struct step_of {
    volatile uint64_t id, word, nbytes; /* nbytes: of what was acquired, once it was copied */
    volatile uint32_t index, done;
    volatile int rc;
    volatile uint32_t begun; /* releases: the call was made */
} step_of;

typedef struct journal {
    volatile uint32_t member;
    volatile uint32_t claiming, claims, refused;
    volatile uint32_t trims; /* slots that a trim may have claimed */
    volatile uint32_t acquiring;
    volatile uint32_t n_pub, n_con;
    volatile int bad; /* what a verb should not have said; or EIO: a torn item */
    volatile int64_t at_ns;
    step_of pub[4];
    step_of con[4];
    uint8_t copy[2][PAYLOAD];
} journal;

/* ---- children: started, stepped, killed --------------------------------------------------------------------------------------- */

typedef struct child {
    pid_t pid;
    journal *j;
    bool alive, hung;
    bool produced; /* had the producer's role when it died */
} child;

extern const char crash_begin[], crash_end[];

/* The two markers. Everything between them is stepped, with whatever it calls in libc. */
__attribute__((noinline)) static void run_marked(void (*body)(void)) {
    __asm__ volatile("int3\n.globl crash_begin\ncrash_begin: nop" ::: "memory");
    body();
    __asm__ volatile("int3\n.globl crash_end\ncrash_end: nop" ::: "memory");
}

static shmt_segment *SEG; /* in a child: its handle, its journal, who it is */
static journal *J;
static uint64_t WHO;

static volatile pid_t stepping; /* for the watchdog */
static volatile sig_atomic_t watchdog_bit;
static inline void watchdog(int sig) {
    (void)sig;
    watchdog_bit = 1;
    if (stepping > 0) {
        kill(stepping, SIGKILL);
    } else {
        static const char text[] = "hung, in the observer\n";
        _exit(write(2, text, sizeof text - 1) < 0 ? 3 : 2);
    }
}

static inline journal *new_journal(void) {
    journal *j = mmap(NULL, SHMT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(j != MAP_FAILED);
    return j;
}

/* Waits for the next stop; false: the child is dead. */
static inline bool child_stopped(child *c) {
    int status;
    pid_t got;
    stepping = c->pid;
    alarm(10);
    while ((got = waitpid(c->pid, &status, __WALL)) < 0 && errno == EINTR) {
    }
    stepping = 0;
    alarm(10); /* for the observer, until the next stop */
    NEED(got == c->pid);
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP) {
        return true;
    }
    c->alive = false;
    c->hung = watchdog_bit != 0;
    watchdog_bit = 0;
    if (WIFSTOPPED(status)) { /* SIGSEGV, say */
        fail("a child got signal %d", WSTOPSIG(status));
        kill(c->pid, SIGKILL);
        NEED(waitpid(c->pid, &status, __WALL) == c->pid);
    } else if (c->hung) {
        fail("a child hung");
    } else {
        fail("a child died by itself, status 0x%x", (unsigned)status);
    }
    return false;
}

/* Forks a child, which gets ready and stops at the first marker. */
static inline void child_start(child *c, shmt_segment *seg, uint64_t who, void (*prepare)(void), void (*body)(void)) {
    memset(c->j, 0, sizeof *c->j);
    c->hung = c->produced = false;
    c->pid = fork();
    NEED(c->pid >= 0);
    if (c->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        SEG = seg;
        J = c->j;
        WHO = who;
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
            _exit(99);
        }
        if (prepare) {
            prepare();
        }
        run_marked(body);
        _exit(0);
    }
    c->alive = true;
    NEED(child_stopped(c));
}

static inline uint64_t child_rip(const child *c) {
    errno = 0;
    long rip = ptrace(PTRACE_PEEKUSER, c->pid, (void *)offsetof(struct user_regs_struct, rip), NULL);
    NEED(errno == 0);
    return (uint64_t)rip;
}

static inline bool at_end(uint64_t rip) { return rip == (uint64_t)(uintptr_t)crash_end; }

static inline bool child_step(child *c) {
    NEED(ptrace(PTRACE_SINGLESTEP, c->pid, NULL, NULL) == 0);
    return child_stopped(c);
}

/* To the second marker, at full speed. */
static inline bool child_finish(child *c) {
    if (c->alive && !at_end(child_rip(c))) {
        NEED(ptrace(PTRACE_CONT, c->pid, NULL, NULL) == 0);
        if (child_stopped(c)) {
            NEED(at_end(child_rip(c)));
        }
    }
    return c->alive;
}

static inline void child_kill(child *c) {
    if (c->alive) {
        int status;
        NEED(kill(c->pid, SIGKILL) == 0);
        NEED(waitpid(c->pid, &status, __WALL) == c->pid);
        NEED(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        c->alive = false;
    }
}

/* ---- traces: one run, instruction by instruction, to find the others' ways by ------------------------------------------------- */

enum {
    CHANGED = 1, /* the instruction before changed shared bytes */
    CALLED = 2,  /* it was a system call */
    NEXT_ATOMIC = 4,
    NEXT_CALL = 8,
    REPEATED = 16, /* still within the same instruction with a repeat prefix */
};

typedef struct trace_point {
    uint64_t rip;
    uint32_t visit; /* how often this address was reached before */
    uint32_t flags;
} trace_point;

typedef struct trace {
    trace_point *at; /* at[k]: after k instructions */
    uint32_t n;      /* the last point is n - 1 */
    uint8_t *before;
} trace;

#define TRACE_MAX (1u << 20)

/* Not from the heap: every child inherits ours, and must find it as the first one did to go the same way. */
static inline void *map_private(size_t nbytes) {
    void *at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    NEED(at != MAP_FAILED);
    return at;
}

static inline void trace_begin(trace *t) {
    *t = (trace){.at = map_private(TRACE_MAX * sizeof *t->at), .before = map_private(1u << 20)};
}

static inline void trace_end(trace *t) {
    munmap(t->at, TRACE_MAX * sizeof *t->at);
    munmap(t->before, 1u << 20);
}

/* What kind of instruction stands at `rip`; a child has the same text as we do. */
static inline uint32_t kind_of_code(uint64_t rip) {
    const uint8_t *code = (const uint8_t *)(uintptr_t)rip; // NOLINT
    bool locked = false;
    if (code[0] == 0x0f && code[1] == 0x05) {
        return NEXT_CALL;
    }
    while (*code == 0xf0 || *code == 0x66 || *code == 0xf2 || *code == 0xf3 || *code == 0x2e || *code == 0x3e) {
        locked |= *code++ == 0xf0;
    }
    code += (*code & 0xf0) == 0x40;
    bool exchange = (code[0] == 0x86 || code[0] == 0x87) && code[1] < 0xc0; /* with memory: locked without a prefix */
    return locked || exchange ? NEXT_ATOMIC : 0;
}

static inline bool text_is_readable(uint64_t rip) {
    static uint64_t page = 1;
    static bool readable;
    if (rip >> 12 != page) {
        unsigned char in_core;
        page = rip >> 12;
        readable = mincore((void *)(uintptr_t)(page << 12), 1, &in_core) == 0; // NOLINT
    }
    return readable;
}

static inline void trace_add(trace *t, uint64_t rip, uint32_t flags) {
    NEED(t->n < TRACE_MAX);
    uint32_t visit = 0;
    for (uint32_t k = t->n; k-- > 0;) {
        if (t->at[k].rip == rip) {
            visit = t->at[k].visit + 1;
            break;
        }
    }
    flags |= t->n && t->at[t->n - 1].rip == rip ? REPEATED : 0;
    flags |= text_is_readable(rip) ? kind_of_code(rip) : 0;
    t->at[t->n++] = (trace_point){.rip = rip, .visit = visit, .flags = flags};
}

/* Steps a started child to its end. `seg` may be NULL: then no bytes are compared. */
static inline bool trace_record(trace *t, child *c, const shmt_segment *seg) {
    uint8_t *before = t->before;
    t->n = 0;
    NEED(!seg || seg->geo.data_offset <= 1u << 20);
    if (seg) {
        memcpy(before, seg->base, seg->geo.data_offset);
    }
    for (uint32_t flags = 0;;) {
        uint64_t rip = child_rip(c);
        trace_add(t, rip, flags);
        if (at_end(rip) || !child_step(c)) {
            break;
        }
        flags = t->at[t->n - 1].flags & NEXT_CALL ? CALLED : 0;
        if (seg && memcmp(before, seg->base, seg->geo.data_offset) != 0) {
            memcpy(before, seg->base, seg->geo.data_offset);
            flags |= CHANGED;
        }
    }
    return c->alive;
}

/* Points between which nothing that outlives the process can change, and no atomic operation falls, are alike. */
static inline bool distinct(const trace *t, uint32_t k) {
    return k == 0 || k + 1 == t->n || (t->at[k].flags & (CHANGED | CALLED | NEXT_ATOMIC | NEXT_CALL)) != 0;
}

static inline void poke_byte(const child *c, uint64_t at, uint8_t byte) {
    uint64_t base = at & ~UINT64_C(7);
    errno = 0;
    uint64_t word = (uint64_t)ptrace(PTRACE_PEEKTEXT, c->pid, (void *)(uintptr_t)base, NULL); // NOLINT
    NEED(errno == 0);
    memcpy((uint8_t *)&word + (at - base), &byte, 1);
    NEED(ptrace(PTRACE_POKETEXT, c->pid, (void *)(uintptr_t)base, (void *)(uintptr_t)word) == 0); // NOLINT
}

/* Brings a freshly started child to point k of the trace: by a breakpoint at a place from which few steps are left, or by
 * `steps_only`, which counts. */
static inline bool child_goto(child *c, const trace *t, uint32_t k, bool steps_only) {
    uint32_t best = steps_only ? 0 : k, from = 0;
    for (uint32_t m = k + 2 < t->n ? k : k - (k + 3 - t->n); m > 0 && k - m < best;
         m--) { /* the last step is the marker */
        uint32_t cost = k - m + 4 + 4 * t->at[m].visit;
        if (cost < best) {
            best = cost;
            from = m;
        }
    }
    if (from > 0) {
        uint64_t rip = t->at[from].rip;
        const uint8_t code = *(const uint8_t *)(uintptr_t)rip; // NOLINT
        for (uint32_t visit = 0; visit <= t->at[from].visit; visit++) {
            if (visit == 0 && t->at[0].rip == rip) {
                continue; /* we stand there */
            }
            if (child_rip(c) == rip && !child_step(c)) {
                return false;
            }
            if (child_rip(c) != rip) { /* a repeat prefix: the step left us there */
                poke_byte(c, rip, 0xcc);
                NEED(ptrace(PTRACE_CONT, c->pid, NULL, NULL) == 0);
                if (!child_stopped(c)) {
                    return false;
                }
                if (at_end(child_rip(c))) {
                    break;
                }
                NEED(child_rip(c) == rip + 1);
                poke_byte(c, rip, code);
                NEED(ptrace(PTRACE_POKEUSER, c->pid, (void *)offsetof(struct user_regs_struct, rip),
                            (void *)(uintptr_t)rip) == 0); // NOLINT
            }
        }
    }
    for (uint32_t steps = from; steps < k && !at_end(child_rip(c)); steps++) {
        if (!child_step(c)) {
            return false;
        }
    }
    now.rip = child_rip(c);
    return true;
}

/* ---- the machine ------------------------------------------------------------------------------------------------------- */

/* What a machine must allow, or the reason to skip; then a core and a /dev/shm of this run's own, where they can be had. */
static inline void start_up(int core) {
    const char *show = getenv("CRASH_SHOW");
    shown_max = show ? (uint32_t)atoi(show) : shown_max;
    setvbuf(stdout, NULL, _IOLBF, 0);
    pid_t pid = fork();
    NEED(pid >= 0);
    if (pid == 0) {
        _exit(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0 ? (raise(SIGSTOP), 0) : 1);
    }
    int status;
    NEED(waitpid(pid, &status, 0) == pid);
    bool works = WIFSTOPPED(status) && ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0;
    if (WIFSTOPPED(status)) {
        kill(pid, SIGKILL);
        while (waitpid(pid, &status, 0) == pid && !WIFSIGNALED(status) && !WIFEXITED(status)) {
        }
    }
    if (!works) {
        printf("SKIP: ptrace is not permitted here\n");
        exit(77);
    }
    struct sigaction action = {.sa_handler = watchdog};
    NEED(sigaction(SIGALRM, &action, NULL) == 0);
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=64m") != 0) {
        printf("(names are tried in the machine's own /dev/shm)\n");
    }
    cpu_set_t usable, one;
    NEED(sched_getaffinity(0, sizeof usable, &usable) == 0);
    CPU_ZERO(&one);
    for (int cpu = 0, skip = core % CPU_COUNT(&usable); cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &usable) && skip-- == 0) {
            CPU_SET(cpu, &one);
        }
    }
    sched_setaffinity(0, sizeof one, &one); /* a switch on one core is twice as fast as one between two */
}

#endif
