/* step.h - a child that is stopped after any given number of its own instructions: to be killed there, or to find the world
 * changed when it goes on. x86-64 only: on machines with load-exclusive, single steps keep the loops from ever ending. */
#ifndef STEP_H
#define STEP_H

#include <sys/ptrace.h>
#include <sys/user.h>

#include "check.h"

/* The sanitized builds leave these tests to the plain ones: what a sanitizer does between two steps of the program is not the
 * program, and takes ten times as long. */
#if defined(__x86_64__)
#define CAN_STEP 1
#else
#define CAN_STEP 0
#endif
#define NEEDS_STEPS()                                                                                                  \
    do {                                                                                                               \
        if (SANITIZED) {                                                                                               \
            return;                                                                                                    \
        } else if (!CAN_STEP) {                                                                                        \
            SKIP("single steps need x86-64");                                                                          \
        }                                                                                                              \
    } while (0)

typedef struct step_child {
    pid_t pid;
    shmt_atomic32 *phase; /* 0 before, 1 during and 2 after the steps that count */
} step_child;

static inline void step_stop(pid_t pid, int signal) {
    int status = child_status(pid);
    CHECK(WIFSTOPPED(status));
    CHECK_EQ(WSTOPSIG(status), signal);
}

#if CAN_STEP
#define STEP_RIP ((void *)offsetof(struct user_regs_struct, rip))

static inline long step_peek(pid_t pid, long at) { return ptrace(PTRACE_PEEKTEXT, pid, (void *)at, NULL); }

/* One instruction. A repeated string operation (a memset of 4 KiB) traps at each of its turns: it is run through to a
 * breakpoint behind it. */
static inline void step_one(pid_t pid) {
    const long before = ptrace(PTRACE_PEEKUSER, pid, STEP_RIP, NULL);
    CHECK_EQ(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
    step_stop(pid, SIGTRAP);
    if (ptrace(PTRACE_PEEKUSER, pid, STEP_RIP, NULL) == before && (step_peek(pid, before) & 0xff) == 0xf3) {
        const long behind = before + ((step_peek(pid, before) & 0xf000) == 0x4000 ? 3 : 2); /* with a REX byte or not */
        const long was = step_peek(pid, behind);
        CHECK_EQ(ptrace(PTRACE_POKETEXT, pid, (void *)behind, (void *)((was & ~0xffL) | 0xcc)), 0);
        CHECK_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
        step_stop(pid, SIGTRAP);
        CHECK_EQ(ptrace(PTRACE_PEEKUSER, pid, STEP_RIP, NULL), behind + 1);
        CHECK_EQ(ptrace(PTRACE_POKETEXT, pid, (void *)behind, (void *)was), 0);
        CHECK_EQ(ptrace(PTRACE_POKEUSER, pid, STEP_RIP, (void *)behind), 0);
    }
}
#else
static inline void step_one(pid_t pid) { (void)pid; }
#endif

/* Runs prepare() and then body() in a child, and stops it after `n` instructions of the body. False: the body has ended
 * before, and the child too. */
static inline bool step_start(step_child *child, void (*prepare)(void), void (*body)(void), uint64_t n) {
    cpu_set_t all, one;
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    CPU_SET((unsigned)sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one); /* a switch on one core is twice as fast as one between two */
    child->phase = new_signal();
    child->pid = start_child();
    if (child->pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
            _exit(99);
        }
        prepare();
        raise(SIGSTOP);
        shmt_store_release(child->phase, 1);
        body();
        shmt_store_release(child->phase, 2);
        _exit(0);
    }
    step_stop(child->pid, SIGSTOP);
    for (uint64_t steps = 0; steps <= n;) {
        if (shmt_load_acquire(child->phase) == 2) {
            CHECK_EQ(ptrace(PTRACE_CONT, child->pid, NULL, NULL), 0);
            child_ok(child->pid);
            free_signal(child->phase);
            sched_setaffinity(0, sizeof all, &all);
            return false;
        }
        step_one(child->pid);
        steps += shmt_load_acquire(child->phase) == 1;
    }
    sched_setaffinity(0, sizeof all, &all);
    return true;
}

static inline void step_kill(step_child *child) {
    kill_child(child->pid);
    free_signal(child->phase);
}

static inline void step_on(step_child *child) {
    CHECK_EQ(ptrace(PTRACE_CONT, child->pid, NULL, NULL), 0);
    child_ok(child->pid);
    free_signal(child->phase);
}

#endif
