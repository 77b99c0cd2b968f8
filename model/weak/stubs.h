/* stubs.h - functions of csrc/ that the programs link and do not call: memory, names, geometry, making and opening a
 * segment, debug mode. */
#ifndef STUBS_H
#define STUBS_H

#include "weak.h"

#include "system.h"

#define STUB(name, ...)                                                                                                \
    int name(__VA_ARGS__) {                                                                                            \
        assert(!#name);                                                                                                \
        return -EINVAL;                                                                                                \
    }

STUB(shmt_memory_present, int fd, uint64_t offset, uint64_t have, uint64_t want)
STUB(shmt_memory_populate, void *at, uint64_t nbytes)
STUB(shmt_memory_reserve, int fd, uint64_t offset, uint64_t nbytes)
STUB(shmt_name_open, const char *path, int *fd)
STUB(shmt_name_link, int fd, const char *path)
STUB(shmt_name_linked, int fd)
#ifndef LAST /* join.c has its own */
STUB(shmt_name_path, const char *name, char *path, size_t size)
STUB(shmt_name_remove_if_last, int lock_fd, const char *path, uint32_t members, uint32_t keep)
#endif
STUB(shmt_geometry_plan, const shmt_config *config, shmt_geometry *geo)
STUB(shmt_segment_make, const shmt_config *config, const shmt_geometry *wish, shmt_segment **out)
STUB(shmt_segment_open, int fd, const char *name, shmt_segment **out)
STUB(shmt_segment_handle, const shmt_geometry *geo, uint8_t *base, int fd, const char *name, shmt_segment **out)
STUB(shmt_sweep, bool dry_run, void (*seen)(void *arg, const char *name, int stale), void *arg)

bool shmt_name_is(const char *path, int fd) {
    assert(!path);
    return fd == 0;
}

void shmt_debug_begin(shmt_segment *seg) { assert(!seg); }
void shmt_debug_open(const shmt_segment *seg, uint32_t index, uint32_t n) { assert(!seg && index == n); }
void shmt_debug_shut(const shmt_segment *seg, uint32_t index, uint32_t n) { assert(!seg && index == n); }
uint64_t shmt_debug_poison(shmt_segment *seg, uint32_t index, uint64_t word) {
    assert(!seg);
    return word + index;
}
int shmt_debug_check(shmt_segment *seg) {
    assert(!seg);
    return 0;
}

#endif
