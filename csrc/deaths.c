/* deaths.c - who died holding what: a log that reclaimers write and anybody reads, so that a parent can repeat the work.
 *
 * A record is written before the step that it tells of. A reclaimer that is killed in between leaves a record of something
 * that the next one does, and records, once more: told twice, never not at all. Who reads takes records with the same
 * member, join time, slot and generation as one.
 *
 * Each record is a sequence lock of its own: `seq` is 0 while it is written, position + 1 once it is whole. A reader never
 * waits for a writer: a record that stays unfinished for a second (its writer was killed or stopped) is passed over, and
 * what was overwritten meanwhile counts as missed. */
#include <errno.h>

#include "internal.h"

#define UNFINISHED_NS INT64_C(1000000000)

static uint64_t mix(uint64_t sum, uint64_t word) {
    sum ^= word;
    return (sum << 13 | sum >> 51) * UINT64_C(0x9e3779b97f4a7c15);
}

/* By the holder of lock byte `id`: others may write records of other members at the same time. */
void shmt_death_record(shmt_segment *seg, uint32_t id, uint32_t index, uint64_t word, uint64_t tag) {
    if (seg->geo.deaths == 0) {
        return; /* a plain segment: nobody holds anything, and there is no log */
    }
    const shmt_member_record *member = &seg->records[id];
    uint64_t p = shmt_add_relaxed(&seg->header->death_seq, 1); /* D1 carries the record; this only picks a place */
    shmt_death_cell *cell = &seg->deaths[p & (seg->geo.deaths - 1)];
    uint64_t who = (uint64_t)shmt_load_relaxed(&member->pid) << 32 | id << 16 | index; /* by the holder of byte id */
    uint64_t joined = shmt_load_relaxed(&member->joined_ns);                           /* likewise */
    uint64_t found = (uint64_t)shmt_now_ns();
    shmt_store_relaxed(&cell->seq, 0);         /* before the stores below: they release (D2) */
    shmt_store_release(&cell->who, who);       /* D2 release: pairs with the reader's acquire of the same word */
    shmt_store_release(&cell->word, word);     /* D2 */
    shmt_store_release(&cell->tag, tag);       /* D2 */
    shmt_store_release(&cell->joined, joined); /* D2 */
    shmt_store_release(&cell->found, found);   /* D2 */
    /* D2; two writers a whole lap apart in one cell: a mixture does not add up. */
    shmt_store_release(&cell->sum, mix(mix(mix(mix(mix(p, who), word), tag), joined), found));
    /* D1 release: pairs with the acquire in shmt_death_next(). Carries: the record. */
    shmt_store_release(&cell->seq, p + 1);
}

void shmt_death_begin(shmt_segment *seg, shmt_death_cursor *cursor) {
    *cursor = (shmt_death_cursor){.position = shmt_load_relaxed(&seg->header->death_seq)}; /* from now on */
}

static bool read_cell(shmt_segment *seg, uint64_t p, shmt_death *out) {
    const shmt_death_cell *cell = &seg->deaths[p & (seg->geo.deaths - 1)];
    if (shmt_load_acquire(&cell->seq) != p + 1) { /* D1 */
        return false;
    }
    /* D2 acquire: whoever sees a word of a later record also sees that `seq` is no longer p + 1. */
    uint64_t who = shmt_load_acquire(&cell->who);
    uint64_t word = shmt_load_acquire(&cell->word);     /* D2 */
    uint64_t tag = shmt_load_acquire(&cell->tag);       /* D2 */
    uint64_t joined = shmt_load_acquire(&cell->joined); /* D2 */
    uint64_t found = shmt_load_acquire(&cell->found);   /* D2 */
    uint64_t sum = shmt_load_acquire(&cell->sum);       /* D2 */
    uint32_t index = (uint32_t)(who & 0xffff), member = (uint32_t)(who >> 16 & 0xffff);
    bool whole = shmt_load_relaxed(&cell->seq) == p + 1 && /* ordered after D2 */
                 sum == mix(mix(mix(mix(mix(p, who), word), tag), joined), found) && member >= 1 &&
                 member <= seg->geo.members && (index < seg->geo.slots || index == SHMT_NO_SLOT);
    if (whole) {
        *out = (shmt_death){
            .member = member,
            .pid = (uint32_t)(who >> 32),
            .slot = index,
            .reading = shmt_word_is_reading(word),
            .tries = shmt_word_tries(word),
            .gen = shmt_word_gen(word),
            .tag = tag,
            .joined_ns = (int64_t)joined,
            .found_ns = (int64_t)found,
        };
    }
    return whole;
}

int shmt_death_next(shmt_segment *seg, shmt_death_cursor *cursor, shmt_death *out) {
    if (seg->geo.slots == 0) {
        return -EINVAL;
    }
    /* At most a lap of them: the figure in shared memory says nothing about how long we go on. */
    for (uint32_t turn = 0; turn <= seg->geo.deaths; turn++) {
        uint64_t end = shmt_load_relaxed(&seg->header->death_seq); /* D1 carries the record; this only says where */
        uint64_t behind = end - cursor->position;
        if (behind == 0) {
            return -EAGAIN;
        }
        if (behind > seg->geo.deaths) { /* overwritten; or the figure is nonsense, and then nothing is lost by it */
            cursor->missed += behind - seg->geo.deaths;
            cursor->position = end - seg->geo.deaths;
            cursor->unfinished_ns = 0;
        }
        if (read_cell(seg, cursor->position, out)) {
            cursor->position++;
            cursor->unfinished_ns = 0;
            return 0;
        }
        int64_t now = shmt_now_ns();
        if (cursor->unfinished_ns == 0 || cursor->position >= cursor->unfinished_end) {
            cursor->unfinished_ns = now;
            cursor->unfinished_end = end;
        }
        if (now - cursor->unfinished_ns < UNFINISHED_NS) {
            return -EAGAIN;
        }
        cursor->position++;
        cursor->missed++;
        /* The next one may be as old: if it was there and is unfinished too, it is passed over at once. */
    }
    return -EAGAIN;
}
