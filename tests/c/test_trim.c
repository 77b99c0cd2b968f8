/* Memory that goes back to the system: what a process knew of it before is void, whoever took it, and nobody touches a hole. */
#include "check.h"

#define STRIDE (4u << 20)

static shmt_segment *growing(uint32_t slots, const char *name) {
    return make_config(
        (shmt_config){.name = name, .slot_nbytes = 100, .slot_stride = STRIDE, .slots = slots, .flags = SHMT_GROW});
}

static uint64_t blocks(const shmt_segment *seg) {
    struct stat st;
    CHECK_EQ(fstat(seg->fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* An item of n bytes, each of them `mark`. */
static void put_bytes(shmt_segment *seg, uint64_t n, uint8_t mark) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, n), 0);
    memset(slot.data, mark, n);
    CHECK_EQ(shmt_slot_publish(seg, &slot, n, 0), 0);
}

static void get_bytes(shmt_segment *seg, uint64_t n, uint8_t mark) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(slot.nbytes, n);
    for (uint64_t i = 0; i < n; i += 509) {
        CHECK_EQ(slot.data[i], mark);
    }
    CHECK_EQ(slot.data[n - 1], mark);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
}

static uint64_t trimmed(shmt_segment *seg) {
    uint64_t given = UINT64_MAX;
    CHECK_EQ(shmt_trim(seg, &given), 0);
    return given;
}

static void what_free_slots_have_grown_goes_back(void) {
    shmt_segment *seg = growing(4, NULL);
    uint64_t fresh = blocks(seg), figure = stats_of(seg).reserved_nbytes;
    CHECK_EQ(trimmed(seg), 0);
    for (int round = 0; round < 3; round++) {
        for (uint8_t i = 0; i < 4; i++) {
            put_bytes(seg, 1 << 20, i);
        }
        for (uint8_t i = 0; i < 4; i++) {
            get_bytes(seg, 1 << 20, i);
        }
        uint64_t grown = blocks(seg);
        CHECK(grown >= fresh + (4 << 20));
        uint64_t given = trimmed(seg);
        CHECK_EQ(grown - blocks(seg), given);
        CHECK_EQ(blocks(seg), fresh);
        CHECK_EQ(stats_of(seg).reserved_nbytes, figure);
        CHECK_EQ(stats_of(seg).free, 4);
        CHECK_EQ(trimmed(seg), 0);
    }
    shmt_segment_drop(seg);
}

static void what_others_have_or_will_read_is_not_touched(void) {
    shmt_segment *seg = growing(3, NULL), *peer = peer_of(seg);
    shmt_slot writing, reading;
    put_bytes(seg, 1 << 20, 1);
    put_bytes(seg, 1 << 20, 2);
    CHECK_EQ(shmt_slot_try_acquire(peer, &reading), 0);
    CHECK_EQ(shmt_slot_try_claim(seg, &writing), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &writing, 1 << 20), 0);
    memset(writing.data, 3, 1 << 20);
    CHECK_EQ(trimmed(peer), 0);
    CHECK_EQ(trimmed(seg), 0);
    CHECK_EQ(reading.data[(1 << 20) - 1], 1);
    CHECK_EQ(writing.data[(1 << 20) - 1], 3);
    CHECK_EQ(shmt_slot_publish(seg, &writing, 1 << 20, 0), 0);
    get_bytes(peer, 1 << 20, 2);
    get_bytes(peer, 1 << 20, 3);
    CHECK_EQ(shmt_slot_release(peer, &reading), 0);
    CHECK(trimmed(seg) >= 3 << 20);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void slots_that_do_not_grow_have_nothing_to_give(void) {
    shmt_segment *seg = make(4, 0, 0);
    uint64_t before = blocks(seg), claims = stats_of(seg).claims;
    CHECK_EQ(trimmed(seg), 0);
    CHECK_EQ(blocks(seg), before);
    CHECK_EQ(stats_of(seg).claims, claims);
    shmt_segment *small =
        make_config((shmt_config){.slot_nbytes = SHMT_PAGE, .slot_stride = SHMT_PAGE, .slots = 2, .flags = SHMT_GROW});
    CHECK_EQ(trimmed(small), 0); /* nor those that can, and have nowhere to grow to */
    CHECK_EQ(stats_of(small).claims, 0);
    shmt_segment_drop(small);
    shmt_segment_close(seg);
    uint64_t given = 7;
    CHECK_EQ(shmt_trim(seg, &given), -EBADF);
    CHECK_EQ(given, 7);
    shmt_segment_drop(seg);
}

/* What others knew of a slot is void, whether they are asked to write there or to read. */
static void whoever_knew_the_memory_looks_again(void) {
    shmt_segment *seg = growing(1, NULL), *peer = peer_of(seg);
    shmt_slot slot;
    put_bytes(seg, 1 << 20, 1);
    get_bytes(peer, 1 << 20, 1);
    put_bytes(peer, 1 << 20, 2); /* now both know it */
    get_bytes(seg, 1 << 20, 2);
    CHECK(trimmed(seg) > 0);
    for (int i = 0; i < 2; i++) {
        shmt_segment *one = i ? peer : seg;
        CHECK_EQ(shmt_slot_try_claim(one, &slot), 0);
        CHECK(slot.nbytes <= 100);
        CHECK_EQ(shmt_slot_publish(one, &slot, 101, 0), -EMSGSIZE);
        CHECK_EQ(shmt_slot_abort(one, &slot), 0);
    }
    put_bytes(peer, 300, 3); /* grown again, less far than before */
    get_bytes(seg, 300, 3);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK(slot.nbytes >= 300 && slot.nbytes <= 16 * SHMT_PAGE);
    CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

/* The proof: on a file system that somebody else has filled meanwhile, a touch of what was given back is SIGBUS. */
static void nobody_touches_a_hole_on_a_full_file_system(void) {
    pid_t pid = start_child();
    if (pid == 0) {
        if (!private_shm("size=16m")) {
            _exit(77);
        }
        shmt_segment *seg = growing(2, "trim"), *peer = peer_of(seg);
        put_bytes(seg, 1 << 20, 1);
        get_bytes(peer, 1 << 20, 1);
        CHECK(trimmed(peer) >= 1 << 20);
        int fd = open(SHMT_DIR "filler", O_CREAT | O_WRONLY, 0600);
        static char page[SHMT_PAGE];
        while (write(fd, page, sizeof page) == (ssize_t)sizeof page) {
        }
        for (int i = 0; i < 2; i++) {
            shmt_segment *one = i ? peer : seg;
            shmt_slot slot;
            CHECK_EQ(shmt_slot_try_claim(one, &slot), 0);
            memset(slot.data, 2, slot.nbytes);
            CHECK_EQ(shmt_slot_reserve(one, &slot, 1 << 20), -ENOSPC);
            memset(slot.data, 2, slot.nbytes);
            CHECK_EQ(shmt_slot_publish(one, &slot, 100, 0), 0);
            get_bytes(i ? seg : peer, 100, 2);
        }
        CHECK_EQ(ftruncate(fd, 0), 0);
        put_bytes(seg, 1 << 20, 3);
        get_bytes(peer, 1 << 20, 3);
        shmt_segment_drop(peer);
        shmt_segment_drop(seg);
        _exit(0);
    }
    int status = child_status(pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        SKIP("no mount namespace of one's own here");
    }
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

/* A child knows what its parent knew, and what was given back since. */
static void knowledge_that_a_fork_carried_along_is_void_too(void) {
    shmt_segment *seg = growing(1, NULL);
    put_bytes(seg, 1 << 20, 1);
    get_bytes(seg, 1 << 20, 1);
    shmt_atomic32 *go = new_signal();
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_slot slot;
        told(go, 1);
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        CHECK(slot.nbytes <= 100);
        CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
        put_bytes(seg, 1 << 20, 2);
        _exit(0);
    }
    CHECK(trimmed(seg) >= 1 << 20);
    tell(go, 1);
    child_ok(pid);
    get_bytes(seg, 1 << 20, 2);
    free_signal(go);
    shmt_segment_drop(seg);
}

/* Killed in the middle: the slot is claimed and its count has gone up, the memory is there or not. */
static void a_trimmer_that_dies_leaves_a_slot_to_reclaim(void) {
    shmt_segment *seg = growing(1, NULL);
    put_bytes(seg, 1 << 20, 1);
    get_bytes(seg, 1 << 20, 1);
    for (int punched = 0; punched < 2; punched++) {
        pid_t pid = start_child();
        if (pid == 0) {
            uint64_t word;
            CHECK_EQ(shmt_member_join(seg), 0);
            CHECK(shmt_slots_claim_at(seg, 0, &word));
            CHECK(!shmt_slots_claim_at(seg, 0, &word));
            shmt_store_relaxed(&seg->slots[0].trims, shmt_load_relaxed(&seg->slots[0].trims) + 1);
            if (punched) {
                CHECK_EQ(shmt_memory_punch(seg->fd, seg->geo.data_offset + SHMT_PAGE, STRIDE - SHMT_PAGE), 0);
            }
            _exit(0);
        }
        child_ok(pid);
        CHECK_EQ(stats_of(seg).writing, 1);
        CHECK_EQ(shmt_reclaim(seg), 1);
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        CHECK(slot.nbytes <= 100);
        CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
        put_bytes(seg, 1 << 20, 2);
        get_bytes(seg, 1 << 20, 2);
    }
    shmt_segment_drop(seg);
}

static void a_wrong_figure_is_no_more_than_that(void) {
    shmt_segment *seg = growing(1, NULL);
    shmt_store_relaxed(&seg->slots[0].reserved, UINT64_MAX);
    CHECK(trimmed(seg) <= STRIDE);
    CHECK(stats_of(seg).reserved_nbytes <= SHMT_PAGE);
    put_bytes(seg, 1 << 20, 1);
    shmt_store_relaxed(&seg->slots[0].trims, UINT64_MAX);
    get_bytes(seg, 1 << 20, 1);
    CHECK(trimmed(seg) > 1 << 20);
    put_bytes(seg, 1 << 20, 1);
    get_bytes(seg, 1 << 20, 1);
    shmt_segment_drop(seg);
}

/* ---- all at once --------------------------------------------------------------------------------------------------------- */

typedef struct party {
    shmt_segment *seg;
    shmt_atomic32 *stop;
    int n;
} party;

static void *producer(void *arg) {
    party *p = arg;
    uint64_t random = (uint64_t)p->n;
    for (int i = 0; i < TIMES(3000); i++) {
        uint64_t n = 8 + next_random(&random) % (200u << next_random(&random) % 10);
        shmt_slot slot;
        CHECK_EQ(shmt_slot_claim(p->seg, after_ms(20000), &slot), 0);
        CHECK_EQ(shmt_slot_reserve(p->seg, &slot, n), 0);
        memset(slot.data, (int)(n & 0xff), n);
        CHECK_EQ(shmt_slot_publish(p->seg, &slot, n, 0), 0);
    }
    return NULL;
}

static void *consumer(void *arg) {
    party *p = arg;
    for (int i = 0; i < TIMES(3000); i++) {
        shmt_slot slot;
        CHECK_EQ(shmt_slot_acquire(p->seg, after_ms(20000), &slot), 0);
        for (uint64_t k = 0; k < slot.nbytes; k += 61) {
            CHECK_EQ(slot.data[k], slot.nbytes & 0xff);
        }
        CHECK_EQ(shmt_slot_release(p->seg, &slot), 0);
    }
    return NULL;
}

static void *trimmer(void *arg) {
    party *p = arg;
    while (!shmt_load_acquire(p->stop)) {
        (void)trimmed(p->seg);
        sched_yield();
    }
    return NULL;
}

static void trims_in_the_middle_of_everything(void) {
    shmt_segment *seg = growing(4, NULL);
    shmt_atomic32 *stop = new_signal();
    void *(*const what[])(void *) = {producer, producer, consumer, consumer, trimmer, trimmer};
    party parties[6];
    pthread_t threads[6];
    for (int i = 0; i < 6; i++) {
        parties[i] = (party){.seg = same(seg), .stop = stop, .n = i};
        CHECK_EQ(pthread_create(&threads[i], NULL, what[i], &parties[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
        if (i == 4) {
            tell(stop, 1);
        }
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        shmt_segment_drop(parties[i].seg);
    }
    CHECK_EQ(stats_of(seg).free, 4);
    uint64_t most = blocks(seg), given = trimmed(seg);
    CHECK_EQ(most - blocks(seg), given);
    free_signal(stop);
    shmt_segment_drop(seg);
}

static shmt_range range_of_next(shmt_segment *seg, shmt_lease **lease) {
    shmt_slot slot;
    shmt_range range;
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, lease), 0);
    shmt_lease_range(*lease, &range);
    CHECK(range.data == slot.data);
    CHECK_EQ(range.index, slot.index);
    CHECK(range.nbytes >= slot.nbytes);
    return range;
}

/* What whoever tells a device of the memory goes by: how far it has grown here, and that its pages are others than before. */
static void a_range_tells_of_growth_and_of_trims(void) {
    shmt_segment *seg = growing(1, NULL), *peer = peer_of(seg);
    static const uint64_t sizes[] = {90, 5000, 200, 100000, 5000};
    static const uint64_t ranges[] = {SHMT_PAGE, 2 * SHMT_PAGE, 2 * SHMT_PAGE, 25 * SHMT_PAGE, 25 * SHMT_PAGE};
    shmt_lease *lease;
    uint64_t trims = 0;
    for (uint64_t round = 0; round < 2; round++) {
        for (int i = 0; i < 5; i++) {
            put_bytes(peer, sizes[i], 1);
            shmt_range range = range_of_next(seg, &lease);
            if (sizes[i] > 100) { /* before that it is what every slot has */
                CHECK_EQ(range.nbytes, ranges[i]);
            }
            CHECK_EQ(range.trims, round == 0 ? 0 : trims);
            uint64_t given = trimmed(peer); /* somebody has the slot */
            CHECK_EQ(given, 0);
            shmt_lease_drop(lease);
        }
        CHECK(trimmed(peer) > 0);
        put_bytes(peer, 5000, 2);
        shmt_range range = range_of_next(seg, &lease);
        CHECK_EQ(range.nbytes, 2 * SHMT_PAGE);
        CHECK(range.trims != trims);
        trims = range.trims;
        shmt_lease_drop(lease);
        CHECK(trimmed(peer) > 0); /* as the next round expects it: one more */
        trims++;
    }
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);

    seg = make(2, 0, 0); /* one that does not grow */
    put(seg, 7);
    CHECK_EQ(range_of_next(seg, &lease).nbytes, seg->geo.slot_stride);
    shmt_lease_drop(lease);
    shmt_segment_drop(seg);
}

TESTS(TEST(a_range_tells_of_growth_and_of_trims), TEST(what_free_slots_have_grown_goes_back),
      TEST(what_others_have_or_will_read_is_not_touched), TEST(slots_that_do_not_grow_have_nothing_to_give),
      TEST(whoever_knew_the_memory_looks_again), TEST(nobody_touches_a_hole_on_a_full_file_system),
      TEST(knowledge_that_a_fork_carried_along_is_void_too), TEST(a_trimmer_that_dies_leaves_a_slot_to_reclaim),
      TEST(a_wrong_figure_is_no_more_than_that), TEST(trims_in_the_middle_of_everything))
