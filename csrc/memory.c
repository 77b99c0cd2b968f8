/* memory.c - reserve memory before anyone touches it, and say how much there is.
 *
 * A sparse file on a full tmpfs kills whoever touches it first with SIGBUS; fallocate turns that into ENOSPC. A memfd has
 * no limit of its own, so there an over-large fallocate ends in the OOM killer: every reservation is first compared with
 * what the machine and the memory control groups have left. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

/* tmpfs used to undo a whole fallocate on any pending signal, so a periodic timer could starve one big call for ever: after
 * each interruption the next call asks for half as much, down to what takes some twenty microseconds. */
#define RESERVE_CHUNK (UINT64_C(64) << 20)
#define RESERVE_CHUNK_MIN (UINT64_C(64) << 10)
/* Left to the rest of the machine; a reservation below the first figure is not worth reading five files for. */
#define CHECK_FROM (UINT64_C(64) << 10)
#define MARGIN (UINT64_C(64) << 20)

static bool populate_missing; /* an old kernel: reserved pages are there, but look like holes until they are touched */

int64_t shmt_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Reads a small file of the kernel's whole. 1: it is there; 0: it is not, or not for us; -errno: for want of a descriptor or
 * of memory nobody knows. */
static int slurp(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == EMFILE || errno == ENFILE || errno == ENOMEM ? -errno : 0;
    }
    ssize_t n = 0, got;
    while ((size_t)n < size - 1 && (got = read(fd, text + n, size - 1 - (size_t)n)) > 0) {
        n += got;
    }
    close(fd);
    text[n] = '\0';
    return n > 0;
}

/* The number after `key` at the start of a line; `otherwise` where there is none. */
static uint64_t number_after(const char *text, const char *key, uint64_t otherwise) {
    size_t length = strlen(key);
    const char *end;
    for (const char *line = text; line && *line; line = (end = strchr(line, '\n')) ? end + 1 : NULL) {
        if (strncmp(line, key, length) == 0) {
            const char *digit = line + length + strspn(line + length, " \t");
            uint64_t value = 0;
            if (*digit < '0' || *digit > '9') {
                return otherwise;
            }
            /* By hand: a recent glibc gives strtoull a version that older ones lack. */
            for (; *digit >= '0' && *digit <= '9'; digit++) {
                if (__builtin_mul_overflow(value, 10, &value) ||
                    __builtin_add_overflow(value, (uint64_t)(*digit - '0'), &value)) {
                    return UINT64_MAX;
                }
            }
            return value;
        }
    }
    return otherwise;
}

/* Lowers `left` to what one control group has left. Its page cache counts as used there but is given back on demand, so it
 * counts as left here. */
static int group_left(const char *dir, bool v2, uint64_t *left) {
    char path[600], text[8192];
    snprintf(path, sizeof path, "%s/%s", dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    int rc = slurp(path, text, sizeof text);
    if (rc <= 0) {
        return rc;
    }
    uint64_t limit = number_after(text, "", UINT64_MAX); /* "max" is no number: no limit */
    snprintf(path, sizeof path, "%s/%s", dir, v2 ? "memory.current" : "memory.usage_in_bytes");
    rc = slurp(path, text, sizeof text);
    if (rc <= 0) {
        return rc;
    }
    uint64_t used = number_after(text, "", 0);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    rc = slurp(path, text, sizeof text);
    if (rc > 0) {
        uint64_t cache = number_after(text, v2 ? "inactive_file " : "total_inactive_file ", 0);
        used -= cache < used ? cache : used;
    }
    uint64_t here = limit > used ? limit - used : 0;
    *left = here < *left ? here : *left;
    return rc;
}

/* The same for the group at `path` and all above it. In a container the path may be the host's: what does not exist is
 * skipped, and the mount's own root is looked at in any case. */
static int groups_left(const char *mount, const char *path, bool v2, uint64_t *left) {
    char dir[560];
    int n = snprintf(dir, sizeof dir, "%s%s", mount, path);
    if ((size_t)n >= sizeof dir) {
        return 0;
    }
    size_t root = strlen(mount);
    for (;;) {
        int rc = group_left(dir, v2, left);
        char *slash = strrchr(dir, '/'); /* the mount begins with one */
        if (rc < 0 || (size_t)(slash - dir) < root) {
            return rc;
        }
        *slash = '\0';
    }
}

static int memory_left(uint64_t *left) {
    char text[8192];
    *left = UINT64_MAX;
    int rc = slurp("/proc/meminfo", text, sizeof text);
    if (rc > 0) {
        *left = number_after(text, "MemAvailable:", UINT64_MAX / 1024) * 1024;
    }
    if (rc >= 0) {
        rc = slurp("/proc/self/cgroup", text, sizeof text);
    }
    if (rc <= 0) {
        return rc;
    }
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line && rc >= 0; line = strtok_r(NULL, "\n", &rest)) {
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) {
            continue;
        }
        *path++ = '\0';
        controllers++;
        if (*controllers == '\0') {
            rc = groups_left("/sys/fs/cgroup", path, true, left);
        } else if (strcmp(controllers, "memory") == 0) {
            rc = groups_left("/sys/fs/cgroup/memory", path, false, left);
        }
    }
    return rc;
}

uint64_t shmt_memory_left(void) {
    uint64_t left;
    (void)memory_left(&left);
    return left;
}

/* How much address space this process has left: of RLIMIT_AS, else of all that there is. That ends about where the stack
 * does, whatever the processor and the kernel: at a power of two. */
int shmt_memory_addresses(uint64_t *left) {
    char text[256];
    uint64_t most = 1, used = 0;
    struct rlimit limit;
    while (most <= (uintptr_t)text) {
        most *= 2;
    }
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur < most) {
        most = limit.rlim_cur;
    }
    int rc = slurp("/proc/self/statm", text, sizeof text);
    if (rc > 0) {
        used = number_after(text, "", 0) * (uint64_t)sysconf(_SC_PAGESIZE);
    }
    *left = most > used ? most - used : 0;
    return rc < 0 ? rc : 0;
}

/* Is there as much as that? */
int shmt_memory_check(uint64_t nbytes) {
    uint64_t left;
    if (nbytes < CHECK_FROM) {
        return 0;
    }
    int rc = memory_left(&left);
    if (rc < 0) {
        return rc; /* not to know is no reason to risk the OOM killer */
    }
    return nbytes > left || left - nbytes < MARGIN ? -ENOSPC : 0;
}

/* Reserves [offset, offset + nbytes) of the file. A part that was reserved before a failure stays reserved: the caller
 * gives the whole file up, or tries the same range again. */
int shmt_memory_reserve_unchecked(int fd, uint64_t offset, uint64_t nbytes) {
    uint64_t most = RESERVE_CHUNK;
    while (nbytes > 0) {
        uint64_t chunk = nbytes < most ? nbytes : most;
        if (fallocate(fd, 0, (off_t)offset, (off_t)chunk) == 0) {
            offset += chunk;
            nbytes -= chunk;
        } else if (errno != EINTR) {
            return errno == EFBIG ? -ENOSPC : -errno;
        } else if (most > RESERVE_CHUNK_MIN) {
            most /= 2;
        }
    }
    return 0;
}

int shmt_memory_reserve(int fd, uint64_t offset, uint64_t nbytes) {
    int rc = shmt_memory_check(nbytes);
    return rc == 0 ? shmt_memory_reserve_unchecked(fd, offset, nbytes) : rc;
}

/* Are the bytes from `have` to `want`, counted from `offset`, all there? Pages that nobody has touched count as a hole. */
int shmt_memory_present(int fd, uint64_t offset, uint64_t have, uint64_t want) {
    off_t hole = lseek(fd, (off_t)(offset + have), SEEK_HOLE); /* the file position means nothing to anybody */
    if (hole < 0) {
        return errno == ENXIO ? -EUCLEAN : -errno;
    }
    return (uint64_t)hole >= offset + want || populate_missing ? 0 : -EUCLEAN;
}

static int populate(void *at, uint64_t nbytes, int how) {
    uintptr_t begin = (uintptr_t)at & ~(uintptr_t)(SHMT_PAGE - 1);
    uintptr_t end = (uintptr_t)at + nbytes;
    while (nbytes > 0 && madvise((void *)begin, end - begin, how) != 0) {
        if (errno == EINVAL) {
            populate_missing = true;
            return 0;
        }
        if (errno != EINTR && errno != EAGAIN) {
            return errno == EFAULT ? -ENOSPC : -errno; /* EFAULT: where a touch would have been SIGBUS */
        }
    }
    return 0;
}

/* Maps pages writable without changing them, so that nobody pays a fault per 4 KiB later. A kernel before 5.14 says
 * EINVAL: then the first touch pays, which is slower and nothing else. */
int shmt_memory_populate(void *at, uint64_t nbytes) { return populate(at, nbytes, MADV_POPULATE_WRITE); }

/* The same for pages that somebody has touched already. They come writable too, sixteen with each fault: 128 MB take 6 ms
 * instead of 14 to 25. */
int shmt_memory_populate_present(void *at, uint64_t nbytes) { return populate(at, nbytes, MADV_POPULATE_READ); }

/* Writes to what was reserved and not touched yet: the kernel need not clear those pages first, nor map them here. Two
 * processes that write 64 MB each take 60 ms instead of 95, although only one of them is let in at a time. */
int shmt_memory_write(int fd, uint64_t offset, const void *data, uint64_t nbytes) {
    const uint8_t *from = data;
    while (nbytes > 0) {
        ssize_t n = pwrite(fd, from, nbytes, (off_t)offset); /* never 0: the file is longer */
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        uint64_t done = n > 0 ? (uint64_t)n : 0;
        from += done;
        offset += done;
        nbytes -= done;
    }
    return 0;
}

/* The file stays as long as it is; what is punched out reads as zeros, and a touch takes new memory. */
int shmt_memory_punch(int fd, uint64_t offset, uint64_t nbytes) {
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)nbytes) != 0) {
        if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}
