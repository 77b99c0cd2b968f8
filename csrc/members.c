/* members.c - who takes part and who is dead: member i lives as long as it holds the exclusive lock on byte i of the file.
 *
 * An open-file-description lock (F_OFD_SETLK) on a descriptor of our own: a POSIX lock would vanish when any descriptor of
 * the file is closed, and a pid says nothing across pid namespaces, after reuse, or of a zombie. The kernel unmaps a dying
 * process's memory before it releases its locks, so a free byte means that no further store can come. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

static int lock_byte(int fd, uint32_t id, short type) {
    struct flock byte = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)id, .l_len = 1};
    while (fcntl(fd, F_OFD_SETLK, &byte) != 0) {
        if (errno != EINTR) {
            return errno == EACCES ? -EAGAIN : -errno;
        }
    }
    return 0;
}

/* A new open file description of the same file: through /proc, or by name where there is no /proc. */
int shmt_member_open_lock(const shmt_segment *seg, int *lock_fd) {
    char path[64 + SHMT_NAME_MAX];
    snprintf(path, sizeof path, "/proc/self/fd/%d", seg->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno != ENOENT) {
        return -errno;
    }
    if (fd < 0) {
        if (!seg->info.name || shmt_name_path(seg->name, path, sizeof path) != 0) {
            return -ENXIO;
        }
        int rc = shmt_name_open(path, &fd);
        if (rc == 0 && !shmt_name_is(path, seg->fd)) {
            close(fd);
            rc = -ENXIO;
        }
        if (rc != 0) {
            return rc == -ENOENT ? -ENXIO : rc; /* no name yet, or no longer */
        }
    }
    *lock_fd = fd;
    return 0;
}

/* Takes any free byte, beginning where the last joiner did not: so cursors spread, and a dead member's byte is not taken
 * over at once. -EUSERS if all are held. */
int shmt_member_lock_any(shmt_segment *seg, int lock_fd, uint32_t *id) {
    uint32_t start = shmt_add_relaxed(&seg->header->joins, 1); /* any value will do */
    for (uint32_t k = 0; k < seg->geo.members; k++) {
        uint32_t candidate = 1 + (start + k) % seg->geo.members;
        int rc = lock_byte(lock_fd, candidate, F_WRLCK);
        if (rc == 0) {
            *id = candidate;
            return 0;
        }
        if (rc != -EAGAIN) {
            return rc;
        }
    }
    return -EUSERS;
}

int shmt_member_try_lock(const shmt_segment *seg, uint32_t id) { return lock_byte(seg->lock_fd, id, F_WRLCK) == 0; }

void shmt_member_unlock(const shmt_segment *seg, uint32_t id) { lock_byte(seg->lock_fd, id, F_UNLCK); }

/* Only asks: of our own byte, and of one that another thread of ours is reclaiming, the description would say "free". */
bool shmt_member_is_alive(const shmt_segment *seg, uint32_t id) {
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)id, .l_len = 1};
    return id == shmt_me(seg) || (fcntl(seg->lock_fd, F_OFD_GETLK, &byte) == 0 && byte.l_type != F_UNLCK);
}

shmt_member_record *shmt_member_mine(shmt_segment *seg) { return &seg->records[shmt_me(seg)]; }

/* Counts the records that look alive. The figure only decides how to spin, so a stale one costs speed and nothing else. */
static void recount(shmt_segment *seg) {
    uint32_t alive = 0;
    for (uint32_t id = 1; id <= seg->geo.members; id++) {
        alive += shmt_load_relaxed(&seg->records[id].pid) != 0; /* a hint */
    }
    shmt_store_relaxed(&seg->header->joined, alive); /* a hint */
}

/* For people and for counters; written under the member's own lock byte. Relaxed: nothing is decided by these. */
void shmt_member_announce(shmt_segment *seg, uint32_t id) {
    shmt_member_record *mine = &seg->records[id];
    shmt_store_relaxed(&mine->roles, 0);
    shmt_store_relaxed(&mine->claim_waits, 0);
    shmt_store_relaxed(&mine->acquire_waits, 0);
    shmt_store_relaxed(&mine->spins, 0);
    shmt_store_relaxed(&mine->sleeps, 0);
    shmt_store_relaxed(&mine->wakes, 0);
    shmt_store_relaxed(&mine->ready_high, 0);
    shmt_store_relaxed(&mine->joined_ns, (uint64_t)shmt_now_ns());
    shmt_store_relaxed(&mine->pid, (uint32_t)getpid());
    recount(seg);
}

void shmt_member_clear(shmt_segment *seg, uint32_t id) {
    shmt_store_relaxed(&seg->records[id].roles, 0); /* by the holder of lock byte id */
    shmt_store_relaxed(&seg->records[id].pid, 0);   /* likewise */
    recount(seg);
}

/* The end of this process's membership. In a forked child that never joined there is nothing to leave. */
void shmt_member_leave(shmt_segment *seg) {
    if (seg->lock_fd >= 0) {
        shmt_member_clear(seg, shmt_me(seg));
        shmt_member_unlock(seg, shmt_me(seg));
    }
}

void shmt_member_forget_lock(shmt_segment *seg) {
    if (seg->lock_fd >= 0) {
        close(seg->lock_fd);
        seg->lock_fd = -1;
    }
}

/* The roles that members have who have not left and are not known to be dead, in one mask. */
uint32_t shmt_member_roles(const shmt_segment *seg) {
    uint32_t mask = 0;
    for (uint32_t id = 1; id <= seg->geo.members; id++) {
        /* N2 seq_cst: pairs with the role's N2 in handoff.c, which a producer sets before it looks at `shut`. */
        uint32_t roles = shmt_load_seq_cst(&seg->records[id].roles);
        bool idle =
            roles == 0 && shmt_load_relaxed(&seg->records[id].pid) != 0; /* a hint: it may only prolong a wait */
        mask |= idle ? SHMT_IDLE : roles;
    }
    return mask;
}

uint32_t shmt_member_id(const shmt_segment *seg) { return shmt_me(seg); }
