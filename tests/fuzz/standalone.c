/* standalone.c - drives a target where there is no libFuzzer: the same mutations for the same seed, without coverage.
 *
 *   TARGET [--runs=N] [--seed=S] [--last=FILE]    N mutated inputs; FILE holds the one that ran last, whatever ended it
 *   TARGET --seeds=DIR                            writes the seeds there, for libFuzzer
 *   TARGET FILE ...                               runs these inputs */
#include "fuzz.h"

#define POOL 512

typedef struct sample {
    size_t n;
    uint8_t bytes[FUZZ_MAX];
} sample;

static sample pool[POOL];
static unsigned seeds, pooled;
static uint64_t state;

static uint64_t xorshift(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}
static size_t below(size_t n) { return n ? (size_t)(xorshift() % n) : 0; }

static const uint8_t interesting[] = {0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 129, 192, 254, 255};

static void mutate(sample *s) {
    size_t at = below(s->n), length = 1 + below(8);
    const sample *other = &pool[below(pooled)];
    switch (below(7)) {
    case 0:
        s->bytes[at] ^= (uint8_t)(1u << below(8));
        break;
    case 1:
        s->bytes[at] = interesting[below(sizeof interesting)];
        break;
    case 2:
        s->bytes[at] = (uint8_t)xorshift();
        break;
    case 3: /* insert */
        length = s->n + length > FUZZ_MAX ? FUZZ_MAX - s->n : length;
        memmove(s->bytes + at + length, s->bytes + at, s->n - at);
        for (size_t i = 0; i < length; i++) {
            s->bytes[at + i] = (uint8_t)xorshift();
        }
        s->n += length;
        break;
    case 4: /* delete */
        length = length > s->n - at ? s->n - at : length;
        memmove(s->bytes + at, s->bytes + at + length, s->n - at - length);
        s->n -= length;
        break;
    default: { /* a piece of another one */
        size_t from = below(other->n);
        length = 1 + below(other->n - from);
        length = length > FUZZ_MAX - at ? FUZZ_MAX - at : length;
        memcpy(s->bytes + at, other->bytes + from, length);
        s->n = at + length > s->n ? at + length : s->n;
    }
    }
    s->n += s->n == 0;
}

static int run_file(const char *path) {
    static uint8_t bytes[1 << 20];
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return 1;
    }
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    LLVMFuzzerTestOneInput(bytes, n);
    printf("%s: %zu bytes\n", path, n);
    return 0;
}

int main(int argc, char **argv) {
    uint64_t runs = 10000, seed = 1;
    const char *last = NULL;
    int files = 0;
    LLVMFuzzerInitialize(&argc, &argv);
    while (seeds < POOL / 2 && (pool[seeds].n = fuzz_seed(seeds, pool[seeds].bytes)) > 0) {
        seeds++;
    }
    pooled = seeds;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--runs=", 7) == 0) {
            runs = strtoull(argv[i] + 7, NULL, 10);
        } else if (strncmp(argv[i], "--seed=", 7) == 0) {
            seed = strtoull(argv[i] + 7, NULL, 10);
        } else if (strncmp(argv[i], "--last=", 7) == 0) {
            last = argv[i] + 7;
        } else if (files++, run_file(argv[i]) != 0) {
            return 1;
        }
    }
    if (files) {
        return 0;
    }
    sample scratch, *now = &scratch;
    int fd = last ? open(last, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    if (fd >= 0 && ftruncate(fd, sizeof *now) == 0) { /* shared: what was written is in the file, however we end */
        now = mmap(NULL, sizeof *now, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (now == MAP_FAILED || (last && fd < 0)) {
        perror(last);
        return 1;
    }
    state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
    for (uint64_t run = 0; run < runs; run++) {
        if (run < seeds) {
            *now = pool[run];
        } else {
            *now = pool[below(pooled)];
            for (size_t k = 1 + below(8); k > 0; k--) {
                mutate(now);
            }
        }
        alarm(10); /* a hang */
        LLVMFuzzerTestOneInput(now->bytes, now->n);
        if (below(16) == 0) { /* no coverage to go by: some go on, any but the seeds make room */
            pool[pooled < POOL ? pooled++ : seeds + below(POOL - seeds)] = *now;
        }
    }
    printf("Done %llu runs of seed %llu\n", (unsigned long long)runs, (unsigned long long)seed);
    return 0;
}
