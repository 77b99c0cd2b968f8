/* registry.c - which handles live in this process, so that a forked child can let go of its parent's locks. */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "internal.h"

uint32_t shmt_fork_generation = 1;

/* Process-local, and taken only to create, join and detach. The atfork handlers hold it across fork(), so that the child
 * never inherits it locked and never meets a half-linked list. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static shmt_segment *first;
static int atfork_rc = -1;

void shmt_registry_lock(void) { pthread_mutex_lock(&mutex); }

void shmt_registry_unlock(void) { pthread_mutex_unlock(&mutex); }

/* The child shares its parent's open file descriptions and with them its locks: until the child closes them, a parent
 * that dies would still look alive. It closes them and never unlocks, for F_UNLCK would unlock the parent too. */
static void in_child(void) {
    shmt_fork_generation++;
    for (shmt_segment *seg = first; seg; seg = seg->next) {
        if (seg->lock_fd >= 0) {
            close(seg->lock_fd);
            seg->lock_fd = -1;
        }
        shmt_store_relaxed(&seg->reclaiming, 0); /* the child has one thread */
        shmt_store_relaxed(&seg->roles, 0);      /* likewise */
        shmt_store_relaxed(&seg->member, 0);     /* likewise: nobody, until it joins */
    }
    pthread_mutex_unlock(&mutex);
}

int shmt_registry_add(shmt_segment *seg) {
    pthread_mutex_lock(&mutex);
    if (atfork_rc != 0) {
        atfork_rc = pthread_atfork(shmt_registry_lock, shmt_registry_unlock, in_child);
    }
    int rc = -atfork_rc;
    if (rc == 0) {
        seg->prev = NULL;
        seg->next = first;
        if (first) {
            first->prev = seg;
        }
        first = seg;
    }
    pthread_mutex_unlock(&mutex);
    return rc;
}

void shmt_registry_remove(shmt_segment *seg) {
    pthread_mutex_lock(&mutex);
    if (seg->prev) {
        seg->prev->next = seg->next;
    } else {
        first = seg->next;
    }
    if (seg->next) {
        seg->next->prev = seg->prev;
    }
    pthread_mutex_unlock(&mutex);
}
