/* Everybody at once: threads that play processes (each a member of its own over one mapping), few slots and many, single and
 * batch verbs, each payload wholly checked, counters that begin next to their wrap-around.
 *
 * An item is `words_of()` 64-bit words, each made of producer, number and place, so a torn, lost, doubled or foreign word is
 * seen. One consumer sees each producer's items in order; of several, each sees what it gets of a producer ascending. */
#include "check.h"

enum { PRODUCERS_MAX = 4, CONSUMERS_MAX = 4, BATCH_MAX = 8, WORDS_MAX = 64 };

typedef struct plan {
    int producers, consumers;
    uint32_t slots, batch;
    uint64_t items; /* of each producer */
    uint64_t seq_first;
    uint32_t spin_us;
    bool lease;
} plan;

static const plan *now;
static shmt_segment *segment;
static uint8_t *seen[PRODUCERS_MAX]; /* one byte per item, counted by whoever got it */

static uint32_t words_of(uint64_t number) { return 1 + (uint32_t)(number * 7 % WORDS_MAX); }

static uint64_t pattern(uint64_t producer, uint64_t number, uint64_t place) {
    return (producer + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ number * UINT64_C(0xbf58476d1ce4e5b9) ^ place << 56;
}

static void *produce(void *arg) {
    const uint64_t me = (uint64_t)(uintptr_t)arg;
    shmt_segment *seg = same(segment);
    shmt_spin_set(seg, now->spin_us);
    for (uint64_t number = 0; number < now->items;) {
        uint64_t words[BATCH_MAX];
        shmt_slot slot;
        uint64_t left = now->items - number;
        uint32_t want = left < now->batch ? (uint32_t)left : now->batch;
        int n = now->batch == 1 ? shmt_slot_claim(seg, after_ms(30000), &slot)
                                : shmt_slot_claim_many(seg, want, after_ms(30000), words, &slot);
        CHECK(n >= 0);
        n += now->batch == 1;
        for (int i = 0; i < n; i++) {
            uint64_t *to = (uint64_t *)(void *)(slot.data + (uint64_t)i * seg->geo.slot_stride);
            to[0] = me << 56 | (number + (uint64_t)i);
            for (uint32_t w = 1; w < WORDS_MAX; w++) { /* all of the slot, whatever the item's size */
                to[w] = pattern(me, number + (uint64_t)i, w);
            }
        }
        if (now->batch == 1) {
            CHECK_EQ(shmt_slot_publish(seg, &slot, 8 * words_of(number), me << 56 | number), 0);
        } else {
            CHECK_EQ(shmt_slot_publish_many(seg, &slot, words, (uint32_t)n, 8 * WORDS_MAX), 0);
        }
        number += (uint64_t)n;
    }
    shmt_segment_drop(seg); /* the last one's leaving ends the stream */
    return NULL;
}

static void check_item(const uint8_t *data, int64_t *last) {
    uint64_t item[WORDS_MAX];
    memcpy(item, data, sizeof item);
    uint64_t producer = item[0] >> 56, number = item[0] << 8 >> 8;
    CHECK(producer < (uint64_t)now->producers && number < now->items);
    for (uint32_t w = 1; w < WORDS_MAX; w++) {
        CHECK_EQ(item[w], (int64_t)pattern(producer, number, w));
    }
    seen[producer][number]++; /* a byte of its own: a second reader of the same item is a race, and found twice */
    if (now->consumers == 1) {
        CHECK_EQ(number, last[producer] + 1);
    }
    CHECK((int64_t)number > last[producer]);
    last[producer] = (int64_t)number;
}

static void *consume(void *arg) {
    shmt_segment *seg = same(segment);
    int64_t last[PRODUCERS_MAX] = {-1, -1, -1, -1};
    uint64_t got = 0;
    (void)arg;
    shmt_spin_set(seg, now->spin_us);
    for (;;) {
        uint64_t words[BATCH_MAX];
        shmt_slot slot;
        int n = now->batch == 1 ? shmt_slot_acquire(seg, after_ms(30000), &slot)
                                : shmt_slot_acquire_many(seg, now->batch, after_ms(30000), words, &slot);
        if (n == -ESHUTDOWN) {
            break;
        }
        CHECK(n >= 0);
        if (now->batch == 1) {
            n = 1;
            words[0] = slot.word;
            uint64_t header;
            memcpy(&header, slot.data, 8);
            CHECK_EQ(slot.tag, (int64_t)header);
            CHECK_EQ(slot.nbytes, 8 * words_of(header << 8 >> 8));
        }
        CHECK_EQ(slot.tries, 0);
        for (int i = 0; i < n; i++) {
            check_item(slot.data + (uint64_t)i * seg->geo.slot_stride, last);
        }
        got += (uint64_t)n;
        if (now->lease) {
            shmt_lease *lease;
            CHECK_EQ(shmt_lease_take(seg, &slot, words, (uint32_t)n, &lease), 0);
            shmt_lease_hold(lease);
            shmt_lease_drop(lease);
            shmt_lease_drop(lease);
        } else if (now->batch == 1) {
            CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        } else {
            CHECK_EQ(shmt_slot_release_many(seg, &slot, words, (uint32_t)n), 0);
        }
    }
    shmt_segment_drop(seg);
    return (void *)(uintptr_t)got;
}

static void run(const plan *p) {
    now = p;
    segment = make_config((shmt_config){.slot_nbytes = 8 * WORDS_MAX,
                                        .slots = p->slots,
                                        .producers = (uint32_t)p->producers,
                                        .seq_first = p->seq_first});
    pthread_t producers[PRODUCERS_MAX], consumers[CONSUMERS_MAX];
    for (int i = 0; i < p->producers; i++) {
        seen[i] = calloc(p->items, 1);
        CHECK(seen[i] != NULL);
    }
    for (int i = 0; i < p->consumers; i++) {
        CHECK_EQ(pthread_create(&consumers[i], NULL, consume, NULL), 0);
    }
    for (int i = 0; i < p->producers; i++) {
        CHECK_EQ(pthread_create(&producers[i], NULL, produce, (void *)(uintptr_t)i), 0);
    }
    uint64_t total = 0;
    for (int i = 0; i < p->producers; i++) {
        pthread_join(producers[i], NULL);
    }
    for (int i = 0; i < p->consumers; i++) {
        void *got;
        pthread_join(consumers[i], &got);
        total += (uint64_t)(uintptr_t)got;
    }
    CHECK_EQ(total, (uint64_t)p->producers * p->items);
    for (int i = 0; i < p->producers; i++) {
        for (uint64_t k = 0; k < p->items; k++) {
            CHECK_EQ(seen[i][k], 1); /* none lost, none doubled */
        }
        free(seen[i]);
    }
    shmt_stats s = stats_of(segment);
    CHECK_EQ(s.free, p->slots);
    CHECK_EQ(s.publishes, total);
    CHECK_EQ(s.claims, total);
    CHECK_EQ(s.redelivered + s.dropped + s.reclaimed, 0);
    CHECK_EQ(s.members, 1);
    shmt_segment_drop(segment);
}

#define NEAR_ALL (UINT64_MAX - 1000)         /* positions wrap at 2^64, and with them laps and generations */
#define NEAR_GEN ((UINT64_C(1) << 48) - 300) /* the generations of slots and, in the same place, of cells */
#define NEAR_LAP(ring) ((UINT64_C(1) << 24) * (ring) - 700)

static void few_and_many_slots(int producers, int consumers) {
    static const uint32_t batches[] = {1, 3, BATCH_MAX};
    const uint64_t items = (uint64_t)TIMES(60000) / (uint64_t)producers;
    for (int b = 0; b < 3; b++) {
        run(&(plan){producers, consumers, 4, batches[b], items, NEAR_LAP(8), 50, b == 1});
        run(&(plan){producers, consumers, 64, batches[b], items, NEAR_ALL, 50, b == 0});
        run(&(plan){producers, consumers, 5, batches[b], items, NEAR_GEN, 50, false});
    }
    run(&(plan){producers, consumers, 1, 1, items / 4, NEAR_ALL, 50, true});
    run(&(plan){producers, consumers, 2, 2, items / 4, NEAR_GEN, 0, true}); /* sleeping without a spin before */
    run(&(plan){producers, consumers, 1000, 1, items, NEAR_LAP(2048), 0, false});
}

static void two_producers_one_consumer(void) { few_and_many_slots(2, 1); }
static void one_producer_two_consumers(void) { few_and_many_slots(1, 2); }
static void four_producers_four_consumers(void) { few_and_many_slots(4, 4); }

TESTS(TEST(two_producers_one_consumer), TEST(one_producer_two_consumers), TEST(four_producers_four_consumers))
