/* end.c - C3 with N3, N1, N2 and N4: the end of the stream, by the real verbs.
 *
 * SHUTDOWN: a producer claims and publishes while somebody calls shutdown() and a consumer acquires until it has an
 * answer: what was published is not behind the end. CLOSE, DIE: the producer publishes and closes, or dies and is
 * counted; the consumer gets the item before it hears of that. CONSUMER: the only slot holds an unread item, one
 * consumer has gone and another comes: the producer is not told that both are gone. */
#include "awake.h"

#include "members.c"
#include "order.c"
#include "slots.c"

int64_t shmt_now_ns(void) { return 0; }

#include "handoff.c"

static request requests[MEMBERS + 1];
static uint64_t words[MEMBERS + 1];
static bool published, ended;

static request *request_of(shmt_segment *seg) {
    request *r = &requests[shmt_me(seg)];
    r->n = 1;
    r->words = &words[shmt_me(seg)];
    return r;
}

/* One item, as claim() and publish() do it. */
static void put(shmt_segment *seg) {
    request *r = request_of(seg);
    int rc = try_claim(seg, r, SHMT_FULL);
    assert(rc == 1 || rc == -ESHUTDOWN);
    if (rc == 1) {
        rc = publish(seg, r->first, r->words[0], 0, 0);
        assert(rc == 0);
        published = true;
    }
}

static void *producer(void *seg) {
    put(seg);
    return NULL;
}

/* Counted as shmt_segment_close() does it, or as the reclaimer of one who died, to whom the kernel's lock has passed
 * all that the dead did. */
static void *closer(void *arg) {
    shmt_segment *seg = arg;
    put(seg);
#ifdef DIE
    shmt_add_seq_cst(&seg->header->producers_lost, 1);
    shmt_member_clear(seg, shmt_me(seg));
#else
    shmt_add_seq_cst(&seg->header->producers_closed, 1);
    shmt_store_relaxed(&shmt_member_mine(seg)->roles, SHMT_LEFT);
#endif
    return NULL;
}

static void *stopper(void *seg) {
    shmt_shutdown(seg);
    return NULL;
}

static void *consumer(void *seg) {
    int rc = try_acquire(seg, request_of(seg), SHMT_LAST);
    assert(rc == 1 || rc == -EAGAIN || rc == -ESHUTDOWN || rc == -EOWNERDEAD);
    ended = rc == -ESHUTDOWN || rc == -EOWNERDEAD;
    return NULL;
}

static void *guest(void *seg) {
    take_role(seg, SHMT_CONSUMER);
    return NULL;
}

static void *full(void *arg) {
    shmt_segment *seg = arg;
    why_full(seg);
    return NULL;
}

int main(void) {
    for (uint32_t id = 1; id <= MEMBERS; id++) {
        handle(id);
    }
#if defined(SHUTDOWN)
    start(producer, &handles[1]);
    start(stopper, &handles[2]);
    start(consumer, &handles[3]);
    join_all();
    assert(!(ended && published)); /* published after the end */
#elif defined(CLOSE) || defined(DIE)
    start(closer, &handles[1]);
    start(consumer, &handles[3]);
    join_all();
    assert(!ended); /* the item came first */
    assert(published);
#elif defined(CONSUMER)
    take_role(&handles[1], SHMT_PRODUCER);
    shmt_store_relaxed(&slot_headers[0].word, shmt_word(SHMT_READY, 1, 1));
    guest(&handles[2]);
    shmt_member_clear(&handles[2], 2);
    start(guest, &handles[3]);
    start(full, &handles[1]);
    join_all();
    assert(shmt_load_relaxed(&handles[1].told_consumers) < 2); /* the second is there, and may still take it */
#endif
    return 0;
}
