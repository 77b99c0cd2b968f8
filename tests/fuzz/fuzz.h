/* fuzz.h - what the two fuzz targets share: an input read byte by byte, what a verb may answer, touching what it gave.
 *
 * A target is LLVMFuzzerTestOneInput() and fuzz_seed(). libFuzzer drives it, or standalone.c where there is none. What
 * must not happen ends the process: a sanitizer's report, a touch of the pages around a mapping (guard.c), FAIL(). */
#ifndef FUZZ_H
#define FUZZ_H

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
int LLVMFuzzerInitialize(int *argc, char ***argv);
/* Seed number `number` into `out`, which has room for FUZZ_MAX bytes; returns its length, 0: there are no more. */
size_t fuzz_seed(unsigned number, uint8_t *out);
#define FUZZ_MAX 512

#define FAIL(...)                                                                                                      \
    do {                                                                                                               \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fputc('\n', stderr);                                                                                           \
        abort();                                                                                                       \
    } while (0)
#define MUST(condition) ((condition) ? (void)0 : fuzz_fail(__FILE__, __LINE__, #condition))

static inline void fuzz_fail(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
    abort();
}

/* ---- the input: once it has ended, zeros ------------------------------------------------------------------------- */

typedef struct input {
    const uint8_t *at, *end;
} input;

static inline uint64_t take_bytes(input *in, size_t n) {
    uint64_t value = 0;
    for (size_t i = 0; i < n && in->at < in->end; i++) {
        value |= (uint64_t)*in->at++ << 8 * i;
    }
    return value;
}
static inline uint32_t take8(input *in) { return (uint32_t)take_bytes(in, 1); }
static inline uint32_t take16(input *in) { return (uint32_t)take_bytes(in, 2); }
static inline uint64_t take64(input *in) { return take_bytes(in, 8); }

/* ---- answers ----------------------------------------------------------------------------------------------------- */

/* 0 or a count up to `most`, or an error that any verb may meet, or one of those that this one may. */
static inline void lawful(const char *verb, int rc, int most, int also, int also2) {
    if (rc >= 0 && rc <= most) {
        return;
    }
    switch (-rc) {
    case EUCLEAN:
    case ENOMEM:
    case EINTR: /* libFuzzer's own clock */
    case EOWNERDEAD:
        return;
    default:
        if (rc >= 0 || (-rc != also && -rc != also2)) {
            FAIL("%s answered %d (%s)", verb, rc, rc < 0 && rc > -200 ? strerror(-rc) : "no errno");
        }
    }
}

/* Each byte is read; what they are is of no interest. */
static volatile uint8_t fuzz_sink;
static inline void read_all(const uint8_t *data, uint64_t nbytes) {
    uint8_t sum = 0;
    for (uint64_t i = 0; i < nbytes; i++) {
        sum = (uint8_t)(sum + data[i]);
    }
    fuzz_sink = sum;
}

/* What the caller was given lies in one slot, and in the payload. */
static inline void check_slot(const shmt_segment *seg, const shmt_slot *slot, uint32_t n) {
    MUST(n >= 1 && slot->index < seg->geo.slots && n <= seg->geo.slots - slot->index);
    MUST(slot->data == seg->data + slot->index * seg->geo.slot_stride);
    MUST(slot->nbytes <= seg->geo.slot_stride);
}

/* ---- time: no input may cost more than a second of work; how long a wait sleeps is its caller's affair ----------- */

static inline int64_t cpu_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline void check_time(int64_t begin) {
    int64_t took = cpu_now() - begin;
    if (took > 1000000000) {
        FAIL("one input took %.3f s", (double)took / 1e9);
    }
}

#endif
