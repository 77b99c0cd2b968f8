/* guard.c - memory that nobody may touch on both sides of each mapping of a segment: linked before mmap and munmap. */
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>

/* Of the largest slot index of a ring cell, in slot headers and in small payloads, and more. */
#define GUARD ((size_t)64 << 20)
#define MAPPINGS_MAX 64

void *__real_mmap(void *at, size_t nbytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t nbytes);
void *__wrap_mmap(void *at, size_t nbytes, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t nbytes);

static char *guarded[MAPPINGS_MAX]; /* the targets have one thread */

static size_t whole_pages(size_t nbytes) { return (nbytes + 4095) & ~(size_t)4095; }

void *__wrap_mmap(void *at, size_t nbytes, int protection, int flags, int fd, off_t offset) {
    size_t place = 0;
    while (place < MAPPINGS_MAX && guarded[place]) {
        place++;
    }
    if (at || fd < 0) {
        return __real_mmap(at, nbytes, protection, flags, fd, offset);
    }
    if (place == MAPPINGS_MAX) {
        abort();
    }
    char *around = __real_mmap(NULL, whole_pages(nbytes) + 2 * GUARD, PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (around == MAP_FAILED) {
        return MAP_FAILED;
    }
    char *inside = __real_mmap(around + GUARD, nbytes, protection, flags | MAP_FIXED, fd, offset);
    if (inside == MAP_FAILED) {
        __real_munmap(around, whole_pages(nbytes) + 2 * GUARD);
        return MAP_FAILED;
    }
    guarded[place] = inside;
    return inside;
}

int __wrap_munmap(void *at, size_t nbytes) {
    for (size_t i = 0; i < MAPPINGS_MAX; i++) {
        if (guarded[i] == at) {
            guarded[i] = NULL;
            return __real_munmap((char *)at - GUARD, whole_pages(nbytes) + 2 * GUARD);
        }
    }
    return __real_munmap(at, nbytes);
}
