/* Figures: each is what it says it is, wherever the counters began. */
#include "check.h"

static void an_untouched_segment(void) {
    const uint64_t firsts[] = WRAPS(16);
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(5, 0, firsts[f]);
        shmt_stats s = stats_of(seg);
        CHECK(s.free == 5 && s.writing == 0 && s.ready == 0 && s.reading == 0);
        CHECK_EQ(s.claims + s.publishes + s.redelivered + s.dropped + s.reclaimed, 0);
        CHECK_EQ(s.claim_waits + s.acquire_waits + s.spins + s.sleeps + s.wakes + s.ready_high, 0);
        CHECK_EQ(s.members, 1);
        CHECK_EQ(s.shut, 0);
        CHECK_EQ(s.reserved_nbytes, 5 * shmt_segment_info(seg)->slot_stride);
        shmt_segment_drop(seg);
    }
}

static void what_was_done_is_counted(void) {
    const uint64_t firsts[] = WRAPS(16);
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(5, 0, firsts[f]), *peer = peer_of(seg);
        shmt_slot slot[5];
        uint64_t words[5];
        for (uint64_t i = 0; i < 30; i++) {
            put(seg, i);
            CHECK_EQ(get_tag(peer), i);
        }
        for (int i = 0; i < 2; i++) {
            put(seg, 1);
            slot[i] = get(peer);
        }
        put(seg, 2);
        for (int i = 2; i < 4; i++) {
            CHECK_EQ(shmt_slot_try_claim(i % 2 ? seg : peer, &slot[i]), 0);
        }
        shmt_stats s = stats_of(peer);
        CHECK_EQ(s.claims, 35);
        CHECK_EQ(s.publishes, 33);
        CHECK(s.free == 0 && s.writing == 2 && s.ready == 1 && s.reading == 2);
        CHECK_EQ(s.members, 2);
        CHECK_EQ(shmt_slot_try_claim_many(seg, 5, words, &slot[4]), -EAGAIN); /* fails: no claim */
        CHECK_EQ(shmt_slot_abort(peer, &slot[2]), 0);
        CHECK_EQ(shmt_slot_publish(seg, &slot[3], 8, 3), 0);
        CHECK_EQ(shmt_slot_release(peer, &slot[0]), 0);
        s = stats_of(seg);
        CHECK_EQ(s.claims, 35);
        CHECK_EQ(s.publishes, 34);
        CHECK(s.free == 2 && s.writing == 0 && s.ready == 2 && s.reading == 1);
        shmt_segment_drop(peer);
        CHECK_EQ(stats_of(seg).members, 1);
        shmt_segment_drop(seg);
    }
}

static void a_redelivery_is_no_claim(void) {
    shmt_segment *seg = make(2, 0, 9);
    put(seg, 1);
    for (int i = 0; i < 2; i++) {
        pid_t pid = start_child();
        if (pid == 0) {
            get(seg);
            _exit(0); /* without leaving */
        }
        child_ok(pid);
        CHECK_EQ(shmt_reclaim(seg), 1);
    }
    shmt_stats s = stats_of(seg);
    CHECK(s.claims == 1 && s.publishes == 3 && s.redelivered == 2 && s.dropped == 0 && s.reclaimed == 2 &&
          s.ready == 1);
    shmt_segment_drop(seg);
}

/* Reclaimed or not: who is dead is no member. */
static void the_dead_do_not_count(void) {
    shmt_segment *seg = make(2, 0, 0), *peer = peer_of(seg);
    shmt_atomic32 *in = new_signal();
    pid_t pids[3];
    for (uint32_t i = 0; i < 3; i++) {
        pids[i] = start_child();
        if (pids[i] == 0) {
            CHECK_EQ(stats_of(seg).members, 3 + i);
            tell(in, i + 1);
            for (;;) {
                pause();
            }
        }
        told(in, i + 1);
    }
    CHECK_EQ(stats_of(peer).members, 5);
    kill_child(pids[1]);
    CHECK_EQ(stats_of(seg).members, 4);
    CHECK_EQ(stats_of(seg).reclaimed, 0);
    CHECK_EQ(kill(pids[0], SIGSTOP), 0);
    CHECK_EQ(stats_of(peer).members, 4);
    kill_child(pids[0]);
    kill_child(pids[2]);
    CHECK_EQ(stats_of(seg).members, 2);
    CHECK_EQ(shmt_reclaim(seg), 3);
    CHECK_EQ(stats_of(seg).members, 2);
    shmt_segment_drop(peer);
    CHECK_EQ(stats_of(seg).members, 1);
    free_signal(in);
    shmt_segment_drop(seg);
}

static void waits_are_counted_and_forgotten_with_their_member(void) {
    shmt_segment *seg = make(1, 0, 0), *peer = peer_of(seg);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_acquire(peer, after_ms(5), &slot), -ETIMEDOUT);
    put(seg, 1);
    CHECK_EQ(shmt_slot_claim(peer, after_ms(5), &slot), -ETIMEDOUT);
    shmt_stats s = stats_of(seg);
    CHECK_EQ(s.acquire_waits, 1);
    CHECK_EQ(s.claim_waits, 1);
    CHECK(s.sleeps >= 2);
    CHECK_EQ(s.wakes, 1); /* of the put: W was left by the sleeper that gave up */
    shmt_segment_drop(peer);
    s = stats_of(seg);
    CHECK_EQ(s.acquire_waits + s.claim_waits + s.sleeps, 0);
    shmt_segment_drop(seg);
}

static void the_high_mark_is_sampled(void) {
    shmt_segment *seg = make(64, 0, 0);
    for (int round = 0; round < 80; round++) { /* each slot's every 64th generation looks */
        for (uint64_t i = 0; i < 10; i++) {
            put(seg, i);
        }
        for (uint64_t i = 0; i < 10; i++) {
            get_tag(seg);
        }
    }
    for (int round = 0; round < 400; round++) {
        put(seg, 1);
        get_tag(seg);
    }
    uint64_t high = stats_of(seg).ready_high;
    CHECK(high <= 10);
    for (int round = 0; round < 64; round++) {
        for (uint64_t i = 0; i < 64; i++) {
            put(seg, i);
        }
        for (uint64_t i = 0; i < 64; i++) {
            get_tag(seg);
        }
    }
    CHECK_EQ(stats_of(seg).ready_high, 64);
    shmt_segment_drop(seg);
}

static void growing_slots_say_what_they_have(void) {
    shmt_segment *seg =
        make_config((shmt_config){.slot_nbytes = 4096, .slot_stride = 1 << 24, .slots = 3, .flags = SHMT_GROW});
    CHECK_EQ(stats_of(seg).reserved_nbytes, 3 * 4096);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 1 << 20), 0);
    CHECK_EQ(stats_of(seg).reserved_nbytes, 2 * 4096 + slot.nbytes);
    shmt_segment_drop(seg);
}

/* From another process, and while everything moves: no figure is out of its bounds. */
static shmt_segment *busy;
static shmt_atomic32 over;

static void *work(void *arg) {
    shmt_segment *seg = same(busy);
    (void)arg;
    while (!shmt_load_acquire(&over)) {
        shmt_slot slot;
        if (shmt_slot_try_claim(seg, &slot) == 0) {
            CHECK_EQ(shmt_slot_publish(seg, &slot, 0, 0), 0);
        }
        if (shmt_slot_try_acquire(seg, &slot) == 0) {
            CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        }
    }
    shmt_segment_drop(seg);
    return NULL;
}

static void reading_while_others_work(void) {
    busy = make(6, 0, (UINT64_C(1) << 48) - 500);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, work, NULL), 0);
    }
    shmt_stats last = {0};
    for (int i = 0; i < TIMES(20000); i++) {
        shmt_stats s = stats_of(busy);
        CHECK_EQ(s.free + s.writing + s.ready + s.reading, 6);
        CHECK(s.claims >= last.claims && s.publishes >= last.publishes);
        CHECK(s.members >= 1 && s.members <= 3);
        CHECK(s.ready_high <= 12);
        last = s;
    }
    shmt_store_release(&over, 1);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK_EQ(stats_of(busy).claims, stats_of(busy).publishes);
    shmt_segment_drop(busy);
}

TESTS(TEST(an_untouched_segment), TEST(what_was_done_is_counted), TEST(a_redelivery_is_no_claim),
      TEST(the_dead_do_not_count), TEST(waits_are_counted_and_forgotten_with_their_member),
      TEST(the_high_mark_is_sampled), TEST(growing_slots_say_what_they_have), TEST(reading_while_others_work))
