/* lease.c - a slot that is held, with a count of those who still look at it; the last one to let go gives it back.
 *
 * Counts live in a table beside the mapping, one entry per slot: a slot has one holder, so its entry has one lease, and
 * nothing is allocated per item. Only a lease that was lost while views of it lived makes the next holder of that slot
 * allocate, and so does a batch. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

int shmt_lease_take(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n, shmt_lease **out) {
    shmt_lease *lease = &seg->leases[first->index];
    /* L2 relaxed: refs became 0 before the slot was released (R2), and we came by the slot after that (A2). */
    if (SHMT_UNLIKELY(n > 1 || shmt_load_relaxed(&lease->refs) != 0)) {
        lease = malloc(sizeof *lease + n * sizeof *words);
        if (!lease) {
            return -ENOMEM;
        }
        lease->words = (uint64_t *)(lease + 1);
        memcpy(lease->words, words, n * sizeof *words);
    }
    lease->seg = seg;
    lease->word = first->word;
    lease->index = first->index;
    lease->n = n;
    lease->generation = first->generation;
    shmt_store_relaxed(&lease->refs, 1); /* nobody else knows this lease yet */
    shmt_segment_hold(seg);
    *out = lease;
    return 0;
}

void shmt_lease_hold(shmt_lease *lease) {
    shmt_add_relaxed(&lease->refs, 1); /* the caller has a reference already: nothing to order */
}

uint32_t shmt_lease_count(const shmt_lease *lease) {
    return shmt_load_relaxed(&lease->refs); /* the caller holds one; others may come and go */
}

void shmt_lease_range(const shmt_lease *lease, shmt_range *out) {
    const shmt_segment *seg = lease->seg;
    *out = (shmt_range){
        .data = shmt_payload(seg, lease->index),
        .nbytes = shmt_touchable(seg, lease->index),
        .trims = seg->mapped[lease->index].trims, /* as shmt_touchable() has just seen it */
        .index = lease->index,
    };
}

/* Runs whenever a view dies: in any thread, with or without the interpreter's lock, in the garbage collector. */
void shmt_lease_drop(shmt_lease *lease) {
    /* L1 acquire / acq_rel: pairs with the other holders' decrements. Carries: their last use of the payload, before the
     * slot is released. Whoever sees 1 is alone, since only a holder can add one: it saves the read-modify-write. */
    if (shmt_load_acquire(&lease->refs) != 1 && shmt_sub_acq_rel(&lease->refs, 1) != 1) {
        return;
    }
    shmt_segment *seg = lease->seg;
    shmt_slot slot = {.index = lease->index, .word = lease->word, .generation = lease->generation};
    if (SHMT_UNLIKELY(lease->words != NULL)) {
        (void)shmt_slot_release_many(seg, &slot, lease->words, lease->n); /* lost: somebody else's by now */
        free(lease);
    } else {
        shmt_store_relaxed(&lease->refs, 0); /* L2: before R2 in the release */
        (void)shmt_slot_release(seg, &slot); /* lost, or a parent's seen from its child: not ours to release */
    }
    shmt_segment_drop(seg);
}

int shmt_lease_publish(shmt_lease *lease, uint64_t nbytes, uint64_t tag) {
    /* L1 acquire: as above. Carries: what others wrote to the payload before they let go, to P2. */
    if (shmt_load_acquire(&lease->refs) != 1) {
        return -EBUSY;
    }
    shmt_segment *seg = lease->seg;
    shmt_slot slot = {.index = lease->index, .word = lease->word, .generation = lease->generation};
    bool own = lease->words == NULL;
    if (own) {
        shmt_store_relaxed(&lease->refs, 0); /* L2: before P2, as before R2 */
    }
    int rc = shmt_slot_publish(seg, &slot, nbytes, tag);
    if (rc < 0) {
        (void)shmt_slot_release(seg, &slot); /* aborts it, unless it is lost */
    }
    if (!own) {
        free(lease);
    }
    shmt_segment_drop(seg);
    return rc;
}
