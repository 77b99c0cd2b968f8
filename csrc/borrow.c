/* borrow.c - parts of a claimed slot, written by others for whoever has claimed it.
 *
 * The owner tells them which slot it is and which word its claim has, through a hand-off of any kind; that carries, to who
 * borrows, what the claim acquired (C2): the last reader's loads precede these writes as they do the owner's own. What was
 * written is carried back likewise. A slot stays its owner's, who neither publishes nor aborts it before each one that was
 * told has answered or is known to be dead: a word that is still the same is no leave to write, a word that is not is a
 * mistake that is found here. */
#include <errno.h>

#include "internal.h"

int shmt_slot_borrow(shmt_segment *seg, uint32_t index, uint64_t word, shmt_slot *out) {
    if (index >= seg->geo.slots || shmt_word_state(word) != SHMT_WRITING ||
        shmt_load_relaxed(&seg->slots[index].word) != word) { /* ours to see since the hand-off */
        return -ESTALE;
    }
    *out = (shmt_slot){
        .data = shmt_payload(seg, index),
        .word = word,
        .nbytes = shmt_touchable(seg, index),
        .index = index,
        .generation = shmt_fork_generation,
    };
    if (SHMT_UNLIKELY(seg->debug)) {
        shmt_debug_open(seg, index, 1);
    }
    return 0;
}

/* What is known to be touchable of a slot begins at its beginning, so that nothing is remembered of parts: who writes the same
 * one again asks the kernel again, which takes a microsecond per megabyte. Pages come through faults, not through pwrite(),
 * which need not clear them (6.6 ms for 16 MB, and not 10.4), but would keep all other writers of the segment waiting. */
int shmt_slot_reserve_part(shmt_segment *seg, const shmt_slot *slot, uint64_t offset, uint64_t nbytes) {
    const uint64_t stride = seg->geo.slot_stride;
    if (slot->generation != shmt_fork_generation) {
        return -ESTALE;
    }
    if (offset > stride || nbytes > stride - offset) {
        return -EMSGSIZE;
    }
    if (nbytes == 0 || offset + nbytes <= shmt_touchable(seg, slot->index)) {
        return 0;
    }
    const uint64_t at = seg->geo.data_offset + slot->index * stride;
    const uint64_t from = offset - offset % SHMT_PAGE;
    uint64_t until = shmt_round_up(offset + nbytes, SHMT_PAGE);
    until = until < stride ? until : stride;
    if (shmt_memory_present(seg->fd, at, from, until) == 0) {
        return shmt_memory_populate_present(slot->data + from, until - from);
    }
    int rc = shmt_memory_reserve(seg->fd, at + from, until - from);
    return rc == 0 ? shmt_memory_populate(slot->data + from, until - from) : rc;
}

void shmt_slot_give_back(const shmt_segment *seg, const shmt_slot *slot) {
    if (SHMT_UNLIKELY(seg->debug)) {
        shmt_debug_shut(seg, slot->index, 1);
    }
}
