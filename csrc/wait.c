/* wait.c - how to sleep and how to wake: a futex word that carries a sequence number and "somebody may be asleep".
 *
 *     waiter                                  waker (after publishing or freeing k)
 *       try                                     the change itself      O1 / R2  seq_cst
 *       fetch_or W            E1 seq_cst        load the word          E2 seq_cst
 *       try again, thoroughly    seq_cst        if W: CAS seq+1, keeping W; FUTEX_WAKE(k)
 *       FUTEX_WAIT(seen)                        woke fewer: CAS seq+1, clearing W; FUTEX_WAKE(all)
 *
 * E1 pairs with E2: in the one order of seq_cst operations either the waker's load follows the waiter's fetch_or, and the
 * waker sees W, or the waiter's second try follows the change, and the waiter finds it. The obvious "clear W, wake one, set
 * W again" loses wake-ups; so does waking one for k items (model/event.pml shows both).
 *
 * A sleeper that is killed leaves only a stale W: one system call for nothing. A waker killed between the change and the
 * wake costs the sleeper one slice. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define WAKE_TURNS_MAX                                                                                                 \
    (1u << 16) /* each is a wake, or a sleeper, that came in between: milliseconds, if all is a lie */
#define PAUSE_ONLY_NS 5000
#define PAUSES_PER_YIELD 8
#define PAUSES_PER_CLOCK 16

static long futex(shmt_atomic32 *word, int op, uint32_t value, const struct timespec *timeout) {
    /* Not FUTEX_PRIVATE: the word lies in memory that processes share at different addresses. */
    return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

static void count(shmt_segment *seg, size_t offset) {
    shmt_atomic64 *counter = (shmt_atomic64 *)(void *)((uint8_t *)shmt_member_mine(seg) + offset);
    shmt_add_relaxed(counter, 1); /* a figure for people */
}
#define COUNT(seg, field) count((seg), offsetof(shmt_member_record, field))

void shmt_event_wake(shmt_segment *seg, shmt_event *event, uint32_t n) {
    uint32_t seen = shmt_load_seq_cst(&event->word); /* E2: after the change, in the one order */
    for (uint32_t turn = 0; SHMT_UNLIKELY(seen & SHMT_EVENT_W) && turn < WAKE_TURNS_MAX; turn++) {
        /* E3 seq_cst: seq moves on, so that a waiter which looked before the change does not fall asleep now. */
        if (!shmt_cas_seq_cst(&event->word, &seen, seen + SHMT_EVENT_STEP)) {
            continue; /* seen is fresh */
        }
        COUNT(seg, wakes);
        long woke = futex(&event->word, FUTEX_WAKE, n, NULL);
        if (woke >= (long)n) {
            return;
        }
        /* Fewer slept than there is work: W may be stale. Take it away, unless somebody came, and wake whoever did. */
        seen += SHMT_EVENT_STEP;
        if (shmt_cas_seq_cst(&event->word, &seen, (seen + SHMT_EVENT_STEP) & ~SHMT_EVENT_W)) { /* E3 */
            futex(&event->word, FUTEX_WAKE, INT_MAX, NULL);
        }
        return;
    }
}

void shmt_event_wake_all(shmt_event *event) {
    shmt_add_seq_cst(&event->word, SHMT_EVENT_STEP); /* E3; W stays, and costs the next waker one call */
    futex(&event->word, FUTEX_WAKE, INT_MAX, NULL);
}

/* Spinning is worth about one wake-up (50 us here). With more members than cores whoever spins takes the core from whoever
 * would end the wait: four producers with 5 us of work each made 94e3 items/s under a pausing spin, 342e3 under a yielding
 * one. */
static int spin(shmt_segment *seg, shmt_attempt attempt, void *arg) {
    if (seg->spin_us == 0) {
        return -EAGAIN;
    }
    const int64_t begin = shmt_now_ns(), end = begin + (int64_t)seg->spin_us * 1000;
    const bool crowded = shmt_load_relaxed(&seg->header->joined) > seg->cores; /* a hint */
    int64_t now = begin;
    for (uint32_t turn = 1; now < end; turn++) {
        shmt_pause();
        if (crowded && turn % PAUSES_PER_YIELD == 0 && now - begin >= PAUSE_ONLY_NS) {
            sched_yield();
            now = shmt_now_ns();
        } else if (turn % PAUSES_PER_CLOCK == 0) {
            now = shmt_now_ns();
        }
        int rc = attempt(seg, arg, SHMT_QUICK);
        if (rc != -EAGAIN) {
            COUNT(seg, spins);
            return rc;
        }
    }
    return -EAGAIN;
}

/* "I am about to sleep": then look, and sleep only if the word is still what this returns. */
uint32_t shmt_event_announce(shmt_event *event) {
    return shmt_or_seq_cst(&event->word, SHMT_EVENT_W) | SHMT_EVENT_W; /* E1: before the look that follows */
}

/* Tries until `attempt` says anything but -EAGAIN. A waiter that was woken tries once more before it honours a time-out or
 * a signal, or the wake-up that was meant for the next one would be lost with it. */
int shmt_event_wait(shmt_segment *seg, shmt_event *event, int64_t deadline_ns, shmt_attempt attempt, void *arg,
                    void (*slice_over)(shmt_segment *seg)) {
    int rc = spin(seg, attempt, arg);
    while (rc == -EAGAIN) {
        uint32_t seen = shmt_event_announce(event); /* E1: before the second try */
        rc = attempt(seg, arg, SHMT_LAST);
        if (rc != -EAGAIN) {
            return rc;
        }
        int64_t now = shmt_now_ns();
        if (now >= deadline_ns) {
            return -ETIMEDOUT;
        }
        int64_t slice = deadline_ns - now < SHMT_SLICE_NS ? deadline_ns - now : SHMT_SLICE_NS;
        struct timespec timeout = {.tv_sec = slice / 1000000000, .tv_nsec = slice % 1000000000};
        COUNT(seg, sleeps);
        int why = futex(&event->word, FUTEX_WAIT, seen, &timeout) == 0 ? 0 : errno;
        rc = attempt(seg, arg, SHMT_FULL);
        if (rc == -EAGAIN && why == EINTR) {
            return -EINTR;
        }
        if (rc == -EAGAIN && why == ETIMEDOUT && slice_over) {
            slice_over(seg);
        }
    }
    return rc;
}
