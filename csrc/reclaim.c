/* reclaim.c - taking back what the dead held, and joining, which begins with the same.
 *
 * Whoever can lock the byte of member i knows two things: i is dead, and nobody else is doing this. Each step is one
 * compare-and-swap that leaves the slot in a state from which another reclaimer could go on, so a reclaimer may die too.
 *
 *     WRITING            -> FREE                            the item was never published
 *     READY              -> pushed again if the ring lost it; then nobody's           roll forward
 *     READING, redeliver -> READY of the reclaimer, gen + 1, tries + 1; pushed        at least once
 *     READING, drop      -> FREE                                                      at most once */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

/* Whose lock bytes we hold: `one` who is named, or `some`, marked by id. Together, for with all of its places taken by the
 * dead a large segment is looked through in milliseconds once, and in seconds once for each of them. */
typedef struct deceased {
    uint32_t one; /* 0: nobody */
    const uint8_t *some;
} deceased;

#define DEAD 2u /* in `some` */

static bool is_dead(const deceased *dead, uint32_t owner) {
    return owner != 0 && (dead->some ? dead->some[owner] == DEAD : owner == dead->one);
}

/* The item of a dead consumer: hand it out again, or give it up. Returns whether a slot became free. */
static bool settle_reading(shmt_segment *seg, uint32_t index, uint64_t word, int *rc) {
    uint32_t tries = shmt_word_tries(word);
    uint64_t gen = shmt_word_gen(word);
    if ((seg->geo.flags & SHMT_DROP) || tries == SHMT_TRIES_MAX) {
        if (shmt_slots_change(seg, index, word, shmt_word(SHMT_FREE, 0, gen)) == 0) {
            shmt_add_relaxed(&seg->header->dropped, 1); /* a figure for people */
            return true;
        }
        return false;
    }
    /* Ours from here on: if we die before the push, the next reclaimer finds it READY and not in the ring. */
    if (shmt_slots_change(seg, index, word, shmt_word(SHMT_READY | (tries + 1), shmt_me(seg), gen + 1)) == 0) {
        shmt_add_relaxed(&seg->header->redelivered, 1); /* a figure for people */
        *rc = shmt_order_push(seg, index, gen + 1);
    }
    return false;
}

/* Published and not yet read: make sure that the ring knows of them, then nobody owns them. */
static int roll_forward(shmt_segment *seg, const deceased *dead, const uint64_t *gens, uint8_t *in_ring) {
    int rc = 0;
    shmt_order_mark(seg, gens, in_ring);
    for (uint32_t i = 0; i < seg->geo.slots && rc == 0; i++) {
        if (gens[i] == UINT64_MAX) {
            continue;
        }
        uint64_t word = shmt_load_seq_cst(&seg->slots[i].word); /* A1: the compare-and-swap in change() decides */
        if (!shmt_word_is_ready(word) || !is_dead(dead, shmt_word_owner(word)) || shmt_word_gen(word) != gens[i]) {
            continue; /* acquired since we looked: to push it now would only fill the ring with stale cells */
        }
        if (!in_ring[i]) {
            rc = shmt_order_push(seg, i, gens[i]);
        }
        shmt_slots_change(seg, i, word, shmt_word(shmt_word_state(word), 0, gens[i])); /* acquired: just as well */
    }
    return rc;
}

/* Requires the lock bytes of all of them. The slots are looked through once, and so is the ring. */
static int reclaim_slots(shmt_segment *seg, const deceased *dead) {
    const uint32_t slots = seg->geo.slots;
    uint64_t *gens = NULL;
    uint8_t *in_ring = NULL;
    int rc = 0;
    bool freed = false, ready = false;
    for (uint32_t i = 0; i < slots && rc == 0; i++) {
        uint64_t word = shmt_load_seq_cst(&seg->slots[i].word); /* A1: the compare-and-swap decides */
        const uint32_t id = shmt_word_owner(word);
        if (!is_dead(dead, id)) {
            continue;
        }
        if (shmt_word_state(word) == SHMT_WRITING) {
            shmt_death_record(seg, id, i, word, 0);
            freed |= shmt_slots_change(seg, i, word, shmt_word(SHMT_FREE, 0, shmt_word_gen(word))) == 0;
        } else if (shmt_word_is_reading(word)) {
            shmt_death_record(seg, id, i, word, seg->slots[i].tag); /* plain: nobody writes it while it is READING */
            freed |= settle_reading(seg, i, word, &rc);
            ready = true;
        } else if (shmt_word_is_ready(word)) {
            if (!gens) {
                gens = malloc(slots * sizeof *gens);
                in_ring = calloc(slots, 1);
                if (!gens || !in_ring) {
                    rc = -ENOMEM;
                    break;
                }
                memset(gens, 0xff, slots * sizeof *gens);
            }
            gens[i] = shmt_word_gen(word);
        }
    }
    if (rc == 0 && gens) {
        rc = roll_forward(seg, dead, gens, in_ring);
        ready = true;
    }
    free(gens);
    free(in_ring);
    if (freed) {
        shmt_event_wake_all(&seg->header->free_event);
    }
    if (ready) {
        shmt_event_wake_all(&seg->header->ready_event);
    }
    return rc;
}

/* Requires lock byte `id`, whose last holder's slots were taken back; if it died, that is noted. Returns 1 if it died, 0 if
 * it had left by itself. The count comes before the role goes (with shmt_member_clear or the next announcement): killed in
 * between, one producer is counted twice, and none is waited for in vain. */
static int note_death(shmt_segment *seg, uint32_t id) {
    if (shmt_load_relaxed(&seg->records[id].pid) == 0) { /* written by the holder of the byte only */
        return 0;
    }
    if (shmt_load_relaxed(&seg->records[id].roles) & SHMT_PRODUCER) { /* likewise */
        shmt_add_seq_cst(&seg->header->producers_lost, 1);            /* N1: before the role goes */
    }
    shmt_death_record(seg, id, SHMT_NO_SLOT, 0, 0);
    shmt_add_relaxed(&seg->header->reclaimed, 1); /* a figure for people */
    return 1;
}

/* Requires lock byte `id`. */
static int reclaim_member(shmt_segment *seg, uint32_t id) { return reclaim_slots(seg, &(deceased){.one = id}); }

static int bury(shmt_segment *seg, uint32_t id) {
    int rc = reclaim_member(seg, id);
    return rc != 0 ? rc : note_death(seg, id);
}

int shmt_member_join(shmt_segment *seg) {
    int rc = 0, lock_fd = -1;
    uint32_t id = 0;
    shmt_registry_lock();                       /* threads of this process, and fork */
    if (shmt_load_relaxed(&seg->closed) != 0) { /* under the registry's lock */
        rc = -EBADF;
    } else if (shmt_load_relaxed(&seg->generation) != shmt_fork_generation) { /* under the registry's lock */
        rc = shmt_member_open_lock(seg, &lock_fd);
        if (rc == 0) {
            rc = shmt_member_lock_any(seg, lock_fd, &id);
        }
        /* Whoever removes a name holds every byte for that moment. */
        for (int again = 0; rc == -EUSERS && again < 20; again++) {
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
            rc = shmt_member_lock_any(seg, lock_fd, &id);
        }
        if (rc == 0 && seg->populated != shmt_fork_generation && !seg->debug) { /* closed pages cannot be populated */
            rc = shmt_segment_populate(&seg->geo, seg->base); /* a forked child has the mapping without its pages */
            seg->populated = shmt_fork_generation;
        }
        if (rc == 0) {
            seg->lock_fd = lock_fd;
            shmt_store_relaxed(&seg->member, id); /* published by M1 below */
            shmt_store_relaxed(&seg->roles, 0);   /* likewise */
            /* Members begin far apart, and at a multiple of 16, so that runs of a power of two stay whole. */
            uint32_t start = seg->geo.slots ? (id * 2654435761u) % seg->geo.slots & ~15u : 0;
            shmt_store_relaxed(&seg->cursor, start); /* likewise */
            cpu_set_t usable;
            seg->cores = sched_getaffinity(0, sizeof usable, &usable) == 0 ? (uint32_t)CPU_COUNT(&usable) : 1;
            int died = bury(seg, id);
            rc = died < 0 ? died : 0;
            shmt_member_announce(seg, id);
            if (died > 0) { /* the end of the last producer is an event too */
                shmt_event_wake_all(&seg->header->ready_event);
            }
            /* M1 release: pairs with the acquire in shmt_enter(). Carries: lock_fd, member, cursor. */
            shmt_store_release(&seg->generation, shmt_fork_generation);
        } else if (lock_fd >= 0) {
            close(lock_fd);
        }
    }
    shmt_registry_unlock();
    return rc;
}

int shmt_reclaim(shmt_segment *seg) {
    int rc = shmt_enter(seg);
    if (rc != 0) {
        return rc;
    }
    /* G1 acquire/release: one thread of this process at a time, because all its threads share one lock description, so a
     * second one would "succeed" in locking the same byte. Busy means that somebody is doing the work: go. */
    if (shmt_exchange_acquire(&seg->reclaiming, 1) != 0) {
        return 0;
    }
    const uint32_t me = shmt_me(seg);
    uint8_t holds[SHMT_MEMBERS_MAX + 1] = {0};
    for (uint32_t i = 0; i < seg->geo.slots; i++) {
        holds[shmt_word_owner(shmt_load_relaxed(&seg->slots[i].word))] = 1; /* a hint: the lock decides */
    }
    bool any = false;
    for (uint32_t id = 1; id <= seg->geo.members; id++) {
        bool died = shmt_load_relaxed(&seg->records[id].pid) != 0; /* a hint: the lock decides; 0: it left by itself */
        bool had = (died || holds[id]) && id != me && shmt_member_try_lock(seg, id);
        holds[id] = had ? DEAD : 0;
        any |= had;
    }
    int taken = 0;
    rc = any ? reclaim_slots(seg, &(deceased){.some = holds}) : 0;
    for (uint32_t id = 1; any && id <= seg->geo.members; id++) {
        if (holds[id] == DEAD) {
            if (rc == 0) { /* else its record stays, so that the next one tries again */
                taken += note_death(seg, id);
                shmt_member_clear(seg, id);
            }
            shmt_member_unlock(seg, id);
        }
    }
    shmt_store_release(&seg->reclaiming, 0); /* G1 */
    if (taken > 0) {                         /* as in join */
        shmt_event_wake_all(&seg->header->ready_event);
    }
    return rc != 0 ? rc : taken;
}

void shmt_reclaim_slice(shmt_segment *seg) { (void)shmt_reclaim(seg); /* the wait goes on, and meets any corruption */ }
