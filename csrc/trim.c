/* trim.c - giving the memory that free slots have grown back to the system.
 *
 * What a process knows to be there of a slot, it learned while it had the slot, and it uses that knowledge only while it has
 * the slot. So whoever takes memory away has the slot too, and first counts in its header that it does so: the next owner,
 * whoever that is, finds another count than when it looked, and looks again (shmt_touchable() in internal.h). The count and the
 * hole are carried by the slot word like anything else that an owner does. Killed after the count, we leave memory
 * that everybody looks for again, and a slot in state WRITING that a reclaimer frees. */
#include "internal.h"

/* One slot that is ours. Returns how many bytes that gave back. */
static int trim(shmt_segment *seg, uint32_t index, uint64_t keep, uint64_t *given) {
    shmt_slot_header *header = &seg->slots[index];
    uint64_t reserved = shmt_load_relaxed(&header->reserved); /* a figure for people, so it may be anything */
    reserved = reserved < seg->geo.slot_stride ? reserved : seg->geo.slot_stride;
    shmt_store_relaxed(&header->trims, shmt_load_relaxed(&header->trims) + 1); /* ours until R2; and before the hole */
    uint64_t offset = seg->geo.data_offset + index * seg->geo.slot_stride;
    int rc = shmt_memory_punch(seg->fd, offset + keep, seg->geo.slot_stride - keep);
    if (rc == 0) {
        *given += reserved > keep ? reserved - keep : 0;
        shmt_store_relaxed(&header->reserved, seg->geo.slot_nbytes); /* a figure for people */
    }
    return rc;
}

int shmt_trim(shmt_segment *seg, uint64_t *out) {
    uint64_t given = 0;
    const uint64_t keep = shmt_round_up(seg->geo.slot_nbytes, SHMT_PAGE);
    int rc = shmt_enter(seg);
    if (rc == 0 && (seg->geo.flags & SHMT_GROW) && keep < seg->geo.slot_stride) {
        for (uint32_t i = 0; i < seg->geo.slots && rc == 0; i++) {
            /* All of them, whatever `reserved` says: whoever died while it reserved has not written down what it got. */
            shmt_slot slot = {.index = i, .generation = shmt_fork_generation};
            if (shmt_slots_claim_at(seg, i, &slot.word)) {
                rc = trim(seg, i, keep, &given);
                (void)shmt_slot_abort(seg, &slot); /* it was never handed out: whoever waits for one is woken */
            }
        }
    }
    if (rc == 0) {
        *out = given;
    }
    return rc;
}
