/* segment.c - one mapping of one file: made, opened, validated; knowing nothing of members and slots. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

#define SPIN_US_DEFAULT 50u
#define LARGE_PAYLOAD (UINT64_C(4) << 20) /* from here on few hot slots beat a private cursor */

/* ---- the handle ---------------------------------------------------------------------------------------------------------- */

static void fill_handle(shmt_segment *seg, const shmt_geometry *geo, uint8_t *base, const char *name) {
    seg->geo = *geo;
    seg->base = base;
    seg->header = (shmt_header *)(void *)base;
    seg->records = (shmt_member_record *)(void *)(base + geo->members_offset);
    seg->slots = (shmt_slot_header *)(void *)(base + geo->slots_offset);
    seg->cells = (shmt_atomic64 *)(void *)(base + geo->ring_offset);
    seg->deaths = (shmt_death_cell *)(void *)(base + geo->deaths_offset);
    seg->data = base + geo->data_offset;
    seg->spin_us = SPIN_US_DEFAULT;
    seg->ring_shift = geo->ring ? (uint32_t)__builtin_ctz(geo->ring) : 0;
    bool few = geo->slot_nbytes >= LARGE_PAYLOAD || (geo->flags & SHMT_GROW);
    shmt_store_relaxed(&seg->few_hot_slots, few ? 1 : 0); /* a hint of this process */
    seg->debug = shmt_debug_wanted();
    seg->lock_fd = -1;
    seg->cores = 1;
    shmt_store_relaxed(&seg->refs, 1);                   /* nobody else knows this handle yet */
    shmt_store_relaxed(&seg->read_seen, geo->seq_first); /* likewise */
    if (name) {
        snprintf(seg->name, sizeof seg->name, "%s", name);
    }
    seg->info = (shmt_info){
        .name = name ? seg->name : NULL,
        .meta = base + geo->meta_offset,
        .data = seg->data,
        .data_nbytes = geo->total_nbytes - geo->data_offset,
        .total_nbytes = geo->total_nbytes,
        .slot_nbytes = geo->slot_nbytes,
        .slot_stride = geo->slot_stride,
        .identity = geo->identity,
        .meta_nbytes = geo->meta_nbytes,
        .slots = geo->slots,
        .members = geo->members,
        .flags = geo->flags,
        .fd = seg->fd,
    };
}

int shmt_segment_handle(const shmt_geometry *geo, uint8_t *base, int fd, const char *name, shmt_segment **out) {
    shmt_segment *seg = calloc(1, sizeof *seg);
    shmt_lease *leases = calloc(geo->slots + 1, sizeof *leases);
    shmt_mapped *mapped = calloc(geo->slots + 1, sizeof *mapped);
    if (!seg || !leases || !mapped) {
        free(seg);
        free(leases);
        free(mapped);
        return -ENOMEM;
    }
    seg->fd = fd;
    seg->leases = leases;
    seg->populated = shmt_fork_generation;
    seg->mapped = mapped;
    fill_handle(seg, geo, base, name);
    int rc = shmt_registry_add(seg);
    if (rc != 0) {
        free(leases);
        free(mapped);
        free(seg);
        return rc;
    }
    *out = seg;
    return 0;
}

void shmt_segment_free(shmt_segment *seg) {
    shmt_registry_remove(seg);
    if (!seg->origin) {
        munmap(seg->base, seg->geo.total_nbytes);
        close(seg->fd);
    }
    free(seg->leases);
    free(seg->mapped);
    free(seg);
}

static int map(int fd, uint64_t nbytes, uint8_t **out) {
    void *base = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return -errno;
    }
    madvise(base, nbytes, MADV_DONTDUMP); /* a core dump with a sparse 1 TiB mapping took 100 s */
    *out = base;
    return 0;
}

/* A failure to map what is reserved is an error, since a touch would then be fatal. */
int shmt_segment_populate(const shmt_geometry *geo, uint8_t *base) {
    int rc = shmt_memory_populate(base, geo->data_offset);
    uint8_t *data = base + geo->data_offset;
    if (rc != 0 || !(geo->flags & SHMT_PREFAULT)) {
        return rc;
    }
    if (geo->slots == 0) {
        return shmt_memory_populate(data, geo->slot_nbytes);
    }
    if (!(geo->flags & SHMT_GROW)) {
        return shmt_memory_populate(data, geo->total_nbytes - geo->data_offset);
    }
    for (uint32_t i = 0; i < geo->slots && rc == 0; i++) {
        rc = shmt_memory_populate(data + i * geo->slot_stride, geo->slot_nbytes);
    }
    return rc;
}

/* Huge pages where the system allows them (advice is only advice), then all reserved pages mapped at once. */
static int advise(const shmt_geometry *geo, uint8_t *base) {
    if (geo->flags & SHMT_HUGE_PAGES) {
        madvise(base, geo->total_nbytes, MADV_HUGEPAGE);
    }
    shmt_geometry now = *geo;
    now.flags &= geo->flags & SHMT_APART ? ~(uint32_t)SHMT_PREFAULT : ~UINT32_C(0);
    return shmt_segment_populate(&now, base);
}

/* ---- make: a file of our own -------------------------------------------------------------------------------------- */

static void give_up(int fd, uint8_t *base, uint64_t nbytes) {
    if (base) {
        munmap(base, nbytes);
    }
    close(fd);
}

static int anonymous_file(int *out) {
    /* By number: glibc before 2.27 has no wrapper. NOEXEC_SEAL since Linux 6.3, and asked for by vm.memfd_noexec. */
    long fd = syscall(SYS_memfd_create, "shmtensor", 1u /* CLOEXEC */ | 2u /* ALLOW_SEALING */ | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) {
        fd = syscall(SYS_memfd_create, "shmtensor", 1u | 2u);
    }
    if (fd < 0) {
        return -errno;
    }
    if (fchmod((int)fd, 0600) != 0) { /* others could open it through /proc else */
        int rc = -errno;
        close((int)fd);
        return rc;
    }
    *out = (int)fd;
    return 0;
}

/* Beyond RLIMIT_FSIZE ftruncate sends SIGXFSZ as well, which ends a process that does not ignore it. */
static int resize(int fd, uint64_t nbytes) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && nbytes > limit.rlim_cur) {
        return -EFBIG;
    }
    return ftruncate(fd, (off_t)nbytes) == 0 ? 0 : -errno;
}

/* The most that a segment of ours should take. Others want address space too: threads their stacks, malloc, the next
 * segment, and the processes that will map this one. Nobody but us wants the file. */
static int modest(uint32_t share, uint64_t *most) {
    uint64_t left;
    int rc = shmt_memory_addresses(&left);
    struct rlimit limit;
    *most = left / share;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < *most) {
        *most = limit.rlim_cur;
    }
    return rc;
}

static int shrink(shmt_geometry *geo, uint64_t least, uint64_t nbytes) {
    if (!shmt_geometry_fit(geo, least, nbytes)) {
        return -ERANGE;
    }
    geo->flags |= SHMT_SHRUNK;
    return shmt_geometry_place(geo);
}

/* Sizes and maps the file. Growing slots whose size is our choice grow less far where that is too much. */
static int size_and_map(int fd, const shmt_config *config, shmt_geometry *geo, uint8_t **base) {
    const uint64_t least = config->slot_least;
    if (config->share > 0) {
        uint64_t most;
        int rc = modest(config->share, &most);
        if (rc != 0) {
            return rc;
        }
        if (geo->total_nbytes > most) {
            (void)shrink(geo, least, most);
        }
    }
    for (;;) {
        int rc = resize(fd, geo->total_nbytes);
        if (rc == 0) {
            rc = map(fd, geo->total_nbytes, base);
        }
        /* Not all that stands in the way can be asked for beforehand: what a file system takes, holes, valgrind. */
        bool too_much = rc == -ENOMEM || rc == -EFBIG || rc == -EINVAL;
        if (!too_much || config->share == 0 || shrink(geo, least, geo->total_nbytes / 2) != 0) {
            return rc;
        }
    }
}

/* How much memory it takes from the start. */
static uint64_t wanted(const shmt_geometry *geo) {
    bool sparse = (geo->flags & SHMT_GROW) && geo->slots > 0;
    return sparse ? geo->data_offset + geo->slots * geo->slot_nbytes : geo->total_nbytes;
}

static int reserve(int fd, const shmt_geometry *geo) {
    if (!(geo->flags & SHMT_GROW) || geo->slots == 0) {
        return shmt_memory_reserve_unchecked(fd, 0, geo->total_nbytes);
    }
    int rc = shmt_memory_reserve_unchecked(fd, 0, geo->data_offset);
    for (uint32_t i = 0; i < geo->slots && rc == 0; i++) {
        rc = shmt_memory_reserve_unchecked(fd, geo->data_offset + i * geo->slot_stride, geo->slot_nbytes);
    }
    return rc;
}

/* Fresh tmpfs pages are zero; only what must not be zero is written. Relaxed: nobody can attach before the magic. */
static void initialise(uint8_t *base, shmt_geometry *geo, const shmt_config *config) {
    shmt_header *header = (shmt_header *)(void *)base;
    if (getrandom(&geo->identity, sizeof geo->identity, 0) != sizeof geo->identity) {
        geo->identity = (uint64_t)shmt_now_ns() ^ (uint64_t)(uintptr_t)base;
    }
    header->geometry = *geo;
    if (config->meta_nbytes > 0) {
        memcpy(base + geo->meta_offset, config->meta, config->meta_nbytes);
    }
    shmt_store_relaxed(&header->write_seq, geo->seq_first);
    shmt_store_relaxed(&header->read_seq, geo->seq_first);
    shmt_slot_header *slots = (shmt_slot_header *)(void *)(base + geo->slots_offset);
    for (uint32_t i = 0; i < geo->slots; i++) {
        shmt_store_relaxed(&slots[i].word, shmt_word(SHMT_FREE, 0, geo->seq_first));
        shmt_store_relaxed(&slots[i].reserved, geo->flags & SHMT_GROW ? geo->slot_nbytes : geo->slot_stride);
    }
    /* Cell i is next filled by the first position p >= seq_first that falls on it: until then it holds p's lap less one. */
    shmt_atomic64 *cells = (shmt_atomic64 *)(void *)(base + geo->ring_offset);
    for (uint64_t k = 0; k < geo->ring; k++) {
        uint64_t p = geo->seq_first + k;
        shmt_store_relaxed(&cells[p % geo->ring], shmt_cell(p / geo->ring - 1, 0, 0));
    }
    /* S1 magic: release; pairs with S1 in attach_mapping(). Carries: everything above. Without it an attacher that sees
     * the magic might still see half a header. */
    shmt_store_release(&header->magic, SHMT_MAGIC);
}

int shmt_segment_make(const shmt_config *config, const shmt_geometry *wish, shmt_segment **out) {
    shmt_geometry geo = *wish;
    uint8_t *base = NULL;
    shmt_segment *seg = NULL;
    /* Before the mapping: where both memory and address space are short, more address space would be of no use. */
    int fd = -1, rc = shmt_memory_check(wanted(&geo));
    if (rc == 0) {
        rc = config->name ? shmt_name_born(&fd) : anonymous_file(&fd);
    }
    if (rc != 0) {
        return rc;
    }
    rc = size_and_map(fd, config, &geo, &base);
    if (rc == 0 && !config->name && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        rc = -errno;
    }
    if (rc == 0) {
        rc = reserve(fd, &geo);
    }
    if (rc == 0) {
        rc = advise(&geo, base);
    }
    if (rc == 0) {
        initialise(base, &geo, config);
        rc = shmt_segment_handle(&geo, base, fd, config->name, &seg);
    }
    if (rc != 0) {
        give_up(fd, base, geo.total_nbytes); /* no name yet: the kernel takes the memory back */
        return rc;
    }
    for (uint32_t i = 0; i < geo.slots; i++) {
        seg->mapped[i].nbytes = geo.slot_nbytes;
    }
    *out = seg;
    return 0;
}

/* ---- open: a file that somebody else made ---------------------------------------------------------------------- */

/* Copies the header once, believes nothing in it that is not recomputed, and never reads geometry from there again. */
static int read_geometry(int fd, shmt_geometry *geo) {
    struct statx st;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_SIZE | STATX_TYPE | STATX_BLOCKS, &st) != 0) {
        return -errno;
    }
    if (!S_ISREG(st.stx_mode) || st.stx_size < SHMT_PAGE) {
        return -EBADMSG;
    }
    void *page = mmap(NULL, SHMT_PAGE, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) {
        return -errno;
    }
    shmt_header *header = page;
    /* S1 acquire: pairs with the release in initialise(). */
    uint64_t magic = shmt_load_acquire(&header->magic);
    *geo = header->geometry;
    munmap(page, SHMT_PAGE);
    if (magic != SHMT_MAGIC) {
        return -EBADMSG;
    }
    if (geo->abi != SHMT_ABI) {
        return -EPROTONOSUPPORT;
    }
    shmt_geometry again = *geo;
    if (shmt_geometry_place(&again) != 0 || memcmp(&again, geo, sizeof again) != 0 ||
        geo->total_nbytes != st.stx_size) {
        return -EUCLEAN;
    }
    /* Nothing is touched that is not reserved: a flag that lies must not make us fill a sparse file. */
    bool sparse = (geo->flags & SHMT_GROW) && geo->slots > 0; /* as reserve() has it */
    uint64_t payload = sparse ? geo->slots * geo->slot_nbytes : geo->total_nbytes - geo->data_offset;
    return st.stx_blocks * 512 >= geo->data_offset + payload ? 0 : -EUCLEAN;
}

int shmt_segment_open(int fd, const char *name, shmt_segment **out) {
    shmt_geometry geo = {0};
    uint8_t *base = NULL;
    int rc = read_geometry(fd, &geo);
    if (rc == 0) {
        rc = map(fd, geo.total_nbytes, &base);
    }
    if (rc == 0) {
        rc = advise(&geo, base);
    }
    if (rc == 0) {
        rc = shmt_segment_handle(&geo, base, fd, name, out);
    }
    if (rc != 0) {
        give_up(fd, base, geo.total_nbytes);
    }
    return rc;
}

/* ---- use -------------------------------------------------------------------------------------------------------- */

const shmt_info *shmt_segment_info(const shmt_segment *seg) { return &seg->info; }

void shmt_spin_set(shmt_segment *seg, uint32_t spin_us) { seg->spin_us = spin_us; }

int shmt_segment_prefault(const shmt_segment *seg, uint64_t offset, uint64_t nbytes) {
    uint64_t end;
    if (__builtin_add_overflow(offset, nbytes, &end) || end > seg->info.data_nbytes) {
        return -EINVAL;
    }
    return shmt_memory_populate(seg->data + offset, nbytes);
}

bool shmt_segment_is_closed(const shmt_segment *seg) {
    return shmt_load_relaxed(&seg->closed) != 0; /* a hint for messages; the verbs are stopped by edge M1 */
}

void shmt_segment_hold(shmt_segment *seg) {
    shmt_add_relaxed(&seg->refs, 1); /* the caller has a reference already: nothing to order */
}
