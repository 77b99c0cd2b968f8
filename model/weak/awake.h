/* awake.h - beside stubs.h, for programs of the verbs in which nobody sleeps, joins or is reclaimed: event.c and join.c are
 * about that. */
#ifndef AWAKE_H
#define AWAKE_H

#include "stubs.h"

void shmt_registry_lock(void) {}
void shmt_registry_unlock(void) {}
int shmt_member_join(shmt_segment *seg) { return seg ? -EBADF : 0; }
int shmt_reclaim(shmt_segment *seg) { return seg ? 0 : -EINVAL; }
void shmt_reclaim_slice(shmt_segment *seg) { (void)seg; }
void shmt_event_wake(shmt_segment *seg, shmt_event *event, uint32_t n) { (void)seg, (void)event, (void)n; }
void shmt_event_wake_all(shmt_event *event) { (void)event; }
int shmt_event_wait(shmt_segment *seg, shmt_event *event, int64_t deadline_ns, shmt_attempt attempt, void *arg,
                    void (*slice_over)(shmt_segment *seg)) {
    (void)event, (void)deadline_ns, (void)slice_over;
    return attempt(seg, arg, SHMT_LAST);
}

#endif
