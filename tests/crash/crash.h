/* crash.h - what a death may not do: a small world that is put back before each run, children that can be stopped after any
 * of their instructions, and the laws that hold once the dead are reclaimed.
 *
 * A *child* writes what it is about to do and what it has done into a journal that survives it. Only what lies between
 * "about to" and "done" is looked up in the slot words at its death (resolve()); everything else follows from the journal:
 *
 *   an item whose publish returned is consumed exactly once in all, by a child that released it or by the observer;
 *   an item whose publish did not begin is never seen;
 *   an item is redelivered once for each consumer that died holding it, says so in `tries`, and is dropped after three;
 *   with SHMT_DROP it is then not seen again at all;
 *   payloads are whole, items of one producer come in order, every slot is usable again, the figures add up.
 *
 * The *observer* is the process that runs the test: one more member, which reclaims, drains and counts. */
#ifndef CRASH_H
#define CRASH_H

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#ifndef __x86_64__
#error "single steps, breakpoints and the decoding of instructions here are those of x86-64"
#endif

#define MS INT64_C(1000000)
#define PATIENCE (1000 * MS) /* nobody waits longer than this for anything */
#define PAYLOAD 256u
#define ITEMS_MAX 32u

/* ---- what this run is about, and complaints ---------------------------------------------------------------------------- */

static struct {
    const char *scenario, *wrap, *mode;
    uint32_t point;       /* instructions done; of the second process in the high half, where there are two */
    uint64_t rip;         /* where it was stopped */
    bool failed;          /* this point */
    uint32_t shown;       /* complaints printed of this scenario */
    uint64_t points, failures, drifted; /* of this scenario */
    uint64_t all_points, all_failures;
} now;

static uint32_t shown_max = 4;

/* A mistake of the test or of the system, not a finding. */
static void give_up(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: %s (%s, %s, %s, point %u): %s\n", file, line, what, now.scenario ? now.scenario : "start",
            now.wrap ? now.wrap : "-", now.mode ? now.mode : "-", now.point, strerror(errno));
    fflush(stderr);
    _exit(3);
}
#define NEED(condition) ((condition) ? (void)0 : give_up(__FILE__, __LINE__, "not so: " #condition))

/* The function and line of an address of this program or of a library, for people. */
static void where(uint64_t rip, char *text, size_t size) {
    char self[512], command[700];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    snprintf(text, size, "0x%" PRIx64, rip);
    if (n <= 0) {
        return;
    }
    self[n] = '\0';
    snprintf(command, sizeof command, "addr2line -fipse '%s' 0x%" PRIx64 " 2>/dev/null", self, rip);
    FILE *f = popen(command, "r");
    if (f) {
        if (fgets(text, (int)size, f)) {
            text[strcspn(text, "\n")] = '\0';
        }
        pclose(f);
    }
}

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void fail(const char *format, ...) {
    if (!now.failed) {
        now.failed = true;
        now.failures++;
        if (now.shown++ < shown_max) {
            char text[300], at[300];
            va_list args;
            va_start(args, format);
            vsnprintf(text, sizeof text, format, args);
            va_end(args);
            where(now.rip, at, sizeof at);
            printf("  FAIL %s, %s, %s: point %u, before %s: %s\n", now.scenario, now.wrap, now.mode, now.point, at, text);
        }
    }
}
#define LAW(condition, ...) ((condition) ? (void)0 : fail(__VA_ARGS__))

/* ---- items ------------------------------------------------------------------------------------------------------------- */

enum { BY_MAKER = 1, BY_DEAD, BY_A, BY_B, BY_OBSERVER, BY_FILLER };
#define ITEM(who, number) ((uint64_t)(who) << 16 | (uint64_t)(number))

static uint32_t item_nbytes(uint64_t id) { return 40 + (uint32_t)(id * 37 % 200); }

static void fill(uint8_t *data, uint64_t id, uint32_t nbytes) {
    memcpy(data, &id, sizeof id);
    for (uint32_t i = sizeof id; i < nbytes; i++) {
        data[i] = (uint8_t)(id * 31 + i * 7 + (id >> 16));
    }
}

static uint64_t item_of(const uint8_t *data) {
    uint64_t id;
    memcpy(&id, data, sizeof id);
    return id;
}

static bool whole(const uint8_t *data, uint64_t nbytes) {
    uint64_t id = item_of(data);
    bool same = nbytes >= sizeof id && nbytes <= PAYLOAD;
    for (uint32_t i = sizeof id; same && i < nbytes; i++) {
        same = data[i] == (uint8_t)(id * 31 + i * 7 + (id >> 16));
    }
    return same;
}

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
    volatile uint32_t acquiring;
    volatile uint32_t n_pub, n_con;
    volatile int bad; /* what a verb should not have said; or EIO: a torn item */
    volatile int64_t at_ns;
    step_of pub[4];
    step_of con[4];
    uint8_t copy[2][PAYLOAD];
} journal;

/* ---- the world --------------------------------------------------------------------------------------------------------------- */

enum { DURABLE, HELD, NEVER }; /* what an item of the state before was: READY; READING of a dead one; WRITING of one */

typedef struct prior_item {
    uint64_t id;
    uint32_t kind, tries, unpushed;
} prior_item;

typedef struct world {
    shmt_segment *seg; /* the observer's */
    shmt_segment handle;
    uint8_t *image;
    uint64_t *mapped;
    shmt_stats stats;
    uint32_t closed; /* producers, of the state before */
    uint32_t dead_member;
    uint32_t n_prior;
    prior_item prior[8];
    /* what the observer has seen since */
    uint32_t n_seen;
    struct {
        uint64_t id;
        uint32_t tries;
    } seen[ITEMS_MAX];
    uint32_t n_put, claims, pushes, refused; /* the observer's own, in between; refused: claims after the end */
    bool acquired;
    int last; /* what ended the last drain */
} world;

static uint8_t *payload_of(const world *w, uint32_t index) { return w->seg->data + index * w->seg->geo.slot_stride; }

static uint64_t word_of(const world *w, uint32_t index) { return shmt_load_seq_cst(&w->seg->slots[index].word); }

static uint32_t id_of_pid(const world *w, pid_t pid) {
    for (uint32_t id = 1; id <= w->seg->geo.members; id++) {
        if (shmt_load_seq_cst(&w->seg->records[id].pid) == (uint32_t)pid) {
            return id;
        }
    }
    return 0;
}

/* The control words and the first bytes of each slot; the rest of a growing slot is nobody's concern. */
static void world_copy(world *w, bool back) {
    shmt_segment *seg = w->seg;
    uint8_t *image = w->image;
    const size_t head = seg->geo.data_offset;
    back ? memcpy(seg->base, image, head) : memcpy(image, seg->base, head);
    image += head;
    for (uint32_t i = 0; i < seg->geo.slots; i++, image += PAYLOAD) {
        back ? memcpy(payload_of(w, i), image, PAYLOAD) : memcpy(image, payload_of(w, i), PAYLOAD);
    }
}

static size_t image_nbytes(const world *w) { return w->seg->geo.data_offset + w->seg->geo.slots * PAYLOAD; }

static void world_keep(world *w) {
    NEED((w->image = malloc(image_nbytes(w))) != NULL);
    NEED((w->mapped = calloc(w->seg->geo.slots, sizeof *w->mapped)) != NULL);
    memcpy(w->mapped, w->seg->mapped, w->seg->geo.slots * sizeof *w->mapped);
    world_copy(w, false);
    w->handle = *w->seg;
    w->closed = shmt_load_seq_cst(&w->seg->header->producers_closed);
    NEED(shmt_stats_get(w->seg, &w->stats) == 0);
}

/* All children are dead, so what is in the bytes, and in the observer's handle, is all there is. */
static void world_restore(world *w) {
    world_copy(w, true);
    *w->seg = w->handle;
    memcpy(w->seg->mapped, w->mapped, w->seg->geo.slots * sizeof *w->mapped);
    w->n_seen = w->n_put = w->claims = w->pushes = w->refused = 0;
    w->acquired = false;
    w->last = 0;
    now.failed = false;
}

static void world_end(world *w) {
    free(w->image);
    free(w->mapped);
    shmt_segment_drop(w->seg);
    *w = (world){0};
}

/* ---- children: started, stepped, killed --------------------------------------------------------------------------------------- */

typedef struct child {
    pid_t pid;
    journal *j;
    bool alive, hung;
    bool produced; /* had the producer's role when it died */
} child;

extern const char crash_begin[], crash_end[];

/* The two markers. Everything between them is stepped, with whatever it calls in libc. */
__attribute__((noinline, noclone)) static void run_marked(void (*body)(void)) {
    __asm__ volatile("int3\n.globl crash_begin\ncrash_begin: nop" ::: "memory");
    body();
    __asm__ volatile("int3\n.globl crash_end\ncrash_end: nop" ::: "memory");
}

static shmt_segment *SEG; /* in a child: its handle, its journal, who it is */
static journal *J;
static uint64_t WHO;

static volatile pid_t stepping; /* for the watchdog */
static volatile sig_atomic_t watchdog_bit;
static void watchdog(int sig) {
    (void)sig;
    watchdog_bit = 1;
    if (stepping > 0) {
        kill(stepping, SIGKILL);
    } else {
        static const char text[] = "hung, in the observer\n";
        _exit(write(2, text, sizeof text - 1) < 0 ? 3 : 2);
    }
}

static journal *new_journal(void) {
    journal *j = mmap(NULL, SHMT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    NEED(j != MAP_FAILED);
    return j;
}

/* Waits for the next stop; false: the child is dead. */
static bool child_stopped(child *c) {
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
static void child_start(child *c, world *w, uint64_t who, void (*prepare)(void), void (*body)(void)) {
    memset(c->j, 0, sizeof *c->j);
    c->hung = c->produced = false;
    c->pid = fork();
    NEED(c->pid >= 0);
    if (c->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        SEG = w ? w->seg : NULL;
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

static uint64_t child_rip(const child *c) {
    errno = 0;
    long rip = ptrace(PTRACE_PEEKUSER, c->pid, (void *)offsetof(struct user_regs_struct, rip), NULL);
    NEED(errno == 0);
    return (uint64_t)rip;
}

static bool at_end(uint64_t rip) { return rip == (uint64_t)(uintptr_t)crash_end; }

static bool child_step(child *c) {
    NEED(ptrace(PTRACE_SINGLESTEP, c->pid, NULL, NULL) == 0);
    return child_stopped(c);
}

/* To the second marker, at full speed. */
static bool child_finish(child *c) {
    if (c->alive && !at_end(child_rip(c))) {
        NEED(ptrace(PTRACE_CONT, c->pid, NULL, NULL) == 0);
        if (child_stopped(c)) {
            NEED(at_end(child_rip(c)));
        }
    }
    return c->alive;
}

static void child_kill(child *c) {
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
static void *map_private(size_t nbytes) {
    void *at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    NEED(at != MAP_FAILED);
    return at;
}

static void trace_begin(trace *t) {
    *t = (trace){.at = map_private(TRACE_MAX * sizeof *t->at), .before = map_private(1u << 20)};
}

static void trace_end(trace *t) {
    munmap(t->at, TRACE_MAX * sizeof *t->at);
    munmap(t->before, 1u << 20);
}

/* What kind of instruction stands at `rip`; a child has the same text as we do. */
static uint32_t kind_of_code(uint64_t rip) {
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

static bool text_is_readable(uint64_t rip) {
    static uint64_t page = 1;
    static bool readable;
    if (rip >> 12 != page) {
        unsigned char in_core;
        page = rip >> 12;
        readable = mincore((void *)(uintptr_t)(page << 12), 1, &in_core) == 0; // NOLINT
    }
    return readable;
}

static void trace_add(trace *t, uint64_t rip, uint32_t flags) {
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

/* Steps a started child to its end. `w` may be NULL: then only system calls are told apart. */
static bool trace_record(trace *t, child *c, world *w) {
    uint8_t *before = t->before;
    t->n = 0;
    NEED(!w || w->seg->geo.data_offset <= 1u << 20);
    if (w) {
        memcpy(before, w->seg->base, w->seg->geo.data_offset);
    }
    for (uint32_t flags = 0;;) {
        uint64_t rip = child_rip(c);
        trace_add(t, rip, flags);
        if (at_end(rip) || !child_step(c)) {
            break;
        }
        flags = t->at[t->n - 1].flags & NEXT_CALL ? CALLED : 0;
        if (w && memcmp(before, w->seg->base, w->seg->geo.data_offset) != 0) {
            memcpy(before, w->seg->base, w->seg->geo.data_offset);
            flags |= CHANGED;
        }
    }
    return c->alive;
}

/* Points between which nothing that outlives the process can change, and no atomic operation falls, are alike. */
static bool distinct(const trace *t, uint32_t k) {
    return k == 0 || k + 1 == t->n || (t->at[k].flags & (CHANGED | CALLED | NEXT_ATOMIC | NEXT_CALL)) != 0;
}

static void poke_byte(const child *c, uint64_t at, uint8_t byte) {
    uint64_t base = at & ~UINT64_C(7);
    errno = 0;
    uint64_t word = (uint64_t)ptrace(PTRACE_PEEKTEXT, c->pid, (void *)(uintptr_t)base, NULL); // NOLINT
    NEED(errno == 0);
    memcpy((uint8_t *)&word + (at - base), &byte, 1);
    NEED(ptrace(PTRACE_POKETEXT, c->pid, (void *)(uintptr_t)base, (void *)(uintptr_t)word) == 0); // NOLINT
}

/* Brings a freshly started child to point k of the trace: by a breakpoint at a place from which few steps are left, or by
 * `steps_only`, which counts. */
static bool child_goto(child *c, const trace *t, uint32_t k, bool steps_only) {
    uint32_t best = steps_only ? 0 : k, from = 0;
    for (uint32_t m = k + 2 < t->n ? k : k - (k + 3 - t->n); m > 0 && k - m < best; m--) { /* the last step is the marker */
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

/* ---- what the journal leaves open is looked up, at the moment of death ------------------------------------------------------ */

static void resolve(world *w, journal *j) {
    const uint32_t me = j->member, slots = w->seg->geo.slots;
    if (j->claiming) {
        uint32_t found = 0;
        for (uint32_t i = 0; i < slots; i++) {
            found += shmt_word_state(word_of(w, i)) == SHMT_WRITING && shmt_word_owner(word_of(w, i)) == me;
        }
        j->claims = found;
        j->claiming = 0;
    }
    if (j->acquiring) {
        j->n_con = 0;
        for (uint32_t i = 0; i < slots; i++) {
            uint64_t word = word_of(w, i);
            if (shmt_word_is_reading(word) && shmt_word_owner(word) == me && j->n_con < 4) {
                step_of *e = &j->con[j->n_con++];
                e->id = item_of(payload_of(w, i));
                e->index = i;
                e->word = word;
                e->begun = e->done = 0;
                e->nbytes = 0;
            }
        }
        j->acquiring = 0;
    }
    for (uint32_t k = 0; k < j->n_con && k < 2; k++) {
        LAW(j->con[k].nbytes == 0 || whole(j->copy[k], j->con[k].nbytes), "a child acquired a torn item");
    }
    LAW(j->bad == 0, "a verb of the child said %d (%s)", j->bad, strerror(abs(j->bad)));
    for (uint32_t k = 0; k < j->n_pub; k++) {
        step_of *e = &j->pub[k];
        if (!e->done) {
            e->rc = word_of(w, e->index) != e->word ? 0 : -ECANCELED;
            e->done = 1;
        }
    }
    for (uint32_t k = 0; k < j->n_con; k++) {
        step_of *e = &j->con[k];
        if (e->begun && !e->done && word_of(w, e->index) != e->word) {
            e->rc = 0;
            e->done = 1;
        }
    }
}

/* ---- the observer -------------------------------------------------------------------------------------------------------------- */

static bool observe_one(world *w) {
    shmt_slot slot;
    w->last = shmt_slot_try_acquire(w->seg, &slot);
    w->acquired = true;
    if (w->last != 0) {
        return false;
    }
    uint64_t id = item_of(slot.data);
    LAW(whole(slot.data, slot.nbytes), "item %" PRIx64 " is torn (%" PRIu64 " bytes)", id, slot.nbytes);
    LAW(slot.tag == id || slot.tag == 0, "item %" PRIx64 " has tag %" PRIx64, id, slot.tag);
    if (w->n_seen < ITEMS_MAX) {
        w->seen[w->n_seen].id = id;
        w->seen[w->n_seen++].tries = slot.tries;
    }
    int rc = shmt_slot_release(w->seg, &slot);
    LAW(rc == 0, "the observer's release of %" PRIx64 ": %s", id, strerror(-rc));
    return true;
}

static void drain(world *w) {
    for (uint32_t turn = 0; turn < ITEMS_MAX && observe_one(w); turn++) {
    }
    LAW(w->last == -EAGAIN || w->last == -ESHUTDOWN || w->last == -EOWNERDEAD, "a drain ended with %d (%s)", w->last,
        strerror(-w->last));
}

static bool put_id(world *w, uint64_t id) {
    shmt_slot slot;
    int rc = shmt_slot_try_claim(w->seg, &slot);
    LAW(rc == 0 || rc == -EAGAIN || rc == -ESHUTDOWN, "the observer's claim: %s", strerror(-rc));
    if (rc != 0) {
        w->refused += rc == -ESHUTDOWN; /* claimed, saw the end, and gave the slot back */
        return false;
    }
    w->claims++;
    fill(slot.data, id, item_nbytes(id));
    rc = shmt_slot_publish(w->seg, &slot, item_nbytes(id), id);
    LAW(rc == 0, "the observer's publish: %s", strerror(-rc));
    w->pushes++;
    return true;
}

static void put_between(world *w) {
    if (put_id(w, ITEM(BY_OBSERVER, w->n_put + 1))) {
        w->n_put++;
    }
}

/* All slots can be claimed, no more; what is published comes back whole and in order. More rounds than the ring has laps. */
static void check_capacity(world *w) {
    const uint32_t slots = w->seg->geo.slots;
    uint32_t number = 0;
    shmt_store_relaxed(&w->seg->header->shut, 0); /* had the stream ended: we want to see the slots all the same */
    for (uint32_t round = 0; round < 1 + w->seg->geo.ring / slots && !now.failed; round++) {
        shmt_slot claimed[16], one;
        uint32_t got = 0;
        int rc;
        while ((rc = shmt_slot_try_claim(w->seg, &one)) == 0 && got < slots) {
            claimed[got++] = one;
        }
        LAW(rc == -EAGAIN && got == slots, "%u of %u slots can be claimed, then %s", got, slots, strerror(-rc));
        uint32_t first = number;
        for (uint32_t k = 0; k < got; k++) {
            uint64_t id = ITEM(BY_FILLER, ++number);
            fill(claimed[k].data, id, item_nbytes(id));
            rc = shmt_slot_publish(w->seg, &claimed[k], item_nbytes(id), id);
            LAW(rc == 0, "publish into a slot that was taken back: %s", strerror(-rc));
        }
        w->n_seen = 0;
        drain(w);
        LAW(w->n_seen == got, "%u published afterwards, %u seen", got, w->n_seen);
        for (uint32_t k = 0; k < w->n_seen; k++) {
            LAW(w->seen[k].id == ITEM(BY_FILLER, first + k + 1) && w->seen[k].tries == 0,
                "afterwards item %u of a round is %" PRIx64 ", tries %u", k, w->seen[k].id, w->seen[k].tries);
        }
        w->claims += got;
        w->pushes += got;
    }
}

/* How often `id` was released by a child, and by how many that died it was held. */
static void consumed_by(const journal *j, bool alive, uint64_t id, uint32_t *released, uint32_t *held) {
    for (uint32_t k = 0; k < j->n_con; k++) {
        if (j->con[k].id == id) {
            bool gone = j->con[k].done && j->con[k].rc == 0;
            *released += gone;
            *held += !gone && !alive;
        }
    }
}

typedef struct account {
    uint32_t durable, pushes, redeliveries, drops;
} account;

static void check_item(world *w, child *const *children, uint32_t n, uint64_t id, uint32_t tries, uint32_t held,
                       account *sum) {
    uint32_t released = 0, seen = 0;
    for (uint32_t k = 0; k < n; k++) {
        consumed_by(children[k]->j, children[k]->alive, id, &released, &held);
    }
    uint32_t last = 0;
    for (uint32_t k = 0; k < w->n_seen; k++) {
        if (w->seen[k].id == id) {
            seen++;
            last = w->seen[k].tries;
        }
    }
    bool drop = (w->seg->geo.flags & SHMT_DROP) != 0;
    bool given_up = drop ? held > 0 : tries + held > SHMT_TRIES_MAX;
    uint32_t total = released + seen;
    LAW(total == (given_up ? 0 : 1), "item %" PRIx64 " was %s: released %u times by children, seen %u times, held by %u dead",
        id, total == 0 ? "lost" : given_up ? "not dropped" : "doubled", released, seen, held);
    LAW(seen == 0 || last == tries + held, "item %" PRIx64 " came with %u tries instead of %u", id, last, tries + held);
    uint32_t again = drop ? 0 : tries + held > SHMT_TRIES_MAX ? SHMT_TRIES_MAX - tries : held;
    sum->durable++;
    sum->redeliveries += again;
    sum->pushes += again;
    sum->drops += given_up;
}

static void check_items(world *w, child *const *children, uint32_t n, account *sum) {
    for (uint32_t k = 0; k < w->n_prior; k++) {
        const prior_item *p = &w->prior[k];
        if (p->kind != NEVER) {
            check_item(w, children, n, p->id, p->tries, p->kind == HELD, sum);
            sum->pushes += p->unpushed;
        }
    }
    for (uint32_t c = 0; c < n; c++) {
        const journal *j = children[c]->j;
        for (uint32_t k = 0; k < j->n_pub; k++) {
            if (j->pub[k].done && j->pub[k].rc == 0) {
                check_item(w, children, n, j->pub[k].id, 0, 0, sum);
                sum->pushes++;
            }
        }
    }
    for (uint32_t k = 0; k < w->n_put; k++) {
        check_item(w, children, n, ITEM(BY_OBSERVER, k + 1), 0, 0, sum);
    }
    /* Nothing else, and in order. */
    uint64_t newest[BY_FILLER + 1] = {0};
    for (uint32_t s = 0; s < w->n_seen; s++) {
        uint64_t id = w->seen[s].id, who = id >> 16;
        bool known = who == BY_OBSERVER && (id & 0xffff) <= w->n_put;
        for (uint32_t k = 0; k < w->n_prior; k++) {
            known |= w->prior[k].id == id && w->prior[k].kind != NEVER;
        }
        for (uint32_t c = 0; c < n; c++) {
            for (uint32_t k = 0; k < children[c]->j->n_pub; k++) {
                const step_of *e = &children[c]->j->pub[k];
                known |= e->id == id && e->done && e->rc == 0;
            }
        }
        LAW(known, "item %" PRIx64 " was seen and never published", id);
        if (known && w->seen[s].tries == 0) {
            LAW(id > newest[who], "item %" PRIx64 " came after %" PRIx64, id, newest[who]);
            newest[who] = id;
        }
    }
}

/* The figures, once nothing is held by anybody. `slack`: killed reclaimers, each of whose last count may be missing. */
static void check_figures(world *w, child *const *children, uint32_t n, const account *sum, uint32_t slack,
                          uint32_t in_between) {
    shmt_stats s;
    NEED(shmt_stats_get(w->seg, &s) == 0);
    uint32_t alive = 1, claims = w->claims, refused = w->refused;
    for (uint32_t c = 0; c < n; c++) {
        alive += children[c]->alive && id_of_pid(w, children[c]->pid) != 0;
        claims += children[c]->j->claims;
        refused += children[c]->j->refused;
    }
    LAW(s.free == w->seg->geo.slots, "%" PRIu64 " slots are free in the end, %" PRIu64 " writing, %" PRIu64 " ready, %" PRIu64
        " reading", s.free, s.writing, s.ready, s.reading);
    LAW(s.members == alive, "%" PRIu64 " members instead of %u", s.members, alive);
    uint64_t redelivered = s.redelivered - w->stats.redelivered, dropped = s.dropped - w->stats.dropped;
    LAW(redelivered <= sum->redeliveries && redelivered + slack >= sum->redeliveries,
        "redelivered %" PRIu64 " times instead of %u", redelivered, sum->redeliveries);
    LAW(dropped <= sum->drops && dropped + slack >= sum->drops, "dropped %" PRIu64 " instead of %u", dropped, sum->drops);
    uint64_t generations = s.claims + s.redelivered - w->stats.claims - w->stats.redelivered;
    uint64_t least = claims + sum->redeliveries;
    LAW(generations >= least && generations <= least + refused, "generations moved by %" PRIu64 " for %u claims and %u redeliveries",
        generations, claims, sum->redeliveries);
    uint64_t pushes = s.publishes - w->stats.publishes;
    /* `in_between`: a reclaimer that stood between its last look and its push repeats what others took: one stale cell. */
    LAW(pushes >= sum->pushes + w->pushes && pushes <= sum->pushes + w->pushes + in_between,
        "%" PRIu64 " pushes instead of %u", pushes, sum->pushes + w->pushes);
    LAW(s.reclaimed - w->stats.reclaimed <= n + (w->dead_member != 0) + slack, "%" PRIu64 " reclaimed of %u",
        s.reclaimed - w->stats.reclaimed, n);
}

/* Nobody dead owns anything any more. */
static void check_owners(world *w, child *const *children, uint32_t n) {
    const uint32_t me = shmt_member_id(w->seg);
    for (uint32_t i = 0; i < w->seg->geo.slots; i++) {
        uint64_t word = word_of(w, i);
        uint32_t owner = shmt_word_owner(word);
        bool fine = owner == 0 || (owner == me && shmt_word_is_ready(word));
        for (uint32_t c = 0; c < n; c++) {
            fine |= children[c]->alive && owner == id_of_pid(w, children[c]->pid);
        }
        LAW(fine, "after reclaim slot %u is %016" PRIx64, i, word);
    }
}

typedef struct ending {
    bool exact;    /* the end of the stream is foretold */
    bool ended;    /* all producers are gone */
    bool by_death; /* fewer closed than were expected */
    uint32_t killed_reclaimers; /* its last count may be missing, or be made twice */
    uint32_t in_between;        /* others acted while a reclaimer stood still */
} ending;

/* Killed between the count and the end of the role, a reclaimer leaves a producer that is counted twice. */
static bool lost_twice(const world *w, child *const *children, uint32_t n) {
    uint32_t dead = (w->dead_member != 0);
    for (uint32_t c = 0; c < n; c++) {
        dead += !children[c]->alive && children[c]->produced;
    }
    uint32_t lost = shmt_load_seq_cst(&w->seg->header->producers_lost);
    LAW(lost <= dead + 1, "%u producers are counted as dead instead of %u", lost, dead);
    return lost > dead;
}

/* Everything that must hold after the deaths: the children's journals are resolved. */
static void check_all(world *w, child *const *children, uint32_t n, ending end) {
    struct timespec begin, finish;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    int rc = shmt_reclaim(w->seg);
    LAW(rc >= 0 && rc <= 1 + (int)n, "reclaim: %d (%s)", rc, rc < 0 ? strerror(-rc) : "too many");
    rc = shmt_reclaim(w->seg);
    LAW(rc == 0, "a second reclaim: %d", rc);
    check_owners(w, children, n);
    drain(w);
    if (end.exact && !(end.killed_reclaimers && lost_twice(w, children, n))) {
        int expected = !end.ended ? -EAGAIN : end.by_death ? -EOWNERDEAD : -ESHUTDOWN;
        LAW(w->last == expected, "an empty acquire says %s instead of %s", strerror(-w->last), strerror(-expected));
    }
    account sum = {0};
    check_items(w, children, n, &sum);
    check_capacity(w);
    check_figures(w, children, n, &sum, end.killed_reclaimers, end.in_between);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &finish);
    int64_t ns = (finish.tv_sec - begin.tv_sec) * 1000 * MS + finish.tv_nsec - begin.tv_nsec;
    LAW(ns < PATIENCE, "to settle this took %" PRId64 " ms", ns / MS);
}

/* ---- results ---------------------------------------------------------------------------------------------------------------------- */

static void report_begin(const char *scenario, const char *wrap, const char *mode) {
    now.scenario = scenario;
    now.wrap = wrap;
    now.mode = mode;
    now.points = now.failures = now.drifted = 0;
    now.shown = 0;
}

/* What a machine must allow, or the reason to skip; then a core and a /dev/shm of this run's own, where they can be had. */
static void start_up(void) {
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
    kill(pid, SIGKILL);
    while (WIFSTOPPED(status) && waitpid(pid, &status, 0) == pid) {
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
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((unsigned)sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one); /* a switch on one core is twice as fast as one between two */
}

static int finish_up(void) {
    alarm(0);
    printf("TOTAL %" PRIu64 " points %" PRIu64 " failures\n", now.all_points, now.all_failures);
    return now.all_failures ? 1 : 0;
}

static void report_end(void) {
    printf("%-18s %-9s %-24s %7" PRIu64 " points %6" PRIu64 " failures", now.scenario, now.wrap, now.mode, now.points,
           now.failures);
    now.drifted ? printf(" (%" PRIu64 " by steps)\n", now.drifted) : printf("\n");
    fflush(stdout);
    now.all_points += now.points;
    now.all_failures += now.failures;
}

#endif
