/* The ring: first in, first out, whoever stopped half-way, wherever the counters stand, and never believing a cell. */
#include "step.h"

static uint64_t write_seq(shmt_segment *seg) { return shmt_load_seq_cst(&seg->header->write_seq); }
static uint64_t read_seq(shmt_segment *seg) { return shmt_load_seq_cst(&seg->header->read_seq); }
static void set_write_seq(shmt_segment *seg, uint64_t p) { shmt_store_release(&seg->header->write_seq, p); }
static void set_read_seq(shmt_segment *seg, uint64_t p) { shmt_store_release(&seg->header->read_seq, p); }
static shmt_atomic64 *cell_at(shmt_segment *seg, uint64_t p) { return &seg->cells[p % seg->geo.ring]; }
static uint64_t lap(shmt_segment *seg, uint64_t p) { return p / seg->geo.ring; }

/* Makes slot `index` READY without telling the ring; returns its generation. */
static uint64_t ready(shmt_segment *seg, uint32_t index) {
    uint64_t gen = shmt_word_gen(word_of(seg, index)) + 1;
    shmt_store_release(&seg->slots[index].word, shmt_word(SHMT_READY, shmt_member_id(seg), gen));
    return gen & SHMT_GEN_MASK;
}

static void push(shmt_segment *seg, uint32_t index) { CHECK_EQ(shmt_order_push(seg, index, ready(seg, index)), 0); }

/* Takes one and frees it; returns its index, or -errno. */
static int take(shmt_segment *seg) {
    uint64_t word;
    uint32_t index;
    int rc = shmt_order_take(seg, 1, &word, &index);
    if (rc < 0) {
        return rc;
    }
    CHECK_EQ(rc, 1);
    CHECK_EQ(word_of(seg, index), word);
    CHECK_EQ(shmt_word_owner(word), shmt_member_id(seg));
    CHECK_EQ(shmt_slots_change(seg, index, word, shmt_word(SHMT_FREE, 0, shmt_word_gen(word))), 0);
    return (int)index;
}

static const uint64_t firsts[] = WRAPS(16); /* of 8 slots */

static void first_in_first_out(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(8, 0, firsts[f]);
        CHECK_EQ(seg->geo.ring, 16);
        uint64_t random = 7, pushed = 0, taken = 0;
        int queue[8], n = 0;
        bool in[8] = {false};
        for (int step = 0; step < 400; step++) {
            if ((next_random(&random) & 1 && n < 8) || n == 0) {
                uint32_t index = (uint32_t)(next_random(&random) % 8);
                while (in[index]) {
                    index = (index + 1) % 8;
                }
                push(seg, index);
                in[index] = true;
                queue[n++] = (int)index;
                pushed++;
            } else {
                CHECK_EQ(take(seg), queue[0]);
                in[queue[0]] = false;
                memmove(queue, queue + 1, sizeof *queue * (size_t)--n);
                taken++;
            }
            CHECK_EQ(write_seq(seg), (int64_t)(firsts[f] + pushed));
            CHECK_EQ(read_seq(seg), (int64_t)(firsts[f] + taken));
            CHECK_EQ(shmt_order_length(seg), n);
        }
        while (n-- > 0) {
            CHECK(take(seg) >= 0);
        }
        CHECK_EQ(take(seg), -EAGAIN);
        shmt_segment_drop(seg);
    }
}

static void the_smallest_ring(void) {
    static const uint64_t at[] = WRAPS(2);
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(1, 0, at[f]);
        CHECK_EQ(seg->geo.ring, 2);
        for (int i = 0; i < 30; i++) {
            CHECK_EQ(take(seg), -EAGAIN);
            push(seg, 0);
            CHECK_EQ(take(seg), 0);
        }
        shmt_segment_drop(seg);
    }
}

static void entries_that_have_gone_stale_are_skipped(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(8, 0, firsts[f]);
        for (uint32_t i = 0; i < 8; i++) {
            push(seg, i);
        }
        for (uint32_t i = 0; i < 8; i += 2) { /* taken and freed behind the ring's back, or handed out again */
            uint64_t gen = shmt_word_gen(word_of(seg, i));
            shmt_store_release(&seg->slots[i].word,
                               i % 4 ? shmt_word(SHMT_FREE, 0, gen) : shmt_word(SHMT_READY, 1, gen + 1));
        }
        CHECK_EQ(take(seg), 1);
        CHECK_EQ(take(seg), 3);
        CHECK_EQ(take(seg), 5);
        CHECK_EQ(take(seg), 7);
        CHECK_EQ(take(seg), -EAGAIN);
        CHECK_EQ(read_seq(seg), (int64_t)write_seq(seg));
        CHECK_EQ(shmt_order_push(seg, 0, shmt_word_gen(word_of(seg, 0))), 0); /* what a reclaimer does */
        CHECK_EQ(take(seg), 0);
        shmt_segment_drop(seg);
    }
}

static void an_item_in_the_ring_twice_is_taken_once(void) {
    shmt_segment *seg = make(2, 0, 0);
    uint64_t gen = ready(seg, 1);
    CHECK_EQ(shmt_order_push(seg, 1, gen), 0);
    CHECK_EQ(shmt_order_push(seg, 1, gen), 0);
    CHECK_EQ(take(seg), 1);
    CHECK_EQ(take(seg), -EAGAIN);
    shmt_segment_drop(seg);
}

static void a_pusher_that_stopped_half_way_is_helped(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(8, 0, firsts[f]);
        push(seg, 3);
        push(seg, 5);
        set_write_seq(seg, firsts[f] + 1); /* the second cell is filled, the counter not moved */
        push(seg, 1);
        CHECK_EQ(write_seq(seg), (int64_t)(firsts[f] + 3));
        set_write_seq(seg, firsts[f]); /* all of them, say */
        push(seg, 2);
        CHECK_EQ(write_seq(seg), (int64_t)(firsts[f] + 4));
        set_write_seq(seg, firsts[f] + 2);
        static const int order[] = {3, 5, 1, 2};
        for (int i = 0; i < 4; i++) {
            CHECK_EQ(take(seg), order[i]); /* a reader goes by the cells */
        }
        CHECK_EQ(take(seg), -EAGAIN);
        CHECK_EQ(shmt_order_length(seg), 0); /* and not 2^64 - 2 */
        push(seg, 7);                        /* write_seq is behind read_seq here */
        CHECK_EQ(write_seq(seg), (int64_t)(firsts[f] + 5));
        CHECK_EQ(take(seg), 7);
        shmt_segment_drop(seg);
    }
}

static void a_taker_that_stopped_half_way_is_helped(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(8, 0, firsts[f]);
        push(seg, 3);
        push(seg, 5);
        CHECK_EQ(take(seg), 3);
        set_read_seq(seg, firsts[f]); /* the slot is taken, the counter not moved */
        CHECK_EQ(take(seg), 5);
        CHECK_EQ(read_seq(seg), (int64_t)(firsts[f] + 2));
        set_read_seq(seg, firsts[f] + 1);
        CHECK_EQ(take(seg), -EAGAIN);
        CHECK_EQ(read_seq(seg), (int64_t)(firsts[f] + 2));
        shmt_segment_drop(seg);
    }
}

static void batches(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(8, 0, firsts[f]);
        uint64_t words[8];
        uint32_t first = 99;
        static const uint32_t order[] = {4, 5, 6, 2, 3, 7, 0};
        for (size_t i = 0; i < 7; i++) {
            push(seg, order[i]);
        }
        CHECK_EQ(shmt_order_take(seg, 2, words, &first), 2); /* no more than asked for */
        CHECK_EQ(first, 4);
        CHECK_EQ(words[1], word_of(seg, 5));
        CHECK_EQ(shmt_order_take(seg, 8, words, &first), 1); /* 6; what follows lies elsewhere */
        CHECK_EQ(first, 6);
        CHECK_EQ(shmt_order_take(seg, 8, words, &first), 2); /* 2, 3; 7 stays first in the order */
        CHECK_EQ(first, 2);
        CHECK_EQ(shmt_order_take(seg, 8, words, &first), 1);
        CHECK_EQ(first, 7);
        CHECK_EQ(shmt_order_take(seg, 8, words, &first), 1); /* a run never wraps */
        CHECK_EQ(first, 0);
        CHECK_EQ(shmt_order_take(seg, 8, words, &first), -EAGAIN);
        CHECK_EQ(first, 0);
        shmt_segment_drop(seg);
    }
}

static void a_batch_ends_at_a_stale_entry(void) {
    shmt_segment *seg = make(8, 0, 0);
    uint64_t words[8];
    uint32_t first;
    for (uint32_t i = 0; i < 5; i++) {
        push(seg, i);
    }
    shmt_store_release(&seg->slots[2].word, shmt_word(SHMT_FREE, 0, shmt_word_gen(word_of(seg, 2))));
    CHECK_EQ(shmt_order_take(seg, 8, words, &first), 2);
    CHECK_EQ(first, 0);
    CHECK_EQ(shmt_order_take(seg, 8, words, &first), 2);
    CHECK_EQ(first, 3);
    CHECK_EQ(shmt_order_take(seg, 8, words, &first), -EAGAIN);
    shmt_segment_drop(seg);
}

static void a_full_ring_is_corrupt(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(8, 0, firsts[f]);
        uint64_t gen = ready(seg, 0);
        for (int i = 0; i < 16; i++) {
            CHECK_EQ(shmt_order_push(seg, 0, gen), 0);
        }
        uint64_t before = write_seq(seg);
        CHECK_EQ(shmt_order_push(seg, 0, gen), -EUCLEAN);
        CHECK_EQ(write_seq(seg), (int64_t)before);
        CHECK_EQ(take(seg), 0); /* what is there can still be read */
        CHECK_EQ(shmt_order_push(seg, 0, gen), 0);
        shmt_segment_drop(seg);
    }
}

/* A cell of neither lap, a position out of nowhere, an index beyond the slots: said, and not looped over. */
static void corrupt_cells(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(5, 0, firsts[f]);
        const uint64_t p = firsts[f];
        uint64_t good = shmt_load_seq_cst(cell_at(seg, p));
        for (int64_t off = -3; off <= 3; off++) {
            if (off == 0 || off == -1) {
                continue;
            }
            uint64_t bad = shmt_cell(lap(seg, p) + (uint64_t)off, 0, 0);
            shmt_store_release(cell_at(seg, p), bad);
            CHECK_EQ(shmt_order_push(seg, 0, 1), -EUCLEAN);
            CHECK_EQ(take(seg), -EUCLEAN);
            CHECK_EQ(shmt_load_seq_cst(cell_at(seg, p)), (int64_t)bad);
            CHECK_EQ(write_seq(seg), (int64_t)p);
        }
        for (uint32_t index = 5; index < 65536; index += 7) {
            shmt_store_release(cell_at(seg, p), shmt_cell(lap(seg, p), 0, index));
            CHECK_EQ(take(seg), -EUCLEAN);
        }
        shmt_store_release(cell_at(seg, p), good);
        push(seg, 4);
        push(seg, 3);
        shmt_store_release(cell_at(seg, p + 1), shmt_cell(lap(seg, p + 1), 0, 60000));
        CHECK_EQ(take(seg), 4);
        CHECK_EQ(take(seg), -EUCLEAN);
        shmt_segment_drop(seg);
    }
}

/* Nothing in the ring or the counters makes a verb run for ever, read elsewhere, or take what is not READY. */
static void random_corruption(void) {
    uint64_t random = 99;
    for (int round = 0; round < TIMES(3000); round++) {
        shmt_segment *seg = make(5, 0, firsts[round % N_WRAPS]);
        for (uint32_t i = 0; i < 3; i++) {
            push(seg, i);
        }
        for (uint64_t n = 1 + next_random(&random) % 3; n > 0; n--) {
            uint64_t junk = next_random(&random);
            uint64_t near = firsts[round % N_WRAPS] + next_random(&random) % 40 - 20;
            switch (next_random(&random) % 4) {
            case 0:
                shmt_store_release(cell_at(seg, junk), next_random(&random));
                break;
            case 1:
                shmt_store_release(cell_at(seg, junk), shmt_cell(lap(seg, near), junk >> 50, (uint32_t)junk % 6));
                break;
            case 2:
                set_write_seq(seg, junk & 1 ? near : junk);
                break;
            default:
                set_read_seq(seg, junk & 1 ? near : junk);
            }
        }
        int64_t begin = shmt_now_ns();
        for (int i = 0; i < 10; i++) {
            uint64_t words[5], wanted[5] = {1, 2, 3, UINT64_MAX, UINT64_MAX};
            uint8_t found[5] = {0};
            uint32_t first = 0;
            int rc = shmt_order_push(seg, 3, 9);
            CHECK(rc == 0 || rc == -EUCLEAN);
            rc = shmt_order_take(seg, 5, words, &first);
            CHECK((rc > 0 && first + (uint32_t)rc <= 5) || rc == -EAGAIN || rc == -EUCLEAN);
            shmt_order_mark(seg, wanted, found);
            CHECK(found[3] == 0 && found[4] == 0);
            CHECK(shmt_order_length(seg) <= 16);
        }
        CHECK(shmt_now_ns() - begin < 20000 * MS);
        shmt_segment_drop(seg);
    }
}

static void marking_what_the_ring_holds(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(8, 0, firsts[f]);
        for (uint32_t i = 0; i < 11; i++) { /* so that the ring holds some of two laps */
            push(seg, 7);
            CHECK_EQ(take(seg), 7);
        }
        push(seg, 7);
        push(seg, 2);
        push(seg, 4);
        CHECK_EQ(take(seg), 7);
        uint64_t wanted[8];
        uint8_t found[8] = {0};
        for (uint32_t i = 0; i < 8; i++) {
            wanted[i] = shmt_word_gen(word_of(seg, i));
        }
        wanted[4] = UINT64_MAX;            /* in the ring, but not asked for */
        wanted[0] = ready(seg, 0);         /* READY, but lost before its push */
        set_write_seq(seg, read_seq(seg)); /* a lagging counter hides nothing */
        shmt_order_mark(seg, wanted, found);
        for (uint32_t i = 0; i < 8; i++) {
            CHECK_EQ(found[i], i == 2);
        }
        wanted[2]++; /* another generation of the same slot */
        memset(found, 0, sizeof found);
        shmt_order_mark(seg, wanted, found);
        CHECK_EQ(found[2], 0);
        shmt_segment_drop(seg);
    }
}

/* While one member pushes, stopped anywhere: another pushes into the same cell and rests before it moves write_seq, and a
 * reader takes that item. That read_seq is ahead of write_seq for a moment is no corruption. */
static shmt_segment *race;

static void look_anew(void) { /* the bound is old, so that the push has to look how far the readers are */
    shmt_store_relaxed(&race->read_seen, write_seq(race) - race->geo.ring);
}

static void push_slot_1(void) { CHECK_EQ(shmt_order_push(race, 1, 5), 0); }

static void readers_ahead_of_a_slow_pusher(void) {
    NEEDS_STEPS();
    race = make(8, 0, 1000);
    uint64_t ended_at = 0;
    for (uint64_t n = 0; ended_at == 0; n++) {
        step_child child;
        if (!step_start(&child, look_anew, push_slot_1, n)) {
            ended_at = n;
        } else {
            uint64_t p = write_seq(race), seen = shmt_load_seq_cst(cell_at(race, p));
            if (shmt_cell_lap(seen) != (lap(race, p) & SHMT_LAP_MASK)) {
                CHECK(shmt_cas_seq_cst(cell_at(race, p), &seen, shmt_cell(lap(race, p), 0, 0))); /* the other's */
            }
            CHECK_EQ(take(race), -EAGAIN); /* its item is gone already: the entry is stale, and passed */
            step_on(&child);
        }
        CHECK_EQ(take(race), -EAGAIN);
    }
    CHECK(ended_at > 10);
    shmt_segment_drop(race);
}

/* A pusher is stopped anywhere, and the others push on for all but one of the laps that a cell can count: where it was about
 * to push lies an entry that waits to be read, of what looks like the lap before. */
static void push_slot_0(void) { CHECK_EQ(shmt_order_push(race, 0, shmt_word_gen(word_of(race, 0))), 0); }
static void nothing(void) {}

static void a_pusher_that_sleeps_through_nearly_every_lap(void) {
    NEEDS_STEPS();
    static const uint64_t at[] = WRAPS(4);
    for (int f = 0; f < N_WRAPS; f++) {
        uint64_t ended_at = 0, overtaken = 0;
        for (uint64_t n = 0; ended_at == 0; n++) {
            step_child child;
            race = make(2, 0, at[f]);
            ready(race, 0);
            const uint64_t p = write_seq(race), later = p + SHMT_LAP_MASK * race->geo.ring; /* in the same cell */
            if (!step_start(&child, nothing, push_slot_0, n)) {
                ended_at = n;
            } else if (shmt_cell_lap(shmt_load_seq_cst(cell_at(race, p))) == (lap(race, p) & SHMT_LAP_MASK)) {
                step_on(&child); /* it has pushed */
            } else {
                for (uint64_t q = later - race->geo.ring; q < later; q++) {
                    shmt_store_release(cell_at(race, q), shmt_cell(lap(race, q), 0, 1)); /* read long ago */
                }
                set_read_seq(race, later);
                set_write_seq(race, later);
                push(race, 1);
                step_on(&child);
                CHECK_EQ(take(race), 1);
                overtaken++;
            }
            CHECK_EQ(take(race), 0);
            CHECK_EQ(take(race), -EAGAIN);
            shmt_segment_drop(race);
        }
        CHECK(overtaken > 10);
    }
}

TESTS(TEST(first_in_first_out), TEST(the_smallest_ring), TEST(entries_that_have_gone_stale_are_skipped),
      TEST(an_item_in_the_ring_twice_is_taken_once), TEST(a_pusher_that_stopped_half_way_is_helped),
      TEST(a_taker_that_stopped_half_way_is_helped), TEST(batches), TEST(a_batch_ends_at_a_stale_entry),
      TEST(a_full_ring_is_corrupt), TEST(corrupt_cells), TEST(random_corruption), TEST(marking_what_the_ring_holds),
      TEST(readers_ahead_of_a_slow_pusher), TEST(a_pusher_that_sleeps_through_nearly_every_lap))
