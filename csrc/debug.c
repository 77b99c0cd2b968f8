/* debug.c - SHMTENSOR_DEBUG=1: a slot that is not ours cannot be touched, what was in it is gone, and each verb looks whether
 * the segment still makes sense. Slow, and never in the way of the rules of the other rooms: every step here is one that a
 * process may die after.
 *
 *     claim, acquire             the slot's pages may be touched in this process
 *     publish, release, abort    before the compare-and-swap that gives the slot away they may not be: SIGSEGV at once
 *     release, abort             before that, the payload is filled with 0xdb
 *
 * Pages can be closed where slots begin on pages, so a segment that is created in debug mode is laid out like that. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

#define POISON 0xdb

static bool can_guard(const shmt_segment *seg) { return seg->geo.slots > 0 && seg->geo.slot_stride % SHMT_PAGE == 0; }

/* Fails only where the kernel is out of mappings (vm.max_map_count): then a slot stays as it was. */
static void protect(const shmt_segment *seg, uint32_t index, uint32_t n, int how) {
    if (can_guard(seg)) {
        (void)mprotect(shmt_payload(seg, index), n * seg->geo.slot_stride, how);
    }
}

void shmt_debug_begin(shmt_segment *seg) { protect(seg, 0, seg->geo.slots, PROT_NONE); }

void shmt_debug_open(const shmt_segment *seg, uint32_t index, uint32_t n) {
    protect(seg, index, n, PROT_READ | PROT_WRITE);
}

void shmt_debug_shut(const shmt_segment *seg, uint32_t index, uint32_t n) { protect(seg, index, n, PROT_NONE); }

/* The last holder of an item: first the slot becomes one that is being written, so that whoever reclaims it after our death
 * frees it instead of handing poison out as an item. Returns the word that the slot has then. */
uint64_t shmt_debug_poison(shmt_segment *seg, uint32_t index, uint64_t word) {
    uint64_t writing = shmt_word(SHMT_WRITING, shmt_word_owner(word), shmt_word_gen(word));
    if (word != writing && shmt_slots_change(seg, index, word, writing) != 0) {
        return word; /* lost: not ours to touch */
    }
    if (word == writing && shmt_load_relaxed(&seg->slots[index].word) != word) { /* ours, or lost for good */
        return word;
    }
    shmt_debug_open(seg, index, 1); /* it is, unless the word was lost and came back: then the other holder closed it */
    memset(shmt_payload(seg, index), POISON, shmt_touchable(seg, index));
    shmt_debug_shut(seg, index, 1);
    return writing;
}

/* ---- does it make sense? ------------------------------------------------------------------------------------------- */

static const char *wrong_word(const shmt_segment *seg, uint64_t word) {
    uint32_t state = shmt_word_state(word), owner = shmt_word_owner(word);
    if (owner > seg->geo.members) {
        return "a slot's owner is no member";
    }
    if (state == SHMT_FREE) {
        return owner == 0 ? NULL : "a free slot has an owner";
    }
    if (state == SHMT_WRITING || shmt_word_is_reading(word)) {
        return owner != 0 ? NULL : "a slot is held by nobody";
    }
    return shmt_word_is_ready(word) ? NULL : "a slot is in no known state";
}

static const char *wrong(shmt_segment *seg) {
    shmt_header *header = seg->header;
    if (shmt_load_relaxed(&header->magic) != SHMT_MAGIC ||            /* constant while the segment lives */
        memcmp(&header->geometry, &seg->geo, sizeof seg->geo) != 0) { /* plain: likewise */
        return "the header was overwritten";
    }
    for (uint32_t i = 0; i < seg->geo.slots; i++) {
        const char *why = wrong_word(seg, shmt_load_relaxed(&seg->slots[i].word)); /* each word alone must make sense */
        if (why) {
            return why;
        }
    }
    uint64_t r = shmt_load_seq_cst(&header->read_seq);  /* O3 */
    uint64_t w = shmt_load_seq_cst(&header->write_seq); /* O2 */
    int64_t length = (int64_t)(w - r);
    bool far = length < -(int64_t)seg->geo.ring || length > (int64_t)seg->geo.ring;
    if (far && shmt_load_seq_cst(&header->read_seq) == r) { /* O3: else they moved while we looked, or were stopped */
        return "write_seq and read_seq are further apart than the ring is long";
    }
    for (uint64_t k = 0; k < seg->geo.ring; k++) {
        uint64_t cell = shmt_load_relaxed(&seg->cells[k]); /* each cell alone must make sense */
        if (shmt_cell_index(cell) >= seg->geo.slots) {
            return "a ring cell names a slot that does not exist";
        }
    }
    return NULL;
}

int shmt_debug_check(shmt_segment *seg) {
    seg->debug_reason = wrong(seg); /* a constant string; for people */
    return seg->debug_reason ? -EUCLEAN : 0;
}

const char *shmt_debug_reason(const shmt_segment *seg) { return seg->debug_reason; }
