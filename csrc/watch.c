/* watch.c - descriptors that are readable while there is something to acquire: for select, poll, epoll and their like.
 *
 * A producer in another process cannot reach a consumer's eventfd. So one thread of the consumer's sleeps on the ready
 * events of all segments that are watched, and on a word of its own by which it is called. A watch is
 *
 *     ARMED    not readable; the thread sleeps on the event, with W set, as every waiter does (E1, E2, E3)
 *     RAISED   readable; the thread does not sleep on the event, and so takes nobody's wake-up
 *     CLOSED   readable for ever: whoever asks then is to learn that it was closed
 *     GONE     nobody has it any more
 *
 *     ARMED -> RAISED   by the thread, when it finds something. It may have been woken in somebody's place, and takes
 *                       nothing: so it wakes one more. Found nothing, whatever it was woken for has been taken.
 *     RAISED -> ARMED   by whoever acquired and left nothing; by the thread, at the end of a slice, if other processes
 *                       did. In this order: the descriptor is emptied, W is set, and then somebody looks once more.
 *
 * Were the thread to sleep on while the watch is RAISED, two such threads would wake each other until somebody takes the
 * item. At the end of a slice it does what waiters do then: it takes back what the dead held, and looks. */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define WATCHES_MAX 127u         /* futex_waitv takes 128 words */
#define WAITV_NUMBER 449         /* on every machine; older headers do not know it, nor the type below */
#define LOOK_NS INT64_C(2000000) /* where there is no futex_waitv: between two looks */
#define SHARED_WORD 2u           /* FUTEX2_SIZE_U32 */
#define OWN_WORD (2u | FUTEX_PRIVATE_FLAG)

typedef struct futex_word {
    uint64_t seen;
    uint64_t address;
    uint32_t flags;
    uint32_t spare;
} futex_word;

enum { ARMED, RAISED, CLOSED, GONE };

struct shmt_watch {
    shmt_watcher *watcher;
    shmt_segment *seg;   /* a reference; NULL: it was let go of */
    uint32_t generation; /* fork generation in which it was begun */
    int fd;
    bool anybody;
    bool listed;         /* the thread has it, and is the one to let go of `seg` */
    shmt_atomic32 state; /* changed under the watcher's lock */
};

struct shmt_watcher {
    pthread_mutex_t lock; /* process-local, for a round of the thread or a change of one watch */
    uint32_t generation;  /* fork generation: a child takes it over as if it were new */
    bool has_thread;
    bool lacks_waitv; /* of the thread alone */
    uint32_t n;
    shmt_watch *list[WATCHES_MAX];
    shmt_atomic32 calls; /* what the thread sleeps on to be called */
    shmt_watcher *next;  /* under the registry's lock, as is the head of the list */
};

static shmt_watcher *watchers;

/* ---- a watch, under its watcher's lock ------------------------------------------------------------------------------ */

static uint32_t state_of(const shmt_watch *watch) {
    return shmt_load_relaxed(&watch->state); /* by the lock, or a hint */
}

static void make_readable(shmt_watch *watch, uint32_t state) {
    const uint64_t one = 1;
    shmt_store_relaxed(&watch->state, state); /* under the lock; first, for who is woken by the next line looks at it */
    (void)!write(watch->fd, &one, sizeof one);
}

static void make_unreadable(shmt_watch *watch) {
    uint64_t was;
    (void)!read(watch->fd, &was, sizeof was);
    shmt_store_relaxed(&watch->state, ARMED); /* under the lock */
}

static bool would_come(const shmt_watch *watch) { return shmt_slot_would_come(watch->seg, watch->anybody); }

/* Of an armed one: raises it if there is something. Else `seen` is what the event may be slept on with. */
static bool look_at(shmt_watch *watch, bool announce, uint32_t *seen) {
    shmt_event *event = &watch->seg->header->ready_event;
    *seen = announce ? shmt_event_announce(event) : 0; /* E1: before the look */
    if (!would_come(watch)) {
        return false;
    }
    shmt_event_wake(watch->seg, event, 1); /* in whose place we may have been woken */
    make_readable(watch, RAISED);          /* last: whoever is woken by it will want the lock */
    return true;
}

/* After a change under the lock, which orders this: either the thread's round comes after the change and sees it, or it had
 * loaded `calls` before, and the kernel compares. */
static void call(shmt_watcher *watcher) {
    shmt_add_relaxed(&watcher->calls, 1); /* see above */
    syscall(SYS_futex, &watcher->calls, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
}

/* ---- the thread -------------------------------------------------------------------------------------------------------- */

/* What a tour found: who is armed, and the words to sleep on, the thread's own before theirs. */
typedef struct tour {
    uint32_t armed;
    shmt_watch *watches[WATCHES_MAX];
    futex_word words[1 + WATCHES_MAX];
} tour;

/* Looks at every watch, and lets go of those that have ended; false: none is left, and so there is no thread any more. */
static bool go_round(shmt_watcher *watcher, bool slice_over, tour *r) {
    shmt_segment *left[WATCHES_MAX];
    uint32_t leaving = 0, kept = 0;
    r->armed = 0;
    r->words[0] = (futex_word){
        .seen = shmt_load_relaxed(&watcher->calls), /* before the lock is taken: see call() */
        .address = (uintptr_t)&watcher->calls,
        .flags = OWN_WORD,
    };
    pthread_mutex_lock(&watcher->lock);
    for (uint32_t i = 0; i < watcher->n; i++) {
        shmt_watch *watch = watcher->list[i];
        uint32_t state = state_of(watch), seen;
        if (state == CLOSED || state == GONE) {
            left[leaving++] = watch->seg;
            watch->seg = NULL;
            watch->listed = false;
            if (state == GONE) {
                free(watch);
            }
            continue;
        }
        watcher->list[kept++] = watch;
        if (state == RAISED && slice_over && !would_come(watch)) {
            make_unreadable(watch);
            state = ARMED;
        }
        if (state == ARMED && !look_at(watch, !watcher->lacks_waitv, &seen)) {
            r->watches[r->armed++] = watch;
            r->words[r->armed] = (futex_word){
                .seen = seen,
                .address = (uintptr_t)&watch->seg->header->ready_event.word,
                .flags = SHARED_WORD,
            };
        }
    }
    watcher->n = kept;
    watcher->has_thread = kept > 0;
    pthread_mutex_unlock(&watcher->lock);
    for (uint32_t i = 0; i < leaving; i++) {
        shmt_segment_drop(left[i]); /* not under the lock: the last one takes the registry's */
    }
    return kept > 0;
}

static struct timespec timespec_of(int64_t ns) {
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

static void sleep_on(shmt_watcher *watcher, const tour *r, int64_t until_ns) {
    if (!watcher->lacks_waitv) {
        struct timespec until = timespec_of(until_ns);
        long rc = syscall(WAITV_NUMBER, r->words, 1 + r->armed, 0, &until, CLOCK_MONOTONIC);
        /* ENOSYS before Linux 5.16; EPERM in a sandbox that has not heard of it. Whatever else: better slow than a spin. */
        watcher->lacks_waitv = rc < 0 && errno != EAGAIN && errno != ETIMEDOUT && errno != EINTR;
        return;
    }
    int64_t left = until_ns - shmt_now_ns();
    left = r->armed > 0 && left > LOOK_NS ? LOOK_NS : left;
    struct timespec timeout = timespec_of(left > 0 ? left : 0);
    syscall(SYS_futex, &watcher->calls, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, (uint32_t)r->words[0].seen, &timeout, NULL, 0);
}

void shmt_watcher_run(shmt_watcher *watcher) {
    tour r = {.armed = 0};
    int64_t slice_end = shmt_now_ns() + SHMT_SLICE_NS;
    prctl(PR_SET_NAME, "shmt-watcher");
    for (;;) {
        int64_t now = shmt_now_ns();
        bool slice_over = now >= slice_end;
        if (slice_over) {
            slice_end = now + SHMT_SLICE_NS;
            for (uint32_t i = 0; i < r.armed; i++) { /* only go_round() lets go of them */
                shmt_reclaim_slice(r.watches[i]->seg);
            }
        }
        if (!go_round(watcher, slice_over, &r)) {
            return;
        }
        sleep_on(watcher, &r, slice_end);
    }
}

void shmt_watcher_unrun(shmt_watcher *watcher) {
    pthread_mutex_lock(&watcher->lock);
    watcher->has_thread = false;
    pthread_mutex_unlock(&watcher->lock);
}

/* ---- whoever has the descriptor ------------------------------------------------------------------------------------- */

/* One with a place, under the registry's lock. Of the parent's a child takes nothing but the memory: their lock may be
 * held by a thread that is not here, and each watch is let go of by its handle. */
static shmt_watcher *watcher_with_room(void) {
    shmt_watcher *watcher = watchers;
    for (; watcher; watcher = watcher->next) {
        if (watcher->generation != shmt_fork_generation) {
            pthread_mutex_init(&watcher->lock, NULL);
            watcher->generation = shmt_fork_generation;
            watcher->has_thread = false;
            watcher->n = 0;
        }
        pthread_mutex_lock(&watcher->lock);
        bool room = watcher->n < WATCHES_MAX;
        pthread_mutex_unlock(&watcher->lock);
        if (room) {
            return watcher; /* only the thread could change `n`, and it only makes it smaller */
        }
    }
    watcher = calloc(1, sizeof *watcher);
    if (watcher) {
        pthread_mutex_init(&watcher->lock, NULL);
        watcher->generation = shmt_fork_generation;
        watcher->next = watchers;
        watchers = watcher;
    }
    return watcher;
}

int shmt_watch_begin(shmt_segment *seg, bool anybody, shmt_watch **out, shmt_watcher **to_run) {
    int rc = seg->geo.slots == 0 ? -EINVAL : shmt_enter(seg);
    if (rc != 0) {
        return rc;
    }
    shmt_watch *watch = calloc(1, sizeof *watch);
    if (!watch) {
        return -ENOMEM;
    }
    watch->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (watch->fd < 0) {
        rc = -errno;
        free(watch);
        return rc;
    }
    shmt_registry_lock();
    shmt_watcher *watcher = watcher_with_room();
    if (!watcher) {
        shmt_registry_unlock();
        close(watch->fd);
        free(watch);
        return -ENOMEM;
    }
    shmt_segment_hold(seg);
    watch->watcher = watcher;
    watch->seg = seg;
    watch->generation = shmt_fork_generation;
    watch->anybody = anybody;
    watch->listed = true;
    pthread_mutex_lock(&watcher->lock);
    watcher->list[watcher->n++] = watch;
    bool has_thread = watcher->has_thread;
    watcher->has_thread = true;
    pthread_mutex_unlock(&watcher->lock);
    shmt_registry_unlock();
    if (has_thread) {
        call(watcher);
    }
    *out = watch;
    *to_run = has_thread ? NULL : watcher;
    return 0;
}

int shmt_watch_fd(const shmt_watch *watch) { return watch->fd; }

bool shmt_watch_is_ours(const shmt_watch *watch) { return watch->generation == shmt_fork_generation; }

void shmt_watch_settle(shmt_watch *watch) {
    if (state_of(watch) != RAISED || !shmt_watch_is_ours(watch)) { /* an old state: the end of a slice mends it */
        return;
    }
    pthread_mutex_lock(&watch->watcher->lock);
    bool empty = state_of(watch) == RAISED && !would_come(watch);
    if (empty) {
        make_unreadable(watch);
    }
    pthread_mutex_unlock(&watch->watcher->lock);
    if (empty) {
        call(watch->watcher); /* it looks once more, and sleeps on the event again */
    }
}

void shmt_watch_close(shmt_watch *watch) {
    shmt_watcher *watcher = watch->watcher;
    if (!shmt_watch_is_ours(watch)) {
        if (watch->seg) {
            shmt_segment_drop(watch->seg);
            watch->seg = NULL;
        }
        return;
    }
    pthread_mutex_lock(&watcher->lock);
    bool first = state_of(watch) != CLOSED;
    if (first) {
        make_readable(watch, CLOSED);
    }
    pthread_mutex_unlock(&watcher->lock);
    if (first) {
        call(watcher);
    }
}

/* By itself, where no thread has it: in a forked child, after close, or if there never was one. */
static void let_go(shmt_watch *watch) {
    if (watch->seg) {
        shmt_segment_drop(watch->seg);
    }
    free(watch);
}

void shmt_watch_end(shmt_watch *watch) {
    shmt_watcher *watcher = watch->watcher;
    if (!shmt_watch_is_ours(watch)) {
        close(watch->fd);
        let_go(watch);
        return;
    }
    pthread_mutex_lock(&watcher->lock);
    close(watch->fd); /* under the lock: the thread writes to no number that is another's by then */
    shmt_store_relaxed(&watch->state, GONE); /* under the lock */
    if (watch->listed && !watcher->has_thread) {
        uint32_t i = 0;
        while (watcher->list[i] != watch) {
            i++;
        }
        watcher->list[i] = watcher->list[--watcher->n];
        watch->listed = false;
    }
    bool listed = watch->listed;
    pthread_mutex_unlock(&watcher->lock);
    if (listed) {
        call(watcher); /* which frees it */
    } else {
        let_go(watch);
    }
}
