/* event.c - E1, E2, E3 with O1, or (FREE) with R2 and C1: nobody falls asleep beside what he waits for.
 *
 * The waiter runs shmt_event_wait() with the real second try; the waker makes the change and runs shmt_event_wake().
 * The kernel's futex is a mutex for its hash bucket and a flag for each sleeper; whoever would sleep ends, and main
 * looks at what he sleeps beside. WAITERS=2: so that one W serves two, and one of them is woken for one change. */
#include <linux/futex.h>
#include <limits.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "weak.h"

#ifndef WAITERS
#define WAITERS 1
#endif

static pthread_mutex_t bucket = PTHREAD_MUTEX_INITIALIZER;
static bool asleep[MEMBERS + 1];
static __thread uint32_t self;

static long futex_call(shmt_atomic32 *word, int op, uint32_t value) {
    long rc = 0;
    pthread_mutex_lock(&bucket);
    if (op == FUTEX_WAIT) {
        if (shmt_load_relaxed(word) == value) { /* the kernel's own comparison */
            asleep[self] = true;
        } else {
            rc = -1;
        }
    } else {
        for (uint32_t id = 2; id < 2 + WAITERS; id++) {
            if (asleep[id] && rc < (long)value) {
                asleep[id] = false;
                rc++;
            }
        }
    }
    pthread_mutex_unlock(&bucket);
    return rc;
}
#define syscall(number, word, op, value, timeout, a, b) futex_call(word, op, value)

#include "order.c"
#include "slots.c"
#include "wait.c"

int64_t shmt_now_ns(void) { return 0; }
shmt_member_record *shmt_member_mine(shmt_segment *seg) { return &records[shmt_me(seg)]; }

#define GIVE_UP 1000

/* Once before sleeping, and once more after: then the waiter is asleep, or has something. */
static int look(shmt_segment *seg, void *arg, shmt_effort effort) {
    static uint64_t word[MEMBERS + 1]; /* not on the stack: GenMC 0.10 takes one frame's memory for another's */
    static uint32_t first[MEMBERS + 1];
    (void)arg;
    if (effort == SHMT_FULL) {
        return GIVE_UP; /* back from FUTEX_WAIT */
    }
#ifdef FREE
    return shmt_slots_claim(seg, SLOTS, 1, &word[self], &first[self]) == 1 ? 1 : -EAGAIN;
#else
    return shmt_order_take(seg, 1, &word[self], &first[self]);
#endif
}

#ifdef FREE
#define EVENT free_event
#else
#define EVENT ready_event
#endif

static void *waiter(void *arg) {
    shmt_segment *seg = arg;
    self = shmt_me(seg);
    int rc = shmt_event_wait(seg, &seg->header->EVENT, INT64_MAX, look, NULL, NULL);
    assert(rc == 1 || rc == GIVE_UP);
    return NULL;
}

static void *waker(void *arg) {
    shmt_segment *seg = arg;
#ifdef FREE
    int rc = shmt_slots_change(seg, 0, shmt_word(SHMT_READING, 1, 0), shmt_word(SHMT_FREE, 0, 0));
    assert(rc == 0);
#else
    int rc = shmt_slots_change(seg, 0, shmt_word(SHMT_WRITING, 1, 0), shmt_word(SHMT_READY, 1, 0));
    assert(rc == 0);
    rc = shmt_order_push(seg, 0, 0);
    assert(rc == 0);
#endif
    shmt_event_wake(seg, &seg->header->EVENT, 1);
    return NULL;
}

int main(void) {
    shmt_segment *seg = handle(1);
    for (uint32_t id = 2; id < 2 + WAITERS; id++) {
        handle(id);
    }
#ifdef FREE
    shmt_store_relaxed(&seg->slots[0].word, shmt_word(SHMT_READING, 1, 0));
#else
    shmt_store_relaxed(&seg->slots[0].word, shmt_word(SHMT_WRITING, 1, 0));
#endif
    start(waker, seg);
    for (uint32_t id = 2; id < 2 + WAITERS; id++) {
        start(waiter, &handles[id]);
    }
    join_all();
    uint64_t word = shmt_load_relaxed(&seg->slots[0].word);
#ifdef FREE
    bool there = shmt_word_state(word) == SHMT_FREE;
#else
    bool there = shmt_word_is_ready(word);
#endif
    uint32_t awake = 0;
    for (uint32_t id = 2; id < 2 + WAITERS; id++) {
        awake += !asleep[id];
    }
    assert(!there || awake > 0); /* asleep beside it, all of them */
    return 0;
}
