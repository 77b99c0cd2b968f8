/* handoff.c - the public verbs: join if need be, try, spin, sleep; and after each change, wake whoever waits for it.
 *
 * Everything that decides anything lies in the rooms before this one. */
#include <errno.h>

#include "internal.h"

/* ---- the end of the stream -------------------------------------------------------------------------------------------------- */

static bool shut(shmt_segment *seg) {
    return shmt_load_seq_cst(&seg->header->shut) != 0; /* C3/N3: after the claim, before the last look at the slots */
}

void shmt_shutdown(shmt_segment *seg) {
    shmt_or_seq_cst(&seg->header->shut, 1); /* N3: before the consumers' last look at the slots */
    shmt_event_wake_all(&seg->header->ready_event);
    shmt_event_wake_all(&seg->header->free_event);
}

/* Called when nothing is to be had: -EAGAIN wait on, -ESHUTDOWN the stream has ended, -EOWNERDEAD nobody could end the wait.
 * The stream ends by itself once as many producers as were expected have closed and none is left; it stays ended, so that a
 * producer which comes too late gets an error instead of writing to nobody. If some of them died instead, the wait is over
 * too, but that is no ordinary end: each process is told once of each death, and if it then waits again, it waits for a
 * producer that takes the place. */
static int why_empty(shmt_segment *seg) {
    if (!shut(seg)) {
        const uint32_t expected = seg->geo.producers;
        /* N1 seq_cst: pairs with the closers' count; what they published is visible to the second look below. */
        uint32_t closed = shmt_load_seq_cst(&seg->header->producers_closed);
        uint32_t lost = shmt_load_seq_cst(&seg->header->producers_lost); /* N1: likewise, with reclaim's count */
        bool all_came = closed + lost >= expected && closed + lost > 0;
        if (!all_came) {
            return -EAGAIN; /* the common case costs two loads */
        }
        uint32_t alive = shmt_member_roles(seg);
        if ((alive & SHMT_PRODUCER) || (expected == 0 && (lost == 0 || (alive & SHMT_IDLE)))) {
            return -EAGAIN;
        }
        if (expected == 0 || closed < expected) {
            uint32_t told = shmt_load_relaxed(&seg->told_lost); /* this process's own */
            return lost == told || shmt_slots_any_unread(seg) ? -EAGAIN : -EOWNERDEAD;
        }
        shmt_shutdown(seg);
    }
    return shmt_slots_any_unread(seg) ? -EAGAIN : -ESHUTDOWN;
}

/* No slot is free: could anybody free one? Consumers were there and are gone, every slot waits to be read, and all who are
 * left only ever produced. Before the first consumer has come, producers wait for it. */
static int why_full(shmt_segment *seg) {
    uint32_t seen = shmt_load_seq_cst(&seg->header->consumers_seen); /* N4: before the roles, which come after it */
    bool gone = seen != shmt_load_relaxed(&seg->told_consumers) &&   /* this process's own */
                !(shmt_member_roles(seg) & (SHMT_CONSUMER | SHMT_IDLE)) && shmt_slots_all_ready(seg);
    if (gone) {
        shmt_store_relaxed(&seg->told_consumers, seen); /* likewise */
    }
    return gone ? -EOWNERDEAD : -EAGAIN;
}

static void take_role(shmt_segment *seg, uint32_t role) {
    if (SHMT_UNLIKELY((shmt_load_relaxed(&seg->roles) & role) == 0)) { /* written by this process only */
        /* N2 seq_cst: a producer is known before it looks at `shut` for the first time. */
        shmt_or_seq_cst(&shmt_member_mine(seg)->roles, role);
        if (role == SHMT_CONSUMER) {
            shmt_add_seq_cst(&seg->header->consumers_seen, 1); /* N4: whoever reads this count finds the role */
        }
        /* This process's own, and last: another thread that sees it need not do the above. */
        shmt_or_relaxed(&seg->roles, role);
    }
}

/* ---- producer ------------------------------------------------------------------------------------------------------------------ */

typedef struct request {
    uint32_t n;
    uint64_t *words;
    uint32_t first;
} request;

#define QUICK_PROBES 64u /* between two looks of a spin; the look before sleeping is thorough */

static int try_claim(shmt_segment *seg, void *arg, shmt_effort effort) {
    request *r = arg;
    int rc = shmt_enter(seg);
    if (rc != 0) {
        return rc;
    }
    take_role(seg, SHMT_PRODUCER);
    uint32_t probes = effort != SHMT_QUICK || seg->geo.slots < QUICK_PROBES ? seg->geo.slots : QUICK_PROBES;
    int got = shmt_slots_claim(seg, probes, r->n, r->words, &r->first);
    if (SHMT_UNLIKELY(shut(seg))) {
        for (int i = 0; i < got; i++) {
            uint64_t word = r->words[i];
            shmt_slots_change(seg, r->first + (uint32_t)i, word, shmt_word(SHMT_FREE, 0, shmt_word_gen(word)));
        }
        return -ESHUTDOWN;
    }
    return got > 0 ? got : effort == SHMT_LAST ? why_full(seg) : -EAGAIN;
}

/* An item is larger than what this process has mapped of its slot: its producer must have reserved and touched all of it.
 * If there is a hole, the size is a lie, and touching it would be SIGBUS or the OOM killer. */
static int prove(shmt_segment *seg, uint32_t index, uint64_t nbytes) {
    uint64_t have = shmt_touchable(seg, index);
    if (nbytes > seg->geo.slot_stride) {
        return -EUCLEAN;
    }
    uint64_t want = shmt_round_up(nbytes, SHMT_PAGE);
    int rc = shmt_memory_present(seg->fd, seg->geo.data_offset + index * seg->geo.slot_stride, have, want);
    if (rc == 0) {
        rc = shmt_memory_populate_present(shmt_payload(seg, index), want);
    }
    if (rc == 0) {
        seg->mapped[index].nbytes = want;
    }
    return rc;
}

static int wait_or_give_up(shmt_segment *seg, int rc, shmt_event *event, int64_t deadline_ns, shmt_attempt attempt,
                           request *r, size_t counter) {
    if (SHMT_LIKELY(rc != -EAGAIN) || deadline_ns == 0) {
        return rc;
    }
    /* a figure for people */
    shmt_add_relaxed((shmt_atomic64 *)(void *)((uint8_t *)shmt_member_mine(seg) + counter), 1);
    return shmt_event_wait(seg, event, deadline_ns, attempt, r, shmt_reclaim_slice);
}

static int claim(shmt_segment *seg, request *r, int64_t deadline_ns, shmt_slot *out) {
    if (r->n == 0 || seg->geo.slots == 0) {
        return -EINVAL;
    }
    if (SHMT_UNLIKELY(seg->debug) && shmt_debug_check(seg) != 0) {
        return -EUCLEAN;
    }
    int rc = wait_or_give_up(seg, try_claim(seg, r, SHMT_FULL), &seg->header->free_event, deadline_ns, try_claim, r,
                             offsetof(shmt_member_record, claim_waits));
    if (rc > 0) {
        *out = (shmt_slot){
            .data = shmt_payload(seg, r->first),
            .word = r->words[0],
            .nbytes = shmt_touchable(seg, r->first),
            .index = r->first,
            .generation = shmt_fork_generation,
        };
        if (SHMT_UNLIKELY(seg->debug)) {
            shmt_debug_open(seg, r->first, (uint32_t)rc);
        }
    }
    return rc;
}

int shmt_slot_claim(shmt_segment *seg, int64_t deadline_ns, shmt_slot *out) {
    uint64_t word;
    int rc = claim(seg, &(request){.n = 1, .words = &word}, deadline_ns, out);
    return rc > 0 ? 0 : rc;
}

int shmt_slot_try_claim(shmt_segment *seg, shmt_slot *out) { return shmt_slot_claim(seg, 0, out); }

int shmt_slot_claim_many(shmt_segment *seg, uint32_t n, int64_t deadline_ns, uint64_t *words, shmt_slot *first) {
    return claim(seg, &(request){.n = n, .words = words}, deadline_ns, first);
}

int shmt_slot_try_claim_many(shmt_segment *seg, uint32_t n, uint64_t *words, shmt_slot *first) {
    return shmt_slot_claim_many(seg, n, 0, words, first);
}

int shmt_slot_reserve(shmt_segment *seg, shmt_slot *slot, uint64_t nbytes) {
    if (slot->generation != shmt_fork_generation) {
        return -ESTALE;
    }
    uint64_t have = shmt_touchable(seg, slot->index);
    if (nbytes > seg->geo.slot_stride) {
        return -EMSGSIZE;
    }
    if (nbytes > have) { /* so it can grow: all of another kind of slot is touchable */
        /* An eighth more than asked for: sizes that creep up do not pay a system call each time. */
        uint64_t want = shmt_round_up(nbytes + nbytes / 8, 16 * SHMT_PAGE);
        want = want < seg->geo.slot_stride ? want : seg->geo.slot_stride;
        uint64_t from = have - have % SHMT_PAGE; /* killed after fallocate, the next owner does it again: no harm */
        uint64_t offset = seg->geo.data_offset + slot->index * seg->geo.slot_stride;
        int rc = shmt_memory_present(seg->fd, offset, from, want); /* another process may have grown it already */
        bool there = rc == 0;
        if (!there) {
            uint64_t least = shmt_round_up(nbytes, SHMT_PAGE); /* those who wrote parts of it took no eighth more */
            if (least < want && shmt_memory_present(seg->fd, offset, from, least) == 0) {
                want = least;
                rc = 0;
                there = true;
            } else {
                rc = shmt_memory_reserve(seg->fd, offset + from, want - from);
            }
        }
        if (rc == 0) {
            rc = there ? shmt_memory_populate_present(slot->data + from, want - from)
                       : shmt_memory_populate(slot->data + from, want - from);
        }
        if (rc != 0) {
            return rc;
        }
        seg->mapped[slot->index].nbytes = want;
        if (want > shmt_load_relaxed(&seg->slots[slot->index].reserved)) { /* a figure for people */
            shmt_store_relaxed(&seg->slots[slot->index].reserved, want);   /* likewise */
        }
        have = want;
    }
    slot->nbytes = have;
    return 0;
}

bool shmt_slot_is_ours(const shmt_slot *slot) { return slot->generation == shmt_fork_generation; }

/* WRITING -> READY -> ring, for one slot; the wake-up is the caller's. */
static int publish(shmt_segment *seg, uint32_t index, uint64_t word, uint64_t nbytes, uint64_t tag) {
    shmt_slot_header *header = &seg->slots[index];
    if (shmt_load_relaxed(&header->word) != word) { /* a second publish must not touch what is another's; P2 decides */
        return -ESTALE;
    }
    if (nbytes > shmt_touchable(seg, index)) {
        return -EMSGSIZE;
    }
    header->nbytes = nbytes; /* plain: ours until P2 */
    header->tag = tag;
    if (SHMT_UNLIKELY(seg->debug)) {
        shmt_debug_shut(seg, index, 1);
    }
    uint64_t gen = shmt_word_gen(word);
    int rc = shmt_slots_change(seg, index, word, shmt_word(SHMT_READY, shmt_word_owner(word), gen));
    if (rc == 0) {
        rc = shmt_order_push(seg, index, gen);
    }
    if (SHMT_UNLIKELY(gen % 64 == 0)) { /* about every 64th publish looks how full the ring is */
        uint64_t length = shmt_order_length(seg);
        shmt_atomic64 *high = &shmt_member_mine(seg)->ready_high;
        if (length > shmt_load_relaxed(high)) { /* a figure for people */
            shmt_store_relaxed(high, length);   /* likewise */
        }
    }
    return rc;
}

int shmt_slot_publish(shmt_segment *seg, const shmt_slot *slot, uint64_t nbytes, uint64_t tag) {
    if (slot->generation != shmt_fork_generation) {
        return -ESTALE;
    }
    int rc = publish(seg, slot->index, slot->word, nbytes, tag);
    if (rc == 0) {
        shmt_event_wake(seg, &seg->header->ready_event, 1);
    }
    return rc;
}

int shmt_slot_publish_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n,
                           uint64_t nbytes) {
    if (first->generation != shmt_fork_generation) {
        return -ESTALE;
    }
    int rc = 0;
    uint32_t done = 0;
    for (uint32_t i = 0; i < n; i++) {
        int one = publish(seg, first->index + i, words[i], nbytes, 0);
        done += one == 0;
        rc = one != 0 ? one : rc;
    }
    if (done > 0) {
        shmt_event_wake(seg, &seg->header->ready_event, done);
    }
    return rc;
}

/* ---- giving a slot back: abort, release --------------------------------------------------------------------------------------------- */

static int give_back(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n) {
    if (first->generation != shmt_fork_generation) {
        return -ESTALE;
    }
    int rc = 0;
    uint32_t done = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t word = words[i];
        if (SHMT_UNLIKELY(seg->debug)) {
            word = shmt_debug_poison(seg, first->index + i, word);
        }
        int one = shmt_slots_change(seg, first->index + i, word, shmt_word(SHMT_FREE, 0, shmt_word_gen(word)));
        done += one == 0;
        rc = one != 0 ? one : rc;
    }
    if (done > 0) {
        shmt_event_wake(seg, &seg->header->free_event, done);
    }
    return rc;
}

int shmt_slot_abort(shmt_segment *seg, const shmt_slot *slot) { return give_back(seg, slot, &slot->word, 1); }

int shmt_slot_abort_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n) {
    return give_back(seg, first, words, n);
}

int shmt_slot_release(shmt_segment *seg, const shmt_slot *slot) { return give_back(seg, slot, &slot->word, 1); }

int shmt_slot_release_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n) {
    return give_back(seg, first, words, n);
}

/* As a redelivery, but nobody died, so the item is not flagged: READING -> READY of ours with a new generation, then
 * pushed. Killed in between, the reclaimer finds it READY and not in the ring. */
int shmt_slot_requeue(shmt_segment *seg, const shmt_slot *slot) {
    if (slot->generation != shmt_fork_generation) {
        return -ESTALE;
    }
    if (SHMT_UNLIKELY(seg->debug)) {
        shmt_debug_shut(seg, slot->index, 1);
    }
    uint64_t gen = shmt_word_gen(slot->word) + 1;
    uint64_t ready = shmt_word(SHMT_READY | shmt_word_tries(slot->word), shmt_word_owner(slot->word), gen);
    int rc = shmt_slots_change(seg, slot->index, slot->word, ready);
    if (rc == 0) {
        shmt_add_relaxed(&seg->header->redelivered, 1); /* a figure for people */
        rc = shmt_order_push(seg, slot->index, gen);
    }
    if (rc == 0) {
        shmt_event_wake(seg, &seg->header->ready_event, 1);
    }
    return rc;
}

/* ---- consumer -------------------------------------------------------------------------------------------------------------------------- */

static int try_acquire(shmt_segment *seg, void *arg, shmt_effort effort) {
    request *r = arg;
    int rc = shmt_enter(seg);
    if (rc != 0) {
        return rc;
    }
    take_role(seg, SHMT_CONSUMER);
    int got = shmt_order_take(seg, r->n, r->words, &r->first);
    int why = got == -EAGAIN && effort != SHMT_QUICK ? why_empty(seg) : -EAGAIN;
    if (why != -EAGAIN) {
        (void)shmt_reclaim(seg); /* the item of a consumer that died is to be drained too */
        got = shmt_order_take(seg, r->n, r->words, &r->first); /* once more: what came before the end counts */
        if (got == -EAGAIN && why == -EOWNERDEAD) {
            /* this process's own */
            shmt_store_relaxed(&seg->told_lost, shmt_load_relaxed(&seg->header->producers_lost));
        }
        return got == -EAGAIN ? why : got;
    }
    return got;
}

/* Would an acquire return at once, with an item or an error? `anybody`: one that also waits for who is not there yet. */
bool shmt_slot_would_come(shmt_segment *seg, bool anybody) {
    int rc = shmt_order_peek(seg);
    rc = rc == -EAGAIN ? why_empty(seg) : rc;
    return rc != -EAGAIN && !(rc == -EOWNERDEAD && anybody);
}

/* What the producer wrote beside the item: copied here and bounded, for a corrupt size must not reach a view. */
static int describe(shmt_segment *seg, uint32_t index, uint64_t word, shmt_slot *out) {
    const shmt_slot_header *header = &seg->slots[index];
    *out = (shmt_slot){
        .data = shmt_payload(seg, index),
        .word = word,
        .nbytes = header->nbytes, /* plain: carried by A2 */
        .tag = header->tag,
        .index = index,
        .tries = shmt_word_tries(word),
        .generation = shmt_fork_generation,
    };
    if (SHMT_LIKELY(out->nbytes <= shmt_touchable(seg, index))) {
        return 0;
    }
    return seg->geo.flags & SHMT_GROW ? prove(seg, index, out->nbytes) : -EUCLEAN;
}

/* What was taken cannot be shown for want of memory: it is READY again, at the end of the order, and nothing is lost. Killed
 * before the push, we leave what a producer leaves that is killed there. */
static void hand_back(shmt_segment *seg, uint32_t index, uint64_t word) {
    uint64_t gen = shmt_word_gen(word);
    uint64_t ready = shmt_word(SHMT_READY | shmt_word_tries(word), shmt_me(seg), gen);
    if (shmt_slots_change(seg, index, word, ready) == 0) {
        (void)shmt_order_push(seg, index, gen); /* a ring that is corrupt is met by the next one too */
    }
}

static int acquire(shmt_segment *seg, request *r, int64_t deadline_ns, shmt_slot *out) {
    if (r->n == 0 || seg->geo.slots == 0) {
        return -EINVAL;
    }
    if (SHMT_UNLIKELY(seg->debug) && shmt_debug_check(seg) != 0) {
        return -EUCLEAN;
    }
    int rc =
        wait_or_give_up(seg, try_acquire(seg, r, deadline_ns == 0 ? SHMT_FULL : SHMT_QUICK), &seg->header->ready_event,
                        deadline_ns, try_acquire, r, offsetof(shmt_member_record, acquire_waits));
    if (rc <= 0) {
        return rc;
    }
    if (SHMT_UNLIKELY(seg->debug)) {
        shmt_debug_open(seg, r->first, (uint32_t)rc);
    }
    shmt_slot first, one;
    int bad = describe(seg, r->first, r->words[0], &first);
    for (int i = 1; i < rc; i++) {
        int also = describe(seg, r->first + (uint32_t)i, r->words[i], &one);
        bad = also == -EUCLEAN || bad == 0 ? also : bad;
        first.nbytes = one.nbytes < first.nbytes ? one.nbytes : first.nbytes;
    }
    if (bad == -EUCLEAN) {
        give_back(seg, &first, r->words, (uint32_t)rc);
        return bad;
    }
    if (bad != 0) {
        for (int i = 0; i < rc; i++) {
            hand_back(seg, r->first + (uint32_t)i, r->words[i]);
        }
        shmt_event_wake(seg, &seg->header->ready_event, (uint32_t)rc);
        return bad;
    }
    *out = first;
    return rc;
}

int shmt_slot_acquire(shmt_segment *seg, int64_t deadline_ns, shmt_slot *out) {
    uint64_t word;
    int rc = acquire(seg, &(request){.n = 1, .words = &word}, deadline_ns, out);
    return rc > 0 ? 0 : rc;
}

int shmt_slot_try_acquire(shmt_segment *seg, shmt_slot *out) { return shmt_slot_acquire(seg, 0, out); }

int shmt_slot_acquire_many(shmt_segment *seg, uint32_t n, int64_t deadline_ns, uint64_t *words, shmt_slot *first) {
    return acquire(seg, &(request){.n = n, .words = words}, deadline_ns, first);
}

int shmt_slot_try_acquire_many(shmt_segment *seg, uint32_t n, uint64_t *words, shmt_slot *first) {
    return shmt_slot_acquire_many(seg, n, 0, words, first);
}
