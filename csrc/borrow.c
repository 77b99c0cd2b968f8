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

static uint64_t file_offset(const shmt_segment *seg, const shmt_slot *slot) {
    return seg->geo.data_offset + slot->index * seg->geo.slot_stride;
}

/* The pages of a part. 1: it may be touched; 0: they are not there yet, or nobody has touched them; -errno. What is known to
 * be touchable of a slot begins at its beginning, so that nothing is remembered of parts: who writes the same one again asks
 * the kernel again, which takes a microsecond per megabyte. */
static int look_at_part(shmt_segment *seg, const shmt_slot *slot, uint64_t offset, uint64_t nbytes, uint64_t *from,
                        uint64_t *until) {
    const uint64_t stride = seg->geo.slot_stride;
    if (slot->generation != shmt_fork_generation) {
        return -ESTALE;
    }
    if (offset > stride || nbytes > stride - offset) {
        return -EMSGSIZE;
    }
    if (nbytes == 0 || offset + nbytes <= shmt_touchable(seg, slot->index)) {
        return 1;
    }
    const uint64_t end = shmt_round_up(offset + nbytes, SHMT_PAGE);
    *from = offset - offset % SHMT_PAGE;
    *until = end < stride ? end : stride;
    if (shmt_memory_present(seg->fd, file_offset(seg, slot), *from, *until) != 0) {
        return 0;
    }
    int rc = shmt_memory_populate_present(slot->data + *from, *until - *from);
    return rc < 0 ? rc : 1;
}

int shmt_slot_reserve_part(shmt_segment *seg, const shmt_slot *slot, uint64_t offset, uint64_t nbytes) {
    uint64_t from, until;
    int rc = look_at_part(seg, slot, offset, nbytes, &from, &until);
    if (rc == 0) {
        rc = shmt_memory_reserve(seg->fd, file_offset(seg, slot) + from, until - from);
        rc = rc < 0 ? rc : shmt_memory_populate(slot->data + from, until - from);
    }
    return rc < 0 ? rc : 0;
}

int shmt_slot_write_part(shmt_segment *seg, const shmt_slot *slot, uint64_t offset, const void *data, uint64_t nbytes) {
    uint64_t from, until;
    int rc = look_at_part(seg, slot, offset, nbytes, &from, &until);
    if (rc > 0) {
        shmt_copy(slot->data + offset, data, nbytes);
    } else if (rc == 0) {
        rc = shmt_memory_reserve(seg->fd, file_offset(seg, slot) + from, until - from);
        rc = rc < 0 ? rc : shmt_memory_write(seg->fd, file_offset(seg, slot) + offset, data, nbytes);
    }
    return rc < 0 ? rc : 0;
}

void shmt_slot_give_back(const shmt_segment *seg, const shmt_slot *slot) {
    if (SHMT_UNLIKELY(seg->debug)) {
        shmt_debug_shut(seg, slot->index, 1);
    }
}
