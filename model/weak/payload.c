/* payload.c - P2 with A2, R2 with C2: one slot, written, read, and written again.
 *
 * FIRST: it is written once. REUSE: an item is there from the start, and the slot is written anew when it has been
 * read. */
#include "weak.h"

#include "order.c"
#include "slots.c"

static void put(shmt_segment *seg) {
    uint64_t word;
    uint32_t i;
    if (shmt_slots_claim(seg, 1, 1, &word, &i) != 1) {
        return;
    }
    payload_of[i] = shmt_word_gen(word); /* R2/C2: after the last reader's load */
    seg->slots[i].nbytes = sizeof payload_of[0];
    int rc = shmt_slots_change(seg, i, word, shmt_word(SHMT_READY, shmt_me(seg), shmt_word_gen(word)));
    assert(rc == 0);
    rc = shmt_order_push(seg, i, shmt_word_gen(word));
    assert(rc == 0);
}

static void get(shmt_segment *seg) {
    uint64_t word;
    uint32_t i;
    int rc = shmt_order_take(seg, 1, &word, &i);
    assert(rc == 1 || rc == -EAGAIN);
    if (rc == 1) {
        assert(seg->slots[i].nbytes == sizeof payload_of[0]); /* P2/A2 */
        assert(payload_of[i] == shmt_word_gen(word));
        rc = shmt_slots_change(seg, i, word, shmt_word(SHMT_FREE, 0, shmt_word_gen(word)));
        assert(rc == 0);
    }
}

static void *producer(void *seg) {
    put(seg);
#if !defined(FIRST) && !defined(REUSE)
    put(seg);
#endif
    return NULL;
}

static void *consumer(void *seg) {
    get(seg);
    return NULL;
}

int main(void) {
    shmt_segment *p = handle(1), *c = handle(2), *d = handle(3);
#ifdef REUSE
    put(d);
#endif
    start(producer, p);
    start(consumer, c);
    start(consumer, d);
    return 0;
}
