/* internal.h - the handle, and what each room offers the rooms after it. The order of the sections is the order of the
 * rooms: memory, geometry, names, registry, segment, members, slots, order, wait, debug, deaths, reclaim, lifecycle, handoff. A file uses
 * only what stands above its own section. */
#ifndef SHMT_INTERNAL_H
#define SHMT_INTERNAL_H

#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "layout.h"
#include "shmt.h"

#define SHMT_LIKELY(x) __builtin_expect(!!(x), 1)
#define SHMT_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define SHMT_SLICE_NS INT64_C(100000000) /* nobody sleeps longer than this without looking after the dead */
#define SHMT_FILE_PREFIX "shmtensor."
#define SHMT_DIR "/dev/shm/"
#define SHMT_NAME_MAX 200

/* An acquired slot's process-local count. Slot i's lease lives in seg->leases[i]; a batch uses the first one's count and
 * the words of all. Only a lease that was lost (its slot reclaimed and acquired anew while views live) is on the heap. */
struct shmt_lease {
    shmt_segment *seg;
    uint64_t word;
    shmt_atomic32 refs;  /* Slot objects, view holders, DLPack tensors */
    uint32_t index;      /* of the first slot */
    uint32_t n;          /* slots in this lease */
    uint32_t generation; /* fork generation in which it was taken: elsewhere it releases nothing */
    uint64_t *words;     /* NULL: leases[index + i].word; else on the heap, after the struct */
};

/* What this process knows to be there of a growing slot, so that a touch cannot be SIGBUS. */
typedef struct shmt_mapped {
    uint64_t nbytes;
    uint64_t trims; /* the slot's, when that was found out */
} shmt_mapped;

#define SHMT_WARM 4 /* slots that a process writes again before others, if they are free: its caches know them */

struct shmt_segment {
    /* What every verb reads: set at attach, constant afterwards. */
    shmt_header *header;
    shmt_slot_header *slots;
    shmt_atomic64 *cells;
    shmt_member_record *records;
    shmt_death_cell *deaths;
    uint8_t *data;
    shmt_geometry geo; /* private copy: shared geometry is never read again */
    shmt_lease *leases;
    shmt_mapped *mapped; /* SHMT_GROW: by slot; read and written by whoever has the slot */
    uint32_t spin_us;
    uint32_t ring_shift; /* log2 of geo.ring */
    bool debug;          /* SHMTENSOR_DEBUG */
    const char *debug_reason;

    /* Membership of this process. */
    shmt_atomic32 generation; /* fork generation joined in; 0: not joined or closed (edge M1 publishes the rest) */
    shmt_atomic32 member;     /* 1..members */
    shmt_atomic32 roles;
    shmt_atomic32 cursor;          /* where the next claim begins to look */
    shmt_atomic32 few_hot_slots;   /* 1: at `warm` instead, then at index 0: large payloads stay in few warm slots */
    shmt_atomic32 warm[SHMT_WARM]; /* index + 1 of the last slots claimed one by one, the latest first; 0: none */
    shmt_atomic64 read_seen;       /* a read_seq seen earlier: bounds how full the ring can be */
    shmt_atomic32 reclaiming;      /* one thread at a time; a thread lock of this process, never waited for */
    uint32_t populated;            /* fork generation in which the reserved pages were mapped */
    shmt_atomic32 told_lost;       /* producers_lost, as far as this process was told of it */
    shmt_atomic32 told_consumers;  /* consumers_seen, likewise when it was told that they are gone */
    shmt_atomic32 closed;
    shmt_atomic32 failed; /* what this process produced is not all that it meant to: closing counts as a death */
    int lock_fd; /* the private open file description whose lock on byte `member` says that we live; -1: none */
    uint32_t cores;

    /* The mapping. */
    shmt_atomic32 refs; /* the handle itself, leases, view holders */
    int fd;
    uint8_t *base;
    shmt_segment *origin; /* another handle of this process whose mapping and descriptor are shared; else NULL */
    shmt_info info;
    char name[SHMT_NAME_MAX + 1];

    shmt_segment *next, *prev; /* registry.c's list, for fork */
};

/* Asked once for each handle. */
static inline bool shmt_debug_wanted(void) {
    const char *value = getenv("SHMTENSOR_DEBUG");
    return value && *value && strcmp(value, "0") != 0;
}

/* Of sizes below 2^63, which is far more than any that passed shmt_geometry_place(). */
static inline uint64_t shmt_round_up(uint64_t value, uint64_t unit) {
    value += unit - 1;
    return value - value % unit;
}

/* ---- memory.c: reserve before touching ---------------------------------------------------------------------------- */
int shmt_memory_check(uint64_t nbytes);
int shmt_memory_reserve(int fd, uint64_t offset, uint64_t nbytes);
int shmt_memory_reserve_unchecked(int fd, uint64_t offset, uint64_t nbytes); /* what was checked as part of a whole */
int shmt_memory_present(int fd, uint64_t offset, uint64_t have, uint64_t want);
int shmt_memory_populate(void *at, uint64_t nbytes);
int shmt_memory_populate_present(void *at, uint64_t nbytes);                       /* after shmt_memory_present() */
int shmt_memory_write(int fd, uint64_t offset, const void *data, uint64_t nbytes); /* to what was reserved */
int shmt_memory_punch(int fd, uint64_t offset, uint64_t nbytes);                   /* gives it back to the system */
int shmt_memory_addresses(uint64_t *left); /* bytes of address space that this process has left */

/* ---- geometry.c: where everything lies ------------------------------------------------------------------------------ */
int shmt_geometry_plan(const shmt_config *config, shmt_geometry *geo); /* of a segment to be created */
/* Lets slots grow less far, but `least`: so far that all takes at most `nbytes`. False: they did not grow further. */
bool shmt_geometry_fit(shmt_geometry *geo, uint64_t least, uint64_t nbytes);
int shmt_geometry_place(shmt_geometry *geo); /* recomputes what follows from the counts, to compare or to use */

/* ---- names.c: files in /dev/shm ------------------------------------------------------------------------------------- */
int shmt_name_path(const char *name, char *path, size_t size);
int shmt_name_open(const char *path, int *fd);
int shmt_name_born(int *fd);                    /* an unnamed file that can be given a name */
int shmt_name_link(int fd, const char *path);   /* gives it the name, if nobody else has it */
int shmt_name_linked(int fd);                   /* number of links, or -errno */
bool shmt_name_is(const char *path, int fd);    /* does the path lead to this very file? */
int shmt_name_remove(const char *path, int fd); /* removes it where it leads to fd's file, and nobody else's */
/* 1: it was the last member's, and is gone. The lock on byte `keep` (0: none) stays; 0: others take part. */
int shmt_name_remove_if_last(int lock_fd, const char *path, uint32_t members, uint32_t keep);

/* ---- registry.c: which handles live in this process, and its fork generation ------------------------------------------ */
extern uint32_t shmt_fork_generation; /* from 1; changes only in a freshly forked child, which has one thread */
int shmt_registry_add(shmt_segment *seg);
void shmt_registry_remove(shmt_segment *seg);
void shmt_registry_lock(void);
void shmt_registry_unlock(void);

/* ---- segment.c ------------------------------------------------------------------------------------------------------------ */
int shmt_segment_make(const shmt_config *config, const shmt_geometry *wish, shmt_segment **out);
int shmt_segment_open(int fd, const char *name, shmt_segment **out); /* takes over `fd`, on failure too */
int shmt_segment_handle(const shmt_geometry *geo, uint8_t *base, int fd, const char *name, shmt_segment **out);
void shmt_segment_free(shmt_segment *seg);
/* Maps what is reserved, if the creator wanted that. */
int shmt_segment_populate(const shmt_geometry *geo, uint8_t *base);

static inline uint8_t *shmt_payload(const shmt_segment *seg, uint32_t index) {
    return seg->data + index * seg->geo.slot_stride;
}
/* What may be touched of a slot that we have, bytes. Of a growing one only what this process knows to be there: it reserved
 * it, or saw that it is; and nobody has trimmed the slot since. */
static inline uint64_t shmt_touchable(const shmt_segment *seg, uint32_t index) {
    if (!(seg->geo.flags & SHMT_GROW)) {
        return seg->geo.slot_stride;
    }
    shmt_mapped *known = &seg->mapped[index];
    uint64_t trims = shmt_load_relaxed(&seg->slots[index].trims); /* ours while the slot is: carried by its word */
    if (SHMT_UNLIKELY(known->trims != trims)) {
        if (known->nbytes > seg->geo.slot_nbytes) {
            known->nbytes = seg->geo.slot_nbytes; /* which is never taken */
        }
        known->trims = trims;
    }
    return known->nbytes;
}

/* ---- members.c: lock bytes ------------------------------------------------------------------------------------------------ */
static inline uint32_t shmt_me(const shmt_segment *seg) {
    /* ordered by M1 */
    return shmt_load_relaxed(&seg->member);
}
int shmt_member_lock_any(shmt_segment *seg, int lock_fd, uint32_t *id);
int shmt_member_try_lock(const shmt_segment *seg, uint32_t id); /* 1 locked: its member was dead; 0 alive */
void shmt_member_unlock(const shmt_segment *seg, uint32_t id);
bool shmt_member_is_alive(const shmt_segment *seg, uint32_t id);
int shmt_member_open_lock(const shmt_segment *seg, int *lock_fd);
void shmt_member_announce(shmt_segment *seg, uint32_t id);
void shmt_member_clear(shmt_segment *seg, uint32_t id);
void shmt_member_leave(shmt_segment *seg);       /* gives the byte up; lock_fd stays, to look who else is there */
void shmt_member_forget_lock(shmt_segment *seg); /* closes lock_fd */
#define SHMT_LEFT 8u                             /* in a record: closed, and kept only by views that are still alive */
#define SHMT_IDLE 4u /* beside SHMT_PRODUCER, SHMT_CONSUMER: joined, and has done neither yet */
uint32_t shmt_member_roles(const shmt_segment *seg);
shmt_member_record *shmt_member_mine(shmt_segment *seg);

/* ---- slots.c: the slot word ------------------------------------------------------------------------------------------------- */
int shmt_slots_claim(shmt_segment *seg, uint32_t probes, uint32_t n, uint64_t *words, uint32_t *first);
bool shmt_slots_claim_at(shmt_segment *seg, uint32_t index, uint64_t *word); /* this one, if it is free */
int shmt_slots_change(shmt_segment *seg, uint32_t index, uint64_t from, uint64_t to);
int shmt_slots_take(shmt_segment *seg, uint32_t index, uint64_t cell_gen, uint64_t *word);
bool shmt_slots_is_there(const shmt_segment *seg, uint32_t index, uint64_t cell_gen);
bool shmt_slots_any_unread(shmt_segment *seg);
bool shmt_slots_all_ready(shmt_segment *seg);

/* ---- order.c: which published slot is next ------------------------------------------------------------------------------------ */
int shmt_order_push(shmt_segment *seg, uint32_t index, uint64_t gen);
int shmt_order_take(shmt_segment *seg, uint32_t n, uint64_t *words, uint32_t *first);
int shmt_order_peek(shmt_segment *seg);
void shmt_order_mark(shmt_segment *seg, const uint64_t *wanted, uint8_t *found);
uint64_t shmt_order_length(shmt_segment *seg);
uint64_t shmt_order_pushed(shmt_segment *seg);

/* ---- wait.c: how to sleep and wake --------------------------------------------------------------------------------------------- */
void shmt_event_wake(shmt_segment *seg, shmt_event *event, uint32_t n);
void shmt_event_wake_all(shmt_event *event);
uint32_t shmt_event_announce(shmt_event *event);
/* QUICK between two looks of a spin; FULL misses nothing that is there; LAST before sleeping: is it worth to wait at all? */
typedef enum shmt_effort { SHMT_QUICK, SHMT_FULL, SHMT_LAST } shmt_effort;
typedef int (*shmt_attempt)(shmt_segment *seg, void *arg, shmt_effort effort);
int shmt_event_wait(shmt_segment *seg, shmt_event *event, int64_t deadline_ns, shmt_attempt attempt, void *arg,
                    void (*slice_over)(shmt_segment *seg));

/* ---- debug.c: slots that are not ours cannot be touched --------------------------------------------------------------------- */
void shmt_debug_begin(shmt_segment *seg); /* all of them */
void shmt_debug_open(const shmt_segment *seg, uint32_t index, uint32_t n);
void shmt_debug_shut(const shmt_segment *seg, uint32_t index, uint32_t n);
uint64_t shmt_debug_poison(shmt_segment *seg, uint32_t index, uint64_t word);
int shmt_debug_check(shmt_segment *seg);

/* ---- deaths.c: who died holding what ------------------------------------------------------------------------------------------- */
void shmt_death_record(shmt_segment *seg, uint32_t id, uint32_t index, uint64_t word, uint64_t tag);

/* ---- reclaim.c ------------------------------------------------------------------------------------------------------------------- */
void shmt_reclaim_slice(shmt_segment *seg);

/* What a verb does first: one load and one compare unless this process has yet to join. */
static inline int shmt_enter(shmt_segment *seg) {
    /* M1 acquire: pairs with the release in shmt_member_join(). Carries: member id, lock_fd, cursor. */
    if (SHMT_LIKELY(shmt_load_acquire(&seg->generation) == shmt_fork_generation)) {
        return 0;
    }
    return shmt_member_join(seg);
}

/* ---- lifecycle.c: create, attach, close --------------------------------------------------------------------------- */
/* A second member of this process over the same mapping; how threads play processes under ThreadSanitizer. */
int shmt_segment_attach_same(shmt_segment *seg, shmt_segment **out);

/* ---- handoff.c: the verbs ------------------------------------------------------------------------------------------- */
bool shmt_slot_would_come(shmt_segment *seg, bool anybody);

#endif
