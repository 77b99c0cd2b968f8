/* slots.c - the slot word: one 64-bit compare-and-swap per step, and nothing else decides who owns a slot.
 *
 *     FREE --claim--> WRITING --publish--> READY --acquire--> READING --release--> FREE
 *                     WRITING --abort----> FREE
 *
 * Edges (letters as in docs/protocol.md):
 *     P2  publish, release             -> A2  acquire, acquire:   payload and item fields
 *     R2  release/abort, seq_cst       -> C2  claim, acquire:     the last reader's loads precede the next writer's stores
 *     C3  claim, seq_cst               <-> N3 end of stream:      either the claimer sees `shut` or the consumer sees WRITING
 */
#include <errno.h>

#include "internal.h"

void shmt_slots_prefer_few(shmt_segment *seg, bool few) {
    shmt_store_relaxed(&seg->few_hot_slots, few ? 1 : 0); /* a hint of this process */
}

/* Moves a slot to the front of those that this process wrote lately; `from`: where it stood, or the last place. Threads may
 * race: they forget one, or know it twice. */
static void remember_warm(shmt_segment *seg, uint32_t index, int from) {
    for (int k = from; k > 0; k--) {
        shmt_store_relaxed(&seg->warm[k], shmt_load_relaxed(&seg->warm[k - 1])); /* a hint of this process */
    }
    shmt_store_relaxed(&seg->warm[0], index + 1); /* likewise */
}

/* Claims a slot that this process wrote lately: its caches know that memory, and no other core's do. Two workers that fill
 * 4.8 MB each, by turns with a third process on two cores: 1,430 against 2,110 batches/s. */
static bool claim_warm(shmt_segment *seg, uint64_t *word, uint32_t *index) {
    for (int k = 0; k < SHMT_WARM; k++) {
        uint32_t found = shmt_load_relaxed(&seg->warm[k]); /* a hint of this process */
        if (found != 0 && shmt_slots_claim_at(seg, found - 1, word)) {
            *index = found - 1;
            remember_warm(seg, *index, k);
            return true;
        }
    }
    return false;
}

/* Claims up to n consecutive FREE slots, looking at no more than `probes` words from this member's own cursor on. Private
 * cursors keep producers off each other's lines; a shared free list made the stream four times slower. */
int shmt_slots_claim(shmt_segment *seg, uint32_t probes, uint32_t n, uint64_t *words, uint32_t *first) {
    const uint32_t slots = seg->geo.slots, me = shmt_me(seg);
    bool few = shmt_load_relaxed(&seg->few_hot_slots) != 0;  /* a hint of this process */
    uint32_t at = few ? 0 : shmt_load_relaxed(&seg->cursor); /* likewise */
    at = at < slots ? at : 0;
    if (few && n == 1 && claim_warm(seg, words, first)) {
        return 1;
    }
    uint32_t got = 0;
    for (uint32_t k = 0; k < probes && got < n; k++) {
        /* C1 seq_cst: pairs with the release's R2 through the free event. On the second try before sleeping it must not
         * be ordered before the waiter's own fetch_or of W (E1). */
        uint64_t word = shmt_load_seq_cst(&seg->slots[at].word);
        if (shmt_word_state(word) == SHMT_FREE) {
            uint64_t mine = shmt_word(SHMT_WRITING, me, shmt_word_gen(word) + 1);
            /* C2/C3 seq_cst: acquires from R2, so that the last reader is done before we write; and is ordered before
             * our look at `shut` (C3). */
            if (shmt_cas_seq_cst(&seg->slots[at].word, &word, mine)) {
                if (got == 0) {
                    *first = at;
                }
                words[got++] = mine;
                if (++at == slots) {
                    at = 0;
                    break; /* a run never wraps: one view must cover it */
                }
                continue;
            }
        }
        if (got > 0) {
            break;
        }
        if (++at == slots) {
            at = 0;
        }
    }
    if (got > 0) {
        if (few && n == 1) {
            remember_warm(seg, *first, SHMT_WARM - 1);
        }
        shmt_store_relaxed(&seg->cursor, at); /* a hint; a race between threads costs a probe */
    }
    return (int)got;
}

bool shmt_slots_claim_at(shmt_segment *seg, uint32_t index, uint64_t *out) {
    uint64_t word = shmt_load_seq_cst(&seg->slots[index].word); /* C1: as above, though nobody sleeps over it */
    uint64_t mine = shmt_word(SHMT_WRITING, shmt_me(seg), shmt_word_gen(word) + 1);
    /* C2 seq_cst: acquires from R2, as above. */
    if (shmt_word_state(word) != SHMT_FREE || !shmt_cas_seq_cst(&seg->slots[index].word, &word, mine)) {
        return false;
    }
    *out = mine;
    return true;
}

/* Any step by the slot's owner: -ESTALE if the slot is not ours any more. */
int shmt_slots_change(shmt_segment *seg, uint32_t index, uint64_t from, uint64_t to) {
    /* P2 publish: release half; pairs with A2. Carries: payload bytes and item fields. Without it a consumer may read a
     * torn tensor.
     * R2 release, abort: seq_cst; pairs with C2, carries the reader's last loads; and precedes, in the one order of
     * seq_cst operations, our look at the free event (E2), or a claimer that goes to sleep now would not be woken. */
    return shmt_cas_seq_cst(&seg->slots[index].word, &from, to) ? 0 : -ESTALE;
}

/* The word of an item that waits changes twice at most: a reclaimer takes its owner away, and somebody takes it. */
#define TAKE_TURNS_MAX 64

/* READY -> READING, if the slot still holds the item that the cell spoke of. 1: taken, 0: the cell is stale. */
int shmt_slots_take(shmt_segment *seg, uint32_t index, uint64_t cell_gen, uint64_t *out) {
    shmt_atomic64 *word = &seg->slots[index].word;
    /* A1 acquire: a first look; the compare-and-swap decides. */
    uint64_t seen = shmt_load_acquire(word);
    for (int turn = 0; shmt_word_is_ready(seen) && (shmt_word_gen(seen) & SHMT_CELL_GEN_MASK) == cell_gen; turn++) {
        if (turn == TAKE_TURNS_MAX) {
            return -EUCLEAN;
        }
        uint64_t mine = shmt_word(SHMT_READING | shmt_word_tries(seen), shmt_me(seg), shmt_word_gen(seen));
        /* A2 acq_rel: acquires from P2 (payload and item fields); releases nothing but the word. Fails only if somebody
         * took the item or a reclaimer changed its owner. */
        if (shmt_cas_acq_rel(word, &seen, mine)) {
            *out = mine;
            return 1;
        }
    }
    return 0;
}

/* Does the slot still hold the item that the cell spoke of? */
bool shmt_slots_is_there(const shmt_segment *seg, uint32_t index, uint64_t cell_gen) {
    uint64_t found = shmt_load_acquire(&seg->slots[index].word); /* A1 acquire: a look, and nothing is taken */
    return shmt_word_is_ready(found) && (shmt_word_gen(found) & SHMT_CELL_GEN_MASK) == cell_gen;
}

/* Is anything still being written or waiting to be read? */
bool shmt_slots_any_unread(shmt_segment *seg) {
    for (uint32_t i = 0; i < seg->geo.slots; i++) {
        /* N3 seq_cst: pairs with C3 in the claim. */
        uint64_t word = shmt_load_seq_cst(&seg->slots[i].word);
        if (shmt_word_state(word) == SHMT_WRITING || shmt_word_is_ready(word)) {
            return true;
        }
    }
    return false;
}

/* How many slots hold an item that waits, and how many are free: figures, old when they are returned. No system call. */
void shmt_slots_count(const shmt_segment *seg, uint32_t *ready, uint32_t *free_) {
    uint32_t waiting = 0, idle = 0;
    for (uint32_t i = 0; i < seg->geo.slots; i++) {
        uint64_t word = shmt_load_relaxed(&seg->slots[i].word); /* a figure */
        waiting += shmt_word_is_ready(word) ? 1 : 0;
        idle += shmt_word_state(word) == SHMT_FREE ? 1 : 0;
    }
    *ready = waiting;
    *free_ = idle;
}

/* How many slots somebody is reading: a figure to decide by, and old when it is returned. */
uint32_t shmt_slots_reading(const shmt_segment *seg) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < seg->geo.slots; i++) {
        n += shmt_word_is_reading(shmt_load_relaxed(&seg->slots[i].word)) ? 1 : 0; /* a figure */
    }
    return n;
}

/* Is there nothing that a holder could give back? What one who has closed still looks at is nothing to wait for. */
bool shmt_slots_all_ready(shmt_segment *seg) {
    for (uint32_t i = 0; i < seg->geo.slots; i++) {
        uint64_t word = shmt_load_seq_cst(&seg->slots[i].word); /* N4: after the roles were read */
        uint32_t owner = shmt_word_owner(word);
        bool kept = shmt_word_is_reading(word) && owner <= seg->geo.members &&
                    shmt_load_relaxed(&seg->records[owner].roles) == SHMT_LEFT; /* final until the member is gone */
        if (!kept && !shmt_word_is_ready(word)) {
            return false;
        }
    }
    return true;
}

uint32_t shmt_slot_tries(uint64_t word) { return shmt_word_is_reading(word) ? shmt_word_tries(word) : 0; }

int shmt_slot_info_get(shmt_segment *seg, uint32_t index, shmt_slot_info *out) {
    if (index >= seg->geo.slots) {
        return -EINVAL;
    }
    uint64_t word = shmt_load_relaxed(&seg->slots[index].word); /* diagnosis: a moment's picture */
    uint32_t state = shmt_word_state(word);
    *out = (shmt_slot_info){
        .state = shmt_word_is_reading(word) ? 3
                 : shmt_word_is_ready(word) ? 2
                                            : state == SHMT_WRITING,
        .owner = shmt_word_owner(word),
        .gen = shmt_word_gen(word),
    };
    return 0;
}
