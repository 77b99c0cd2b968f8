/* limit.c - what two processes can reach with nothing between them but memory: the yardstick of the benchmarks.
 *
 *   limit stream NBYTES SLOTS ITEMS COPY CPU_P CPU_C   seconds for ITEMS items; COPY: memcpy or nt (non-temporal stores)
 *   limit spin ROUNDS CPU_P CPU_C                      seconds for one hand-off, one way, both sides spinning
 *   limit futex ROUNDS GAP_US CPU_P CPU_C              seconds from store to awake, median of ROUNDS, the waiter asleep
 *
 * A ring of SLOTS (2: a double buffer) with a sequence number on each side; no owner, no generation, no leases: a process
 * that dies takes its slots with it. The producer copies a warm private source into the slot, the consumer reads the slot
 * in full. CPU -1: not pinned. One number on standard output. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#define pause_cpu() _mm_pause()
#else
#define pause_cpu() ((void)0)
#endif

#include "read.h"

typedef struct shared {
    _Alignas(128) _Atomic uint64_t write_seq;
    _Alignas(128) _Atomic uint64_t read_seq;
    _Alignas(128) _Atomic uint32_t word; /* futex */
    _Atomic int64_t stamp;
    _Alignas(4096) uint8_t slots[];
} shared;

static volatile uint64_t sink;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void pin(int cpu) {
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        (void)sched_setaffinity(0, sizeof set, &set);
    }
}

static void *map(size_t nbytes, int flags) {
    void *at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) {
        perror("limit: mmap");
        exit(1);
    }
    return at;
}

static int forked(void) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        perror("limit: fork");
        exit(1);
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    return pid == 0;
}

static void copy_nt(uint8_t *to, const uint8_t *from, size_t nbytes) {
#if defined(__x86_64__)
    for (; nbytes >= 64; nbytes -= 64, to += 64, from += 64) { /* slots are page-aligned */
        for (int i = 0; i < 4; i++) {
            _mm_stream_si128((__m128i *)(void *)to + i, _mm_loadu_si128((const __m128i *)(const void *)from + i));
        }
    }
    _mm_sfence();
#endif
    memcpy(to, from, nbytes);
}

/* A waiter that gets nowhere lets others have the core now and then: this machine may be shared. */
static uint64_t await(_Atomic uint64_t *seq, uint64_t than) {
    uint64_t seen;
    for (uint32_t turn = 1; (seen = atomic_load_explicit(seq, memory_order_acquire)) < than; turn++) {
        pause_cpu();
        if (turn % 16384 == 0) {
            sched_yield();
        }
    }
    return seen;
}

static double stream(size_t nbytes, uint64_t slots, uint64_t items, int nt, int cpu_p, int cpu_c) {
    const size_t stride = nbytes <= 64 ? 64 : (nbytes + 4095) / 4096 * 4096;
    shared *s = map(sizeof *s + stride * slots, MAP_SHARED);
    const uint64_t warm = items / 10 + 2 * slots, all = warm + items;
    if (forked()) {
        pin(cpu_p);
        memset(s->slots, 0, stride * slots); /* maps the pages here */
        uint8_t *source = map(nbytes, MAP_PRIVATE);
        memset(source, 1, nbytes);
        for (uint64_t i = 0, read = 0; i < all; i++) {
            if (i - read >= slots) {
                read = await(&s->read_seq, i - slots + 1);
            }
            uint8_t *slot = s->slots + i % slots * stride;
            if (nt) {
                copy_nt(slot, source, nbytes);
            } else {
                memcpy(slot, source, nbytes);
            }
            atomic_store_explicit(&s->write_seq, i + 1, memory_order_release);
        }
        _exit(0);
    }
    pin(cpu_c);
    int64_t begin = 0;
    for (uint64_t i = 0, written = 0; i < all; i++) {
        if (i == warm) {
            begin = now_ns();
        }
        if (written <= i) {
            written = await(&s->write_seq, i + 1);
        }
        sink = read_all(s->slots + i % slots * stride, nbytes);
        atomic_store_explicit(&s->read_seq, i + 1, memory_order_release);
    }
    return (double)(now_ns() - begin) * 1e-9;
}

static double spin(uint64_t rounds, int cpu_p, int cpu_c) {
    shared *s = map(sizeof *s, MAP_SHARED);
    const uint64_t warm = rounds / 10, all = warm + rounds;
    if (forked()) {
        pin(cpu_p);
        for (uint64_t i = 1; i <= all; i++) {
            await(&s->write_seq, i);
            atomic_store_explicit(&s->read_seq, i, memory_order_release);
        }
        _exit(0);
    }
    pin(cpu_c);
    int64_t begin = 0;
    for (uint64_t i = 1; i <= all; i++) {
        if (i == warm + 1) {
            begin = now_ns();
        }
        atomic_store_explicit(&s->write_seq, i, memory_order_release);
        await(&s->read_seq, i);
    }
    return (double)(now_ns() - begin) * 1e-9 / (double)rounds / 2;
}

static int by_value(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double futex(uint64_t rounds, int64_t gap_us, int cpu_p, int cpu_c) {
    shared *s = map(sizeof *s, MAP_SHARED);
    if (forked()) {
        pin(cpu_p);
        for (uint64_t i = 0; i < rounds; i++) {
            await(&s->read_seq, i); /* the consumer is about to sleep */
            int64_t until = now_ns() + gap_us * 1000;
            while (now_ns() < until) {
                pause_cpu();
            }
            atomic_store(&s->stamp, now_ns());
            atomic_store(&s->word, (uint32_t)i + 1);
            syscall(SYS_futex, &s->word, FUTEX_WAKE, 1, NULL, NULL, 0);
        }
        _exit(0);
    }
    pin(cpu_c);
    int64_t *took = map(rounds * sizeof *took, MAP_PRIVATE);
    for (uint64_t i = 0; i < rounds; i++) {
        while (atomic_load(&s->word) != (uint32_t)i + 1) {
            syscall(SYS_futex, &s->word, FUTEX_WAIT, (uint32_t)i, NULL, NULL, 0);
        }
        took[i] = now_ns() - atomic_load(&s->stamp);
        atomic_store_explicit(&s->read_seq, i + 1, memory_order_release);
    }
    qsort(took, rounds, sizeof *took, by_value);
    return (double)took[rounds / 2] * 1e-9;
}

int main(int argc, char **argv) {
    double result;
    if (argc == 8 && strcmp(argv[1], "stream") == 0) {
        result = stream(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10),
                        strcmp(argv[5], "nt") == 0, atoi(argv[6]), atoi(argv[7]));
    } else if (argc == 5 && strcmp(argv[1], "spin") == 0) {
        result = spin(strtoull(argv[2], NULL, 10), atoi(argv[3]), atoi(argv[4]));
    } else if (argc == 6 && strcmp(argv[1], "futex") == 0) {
        result = futex(strtoull(argv[2], NULL, 10), atoll(argv[3]), atoi(argv[4]), atoi(argv[5]));
    } else {
        fprintf(stderr, "see the comment at the top of limit.c\n");
        return 2;
    }
    while (wait(NULL) > 0) {
    }
    printf("%.12g\n", result);
    return 0;
}
