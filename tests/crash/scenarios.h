/* scenarios.h - what the children do between the markers, and the states of the world in which they do it. */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "crash.h"

/* ---- the verbs, with their entries in the journal ---------------------------------------------------------------------- */

/* What is copied into a slot in one go: between the markers there is the core's work and little else. */
static uint8_t ready_made[2][PAYLOAD];

static inline void make_ready(void) {
    for (uint32_t k = 0; k < 2; k++) {
        fill(ready_made[k], ITEM(WHO, k + 1), PAYLOAD);
    }
}

static inline void expect_rc(int rc, int a, int b, int c, int d) {
    if (rc != a && rc != b && rc != c && rc != d) {
        J->bad = rc;
    }
}

/* Item k, into the k-th of the slots from `first` on. */
static inline void write_item(const shmt_slot *first, uint32_t k) {
    shmt_slot one = *first;
    one.index += k;
    one.data += k * SEG->geo.slot_stride;
    if (far_at != 0) {
        expect_rc(shmt_slot_reserve(SEG, &one, far_at + PAYLOAD), 0, 0, 0, 0);
    }
    memcpy(one.data + far_at, ready_made[k], PAYLOAD);
}

static inline int claims(uint32_t n, uint64_t *words, shmt_slot *first) {
    J->claiming = 1;
    int rc = n == 1 ? shmt_slot_try_claim(SEG, first) : shmt_slot_try_claim_many(SEG, n, words, first);
    if (n == 1 && rc == 0) {
        words[0] = first->word;
        rc = 1;
    }
    J->claims = rc > 0 ? (uint32_t)rc : 0;
    J->claiming = 0;
    J->refused += rc == -ESHUTDOWN;
    expect_rc(rc < 0 ? rc : 0, 0, -EAGAIN, -ESHUTDOWN, -EOWNERDEAD);
    return rc;
}

static inline void publishes(const shmt_slot *first, const uint64_t *words, uint32_t n, bool many) {
    for (uint32_t k = 0; k < n; k++) {
        step_of *e = &J->pub[k];
        e->id = ITEM(WHO, k + 1);
        e->index = first->index + k;
        e->word = words[k];
        e->done = 0;
        J->n_pub = k + 1;
    }
    int rc = many ? shmt_slot_publish_many(SEG, first, words, n, far_at + 200)
                  : shmt_slot_publish(SEG, first, far_at + item_nbytes(J->pub[0].id), J->pub[0].id);
    for (uint32_t k = 0; k < n; k++) {
        J->pub[k].rc = rc;
        J->pub[k].done = 1;
    }
    expect_rc(rc, 0, 0, 0, 0);
}

static inline int acquires(uint32_t n, uint64_t *words, shmt_slot *first) {
    J->acquiring = 1;
    int rc = n == 1 ? shmt_slot_try_acquire(SEG, first) : shmt_slot_try_acquire_many(SEG, n, words, first);
    if (n == 1 && rc == 0) {
        words[0] = first->word;
        rc = 1;
    }
    for (int k = 0; k < rc; k++) {
        const uint8_t *data = first->data + (uint64_t)k * SEG->geo.slot_stride + far_at;
        step_of *e = &J->con[k];
        e->id = item_of(data);
        e->index = first->index + (uint32_t)k;
        e->word = words[k];
        e->begun = e->done = 0;
        e->nbytes = first->nbytes;
        memcpy(J->copy[k], data, PAYLOAD); /* the observer looks whether it is whole */
    }
    J->n_con = rc > 0 ? (uint32_t)rc : 0;
    J->acquiring = 0;
    expect_rc(rc < 0 ? rc : 0, 0, -EAGAIN, -ESHUTDOWN, -EOWNERDEAD);
    return rc;
}

static inline void release_begins(void) {
    for (uint32_t k = 0; k < J->n_con; k++) {
        J->con[k].begun = 1;
    }
}

static inline void release_ends(int rc) {
    for (uint32_t k = 0; k < J->n_con; k++) {
        J->con[k].rc = rc;
        J->con[k].done = 1;
    }
    expect_rc(rc, 0, 0, 0, 0);
}

/* ---- what happens before the first marker -------------------------------------------------------------------------------- */

static uint64_t words[4];
static shmt_slot slot;
static shmt_lease *lease;

static inline void as_member(void) {
    make_ready();
    NEED(shmt_member_join(SEG) == 0);
    J->member = shmt_member_id(SEG);
    shmt_spin_set(SEG, 0);
}

static inline void as_writer(void) {
    as_member();
    NEED(claims(1, words, &slot) == 1);
}

static inline void as_producer(void) {
    as_writer();
    write_item(&slot, 0);
    publishes(&slot, words, 1, false);
}

static inline void as_reader(void) {
    as_member();
    NEED(acquires(1, words, &slot) == 1);
}

static inline void as_lessee(void) {
    as_reader();
    NEED(shmt_lease_take(SEG, &slot, words, 1, &lease) == 0);
}

/* ---- what is stepped ----------------------------------------------------------------------------------------------------------- */

static inline void produce(void) {
    if (claims(1, words, &slot) == 1) {
        write_item(&slot, 0);
        publishes(&slot, words, 1, false);
    }
}

static inline void produce_many(void) {
    int n = claims(2, words, &slot);
    for (int k = 0; k < n; k++) {
        write_item(&slot, (uint32_t)k);
    }
    if (n > 0) {
        publishes(&slot, words, (uint32_t)n, true);
    }
}

static inline void abort_one(void) {
    if (claims(1, words, &slot) == 1) {
        write_item(&slot, 0);
        expect_rc(shmt_slot_abort(SEG, &slot), 0, 0, 0, 0);
    }
}

static inline void abort_many(void) {
    int n = claims(2, words, &slot);
    if (n > 0) {
        expect_rc(shmt_slot_abort_many(SEG, &slot, words, (uint32_t)n), 0, 0, 0, 0);
    }
}

static inline void consume(void) {
    if (acquires(1, words, &slot) == 1) {
        release_begins();
        release_ends(shmt_slot_release(SEG, &slot));
    }
}

static inline void consume_held(void) {
    release_begins();
    release_ends(shmt_slot_release(SEG, &slot));
}

static inline void consume_many(void) {
    int n = acquires(2, words, &slot);
    if (n > 0) {
        release_begins();
        release_ends(shmt_slot_release_many(SEG, &slot, words, (uint32_t)n));
    }
}

static inline void lease_of(int n) {
    if (n > 0) {
        NEED(shmt_lease_take(SEG, &slot, words, (uint32_t)n, &lease) == 0);
        shmt_lease_hold(lease);
        shmt_lease_drop(lease);
        release_begins();
        shmt_lease_drop(lease);
        release_ends(0);
    }
}

static inline void lease_one(void) { lease_of(acquires(1, words, &slot)); }

static inline void lease_many(void) { lease_of(acquires(2, words, &slot)); }

static inline void reclaims(void) {
    int rc = shmt_reclaim(SEG);
    expect_rc(rc, 0, 1, 2, 2);
}

static inline void joins(void) {
    int rc = shmt_member_join(SEG);
    expect_rc(rc, 0, 0, 0, 0);
    if (rc == 0) {
        J->member = shmt_member_id(SEG);
    }
}

static inline void closes(void) { shmt_segment_drop(SEG); }

static inline void closes_leased(void) {
    shmt_segment_close(SEG);
    release_begins();
    shmt_lease_drop(lease);
    release_ends(0);
    shmt_segment_drop(SEG);
}

static inline void reserve_and_publish(uint64_t nbytes) {
    int rc = shmt_slot_reserve(SEG, &slot, nbytes);
    expect_rc(rc, 0, 0, 0, 0);
    if (rc == 0) {
        slot.data[nbytes - 1] = 1;
        write_item(&slot, 0);
        publishes(&slot, words, 1, false);
    }
}

static inline void reserves(void) { reserve_and_publish(40000); }

/* So much that it is first compared with what the machine has left: a thousand lines of the kernel's text are parsed. */
static inline void reserves_more(void) { reserve_and_publish(400000); }

static inline void trims(void) {
    uint64_t given;
    J->trims = SEG->geo.slots;
    expect_rc(shmt_trim(SEG, &given), 0, 0, 0, 0);
}

static inline void shuts_down(void) { shmt_shutdown(SEG); }

static inline void waits_for_item(void) {
    uint64_t word = 0;
    J->acquiring = 1;
    int rc = shmt_slot_acquire_many(SEG, 1, shmt_now_ns() + 10 * MS, &word, &slot);
    if (rc == 1) { /* put there by whoever came in between */
        J->con[0].id = item_of(slot.data);
        J->con[0].index = slot.index;
        J->con[0].word = word;
        J->n_con = 1;
    }
    J->acquiring = 0;
    expect_rc(rc, 1, -ETIMEDOUT, -ESHUTDOWN, -EOWNERDEAD);
    if (rc == 1) {
        release_begins();
        release_ends(shmt_slot_release(SEG, &slot));
    }
}

static inline void waits_for_slot(void) {
    J->claiming = 1;
    int rc = shmt_slot_claim(SEG, shmt_now_ns() + 10 * MS, &slot);
    J->claims = rc == 0;
    J->claiming = 0;
    J->refused += rc == -ESHUTDOWN;
    expect_rc(rc, 0, -ETIMEDOUT, -ESHUTDOWN, -EOWNERDEAD);
    if (rc == 0) {
        expect_rc(shmt_slot_abort(SEG, &slot), 0, 0, 0, 0);
    }
}

/* ---- the table ------------------------------------------------------------------------------------------------------------------- */

enum {
    X_READING = 1,
    X_PUSHED = 2,
    X_UNPUSHED = 4,
    X_WRITING = 8,
    X_WORN = 16
}; /* WORN: redelivered three times before */

typedef struct scenario {
    const char *name;
    void (*prepare)(void);
    void (*body)(void);
    uint32_t slots, members, flags;
    uint32_t prior; /* items READY before */
    uint32_t dead;  /* what a dead member left */
    bool producer;  /* the stream waits for one more: this child */
    bool reclaimer; /* the child may be killed while it reclaims another */
    enum {
        SPARSE,
        VARIANT,
        PLAIN,
        CORE
    } depth; /* every instruction: never, at one wrap, at three, and in more modes */
    enum {
        AS_MADE,
        GROWN,   /* all slots have grown, and everybody knows; the last one was written here lately */
        FOREIGN, /* all have, and nobody knows who lives */
        TRIMMED  /* all had, and who lives does not know that free ones lost it again */
    } memory;
} scenario;

#define X_ALL (X_READING | X_UNPUSHED | X_WRITING)
static const scenario scenarios[] = {
    {"produce", as_member, produce, 3, 6, 0, 1, 0, true, false, CORE, AS_MADE},
    {"produce_first", as_member, produce, 1, 6, 0, 0, 0, true, false, VARIANT, AS_MADE},
    {"produce_many", as_member, produce_many, 4, 6, 0, 1, 0, true, false, CORE, AS_MADE},
    {"consume", as_member, consume, 3, 6, 0, 2, 0, false, false, CORE, AS_MADE},
    {"consume_drop", as_member, consume, 3, 6, SHMT_DROP, 2, 0, false, false, VARIANT, AS_MADE},
    {"consume_many", as_member, consume_many, 3, 6, 0, 3, 0, false, false, CORE, AS_MADE},
    {"lease", as_member, lease_one, 3, 6, 0, 2, 0, false, false, PLAIN, AS_MADE},
    {"lease_many", as_member, lease_many, 3, 6, SHMT_DROP, 3, 0, false, false, VARIANT, AS_MADE},
    {"abort", as_member, abort_one, 3, 6, 0, 1, 0, true, false, PLAIN, AS_MADE},
    {"abort_many", as_member, abort_many, 4, 6, 0, 1, 0, true, false, VARIANT, AS_MADE},
    {"reclaim", as_member, reclaims, 5, 6, 0, 1, X_ALL, false, true, CORE, AS_MADE},
    {"reclaim_pushed", as_member, reclaims, 5, 6, 0, 1, X_PUSHED | X_UNPUSHED, false, true, VARIANT, AS_MADE},
    {"reclaim_drop", as_member, reclaims, 5, 6, SHMT_DROP, 1, X_ALL, false, true, VARIANT, AS_MADE},
    {"reclaim_worn", as_member, reclaims, 3, 6, 0, 1, X_READING | X_WORN, false, true, VARIANT, AS_MADE},
    {"acquire_ended", as_member, consume, 3, 6, 0, 0, X_READING, false, true, VARIANT, AS_MADE},
    {"join", NULL, joins, 3, 6, 0, 1, 0, true, false, PLAIN, AS_MADE},
    {"join_dead", NULL, joins, 4, 2, 0, 0, X_ALL, false, true, PLAIN, AS_MADE},
    {"close_producer", as_producer, closes, 3, 6, 0, 1, 0, true, false, PLAIN, AS_MADE},
    {"close_leased", as_lessee, closes_leased, 3, 6, 0, 2, 0, false, false, PLAIN, AS_MADE},
    {"reserve", as_writer, reserves, 3, 6, SHMT_GROW, 1, 0, true, false, PLAIN, AS_MADE},
    {"reserve_more", as_writer, reserves_more, 3, 6, SHMT_GROW, 1, 0, true, false, SPARSE, AS_MADE},
    {"trim", as_member, trims, 3, 6, SHMT_GROW, 1, 0, false, false, PLAIN, GROWN},
    {"trim_dead", as_member, trims, 4, 6, SHMT_GROW, 0, X_ALL, false, false, VARIANT, GROWN},
    {"produce_grown", as_member, produce, 3, 6, SHMT_GROW, 1, 0, true, false, VARIANT, GROWN},
    {"produce_trimmed", as_member, produce, 3, 6, SHMT_GROW, 1, 0, true, false, VARIANT, TRIMMED},
    {"consume_foreign", as_member, consume, 3, 6, SHMT_GROW, 2, 0, false, false, VARIANT, FOREIGN},
    {"shutdown", as_member, shuts_down, 3, 6, 0, 1, 0, false, false, PLAIN, AS_MADE},
    {"wait_item", as_member, waits_for_item, 2, 6, 0, 0, 0, true, false, SPARSE, AS_MADE},
    {"wait_slot", as_member, waits_for_slot, 2, 6, 0, 2, 0, true, false, SPARSE, AS_MADE},
};
#define N_SCENARIOS (sizeof scenarios / sizeof *scenarios)

/* Two positions before each counter wraps; the ring of these worlds has at most 16 cells. */
typedef struct wrap_of {
    const char *name;
    uint64_t first;
    uint32_t times_ring;
} wrap_of;
static const wrap_of wraps[] = {
    {"position", 0, 1}, /* 2^64: there all of them wrap at once */
    {"lap", UINT64_C(1) << 24, 1},
    {"gen", UINT64_C(1) << 48, 0},
    {"0", 0, 0},
    {"cell-gen", UINT64_C(1) << 24, 0},
};
#define N_WRAPS (sizeof wraps / sizeof *wraps)

static inline uint32_t ring_of(uint32_t slots) {
    uint32_t ring = 2;
    while (ring < 2 * slots) {
        ring *= 2;
    }
    return ring;
}

static inline uint64_t first_of(const wrap_of *wrap, uint32_t slots) {
    if (wrap->first == 0) {
        return wrap->times_ring ? UINT64_MAX - 2 : 0;
    }
    return wrap->first * (wrap->times_ring ? ring_of(slots) : 1) - 2;
}

/* ---- the world before ------------------------------------------------------------------------------------------------------------ */

static inline void setup_put(shmt_segment *seg, uint64_t id, bool push) {
    shmt_slot s;
    NEED(shmt_slot_try_claim(seg, &s) == 0);
    NEED(shmt_slot_reserve(seg, &s, far_at + PAYLOAD) == 0); /* says nothing unless slots grow */
    fill(s.data + far_at, id, item_nbytes(id));
    if (push) {
        NEED(shmt_slot_publish(seg, &s, far_at + item_nbytes(id), id) == 0);
    } else { /* killed between the two steps of publish */
        seg->slots[s.index].nbytes = far_at + item_nbytes(id);
        seg->slots[s.index].tag = id;
        uint64_t ready = shmt_word(SHMT_READY, shmt_word_owner(s.word), shmt_word_gen(s.word));
        NEED(shmt_slots_change(seg, s.index, s.word, ready) == 0);
    }
}

static inline void add_prior(world *w, uint64_t id, uint32_t kind, uint32_t tries, uint32_t unpushed) {
    w->prior[w->n_prior++] = (prior_item){.id = id, .kind = kind, .tries = tries, .unpushed = unpushed};
}

/* The member that died before. */
static inline void leave_dead(world *w, uint32_t what) {
    pid_t pid = fork();
    NEED(pid >= 0);
    if (pid == 0) {
        shmt_slot s;
        if (what & X_READING) {
            NEED(shmt_slot_try_acquire(w->seg, &s) == 0);
            if (what & X_WORN) {
                uint64_t word = s.word | (uint64_t)SHMT_TRIES_MAX << 60;
                NEED(shmt_slots_change(w->seg, s.index, s.word, word) == 0);
            }
        }
        if (what & X_PUSHED) {
            setup_put(w->seg, ITEM(BY_DEAD, 1), true);
        }
        if (what & X_UNPUSHED) {
            setup_put(w->seg, ITEM(BY_DEAD, 2), false);
        }
        if (what & X_WRITING) {
            NEED(shmt_slot_try_claim(w->seg, &s) == 0);
            NEED(shmt_slot_reserve(w->seg, &s, far_at + PAYLOAD) == 0);
            fill(s.data + far_at, ITEM(BY_DEAD, 3), 100);
        }
        raise(SIGKILL);
    }
    int status;
    NEED(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    w->dead_member = id_of_pid(w, pid);
    NEED(w->dead_member != 0);
}

/* Everything that can grow does. */
static inline void grow(shmt_segment *seg) {
    shmt_slot all[16];
    uint32_t n = 0;
    while (n < seg->geo.slots) {
        NEED(shmt_slot_try_claim(seg, &all[n]) == 0 && shmt_slot_reserve(seg, &all[n], far_at + PAYLOAD) == 0);
        n++;
    }
    while (n-- > 0) {
        NEED(shmt_slot_abort(seg, &all[n]) == 0);
    }
}

static inline void world_begin(world *w, const scenario *s, const wrap_of *wrap, uint32_t more_producers) {
    *w = (world){0};
    far_at = s->memory != AS_MADE ? FAR : 0;
    const bool dead_produces = (s->dead & (X_PUSHED | X_UNPUSHED | X_WRITING)) != 0;
    shmt_config config = {
        .slot_nbytes = s->flags & SHMT_GROW ? SHMT_PAGE : PAYLOAD,
        .slot_stride = s->flags & SHMT_GROW ? 1u << 20 : 0,
        .slots = s->slots,
        .members = s->members,
        .flags = s->flags,
        .producers = 1 + dead_produces + s->producer + more_producers,
        .seq_first = first_of(wrap, s->slots),
    };
    NEED(shmt_segment_create(&config, &w->seg) == 0);
    NEED(shmt_member_id(w->seg) == 1);
    shmt_segment *maker;
    NEED(shmt_segment_attach_fd(shmt_segment_info(w->seg)->fd, &maker) == 0);
    if (s->memory != AS_MADE) {
        grow(maker);
    }
    if (s->memory == GROWN || s->memory == TRIMMED) {
        memcpy(w->seg->mapped, maker->mapped, s->slots * sizeof *w->seg->mapped);
        shmt_store_relaxed(&w->seg->warm[0], s->slots);
    }
    const uint32_t n = s->prior + ((s->dead & X_READING) != 0);
    for (uint32_t k = 1; k <= n; k++) {
        bool held = k == 1 && (s->dead & X_READING);
        setup_put(maker, ITEM(BY_MAKER, k), true);
        add_prior(w, ITEM(BY_MAKER, k), held ? HELD : DURABLE, held && (s->dead & X_WORN) ? SHMT_TRIES_MAX : 0, 0);
    }
    if (n == 0) { /* it counts as a producer that closed all the same */
        shmt_slot none;
        NEED(shmt_slot_try_claim(maker, &none) == 0 && shmt_slot_abort(maker, &none) == 0);
    }
    if (s->memory == TRIMMED) {
        uint64_t given;
        NEED(shmt_trim(maker, &given) == 0 && given > 0);
    }
    shmt_segment_drop(maker);
    if (s->dead) {
        leave_dead(w, s->dead);
        if (s->dead & X_PUSHED) {
            add_prior(w, ITEM(BY_DEAD, 1), DURABLE, 0, 0);
        }
        if (s->dead & X_UNPUSHED) {
            add_prior(w, ITEM(BY_DEAD, 2), DURABLE, 0, 1);
        }
        if (s->dead & X_WRITING) {
            add_prior(w, ITEM(BY_DEAD, 3), NEVER, 0, 0);
        }
    }
    if (config.seq_first != 0) { /* as if a sleeper had been killed: so the wake-ups are stepped through as well */
        shmt_or_seq_cst(&w->seg->header->ready_event.word, SHMT_EVENT_W);
        shmt_or_seq_cst(&w->seg->header->free_event.word, SHMT_EVENT_W);
    }
    world_keep(w);
}

#endif
