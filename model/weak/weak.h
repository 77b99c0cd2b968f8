/* weak.h - what the litmus programs share: one segment in static memory, and threads that are its members.
 *
 * Each program includes the files of csrc/ that it is about, compiled whole; GenMC then runs it in every execution that
 * the C11 memory model (RC11) allows. Payload, item fields and what a handle carries are plain memory, so that an edge
 * which is too weak shows as a data race; the rest is asserted. tests/test_weak.py weakens the edges one by one. */
#ifndef WEAK_H
#define WEAK_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>

#ifndef EOWNERDEAD
#define EOWNERDEAD 130 /* GenMC's <errno.h> knows it not */
#endif
/* Nor does its interpreter know these. */
#define __builtin_ia32_pause() ((void)0)
#define __builtin_add_overflow(a, b, sum) (*(sum) = (a) + (b), 0)
#include "internal.h"

#ifndef SLOTS
#define SLOTS 1
#endif
#define RING (2 * SLOTS) /* SLOTS: a power of two */
#define DEATHS 1         /* so that every record is written over the one before */
#define MEMBERS 4
#undef SHMT_MEMBERS_MAX
#define SHMT_MEMBERS_MAX MEMBERS /* an array of so many is cleared, byte by byte */

static shmt_header header;
static shmt_slot_header slot_headers[SLOTS];
static shmt_atomic64 cells[RING];
static shmt_member_record records[MEMBERS + 1];
static shmt_death_cell deaths[DEATHS];
static shmt_lease leases[SLOTS];
static uint64_t payload_of[SLOTS];
static shmt_segment handles[MEMBERS + 1]; /* of member 1.. */

uint32_t shmt_fork_generation = 1;

/* Before any thread is started: member `id` has a handle and has joined. */
static shmt_segment *handle(uint32_t id) {
    shmt_segment *seg = &handles[id];
    seg->header = &header;
    seg->slots = slot_headers;
    seg->cells = cells;
    seg->records = records;
    seg->deaths = deaths;
    seg->leases = leases;
    seg->data = (uint8_t *)payload_of;
    seg->geo.slots = SLOTS;
    seg->geo.ring = RING;
    seg->geo.members = MEMBERS;
    seg->geo.deaths = DEATHS;
    seg->geo.slot_stride = sizeof payload_of[0];
    seg->geo.producers = 1;
    seg->ring_shift = (uint32_t)__builtin_ctz(RING);
    seg->lock_fd = -1;
    shmt_store_relaxed(&seg->member, id);
    shmt_store_relaxed(&seg->generation, shmt_fork_generation);
    shmt_store_relaxed(&seg->refs, 1);
    shmt_store_relaxed(&records[id].pid, id);
    for (uint32_t i = 0; i < RING; i++) {
        shmt_store_relaxed(&cells[i], shmt_cell(SHMT_LAP_MASK, 0, 0));
    }
    return seg;
}

static pthread_t threads[4];
static int n_threads;

static void start(void *(*run)(void *), shmt_segment *seg) {
    int rc = pthread_create(&threads[n_threads++], NULL, run, seg);
    assert(rc == 0);
}

static void join_all(void) {
    for (int i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
    }
}

#endif
