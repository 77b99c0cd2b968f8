/* join.c - M1, M2 and G1: threads of one process that join, close and reclaim through one handle.
 *
 * JOIN: two threads enter a handle that has yet to join; both act under the id and the lock that one of them got.
 * CLOSE: two threads close a handle: one producer is counted. RECLAIM: two threads reclaim; the lock is one for all
 * threads of a process, so only `reclaiming` keeps them apart: what is done under it is plain memory here. LAST: one
 * reclaims and the other closes, which takes all the lock bytes to see whether the name can go. ROLL: a member died
 * with a READY slot, in the ring or (UNPUSHED) not, or with one that it was READING; one process takes it back while
 * two others take: once, and it is not lost. DEATH: a member dies while it reads what another has just published; who
 * buries it reads the item's tag. Of the kernel's lock only its success counts here, or (LOCKED) its order too. */
#include "stubs.h"

#include "order.c"
#include "slots.c"

#include <sched.h>
#include <time.h>
#define sched_getaffinity(pid, size, set) ((void)(set), -1)
#define nanosleep(a, b) ((void)0)

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
void shmt_registry_lock(void) { pthread_mutex_lock(&registry); }
void shmt_registry_unlock(void) { pthread_mutex_unlock(&registry); }
int shmt_member_open_lock(const shmt_segment *seg, int *lock_fd) {
    *lock_fd = seg ? 7 : -1;
    return 0;
}
int shmt_member_lock_any(shmt_segment *seg, int lock_fd, uint32_t *id) {
    *id = seg && lock_fd == 7 ? 2 : 0;
    return 0;
}
static int under_the_lock; /* what one reclaimer at a time does */
static shmt_atomic32 dead;
int shmt_member_try_lock(const shmt_segment *seg, uint32_t id) {
    assert(seg->lock_fd == 7 || seg->lock_fd == -1);
    under_the_lock++;
#if defined(DEATH) && defined(LOCKED)
    return id == MEMBERS && shmt_load_acquire(&dead);
#elif defined(DEATH)
    return id == MEMBERS && shmt_load_relaxed(&dead);
#else
    return id == MEMBERS; /* who is dead */
#endif
}
void shmt_member_unlock(const shmt_segment *seg, uint32_t id) { under_the_lock += seg && id ? 1 : 0; }
#ifdef LAST
int shmt_name_path(const char *name, char *path, size_t size) { return name && path && size ? 0 : -EINVAL; }
int shmt_name_remove_if_last(int lock_fd, const char *path, uint32_t members, uint32_t keep) {
    assert(lock_fd == 7 && path && members == MEMBERS && keep == 1);
    under_the_lock++;
    return 0;
}
#endif
shmt_member_record *shmt_member_mine(shmt_segment *seg) { return &records[shmt_me(seg)]; }
void shmt_member_announce(shmt_segment *seg, uint32_t id) { shmt_store_relaxed(&seg->records[id].pid, id); }
void shmt_member_clear(shmt_segment *seg, uint32_t id) { shmt_store_relaxed(&seg->records[id].pid, 0); }
void shmt_member_leave(shmt_segment *seg) { seg->lock_fd = -1; }
void shmt_member_forget_lock(shmt_segment *seg) { seg->lock_fd = -1; }
int shmt_segment_populate(const shmt_geometry *geo, uint8_t *base) { return geo && base ? 0 : 0; }
void shmt_event_wake_all(shmt_event *event) { (void)event; }

int64_t shmt_now_ns(void) { return 0; }

/* For one slot. */
static void *one_zero(void) {
    uint8_t *byte = malloc(1);
    *byte = 0;
    return byte;
}
#define calloc(n, size) one_zero()
#define memset(at, byte, n) (*(at) = UINT64_MAX)
#include "deaths.c"
#include "reclaim.c"
#undef memset

void shmt_segment_free(shmt_segment *seg) { seg->base = NULL; }

#include "lifecycle.c"

static void *enter(void *arg) {
    shmt_segment *seg = arg;
    int rc = shmt_enter(seg);
    assert(rc == 0);
    assert(shmt_me(seg) == 2);
    assert(seg->lock_fd == 7);
    return NULL;
}

static void *leave(void *seg) {
    shmt_segment_close(seg);
    return NULL;
}

static void *tidy(void *seg) {
    int rc = shmt_reclaim(seg);
    assert(rc >= 0 || rc == -EBADF);
    return NULL;
}

static shmt_atomic32 taken;

static void *taker(void *seg) {
    static uint64_t word[MEMBERS + 1];
    static uint32_t first[MEMBERS + 1];
    const uint32_t me = shmt_me(seg);
    int rc = shmt_order_take(seg, 1, &word[me], &first[me]);
    assert(rc == 1 || rc == -EAGAIN);
    if (rc == 1) {
        assert(payload_of[first[me]] == 1);
        shmt_add_relaxed(&taken, 1);
    }
    return NULL;
}

static void *publisher(void *arg) {
    shmt_segment *seg = arg;
    seg->slots[0].tag = 5;
    int rc = shmt_slots_change(seg, 0, shmt_word(SHMT_WRITING, 2, 1), shmt_word(SHMT_READY, 2, 1));
    assert(rc == 0);
    rc = shmt_order_push(seg, 0, 1);
    assert(rc == 0);
    return NULL;
}

static void *victim(void *seg) {
    taker(seg);
    shmt_store_release(&dead, 1);
    return NULL;
}

int main(void) {
    shmt_segment *seg = handle(1);
#if defined(JOIN)
    shmt_store_relaxed(&seg->generation, 0);
    shmt_store_relaxed(&seg->member, 0);
    start(enter, seg);
    start(enter, seg);
#elif defined(CLOSE)
    shmt_store_relaxed(&seg->roles, SHMT_PRODUCER);
    start(leave, seg);
    start(leave, seg);
    join_all();
    assert(shmt_load_relaxed(&header.producers_closed) == 1);
#elif defined(RECLAIM)
    shmt_store_relaxed(&records[MEMBERS].pid, MEMBERS);
    start(tidy, seg);
    start(tidy, seg);
#elif defined(LAST)
    seg->lock_fd = 7;
    seg->info.name = seg->name;
    shmt_store_relaxed(&records[MEMBERS].pid, MEMBERS);
    start(tidy, seg);
    start(leave, seg);
#elif defined(DEATH)
    handle(2);
    handle(MEMBERS);
    seg->lock_fd = 7;
    payload_of[0] = 1;
    shmt_store_relaxed(&slot_headers[0].word, shmt_word(SHMT_WRITING, 2, 1));
    start(publisher, &handles[2]);
    start(victim, &handles[MEMBERS]);
    start(tidy, seg);
#elif defined(ROLL)
    handle(2);
    seg->lock_fd = 7;
    handle(3);
    payload_of[0] = 1;
#ifdef READING
    shmt_store_relaxed(&slot_headers[0].word, shmt_word(SHMT_READING, MEMBERS, 1));
#else
    shmt_store_relaxed(&slot_headers[0].word, shmt_word(SHMT_READY, MEMBERS, 1));
#endif
#if !defined(UNPUSHED) && !defined(READING)
    shmt_order_push(&handles[3], 0, 1);
#endif
    start(tidy, seg);
    start(taker, &handles[2]);
    start(taker, &handles[3]);
    join_all();
    taker(&handles[2]);
    assert(shmt_load_relaxed(&taken) == 1);
#endif
    return 0;
}
