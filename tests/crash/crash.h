/* crash.h - what a death may not do: a small world that is put back before each run, children that can be stopped after any
 * of their instructions, and the laws that hold once the dead are reclaimed.
 *
 * A *child* writes what it is about to do and what it has done into a journal that survives it. Only what lies between
 * "about to" and "done" is looked up in the slot words at its death (resolve()); everything else follows from the journal:
 *
 *   an item whose publish returned is consumed exactly once in all, by a child that released it or by the observer;
 *   an item whose publish did not begin is never seen;
 *   an item is redelivered once for each consumer that died holding it, says so in `tries`, and is dropped after three;
 *   with SHMT_DROP it is then not seen again at all;
 *   payloads are whole, items of one producer come in order, every slot is usable again, the figures add up;
 *   of a slot that grows, whatever its owner may touch is there.
 *
 * The *observer* is the process that runs the test: one more member, which reclaims, drains and counts. */
#ifndef CRASH_H
#define CRASH_H

#include "trace.h"

#define MS INT64_C(1000000)
#define PATIENCE (1000 * MS) /* nobody waits longer than this for anything */
#define ITEMS_MAX 32u

/* ---- items ------------------------------------------------------------------------------------------------------------- */

enum { BY_MAKER = 1, BY_DEAD, BY_A, BY_B, BY_OBSERVER, BY_FILLER };
#define ITEM(who, number) ((uint64_t)(who) << 16 | (uint64_t)(number))

/* Where in its slot an item lies. In a world whose slots have grown: in memory that a trim takes away, and not on the first
 * page of it. Nobody touches the pages before, so they are there only if they were reserved. */
static uint32_t far_at;
#define FAR (3 * SHMT_PAGE)

static inline uint32_t item_nbytes(uint64_t id) { return 40 + (uint32_t)(id * 37 % 200); }

static inline void fill(uint8_t *data, uint64_t id, uint32_t nbytes) {
    memcpy(data, &id, sizeof id);
    for (uint32_t i = sizeof id; i < nbytes; i++) {
        data[i] = (uint8_t)(id * 31 + i * 7 + (id >> 16));
    }
}

static inline uint64_t item_of(const uint8_t *data) {
    uint64_t id;
    memcpy(&id, data, sizeof id);
    return id;
}

/* `nbytes`: of the slot, up to the item's end. */
static inline bool whole(const uint8_t *data, uint64_t nbytes) {
    uint64_t id = item_of(data);
    bool same = nbytes >= far_at + sizeof id && nbytes <= far_at + PAYLOAD;
    for (uint32_t i = sizeof id; same && i < nbytes - far_at; i++) {
        same = data[i] == (uint8_t)(id * 31 + i * 7 + (id >> 16));
    }
    return same;
}

/* ---- the world --------------------------------------------------------------------------------------------------------------- */

enum { DURABLE, HELD, NEVER }; /* what an item of the state before was: READY; READING of a dead one; WRITING of one */

typedef struct prior_item {
    uint64_t id;
    uint32_t kind, tries, unpushed;
} prior_item;

typedef struct world {
    shmt_segment *seg; /* the observer's */
    shmt_segment handle;
    uint8_t *image;
    shmt_mapped *mapped;
    shmt_stats stats;
    uint32_t closed; /* producers, of the state before */
    uint32_t dead_member;
    uint32_t n_prior;
    prior_item prior[8];
    /* what the observer has seen since */
    uint32_t n_seen;
    struct {
        uint64_t id;
        uint32_t tries;
    } seen[ITEMS_MAX];
    uint32_t n_put, claims, pushes, refused; /* the observer's own, in between; refused: claims after the end */
    bool acquired;
    int last; /* what ended the last drain */
} world;

static inline uint8_t *item_at(const world *w, uint32_t index) { return shmt_payload(w->seg, index) + far_at; }

static inline uint64_t word_of(const world *w, uint32_t index) { return shmt_load_seq_cst(&w->seg->slots[index].word); }

static inline uint32_t id_of_pid(const world *w, pid_t pid) {
    for (uint32_t id = 1; id <= w->seg->geo.members; id++) {
        if (shmt_load_seq_cst(&w->seg->records[id].pid) == (uint32_t)pid) {
            return id;
        }
    }
    return 0;
}

/* Growing slots are as large as their headers say again: what a run reserved is taken away, what it trimmed is there. */
static inline void memory_back(world *w) {
    const shmt_segment *seg = w->seg;
    for (uint32_t i = 0; (seg->geo.flags & SHMT_GROW) && i < seg->geo.slots; i++) {
        const uint64_t offset = seg->geo.data_offset + i * seg->geo.slot_stride,
                       had = shmt_load_relaxed(&seg->slots[i].reserved);
        NEED(shmt_memory_punch(seg->fd, offset + had, seg->geo.slot_stride - had) == 0);
        if (had > SHMT_PAGE && shmt_memory_present(seg->fd, offset, SHMT_PAGE, had) != 0) {
            NEED(shmt_memory_reserve_unchecked(seg->fd, offset, had) == 0);
            NEED(shmt_memory_populate(shmt_payload(seg, i), had) == 0);
        }
    }
}

/* May the owner of a slot touch that much of it? On a full file system a touch of what is not there is SIGBUS. */
static inline bool is_there(const world *w, uint32_t index, uint64_t nbytes) {
    const shmt_segment *seg = w->seg;
    const uint64_t offset = seg->geo.data_offset + index * seg->geo.slot_stride;
    return !(seg->geo.flags & SHMT_GROW) || nbytes <= SHMT_PAGE ||
           shmt_memory_present(seg->fd, offset, SHMT_PAGE, nbytes) == 0;
}

/* The control words and the items; the rest of a growing slot is nobody's concern. */
static inline void world_copy(world *w, bool back) {
    shmt_segment *seg = w->seg;
    uint8_t *image = w->image;
    const size_t head = seg->geo.data_offset;
    back ? memcpy(seg->base, image, head) : memcpy(image, seg->base, head);
    back ? memory_back(w) : (void)0;
    image += head;
    for (uint32_t i = 0; i < seg->geo.slots; i++, image += PAYLOAD) {
        if (shmt_load_relaxed(&seg->slots[i].reserved) >= far_at + PAYLOAD) { /* else even a look takes memory */
            back ? memcpy(item_at(w, i), image, PAYLOAD) : memcpy(image, item_at(w, i), PAYLOAD);
        }
    }
}

static inline size_t image_nbytes(const world *w) { return w->seg->geo.data_offset + w->seg->geo.slots * PAYLOAD; }

static inline void world_keep(world *w) {
    NEED((w->image = malloc(image_nbytes(w))) != NULL);
    NEED((w->mapped = calloc(w->seg->geo.slots, sizeof *w->mapped)) != NULL);
    memcpy(w->mapped, w->seg->mapped, w->seg->geo.slots * sizeof *w->mapped);
    world_copy(w, false);
    w->handle = *w->seg;
    w->closed = shmt_load_seq_cst(&w->seg->header->producers_closed);
    NEED(shmt_stats_get(w->seg, &w->stats) == 0);
}

/* All children are dead, so what is in the bytes, and in the observer's handle, is all there is. */
static inline void world_restore(world *w) {
    world_copy(w, true);
    *w->seg = w->handle;
    memcpy(w->seg->mapped, w->mapped, w->seg->geo.slots * sizeof *w->mapped);
    w->n_seen = w->n_put = w->claims = w->pushes = w->refused = 0;
    w->acquired = false;
    w->last = 0;
    now.failed = false;
}

static inline void world_end(world *w) {
    free(w->image);
    free(w->mapped);
    shmt_segment_drop(w->seg);
    *w = (world){0};
}

/* ---- what the journal leaves open is looked up, at the moment of death ------------------------------------------------------ */

static inline void resolve(world *w, journal *j) {
    const uint32_t me = j->member, slots = w->seg->geo.slots;
    if (j->claiming) {
        uint32_t found = 0;
        for (uint32_t i = 0; i < slots; i++) {
            found += shmt_word_state(word_of(w, i)) == SHMT_WRITING && shmt_word_owner(word_of(w, i)) == me;
        }
        j->claims = found;
        j->claiming = 0;
    }
    if (j->acquiring) {
        j->n_con = 0;
        for (uint32_t i = 0; i < slots; i++) {
            uint64_t word = word_of(w, i);
            if (shmt_word_is_reading(word) && shmt_word_owner(word) == me && j->n_con < 4) {
                step_of *e = &j->con[j->n_con++];
                e->id = item_of(item_at(w, i));
                e->index = i;
                e->word = word;
                e->begun = e->done = 0;
                e->nbytes = 0;
            }
        }
        j->acquiring = 0;
    }
    for (uint32_t k = 0; k < j->n_con && k < 2; k++) {
        LAW(j->con[k].nbytes == 0 || whole(j->copy[k], j->con[k].nbytes), "a child acquired a torn item");
    }
    LAW(j->bad == 0, "a verb of the child said %d (%s)", j->bad, strerror(abs(j->bad)));
    for (uint32_t k = 0; k < j->n_pub; k++) {
        step_of *e = &j->pub[k];
        if (!e->done) {
            e->rc = word_of(w, e->index) != e->word ? 0 : -ECANCELED;
            e->done = 1;
        }
    }
    for (uint32_t k = 0; k < j->n_con; k++) {
        step_of *e = &j->con[k];
        if (e->begun && !e->done && word_of(w, e->index) != e->word) {
            e->rc = 0;
            e->done = 1;
        }
    }
}

/* ---- the observer -------------------------------------------------------------------------------------------------------------- */

static inline bool observe_one(world *w) {
    shmt_slot slot;
    w->last = shmt_slot_try_acquire(w->seg, &slot);
    w->acquired = true;
    if (w->last != 0) {
        return false;
    }
    LAW(is_there(w, slot.index, slot.nbytes), "an item lies where nothing was reserved");
    uint64_t id = item_of(slot.data + far_at);
    LAW(whole(slot.data + far_at, slot.nbytes), "item %" PRIx64 " is torn (%" PRIu64 " bytes)", id, slot.nbytes);
    LAW(slot.tag == id || slot.tag == 0, "item %" PRIx64 " has tag %" PRIx64, id, slot.tag);
    if (w->n_seen < ITEMS_MAX) {
        w->seen[w->n_seen].id = id;
        w->seen[w->n_seen++].tries = slot.tries;
    }
    int rc = shmt_slot_release(w->seg, &slot);
    LAW(rc == 0, "the observer's release of %" PRIx64 ": %s", id, strerror(-rc));
    return true;
}

static inline void drain(world *w) {
    for (uint32_t turn = 0; turn < ITEMS_MAX && observe_one(w); turn++) {
    }
    LAW(w->last == -EAGAIN || w->last == -ESHUTDOWN || w->last == -EOWNERDEAD, "a drain ended with %d (%s)", w->last,
        strerror(-w->last));
}

static inline void observer_reserves(world *w, shmt_slot *slot) {
    LAW(is_there(w, slot->index, slot->nbytes), "a claimed slot lacks some of its %" PRIu64 " bytes", slot->nbytes);
    NEED(shmt_slot_reserve(w->seg, slot, far_at + PAYLOAD) == 0); /* says nothing unless slots grow */
    LAW(is_there(w, slot->index, slot->nbytes), "of %" PRIu64 " reserved bytes some are not there", slot->nbytes);
}

static inline bool put_id(world *w, uint64_t id) {
    shmt_slot slot;
    int rc = shmt_slot_try_claim(w->seg, &slot);
    LAW(rc == 0 || rc == -EAGAIN || rc == -ESHUTDOWN, "the observer's claim: %s", strerror(-rc));
    if (rc != 0) {
        w->refused += rc == -ESHUTDOWN; /* claimed, saw the end, and gave the slot back */
        return false;
    }
    w->claims++;
    observer_reserves(w, &slot);
    fill(slot.data + far_at, id, item_nbytes(id));
    rc = shmt_slot_publish(w->seg, &slot, far_at + item_nbytes(id), id);
    LAW(rc == 0, "the observer's publish: %s", strerror(-rc));
    w->pushes++;
    return true;
}

static inline void put_between(world *w) {
    if (put_id(w, ITEM(BY_OBSERVER, w->n_put + 1))) {
        w->n_put++;
    }
}

/* All slots can be claimed, no more; what is published comes back whole and in order. More rounds than the ring has laps. */
static inline void check_capacity(world *w) {
    const uint32_t slots = w->seg->geo.slots;
    uint32_t number = 0;
    shmt_store_relaxed(&w->seg->header->shut, 0); /* had the stream ended: we want to see the slots all the same */
    for (uint32_t round = 0; round < 1 + w->seg->geo.ring / slots && !now.failed; round++) {
        shmt_slot claimed[16], one;
        uint32_t got = 0;
        int rc;
        while ((rc = shmt_slot_try_claim(w->seg, &one)) == 0 && got < slots) {
            claimed[got++] = one;
        }
        LAW(rc == -EAGAIN && got == slots, "%u of %u slots can be claimed, then %s", got, slots, strerror(-rc));
        uint32_t first = number;
        for (uint32_t k = 0; k < got; k++) {
            uint64_t id = ITEM(BY_FILLER, ++number);
            observer_reserves(w, &claimed[k]);
            fill(claimed[k].data + far_at, id, item_nbytes(id));
            rc = shmt_slot_publish(w->seg, &claimed[k], far_at + item_nbytes(id), id);
            LAW(rc == 0, "publish into a slot that was taken back: %s", strerror(-rc));
        }
        w->n_seen = 0;
        drain(w);
        LAW(w->n_seen == got, "%u published afterwards, %u seen", got, w->n_seen);
        for (uint32_t k = 0; k < w->n_seen; k++) {
            LAW(w->seen[k].id == ITEM(BY_FILLER, first + k + 1) && w->seen[k].tries == 0,
                "afterwards item %u of a round is %" PRIx64 ", tries %u", k, w->seen[k].id, w->seen[k].tries);
        }
        w->claims += got;
        w->pushes += got;
    }
}

/* How often `id` was released by a child, and by how many that died it was held. */
static inline void consumed_by(const journal *j, bool alive, uint64_t id, uint32_t *released, uint32_t *held) {
    for (uint32_t k = 0; k < j->n_con; k++) {
        if (j->con[k].id == id) {
            bool gone = j->con[k].done && j->con[k].rc == 0;
            *released += gone;
            *held += !gone && !alive;
        }
    }
}

typedef struct account {
    uint32_t durable, pushes, redeliveries, drops;
} account;

static inline void check_item(world *w, child *const *children, uint32_t n, uint64_t id, uint32_t tries, uint32_t held,
                              account *sum) {
    uint32_t released = 0, seen = 0;
    for (uint32_t k = 0; k < n; k++) {
        consumed_by(children[k]->j, children[k]->alive, id, &released, &held);
    }
    uint32_t last = 0;
    for (uint32_t k = 0; k < w->n_seen; k++) {
        if (w->seen[k].id == id) {
            seen++;
            last = w->seen[k].tries;
        }
    }
    bool drop = (w->seg->geo.flags & SHMT_DROP) != 0;
    bool given_up = drop ? held > 0 : tries + held > SHMT_TRIES_MAX;
    uint32_t total = released + seen;
    LAW(total == (given_up ? 0 : 1),
        "item %" PRIx64 " was %s: released %u times by children, seen %u times, held by %u dead", id,
        total == 0 ? "lost"
        : given_up ? "not dropped"
                   : "doubled",
        released, seen, held);
    LAW(seen == 0 || last == tries + held, "item %" PRIx64 " came with %u tries instead of %u", id, last, tries + held);
    uint32_t again = drop ? 0 : tries + held > SHMT_TRIES_MAX ? SHMT_TRIES_MAX - tries : held;
    sum->durable++;
    sum->redeliveries += again;
    sum->pushes += again;
    sum->drops += given_up;
}

static inline void check_items(world *w, child *const *children, uint32_t n, account *sum) {
    for (uint32_t k = 0; k < w->n_prior; k++) {
        const prior_item *p = &w->prior[k];
        if (p->kind != NEVER) {
            check_item(w, children, n, p->id, p->tries, p->kind == HELD, sum);
            sum->pushes += p->unpushed;
        }
    }
    for (uint32_t c = 0; c < n; c++) {
        const journal *j = children[c]->j;
        for (uint32_t k = 0; k < j->n_pub; k++) {
            if (j->pub[k].done && j->pub[k].rc == 0) {
                check_item(w, children, n, j->pub[k].id, 0, 0, sum);
                sum->pushes++;
            }
        }
    }
    for (uint32_t k = 0; k < w->n_put; k++) {
        check_item(w, children, n, ITEM(BY_OBSERVER, k + 1), 0, 0, sum);
    }
    /* Nothing else, and in order. */
    uint64_t newest[BY_FILLER + 1] = {0};
    for (uint32_t s = 0; s < w->n_seen; s++) {
        uint64_t id = w->seen[s].id, who = id >> 16;
        bool known = who == BY_OBSERVER && (id & 0xffff) <= w->n_put;
        for (uint32_t k = 0; k < w->n_prior; k++) {
            known |= w->prior[k].id == id && w->prior[k].kind != NEVER;
        }
        for (uint32_t c = 0; c < n; c++) {
            for (uint32_t k = 0; k < children[c]->j->n_pub; k++) {
                const step_of *e = &children[c]->j->pub[k];
                known |= e->id == id && e->done && e->rc == 0;
            }
        }
        LAW(known, "item %" PRIx64 " was seen and never published", id);
        if (known && w->seen[s].tries == 0) {
            LAW(id > newest[who], "item %" PRIx64 " came after %" PRIx64, id, newest[who]);
            newest[who] = id;
        }
    }
}

/* The figures, once nothing is held by anybody. `slack`: killed reclaimers, each of whose last count may be missing. */
static inline void check_figures(world *w, child *const *children, uint32_t n, const account *sum, uint32_t slack,
                                 uint32_t in_between) {
    shmt_stats s;
    NEED(shmt_stats_get(w->seg, &s) == 0);
    uint32_t alive = 1, claims = w->claims, more = w->refused;
    for (uint32_t c = 0; c < n; c++) {
        alive += children[c]->alive && id_of_pid(w, children[c]->pid) != 0;
        claims += children[c]->j->claims;
        more += children[c]->j->refused + children[c]->j->trims;
    }
    LAW(s.free == w->seg->geo.slots,
        "%" PRIu64 " slots are free in the end, %" PRIu64 " writing, %" PRIu64 " ready, %" PRIu64 " reading", s.free,
        s.writing, s.ready, s.reading);
    LAW(s.members == alive, "%" PRIu64 " members instead of %u", s.members, alive);
    uint64_t redelivered = s.redelivered - w->stats.redelivered, dropped = s.dropped - w->stats.dropped;
    LAW(redelivered <= sum->redeliveries && redelivered + slack >= sum->redeliveries,
        "redelivered %" PRIu64 " times instead of %u", redelivered, sum->redeliveries);
    LAW(dropped <= sum->drops && dropped + slack >= sum->drops, "dropped %" PRIu64 " instead of %u", dropped,
        sum->drops);
    uint64_t generations = s.claims + s.redelivered - w->stats.claims - w->stats.redelivered;
    uint64_t least = claims + sum->redeliveries;
    LAW(generations >= least && generations <= least + more,
        "generations moved by %" PRIu64 " for %u claims and %u redeliveries", generations, claims, sum->redeliveries);
    uint64_t pushes = s.publishes - w->stats.publishes;
    /* `in_between`: a reclaimer that stood between its last look and its push repeats what others took: one stale cell. */
    LAW(pushes >= sum->pushes + w->pushes && pushes <= sum->pushes + w->pushes + in_between,
        "%" PRIu64 " pushes instead of %u", pushes, sum->pushes + w->pushes);
    LAW(s.reclaimed - w->stats.reclaimed <= n + (w->dead_member != 0) + slack, "%" PRIu64 " reclaimed of %u",
        s.reclaimed - w->stats.reclaimed, n);
}

/* Nobody dead owns anything any more. */
static inline void check_owners(world *w, child *const *children, uint32_t n) {
    const uint32_t me = shmt_member_id(w->seg);
    for (uint32_t i = 0; i < w->seg->geo.slots; i++) {
        uint64_t word = word_of(w, i);
        uint32_t owner = shmt_word_owner(word);
        bool fine = owner == 0 || (owner == me && shmt_word_is_ready(word));
        for (uint32_t c = 0; c < n; c++) {
            fine |= children[c]->alive && owner == id_of_pid(w, children[c]->pid);
        }
        LAW(fine, "after reclaim slot %u is %016" PRIx64, i, word);
    }
}

typedef struct ending {
    bool exact;                 /* the end of the stream is foretold */
    bool ended;                 /* all producers are gone */
    bool by_death;              /* fewer closed than were expected */
    uint32_t killed_reclaimers; /* its last count may be missing, or be made twice */
    uint32_t in_between;        /* others acted while a reclaimer stood still */
} ending;

/* Killed between the count and the end of the role, a reclaimer leaves a producer that is counted twice. */
static inline bool lost_twice(const world *w, child *const *children, uint32_t n) {
    uint32_t dead = (w->dead_member != 0);
    for (uint32_t c = 0; c < n; c++) {
        dead += !children[c]->alive && children[c]->produced;
    }
    uint32_t lost = shmt_load_seq_cst(&w->seg->header->producers_lost);
    LAW(lost <= dead + 1, "%u producers are counted as dead instead of %u", lost, dead);
    return lost > dead;
}

/* Everything that must hold after the deaths: the children's journals are resolved. */
static inline void check_all(world *w, child *const *children, uint32_t n, ending end) {
    struct timespec begin, finish;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    int rc = shmt_reclaim(w->seg);
    LAW(rc >= 0 && rc <= 1 + (int)n, "reclaim: %d (%s)", rc, rc < 0 ? strerror(-rc) : "too many");
    rc = shmt_reclaim(w->seg);
    LAW(rc == 0, "a second reclaim: %d", rc);
    check_owners(w, children, n);
    drain(w);
    if (end.exact && !(end.killed_reclaimers && lost_twice(w, children, n))) {
        int expected = !end.ended ? -EAGAIN : end.by_death ? -EOWNERDEAD : -ESHUTDOWN;
        LAW(w->last == expected, "an empty acquire says %s instead of %s", strerror(-w->last), strerror(-expected));
    }
    account sum = {0};
    check_items(w, children, n, &sum);
    check_capacity(w);
    check_figures(w, children, n, &sum, end.killed_reclaimers, end.in_between);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &finish);
    int64_t ns = (finish.tv_sec - begin.tv_sec) * 1000 * MS + finish.tv_nsec - begin.tv_nsec;
    LAW(ns < PATIENCE, "to settle this took %" PRId64 " ms", ns / MS);
}

#endif
