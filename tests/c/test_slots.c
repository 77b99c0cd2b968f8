/* The slot word: each step moves it exactly so, and from nowhere else. */
#include "step.h"

static void put_word(shmt_segment *seg, uint32_t index, uint64_t word) {
    shmt_store_release(&seg->slots[index].word, word);
}

static void words_and_cells(void) {
    uint64_t w = shmt_word(SHMT_READING | 3, 4095, SHMT_GEN_MASK);
    CHECK_EQ(w, (int64_t)UINT64_C(0xbfffffffffffffff));
    CHECK_EQ(shmt_word_state(w), 11);
    CHECK_EQ(shmt_word_owner(w), 4095);
    CHECK_EQ(shmt_word_gen(w), SHMT_GEN_MASK);
    CHECK_EQ(shmt_word_tries(w), 3);
    CHECK_EQ(shmt_word(SHMT_FREE, 0, SHMT_GEN_MASK + 1), 0); /* the generation wraps into nothing else */
    for (uint32_t state = 0; state < 16; state++) {
        w = shmt_word(state, 9, 12345);
        CHECK_EQ(shmt_word_state(w), state);
        CHECK_EQ(shmt_word_owner(w), 9);
        CHECK_EQ(shmt_word_gen(w), 12345);
        CHECK_EQ(shmt_word_is_ready(w), state >= 4 && state < 8);
        CHECK_EQ(shmt_word_is_reading(w), state >= 8 && state < 12);
    }
    uint64_t c = shmt_cell(0x123456789, 0xabcdef012345, 0xfedc);
    CHECK_EQ(shmt_cell_lap(c), 0x456789);
    CHECK_EQ(shmt_cell_gen(c), 0x012345);
    CHECK_EQ(shmt_cell_index(c), 0xfedc);
}

static void the_life_of_a_slot(void) {
    const uint64_t firsts[] = WRAPS(8);
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(1, 0, firsts[f]);
        const uint32_t me = shmt_member_id(seg);
        for (uint64_t turn = 0; turn < 12; turn++) {
            uint64_t gen = (firsts[f] + turn) & SHMT_GEN_MASK, next = (gen + 1) & SHMT_GEN_MASK, word = 0, taken = 0;
            uint32_t first = 99;
            CHECK_EQ(word_of(seg, 0), shmt_word(SHMT_FREE, 0, gen));
            CHECK_EQ(shmt_slots_claim(seg, 1, 1, &word, &first), 1);
            CHECK_EQ(first, 0);
            CHECK_EQ(word, shmt_word(SHMT_WRITING, me, next));
            CHECK_EQ(word_of(seg, 0), word);
            CHECK_EQ(slot_of(seg, 0).state, 1);
            CHECK_EQ(slot_of(seg, 0).owner, me);
            CHECK_EQ(slot_of(seg, 0).gen, next);
            uint64_t again = 0;
            CHECK_EQ(shmt_slots_claim(seg, 1, 1, &again, &first), 0);
            CHECK(shmt_slots_any_unread(seg));
            CHECK_EQ(shmt_slots_take(seg, 0, next & SHMT_CELL_GEN_MASK, &taken), 0); /* not published */

            uint64_t ready = shmt_word(SHMT_READY, me, next);
            CHECK_EQ(shmt_slots_change(seg, 0, word, ready), 0);
            CHECK_EQ(shmt_slots_change(seg, 0, word, ready), -ESTALE); /* twice */
            CHECK_EQ(slot_of(seg, 0).state, 2);
            CHECK(shmt_slots_any_unread(seg));
            CHECK_EQ(shmt_slots_claim(seg, 1, 1, &again, &first), 0);
            CHECK(shmt_slots_is_there(seg, 0, next & SHMT_CELL_GEN_MASK));
            CHECK(!shmt_slots_is_there(seg, 0, (next + 1) & SHMT_CELL_GEN_MASK));
            CHECK_EQ(shmt_slots_take(seg, 0, (next + 1) & SHMT_CELL_GEN_MASK, &taken), 0); /* another item */
            CHECK_EQ(shmt_slots_take(seg, 0, (next - 1) & SHMT_CELL_GEN_MASK, &taken), 0);
            CHECK_EQ(word_of(seg, 0), ready);

            CHECK_EQ(shmt_slots_take(seg, 0, next & SHMT_CELL_GEN_MASK, &taken), 1);
            CHECK_EQ(taken, shmt_word(SHMT_READING, me, next));
            CHECK_EQ(word_of(seg, 0), taken);
            CHECK_EQ(slot_of(seg, 0).state, 3);
            CHECK(!shmt_slots_any_unread(seg));
            CHECK_EQ(shmt_slots_take(seg, 0, next & SHMT_CELL_GEN_MASK, &again), 0); /* once */
            CHECK_EQ(shmt_slots_change(seg, 0, ready, shmt_word(SHMT_FREE, 0, next)), -ESTALE);
            CHECK_EQ(shmt_slots_change(seg, 0, taken, shmt_word(SHMT_FREE, 0, next)), 0);
            CHECK_EQ(shmt_slots_change(seg, 0, taken, shmt_word(SHMT_FREE, 0, next)), -ESTALE);
            CHECK_EQ(slot_of(seg, 0).state, 0);
            CHECK_EQ(slot_of(seg, 0).owner, 0);
        }
        shmt_segment_drop(seg);
    }
}

/* One bit of difference, in state, owner or generation, and the step does not happen. */
static void every_bit_of_the_word_counts(void) {
    shmt_segment *seg = make(1, 0, 1000);
    uint64_t word = 0;
    uint32_t first;
    CHECK_EQ(shmt_slots_claim(seg, 1, 1, &word, &first), 1);
    for (int bit = 0; bit < 64; bit++) {
        CHECK_EQ(shmt_slots_change(seg, 0, word ^ UINT64_C(1) << bit, 0), -ESTALE);
        CHECK_EQ(word_of(seg, 0), word);
    }
    shmt_segment_drop(seg);
}

static void the_tries_travel_with_the_item(void) {
    shmt_segment *seg = make(1, 0, 0);
    for (uint32_t tries = 0; tries <= SHMT_TRIES_MAX; tries++) {
        uint64_t word = 0;
        put_word(seg, 0, shmt_word(SHMT_READY | tries, 77, 5)); /* whoever owned it */
        CHECK_EQ(slot_of(seg, 0).state, 2);
        CHECK_EQ(shmt_slots_take(seg, 0, 5, &word), 1);
        CHECK_EQ(word, shmt_word(SHMT_READING | tries, shmt_member_id(seg), 5));
    }
    shmt_segment_drop(seg);
}

/* Whoever takes is stopped after each of its instructions, and finds another owner in the word when it goes on. */
static shmt_segment *restless;
static void nothing(void) {}
static void take_restless(void) {
    uint64_t word = 123;
    if (shmt_slots_take(restless, 0, 5, &word) != -EUCLEAN || word != 123) {
        _exit(1);
    }
}

static void a_word_that_never_rests_ends_the_attempt(void) {
    NEEDS_STEPS();
    restless = make(1, 0, 0);
    uint32_t owner = 0;
    step_child child;
    put_word(restless, 0, shmt_word(SHMT_READY, owner, 5));
    CHECK(step_start(&child, nothing, take_restless, 0));
    for (uint32_t steps = 0; shmt_load_acquire(child.phase) == 1; steps++) {
        CHECK(steps < 20000);
        put_word(restless, 0, shmt_word(SHMT_READY, ++owner & 15, 5));
        step_one(child.pid);
    }
    step_on(&child);
    shmt_segment_drop(restless);
}

static void only_ready_slots_are_taken(void) {
    shmt_segment *seg = make(1, 0, 0);
    for (uint32_t state = 0; state < 16; state++) {
        uint64_t word = 123, before = shmt_word(state, 3, 5);
        put_word(seg, 0, before);
        bool ready = state >= SHMT_READY && state < SHMT_READING;
        CHECK_EQ(shmt_slots_take(seg, 0, 5, &word), ready);
        CHECK_EQ(word_of(seg, 0) != before, ready);
        CHECK_EQ(word != 123, ready);
    }
    shmt_segment_drop(seg);
}

static void only_free_slots_are_claimed(void) {
    shmt_segment *seg = make(1, 0, 0);
    for (uint32_t state = 1; state < 16; state++) {
        uint64_t word = 123, before = shmt_word(state, 3, 5);
        uint32_t first = 88;
        put_word(seg, 0, before);
        CHECK_EQ(shmt_slots_claim(seg, 1, 1, &word, &first), 0);
        CHECK(word_of(seg, 0) == before && word == 123 && first == 88);
    }
    put_word(seg, 0, shmt_word(SHMT_FREE, 55, 5)); /* nonsense, but free */
    uint64_t word = 0;
    uint32_t first;
    CHECK_EQ(shmt_slots_claim(seg, 1, 1, &word, &first), 1);
    CHECK_EQ(word, shmt_word(SHMT_WRITING, shmt_member_id(seg), 6));
    shmt_segment_drop(seg);
}

static void the_cursor_goes_round(void) {
    shmt_segment *seg = make(10, 0, 0);
    uint64_t words[16];
    uint32_t first, expected = shmt_load_relaxed(&seg->cursor);
    CHECK(expected < 10);
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(shmt_slots_claim(seg, 10, 1, words, &first), 1);
        CHECK_EQ(first, expected);
        expected = (expected + 1) % 10;
    }
    CHECK_EQ(shmt_slots_claim(seg, 10, 1, words, &first), 0);
    /* The free one is found wherever it is; with too few probes it is not. */
    shmt_store_relaxed(&seg->cursor, 4);
    put_word(seg, 3, shmt_word(SHMT_FREE, 0, 9));
    CHECK_EQ(shmt_slots_claim(seg, 9, 1, words, &first), 0);
    CHECK_EQ(shmt_slots_claim(seg, 10, 1, words, &first), 1);
    CHECK_EQ(first, 3);
    shmt_store_relaxed(&seg->cursor, 12345); /* out of range: any place will do */
    put_word(seg, 7, shmt_word(SHMT_FREE, 0, 9));
    CHECK_EQ(shmt_slots_claim(seg, 10, 1, words, &first), 1);
    CHECK_EQ(first, 7);
    shmt_segment_drop(seg);
}

static void a_run_is_consecutive_and_never_wraps(void) {
    shmt_segment *seg = make(10, 0, 0);
    uint64_t words[16];
    uint32_t first;
    shmt_store_relaxed(&seg->cursor, 7);
    CHECK_EQ(shmt_slots_claim(seg, 10, 16, words, &first), 3); /* 7, 8, 9 */
    CHECK_EQ(first, 7);
    CHECK_EQ(shmt_load_relaxed(&seg->cursor), 0);
    put_word(seg, 4, shmt_word(SHMT_READING, 2, 1));
    CHECK_EQ(shmt_slots_claim(seg, 10, 16, words, &first), 4); /* up to the one that is taken */
    CHECK_EQ(first, 0);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_EQ(words[i], word_of(seg, i));
        CHECK_EQ(words[i], shmt_word(SHMT_WRITING, shmt_member_id(seg), 1));
    }
    CHECK_EQ(shmt_slots_claim(seg, 10, 2, words, &first), 2); /* beyond it, and no more than asked for */
    CHECK_EQ(first, 5);
    CHECK_EQ(shmt_slots_claim(seg, 10, 2, words, &first), 0);
    shmt_segment_drop(seg);
}

static void large_payloads_stay_in_few_slots(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 4 << 20, .slots = 4}), *peer = same(seg);
    uint64_t word;
    uint32_t first;
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(shmt_slots_claim(i % 2 ? peer : seg, 4, 1, &word, &first), 1);
        CHECK_EQ(first, 0);
        CHECK_EQ(shmt_slots_change(seg, 0, word, shmt_word(SHMT_FREE, 0, shmt_word_gen(word))), 0);
    }
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static uint32_t claimed(shmt_segment *seg) {
    uint64_t word;
    uint32_t first = UINT32_MAX;
    CHECK_EQ(shmt_slots_claim(seg, 8, 1, &word, &first), 1);
    return first;
}

static void each_process_writes_its_own_warm_slots_again(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 4 << 20, .slots = 8}), *peer = same(seg);
    CHECK_EQ(claimed(seg), 0);
    CHECK_EQ(claimed(peer), 1);
    CHECK_EQ(claimed(seg), 2);
    CHECK_EQ(claimed(peer), 3);
    for (uint32_t i = 0; i < 4; i++) {
        put_word(seg, i, shmt_word(SHMT_FREE, 0, 9));
    }
    CHECK_EQ(claimed(peer), 3); /* the latest first */
    CHECK_EQ(claimed(peer), 1);
    CHECK_EQ(claimed(seg), 2);
    CHECK_EQ(claimed(seg), 0);
    CHECK_EQ(claimed(seg), 4); /* beyond them the lowest; nothing is held back for a peer */
    put_word(seg, 1, shmt_word(SHMT_FREE, 0, 9));
    CHECK_EQ(claimed(seg), 1);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void unread_means_writing_or_ready(void) {
    shmt_segment *seg = make(3, 0, 0);
    for (uint32_t state = 0; state < 12; state++) {
        for (uint32_t at = 0; at < 3; at++) {
            put_word(seg, at, shmt_word(state, 3, 5));
            CHECK_EQ(shmt_slots_any_unread(seg), state == 1 || (state >= 4 && state < 8));
            put_word(seg, at, 0);
        }
    }
    shmt_segment_drop(seg);
}

static void slot_info_within_bounds(void) {
    shmt_segment *seg = make(3, 0, 7);
    shmt_slot_info info = {.owner = 66};
    CHECK_EQ(shmt_slot_info_get(seg, 3, &info), -EINVAL);
    CHECK_EQ(shmt_slot_info_get(seg, UINT32_MAX, &info), -EINVAL);
    CHECK_EQ(info.owner, 66);
    CHECK_EQ(shmt_slot_info_get(seg, 2, &info), 0);
    CHECK(info.owner == 0 && info.state == 0 && info.gen == 7);
    shmt_segment_drop(seg);
}

/* Many threads claim and free the same few slots: nobody holds what another holds. */
static shmt_segment *shared;
static shmt_atomic32 holders[3];

static void *claim_and_free(void *arg) {
    shmt_segment *seg = same(shared);
    (void)arg;
    for (int done = 0; done < TIMES(30000);) {
        uint64_t words[2];
        uint32_t first;
        int got = shmt_slots_claim(seg, 3, 2, words, &first);
        for (int i = 0; i < got; i++) {
            uint32_t index = first + (uint32_t)i;
            CHECK_EQ(shmt_add_relaxed(&holders[index], 1), 0);
            CHECK_EQ(shmt_word_owner(word_of(seg, index)), shmt_member_id(seg));
            CHECK_EQ(shmt_sub_relaxed(&holders[index], 1), 1);
            CHECK_EQ(shmt_slots_change(seg, index, words[i], shmt_word(SHMT_FREE, 0, shmt_word_gen(words[i]))), 0);
            done++;
        }
    }
    shmt_segment_drop(seg);
    return NULL;
}

static void one_holder_at_a_time(void) {
    shared = make(3, 0, (UINT64_C(1) << 48) - 5000);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, claim_and_free, NULL), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(stats_of(shared).claims >= 4 * TIMES(30000));
    CHECK_EQ(stats_of(shared).free, 3);
    shmt_segment_drop(shared);
}

TESTS(TEST(words_and_cells), TEST(the_life_of_a_slot), TEST(every_bit_of_the_word_counts),
      TEST(the_tries_travel_with_the_item), TEST(only_ready_slots_are_taken),
      TEST(a_word_that_never_rests_ends_the_attempt), TEST(only_free_slots_are_claimed), TEST(the_cursor_goes_round),
      TEST(a_run_is_consecutive_and_never_wraps), TEST(large_payloads_stay_in_few_slots),
      TEST(each_process_writes_its_own_warm_slots_again), TEST(unread_means_writing_or_ready),
      TEST(slot_info_within_bounds), TEST(one_holder_at_a_time))
