/* words.c - a live segment in which a hostile peer writes whatever it likes between any two verbs of honest members.
 *
 *   bytes 0, 1   how the segment is made, where its counters begin
 *   then         steps: a byte that picks one, and its arguments; see run_step() */
#include "fuzz.h"

#define HELD 8
#define MANY 4
#define STEPS_MAX 200

typedef enum phase { NOTHING, CLAIMED, ACQUIRED, LEASED } phase;

typedef struct holding {
    phase phase;
    uint32_t who, n;
    shmt_slot slot;
    uint64_t words[MANY];
    shmt_lease *lease;
} holding;

typedef struct world {
    shmt_segment *seg[2]; /* two members of this process, over one mapping */
    bool closed[2];
    holding held[HELD];
    shmt_death_cursor cursor;
    input in;
} world;

/* ---- the hostile peer -------------------------------------------------------------------------------------------- */

static uint32_t some_owner(world *w) {
    uint32_t pick = take8(&w->in);
    const shmt_segment *seg = w->seg[0];
    const uint32_t owners[] = {0, shmt_me(seg), shmt_me(w->seg[1]), seg->geo.members, seg->geo.members + 1, 4095};
    return pick % 8 < 6 ? owners[pick % 8] : pick / 8;
}

/* A word near what makes sense more often than not, else any. */
static void set_word(world *w) {
    const shmt_segment *seg = w->seg[0];
    uint32_t pick = take8(&w->in);
    shmt_slot_header *slot = &seg->slots[pick % seg->geo.slots];
    uint32_t owner = some_owner(w);
    uint64_t gen = shmt_word_gen(shmt_load_relaxed(&slot->word)) + (uint64_t)(int64_t)(int8_t)take8(&w->in);
    shmt_store_relaxed(&slot->word, shmt_word(pick >> 4, owner, gen)); /* relaxed, here and below: one thread */
}

static void set_cell(world *w) {
    const shmt_segment *seg = w->seg[0];
    uint32_t pick = take8(&w->in);
    uint64_t at = shmt_load_relaxed(pick & 16 ? &seg->header->write_seq : &seg->header->read_seq) + pick % 16;
    const uint32_t indices[] = {0, 1, seg->geo.slots - 1, seg->geo.slots, 0x7fff, 0xffff};
    uint32_t index = indices[take8(&w->in) % 6];
    uint64_t gen = index < seg->geo.slots ? shmt_word_gen(shmt_load_relaxed(&seg->slots[index].word)) : 0;
    uint64_t lap = (at >> seg->ring_shift) + (pick & 32 ? take8(&w->in) : 0) - (pick & 64 ? 1 : 0);
    gen += pick & 128 ? take8(&w->in) : 0;
    shmt_store_relaxed(&seg->cells[at & (seg->geo.ring - 1)], shmt_cell(lap, gen, index));
}

static void set_sequence(world *w) {
    shmt_header *header = w->seg[0]->header;
    uint32_t pick = take8(&w->in);
    shmt_atomic64 *which = pick & 1 ? &header->write_seq : &header->read_seq;
    uint64_t value = pick & 2 ? take64(&w->in) : shmt_load_relaxed(which) + (uint64_t)(int64_t)(int8_t)take8(&w->in);
    shmt_store_relaxed(which, value);
}

static void set_item(world *w) {
    const shmt_segment *seg = w->seg[0];
    uint32_t pick = take8(&w->in);
    shmt_slot_header *slot = &seg->slots[pick % seg->geo.slots];
    const uint64_t stride = seg->geo.slot_stride, nbytes = seg->geo.slot_nbytes;
    const uint64_t sizes[] = {0, nbytes, nbytes + 1, stride, stride + 1, stride - 1, SHMT_PAGE, UINT64_MAX};
    uint64_t value = pick & 128 ? take64(&w->in) : sizes[pick >> 4 & 7];
    switch (take8(&w->in) % 4) {
    case 0:
        shmt_store_relaxed(&slot->reserved, value);
        break;
    case 1:
        slot->tag = value;
        break;
    default:
        slot->nbytes = value;
    }
}

static void set_member(world *w) {
    const shmt_segment *seg = w->seg[0];
    uint32_t pick = take8(&w->in);
    shmt_member_record *record = &seg->records[pick % (seg->geo.members + 1)];
    switch (pick >> 5) {
    case 0:
        shmt_store_relaxed(&record->joined_ns, take64(&w->in));
        break;
    case 1:
        shmt_store_relaxed(&record->roles, take8(&w->in));
        break;
    case 2:
        memset(record, (int)take8(&w->in), sizeof *record);
        break;
    default:
        shmt_store_relaxed(&record->pid, take8(&w->in));
    }
}

static void set_stream(world *w) {
    shmt_header *h = w->seg[0]->header;
    uint32_t pick = take8(&w->in);
    shmt_atomic32 *small[] = {&h->shut,  &h->producers_closed, &h->producers_lost, &h->consumers_seen, &h->joined,
                              &h->joins, &h->ready_event.word, &h->free_event.word};
    shmt_atomic64 *large[] = {&h->redelivered, &h->dropped, &h->reclaimed, &h->death_seq};
    uint64_t value = take_bytes(&w->in, pick & 128 ? 8 : 1);
    if (pick & 64) {
        shmt_store_relaxed(large[pick % 4], value);
    } else {
        shmt_store_relaxed(small[pick % 8], (uint32_t)value);
    }
}

/* As deaths.c does it: whoever writes a lie can compute its sum. */
static uint64_t mix(uint64_t sum, uint64_t word) {
    sum ^= word;
    return (sum << 13 | sum >> 51) * UINT64_C(0x9e3779b97f4a7c15);
}

static void set_death(world *w) {
    const shmt_segment *seg = w->seg[0];
    uint32_t pick = take8(&w->in);
    uint64_t p = w->cursor.position + pick % 4;
    shmt_death_cell *cell = &seg->deaths[p & (seg->geo.deaths - 1)];
    uint64_t who = take_bytes(&w->in, 5), word = take64(&w->in);
    shmt_store_relaxed(&cell->who, who);
    shmt_store_relaxed(&cell->word, word);
    shmt_store_relaxed(&cell->tag, pick);
    shmt_store_relaxed(&cell->joined, pick);
    shmt_store_relaxed(&cell->found, pick);
    shmt_store_relaxed(&cell->sum, mix(mix(mix(mix(mix(p, who), word), pick), pick), pick) + (pick & 16));
    shmt_store_relaxed(&cell->seq, pick & 32 ? 0 : p + 1);
    shmt_store_relaxed(&seg->header->death_seq, p + 1);
}

/* Anything, anywhere but in the payload. The geometry too: nobody reads it again. */
static void set_anything(world *w) {
    const shmt_segment *seg = w->seg[0];
    uint64_t at = take16(&w->in) % seg->geo.data_offset, value = take64(&w->in);
    uint64_t room = seg->geo.data_offset - at;
    memcpy(seg->base + at, &value, room < sizeof value ? (size_t)room : sizeof value);
}

/* ---- the verbs --------------------------------------------------------------------------------------------------- */

/* A place for what is claimed or acquired next; what was there is forgotten, as by a member that never gives back. */
static holding *new_holding(world *w, uint32_t pick, uint32_t who) {
    holding *h = &w->held[pick % HELD];
    if (h->phase == LEASED) {
        shmt_lease_drop(h->lease);
    }
    *h = (holding){.who = who};
    return h;
}

static int64_t some_deadline(uint32_t pick) { return pick & 1 ? shmt_now_ns() + 1000 * (int64_t)(pick >> 4 & 7) : 0; }

static void claim_step(world *w, shmt_segment *seg, uint32_t who, int closed) {
    uint32_t pick = take8(&w->in), n = 1 + (pick >> 1 & 3);
    holding *h = new_holding(w, pick >> 3, who);
    int rc = shmt_slot_claim_many(seg, n, some_deadline(pick), h->words, &h->slot);
    lawful("claim", rc, (int)n, closed ? closed : pick & 1 ? ETIMEDOUT : EAGAIN, closed ? closed : ESHUTDOWN);
    if (rc > 0) {
        h->phase = CLAIMED;
        h->n = (uint32_t)rc;
        check_slot(seg, &h->slot, h->n);
        memset(h->slot.data, 0x11, h->slot.nbytes);
    }
}

static void acquire_step(world *w, shmt_segment *seg, uint32_t who, int closed) {
    uint32_t pick = take8(&w->in), n = 1 + (pick >> 1 & 3);
    holding *h = new_holding(w, pick >> 3, who);
    int rc = shmt_slot_acquire_many(seg, n, some_deadline(pick), h->words, &h->slot);
    lawful("acquire", rc, (int)n, closed ? closed : pick & 1 ? ETIMEDOUT : EAGAIN, closed ? closed : ESHUTDOWN);
    if (rc > 0) {
        h->phase = ACQUIRED;
        h->n = (uint32_t)rc;
        check_slot(seg, &h->slot, h->n);
        read_all(h->slot.data, h->slot.nbytes);
        for (uint32_t i = 1; i < h->n; i++) { /* each of a batch was looked at before any was given out */
            MUST(seg->slots[h->slot.index + i].nbytes <= seg->geo.slot_stride);
            read_all(shmt_payload(seg, h->slot.index + i), seg->slots[h->slot.index + i].nbytes);
        }
    }
}

static void held_step(world *w) {
    uint32_t pick = take8(&w->in);
    holding *h = &w->held[pick % HELD];
    shmt_segment *seg = w->seg[h->who];
    uint32_t what = pick / HELD;
    if (h->phase == CLAIMED) {
        const uint64_t stride = seg->geo.slot_stride;
        const uint64_t sizes[] = {h->slot.nbytes, 0, h->slot.nbytes + 1, stride, stride + 1, UINT64_MAX, 5000, 1};
        uint64_t nbytes = sizes[what >> 2 & 7];
        switch (what & 3) {
        case 0: /* and not forgotten: once more is an error, and no more than that */
            lawful("publish", shmt_slot_publish(seg, &h->slot, nbytes, what), 0, ESTALE, EMSGSIZE);
            break;
        case 1:
            lawful("publish_many", shmt_slot_publish_many(seg, &h->slot, h->words, h->n, nbytes), 0, ESTALE, EMSGSIZE);
            break;
        case 2: {
            int rc = shmt_slot_reserve(seg, &h->slot, nbytes);
            lawful("reserve", rc, 0, EMSGSIZE, ENOSPC);
            if (rc == 0) {
                MUST(h->slot.nbytes >= nbytes);
                check_slot(seg, &h->slot, 1);
            }
            break;
        }
        default:
            lawful("abort", shmt_slot_abort_many(seg, &h->slot, h->words, h->n), 0, ESTALE, 0);
        }
    } else if (h->phase == ACQUIRED) {
        switch (what & 3) {
        case 0:
            lawful("release", shmt_slot_release_many(seg, &h->slot, h->words, h->n), 0, ESTALE, 0);
            break;
        case 1:
            lawful("requeue", shmt_slot_requeue(seg, &h->slot), 0, ESTALE, 0);
            break;
        default: {
            int rc = shmt_lease_take(seg, &h->slot, h->words, h->n, &h->lease);
            lawful("lease_take", rc, 0, 0, 0);
            h->phase = rc == 0 ? LEASED : NOTHING;
        }
        }
    } else if (h->phase == LEASED) {
        if (what & 1) {
            shmt_lease_hold(h->lease);
            MUST(shmt_lease_count(h->lease) == 2);
        } else {
            h->phase = NOTHING;
        }
        shmt_lease_drop(h->lease);
    }
}

static void look_step(world *w, shmt_segment *seg, int closed) {
    uint32_t pick = take8(&w->in);
    shmt_stats stats;
    shmt_death death;
    shmt_member_info member;
    shmt_slot_info slot;
    switch (pick % 8) {
    case 0:
        lawful("reclaim", shmt_reclaim(seg), (int)seg->geo.members, closed, 0);
        break;
    case 1:
        lawful("stats", shmt_stats_get(seg, &stats), 0, closed, 0);
        break;
    case 2:
        lawful("member_info", shmt_member_info_get(seg, pick >> 3, &member), 0, closed ? closed : ENOENT, EINVAL);
        break;
    case 3:
        lawful("slot_info", shmt_slot_info_get(seg, pick >> 3, &slot), 0, EINVAL, 0);
        MUST(pick >> 3 >= seg->geo.slots || slot.state <= 3);
        break;
    case 4:
        shmt_spin_set(seg, pick >> 6);
        break;
    case 5:
        if (pick & 8) {
            shmt_shutdown(seg);
        } else if (pick & 16) {
            shmt_segment_close(w->seg[1]);
            w->closed[1] = true;
        } else {
            shmt_death_begin(seg, &w->cursor);
        }
        break;
    default: {
        int rc = shmt_death_next(seg, &w->cursor, &death);
        lawful("death_next", rc, 0, EAGAIN, 0);
        MUST(rc != 0 || (death.member >= 1 && death.member <= seg->geo.members));
        MUST(rc != 0 || death.slot < seg->geo.slots || death.slot == SHMT_NO_SLOT);
    }
    }
}

static void run_step(world *w) {
    static void (*const hostile[])(world *) = {set_word,   set_cell,   set_sequence, set_item,
                                               set_member, set_stream, set_death,    set_anything};
    uint32_t pick = take8(&w->in), who = pick >> 7;
    shmt_segment *seg = w->seg[who];
    const int closed = w->closed[who] ? EBADF : 0;
    switch (pick & 15) {
    case 0:
    case 1:
        claim_step(w, seg, who, closed);
        break;
    case 2:
    case 3:
        acquire_step(w, seg, who, closed);
        break;
    case 4:
    case 5:
    case 6:
        held_step(w);
        break;
    case 7:
        look_step(w, seg, closed);
        break;
    default:
        hostile[pick & 7](w);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    static const uint64_t firsts[] = {0,
                                      1,
                                      3,
                                      (UINT64_C(1) << 24) - 3,
                                      (UINT64_C(1) << 27) - 5,
                                      (UINT64_C(1) << 48) - 3,
                                      UINT64_MAX - 4,
                                      UINT64_C(1) << 63};
    int64_t begin = cpu_now();
    world w = {.in = {bytes, bytes + n}};
    const uint32_t how = take8(&w.in), more = take8(&w.in);
    shmt_config config = {
        .slots = 2 + how % 3,
        .slot_nbytes = 100,
        .slot_stride = 3 * SHMT_PAGE,
        .flags = (how & 4 ? SHMT_GROW : 0) | (how & 8 ? SHMT_DROP : 0),
        .producers = how >> 6 & 1,
        .members = 4,
        .seq_first = firsts[more % 8],
    };
    if (how & 16) {
        setenv("SHMTENSOR_DEBUG", "1", 1);
    }
    MUST(shmt_segment_create(&config, &w.seg[0]) == 0);
    if (how & 32) { /* over a mapping of its own */
        MUST(shmt_segment_attach_fd(shmt_segment_info(w.seg[0])->fd, &w.seg[1]) == 0);
    } else {
        MUST(shmt_segment_attach_same(w.seg[0], &w.seg[1]) == 0);
    }
    unsetenv("SHMTENSOR_DEBUG");
    for (int i = 0; i < 2; i++) {
        shmt_spin_set(w.seg[i], more >> 7);
    }
    shmt_death_begin(w.seg[0], &w.cursor);
    const shmt_geometry geometry = w.seg[0]->geo;
    for (int step = 0; step < STEPS_MAX && w.in.at < w.in.end; step++) {
        run_step(&w);
    }
    for (int i = 0; i < HELD; i++) {
        (void)new_holding(&w, (uint32_t)i, 0);
    }
    MUST(memcmp(&geometry, &w.seg[0]->geo, sizeof geometry) == 0);
    shmt_segment_drop(w.seg[1]);
    shmt_segment_drop(w.seg[0]);
    check_time(begin);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *out) {
    /* A hand-off: claim 0, publish it, acquire into 1, release it; a batch; a lease; a dead member's item reclaimed. */
    static const uint8_t plain[] = {0, 0, 4, 0, 2, 8, 4, 1, 7, 1};
    static const uint8_t batch[] = {0, 2, 4, 8, 2, 10, 4, 17, 4, 1};
    static const uint8_t leased[] = {0, 0, 4, 0, 0x82, 8, 4, 17, 4, 9, 4, 1};
    static const uint8_t dead[] = {0, 0, 4, 0, 2, 8, 12, 0x63, 9, 8, 0x80, 3, 0, 7, 0, 7, 6, 2, 8, 4, 1};
    static const uint8_t grown[] = {0, 0, 4, 0x70, 4, 0x60, 4, 0x60, 0x82, 8, 11, 0x31, 2, 4, 1};
    static const struct {
        const uint8_t *steps;
        size_t n;
    } kinds[] = {{plain, sizeof plain},
                 {batch, sizeof batch},
                 {leased, sizeof leased},
                 {dead, sizeof dead},
                 {grown, sizeof grown}};
    const unsigned n_kinds = sizeof kinds / sizeof *kinds;
    if (number >= n_kinds * 16) {
        return 0;
    }
    out[0] = (uint8_t)(number / n_kinds << 2 | number % 3); /* every flag */
    out[1] = (uint8_t)number;
    size_t n = 2;
    for (int again = 0; again < 3; again++) {
        memcpy(out + n, kinds[(number + (unsigned)again) % n_kinds].steps,
               kinds[(number + (unsigned)again) % n_kinds].n);
        n += kinds[(number + (unsigned)again) % n_kinds].n;
    }
    return n;
}
