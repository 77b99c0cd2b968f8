/* views.c - L1, L2 and H1: two views of one item, the next writer of its slot, the next lease, the end of the mapping.
 *
 * VIEWS: two threads look at the payload and drop the lease; the last one releases the slot, and another member claims
 * and writes it (L1, then R2 and C2). NEXT: a holder drops its lease; another thread acquires the slot's next item,
 * which another member published meanwhile, and finds the slot's own lease unused (L2). UNMAP: two threads use the
 * mapping and drop their references; the last one unmaps it (H1). */
#include "awake.h"

#include "order.c"
#include "slots.c"

static int mapped = 1;

shmt_member_record *shmt_member_mine(shmt_segment *seg) { return &records[shmt_me(seg)]; }
uint32_t shmt_member_roles(const shmt_segment *seg) { return seg ? 0 : 1; }
void shmt_member_leave(shmt_segment *seg) { (void)seg; }
void shmt_member_forget_lock(shmt_segment *seg) { (void)seg; }
void shmt_segment_hold(shmt_segment *seg) { shmt_add_relaxed(&seg->refs, 1); }
void shmt_segment_free(shmt_segment *seg) { mapped = seg->lock_fd + 1; }

#include "handoff.c"
#include "lifecycle.c"

/* Only the slot's own lease will do. */
#define malloc(size) ((void)(size), NULL)
#include "lease.c"

static shmt_lease *lease_of(shmt_segment *seg, uint64_t word) {
    static shmt_slot slots[MEMBERS + 1];
    shmt_slot *slot = &slots[shmt_me(seg)];
    slot->index = 0;
    slot->word = word;
    slot->generation = shmt_fork_generation;
    shmt_lease *lease;
    int rc = shmt_lease_take(seg, slot, &word, 1, &lease);
    assert(rc == 0);
    return lease;
}

/* A look and the end of it. */
static void *view(void *seg) {
    assert(mapped == 1);
    assert(payload_of[0] == 1);
    shmt_lease_drop(&leases[0]);
    return seg;
}

/* Claims, writes and publishes the slot, if it is free by now. */
static void *writer(void *arg) {
    shmt_segment *seg = arg;
    static uint64_t word;
    static uint32_t i;
    if (shmt_slots_claim(seg, 1, 1, &word, &i) == 1) {
        payload_of[i] = 2;
        int rc = shmt_slots_change(seg, i, word, shmt_word(SHMT_READY, shmt_me(seg), shmt_word_gen(word)));
        assert(rc == 0);
        rc = shmt_order_push(seg, i, shmt_word_gen(word));
        assert(rc == 0);
    }
    return NULL;
}

static void *next(void *arg) {
    shmt_segment *seg = arg;
    static uint64_t word;
    static uint32_t i;
    if (shmt_order_take(seg, 1, &word, &i) == 1) {
        assert(lease_of(seg, word) == &leases[0]); /* not one of its own, for want of a free one */
    }
    return NULL;
}

static void *unmapper(void *seg) {
    assert(mapped == 1);
    shmt_segment_drop(seg);
    return NULL;
}

int main(void) {
    shmt_segment *seg = handle(1);
    handle(2);
    const uint64_t word = shmt_word(SHMT_READING, 1, 0);
    shmt_store_relaxed(&slot_headers[0].word, word);
    payload_of[0] = 1;
#if defined(VIEWS)
    shmt_lease_hold(lease_of(seg, word));
    start(view, seg);
    start(view, seg);
    start(writer, &handles[2]);
#elif defined(NEXT)
    lease_of(seg, word);
    start(view, seg);
    start(writer, &handles[2]);
    start(next, seg);
#elif defined(UNMAP)
    shmt_segment_hold(seg);
    start(unmapper, seg);
    start(unmapper, seg);
#endif
    return 0;
}
