/* layout.h - every byte that processes share: schematic, structs, magic, static asserts. No functions but bit fields.
 *
 *   offset 0            header page     geometry (never changes), stream state, sequence numbers, events
 *   members_offset      member records  one per lock byte: who takes part, for diagnosis and counters
 *   slots_offset        slot headers    one cache line each: the slot word and its item's description
 *   ring_offset         ring cells      order hints, R = power of two >= 2 * slots
 *   deaths_offset       death records   one cache line each: who died holding what
 *   meta_offset         meta            the spec as JSON text, written once before the magic
 *   data_offset         payload         slots * slot_stride bytes; slot i begins at data_offset + i * slot_stride
 *
 * Beside the bytes, the *file* carries one thing more: member i holds an exclusive lock on byte i of the file for as long
 * as it lives (see members.c). That lock, not any word here, says who is alive. Whoever removes the file's name holds byte 0
 * (see names.c).
 *
 * WHO MAY WRITE WHAT
 *   geometry            the creator, before it publishes the magic; nobody afterwards. Attach copies it once.
 *   slot word           whoever's compare-and-swap succeeds; it is the only authority over a slot.
 *   item fields, trims  the owner of a slot in state WRITING, and nobody else.
 *   ring cells, write_seq, read_seq   anyone, by compare-and-swap; they are hints that can be rebuilt.
 *   member record i     the holder of lock byte i.
 */
#ifndef SHMT_LAYOUT_H
#define SHMT_LAYOUT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "atomic.h"

#define SHMT_MAGIC UINT64_C(0x31726f736e65746d) /* "mtensor1" in memory on a little-endian machine */
#define SHMT_LAYOUT_VERSION 2u

/* Two adjacent lines: the spatial prefetcher of x86 fetches lines in pairs, so a word that one side hammers sits in a
 * pair of its own. */
#define SHMT_PAIR 128u
#define SHMT_LINE 64u
#define SHMT_PAGE 4096u

#define SHMT_SLOTS_MAX 65535u  /* the index has 16 bits in a ring cell */
#define SHMT_MEMBERS_MAX 4095u /* the owner has 12 bits in a slot word; 0 is nobody */
#define SHMT_META_MAX (1u << 20)
#define SHMT_NBYTES_MAX (UINT64_C(1) << 46)

/* ---- slot word: state:4 | owner:12 | gen:48 -------------------------------------------------------------------------
 * The generation grows by one with each claim (and each redelivery), so a word that was seen once never comes back for
 * 2^48 claims of that slot: at 10^8 claims a second, a month. Every change of a slot compares the whole word, hence a
 * stale owner, a stale reader and a stale reclaimer all fail instead of touching another item.
 *
 * READY and READING carry in their low two bits how often the item was redelivered after a consumer's death. */
enum {
    SHMT_FREE = 0,
    SHMT_WRITING = 1,
    SHMT_READY = 4,   /* 4..7: READY after 0..3 redeliveries */
    SHMT_READING = 8, /* 8..11 */
};
#define SHMT_TRIES_MAX 3u
#define SHMT_GEN_BITS 48
#define SHMT_GEN_MASK ((UINT64_C(1) << SHMT_GEN_BITS) - 1)

static inline uint64_t shmt_word(uint32_t state, uint32_t owner, uint64_t gen) {
    return ((uint64_t)state << 60) | ((uint64_t)(owner & 0xfffu) << SHMT_GEN_BITS) | (gen & SHMT_GEN_MASK);
}
static inline uint32_t shmt_word_state(uint64_t w) { return (uint32_t)(w >> 60); }
static inline uint32_t shmt_word_owner(uint64_t w) { return (uint32_t)(w >> SHMT_GEN_BITS) & 0xfffu; }
static inline uint64_t shmt_word_gen(uint64_t w) { return w & SHMT_GEN_MASK; }
static inline uint32_t shmt_word_tries(uint64_t w) { return shmt_word_state(w) & 3u; }
static inline int shmt_word_is_ready(uint64_t w) { return (shmt_word_state(w) & 12u) == SHMT_READY; }
static inline int shmt_word_is_reading(uint64_t w) { return (shmt_word_state(w) & 12u) == SHMT_READING; }

/* ---- ring cell: lap:24 | gen:24 | index:16 --------------------------------------------------------------------------
 * Position p of the free-running sequence lies in cell p & (R - 1) and belongs to lap p / R. A cell whose lap is one less
 * than that of write_seq has not been filled yet; all laps are compared modulo 2^24.
 *
 * Wrap-around never disturbs ownership: the cell only says which slot to try next, and the slot word is compared in full
 * before anything is taken. A cell whose 24 generation bits match by accident hands out an item that is READY anyway. A pusher
 * that sleeps through all laps, or all but one, overwrites a cell only if it finds the slot and the generation it saw, too. */
#define SHMT_LAP_MASK UINT64_C(0xffffff)
#define SHMT_CELL_GEN_MASK UINT64_C(0xffffff)

static inline uint64_t shmt_cell(uint64_t lap, uint64_t gen, uint32_t index) {
    return (lap & SHMT_LAP_MASK) << 40 | (gen & SHMT_CELL_GEN_MASK) << 16 | index;
}
static inline uint64_t shmt_cell_lap(uint64_t c) { return c >> 40; }
static inline uint64_t shmt_cell_gen(uint64_t c) { return c >> 16 & SHMT_CELL_GEN_MASK; }
static inline uint32_t shmt_cell_index(uint64_t c) { return (uint32_t)(c & 0xffff); }

/* ---- event: seq:31 | W:1 --------------------------------------------------------------------------------------------
 * A futex word. W says that somebody may be asleep; seq changes with every wake, so that FUTEX_WAIT(seen) of someone who
 * looked before the wake returns at once. A wrap of seq needs 2^31 wakes within one look: it costs one slice of 100 ms. */
#define SHMT_EVENT_W 1u
#define SHMT_EVENT_STEP 2u

typedef struct shmt_event {
    _Alignas(SHMT_PAIR) shmt_atomic32 word;
} shmt_event;

/* ---- geometry: written once by the creator, copied once by everyone who attaches ---------------------------------- */
typedef struct shmt_geometry {
    uint64_t abi;            /* SHMT_ABI of the creator: an incompatible build refuses the segment */
    uint64_t total_nbytes;   /* file size, bytes; the mapping's length */
    uint64_t members_offset; /* bytes from the start of the file, as all offsets here */
    uint64_t slots_offset;
    uint64_t ring_offset;
    uint64_t deaths_offset;
    uint64_t meta_offset;
    uint64_t data_offset;
    uint64_t slot_stride; /* bytes from one slot's payload to the next; SHMT_GROW: largely not reserved */
    uint64_t slot_nbytes; /* bytes reserved in each slot from the start */
    uint64_t seq_first;   /* where write_seq and read_seq began, and the generation of every slot */
    uint64_t identity;    /* random; tells two segments of one name apart */
    uint32_t slots;       /* 0: a plain segment (SharedTensor) without hand-off */
    uint32_t ring;        /* cells; power of two >= 2 * slots */
    uint32_t members;     /* lock bytes 1..members */
    uint32_t meta_nbytes;
    uint32_t flags; /* SHMT_GROW and the other creation flags of shmt.h */
    uint32_t producers;
    uint32_t deaths; /* records of the log of deaths, power of two */
    uint32_t spare;
} shmt_geometry;

typedef struct shmt_header {
    shmt_atomic64 magic; /* SHMT_MAGIC, stored last: whoever sees it sees a whole segment */
    shmt_geometry geometry;

    /* Stream: rarely written, read by every claim. */
    _Alignas(SHMT_PAIR) shmt_atomic32 shut; /* 1: no more claims; set by shutdown or by the end of all producers */
    shmt_atomic32 producers_closed;         /* producers that left of their own will */
    shmt_atomic32 producers_lost;           /* producers that died */
    shmt_atomic32 consumers_seen;           /* members that ever acquired */
    shmt_atomic32 joined;                   /* members now, about: decides only how to spin */
    shmt_atomic32 joins;                    /* members ever: spreads lock bytes */
    shmt_atomic64 redelivered;              /* items handed out again after a consumer's death */
    shmt_atomic64 dropped;                  /* items given up after SHMT_TRIES_MAX deaths, or by policy */
    shmt_atomic64 reclaimed;                /* dead members whose slots were taken back */
    shmt_atomic64 death_seq;                /* records of deaths so far */

    _Alignas(SHMT_PAIR) shmt_atomic64 write_seq; /* first position not yet pushed, or a little behind it */
    _Alignas(SHMT_PAIR) shmt_atomic64 read_seq;  /* first position not yet acquired, or a little behind it */
    shmt_event ready_event;                      /* an item was pushed */
    shmt_event free_event;                       /* a slot became free */
    shmt_atomic64 tasks_done;                    /* items that were declared done: tasks.c */
    shmt_event done_event;                       /* everything pushed was */
} shmt_header;

/* One per lock byte. `pid` is for people: liveness is the lock. */
typedef struct shmt_member_record {
    _Alignas(SHMT_PAIR) shmt_atomic32 pid; /* 0: nobody; as seen in the member's own pid namespace */
    shmt_atomic32 roles;         /* SHMT_PRODUCER | SHMT_CONSUMER, once it has claimed or acquired; or SHMT_LEFT */
    shmt_atomic64 joined_ns;     /* CLOCK_MONOTONIC at join, ns */
    shmt_atomic64 claim_waits;   /* claims that found no free slot */
    shmt_atomic64 acquire_waits; /* acquires that found no item */
    shmt_atomic64 spins;         /* waits that ended while spinning */
    shmt_atomic64 sleeps;        /* FUTEX_WAIT calls */
    shmt_atomic64 wakes;         /* FUTEX_WAKE calls */
    shmt_atomic64 ready_high;    /* most items seen waiting, sampled */
} shmt_member_record;

/* One cache line per slot: the word and what the consumer needs to know come in one miss. */
typedef struct shmt_slot_header {
    _Alignas(SHMT_LINE) shmt_atomic64 word;
    uint64_t nbytes;        /* of the published item */
    uint64_t tag;           /* the producer's own number for the item */
    shmt_atomic64 reserved; /* bytes of payload, a figure: what may be touched each process proves for itself */
    shmt_atomic64 trims;    /* how often memory was taken from the slot: what was proved before that is void */
    uint64_t spare[3];
} shmt_slot_header;

/* What a dead member held, or that it died; see deaths.c. */
#define SHMT_DEATHS_MIN 64u
#define SHMT_DEATHS_MAX 4096u
typedef struct shmt_death_cell {
    _Alignas(SHMT_LINE) shmt_atomic64 seq; /* position + 1; 0 while the record is written */
    shmt_atomic64 who;                     /* pid << 32 | member << 16 | slot */
    shmt_atomic64 word;                    /* of the slot, as it was found */
    shmt_atomic64 tag;                     /* of the item that was being read */
    shmt_atomic64 joined;                  /* the member's joined_ns: which of the lives of that id */
    shmt_atomic64 found;                   /* CLOCK_MONOTONIC, ns */
    shmt_atomic64 sum;
} shmt_death_cell;

_Static_assert(sizeof(shmt_header) <= SHMT_PAGE, "the header is one page");
_Static_assert(offsetof(shmt_header, write_seq) % SHMT_PAIR == 0, "write_seq has a pair of lines of its own");
_Static_assert(offsetof(shmt_header, read_seq) - offsetof(shmt_header, write_seq) >= SHMT_PAIR, "so has read_seq");
_Static_assert(sizeof(shmt_event) == SHMT_PAIR, "so have the events");
_Static_assert(sizeof(shmt_member_record) == SHMT_PAIR, "a member's counters share no line with another's");
_Static_assert(sizeof(shmt_slot_header) == SHMT_LINE, "a slot header is one line");
_Static_assert(sizeof(shmt_death_cell) == SHMT_LINE, "and so is a record of a death");

/* What must be equal in two builds that share a segment, in one number (LMDB's lock signature is the model). */
#define SHMT_ABI                                                                                                       \
    ((uint64_t)SHMT_LAYOUT_VERSION << 48 | (uint64_t)sizeof(shmt_header) << 32 |                                       \
     (uint64_t)sizeof(shmt_geometry) << 16 | (uint64_t)sizeof(shmt_member_record) << 8 | sizeof(shmt_slot_header))

#endif
