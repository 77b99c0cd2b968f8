/* native.c - a worker of the soak in C: what workers.py does with small items, so fast that a death at a random moment often
 * falls between two steps of a verb and not between two verbs.
 *
 *   native NAME JOURNAL ARENA SEAT INSTANCE ROLE BATCH SEED BEGIN
 *
 * JOURNAL and ARENA are descriptors. Points, words and records are those of arena.py and journal.py. */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "shmt.h"

enum { WORDS_OF_SEAT = 16, SEATS = 32, ITEM_WORDS = 8, BATCH_MAX = 64 };
enum { PHASE, ORDER, MODE, MADE, TOOK, WAITED, WAITS, STALLS, WHEN_MADE, WHEN_TOOK, FLAGGED };
enum { PAUSED = 3 }; /* a word of the whole run */
enum { STARTED = 1, JOINING, BETWEEN, CLAIMING, CLAIMED, WRITING, WRITTEN, PUBLISHING, PUBLISHED };
enum { ACQUIRING = 10, ACQUIRED, HOLDING, RELEASING, RELEASED, CLOSING = 16, CLOSED };
enum {
    R_INTENT = 1,
    R_PUBLISHED,
    R_ABORTED,
    R_TAKEN,
    R_LETTING,
    R_RELEASED,
    R_TORN,
    R_CHANGED,
    R_LOST_LEASE,
    R_STALLED
};

typedef struct record {
    uint64_t key;
    uint32_t time;
    uint8_t kind, tries;
    uint16_t more;
} record;
_Static_assert(sizeof(record) == 16, "as journal.py has it");

static _Atomic int64_t *arena, *seat;
static shmt_segment *segment;
static int journal;
static int64_t begin_ns;
static uint64_t instance, number, chance;
static uint32_t batch;

static uint64_t draw(void) { /* xorshift */
    chance ^= chance << 13;
    chance ^= chance >> 7;
    return chance ^= chance << 17;
}

_Noreturn static void give_up(const char *what, int64_t rc) {
    fprintf(stderr, "native worker %llu: %s: %lld\n", (unsigned long long)instance, what, (long long)rc);
    _exit(1);
}

#ifdef SOAK_DELAYS_H
/* One step in 256 is preceded by a rest of up to 0.3 ms, one in 2^16 is the last: half of the time is spent between steps. */
void soak_step(void) {
    uint64_t chosen = draw();
    if (seat && chosen % 65536 == 1) {
        kill(getpid(), SIGKILL);
    } else if (seat && chosen % 256 == 0) {
        nanosleep(&(struct timespec){.tv_nsec = (long)(chosen >> 20) % 300000}, NULL);
    }
}
#endif

static void at(int64_t point) {
    atomic_store(&seat[PHASE], point);
    if (atomic_load(&seat[ORDER]) == point) {
        int64_t us = atomic_load(&seat[MODE]);
        if (us < 0) {
            kill(getpid(), SIGKILL);
        }
        atomic_store(&seat[ORDER], 0);
        nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000}, NULL);
    }
}

static void note_more(uint8_t kind, const uint64_t *keys, const uint32_t *tries, int n, uint16_t more) {
    record records[BATCH_MAX];
    uint32_t now = (uint32_t)((shmt_now_ns() - begin_ns) / 1000);
    for (int i = 0; i < n; i++) {
        records[i] = (record){.key = keys[i], .time = now, .kind = kind, .more = more};
        records[i].tries = (uint8_t)(tries ? tries[i] : 0);
    }
    size_t nbytes = (size_t)n * sizeof *records;
    if (write(journal, records, nbytes) != (ssize_t)nbytes) {
        give_up("journal", errno);
    }
}

static void note(uint8_t kind, const uint64_t *keys, const uint32_t *tries, int n) {
    note_more(kind, keys, tries, n, 0);
}

static void waited(int64_t began, int64_t paused, int when) {
    int64_t now = shmt_now_ns();
    atomic_store(&seat[when], now);
    atomic_fetch_add(&seat[WAITS], 1);
    if (now - began > atomic_load(&seat[WAITED])) {
        atomic_store(&seat[WAITED], now - began);
    }
    if (now - began > INT64_C(1000000000)) {
        atomic_fetch_add(&seat[STALLS], 1);
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL); /* as in workers.py */
        paused = (atomic_load(&arena[PAUSED]) - paused) / 1000;
        note_more(R_STALLED, &(uint64_t){(uint64_t)(now - began) / 1000}, &(uint32_t){when == WHEN_TOOK}, 1,
                  (uint16_t)(paused < UINT16_MAX ? paused : UINT16_MAX));
    }
}

static int64_t soon(void) { return shmt_now_ns() + INT64_C(20000000000); }

static uint64_t *item_at(const shmt_slot *first, int i) {
    return (uint64_t *)(void *)(first->data + (uint64_t)i * shmt_segment_info(segment)->slot_stride);
}

static uint64_t read_item(const uint64_t *item) {
    for (uint64_t w = 1; w < ITEM_WORDS; w++) {
        if (item[w] != item[0] + w * UINT64_C(0x7F4A7C15)) {
            return 0;
        }
    }
    return item[0];
}

/* How many were taken; or why none can be: the end of the stream, or everybody else is dead. */
static int got(int rc, bool single, const char *what) {
    if (rc == -ESHUTDOWN || rc == -EOWNERDEAD) {
        return rc;
    }
    if (rc < 0 || rc + single < 1 || rc + single > (int)BATCH_MAX) {
        give_up(what, rc);
    }
    return rc + single;
}

static int make(void) {
    shmt_slot slot;
    uint64_t words[BATCH_MAX], keys[BATCH_MAX];
    const uint32_t want = 1 + (uint32_t)(draw() % batch);
    const bool single = want == 1;
    at(CLAIMING);
    int64_t began = shmt_now_ns(), paused = atomic_load(&arena[PAUSED]);
    int n = got(single ? shmt_slot_claim(segment, soon(), &slot)
                       : shmt_slot_claim_many(segment, want, soon(), words, &slot),
                single, "claim");
    if (n < 0) {
        return n;
    }
    waited(began, paused, WHEN_MADE);
    at(CLAIMED);
    for (int i = 0; i < n; i++) {
        keys[i] = instance << 32 | number++;
    }
    const bool giving_up = draw() % 50 == 0;
    note(giving_up ? R_ABORTED : R_INTENT, keys, NULL, n);
    at(WRITING);
    for (int i = 0; i < n; i++) {
        for (uint64_t w = 0; w < ITEM_WORDS; w++) {
            item_at(&slot, i)[w] = keys[i] + w * UINT64_C(0x7F4A7C15);
        }
    }
    at(WRITTEN);
    if (giving_up) {
        single ? shmt_slot_abort(segment, &slot) : shmt_slot_abort_many(segment, &slot, words, (uint32_t)n);
        return 0;
    }
    at(PUBLISHING);
    int rc = single ? shmt_slot_publish(segment, &slot, 8 * ITEM_WORDS, 0)
                    : shmt_slot_publish_many(segment, &slot, words, (uint32_t)n, 8 * ITEM_WORDS);
    if (rc == -ESTALE) {
        note(R_LOST_LEASE, keys, NULL, n);
        return 0;
    }
    if (rc != 0) {
        give_up("publish", rc);
    }
    at(PUBLISHED);
    note(R_PUBLISHED, keys, NULL, n);
    atomic_fetch_add(&seat[MADE], n);
    return 0;
}

static int take(void) {
    shmt_slot slot;
    uint64_t words[BATCH_MAX], keys[BATCH_MAX];
    uint32_t tries[BATCH_MAX];
    const uint32_t want = 1 + (uint32_t)(draw() % batch);
    const bool single = want == 1;
    at(ACQUIRING);
    int64_t began = shmt_now_ns(), paused = atomic_load(&arena[PAUSED]);
    int n = got(single ? shmt_slot_acquire(segment, soon(), &slot)
                       : shmt_slot_acquire_many(segment, want, soon(), words, &slot),
                single, "acquire");
    if (n < 0) {
        return n;
    }
    waited(began, paused, WHEN_TOOK);
    at(ACQUIRED);
    bool torn = false;
    int flagged = 0;
    for (int i = 0; i < n; i++) {
        keys[i] = read_item(item_at(&slot, i));
        tries[i] = single ? slot.tries : shmt_slot_tries(words[i]);
        torn |= keys[i] == 0;
        flagged += tries[i] > 0;
    }
    note(R_TAKEN, keys, tries, n);
    at(HOLDING);
    for (int i = 0; i < n; i++) {
        if (read_item(item_at(&slot, i)) != keys[i]) {
            note(R_CHANGED, &keys[i], &tries[i], 1);
        }
    }
    if (torn) {
        note(R_TORN, keys, tries, 1);
    }
    atomic_fetch_add(&seat[TOOK], n);
    atomic_fetch_add(&seat[FLAGGED], flagged);
    at(RELEASING);
    note(R_LETTING, keys, tries, n);
    int rc = single ? shmt_slot_release(segment, &slot) : shmt_slot_release_many(segment, &slot, words, (uint32_t)n);
    if (rc != 0) {
        give_up("release", rc); /* a living reader's slot was taken away */
    }
    at(RELEASED);
    note(R_RELEASED, keys, tries, n);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 10) {
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    journal = atoi(argv[2]);
    void *map = mmap(NULL, (1 + SEATS) * WORDS_OF_SEAT * 8, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[3]), 0);
    if (map == MAP_FAILED) {
        return 2;
    }
    arena = map;
    seat = arena + (1 + atoi(argv[4])) * WORDS_OF_SEAT;
    instance = strtoull(argv[5], NULL, 10);
    const char *role = argv[6];
    batch = (uint32_t)atoi(argv[7]);
    batch = batch < 1 ? 1 : batch > BATCH_MAX ? BATCH_MAX : batch;
    chance = (strtoull(argv[8], NULL, 10) + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ instance;
    begin_ns = strtoll(argv[9], NULL, 10);
    at(STARTED);
    at(JOINING);
    int rc = shmt_segment_attach(argv[1], &segment);
    if (rc != 0) {
        give_up("attach", rc);
    }
    bool making = strcmp(role, "maker") == 0, both = strcmp(role, "both") == 0;
    for (;;) {
        at(BETWEEN);
        bool now = both ? draw() % 2 : making;
        rc = now ? make() : take();
        if (rc == -ESHUTDOWN && both && now) {
            both = making = false; /* what is there is still to be taken */
        } else if (rc == -ESHUTDOWN) {
            break;
        }
    }
    at(CLOSING);
    shmt_segment_drop(segment);
    at(CLOSED);
    return 0;
}
