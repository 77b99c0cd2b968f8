/* SHMTENSOR_DEBUG=1: a touch that is not allowed faults at once, poison is never handed out, broken rules are named. */
#include "step.h"

static shmt_segment *watched(uint32_t flags) {
    CHECK_EQ(setenv("SHMTENSOR_DEBUG", "1", 1), 0);
    shmt_segment *seg = make(4, flags, 0);
    CHECK_EQ(unsetenv("SHMTENSOR_DEBUG"), 0);
    CHECK(seg->debug && seg->geo.slot_stride % SHMT_PAGE == 0);
    return seg;
}

/* A child touches one byte: does it live? */
static bool may_touch(volatile uint8_t *at) {
    pid_t pid = start_child();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL); /* a sanitizer would make a report of it */
        *at = 1;
        _exit(0);
    }
    int status = child_status(pid);
    CHECK(WIFEXITED(status) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV));
    return WIFEXITED(status);
}

static void a_slot_may_be_touched_while_it_is_ours(void) {
    shmt_segment *seg = watched(0);
    shmt_slot slot;
    for (uint32_t i = 0; i < 4; i++) {
        CHECK(!may_touch(shmt_payload(seg, i)));
    }
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK(may_touch(slot.data));
    memset(slot.data, 7, 8);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 8, 0), 0);
    CHECK(!may_touch(slot.data));
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK(slot.data[0] == 7 && may_touch(slot.data));
    CHECK_EQ(shmt_slot_requeue(seg, &slot), 0);
    CHECK(!may_touch(slot.data));
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    CHECK(!may_touch(slot.data));
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
    CHECK(!may_touch(slot.data));
    CHECK_EQ(stats_of(seg).free, 4);
    shmt_segment_drop(seg);
}

/* Whoever watches a segment that was made without: pages are not guarded, the rest is as ever. Nor is there anything to
 * guard in one without slots. */
static void of_one_that_was_made_without(void) {
    shmt_segment *made = make(4, 0, 0);
    CHECK_EQ(setenv("SHMTENSOR_DEBUG", "1", 1), 0);
    shmt_segment *seg = same(made);
    shmt_segment *plain = make_config((shmt_config){.slot_nbytes = 8, .members = 2});
    CHECK_EQ(unsetenv("SHMTENSOR_DEBUG"), 0);
    CHECK(seg->debug && seg->geo.slot_stride % SHMT_PAGE != 0);
    plain->base[plain->geo.data_offset] = 1;
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    slot.data[0] = 7;
    CHECK_EQ(shmt_slot_publish(seg, &slot, 8, 0), 0);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(slot.data[0], 7);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    CHECK_EQ(slot.data[0], 0xdb);
    shmt_segment_drop(plain);
    shmt_segment_drop(seg);
    shmt_segment_drop(made);
}

static void what_was_released_is_gone(void) {
    shmt_segment *seg = watched(0);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    memset(slot.data, 7, seg->geo.slot_nbytes);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 8, 0), 0);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    shmt_debug_open(seg, slot.index, 1);
    for (uint64_t i = 0; i < seg->geo.slot_nbytes; i++) {
        CHECK_EQ(slot.data[i], 0xdb);
    }
    CHECK_EQ(shmt_slot_release(seg, &slot), -ESTALE); /* twice: nothing is poisoned that is another's */
    shmt_segment_drop(seg);
}

static void batches_and_growing_slots(void) {
    shmt_segment *seg = watched(SHMT_GROW);
    uint64_t words[4];
    shmt_slot first;
    CHECK_EQ(shmt_slot_try_claim_many(seg, 4, words, &first), 4);
    for (uint32_t i = 0; i < 4; i++) {
        shmt_slot one = first;
        one.index += i;
        one.data = shmt_payload(seg, one.index);
        CHECK_EQ(shmt_slot_reserve(seg, &one, 256), 0);
        memset(one.data, (int)i, 256);
    }
    CHECK_EQ(shmt_slot_publish_many(seg, &first, words, 4, 256), 0);
    CHECK(!may_touch(shmt_payload(seg, first.index + 3)));
    CHECK_EQ(shmt_slot_try_acquire_many(seg, 4, words, &first), 4);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_EQ(shmt_payload(seg, first.index + i)[255], i);
    }
    CHECK_EQ(shmt_slot_release_many(seg, &first, words, 4), 0);
    CHECK(!may_touch(shmt_payload(seg, first.index)));
    CHECK_EQ(stats_of(seg).free, 4);
    shmt_segment_drop(seg);
}

static void a_forked_child_joins(void) {
    shmt_segment *seg = watched(SHMT_PREFAULT);
    put(seg, 1);
    pid_t pid = start_child();
    if (pid == 0) {
        CHECK_EQ(get_tag(seg), 1);
        put(seg, 2);
        shmt_segment_drop(seg);
        _exit(0);
    }
    child_ok(pid);
    CHECK_EQ(get_tag(seg), 2);
    shmt_segment_drop(seg);
}

static void broken_rules_are_named(void) {
    shmt_segment *seg = watched(0);
    shmt_slot slot;
    struct {
        shmt_atomic64 *word;
        uint64_t nonsense;
        const char *why;
    } lies[] = {
        {&seg->slots[1].word, shmt_word(SHMT_WRITING, 0, 1), "held by nobody"},
        {&seg->slots[1].word, shmt_word(SHMT_FREE, 3, 1), "a free slot has an owner"},
        {&seg->slots[1].word, shmt_word(SHMT_READING, 4000, 1), "no member"},
        {&seg->slots[1].word, shmt_word(15, 1, 1), "no known state"},
        {&seg->header->write_seq, 1000000, "further apart"},
        {&seg->cells[3], shmt_cell(0, 0, 9), "does not exist"},
        {(shmt_atomic64 *)&seg->header->geometry.slot_stride, 1, "header"},
        {&seg->header->magic, 1, "header"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint64_t was = shmt_load_relaxed(lies[i].word);
        shmt_store_relaxed(lies[i].word, lies[i].nonsense);
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), -EUCLEAN);
        CHECK(strstr(shmt_debug_reason(seg), lies[i].why) != NULL);
        CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EUCLEAN);
        shmt_store_relaxed(lies[i].word, was);
        CHECK_EQ(shmt_debug_check(seg), 0);
        CHECK(shmt_debug_reason(seg) == NULL);
    }
    put(seg, 1);
    CHECK_EQ(get_tag(seg), 1);
    shmt_segment_drop(seg);
}

static shmt_segment *victim_of;

static void prepare(void) { CHECK_EQ(shmt_member_join(victim_of), 0); }

static void consume(void) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(victim_of, &slot), 0);
    CHECK_EQ(shmt_slot_release(victim_of, &slot), 0);
}

/* Whoever dies over its poison leaves no poisoned item. */
static void poison_is_never_handed_out(void) {
    NEEDS_STEPS();
    uint64_t points = 0;
    for (bool stopped = true; stopped; points++) {
        shmt_segment *seg = victim_of = watched(0);
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        memset(slot.data, 0x11, seg->geo.slot_nbytes);
        CHECK_EQ(shmt_slot_publish(seg, &slot, seg->geo.slot_nbytes, 1), 0);
        step_child child;
        stopped = step_start(&child, prepare, consume, 5 * points);
        if (stopped) {
            step_kill(&child);
        }
        CHECK(shmt_reclaim(seg) >= 0);
        int rc = shmt_slot_try_acquire(seg, &slot);
        if (rc == 0) {
            for (uint64_t i = 0; i < slot.nbytes; i++) {
                CHECK_EQ(slot.data[i], 0x11);
            }
            CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        }
        CHECK_EQ(stats_of(seg).free, 4);
        shmt_segment_drop(seg);
    }
    CHECK(points > 30);
    printf("  %" PRIu64 " points\n", points);
}

/* A slot's word comes back that somebody else's release made stale: the pages were closed meanwhile. */
static void a_word_that_comes_back_hurts_nobody(void) {
    shmt_segment *seg = watched(0);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
    CHECK(!may_touch(slot.data));
    shmt_store_release(&seg->slots[slot.index].word, slot.word);
    CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
    CHECK(!may_touch(slot.data));
    CHECK_EQ(stats_of(seg).free, 4);
    shmt_segment_drop(seg);
}

TESTS(TEST(a_slot_may_be_touched_while_it_is_ours), TEST(of_one_that_was_made_without), TEST(what_was_released_is_gone),
      TEST(batches_and_growing_slots), TEST(a_forked_child_joins), TEST(broken_rules_are_named),
      TEST(poison_is_never_handed_out), TEST(a_word_that_comes_back_hurts_nobody))
