/* tasks.c - which share of what was ever pushed somebody has declared done: task_done() and join() of a queue.
 *
 * What is put is not counted anywhere but by the order itself, in write_seq, so no death can leave that count wrong. It
 * counts an item again that is pushed again: of use with SHMT_DROP and without shmt_slot_requeue(). What nobody declares
 * done, because its consumer died, stays undone. */
#include <errno.h>
#include <limits.h>

#include "internal.h"

uint64_t shmt_tasks_unfinished(shmt_segment *seg) {
    /* T1 seq_cst: before the pushes, which only grow: if the two are equal, they were when this was loaded. */
    uint64_t done = shmt_load_seq_cst(&seg->header->tasks_done);
    return shmt_order_pushed(seg) - done;
}

uint64_t shmt_tasks_pushed(shmt_segment *seg) { return shmt_order_pushed(seg); }

int shmt_tasks_done(shmt_segment *seg, uint32_t n) {
    int rc = shmt_enter(seg);
    if (rc < 0) {
        return rc;
    }
    uint64_t done = shmt_load_seq_cst(&seg->header->tasks_done); /* T1: the compare-and-swap below decides */
    do {
        if ((int64_t)(shmt_order_pushed(seg) - done) < (int64_t)n) {
            return -ERANGE;
        }
        /* T1 seq_cst: pairs with the load in shmt_tasks_unfinished(); before E2 in the one order. */
    } while (!shmt_cas_seq_cst(&seg->header->tasks_done, &done, done + n));
    if (shmt_order_pushed(seg) == done + n) {
        shmt_event_wake(seg, &seg->header->done_event, INT_MAX);
    }
    return 0;
}

static int try_join(shmt_segment *seg, void *arg, shmt_effort effort) {
    (void)arg;
    (void)effort;
    return shmt_tasks_unfinished(seg) == 0 ? 0 : -EAGAIN;
}

int shmt_tasks_join(shmt_segment *seg, int64_t deadline_ns) {
    int rc = shmt_enter(seg);
    if (rc < 0) {
        return rc;
    }
    rc = try_join(seg, NULL, SHMT_FULL);
    return rc != -EAGAIN
               ? rc
               : shmt_event_wait(seg, &seg->header->done_event, deadline_ns, try_join, NULL, shmt_reclaim_slice);
}
