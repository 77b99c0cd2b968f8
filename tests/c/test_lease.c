/* Leases: the slot is released when the last holder lets go, exactly once, from whichever thread that is. */
#include "check.h"

static shmt_lease *lease_one(shmt_segment *seg) {
    shmt_slot slot = get(seg);
    shmt_lease *lease = NULL;
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lease), 0);
    return lease;
}

static void the_last_drop_releases(void) {
    const uint64_t firsts[] = WRAPS(2);
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(1, 0, firsts[f]);
        for (uint32_t holders = 1; holders < 20; holders++) {
            put(seg, holders);
            shmt_lease *lease = lease_one(seg);
            CHECK_EQ(shmt_lease_count(lease), 1);
            for (uint32_t i = 1; i < holders; i++) {
                shmt_lease_hold(lease);
                CHECK_EQ(shmt_lease_count(lease), i + 1);
            }
            uint64_t word = word_of(seg, 0);
            for (uint32_t i = 1; i < holders; i++) {
                shmt_lease_drop(lease);
                CHECK_EQ(word_of(seg, 0), word);
            }
            shmt_lease_drop(lease);
            CHECK_EQ(slot_of(seg, 0).state, 0);
        }
        shmt_segment_drop(seg);
    }
}

static void leases_of_different_slots_are_apart(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_lease *lease[4];
    for (uint64_t i = 0; i < 4; i++) {
        put(seg, i);
        lease[i] = lease_one(seg);
    }
    static const int order[] = {2, 0, 3, 1};
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_EQ(stats_of(seg).reading, 4 - i);
        shmt_lease_drop(lease[order[i]]);
    }
    CHECK_EQ(stats_of(seg).free, 4);
    shmt_segment_drop(seg);
}

static void a_batch_is_released_as_one(void) {
    shmt_segment *seg = make(8, 0, 0);
    for (uint32_t n = 1; n <= 8; n++) {
        uint64_t words[8];
        shmt_slot first;
        shmt_lease *lease;
        shmt_store_relaxed(&seg->cursor, 0);
        CHECK_EQ(shmt_slot_try_claim_many(seg, n, words, &first), n);
        CHECK_EQ(shmt_slot_publish_many(seg, &first, words, n, 8), 0);
        CHECK_EQ(shmt_slot_try_acquire_many(seg, n, words, &first), n);
        CHECK_EQ(shmt_lease_take(seg, &first, words, n, &lease), 0);
        memset(words, 0, sizeof words); /* the lease has a copy of its own */
        shmt_lease_hold(lease);
        shmt_lease_drop(lease);
        CHECK_EQ(stats_of(seg).reading, n);
        shmt_lease_drop(lease);
        CHECK_EQ(stats_of(seg).free, 8);
    }
    shmt_segment_drop(seg);
}

static void a_lease_keeps_the_mapping_and_the_membership(void) {
    shmt_segment *seg = make(1, 0, 0), *peer = peer_of(seg);
    int maps = count_maps("memfd:shmtensor");
    put(seg, 8);
    shmt_slot slot = get(seg);
    shmt_lease *lease;
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lease), 0);
    shmt_segment_drop(seg);
    CHECK_EQ(count_maps("memfd:shmtensor"), maps);
    CHECK_EQ(*(uint64_t *)(void *)slot.data, 8);
    CHECK_EQ(shmt_reclaim(peer), 0);
    CHECK_EQ(slot_of(peer, 0).state, 3);
    shmt_lease_drop(lease);
    CHECK_EQ(slot_of(peer, 0).state, 0);
    CHECK_EQ(count_maps("memfd:shmtensor"), maps - 1);
    CHECK_EQ(stats_of(peer).members, 1);
    shmt_segment_drop(peer);
}

/* Its slot was reclaimed while views lived: they release nothing, and whoever holds the slot next has a lease of his own. */
static void a_lost_lease_releases_nothing(void) {
    shmt_segment *seg = make(1, 0, 0), *peer = peer_of(seg);
    put(seg, 1);
    shmt_lease *lost = lease_one(seg);
    shmt_lease_hold(lost);
    uint32_t id = shmt_member_id(seg);
    shmt_member_unlock(seg, id); /* as if somebody had closed the lock under it */
    CHECK_EQ(shmt_reclaim(peer), 1);
    CHECK_EQ(stats_of(seg).ready, 1);
    CHECK_EQ(shmt_member_try_lock(seg, id), 1);
    shmt_lease *next = lease_one(seg), *third;
    CHECK(next != lost);
    CHECK_EQ(shmt_lease_count(lost), 2);
    CHECK_EQ(shmt_lease_count(next), 1);
    uint64_t word = word_of(seg, 0);
    shmt_lease_drop(lost);
    shmt_lease_drop(lost);
    CHECK_EQ(word_of(seg, 0), word);
    shmt_lease_drop(next);
    CHECK_EQ(slot_of(seg, 0).state, 0);
    put(seg, 2);
    third = lease_one(seg);
    shmt_lease_drop(third);
    CHECK_EQ(slot_of(seg, 0).state, 0);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

/* Of a claim: published by who is alone with it, and else nothing happens; let go by all, it is aborted. */
static void a_claim_may_be_leased(void) {
    shmt_segment *seg = make(2, 0, 0);
    shmt_slot slot;
    shmt_lease *lease;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lease), 0);
    shmt_lease_hold(lease);
    CHECK_EQ(shmt_lease_publish(lease, 8, 7), -EBUSY);
    CHECK_EQ(slot_of(seg, slot.index).state, 1);
    shmt_lease_drop(lease);
    memcpy(slot.data, &(uint64_t){7}, 8);
    CHECK_EQ(shmt_lease_publish(lease, 8, 7), 0);
    CHECK_EQ(stats_of(seg).ready, 1);
    CHECK_EQ(get_tag(seg), 7);
    CHECK_EQ(stats_of(seg).free, 2);

    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lease), 0);
    CHECK_EQ(shmt_lease_publish(lease, UINT64_MAX, 0), -EMSGSIZE); /* ends it all the same */
    CHECK_EQ(stats_of(seg).free, 2);

    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lease), 0);
    shmt_lease_hold(lease);
    shmt_lease_drop(lease);
    CHECK_EQ(slot_of(seg, slot.index).state, 1);
    shmt_lease_drop(lease);
    CHECK_EQ(stats_of(seg).free, 2);
    CHECK_EQ(shmt_load_relaxed(&seg->refs), 1);
    shmt_segment_drop(seg);
}

/* A claim that was lost publishes nothing of the next one, which has a lease of its own, as an item has. */
static void a_lost_claim_publishes_nothing(void) {
    shmt_segment *seg = make(1, 0, 0), *peer = peer_of(seg);
    shmt_slot slot;
    shmt_lease *lost, *next;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lost), 0);
    uint32_t id = shmt_member_id(seg);
    shmt_member_unlock(seg, id); /* as if somebody had closed the lock under it */
    CHECK_EQ(shmt_reclaim(peer), 1);
    CHECK_EQ(shmt_member_try_lock(seg, id), 1);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &next), 0);
    CHECK(next != lost);
    CHECK_EQ(shmt_lease_publish(lost, 8, 1), -ESTALE);
    CHECK_EQ(stats_of(seg).writing, 1);
    memcpy(slot.data, &(uint64_t){2}, 8);
    CHECK_EQ(shmt_lease_publish(next, 8, 2), 0);
    CHECK_EQ(get_tag(peer), 2);
    CHECK_EQ(stats_of(seg).free, 1);
    CHECK_EQ(shmt_load_relaxed(&seg->refs), 1);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void released_by_hand_first(void) {
    shmt_segment *seg = make(1, 0, 0);
    put(seg, 1);
    shmt_slot slot = get(seg);
    shmt_lease *lease;
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lease), 0);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    put(seg, 2); /* the same slot, another item */
    uint64_t word = word_of(seg, 0);
    shmt_lease_drop(lease);
    CHECK_EQ(word_of(seg, 0), word);
    CHECK_EQ(get_tag(seg), 2);
    shmt_segment_drop(seg);
}

/* ---- threads --------------------------------------------------------------------------------------------------------------- */

enum { HOLDERS = 4 };
static pthread_barrier_t barrier;
static shmt_lease *shared;
static shmt_segment *segment;
static int rounds;

static void *hold_and_drop(void *arg) {
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        pthread_barrier_wait(&barrier);
        shmt_lease *lease = shared; /* a reference was counted for us */
        uint64_t payload;
        shmt_slot_info info;
        for (int k = 0; k < 3; k++) {
            shmt_lease_hold(lease);
            CHECK_EQ(shmt_slot_info_get(segment, 0, &info), 0);
            CHECK_EQ(info.state, 3);
            shmt_lease_drop(lease);
        }
        memcpy(&payload, segment->data, sizeof payload);
        CHECK_EQ(payload, i);
        shmt_lease_drop(lease);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static void from_many_threads_exactly_once(void) {
    rounds = TIMES(3000);
    segment = make(1, 0, 0);
    pthread_t threads[HOLDERS];
    CHECK_EQ(pthread_barrier_init(&barrier, NULL, HOLDERS + 1), 0);
    for (int i = 0; i < HOLDERS; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, hold_and_drop, NULL), 0);
    }
    for (int i = 0; i < rounds; i++) {
        put(segment, (uint64_t)i);
        shared = lease_one(segment);
        for (int k = 1; k < HOLDERS; k++) {
            shmt_lease_hold(shared);
        }
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        CHECK_EQ(slot_of(segment, 0).state, 0);   /* released ... */
        CHECK_EQ(slot_of(segment, 0).gen, i + 1); /* ... and once only: the next claim has not come yet */
    }
    for (int i = 0; i < HOLDERS; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_barrier_destroy(&barrier);
    CHECK_EQ(shmt_load_relaxed(&segment->refs), 1);
    shmt_segment_drop(segment);
}

/* One thread acquires and leases, another drops: the slot goes round through the table of counts. */
static shmt_lease *passed[64];
static shmt_atomic32 put_at, got_at;

static void *dropper(void *arg) {
    uint32_t total = *(uint32_t *)arg;
    for (uint32_t i = 0; i < total; i++) {
        while (shmt_load_acquire(&put_at) == i) {
            sched_yield();
        }
        shmt_lease_drop(passed[i % 64]);
        shmt_store_release(&got_at, i + 1);
    }
    return NULL;
}

static void taken_here_and_dropped_there(void) {
    uint32_t total = (uint32_t)TIMES(20000);
    shmt_segment *seg = make(3, 0, (UINT64_C(1) << 48) - 100);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, dropper, &total), 0);
    for (uint32_t i = 0; i < total; i++) {
        while (i - shmt_load_acquire(&got_at) >= 64) {
            sched_yield();
        }
        shmt_slot slot;
        CHECK_EQ(shmt_slot_claim(seg, after_ms(20000), &slot), 0);
        memcpy(slot.data, &(uint64_t){i}, 8);
        CHECK_EQ(shmt_slot_publish(seg, &slot, 8, i), 0);
        shmt_lease *lease = lease_one(seg);
        CHECK(lease->words == NULL); /* nothing is allocated per item */
        passed[i % 64] = lease;
        shmt_store_release(&put_at, i + 1);
    }
    pthread_join(thread, NULL);
    CHECK_EQ(stats_of(seg).free, 3);
    shmt_segment_drop(seg);
}

TESTS(TEST(the_last_drop_releases), TEST(leases_of_different_slots_are_apart), TEST(a_batch_is_released_as_one),
      TEST(a_lease_keeps_the_mapping_and_the_membership), TEST(a_lost_lease_releases_nothing),
      TEST(a_claim_may_be_leased), TEST(a_lost_claim_publishes_nothing), TEST(released_by_hand_first),
      TEST(from_many_threads_exactly_once), TEST(taken_here_and_dropped_there))
