/* names.c - named segments are files in /dev/shm: born whole, opened with suspicion, removed by the last one out. */
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define PATIENCE_MS 20 /* with somebody who is removing a name */

int shmt_name_path(const char *name, char *path, size_t size) {
    size_t length = strlen(name);
    if (length == 0) {
        return -EINVAL;
    }
    if (length > SHMT_NAME_MAX) {
        return -ENAMETOOLONG;
    }
    for (const char *c = name; *c; c++) {
        bool fine = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '.' ||
                    *c == '_' || *c == '-';
        if (!fine) {
            return -EINVAL;
        }
    }
    int n = snprintf(path, size, SHMT_DIR SHMT_FILE_PREFIX "%s", name);
    return (size_t)n < size ? 0 : -ENAMETOOLONG;
}

/* statx and not fstat: the latter's symbol would raise the glibc that a wheel needs to 2.33. */
static int look(int fd, struct statx *st) {
    return statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, st) == 0 ? 0 : -errno;
}

/* /dev/shm is open to everybody: believe in nothing but a regular file of our own that nobody else may open. */
int shmt_name_open(const char *path, int *out) {
    int fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return errno == ELOOP ? -EPERM : -errno;
    }
    struct statx st;
    int rc = look(fd, &st);
    if (rc == 0 && (!S_ISREG(st.stx_mode) || st.stx_uid != geteuid() || (st.stx_mode & 0777) != 0600)) {
        rc = -EPERM;
    }
    if (rc != 0) {
        close(fd);
        return rc;
    }
    *out = fd;
    return 0;
}

/* O_TMPFILE has no name until linkat, so neither a kill nor somebody's sweep can meet half of a segment. */
int shmt_name_born(int *out) {
    int fd = open(SHMT_DIR, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -errno;
    }
    if (fchmod(fd, 0600) != 0) { /* whatever the umask took away */
        int rc = -errno;
        close(fd);
        return rc;
    }
    *out = fd;
    return 0;
}

int shmt_name_link(int fd, const char *path) {
    char self[32];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0) {
        return 0;
    }
    if (errno != ENOENT) {
        return -errno;
    }
    /* No /proc. Recent kernels let the opener link by descriptor. */
    return linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH) == 0 ? 0 : errno == ENOENT ? -ENXIO : -errno;
}

int shmt_name_linked(int fd) {
    struct statx st;
    int rc = look(fd, &st);
    return rc != 0 ? rc : (int)st.stx_nlink;
}

bool shmt_name_is(const char *path, int fd) {
    struct statx named, ours;
    return statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &named) == 0 && look(fd, &ours) == 0 &&
           named.stx_ino == ours.stx_ino && named.stx_dev_major == ours.stx_dev_major &&
           named.stx_dev_minor == ours.stx_dev_minor;
}

static int lock_bytes(int fd, short type, off_t start, off_t length) {
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    while (fcntl(fd, F_OFD_SETLK, &range) != 0) {
        if (errno != EINTR) {
            return errno == EACCES ? -EAGAIN : -errno;
        }
    }
    return 0;
}

static void wait_a_moment(void) { nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); }

/* ---- removing ---------------------------------------------------------------------------------------------------
 *
 * unlink() goes by path, so between "the path leads to this file" and the removal the path could come to mean another
 * file, and a living segment would lose its name. Therefore whoever removes a name holds the lock on byte 0 of the very
 * file that he then finds at the path, through a description of his own. A creator only links, which fails where a name
 * is; so the path stops leading to the file by a removal alone, and each of those needs the lock that we hold. */

/* Requires the lock on byte 0 of fd's file. */
static int remove_locked(const char *path, int fd) {
    if (!shmt_name_is(path, fd)) {
        return -ENOENT; /* gone, or another segment has the name by now */
    }
    return unlink(path) == 0 ? 0 : -errno;
}

int shmt_name_remove(const char *path, int fd) {
    int own, rc = shmt_name_is(path, fd) ? shmt_name_open(path, &own) : -ENOENT;
    if (rc != 0) {
        return rc == -EPERM ? -ENOENT : rc; /* gone, or no segment of ours any more */
    }
    /* Whoever has the byte removes this name within microseconds; unless it was stopped, and nobody waits for the stopped. */
    rc = lock_bytes(own, F_WRLCK, 0, 1);
    for (int again = 0; rc == -EAGAIN && again < PATIENCE_MS && shmt_name_is(path, fd); again++) {
        wait_a_moment();
        rc = lock_bytes(own, F_WRLCK, 0, 1);
    }
    if (!shmt_name_is(path, fd)) {
        rc = -ENOENT;
    } else if (rc == 0) {
        rc = remove_locked(path, own);
    }
    close(own);
    return rc == -EAGAIN ? -EBUSY : rc;
}

/* An exclusive lock over every byte says that nobody else takes part, and keeps everybody out while the name goes: a joiner
 * that opened the file meanwhile finds no byte free, looks at the link count, and reports that the name is gone. */
int shmt_name_remove_if_last(int lock_fd, const char *path, uint32_t members, uint32_t keep) {
    int rc = lock_bytes(lock_fd, F_WRLCK, 0, (off_t)members + 1);
    if (rc != 0) {
        return rc == -EAGAIN ? 0 : rc;
    }
    rc = remove_locked(path, lock_fd);
    /* Whoever has the mapping already, a forked child say, may still join: all bytes but our own are free again. */
    if (keep > 0) {
        lock_bytes(lock_fd, F_UNLCK, 0, (off_t)keep);
    }
    lock_bytes(lock_fd, F_UNLCK, keep > 0 ? (off_t)keep + 1 : 0, 0);
    return rc == 0 || rc == -ENOENT ? 1 : rc;
}

/* ---- sweeping ----------------------------------------------------------------------------------------------------------- */

static bool is_locked(int fd, off_t start, off_t length) {
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, F_OFD_GETLK, &range) != 0 || range.l_type != F_UNLCK;
}

/* One file of the sweep: 1 stale, for nobody holds any byte of it; 0 in use; -ENOENT there is no segment of ours (any more).
 * The description is fresh, so it cannot be confused with a member's own, of this process either; closing it drops whatever
 * lock it took. */
static int sweep_one(const char *path, bool dry_run) {
    int fd, rc = shmt_name_open(path, &fd);
    if (rc != 0) {
        return rc == -EMFILE || rc == -ENFILE ? rc : -ENOENT; /* not ours, or gone */
    }
    uint64_t magic = 0;
    if (pread(fd, &magic, sizeof magic, 0) != sizeof magic || magic != SHMT_MAGIC) {
        close(fd);
        return -ENOENT; /* the name is like ours, the file is not: somebody's, and segments are born with their magic */
    }
    for (int again = 0; again < PATIENCE_MS; again++) {
        if (dry_run) {
            rc = !is_locked(fd, 0, SHMT_MEMBERS_MAX + 1);
        } else if (lock_bytes(fd, F_WRLCK, 0, SHMT_MEMBERS_MAX + 1) == 0) {
            rc = remove_locked(path, fd) == 0;
        }
        if (shmt_name_linked(fd) == 0) {
            rc = rc == 1 && !dry_run ? 1 : -ENOENT; /* gone: by us, or by somebody else meanwhile */
            break;
        }
        if (rc == 1 || !is_locked(fd, 0, 1)) {
            break;
        }
        wait_a_moment(); /* who holds byte 0 is removing the name just now */
    }
    close(fd);
    return rc;
}

int shmt_sweep(bool dry_run, void (*seen)(void *arg, const char *name, int stale), void *arg) {
    DIR *dir = opendir(SHMT_DIR);
    if (!dir) {
        return -errno;
    }
    int removed = 0, rc = 0;
    const size_t prefix = sizeof SHMT_FILE_PREFIX - 1;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char path[sizeof SHMT_DIR + sizeof entry->d_name];
        if (strncmp(entry->d_name, SHMT_FILE_PREFIX, prefix) != 0) {
            continue;
        }
        snprintf(path, sizeof path, SHMT_DIR "%s", entry->d_name);
        int stale = sweep_one(path, dry_run);
        removed += stale > 0;
        rc = stale < 0 && stale != -ENOENT ? stale : rc; /* what could not be looked at may be stale */
        if (seen && stale >= 0) {
            seen(arg, entry->d_name + prefix, stale);
        }
    }
    closedir(dir);
    return rc != 0 ? rc : removed;
}
