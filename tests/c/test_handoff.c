/* The verbs: what they give, what they refuse, how long they take, and how a stream ends. */
#include "step.h"

static void one_item(void) {
    const uint64_t firsts[] = WRAPS(4);
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(2, 0, firsts[f]);
        for (uint64_t i = 0; i < 20; i++) {
            shmt_slot in, out;
            CHECK_EQ(shmt_slot_try_acquire(seg, &out), -EAGAIN);
            CHECK_EQ(shmt_slot_try_claim(seg, &in), 0);
            CHECK(in.nbytes >= 256 && in.index < 2 && in.generation == shmt_fork_generation && in.tries == 0);
            CHECK(in.data == seg->data + in.index * seg->geo.slot_stride);
            memset(in.data, (int)i, 256);
            CHECK_EQ(shmt_slot_try_acquire(seg, &out), -EAGAIN);
            CHECK_EQ(shmt_slot_publish(seg, &in, 200, i * 3), 0);
            CHECK_EQ(shmt_slot_try_acquire(seg, &out), 0);
            CHECK(out.data == in.data && out.index == in.index && out.nbytes == 200 && out.tag == i * 3 &&
                  out.tries == 0);
            CHECK(out.data[0] == (uint8_t)i && out.data[255] == (uint8_t)i);
            CHECK_EQ(shmt_slot_release(seg, &out), 0);
        }
        shmt_segment_drop(seg);
    }
}

static void what_is_done_twice_is_refused_and_changes_nothing(void) {
    shmt_segment *seg = make(3, 0, 0);
    shmt_slot slot, other, out;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 100, 5), 0);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 7, 9), -ESTALE); /* publish after publish */
    CHECK_EQ(shmt_slot_publish_many(seg, &slot, &slot.word, 1, 7), -ESTALE);
    CHECK_EQ(shmt_slot_abort(seg, &slot), -ESTALE);
    CHECK_EQ(stats_of(seg).ready, 1);
    CHECK_EQ(stats_of(seg).publishes, 1);
    CHECK_EQ(shmt_slot_try_acquire(seg, &out), 0);
    CHECK_EQ(out.nbytes, 100); /* as it was published the first time */
    CHECK_EQ(out.tag, 5);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 8, 8), -ESTALE);
    CHECK_EQ(shmt_slot_release(seg, &slot), -ESTALE); /* by the producer's word */
    CHECK_EQ(shmt_slot_release(seg, &out), 0);
    CHECK_EQ(shmt_slot_release(seg, &out), -ESTALE); /* release after release */
    CHECK_EQ(stats_of(seg).free, 3);

    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
    CHECK_EQ(shmt_slot_abort(seg, &slot), -ESTALE);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 8, 1), -ESTALE); /* publish after abort */
    shmt_store_relaxed(&seg->cursor, slot.index);
    CHECK_EQ(shmt_slot_try_claim(seg, &other), 0);
    CHECK_EQ(other.index, slot.index);
    CHECK_EQ(shmt_slot_publish(seg, &other, 50, 2), 0);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 8, 1), -ESTALE); /* when the slot is another item's */
    CHECK_EQ(shmt_slot_try_acquire(seg, &out), 0);
    CHECK(out.nbytes == 50 && out.tag == 2);
    shmt_segment_drop(seg);
}

static void results_are_untouched_on_failure(void) {
    shmt_segment *seg = make(1, 0, 0);
    shmt_slot slot, kept;
    uint64_t words[2] = {1, 2};
    memset(&slot, 0x5a, sizeof slot);
    kept = slot;
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(3), &slot), -ETIMEDOUT);
    CHECK_EQ(shmt_slot_try_acquire_many(seg, 2, words, &slot), -EAGAIN);
    CHECK_EQ(shmt_slot_try_acquire_many(seg, 0, words, &slot), -EINVAL);
    CHECK_EQ(shmt_slot_try_claim_many(seg, 0, words, &slot), -EINVAL);
    put(seg, 1);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), -EAGAIN);
    CHECK_EQ(shmt_slot_claim(seg, after_ms(3), &slot), -ETIMEDOUT);
    CHECK_EQ(shmt_slot_try_claim_many(seg, 2, words, &slot), -EAGAIN);
    CHECK_EQ(memcmp(&slot, &kept, sizeof slot), 0);
    CHECK(words[0] == 1 && words[1] == 2);
    shmt_segment_drop(seg);
}

static void deadlines(void) {
    shmt_segment *seg = make(1, 0, 0);
    shmt_slot slot;
    uint64_t words[2];
    static const int64_t ms[] = {1, 30, 120};
    for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
        int64_t begin = shmt_now_ns();
        CHECK_EQ(shmt_slot_acquire(seg, begin + ms[i] * MS, &slot), -ETIMEDOUT);
        int64_t middle = shmt_now_ns();
        CHECK(middle - begin >= ms[i] * MS && middle - begin < (ms[i] + 400) * MS);
        CHECK_EQ(shmt_slot_acquire_many(seg, 2, middle + ms[i] * MS, words, &slot), -ETIMEDOUT);
        CHECK(shmt_now_ns() - middle >= ms[i] * MS);
    }
    put(seg, 1);
    int64_t begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_claim(seg, begin + 20 * MS, &slot), -ETIMEDOUT);
    CHECK_EQ(shmt_slot_claim_many(seg, 2, begin + 40 * MS, words, &slot), -ETIMEDOUT);
    CHECK(shmt_now_ns() - begin >= 40 * MS);
    begin = shmt_now_ns(); /* in the past: what is there is still given */
    CHECK_EQ(shmt_slot_acquire(seg, begin - 5, &slot), 0);
    CHECK_EQ(shmt_slot_acquire(seg, begin - 5, &slot), -ETIMEDOUT);
    CHECK_EQ(shmt_slot_acquire(seg, -1, &slot), -ETIMEDOUT);
    CHECK(shmt_now_ns() - begin < 100 * MS);
    shmt_stats s = stats_of(seg);
    CHECK(s.acquire_waits >= 8 && s.claim_waits == 2);
    begin = shmt_now_ns();
    for (int i = 0; i < 1000; i++) { /* a try never waits, nor counts as waiting */
        CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN);
    }
    CHECK_EQ(stats_of(seg).acquire_waits, s.acquire_waits);
    CHECK_EQ(stats_of(seg).sleeps, s.sleeps);
    shmt_segment_drop(seg);
}

static void releasing_in_any_order(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_slot kept, slot;
    put(seg, 0);
    kept = get(seg);
    for (uint64_t i = 1; i < 100; i++) { /* one that is kept starves nobody */
        put(seg, i);
        CHECK_EQ(get_tag(seg), i);
    }
    CHECK_EQ(*(uint64_t *)(void *)kept.data, 0);
    put(seg, 100);
    put(seg, 101);
    put(seg, 102);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), -EAGAIN);
    CHECK_EQ(shmt_slot_release(seg, &kept), 0);
    put(seg, 103);
    shmt_slot held[4];
    for (uint64_t i = 0; i < 4; i++) {
        held[i] = get(seg);
        CHECK_EQ(held[i].tag, 100 + i);
    }
    for (int i = 3; i >= 0; i--) {
        CHECK_EQ(shmt_slot_release(seg, &held[i]), 0);
    }
    CHECK_EQ(stats_of(seg).free, 4);
    shmt_segment_drop(seg);
}

/* ---- batches ------------------------------------------------------------------------------------------------------------------ */

static void what_is_requeued_comes_last_and_once(void) {
    static const uint64_t firsts[] = WRAPS(8);
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(4, 0, firsts[f]);
        put(seg, 1);
        put(seg, 2);
        shmt_slot slot = get(seg);
        CHECK_EQ(shmt_slot_requeue(seg, &slot), 0);
        CHECK_EQ(shmt_slot_requeue(seg, &slot), -ESTALE);
        CHECK_EQ(shmt_slot_release(seg, &slot), -ESTALE);
        CHECK_EQ(get_tag(seg), 2);
        slot = get(seg);
        CHECK(slot.tag == 1 && slot.tries == 0 && slot.nbytes == 8);
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        CHECK_EQ(stats_of(seg).free, 4);
        CHECK_EQ(stats_of(seg).claims, 2);
        shmt_segment_drop(seg);
    }
}

static void batches_are_consecutive(void) {
    const uint64_t firsts[] = WRAPS(16);
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(8, 0, firsts[f]);
        const uint64_t stride = seg->geo.slot_stride;
        uint64_t words[8], taken[8], random = 1 + (uint64_t)f, value = 0, expected = 0;
        for (int round = 0; round < 100; round++) {
            shmt_slot first;
            int n = shmt_slot_try_claim_many(seg, 1 + (uint32_t)(next_random(&random) % 8), words, &first);
            CHECK(n >= 1 && n <= 8 && first.index + (uint32_t)n <= 8);
            CHECK_EQ(first.word, words[0]);
            for (int i = 0; i < n; i++) {
                CHECK_EQ(words[i], word_of(seg, first.index + (uint32_t)i));
                memcpy(first.data + (uint64_t)i * stride, &value, 8);
                value++;
            }
            CHECK_EQ(shmt_slot_publish_many(seg, &first, words, (uint32_t)n, 8), 0);
            CHECK_EQ(shmt_slot_publish_many(seg, &first, words, (uint32_t)n, 8), -ESTALE);
            CHECK_EQ(stats_of(seg).ready, n);
            while (expected < value) {
                int m = shmt_slot_try_acquire_many(seg, 3, taken, &first);
                CHECK(m >= 1 && m <= 3 && first.nbytes == 8 && first.word == taken[0]);
                for (int i = 0; i < m; i++) {
                    uint64_t payload;
                    memcpy(&payload, first.data + (uint64_t)i * stride, 8);
                    CHECK_EQ(payload, expected++);
                }
                CHECK_EQ(shmt_slot_release_many(seg, &first, taken, (uint32_t)m), 0);
                CHECK_EQ(shmt_slot_release_many(seg, &first, taken, (uint32_t)m), -ESTALE);
            }
            CHECK_EQ(shmt_slot_try_acquire_many(seg, 3, taken, &first), -EAGAIN);
            CHECK_EQ(stats_of(seg).free, 8);
        }
        shmt_segment_drop(seg);
    }
}

static void a_batch_never_waits_for_more_than_one(void) {
    shmt_segment *seg = make(8, 0, 0);
    uint64_t words[8], more[8];
    shmt_slot first, second;
    put(seg, 1);
    CHECK_EQ(shmt_slot_acquire_many(seg, 8, SHMT_FOREVER, words, &first), 1);
    CHECK_EQ(shmt_slot_release_many(seg, &first, words, 1), 0);
    int n = shmt_slot_claim_many(seg, 8, SHMT_FOREVER, words, &first);
    CHECK(n >= 1);
    int all = n;
    if (n < 8) { /* the cursor was not at the beginning */
        all += shmt_slot_claim_many(seg, 8, SHMT_FOREVER, more, &second);
    }
    CHECK_EQ(all, 8);
    CHECK_EQ(shmt_slot_try_claim_many(seg, 8, more, &second), -EAGAIN);
    shmt_segment_drop(seg);
}

static void part_of_a_batch(void) {
    shmt_segment *seg = make(8, 0, 0);
    uint64_t words[4];
    shmt_slot first, rest;
    shmt_store_relaxed(&seg->cursor, 2);
    CHECK_EQ(shmt_slot_try_claim_many(seg, 4, words, &first), 4);
    CHECK_EQ(shmt_slot_publish_many(seg, &first, words, 2, 256), 0); /* from the front */
    rest = first;
    rest.index += 2;
    rest.word = words[2];
    CHECK_EQ(shmt_slot_abort_many(seg, &rest, words + 2, 2), 0);
    CHECK_EQ(stats_of(seg).ready, 2);
    CHECK_EQ(stats_of(seg).free, 6);
    CHECK_EQ(shmt_slot_try_acquire_many(seg, 4, words, &first), 2);
    CHECK_EQ(first.index, 2);
    CHECK_EQ(shmt_slot_release(seg, &first), 0);
    CHECK_EQ(shmt_slot_release_many(seg, &first, words, 2), -ESTALE); /* the first was given back already ... */
    CHECK_EQ(stats_of(seg).free, 8);                                  /* ... and the second is now */
    shmt_segment_drop(seg);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------------------------ */

static void a_corrupt_size_reaches_nobody(void) {
    for (uint32_t flags = 0; flags <= SHMT_GROW; flags += SHMT_GROW) {
        shmt_segment *seg =
            make_config((shmt_config){.slot_nbytes = 256, .slot_stride = 1 << 20, .slots = 2, .flags = flags});
        const uint64_t sizes[] = {seg->geo.slot_stride + 1, UINT64_MAX, UINT64_C(1) << 40};
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            shmt_slot slot;
            uint64_t words[2];
            put(seg, 1);
            for (uint32_t s = 0; s < 2; s++) {
                seg->slots[s].nbytes = sizes[i];
            }
            CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EUCLEAN);
            CHECK_EQ(stats_of(seg).free, 2); /* given up, so that the next one can be had */
            shmt_store_relaxed(&seg->cursor, 0);
            CHECK_EQ(shmt_slot_try_claim_many(seg, 2, words, &slot), 2);
            CHECK_EQ(shmt_slot_publish_many(seg, &slot, words, 2, 256), 0);
            seg->slots[1].nbytes = sizes[i];
            CHECK_EQ(shmt_slot_try_acquire_many(seg, 2, words, &slot), -EUCLEAN);
            CHECK_EQ(stats_of(seg).free, 2);
            put(seg, 2);
            CHECK_EQ(get_tag(seg), 2);
        }
        shmt_segment_drop(seg);
    }
}

static void a_corrupt_reservation_stays_within_the_stride(void) {
    shmt_segment *seg =
        make_config((shmt_config){.slot_nbytes = 256, .slot_stride = 1 << 20, .slots = 1, .flags = SHMT_GROW});
    shmt_slot slot;
    shmt_store_relaxed(&seg->slots[0].reserved, UINT64_MAX);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK(slot.nbytes <= seg->geo.slot_stride);
    CHECK_EQ(shmt_slot_publish(seg, &slot, seg->geo.slot_stride + 1, 0), -EMSGSIZE);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, UINT64_MAX), -EMSGSIZE);
    CHECK(stats_of(seg).reserved_nbytes <= seg->geo.slot_stride);
    shmt_segment_drop(seg);
}

static void every_size_in_a_growing_slot(void) {
    shmt_segment *seg = make_config(
                     (shmt_config){.slot_nbytes = 1, .slot_stride = 3 << 20, .slots = 2, .flags = SHMT_GROW}),
                 *peer = peer_of(seg);
    uint64_t random = 11;
    for (int i = 0; i < 200; i++) {
        uint64_t n = next_random(&random) % ((3u << 20) >> next_random(&random) % 20);
        shmt_slot in, out;
        CHECK_EQ(shmt_slot_try_claim(seg, &in), 0);
        if (n > in.nbytes) {
            CHECK_EQ(shmt_slot_publish(seg, &in, n, 0), -EMSGSIZE); /* not before it is reserved */
        }
        CHECK_EQ(shmt_slot_reserve(seg, &in, n), 0);
        CHECK(in.nbytes >= n);
        memset(in.data, i, n);
        CHECK_EQ(shmt_slot_publish(seg, &in, n, 0), 0);
        CHECK_EQ(shmt_slot_try_acquire(peer, &out), 0);
        CHECK_EQ(out.nbytes, n);
        CHECK(n == 0 || (out.data[0] == (uint8_t)i && out.data[n - 1] == (uint8_t)i));
        CHECK_EQ(shmt_slot_release(peer, &out), 0);
    }
    /* What one has grown another need only look at; nor does the figure go back. */
    shmt_segment *late = peer_of(seg);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 3 << 20), 0);
    CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
    uint64_t reserved = stats_of(seg).reserved_nbytes;
    CHECK_EQ(shmt_slot_try_claim(late, &slot), 0);
    CHECK_EQ(shmt_slot_reserve(late, &slot, 1 << 20), 0);
    memset(slot.data, 1, 1 << 20);
    CHECK_EQ(shmt_slot_abort(late, &slot), 0);
    CHECK_EQ(stats_of(seg).reserved_nbytes, reserved);
    shmt_segment_drop(late);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

/* ---- the end of the stream ------------------------------------------------------------------------------------------------------ */

static void after_shutdown_what_is_there_is_drained(void) {
    shmt_segment *seg = make(4, 0, 0), *peer = peer_of(seg);
    shmt_slot slot, late;
    put(seg, 1);
    CHECK_EQ(shmt_slot_try_claim(seg, &late), 0); /* began before the end */
    CHECK_EQ(stats_of(seg).shut, 0);
    shmt_shutdown(peer);
    CHECK_EQ(stats_of(seg).shut, 1);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), -ESHUTDOWN);
    CHECK_EQ(shmt_slot_claim(peer, SHMT_FOREVER, &slot), -ESHUTDOWN);
    CHECK_EQ(stats_of(seg).writing, 1); /* those that were refused hold nothing */
    CHECK_EQ(stats_of(seg).free, 2);
    CHECK_EQ(get_tag(seg), 1);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN); /* somebody is still writing */
    memcpy(late.data, &(uint64_t){2}, 8);
    CHECK_EQ(shmt_slot_publish(seg, &late, 8, 2), 0);
    CHECK_EQ(get_tag(peer), 2);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -ESHUTDOWN);
    CHECK_EQ(shmt_slot_acquire(peer, SHMT_FOREVER, &slot), -ESHUTDOWN);
    shmt_segment *newcomer = peer_of(seg);
    CHECK_EQ(shmt_slot_try_claim(newcomer, &slot), -ESHUTDOWN);
    CHECK_EQ(shmt_slot_try_acquire(newcomer, &slot), -ESHUTDOWN);
    shmt_shutdown(seg); /* again */
    CHECK_EQ(stats_of(seg).shut, 1);
    shmt_segment_drop(newcomer);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void aborting_the_last_one_ends_it_too(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_slot late, slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &late), 0);
    shmt_shutdown(seg);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN);
    CHECK_EQ(shmt_slot_abort(seg, &late), 0);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(1000), &slot), -ESHUTDOWN);
    shmt_segment_drop(seg);
}

static shmt_segment *make_producers(uint32_t producers) {
    return make_config((shmt_config){.slot_nbytes = 64, .slots = 4, .producers = producers});
}

static void when_all_producers_have_closed(void) {
    shmt_segment *seg = make_producers(2), *a = peer_of(seg), *b = peer_of(seg), *idle = peer_of(seg);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN); /* nobody has come yet: no end */
    put(a, 1);
    shmt_segment_drop(a);
    CHECK_EQ(get_tag(seg), 1);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN); /* one of two */
    shmt_segment_drop(idle);                              /* which produced nothing: does not count */
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN);
    put(b, 2);
    put(b, 3);
    shmt_segment_drop(b);
    CHECK_EQ(get_tag(seg), 2);
    CHECK_EQ(get_tag(seg), 3);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -ESHUTDOWN);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), -ESHUTDOWN); /* it stays ended */
    CHECK_EQ(stats_of(seg).shut, 1);
    shmt_segment_drop(seg);
}

static void more_producers_than_expected(void) {
    shmt_segment *seg = make_producers(1), *a = peer_of(seg), *b = peer_of(seg);
    shmt_slot slot;
    put(a, 1);
    put(b, 2);
    shmt_segment_drop(a);
    CHECK_EQ(get_tag(seg), 1);
    CHECK_EQ(get_tag(seg), 2);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN); /* b is still there */
    put(b, 3);
    shmt_segment_drop(b);
    CHECK_EQ(get_tag(seg), 3);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -ESHUTDOWN);
    shmt_segment_drop(seg);
}

static void with_no_number_it_never_ends_by_itself(void) {
    shmt_segment *seg = make_producers(0), *a = peer_of(seg);
    shmt_slot slot;
    put(a, 1);
    shmt_segment_drop(a);
    CHECK_EQ(get_tag(seg), 1);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(120), &slot), -ETIMEDOUT);
    shmt_segment_drop(seg);
}

static void a_sleeping_consumer_hears_of_the_end(void) {
    shmt_segment *seg = make_producers(1);
    shmt_atomic32 *go = new_signal();
    pid_t pid = start_child();
    if (pid == 0) {
        put(seg, 1);
        tell(go, 1);
        told(go, 2);
        sleep_ms(30);
        shmt_segment_close(seg);
        tell(go, 3);
        sleep_ms(2000); /* a closed one need not be gone */
        _exit(0);
    }
    told(go, 1);
    CHECK_EQ(get_tag(seg), 1);
    tell(go, 2);
    shmt_slot slot;
    int64_t begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), -ESHUTDOWN);
    CHECK(shmt_now_ns() - begin < 1000 * MS);
    kill_child(pid);
    shmt_segment_drop(seg);
    free_signal(go);
}

/* ---- nobody left ---------------------------------------------------------------------------------------------------- */

/* A child that does what `act` says and is killed. */
static void act_and_die(shmt_segment *seg, void (*act)(shmt_segment *)) {
    shmt_atomic32 *done = new_signal();
    pid_t pid = start_child();
    if (pid == 0) {
        act(seg);
        await_death(done);
    }
    told(done, 1);
    kill_child(pid);
    free_signal(done);
}

static void produce_one(shmt_segment *seg) { put(seg, 7); }
static void consume_one(shmt_segment *seg) { get_tag(seg); }
static void look_for_one(shmt_segment *seg) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN);
}

static void a_consumer_whose_only_producer_has_died(void) {
    shmt_segment *seg = make_producers(0);
    shmt_slot slot;
    act_and_die(seg, produce_one);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), 0); /* what it had published is there */
    CHECK_EQ(slot.tag, 7);
    int64_t begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_acquire(seg, SHMT_FOREVER, &slot), -EOWNERDEAD);
    CHECK(shmt_now_ns() - begin < 1000 * MS);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(150), &slot), -ETIMEDOUT); /* told once, it may wait for another */
    shmt_segment *another = peer_of(seg);
    put(another, 8);
    CHECK_EQ(get_tag(seg), 8);
    shmt_segment_drop(another);
    CHECK_EQ(stats_of(seg).shut, 0);
    shmt_segment_drop(seg);
}

static void who_may_still_produce_is_waited_for(void) {
    shmt_segment *seg = make_producers(0), *other = peer_of(seg);
    shmt_slot slot;
    act_and_die(seg, produce_one);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), 0);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(250), &slot), -ETIMEDOUT); /* `other` has done nothing yet */
    CHECK_EQ(shmt_slot_try_claim(other, &slot), 0);
    CHECK_EQ(shmt_slot_abort(other, &slot), 0);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(250), &slot), -ETIMEDOUT); /* and is a producer now */
    shmt_segment_drop(other);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), -EOWNERDEAD);
    shmt_segment_drop(seg);
}

static void a_producer_that_fails_counts_as_dead(void) {
    shmt_segment *seg = make_producers(1), *bad = peer_of(seg);
    shmt_slot slot;
    put(bad, 1);
    shmt_segment_fail(bad);
    shmt_segment_drop(bad);
    CHECK_EQ(get_tag(seg), 1);
    CHECK_EQ(shmt_slot_acquire(seg, SHMT_FOREVER, &slot), -EOWNERDEAD); /* not -ESHUTDOWN */
    shmt_segment *again = peer_of(seg);
    put(again, 2);
    shmt_segment_drop(again);
    CHECK_EQ(get_tag(seg), 2);
    CHECK_EQ(shmt_slot_acquire(seg, SHMT_FOREVER, &slot), -ESHUTDOWN);
    shmt_segment *reader = make_producers(1), *other = peer_of(reader);
    CHECK_EQ(shmt_slot_try_acquire(other, &slot), -EAGAIN);
    shmt_segment_fail(other); /* one that only consumes takes nobody's items along */
    shmt_segment_drop(other);
    put(reader, 1);
    shmt_segment_drop(reader);
    shmt_segment_drop(seg);
}

static void an_expected_producer_that_dies_is_no_end(void) {
    shmt_segment *seg = make_producers(2), *good = peer_of(seg);
    shmt_slot slot;
    put(good, 1);
    shmt_segment_drop(good);
    CHECK_EQ(get_tag(seg), 1);
    act_and_die(seg, produce_one);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), 0);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    CHECK_EQ(shmt_slot_acquire(seg, SHMT_FOREVER, &slot), -EOWNERDEAD); /* not -ESHUTDOWN */
    CHECK_EQ(stats_of(seg).shut, 0);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(120), &slot), -ETIMEDOUT);
    shmt_segment *in_its_place = peer_of(seg);
    put(in_its_place, 2);
    shmt_segment_drop(in_its_place);
    CHECK_EQ(get_tag(seg), 2);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), -ESHUTDOWN);
    shmt_segment_drop(seg);
}

static void fill(shmt_segment *seg) {
    while (stats_of(seg).free > 0) {
        put(seg, 9);
    }
}

static void a_producer_whose_only_consumer_has_died(void) {
    shmt_segment *seg = make_producers(0);
    shmt_slot slot;
    fill(seg);
    CHECK_EQ(shmt_slot_claim(seg, after_ms(250), &slot), -ETIMEDOUT); /* before the first consumer has come */
    shmt_segment_drop(seg);

    seg = make_producers(0);
    act_and_die(seg, look_for_one);
    put(seg, 1);
    act_and_die(seg, consume_one);
    CHECK_EQ(shmt_reclaim(seg) >= 1, 1);
    fill(seg);
    int64_t begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_claim(seg, SHMT_FOREVER, &slot), -EOWNERDEAD);
    CHECK(shmt_now_ns() - begin < 1000 * MS);
    CHECK_EQ(shmt_slot_claim(seg, after_ms(150), &slot), -ETIMEDOUT);
    shmt_segment *another = peer_of(seg);
    CHECK_EQ(shmt_slot_try_acquire(another, &slot), 0);
    CHECK_EQ(shmt_slot_release(another, &slot), 0);
    CHECK_EQ(shmt_slot_claim(seg, after_ms(5000), &slot), 0);
    shmt_segment_drop(another);
    shmt_segment_drop(seg);
}

/* All consumers are gone, but a slot is being written, or one who has closed still looks at it: only the latter is nothing
 * to wait for. */
static void what_may_yet_be_given_back(void) {
    for (int kept = 0; kept < 2; kept++) {
        shmt_segment *seg = make_producers(0), *writer = peer_of(seg), *reader = peer_of(seg);
        shmt_slot slot, written;
        shmt_lease *lease = NULL;
        put(seg, 1);
        if (kept) {
            CHECK_EQ(shmt_slot_try_acquire(reader, &slot), 0);
            CHECK_EQ(shmt_lease_take(reader, &slot, &slot.word, 1, &lease), 0);
        } else {
            CHECK_EQ(get_tag(reader), 1);
        }
        CHECK_EQ(shmt_slot_try_claim(writer, &written), 0);
        shmt_segment_close(reader);
        shmt_segment_drop(reader);
        fill(seg);
        CHECK_EQ(shmt_slot_claim(seg, after_ms(120), &slot), -ETIMEDOUT);
        CHECK_EQ(shmt_slot_publish(writer, &written, 8, 5), 0);
        CHECK_EQ(shmt_slot_claim(seg, after_ms(5000), &slot), -EOWNERDEAD);
        if (kept) {
            shmt_lease_drop(lease);
        }
        shmt_segment_drop(writer);
        shmt_segment_drop(seg);
    }
}

/* Words that lie about who holds a slot keep a wait a wait. */
static void corrupt_owners(void) {
    shmt_segment *seg = make_producers(0), *reader = peer_of(seg);
    shmt_slot slot;
    put(seg, 1);
    CHECK_EQ(get_tag(reader), 1);
    shmt_segment_drop(reader);
    fill(seg);
    const uint64_t was = word_of(seg, 0);
    const uint32_t owners[] = {4095, seg->geo.members + 1, shmt_member_id(seg), 0};
    for (size_t i = 0; i < sizeof owners / sizeof *owners; i++) {
        CHECK_EQ(shmt_slots_change(seg, 0, word_of(seg, 0), shmt_word(SHMT_READING, owners[i], 5)), 0);
        CHECK_EQ(shmt_slot_claim(seg, after_ms(1), &slot), -ETIMEDOUT);
    }
    CHECK_EQ(shmt_slots_change(seg, 0, word_of(seg, 0), was), 0);
    CHECK_EQ(shmt_slot_claim(seg, after_ms(5000), &slot), -EOWNERDEAD);
    shmt_segment_drop(seg);

    seg = make_producers(0); /* published by somebody who has yet to push it: it will come */
    act_and_die(seg, produce_one);
    CHECK_EQ(shmt_reclaim(seg), 1);
    CHECK_EQ(get_tag(seg), 7);
    uint64_t free_word = word_of(seg, 0);
    CHECK_EQ(shmt_slots_change(seg, 0, free_word, shmt_word(SHMT_READY, 0, 9)), 0);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(1), &slot), -ETIMEDOUT);
    CHECK_EQ(shmt_slots_change(seg, 0, word_of(seg, 0), free_word), 0);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(1), &slot), -EOWNERDEAD);
    shmt_segment_drop(seg);
}

/* A producer that becomes a consumer too, stopped anywhere in its first acquire: it is alive, and will free a slot. */
static shmt_segment *turning;

static void be_a_producer(void) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(turning, &slot), -EAGAIN);
}

static void acquire_for_the_first_time(void) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(turning, &slot), 0);
    CHECK_EQ(shmt_slot_release(turning, &slot), 0);
}

static void a_producer_that_turns_consumer(void) {
    NEEDS_STEPS();
    for (uint64_t n = 0;; n++) {
        shmt_slot slot;
        step_child child;
        turning = make_producers(0);
        fill(turning);
        bool stopped = step_start(&child, be_a_producer, acquire_for_the_first_time, n);
        if (stopped) {
            int rc = shmt_slot_try_claim(turning, &slot);
            CHECK(rc == 0 || rc == -EAGAIN); /* and not -EOWNERDEAD */
            step_on(&child);
        }
        shmt_segment_drop(turning);
        if (!stopped) {
            CHECK(n > 30);
            break;
        }
    }
}

/* The item of a consumer that died is part of what was published: who drains the stream gets it. */
static void the_end_does_not_hide_a_redelivery(void) {
    shmt_segment *seg = make(2, 0, 0);
    shmt_atomic32 *go = new_signal();
    put(seg, 1);
    pid_t pid = start_child();
    if (pid == 0) {
        get(seg);
        await_death(go);
    }
    told(go, 1);
    kill_child(pid);
    shmt_shutdown(seg);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), 0);
    CHECK(slot.tag == 1 && slot.tries == 1);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), -ESHUTDOWN);
    shmt_segment_drop(seg);
    free_signal(go);
}

/* Claims that race with the end: each either fails, or its item is drained by the consumer that heard of the end. */
static shmt_segment *ending;
static shmt_atomic32 published;

static void *claim_until_the_end(void *arg) {
    shmt_segment *seg = same(ending);
    (void)arg;
    for (;;) {
        shmt_slot slot;
        int rc = shmt_slot_claim(seg, SHMT_FOREVER, &slot);
        if (rc == -ESHUTDOWN) {
            break;
        }
        CHECK_EQ(rc, 0);
        shmt_add_relaxed(&published, 1);
        CHECK_EQ(shmt_slot_publish(seg, &slot, 0, 0), 0);
    }
    shmt_segment_drop(seg);
    return NULL;
}

static void nothing_is_lost_at_the_end(void) {
    for (int round = 0; round < TIMES(200); round++) {
        ending = make(4, 0, 0);
        shmt_store_relaxed(&published, 0);
        pthread_t threads[2];
        for (int i = 0; i < 2; i++) {
            CHECK_EQ(pthread_create(&threads[i], NULL, claim_until_the_end, NULL), 0);
        }
        uint32_t got = 0;
        for (;;) {
            shmt_slot slot;
            int rc = shmt_slot_acquire(ending, SHMT_FOREVER, &slot);
            if (rc == -ESHUTDOWN) {
                break;
            }
            CHECK_EQ(rc, 0);
            CHECK_EQ(shmt_slot_release(ending, &slot), 0);
            if (++got == 50) {
                shmt_shutdown(ending);
            }
        }
        for (int i = 0; i < 2; i++) {
            pthread_join(threads[i], NULL);
        }
        CHECK_EQ(got, shmt_load_relaxed(&published));
        shmt_segment_drop(ending);
    }
}

TESTS(TEST(one_item), TEST(what_is_done_twice_is_refused_and_changes_nothing), TEST(results_are_untouched_on_failure),
      TEST(deadlines), TEST(releasing_in_any_order), TEST(what_is_requeued_comes_last_and_once),
      TEST(batches_are_consecutive), TEST(a_batch_never_waits_for_more_than_one), TEST(part_of_a_batch),
      TEST(a_corrupt_size_reaches_nobody), TEST(a_corrupt_reservation_stays_within_the_stride),
      TEST(every_size_in_a_growing_slot), TEST(after_shutdown_what_is_there_is_drained),
      TEST(aborting_the_last_one_ends_it_too), TEST(when_all_producers_have_closed), TEST(more_producers_than_expected),
      TEST(with_no_number_it_never_ends_by_itself), TEST(a_sleeping_consumer_hears_of_the_end),
      TEST(a_consumer_whose_only_producer_has_died), TEST(who_may_still_produce_is_waited_for),
      TEST(a_producer_that_fails_counts_as_dead), TEST(an_expected_producer_that_dies_is_no_end),
      TEST(a_producer_whose_only_consumer_has_died), TEST(a_producer_that_turns_consumer),
      TEST(what_may_yet_be_given_back), TEST(corrupt_owners), TEST(the_end_does_not_hide_a_redelivery),
      TEST(nothing_is_lost_at_the_end))
