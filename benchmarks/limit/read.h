/* read.h - a full read of memory: every byte is loaded once, at the speed of the widest loads there are. */
#ifndef LIMIT_READ_H
#define LIMIT_READ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t read_all(const void *memory, size_t nbytes) {
    const uint8_t *at = memory;
    uint64_t lanes[32] = {0};
    for (; nbytes >= sizeof lanes; nbytes -= sizeof lanes, at += sizeof lanes) {
        uint64_t words[32];
        memcpy(words, at, sizeof words);
        for (int i = 0; i < 32; i++) {
            lanes[i] ^= words[i];
        }
    }
    uint64_t sum = 0;
    for (int i = 0; i < 32; i++) {
        sum ^= lanes[i];
    }
    for (; nbytes > 0; nbytes--, at++) {
        sum ^= *at;
    }
    return sum;
}

#endif
