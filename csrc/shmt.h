/* shmt.h - the public C interface of shmtensor: types, verbs, error contract.
 *
 * ERRORS. Every function that can fail returns 0 or a count on success and -errno on failure. Results come through
 * out-parameters, which stand last and are untouched on failure. Nothing here prints, aborts or sets errno.
 *
 *   -EAGAIN     a try_ verb found nothing to take            -ETIMEDOUT  the deadline passed
 *   -EINTR      a signal arrived while waiting: look at it, then call again with the same deadline. One that arrives
 *               just before the wait interrupts nothing: whoever must react to signals waits in steps
 *   -ESHUTDOWN  the stream has ended                          -ESTALE     the slot was reclaimed: the lease is lost
 *   -EOWNERDEAD nobody is left alive who could end the wait
 *   -EBADF      this handle is closed                         -EUCLEAN    shared memory is corrupt
 *   -ENOSPC     memory could not be reserved                  -ENOMEM     address space or heap exhausted
 *   -EMSGSIZE   larger than a slot can become                 -EUSERS     every member's place is taken
 *   -EBADMSG    not a segment of ours                         -EPROTONOSUPPORT  of an incompatible build
 *   -EEXIST -ENOENT -EACCES -EPERM -ENAMETOOLONG -EINVAL -EMFILE ...  as in the system call that said so
 *   -ENXIO      /proc is not mounted: creating needs it, and joining an anonymous segment
 *
 * TIME. Deadlines are absolute CLOCK_MONOTONIC nanoseconds; SHMT_FOREVER waits for ever.
 *
 * THREADS AND FORK. Every verb may be called from any thread. After fork() the child is a new member: it joins by itself at
 * its first verb; what the parent held stays the parent's, and dropping a copy of it in the child does nothing.
 */
#ifndef SHMT_H
#define SHMT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHMT_FOREVER INT64_MAX
int64_t shmt_now_ns(void); /* CLOCK_MONOTONIC: what deadlines are counted from */

typedef struct shmt_segment shmt_segment; /* one mapping of one segment in this process */
typedef struct shmt_lease shmt_lease;     /* a counted hold on an acquired slot, process-local */

/* ---- segments: created, attached, closed, unlinked ------------------------------------------------------------------ */

enum {
    SHMT_GROW = 1u,       /* slots are sparse and are reserved as they are needed */
    SHMT_PREFAULT = 2u,   /* map every reserved page at create and attach */
    SHMT_HUGE_PAGES = 4u, /* advise huge pages; /proc/<pid>/smaps, ShmemPmdMapped, says whether it took */
    SHMT_APART = 16u,     /* with SHMT_PREFAULT: not in create and attach; the caller does it, in threads */
    SHMT_DROP = 8u,       /* an item whose consumer dies is dropped; otherwise it is redelivered */
    SHMT_SHRUNK = 32u,    /* set by create: its limits let slots grow less far than was asked for; see `share` */
};

typedef struct shmt_config {
    const char *name;     /* NULL: anonymous. Else 1..200 characters of [A-Za-z0-9._-] */
    uint64_t slot_nbytes; /* bytes reserved in each slot; of the whole payload if slots == 0 */
    uint64_t slot_stride; /* SHMT_GROW: how far a slot may grow, bytes; else ignored */
    uint64_t slot_least;  /* SHMT_GROW: how far it must be able to, whatever `share` says */
    uint32_t share;   /* SHMT_GROW: n: all slots together take at most an n-th of the address space that is left, and
                             less where that is not to be had. 0: what was asked for, or a failure */
    uint32_t slots;   /* 0: a plain segment without hand-off; at most 65,535 */
    uint32_t members; /* how many may take part at once; at most 4,095 */
    uint32_t flags;
    uint32_t producers; /* this many producers must have closed before the stream ends by itself; 0: never */
    uint32_t alignment; /* of each slot's payload: a power of two up to a page; 0: two cache lines or a page, by size */
    uint64_t seq_first; /* for tests: where the sequence numbers and generations begin */
    const void *meta;   /* stored for whoever attaches */
    uint32_t meta_nbytes;
} shmt_config;

typedef struct shmt_info {
    const char *name; /* NULL if anonymous */
    const void *meta; /* in the mapping: shared, so check what you parse */
    uint8_t *data;    /* first payload byte */
    uint64_t data_nbytes;
    uint64_t total_nbytes;
    uint64_t slot_nbytes;
    uint64_t slot_stride;
    uint64_t identity;
    uint32_t meta_nbytes;
    uint32_t slots;
    uint32_t members;
    uint32_t flags;
    int fd;
} shmt_info;

/* Creates a segment and joins it. Nothing is left behind on failure. */
int shmt_segment_create(const shmt_config *config, shmt_segment **out);
/* Attaches to a named segment / to an inherited or received descriptor (which is duplicated), and joins it. */
int shmt_segment_attach(const char *name, shmt_segment **out);
int shmt_segment_attach_fd(int fd, shmt_segment **out);
const shmt_info *shmt_segment_info(const shmt_segment *seg);
/* Leaves and detaches; the last member of a named segment removes its name. The mapping stays until the last lease on it
 * is dropped, and so does the membership. Closing twice does nothing. */
void shmt_segment_close(shmt_segment *seg);
/* Before closing: what this process produced is not all that it was to produce. It then counts as one that died. */
void shmt_segment_fail(shmt_segment *seg);
bool shmt_segment_is_closed(const shmt_segment *seg);
/* The mapping is counted: create and attach give one reference, which shmt_segment_drop gives back. */
void shmt_segment_hold(shmt_segment *seg);
void shmt_segment_drop(shmt_segment *seg);
/* Removes the name; those who are attached go on. -ENOENT: it is gone, or another segment's by now; -EBUSY: a process that
 * was stopped has it in hand. */
int shmt_segment_unlink(const shmt_segment *seg);
/* Maps the pages of a range of the payload, bytes from its start, without changing them; may run in several threads. */
int shmt_segment_prefault(const shmt_segment *seg, uint64_t offset, uint64_t nbytes);
/* Removes the named segments of this user whose last member is dead; returns how many. `seen`, if given, is called with
 * each segment's name and whether it was (with dry_run: would be) removed; not with files that are none. */
int shmt_sweep(bool dry_run, void (*seen)(void *arg, const char *name, int stale), void *arg);
/* What could still be reserved, bytes: the least of the machine's available memory and the control groups' limits. */
uint64_t shmt_memory_left(void);

/* ---- members: joined, left, reclaimed --------------------------------------------------------------------------------- */

enum { SHMT_PRODUCER = 1u, SHMT_CONSUMER = 2u };

typedef struct shmt_member_info {
    uint32_t id; /* 1..members */
    uint32_t pid;
    uint32_t roles;
    bool alive;
    int64_t joined_ns;
} shmt_member_info;

/* Joins if this process has not (after fork, say). Every verb does so by itself. */
int shmt_member_join(shmt_segment *seg);
/* The id of this process, 0 before it joined. */
uint32_t shmt_member_id(const shmt_segment *seg);
/* Fills what is known of member `id`; -ENOENT if there is none. */
int shmt_member_info_get(shmt_segment *seg, uint32_t id, shmt_member_info *out);
/* Takes back what dead members held; returns how many members were reclaimed. Never waits. */
int shmt_reclaim(shmt_segment *seg);

/* The log of deaths: one record for each slot that a dead member held, and a last one, slot SHMT_NO_SLOT, that it died.
 * Records may be repeated (same member, joined_ns, slot and gen), and come when somebody reclaims. */
#define SHMT_NO_SLOT 0xffffu

typedef struct shmt_death {
    uint32_t member;
    uint32_t pid;      /* in its own pid namespace */
    uint32_t slot;     /* or SHMT_NO_SLOT */
    bool reading;      /* else it was writing */
    uint32_t tries;    /* how often the item had been redelivered before */
    uint64_t gen;      /* of the slot: tells one item of the slot from the next */
    uint64_t tag;      /* of the item that was being read */
    int64_t joined_ns; /* CLOCK_MONOTONIC, as is found_ns */
    int64_t found_ns;
} shmt_death;

typedef struct shmt_death_cursor {
    uint64_t position;
    uint64_t missed;       /* records that were overwritten before they were read, or never finished */
    int64_t unfinished_ns; /* since when we have been waiting for records before unfinished_end */
    uint64_t unfinished_end;
} shmt_death_cursor;

void shmt_death_begin(shmt_segment *seg, shmt_death_cursor *cursor);                /* what dies from now on */
int shmt_death_next(shmt_segment *seg, shmt_death_cursor *cursor, shmt_death *out); /* -EAGAIN: no more for now */

/* ---- slots: claim, publish or abort; acquire, release ------------------------------------------------------------------ */

typedef struct shmt_slot {
    uint8_t *data;       /* the slot's first payload byte */
    uint64_t word;       /* proof of ownership: the slot word as it stands while the slot is held */
    uint64_t nbytes;     /* acquired: bytes of the item. Claimed: bytes that may be touched now */
    uint64_t tag;        /* acquired: the producer's number for the item */
    uint32_t index;      /* 0..slots-1 */
    uint32_t tries;      /* acquired: how often the item was redelivered */
    uint32_t generation; /* fork generation: in a forked child a parent's slot is lost (-ESTALE) */
} shmt_slot;

/* Producer. The _many forms take 1..n consecutive slots, never waiting for more than the first; `first` describes the
 * first of them, the others follow at slot_stride, and they are published from the front. */
int shmt_slot_try_claim(shmt_segment *seg, shmt_slot *out);
int shmt_slot_claim(shmt_segment *seg, int64_t deadline_ns, shmt_slot *out);
int shmt_slot_try_claim_many(shmt_segment *seg, uint32_t n, uint64_t *words, shmt_slot *first);
int shmt_slot_claim_many(shmt_segment *seg, uint32_t n, int64_t deadline_ns, uint64_t *words, shmt_slot *first);
/* Makes at least `nbytes` of the claimed slot safe to touch. */
int shmt_slot_reserve(shmt_segment *seg, shmt_slot *slot, uint64_t nbytes);
int shmt_slot_publish(shmt_segment *seg, const shmt_slot *slot, uint64_t nbytes, uint64_t tag);
int shmt_slot_publish_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n,
                           uint64_t nbytes);
/* False in a forked child for a slot that its parent took: hands off. */
bool shmt_slot_is_ours(const shmt_slot *slot);
int shmt_slot_abort(shmt_segment *seg, const shmt_slot *slot);
int shmt_slot_abort_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n);

/* Parts of a slot that somebody else has claimed, and will publish or abort, but not before it has heard of each part or of
 * its writer's death. `index` and `word` are those of the claim, as they came through a hand-off. -ESTALE: it is not that
 * claim any more. Only what was reserved may be touched. */
int shmt_slot_borrow(shmt_segment *seg, uint32_t index, uint64_t word, shmt_slot *out);
int shmt_slot_reserve_part(shmt_segment *seg, const shmt_slot *slot, uint64_t offset, uint64_t nbytes);
/* Reserves and copies at once: the fast way for bytes that lie in one piece. */
int shmt_slot_write_part(shmt_segment *seg, const shmt_slot *slot, uint64_t offset, const void *data, uint64_t nbytes);
void shmt_slot_give_back(const shmt_segment *seg, const shmt_slot *slot);

/* Consumer: the oldest published item. The _many forms take 1..n items that lie in consecutive slots; the nbytes of `first`
 * is then the least of theirs: so much of each of them may be touched. */
int shmt_slot_try_acquire(shmt_segment *seg, shmt_slot *out);
int shmt_slot_acquire(shmt_segment *seg, int64_t deadline_ns, shmt_slot *out);
int shmt_slot_try_acquire_many(shmt_segment *seg, uint32_t n, uint64_t *words, shmt_slot *first);
int shmt_slot_acquire_many(shmt_segment *seg, uint32_t n, int64_t deadline_ns, uint64_t *words, shmt_slot *first);
int shmt_slot_release(shmt_segment *seg, const shmt_slot *slot);
int shmt_slot_release_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n);
/* Instead of release: the item could not be used here and is handed out again, after those that wait already. */
int shmt_slot_requeue(shmt_segment *seg, const shmt_slot *slot);
/* Of one of a batch's words: how often that item was redelivered; 0 for a claimed one. */
uint32_t shmt_slot_tries(uint64_t word);

/* How long a wait spins before it sleeps, microseconds; process-local, default 50. */
void shmt_spin_set(shmt_segment *seg, uint32_t spin_us);

/* Gives the memory that free slots have grown back to the system; `out`: how many bytes that were. Each is this process's for
 * a moment; those that anybody has, or that hold an item, keep theirs. */
int shmt_trim(shmt_segment *seg, uint64_t *out);

/* ---- leases: a held slot with a count, given back when the count ends --------------------------------------------------- */

/* The lease starts with one reference and keeps the mapping; it replaces release. Lock-free, from any thread. n > 1: of a
 * batch of consecutive slots. */
int shmt_lease_take(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n, shmt_lease **out);
void shmt_lease_hold(shmt_lease *lease);
void shmt_lease_drop(shmt_lease *lease);
uint32_t shmt_lease_count(const shmt_lease *lease);

typedef struct shmt_range {
    uint8_t *data;   /* where the lease's first slot begins */
    uint64_t nbytes; /* of it, from there: what this process has mapped so far; of a growing slot whole pages */
    uint64_t trims;  /* another number than before: the pages were given back meanwhile, and are others now */
    uint32_t index;  /* of the slot */
} shmt_range;

/* For whoever tells a device of the memory. Of a lease that the caller holds. */
void shmt_lease_range(const shmt_lease *lease, shmt_range *out);
/* A lease may also be taken of a claimed slot: its end then aborts the claim. This publishes it and ends the lease, if the
 * caller is the only holder; -EBUSY: others are, and nothing was done. After any other error it has ended as well. */
int shmt_lease_publish(shmt_lease *lease, uint64_t nbytes, uint64_t tag);

/* ---- watches: a descriptor that is readable while an acquire would not wait ---------------------------------------- */

typedef struct shmt_watcher shmt_watcher; /* whom a thread serves, for up to 127 watches; never freed */
typedef struct shmt_watch shmt_watch;     /* of one handle, in this process alone */

/* `to_run`: NULL, or whom the caller must have a thread serve by shmt_watcher_run(). `anybody`: that no producer is left
 * alive is no reason to be readable. Readable means, as of any descriptor: a moment ago. */
int shmt_watch_begin(shmt_segment *seg, bool anybody, shmt_watch **out, shmt_watcher **to_run);
/* Sleeps and signals; returns when nothing is watched any more. */
void shmt_watcher_run(shmt_watcher *watcher);
/* Instead of running it: no thread could be started. */
void shmt_watcher_unrun(shmt_watcher *watcher);
int shmt_watch_fd(const shmt_watch *watch);
/* False in a forked child for its parent's, which it can only end. */
bool shmt_watch_is_ours(const shmt_watch *watch);
/* To be called after each acquire, whatever came of it: the descriptor is not readable any more if nothing is left. */
void shmt_watch_settle(shmt_watch *watch);
/* After the handle was closed: readable from now on. The segment is let go of. */
void shmt_watch_close(shmt_watch *watch);
/* Closes the descriptor. */
void shmt_watch_end(shmt_watch *watch);

/* ---- stream and figures -------------------------------------------------------------------------------------------------- */

/* Ends the stream for everybody: claims fail with -ESHUTDOWN, acquires drain what was published, then do so too. */
void shmt_shutdown(shmt_segment *seg);

/* Where this process's claims begin to look: at the first slot, so that large payloads stay in few warm slots (the default
 * for slots of 4 MiB, and for those that grow), or where its last one ended, which keeps producers off each other's slots. */
void shmt_slots_prefer_few(shmt_segment *seg, bool few);

/* Slots that hold an item which waits to be acquired, and slots that are free; stats without the members. */
void shmt_slots_count(const shmt_segment *seg, uint32_t *ready, uint32_t *free_);
/* Slots that somebody is reading now. */
uint32_t shmt_slots_reading(const shmt_segment *seg);

/* Items pushed since creation. */
uint64_t shmt_tasks_pushed(shmt_segment *seg);
/* Items pushed and not declared done; -ERANGE from the second if fewer than n are; the third waits until none is. */
uint64_t shmt_tasks_unfinished(shmt_segment *seg);
int shmt_tasks_done(shmt_segment *seg, uint32_t n);
int shmt_tasks_join(shmt_segment *seg, int64_t deadline_ns);

typedef struct shmt_stats {
    uint64_t claims;                        /* since creation */
    uint64_t publishes;                     /* items pushed; a redelivery counts again */
    uint64_t free, writing, ready, reading; /* slots now; each word is read once, not all at one instant */
    uint64_t claim_waits, acquire_waits, spins, sleeps, wakes; /* of the members that have not left */
    uint64_t ready_high;                                       /* most items waiting, sampled every 64 publishes */
    uint64_t redelivered, dropped, reclaimed;
    uint64_t reserved_nbytes; /* bytes of payload that are reserved */
    uint64_t members;
    uint64_t shut;
} shmt_stats;

int shmt_stats_get(shmt_segment *seg, shmt_stats *out);

typedef struct shmt_slot_info {
    uint32_t state; /* 0 free, 1 writing, 2 ready, 3 reading */
    uint32_t owner; /* member id, 0 nobody */
    uint64_t gen;
} shmt_slot_info;

/* SHMTENSOR_DEBUG=1: which rule a segment broke when a verb last said -EUCLEAN in this process, or NULL. */
const char *shmt_debug_reason(const shmt_segment *seg);

int shmt_slot_info_get(shmt_segment *seg, uint32_t index, shmt_slot_info *out);

/* ---- copies: no state, no segment ------------------------------------------------------------------------------------------ */

/* From 16 MiB on past the caches (measured: 120-131 against 79-89 items/s at 77 MB; slower below). */
void shmt_copy(void *to, const void *from, size_t nbytes);
/* Packs `ndim` strided dimensions (strides in bytes, any sign, 0 allowed) into C order. */
void shmt_copy_strided(void *to, const void *from, int ndim, const int64_t *shape, const int64_t *strides,
                       size_t itemsize);

#endif
