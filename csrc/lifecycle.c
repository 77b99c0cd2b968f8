/* lifecycle.c - create, attach, close: a segment and one's membership in it, from the first to the last reference. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "internal.h"

#define PATH_SIZE (sizeof SHMT_DIR SHMT_FILE_PREFIX + SHMT_NAME_MAX)

/* The last member out takes the name along. In a forked child that never joined there is no lock_fd, so a child's copy of
 * a handle removes nothing. */
static void remove_name_if_last(const shmt_segment *seg, uint32_t keep) {
    char path[PATH_SIZE];
    if (seg->info.name && seg->lock_fd >= 0 && shmt_name_path(seg->name, path, sizeof path) == 0) {
        shmt_name_remove_if_last(seg->lock_fd, path, seg->geo.members, keep);
    }
}

/* Joins, with every slot closed if somebody wants to know who touches what is not theirs. */
static int join(shmt_segment *seg) {
    if (seg->debug) {
        shmt_debug_begin(seg);
    }
    return shmt_member_join(seg);
}

/* The end of a handle whose last reference is gone, or that never came to life. */
static void destroy(shmt_segment *seg) {
    shmt_registry_lock(); /* a child forked off meanwhile would keep the lock, not knowing that it has it */
    /* Our byte goes before we look: of two who leave at once, the one that looks later finds nobody. */
    shmt_member_leave(seg);
    remove_name_if_last(seg, 0);
    shmt_member_forget_lock(seg);
    shmt_registry_unlock();
    shmt_segment *origin = seg->origin;
    shmt_segment_free(seg);
    if (origin) {
        shmt_segment_drop(origin);
    }
}

int shmt_segment_create(const shmt_config *config, shmt_segment **out) {
    char path[PATH_SIZE];
    shmt_geometry geo = {0};
    shmt_segment *seg;
    int rc = shmt_geometry_plan(config, &geo);
    if (rc == 0 && config->name) {
        rc = shmt_name_path(config->name, path, sizeof path);
    }
    if (rc == 0 && config->name) {
        shmt_sweep(false, NULL, NULL); /* what the dead left behind, under this name or another */
    }
    if (rc == 0) {
        rc = shmt_segment_make(config, &geo, &seg);
    }
    if (rc != 0) {
        return rc;
    }
    rc = join(seg); /* before it has its name: a sweep must find it in use */
    if (rc == 0 && config->name) {
        rc = shmt_name_link(seg->fd, path);
    }
    if (rc != 0) {
        destroy(seg);
        return rc;
    }
    *out = seg;
    return 0;
}

/* Takes over `fd` on success and on failure. */
static int attach_file(int fd, const char *name, shmt_segment **out) {
    shmt_segment *seg;
    int rc = shmt_segment_open(fd, name, &seg);
    if (rc != 0) {
        return rc;
    }
    rc = join(seg);
    int links = (rc == 0 || rc == -EUSERS) && name ? shmt_name_linked(fd) : 1;
    if (links <= 0) {
        rc = links < 0 ? links : -ENOENT; /* the last member took the name away while we were opening it */
    }
    if (rc != 0) {
        destroy(seg);
        return rc;
    }
    *out = seg;
    return 0;
}

int shmt_segment_attach(const char *name, shmt_segment **out) {
    char path[PATH_SIZE];
    int fd, rc = shmt_name_path(name, path, sizeof path);
    if (rc == 0) {
        rc = shmt_name_open(path, &fd);
    }
    return rc == 0 ? attach_file(fd, name, out) : rc;
}

int shmt_segment_attach_fd(int fd, shmt_segment **out) {
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return own < 0 ? -errno : attach_file(own, NULL, out);
}

int shmt_segment_attach_same(shmt_segment *seg, shmt_segment **out) {
    shmt_segment *other;
    int rc = shmt_segment_handle(&seg->geo, seg->base, seg->fd, NULL, &other);
    if (rc != 0) {
        return rc;
    }
    shmt_segment_hold(seg);
    other->origin = seg;
    rc = shmt_member_join(other);
    if (rc != 0) {
        destroy(other);
        return rc;
    }
    *out = other;
    return 0;
}

int shmt_segment_unlink(const shmt_segment *seg) {
    char path[PATH_SIZE];
    if (!seg->info.name) {
        return -EINVAL;
    }
    int rc = shmt_name_path(seg->name, path, sizeof path);
    return rc == 0 ? shmt_name_remove(path, seg->fd) : rc;
}

void shmt_segment_fail(shmt_segment *seg) { shmt_store_relaxed(&seg->failed, 1); /* for the close that follows */ }

void shmt_segment_close(shmt_segment *seg) {
    /* M2 acq_rel: only one closer goes on. Nothing is carried; the verbs are stopped by generation = 0 below. */
    if (shmt_exchange_acq_rel(&seg->closed, 1) != 0) {
        return;
    }
    shmt_registry_lock();
    bool joined = shmt_load_relaxed(&seg->generation) == shmt_fork_generation; /* under the registry's lock, as join */
    shmt_store_release(&seg->generation, 0); /* M1: from here on every verb goes to join, which says -EBADF */
    shmt_registry_unlock();
    if (joined) {
        if (shmt_load_relaxed(&seg->roles) & SHMT_PRODUCER) { /* written by this process only */
            /* N1 seq_cst, in this order: a consumer that counts us as closed finds everything that we published. Killed in
             * between, we are closed twice at most, and a reclaim clears the role. */
            bool failed = shmt_load_relaxed(&seg->failed) != 0; /* this process's own */
            shmt_add_seq_cst(failed ? &seg->header->producers_lost : &seg->header->producers_closed, 1); /* N1 */
        }
        /* Views may keep the membership, but nobody is to wait for us. Ordered by the wake-up below. */
        shmt_store_relaxed(&shmt_member_mine(seg)->roles, SHMT_LEFT);
    }
    /* G1: a reclaim in another thread holds its byte through the same description, and would lose it below; then the name
     * goes with the last reference only. */
    if (shmt_exchange_acquire(&seg->reclaiming, 1) == 0) {
        remove_name_if_last(seg, shmt_me(seg));  /* now, and again when the last view dies: others may outlive us */
        shmt_store_release(&seg->reclaiming, 0); /* G1 */
    }
    shmt_event_wake_all(&seg->header->ready_event);
    shmt_event_wake_all(&seg->header->free_event);
}

void shmt_segment_drop(shmt_segment *seg) {
    /* H1 acq_rel: pairs with itself in other threads. Carries: their last use of the mapping, before it is unmapped. */
    if (shmt_sub_acq_rel(&seg->refs, 1) == 1) {
        shmt_segment_close(seg);
        destroy(seg);
    }
}
