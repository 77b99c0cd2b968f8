/* geometry.c - from how many and how large to where: the offsets of everything in a segment. */
#include <errno.h>

#include "internal.h"

#define HUGE_PAGE (UINT64_C(2) << 20)

/* Places everything that follows from the counts. Creator and attacher both run it, so that no offset that was read from
 * shared memory is ever used: it is recomputed here and compared. */
int shmt_geometry_place(shmt_geometry *geo) {
    const uint32_t known = SHMT_GROW | SHMT_PREFAULT | SHMT_HUGE_PAGES | SHMT_DROP | SHMT_APART | SHMT_SHRUNK;
    if ((geo->flags & ~known) != 0 || geo->slots > SHMT_SLOTS_MAX || geo->members < 1 ||
        geo->members > SHMT_MEMBERS_MAX || geo->meta_nbytes > SHMT_META_MAX || geo->slot_nbytes > SHMT_NBYTES_MAX ||
        geo->slot_stride > SHMT_NBYTES_MAX) {
        return -EINVAL;
    }
    uint64_t ring = 0;
    if (geo->slots > 0) {
        /* What a growing slot may touch is proved page by page: a page of two slots would be proved for one of them. */
        const uint64_t step = geo->flags & SHMT_GROW ? SHMT_PAGE : SHMT_LINE;
        if (geo->slot_stride < geo->slot_nbytes || geo->slot_stride % step != 0) {
            return -EINVAL;
        }
        for (ring = 2; ring < 2 * (uint64_t)geo->slots; ring *= 2) {
        }
    }
    uint64_t at = SHMT_PAGE;
    geo->members_offset = at;
    at += (uint64_t)(geo->members + 1) * sizeof(shmt_member_record); /* record 0 is nobody's */
    geo->slots_offset = at;
    at += (uint64_t)geo->slots * sizeof(shmt_slot_header);
    geo->ring_offset = at;
    at += ring * sizeof(shmt_atomic64);
    geo->ring = (uint32_t)ring;
    geo->deaths = geo->slots > 0 ? SHMT_DEATHS_MIN : 0;
    while (geo->deaths > 0 && geo->deaths < SHMT_DEATHS_MAX && geo->deaths < geo->slots + SHMT_DEATHS_MIN) {
        geo->deaths *= 2;
    }
    at = shmt_round_up(at, SHMT_LINE);
    geo->deaths_offset = at;
    at += geo->deaths * sizeof(shmt_death_cell);
    geo->meta_offset = at;
    at += geo->meta_nbytes;
    uint64_t unit = geo->flags & SHMT_HUGE_PAGES ? HUGE_PAGE : SHMT_PAGE;
    geo->data_offset = shmt_round_up(at, unit);
    /* No overflow of 64 bits: all of the above is below 2^24, and there are less than 2^16 slots of at most 2^46 bytes. */
    uint64_t data = geo->slots > 0 ? geo->slots * geo->slot_stride : geo->slot_nbytes;
    uint64_t total = shmt_round_up(geo->data_offset + data, unit);
    if (total > SHMT_NBYTES_MAX) {
        return -EOVERFLOW;
    }
    geo->total_nbytes = total;
    return 0;
}

/* A growing slot asks for far more address space than memory; where that is too much it may grow less. */
bool shmt_geometry_fit(shmt_geometry *geo, uint64_t least, uint64_t nbytes) {
    if (!(geo->flags & SHMT_GROW) || geo->slots == 0) {
        return false;
    }
    uint64_t unit = geo->flags & SHMT_HUGE_PAGES ? HUGE_PAGE : SHMT_PAGE; /* to which the whole is rounded up */
    uint64_t room = nbytes > geo->data_offset + unit ? nbytes - geo->data_offset - unit : 0;
    uint64_t stride = room / geo->slots;
    least = least > geo->slot_nbytes ? least : geo->slot_nbytes;
    stride = stride > least ? stride - stride % SHMT_PAGE : 0;
    if (stride < least || stride == 0) {
        stride = shmt_round_up(least + (least == 0), SHMT_PAGE);
    }
    if (stride >= geo->slot_stride) {
        return false;
    }
    geo->slot_stride = stride;
    return true;
}

int shmt_geometry_plan(const shmt_config *config, shmt_geometry *geo) {
    uint64_t unit = config->alignment;
    if ((unit & (unit - 1)) != 0 || unit > SHMT_PAGE || (config->flags & SHMT_SHRUNK) ||
        config->slot_nbytes > SHMT_NBYTES_MAX || config->slot_stride > SHMT_NBYTES_MAX ||
        config->slot_least > SHMT_NBYTES_MAX) {
        return -EINVAL;
    }
    *geo = (shmt_geometry){
        .abi = SHMT_ABI,
        .slot_nbytes = config->slot_nbytes,
        .seq_first = config->seq_first,
        .slots = config->slots,
        .members = config->members,
        .meta_nbytes = config->meta_nbytes,
        .flags = config->flags,
        .producers = config->producers,
    };
    if (config->slots > 0) {
        uint64_t stride = config->slot_nbytes;
        bool grow = (config->flags & SHMT_GROW) != 0;
        if (grow && config->slot_stride > stride) {
            stride = config->slot_stride;
        }
        if (grow && config->slot_least > stride) {
            stride = config->slot_least;
        }
        /* Small payloads side by side in pairs of lines: at one per page they would all fall into the same cache set. */
        bool pages = grow || stride >= SHMT_PAGE / 2 || shmt_debug_wanted(); /* debug.c closes them one by one */
        uint64_t natural = pages ? SHMT_PAGE : SHMT_PAIR;
        stride += stride == 0;
        geo->slot_stride = shmt_round_up(stride, unit > natural ? unit : natural); /* of at most 2^46 bytes */
    }
    int rc = shmt_geometry_place(geo);
    if (rc == -EOVERFLOW && config->share > 0 && shmt_geometry_fit(geo, config->slot_least, SHMT_NBYTES_MAX)) {
        rc = shmt_geometry_place(geo);
    }
    return rc;
}
