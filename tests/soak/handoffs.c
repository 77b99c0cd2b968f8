/* handoffs.c - a stream of very many items between processes, in pieces: none lost, doubled, torn or out of order, and
 * nothing grows. For what Python is too slow to count.
 *
 *   handoffs TOTAL PIECE PRODUCERS CONSUMERS SLOTS BATCH
 *
 * Each item is one cache line of words made of its producer and number. Consumers set a bit for each item in a map that
 * they share; a bit that is set already is a doubled item, one that is missing at the end of a piece a lost one. Memory and
 * descriptors of every process are looked at after a quarter of the pieces, when everything is warm, and after each other. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shmt.h"

enum { MAX = 8, WORDS = 8, BATCH_MAX = 64 };

typedef struct seat {
    _Alignas(128) _Atomic uint64_t done; /* items */
    _Atomic uint64_t waits_over_1s;
} seat;

typedef struct table {
    _Atomic uint64_t piece; /* producers make this one, from 1 on; 0: wait */
    _Atomic uint32_t failed;
    char why[256];
    seat producers[MAX], consumers[MAX];
} table;

static table *shared;
static _Atomic uint64_t *map; /* a bit for each item of a piece, producer after producer */
static uint64_t piece_items;  /* of each producer */
static uint64_t pieces;
static uint32_t batch;
static shmt_segment *segment;
static const char *doing;

static void fail(const char *what, int64_t a, int64_t b) {
    uint32_t no = 0;
    if (atomic_compare_exchange_strong(&shared->failed, &no, 1)) {
        snprintf(shared->why, sizeof shared->why, "%s: %s (%lld, %lld)", doing, what, (long long)a, (long long)b);
    }
    _exit(1);
}

static void nap(void) { nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL); }

static uint64_t word_of(uint64_t producer, uint64_t number, uint64_t place) {
    return (producer + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ number * UINT64_C(0xbf58476d1ce4e5b9) ^ place << 56;
}

static int64_t soon(void) { return shmt_now_ns() + INT64_C(20000000000); }

static void note_wait(seat *mine, int64_t began) {
    if (shmt_now_ns() - began > INT64_C(1000000000)) {
        atomic_fetch_add(&mine->waits_over_1s, 1);
    }
}

/* ---- the processes ---------------------------------------------------------------------------------------------------- */

static void produce(uint64_t me) {
    seat *mine = &shared->producers[me];
    const uint64_t stride = shmt_segment_info(segment)->slot_stride;
    doing = "a producer";
    for (uint64_t piece = 1; piece <= pieces; piece++) {
        while (atomic_load(&shared->piece) < piece) {
            nap();
        }
        for (uint64_t made = 0; made < piece_items;) {
            uint64_t words[BATCH_MAX], left = piece_items - made, number = (piece - 1) * piece_items + made;
            uint32_t want = left < batch ? (uint32_t)left : batch;
            shmt_slot slot;
            bool single = number % 3 == 0 || want == 1;
            int64_t began = number % 1024 == 0 ? shmt_now_ns() : 0;
            int n = single ? shmt_slot_claim(segment, soon(), &slot)
                           : shmt_slot_claim_many(segment, want, soon(), words, &slot);
            if (n < 0) {
                fail("claim", n, (int64_t)number);
            }
            if (began) {
                note_wait(mine, began);
            }
            n += single;
            for (int i = 0; i < n; i++) {
                uint64_t *to = (uint64_t *)(void *)(slot.data + (uint64_t)i * stride);
                to[0] = me << 56 | (number + (uint64_t)i);
                for (uint32_t w = 1; w < WORDS; w++) {
                    to[w] = word_of(me, number + (uint64_t)i, w);
                }
            }
            int rc = single ? shmt_slot_publish(segment, &slot, 8 * WORDS, number)
                            : shmt_slot_publish_many(segment, &slot, words, (uint32_t)n, 8 * WORDS);
            if (rc != 0) {
                fail("publish", rc, (int64_t)number);
            }
            made += (uint64_t)n;
            atomic_fetch_add(&mine->done, (uint64_t)n);
        }
    }
    shmt_segment_drop(segment);
}

static void look_at(const uint8_t *data, int64_t *last) {
    uint64_t item[WORDS];
    memcpy(item, data, sizeof item);
    uint64_t producer = item[0] >> 56, number = item[0] << 8 >> 8;
    for (uint32_t w = 1; w < WORDS; w++) {
        if (producer >= MAX || item[w] != word_of(producer, number, w)) {
            fail("torn", (int64_t)item[0], w);
        }
    }
    if ((int64_t)number <= last[producer]) {
        fail("out of order", (int64_t)number, last[producer]);
    }
    last[producer] = (int64_t)number;
    if (number / piece_items != atomic_load_explicit(&shared->piece, memory_order_relaxed) - 1) {
        fail("of another piece", (int64_t)number, 0);
    }
    uint64_t bit = producer * piece_items + number % piece_items;
    uint64_t was = atomic_fetch_or_explicit(&map[bit / 64], UINT64_C(1) << bit % 64, memory_order_relaxed);
    if (was & UINT64_C(1) << bit % 64) {
        fail("doubled", (int64_t)producer, (int64_t)number);
    }
}

static void consume(uint64_t me) {
    seat *mine = &shared->consumers[me];
    const uint64_t stride = shmt_segment_info(segment)->slot_stride;
    int64_t last[MAX];
    memset(last, 0xff, sizeof last);
    doing = "a consumer";
    for (uint64_t turn = 0;; turn++) {
        uint64_t words[BATCH_MAX];
        shmt_slot slot;
        bool single = turn % 3 == 0 || batch == 1;
        int n = single ? shmt_slot_acquire(segment, soon(), &slot)
                       : shmt_slot_acquire_many(segment, batch, soon(), words, &slot);
        if (n == -ESHUTDOWN) {
            break;
        }
        if (n < 0) {
            fail("acquire", n, (int64_t)turn);
        }
        n += single;
        for (int i = 0; i < n; i++) {
            if ((single ? slot.tries : shmt_slot_tries(words[i])) != 0) {
                fail("redelivered, although nobody died", slot.tries, i);
            }
            look_at(slot.data + (uint64_t)i * stride, last);
        }
        int rc;
        if (turn % 5 == 0) { /* as Python's views do it */
            shmt_lease *lease;
            rc = shmt_lease_take(segment, &slot, single ? &slot.word : words, (uint32_t)n, &lease);
            if (rc == 0) {
                shmt_lease_drop(lease);
            }
        } else {
            rc =
                single ? shmt_slot_release(segment, &slot) : shmt_slot_release_many(segment, &slot, words, (uint32_t)n);
        }
        if (rc != 0) {
            fail("release", rc, (int64_t)turn);
        }
        atomic_fetch_add(&mine->done, (uint64_t)n);
    }
    shmt_segment_drop(segment);
}

/* ---- what they cost ------------------------------------------------------------------------------------------------------ */

typedef struct cost {
    long private_kib, descriptors;
} cost;

static cost cost_of(pid_t pid) {
    char path[64], line[256];
    cost c = {0, 0};
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        sscanf(line, "RssAnon: %ld", &c.private_kib);
    }
    if (f) {
        fclose(f);
    }
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    while (dir && readdir(dir)) {
        c.descriptors++;
    }
    if (dir) {
        closedir(dir);
    }
    return c;
}

static uint64_t total_done(const seat *seats) {
    uint64_t sum = 0;
    for (int i = 0; i < MAX; i++) {
        sum += atomic_load(&seats[i].done);
    }
    return sum;
}

static pid_t start(void (*work)(uint64_t), uint64_t who) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work(who);
        _exit(0);
    }
    return pid;
}

static void *zeroed(size_t nbytes) {
    void *at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return at;
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "handoffs TOTAL PIECE PRODUCERS CONSUMERS SLOTS BATCH\n");
        return 2;
    }
    uint64_t total = strtoull(argv[1], NULL, 10), piece = strtoull(argv[2], NULL, 10);
    uint64_t producers = strtoull(argv[3], NULL, 10), consumers = strtoull(argv[4], NULL, 10);
    batch = (uint32_t)strtoul(argv[6], NULL, 10);
    if (producers < 1 || producers > MAX || consumers < 1 || consumers > MAX || batch < 1 || batch > BATCH_MAX) {
        return 2;
    }
    piece_items = (piece + producers - 1) / producers;
    pieces = (total + piece_items * producers - 1) / (piece_items * producers);
    const uint64_t map_words = (piece_items * producers + 63) / 64;
    shared = zeroed(sizeof *shared);
    map = zeroed(map_words * 8);
    shmt_config config = {
        .slot_nbytes = 8 * WORDS,
        .slots = (uint32_t)strtoul(argv[5], NULL, 10),
        .members = 32,
        .flags = SHMT_PREFAULT,
        .producers = (uint32_t)producers,
    };
    int rc = shmt_segment_create(&config, &segment);
    if (rc != 0) {
        fprintf(stderr, "create: %s\n", strerror(-rc));
        return 2;
    }
    pid_t pids[2 * MAX];
    uint64_t n = 0;
    for (uint64_t i = 0; i < consumers; i++) {
        pids[n++] = start(consume, i);
    }
    for (uint64_t i = 0; i < producers; i++) {
        pids[n++] = start(produce, i);
    }
    cost warm[2 * MAX], most = {0, 0};
    int64_t began = shmt_now_ns();
    for (uint64_t p = 1; p <= pieces; p++) {
        const uint64_t expected = p * piece_items * producers;
        atomic_store(&shared->piece, p);
        while (total_done(shared->consumers) < expected) {
            if (atomic_load(&shared->failed)) {
                nap(); /* until the reason stands there */
                printf("FAILED in piece %llu: %s\n", (unsigned long long)p, shared->why);
                return 1;
            }
            nap();
        }
        uint64_t missing = piece_items * producers;
        for (uint64_t w = 0; w < map_words; w++) {
            missing -= (uint64_t)__builtin_popcountll(atomic_exchange(&map[w], 0));
        }
        if (missing != 0 || total_done(shared->consumers) != expected) {
            printf("FAILED in piece %llu: %llu items lost\n", (unsigned long long)p, (unsigned long long)missing);
            return 1;
        }
        for (uint64_t i = 0; i < n; i++) {
            cost now = cost_of(pids[i]);
            if (p <= 1 + pieces / 4) {
                warm[i] = now;
            } else if (p < pieces || i < consumers) { /* a producer has nothing left to do then, and goes */
                long more = now.private_kib - warm[i].private_kib, fds = now.descriptors - warm[i].descriptors;
                most.private_kib = more > most.private_kib ? more : most.private_kib;
                most.descriptors = fds > most.descriptors ? fds : most.descriptors;
            }
        }
        fprintf(stderr, "%llu of %llu\n", (unsigned long long)expected, (unsigned long long)total);
    }
    double seconds = (double)(shmt_now_ns() - began) / 1e9;
    int worst = 0;
    for (uint64_t i = 0; i < n; i++) {
        int status;
        waitpid(pids[i], &status, 0);
        worst |= status;
    }
    uint64_t stalls = 0;
    for (int i = 0; i < MAX; i++) {
        stalls += atomic_load(&shared->producers[i].waits_over_1s);
    }
    shmt_stats stats;
    rc = shmt_stats_get(segment, &stats);
    const long long made = (long long)(pieces * piece_items * producers);
    bool fine = worst == 0 && rc == 0 && stats.free == config.slots && stats.publishes == (uint64_t)made &&
                stats.members == 1 && stats.redelivered == 0 && stats.dropped == 0 && stats.reclaimed == 0;
    printf("{\"items\": %lld, \"pieces\": %lld, \"items/s\": %.0f, ", made, (long long)pieces, (double)made / seconds);
    printf("\"private KiB more\": %ld, \"descriptors more\": %ld, ", most.private_kib, most.descriptors);
    printf("\"stalls\": %lld, \"slots not free\": %lld}\n", (long long)stalls,
           (long long)config.slots - (long long)stats.free);
    return fine ? 0 : 1;
}
