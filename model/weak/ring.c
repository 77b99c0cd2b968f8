/* ring.c - O1, O2, O3: pushers and takers in one ring. Nothing is lost or doubled, no -EUCLEAN, and of two items that
 * one pushed the first comes first.
 *
 * Slots 0 and 1 are pushed by one member or (PUSHERS=2) two; TAKERS take once each, or one of them twice; main takes
 * what is left. LAP: the first fills a whole lap while the second pushes, or (TAKERS=1) takes: who sees where the ring
 * stands must see the cells of the lap before. */
#ifdef LAP
#define SLOTS 1
#else
#define SLOTS 2
#endif
#include "weak.h"

#include "order.c"
#include "slots.c"

#ifndef PUSHERS
#define PUSHERS 1
#endif
#ifndef TAKERS
#define TAKERS 2
#endif

static int order_of[SLOTS]; /* when slot i was taken, from 1, as far as its taker saw */
static shmt_atomic32 turns;

#ifndef LAP
static void push(shmt_segment *seg, uint32_t i) {
    int rc = shmt_slots_change(seg, i, shmt_word(SHMT_WRITING, 1, 1), shmt_word(SHMT_READY, 1, 1));
    assert(rc == 0);
    rc = shmt_order_push(seg, i, 1);
    assert(rc == 0);
}
#endif

static int take(shmt_segment *seg) {
    static uint64_t word[MEMBERS + 1];
    static uint32_t first[MEMBERS + 1];
    const uint32_t me = shmt_me(seg);
    int rc = shmt_order_take(seg, 1, &word[me], &first[me]);
    assert(rc == 1 || rc == -EAGAIN);
    if (rc != 1) {
        return -1;
    }
    const uint32_t i = first[me];
    assert(order_of[i] == 0);
    order_of[i] = 1 + (int)shmt_add_relaxed(&turns, 1);
    return (int)i;
}

static void *pusher(void *seg) {
#if defined(LAP)
    if (shmt_me(seg) == 1) {
        for (int k = 0; k <= RING; k++) {
            shmt_store_release(&header.read_seq, (uint64_t)k); /* somebody reads what is pushed, at once */
            int rc = shmt_order_push(seg, 0, 1);
            assert(rc == 0);
        }
    } else {
        int rc = shmt_order_push(seg, 0, 1);
        assert(rc == 0);
    }
#elif PUSHERS == 1
    push(seg, 0);
    push(seg, 1);
#else
    push(seg, shmt_me(seg) - 1);
#endif
    return NULL;
}

static void *taker(void *seg) {
    int one = take(seg);
#if TAKERS == 1
    int two = take(seg);
#if PUSHERS == 1
    assert(two != 0 || one < 0); /* never 1 before 0 */
#endif
    (void)two;
#endif
    (void)one;
    return NULL;
}

int main(void) {
    for (uint32_t id = 1; id <= MEMBERS; id++) {
        handle(id);
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        shmt_store_relaxed(&slot_headers[i].word, shmt_word(SHMT_WRITING, 1, 1));
    }
    for (uint32_t id = 1; id <= PUSHERS; id++) {
        start(pusher, &handles[id]);
    }
    for (int k = 0; k < TAKERS; k++) {
        start(taker, &handles[MEMBERS - (uint32_t)k]);
    }
    join_all();
#ifndef LAP
    take(&handles[MEMBERS]);
    take(&handles[MEMBERS]);
    assert(order_of[0] > 0 && order_of[1] > 0); /* nothing is lost */
    assert(shmt_load_relaxed(&header.write_seq) == SLOTS && shmt_load_relaxed(&header.read_seq) == SLOTS);
#endif
    return 0;
}
