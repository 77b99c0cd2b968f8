/* stats.c - figures for people, read without stopping anyone: each word is right, all of them together are no instant. */
#include <errno.h>

#include "internal.h"

int shmt_stats_get(shmt_segment *seg, shmt_stats *out) {
    int rc = shmt_enter(seg);
    if (rc != 0) {
        return rc;
    }
    const shmt_geometry *geo = &seg->geo;
    shmt_header *header = seg->header;
    /* Relaxed throughout: figures. The hot path counts nothing: claims are the sum of the slots' generations, publishes are
     * how far write_seq has come. */
    shmt_stats s = {
        .publishes = shmt_load_relaxed(&header->write_seq) - geo->seq_first, /* a figure */
        .redelivered = shmt_load_relaxed(&header->redelivered),              /* a figure */
        .dropped = shmt_load_relaxed(&header->dropped),                      /* a figure */
        .reclaimed = shmt_load_relaxed(&header->reclaimed),                  /* a figure */
        .shut = shmt_load_relaxed(&header->shut),                            /* a figure */
    };
    for (uint32_t i = 0; i < geo->slots; i++) {
        uint64_t word = shmt_load_relaxed(&seg->slots[i].word);         /* a figure */
        uint64_t reserved = shmt_load_relaxed(&seg->slots[i].reserved); /* a figure */
        s.claims += (shmt_word_gen(word) - geo->seq_first) & SHMT_GEN_MASK;
        s.reserved_nbytes += reserved < geo->slot_stride ? reserved : geo->slot_stride;
        uint64_t *state = shmt_word_is_reading(word)              ? &s.reading
                          : shmt_word_is_ready(word)              ? &s.ready
                          : shmt_word_state(word) == SHMT_WRITING ? &s.writing
                                                                  : &s.free;
        ++*state;
    }
    s.claims -= s.redelivered; /* a redelivery moves the generation too */
    for (uint32_t id = 1; id <= geo->members; id++) {
        shmt_member_record *record = &seg->records[id];
        if (shmt_load_relaxed(&record->pid) == 0) { /* a figure */
            continue;
        }
        s.members += shmt_member_is_alive(seg, id); /* the dead keep their record until they are reclaimed */
        s.claim_waits += shmt_load_relaxed(&record->claim_waits);     /* a figure */
        s.acquire_waits += shmt_load_relaxed(&record->acquire_waits); /* a figure */
        s.spins += shmt_load_relaxed(&record->spins);                 /* a figure */
        s.sleeps += shmt_load_relaxed(&record->sleeps);               /* a figure */
        s.wakes += shmt_load_relaxed(&record->wakes);                 /* a figure */
        uint64_t high = shmt_load_relaxed(&record->ready_high);       /* a figure */
        s.ready_high = high > s.ready_high ? high : s.ready_high;
    }
    *out = s;
    return 0;
}

int shmt_member_info_get(shmt_segment *seg, uint32_t id, shmt_member_info *out) {
    int rc = shmt_enter(seg);
    if (rc != 0) {
        return rc;
    }
    if (id < 1 || id > seg->geo.members) {
        return -EINVAL;
    }
    const shmt_member_record *record = &seg->records[id];
    bool alive = shmt_member_is_alive(seg, id);
    uint32_t pid = shmt_load_relaxed(&record->pid); /* diagnosis: a torn picture of a coming and going member is fine */
    if (!alive && pid == 0) {
        return -ENOENT;
    }
    *out = (shmt_member_info){
        .id = id,
        .pid = pid,
        .roles = shmt_load_relaxed(&record->roles),                  /* diagnosis */
        .joined_ns = (int64_t)shmt_load_relaxed(&record->joined_ns), /* diagnosis */
        .alive = alive,
    };
    return 0;
}
