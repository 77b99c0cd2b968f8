/* names.c - named segments are files in /dev/shm: born whole, opened with suspicion, removed by the last one out. */
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

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
    return n > 0 && (size_t)n < size ? 0 : -ENAMETOOLONG;
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

/* An exclusive lock over every member byte says that nobody else takes part, and keeps everybody out while the name goes:
 * a joiner that opened the file meanwhile finds no byte free, looks at the link count, and reports that the name is gone.
 * Only whoever holds this lock removes a name, so the path cannot come to mean another file in between. */
int shmt_name_remove_if_last(int lock_fd, const char *path, uint32_t members, uint32_t keep) {
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = (off_t)members};
    if (fcntl(lock_fd, F_OFD_SETLK, &all) != 0) {
        return errno == EAGAIN || errno == EACCES ? 0 : -errno;
    }
    int rc = shmt_name_is(path, lock_fd) && unlink(path) != 0 ? -errno : 1;
    /* Whoever has the mapping already, a forked child say, may still join: all bytes but our own are free again. */
    struct flock below = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = (off_t)keep - 1};
    struct flock above = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = (off_t)keep + 1, .l_len = 0};
    if (keep > 1) {
        fcntl(lock_fd, F_OFD_SETLK, &below);
    }
    fcntl(lock_fd, F_OFD_SETLK, &above);
    return rc;
}

/* One file of the sweep: stale if nobody holds any member byte. The description is fresh, so it cannot be confused with a
 * member's own, of this process either; closing it drops whatever lock it took. */
static int sweep_one(const char *path, bool dry_run) {
    int fd;
    if (shmt_name_open(path, &fd) != 0) {
        return 0; /* not ours, or gone */
    }
    uint64_t magic = 0;
    int stale;
    if (pread(fd, &magic, sizeof magic, 0) != sizeof magic || magic != SHMT_MAGIC) {
        stale = 0; /* the name is like ours, the file is not: somebody's, and segments are born with their magic */
    } else if (dry_run) {
        struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = SHMT_MEMBERS_MAX};
        stale = fcntl(fd, F_OFD_GETLK, &all) == 0 && all.l_type == F_UNLCK;
    } else {
        stale = shmt_name_remove_if_last(fd, path, SHMT_MEMBERS_MAX, 0) == 1;
    }
    close(fd);
    return stale;
}

int shmt_sweep(bool dry_run, void (*seen)(void *arg, const char *name, int stale), void *arg) {
    DIR *dir = opendir(SHMT_DIR);
    if (!dir) {
        return -errno;
    }
    int removed = 0;
    const size_t prefix = sizeof SHMT_FILE_PREFIX - 1;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char path[sizeof SHMT_DIR + sizeof entry->d_name];
        if (strncmp(entry->d_name, SHMT_FILE_PREFIX, prefix) != 0) {
            continue;
        }
        snprintf(path, sizeof path, SHMT_DIR "%s", entry->d_name);
        int stale = sweep_one(path, dry_run);
        removed += stale;
        if (seen) {
            seen(arg, entry->d_name + prefix, stale);
        }
    }
    closedir(dir);
    return removed;
}
