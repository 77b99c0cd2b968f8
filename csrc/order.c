/* order.c - which published slot is next: a ring of hints, first in first out.
 *
 * The ring can be rebuilt from the slot words; it only keeps the order. Cells are filled strictly one after the other: a
 * cell's compare-and-swap is the push, and whoever finds write_seq or read_seq behind moves it on, so nobody waits for a
 * process that died or sleeps between two steps.
 *
 *     push                              take
 *       cell  CAS seq_cst   O1 ------->   cell  load seq_cst  O1
 *       write_seq CAS                     slot  CAS (A2)
 *       event load          E2            read_seq CAS
 *
 * O1 orders a sleeper's second look against the push; see wait.c for the other half (E1, E2). */
#include <errno.h>

#include "internal.h"

/* Shared memory may hold anything: no loop below ends on a shared word's say alone. Four times the cells of the largest ring:
 * stale cells cost a taker fewer turns than the ring has cells, and each further turn is one in which somebody else took or
 * pushed between our load and our compare-and-swap; nobody loses hundreds of thousands of those in a row. At 0.13 us a turn
 * (measured, with another core writing the same line) a loop that is lied to gives up after 70 ms, and a verb has three. */
#define TURNS_MAX (1u << 19)
_Static_assert(TURNS_MAX >= 4 * 2 * (SHMT_SLOTS_MAX + 1), "a ring has two cells for each slot, rounded up");

/* A shift: a division by the ring's size would be a third of the whole hand-off. */
static uint64_t lap_of(const shmt_segment *seg, uint64_t p) { return p >> seg->ring_shift & SHMT_LAP_MASK; }

int shmt_order_push(shmt_segment *seg, uint32_t index, uint64_t gen) {
    shmt_header *header = seg->header;
    const uint64_t ring = seg->geo.ring;
    for (uint32_t turn = 0; turn < TURNS_MAX; turn++) {
        uint64_t p = shmt_load_seq_cst(&header->write_seq); /* O2: a stale value only costs a turn */
        shmt_atomic64 *cell = &seg->cells[p & (ring - 1)];
        uint64_t seen = shmt_load_seq_cst(cell); /* O1: the compare-and-swap below decides */
        /* O2: so that `seen` is of this position. Whoever sleeps between the two loads for all but one of 2^24 laps would
         * take an entry that waits to be read for one of the lap before. */
        if (SHMT_UNLIKELY(shmt_load_seq_cst(&header->write_seq) != p)) {
            continue;
        }
        uint64_t lap = lap_of(seg, p);
        if (shmt_cell_lap(seen) == ((lap - 1) & SHMT_LAP_MASK)) {
            /* Of the lap before: overwriting it is right only if it has been read. Live entries are at most `slots` and
             * stale ones at most as many, so a full ring is corruption. read_seen saves looking at the readers' line. */
            if (p - shmt_load_relaxed(&seg->read_seen) >= ring) {  /* a bound of this process, refreshed here */
                uint64_t r = shmt_load_seq_cst(&header->read_seq); /* O3: how far the readers are, at least */
                shmt_store_relaxed(&seg->read_seen, r);            /* a bound of this process */
                if ((int64_t)(p - r) >= (int64_t)ring) { /* r may be ahead of p: the one who pushed there rests */
                    return -EUCLEAN;
                }
            }
            /* O1 seq_cst: the push. Pairs with the load in shmt_order_take(); before E2 in the one order, so that a
             * consumer that sets W after it finds the cell and one that set W before it is seen by us. */
            if (shmt_cas_seq_cst(cell, &seen, shmt_cell(lap, gen, index))) {
                shmt_cas_seq_cst(&header->write_seq, &p, p + 1); /* O2: if it fails, somebody helped */
                return 0;
            }
        } else if (shmt_cell_lap(seen) == lap) {
            shmt_cas_seq_cst(&header->write_seq, &p, p + 1); /* O2: help whoever pushed here and stopped */
        } else {
            return -EUCLEAN; /* of neither lap */
        }
    }
    return -EUCLEAN;
}

/* Takes the oldest item and up to n - 1 that follow it in the order *and* in memory. Returns how many, or -EAGAIN. */
int shmt_order_take(shmt_segment *seg, uint32_t n, uint64_t *words, uint32_t *first) {
    shmt_header *header = seg->header;
    const uint64_t ring = seg->geo.ring;
    uint32_t got = 0;
    for (uint32_t turn = 0; turn < TURNS_MAX; turn++) {
        uint64_t r = shmt_load_seq_cst(&header->read_seq);              /* O3: a stale value only costs a turn */
        uint64_t seen = shmt_load_seq_cst(&seg->cells[r & (ring - 1)]); /* O1: acquires the push */
        uint32_t index = shmt_cell_index(seen);
        if (shmt_cell_lap(seen) != lap_of(seg, r)) {
            if (got > 0) {
                return (int)got;
            }
            if (shmt_load_seq_cst(&header->read_seq) != r) { /* O3: others went on meanwhile */
                continue;
            }
            return shmt_cell_lap(seen) == ((lap_of(seg, r) - 1) & SHMT_LAP_MASK) ? -EAGAIN : -EUCLEAN;
        }
        if (index >= seg->geo.slots) {
            return got > 0 ? (int)got : -EUCLEAN;
        }
        if (got > 0 && index != *first + got) {
            return (int)got;
        }
        int took = shmt_slots_take(seg, index, shmt_cell_gen(seen), &words[got]);
        if (SHMT_UNLIKELY(took < 0)) {
            return got > 0 ? (int)got : took;
        }
        /* O3: past this cell, whether its item is ours, another's or gone. Killed before it, the next reader does it. */
        shmt_cas_seq_cst(&header->read_seq, &r, r + 1);
        if (took) {
            if (got == 0) {
                *first = index;
            }
            if (++got == n) {
                return (int)got;
            }
        } else if (got > 0) {
            return (int)got;
        }
    }
    return got > 0 ? (int)got : -EUCLEAN;
}

/* Is there an item to take? 1, -EAGAIN or -EUCLEAN. The steps are those of a take, but for the taking. */
int shmt_order_peek(shmt_segment *seg) {
    shmt_header *header = seg->header;
    for (uint32_t turn = 0; turn < TURNS_MAX; turn++) {
        uint64_t at = shmt_load_seq_cst(&header->read_seq);                       /* O3: as in a take */
        uint64_t cell = shmt_load_seq_cst(&seg->cells[at & (seg->geo.ring - 1)]); /* O1: acquires the push */
        if (shmt_cell_lap(cell) != lap_of(seg, at)) {
            if (shmt_load_seq_cst(&header->read_seq) != at) { /* O3: others went on meanwhile */
                continue;
            }
            return shmt_cell_lap(cell) == ((lap_of(seg, at) - 1) & SHMT_LAP_MASK) ? -EAGAIN : -EUCLEAN;
        }
        if (shmt_cell_index(cell) >= seg->geo.slots) {
            return -EUCLEAN;
        }
        if (shmt_slots_is_there(seg, shmt_cell_index(cell), shmt_cell_gen(cell))) {
            return 1;
        }
        shmt_cas_seq_cst(&header->read_seq, &at, at + 1); /* O3: past a stale cell */
    }
    return -EUCLEAN;
}

/* For reclaim: found[i] becomes 1 if the ring, from read_seq on, holds slot i with generation wanted[i] (UINT64_MAX: not
 * asked for). One pass, over no more than the ring's cells: the dead push nothing more, and the filled cells are contiguous,
 * so the first unfilled one ends it. */
void shmt_order_mark(shmt_segment *seg, const uint64_t *wanted, uint8_t *found) {
    const uint64_t ring = seg->geo.ring;
    uint64_t r = shmt_load_seq_cst(&seg->header->read_seq); /* O3: an item passed by now is not READY any more */
    for (uint64_t k = 0; k < ring; k++) {
        uint64_t p = r + k, seen = shmt_load_seq_cst(&seg->cells[p & (ring - 1)]); /* O1 */
        uint32_t index = shmt_cell_index(seen);
        uint64_t ahead = (shmt_cell_lap(seen) - lap_of(seg, p)) & SHMT_LAP_MASK;
        if (ahead == SHMT_LAP_MASK) {
            return; /* not filled yet */
        }
        /* A cell that is on the next lap already was read and filled again while we looked: it is later than what we
         * search, or it is what we search. */
        if (index < seg->geo.slots && wanted[index] != UINT64_MAX &&
            (wanted[index] & SHMT_CELL_GEN_MASK) == shmt_cell_gen(seen)) {
            found[index] = 1;
        }
    }
}

/* Items pushed since the segment was created, those that were pushed again counted again. */
uint64_t shmt_order_pushed(shmt_segment *seg) {
    shmt_header *header = seg->header;
    uint64_t p = 0;
    for (uint32_t turn = 0; turn < TURNS_MAX; turn++) {
        p = shmt_load_seq_cst(&header->write_seq);                               /* O2 */
        uint64_t seen = shmt_load_seq_cst(&seg->cells[p & (seg->geo.ring - 1)]); /* O1 */
        if (shmt_cell_lap(seen) != lap_of(seg, p)) {
            break; /* a stale p is how many there were when it was loaded */
        }
        shmt_cas_seq_cst(&header->write_seq, &p, p + 1); /* O2: help whoever pushed here and stopped */
    }
    return p - seg->geo.seq_first;
}

uint64_t shmt_order_length(shmt_segment *seg) {
    uint64_t r = shmt_load_relaxed(&seg->header->read_seq);  /* a figure for people, no order needed */
    uint64_t w = shmt_load_relaxed(&seg->header->write_seq); /* likewise */
    return w - r <= seg->geo.ring ? w - r : 0;
}
