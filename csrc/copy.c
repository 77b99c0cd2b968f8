/* copy.c - moving payload: straight, past the caches when it is large, or gathered from strides. No state, no segment. */
#include <string.h>

#include "shmt.h"

#if defined(__x86_64__)
#include <emmintrin.h>

/* Above this the copy would only push everything else out of the caches on its way to memory. Measured at 77 MB: 120-131
 * against 79-89 items/s; at 602 KB the reader finds it in the cache otherwise, and non-temporal stores lose 25 to 45 %. */
#define STREAM_FROM ((size_t)16 << 20)

static void copy_streaming(uint8_t *to, const uint8_t *from, size_t nbytes) {
    size_t head = (64 - (uintptr_t)to % 64) % 64;
    memcpy(to, from, head);
    to += head;
    from += head;
    nbytes -= head;
    for (; nbytes >= 64; nbytes -= 64, to += 64, from += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)from);
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(from + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(from + 48));
        _mm_stream_si128((__m128i *)(void *)to, a);
        _mm_stream_si128((__m128i *)(void *)(to + 16), b);
        _mm_stream_si128((__m128i *)(void *)(to + 32), c);
        _mm_stream_si128((__m128i *)(void *)(to + 48), d);
    }
    _mm_sfence(); /* streaming stores are not ordered by a later release: this makes them ordinary again */
    memcpy(to, from, nbytes);
}
#endif

void shmt_copy(void *to, const void *from, size_t nbytes) {
#if defined(__x86_64__)
    if (nbytes >= STREAM_FROM) {
        copy_streaming(to, from, nbytes);
        return;
    }
#endif
    if (nbytes > 0) { /* memcpy of nothing may still not be given NULL */
        memcpy(to, from, nbytes);
    }
}

#define DIMS_MAX 64

/* One row of equal steps; the small sizes are spelled out so that each becomes a load and a store. */
static void copy_row(uint8_t *to, const uint8_t *from, int64_t count, int64_t stride, size_t itemsize) {
    for (int64_t i = 0; i < count; i++, to += itemsize, from += stride) {
        switch (itemsize) {
        case 1:
            *to = *from;
            break;
        case 2:
            memcpy(to, from, 2);
            break;
        case 4:
            memcpy(to, from, 4);
            break;
        case 8:
            memcpy(to, from, 8);
            break;
        case 16:
            memcpy(to, from, 16);
            break;
        default:
            memcpy(to, from, itemsize);
        }
    }
}

void shmt_copy_strided(void *to, const void *from, int ndim, const int64_t *shape, const int64_t *strides,
                       size_t itemsize) {
    uint8_t *out = to;
    const uint8_t *in = from;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] == 0) {
            return;
        }
    }
    /* Trailing dimensions that already lie in C order are one block. */
    size_t block = itemsize;
    while (ndim > 0 && (shape[ndim - 1] == 1 || strides[ndim - 1] == (int64_t)block)) {
        block *= (size_t)shape[ndim - 1];
        ndim--;
    }
    if (ndim == 0) {
        shmt_copy(out, in, block);
        return;
    }
    if (ndim > DIMS_MAX) {
        return; /* callers check; numpy and DLPack allow 64 at most */
    }
    int64_t at[DIMS_MAX] = {0};
    const int64_t row = shape[ndim - 1], step = strides[ndim - 1];
    for (;;) {
        copy_row(out, in, row, step, block);
        out += (size_t)row * block;
        int d = ndim - 2;
        for (; d >= 0; d--) {
            in += strides[d];
            if (++at[d] < shape[d]) {
                break;
            }
            in -= strides[d] * shape[d];
            at[d] = 0;
        }
        if (d < 0) {
            return;
        }
    }
}
