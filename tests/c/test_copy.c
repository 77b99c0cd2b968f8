/* Copies: the same bytes as the plainest loop, and not one beside them. */
#include "check.h"

#define STREAM (UINT64_C(16) << 20)
#define GUARD 128

static uint8_t *source, *target;
static size_t room;

static void prepare(size_t nbytes) {
    room = nbytes + 3 * GUARD;
    source = aligned_alloc(64, room - room % 64 + 64);
    target = aligned_alloc(64, room - room % 64 + 64);
    CHECK(source && target);
    uint64_t random = nbytes;
    for (size_t i = 0; i + 8 <= room; i += 8) {
        uint64_t r = next_random(&random);
        memcpy(source + i, &r, 8);
    }
    memset(target, 0xa5, room);
}

static void finish(void) {
    free(source);
    free(target);
}

static void check_copy(size_t to, size_t from, size_t n) {
    uint8_t before[2 * GUARD];
    memset(before, 0xa5, sizeof before);
    memset(target, 0xa5, to + GUARD);
    memset(target + to + n, 0xa5, GUARD);
    shmt_copy(target + to, source + from, n);
    CHECK(memcmp(target + to, source + from, n) == 0);
    CHECK(memcmp(target, before, to) == 0);
    CHECK(memcmp(target + to + n, before, GUARD) == 0);
}

static void nothing_at_all(void) {
    shmt_copy(NULL, NULL, 0);
    uint8_t a = 1, b = 2;
    shmt_copy(&a, &b, 0);
    CHECK_EQ(a, 1);
}

static void small_copies(void) {
    prepare(5000);
    for (size_t n = 0; n < 300; n++) {
        check_copy(n % 65, n % 7, n);
    }
    check_copy(64, 0, 4096);
    check_copy(3, 1, 4999);
    finish();
}

/* Around the size where the copy begins to pass the caches: every residue of head, body and tail. */
static void streamed_copies(void) {
    prepare(STREAM + 200);
    static const int64_t off[] = {-65, -64, -63, -1, 0, 1, 15, 63, 64, 65, 127};
    static const size_t aligns[][2] = {{0, 0}, {64, 0}, {1, 0}, {0, 1}, {63, 63}, {17, 40}, {8, 24}};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        const size_t *a = aligns[i % 7], *b = aligns[(i + 3) % 7];
        check_copy(a[0], a[1], (size_t)((int64_t)STREAM + off[i]));
        if (!SANITIZED) {
            check_copy(b[0], b[1], (size_t)((int64_t)STREAM + off[i]));
        }
    }
    finish();
}

/* Another thread that learns of the copy by a release store finds all of it: streamed stores are not late. */
static shmt_atomic32 turn;

static void *compare_thread(void *arg) {
    const size_t n = *(size_t *)arg;
    for (uint32_t i = 1; i <= 4; i++) {
        while (shmt_load_acquire(&turn) != 2 * i - 1) {
            sched_yield();
        }
        CHECK(memcmp(target, source + i, n) == 0);
        shmt_store_release(&turn, 2 * i);
    }
    return NULL;
}

static void a_streamed_copy_is_ordered_by_a_release(void) {
    size_t n = STREAM + 77;
    prepare(n);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, compare_thread, &n), 0);
    for (uint32_t i = 1; i <= 4; i++) {
        shmt_copy(target, source + i, n);
        shmt_store_release(&turn, 2 * i - 1);
        while (shmt_load_acquire(&turn) != 2 * i) {
            sched_yield();
        }
    }
    pthread_join(thread, NULL);
    finish();
}

/* ---- strides ------------------------------------------------------------------------------------------------------------ */

/* The plainest loop: item k of C order, its index by division. */
static void naive(uint8_t *to, const uint8_t *from, int ndim, const int64_t *shape, const int64_t *strides,
                  size_t itemsize) {
    int64_t total = 1;
    for (int d = 0; d < ndim; d++) {
        total *= shape[d];
    }
    for (int64_t k = 0; k < total; k++) {
        int64_t rest = k, at = 0;
        for (int d = ndim - 1; d >= 0; d--) {
            at += rest % shape[d] * strides[d];
            rest /= shape[d];
        }
        for (size_t b = 0; b < itemsize; b++) {
            to[(size_t)k * itemsize + b] = from[at + (int64_t)b];
        }
    }
}

#define SPACE 200000

static void check_strided(int ndim, const int64_t *shape, const int64_t *strides, size_t itemsize) {
    static uint8_t in[SPACE], is[SPACE], expected[SPACE];
    int64_t lowest = 0, highest = (int64_t)itemsize, total = 1;
    for (int d = 0; d < ndim; d++) {
        total *= shape[d];
        int64_t span = shape[d] > 0 ? (shape[d] - 1) * strides[d] : 0;
        *(span < 0 ? &lowest : &highest) += span;
    }
    const size_t nbytes = (size_t)total * itemsize;
    if (highest - lowest > SPACE || nbytes + 64 > SPACE) {
        return;
    }
    uint64_t random = nbytes + (uint64_t)ndim;
    for (size_t i = 0; i < (size_t)(highest - lowest); i++) {
        in[i] = (uint8_t)(next_random(&random) >> 32);
    }
    memset(is, 0x5a, nbytes + 64);
    memset(expected, 0x5a, nbytes + 64);
    naive(expected, in - lowest, ndim, shape, strides, itemsize);
    shmt_copy_strided(is, in - lowest, ndim, shape, strides, itemsize);
    CHECK(memcmp(is, expected, nbytes + 64) == 0); /* and nothing behind it */
}

static void by_hand(void) {
    static const struct {
        int ndim;
        int64_t shape[5], strides[5];
        size_t itemsize;
    } table[] = {
        {0, {0}, {0}, 8},                         /* a scalar */
        {1, {7}, {4}, 4},                         /* contiguous */
        {1, {7}, {-4}, 4},                        /* reversed */
        {1, {7}, {0}, 4},                         /* one item, broadcast */
        {1, {7}, {3}, 4},                         /* overlapping items */
        {2, {5, 3}, {12, 4}, 4},                  /* contiguous */
        {2, {5, 3}, {4, 20}, 4},                  /* transposed */
        {2, {5, 3}, {24, 8}, 4},                  /* every second */
        {2, {5, 3}, {-12, -4}, 4},                /* both reversed */
        {3, {2, 1, 3}, {12, 999, 4}, 4},          /* a stride that is never used */
        {3, {2, 0, 3}, {12, 4, 4}, 4},            /* nothing */
        {1, {0}, {-8}, 8},                        /* nothing */
        {4, {2, 3, 4, 5}, {0, 20, 0, 4}, 4},      /* expanded */
        {4, {2, 3, 4, 5}, {480, 8, 96, 24}, 8},   /* channels last */
        {5, {1, 1, 1, 1, 1}, {7, 7, 7, 7, 7}, 2}, /* all ones */
        {3, {3, 4, 5}, {100, 20, 4}, 3},          /* an item of three bytes */
        {2, {3, 4}, {100, 16}, 16},               /* complex128 rows */
        {2, {100, 100}, {1, 100}, 1},             /* bytes, transposed */
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        check_strided(table[i].ndim, table[i].shape, table[i].strides, table[i].itemsize);
    }
}

static void random_shapes(void) {
    uint64_t random = 42;
    static const size_t items[] = {1, 2, 4, 8, 16, 3, 5, 12, 32};
    for (int round = 0; round < TIMES(8000); round++) {
        int ndim = (int)(next_random(&random) % 7);
        int64_t shape[6], strides[6];
        size_t itemsize = items[next_random(&random) % 9];
        int64_t dense = (int64_t)itemsize;
        for (int d = ndim - 1; d >= 0; d--) {
            shape[d] = (int64_t)(next_random(&random) % (ndim > 3 ? 5 : 12));
            switch (next_random(&random) % 6) {
            case 0:
                strides[d] = 0;
                break;
            case 1:
                strides[d] = -dense;
                break;
            case 2:
                strides[d] = (int64_t)(next_random(&random) % 200) - 100;
                break;
            default:
                strides[d] = dense;
            }
            dense *= shape[d] ? shape[d] : 1;
        }
        for (int d = ndim - 1; d > 0 && next_random(&random) % 2; d--) { /* dimensions change places */
            int other = (int)(next_random(&random) % (uint64_t)d);
            int64_t s = shape[d], t = strides[d];
            shape[d] = shape[other];
            strides[d] = strides[other];
            shape[other] = s;
            strides[other] = t;
        }
        check_strided(ndim, shape, strides, itemsize);
    }
}

static void as_many_dimensions_as_numpy_has(void) {
    int64_t shape[64], strides[64];
    for (int ndim = 30; ndim <= 64; ndim += 2) {
        for (int d = 0; d < ndim; d++) {
            shape[d] = d % 9 == 0 ? 2 : 1;
            strides[d] = d % 9 == 0 ? (d % 2 ? 16 : -24) : 5;
        }
        check_strided(ndim, shape, strides, 8);
    }
}

TESTS(TEST(nothing_at_all), TEST(small_copies), TEST(streamed_copies), TEST(a_streamed_copy_is_ordered_by_a_release),
      TEST(by_hand), TEST(random_shapes), TEST(as_many_dimensions_as_numpy_has))
