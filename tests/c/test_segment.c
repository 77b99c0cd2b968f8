/* Create, attach, validate, close: what is made is whole, what is wrong is refused, and what fails leaves nothing. */
#include <stddef.h>

#include "check.h"

#define MEMFD "memfd:shmtensor"
#define KIB UINT64_C(1024)
#define GIB (UINT64_C(1) << 30)

#ifndef F_SEAL_SEAL
#error "F_SEAL_SEAL is Linux 3.17"
#endif

static void what_was_asked_for_is_what_one_gets(void) {
    static const char meta[] = "{\"x\": 1}";
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 1000,
                                                  .slots = 5,
                                                  .members = 7,
                                                  .flags = SHMT_DROP | SHMT_PREFAULT,
                                                  .producers = 2,
                                                  .seq_first = 77,
                                                  .meta = meta,
                                                  .meta_nbytes = sizeof meta});
    shmt_segment *other = NULL;
    const shmt_info *a = shmt_segment_info(seg);
    CHECK_EQ(shmt_segment_attach_fd(a->fd, &other), 0);
    const shmt_info *b = shmt_segment_info(other);
    CHECK(a->name == NULL && b->name == NULL);
    CHECK_EQ(a->slots, 5);
    CHECK_EQ(a->members, 7);
    CHECK_EQ(a->slot_nbytes, 1000);
    CHECK_EQ(a->slot_stride, 1024);
    CHECK_EQ(a->flags, SHMT_DROP | SHMT_PREFAULT);
    CHECK(a->data_nbytes >= 5 * 1024 && a->total_nbytes > a->data_nbytes && a->total_nbytes % SHMT_PAGE == 0);
    CHECK_EQ(a->meta_nbytes, sizeof meta);
    CHECK_EQ(memcmp(a->meta, meta, sizeof meta), 0);
    CHECK(a->fd != b->fd && a->data != b->data && a->meta != b->meta);
    CHECK_EQ(memcmp(b->meta, meta, sizeof meta), 0);
    CHECK(b->slots == a->slots && b->members == a->members && b->slot_nbytes == a->slot_nbytes &&
          b->slot_stride == a->slot_stride && b->flags == a->flags && b->identity == a->identity &&
          b->data_nbytes == a->data_nbytes && b->total_nbytes == a->total_nbytes && b->meta_nbytes == a->meta_nbytes);
    CHECK_EQ(seg->geo.producers, 2);
    CHECK_EQ(memcmp(&seg->geo, &other->geo, sizeof seg->geo), 0);
    a->data[3] = 42;
    CHECK_EQ(b->data[3], 42);
    CHECK_EQ(shmt_load_relaxed(&seg->header->write_seq), 77);
    CHECK_EQ(slot_of(seg, 4).gen, 77);
    shmt_segment *unlike = make(5, 0, 0);
    CHECK(shmt_segment_info(unlike)->identity != a->identity);
    shmt_segment_drop(unlike);
    shmt_segment_drop(seg);
    b->data[3] = 43; /* one's own mapping, whatever the creator does */
    CHECK_EQ(memcmp(b->meta, meta, sizeof meta), 0);
    shmt_segment_drop(other);
}

static void an_anonymous_file_is_sealed_and_private(void) {
    shmt_segment *seg = make(2, 0, 0);
    int fd = shmt_segment_info(seg)->fd;
    CHECK_EQ(fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
             F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    CHECK_EQ(fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE, 0);
    CHECK_EQ(ftruncate(fd, SHMT_PAGE), -1);
    CHECK_EQ(ftruncate(fd, 1 << 30), -1);
    CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    CHECK_EQ(fcntl(seg->lock_fd, F_GETFD), FD_CLOEXEC);
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    CHECK_EQ(st.st_mode & 07777, 0600);
    CHECK_EQ(st.st_size, shmt_segment_info(seg)->total_nbytes);
    CHECK_EQ((uint64_t)st.st_blocks * 512, shmt_segment_info(seg)->total_nbytes); /* all reserved */
    shmt_segment_drop(seg);
}

static void a_named_file_is_private(void) {
    const char *name = fresh_name();
    shmt_segment *seg = make_config((shmt_config){.name = name, .slot_nbytes = 64, .slots = 2});
    struct stat st;
    CHECK_EQ(fstat(shmt_segment_info(seg)->fd, &st), 0);
    CHECK_EQ(st.st_mode & 07777, 0600);
    CHECK_EQ(fcntl(shmt_segment_info(seg)->fd, F_GETFD), FD_CLOEXEC);
    CHECK_EQ(strcmp(shmt_segment_info(seg)->name, name), 0);
    shmt_segment_drop(seg);
}

/* Attaching is for processes: by descriptor across fork, by name from anywhere. */
static void another_process_attaches(void) {
    char name[64];
    snprintf(name, sizeof name, "%s", fresh_name());
    shmt_segment *seg = make_config((shmt_config){.name = name, .slot_nbytes = 64, .slots = 2});
    put(seg, 1);
    for (int by_name = 0; by_name < 2; by_name++) {
        pid_t pid = start_child();
        if (pid == 0) {
            shmt_segment *mine = NULL;
            int fds = count_fds(NULL);
            CHECK_EQ(by_name ? shmt_segment_attach(name, &mine)
                             : shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &mine),
                     0);
            CHECK_EQ(count_fds(NULL), fds + 2);
            CHECK_EQ(get_tag(mine), 1 + (uint64_t)by_name);
            put(mine, 2 + (uint64_t)by_name);
            shmt_segment_drop(mine);
            CHECK_EQ(count_fds(NULL), fds);
            _exit(0);
        }
        child_ok(pid);
    }
    CHECK(name_exists(name));
    CHECK_EQ(get_tag(seg), 3);
    shmt_segment_drop(seg);
    CHECK(!name_exists(name));
}

static void where_the_payload_lies(void) {
    static const uint64_t sizes[] = {0, 1, 63, 64, 65, 127, 128, 129, 2047, 2048, 4095, 4096, 4097, 100000};
    static const uint32_t alignments[] = {0, 1, 2, 64, 128, 256, 1024, 4096, 8192, 1u << 21};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (size_t a = 0; a < sizeof alignments / sizeof *alignments; a++) {
            shmt_config config = {
                .slot_nbytes = sizes[s], .slots = 3, .members = 1, .alignment = alignments[a], .seq_first = 9};
            shmt_segment *seg = NULL;
            int rc = shmt_segment_create(&config, &seg);
            if (alignments[a] > SHMT_PAGE && rc == -EINVAL) {
                continue; /* said, and not silently broken */
            }
            CHECK_EQ(rc, 0);
            uint64_t stride = shmt_segment_info(seg)->slot_stride;
            CHECK(stride >= sizes[s] && stride < sizes[s] + SHMT_PAGE + alignments[a]);
            shmt_slot slot[3];
            for (int i = 0; i < 3; i++) {
                CHECK_EQ(shmt_slot_try_claim(seg, &slot[i]), 0);
                CHECK_EQ((uintptr_t)slot[i].data % (alignments[a] ? alignments[a] : 64), 0);
                CHECK_EQ((uint64_t)(slot[i].data - seg->data), slot[i].index * stride);
                CHECK(slot[i].nbytes >= sizes[s]);
                memset(slot[i].data, i + 1, sizes[s]);
            }
            for (int i = 0; i < 3 && sizes[s] > 0; i++) {
                CHECK(slot[i].data[0] == i + 1 && slot[i].data[sizes[s] - 1] == i + 1);
            }
            shmt_segment_drop(seg);
        }
    }
}

static void impossible_wishes(void) {
    static const struct {
        shmt_config config;
        int rc;
    } table[] = {
        {{.slot_nbytes = 1, .slots = 1, .members = 0}, -EINVAL},
        {{.slot_nbytes = 1, .slots = 1, .members = SHMT_MEMBERS_MAX + 1}, -EINVAL},
        {{.slot_nbytes = 1, .slots = 1, .members = UINT32_MAX}, -EINVAL},
        {{.slot_nbytes = 1, .slots = SHMT_SLOTS_MAX + 1, .members = 1}, -EINVAL},
        {{.slot_nbytes = 1, .slots = UINT32_MAX, .members = 1}, -EINVAL},
        {{.slot_nbytes = SHMT_NBYTES_MAX + 1, .slots = 1, .members = 1}, -EINVAL},
        {{.slot_nbytes = UINT64_MAX, .slots = 1, .members = 1}, -EINVAL},
        {{.slot_nbytes = UINT64_MAX, .members = 1}, -EINVAL},
        {{.slot_nbytes = 1, .slot_stride = UINT64_MAX, .slots = 1, .members = 1, .flags = SHMT_GROW}, -EINVAL},
        {{.slot_nbytes = 1, .slots = 1, .members = 1, .flags = 32}, -EINVAL},
        {{.slot_nbytes = 1, .slots = 1, .members = 1, .flags = UINT32_MAX}, -EINVAL},
        {{.slot_nbytes = 1, .slots = 1, .members = 1, .alignment = 3}, -EINVAL},
        {{.slot_nbytes = 1, .slots = 1, .members = 1, .alignment = 96}, -EINVAL},
        {{.slot_nbytes = 1, .slots = 1, .members = 1, .meta = "", .meta_nbytes = SHMT_META_MAX + 1}, -EINVAL},
        {{.slot_nbytes = SHMT_NBYTES_MAX, .slots = 1, .members = 1}, -EOVERFLOW},
        {{.slot_nbytes = SHMT_NBYTES_MAX / 2, .slots = 3, .members = 1}, -EOVERFLOW},
        {{.slot_nbytes = SHMT_NBYTES_MAX, .members = 1}, -EOVERFLOW},
    };
    int fds = count_fds(NULL);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        shmt_segment *seg = (shmt_segment *)(void *)&fds;
        CHECK_EQ(shmt_segment_create(&table[i].config, &seg), table[i].rc);
        CHECK(seg == (shmt_segment *)(void *)&fds); /* results are untouched on failure */
    }
    shmt_segment *seg = NULL;
    int rc = shmt_segment_create(&(shmt_config){.slot_nbytes = SHMT_NBYTES_MAX / 4, .members = 1}, &seg);
    CHECK(rc == -ENOSPC || rc == -ENOMEM); /* the latter under ThreadSanitizer, which leaves less address space */
    CHECK_EQ(count_fds(NULL), fds);
    CHECK_EQ(count_maps(MEMFD), 0);
}

static void the_largest_counts(void) {
    shmt_segment *seg = make_config(
        (shmt_config){.slot_nbytes = 1, .slots = SHMT_SLOTS_MAX, .members = SHMT_MEMBERS_MAX, .seq_first = UINT64_MAX});
    CHECK_EQ(seg->geo.ring, 131072);
    shmt_slot slot;
    for (uint32_t i = 0; i < SHMT_SLOTS_MAX; i++) {
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        CHECK_EQ(shmt_slot_publish(seg, &slot, 1, i), 0);
    }
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), -EAGAIN);
    for (uint32_t i = 0; i < SHMT_SLOTS_MAX; i++) {
        CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
        CHECK_EQ(slot.tag, i);
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    }
    shmt_segment_drop(seg);
}

/* ---- growing ------------------------------------------------------------------------------------------------------- */

static void growing_slots_cost_what_they_use(void) {
    shmt_segment *seg = make_config((shmt_config){
        .slot_nbytes = 10000, .slot_stride = 16 * GIB, .share = 1, .slots = 8, .flags = SHMT_GROW | SHMT_PREFAULT});
    const shmt_info *info = shmt_segment_info(seg);
    struct stat st;
    CHECK(info->slot_stride >= 10000 && info->slot_stride <= 16 * GIB);
    CHECK_EQ(fstat(info->fd, &st), 0);
    CHECK((uint64_t)st.st_blocks * 512 < 200 * KIB);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK(slot.nbytes >= 10000 && slot.nbytes < 100 * KIB);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 10), 0); /* never less */
    CHECK(slot.nbytes >= 10000);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 1000000), 0);
    CHECK(slot.nbytes >= 1000000 && slot.nbytes <= 2000000);
    uint64_t grown = slot.nbytes;
    memset(slot.data, 5, grown);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, grown), 0);
    CHECK_EQ(slot.nbytes, grown);
    CHECK_EQ(slot.data[grown - 1], 5);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, info->slot_stride + 1), -EMSGSIZE);
    CHECK_EQ(slot.nbytes, grown);
    CHECK_EQ(stats_of(seg).reserved_nbytes, 7 * 10000 + grown);
    CHECK_EQ(fstat(info->fd, &st), 0);
    CHECK((uint64_t)st.st_blocks * 512 < grown + 300 * KIB);
    CHECK_EQ(shmt_slot_publish(seg, &slot, grown, 0), 0);
    shmt_segment *other = NULL;
    CHECK_EQ(shmt_segment_attach_fd(info->fd, &other), 0);
    shmt_slot seen;
    CHECK_EQ(shmt_slot_try_acquire(other, &seen), 0);
    CHECK_EQ(seen.nbytes, grown);
    CHECK(seen.data[0] == 5 && seen.data[grown - 1] == 5);
    CHECK_EQ(shmt_slot_release(other, &seen), 0);
    do { /* the slot stays warm for whoever claims it next, there too */
        CHECK_EQ(shmt_slot_try_claim(other, &slot), 0);
    } while (slot.index != seen.index);
    CHECK_EQ(slot.nbytes, grown);
    shmt_segment_drop(other);
    shmt_segment_drop(seg);
}

static void a_slot_that_does_not_grow(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 5000, .slots = 1});
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 5000), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 100000), -EMSGSIZE);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 100000, 0), -EMSGSIZE);
    CHECK_EQ(word_of(seg, slot.index), slot.word); /* still ours to publish */
    CHECK_EQ(shmt_slot_publish(seg, &slot, 5000, 0), 0);
    shmt_segment_drop(seg);
}

static uint64_t address_space(void) {
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f != NULL);
    uint64_t pages = 0;
    CHECK_EQ(fscanf(f, "%" SCNu64, &pages), 1);
    fclose(f);
    return pages * SHMT_PAGE;
}

/* With little address space slots may grow less far, so that others have some too. */
static void slots_take_their_share_of_the_address_space(void) {
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_config config = {
            .slot_nbytes = 100000, .slot_stride = 64 * GIB, .slots = 16, .members = 2, .flags = SHMT_GROW};
        struct rlimit limit = {.rlim_cur = address_space() + 2 * GIB, .rlim_max = RLIM_INFINITY};
        CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
        uint64_t left;
        CHECK_EQ(shmt_memory_addresses(&left), 0);
        CHECK(left > 2 * GIB - GIB / 16 && left <= 2 * GIB);
        static const uint32_t shares[] = {1, 3, 8, 1000};
        for (size_t i = 0; i < 4; i++) {
            shmt_segment *one = NULL;
            config.share = shares[i];
            CHECK_EQ(shmt_segment_create(&config, &one), 0);
            const shmt_info *info = shmt_segment_info(one);
            CHECK(info->flags & SHMT_SHRUNK);
            CHECK(info->total_nbytes <= left / shares[i] && info->total_nbytes >= left / shares[i] / 10 * 8);
            shmt_segment_drop(one);
        }
        config.slot_least = 20 << 20; /* less is of no use */
        shmt_segment *one = NULL;
        CHECK_EQ(shmt_segment_create(&config, &one), 0);
        CHECK_EQ(shmt_segment_info(one)->slot_stride, 20 << 20);
        shmt_segment_drop(one);
        config.slot_least = 200 << 20;
        CHECK_EQ(shmt_segment_create(&config, &one), -ENOMEM);
        config.slot_least = 0;
        config.share = 0; /* nobody said that it may be less */
        CHECK_EQ(shmt_segment_create(&config, &one), -ENOMEM);
        config.slot_stride = GIB / 10;
        CHECK_EQ(shmt_segment_create(&config, &one), 0);
        CHECK(shmt_segment_info(one)->slot_stride >= GIB / 10 && !(shmt_segment_info(one)->flags & SHMT_SHRUNK));
        shmt_segment_drop(one);
        _exit(0);
    }
    child_ok(pid);
}

/* With little address space a slot may grow less; with less than that, an error that leaves nothing. */
static void the_stride_shrinks_to_the_address_space(void) {
    pid_t pid = start_child();
    if (pid == 0) {
        struct rlimit limit = {.rlim_cur = address_space() + 2 * GIB, .rlim_max = RLIM_INFINITY};
        CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
        shmt_segment *seg = make_config(
            (shmt_config){.slot_nbytes = 100000, .slot_stride = 64 * GIB, .share = 1, .slots = 16, .flags = SHMT_GROW});
        uint64_t stride = shmt_segment_info(seg)->slot_stride;
        CHECK(stride >= 32 << 20 && stride < 2 * GIB / 16); /* no less far than needed */
        struct stat st;
        CHECK_EQ(fstat(shmt_segment_info(seg)->fd, &st), 0);
        CHECK_EQ(st.st_size, shmt_segment_info(seg)->total_nbytes);
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        CHECK_EQ(shmt_slot_reserve(seg, &slot, 5000000), 0);
        memset(slot.data, 1, slot.nbytes);
        CHECK_EQ(shmt_slot_reserve(seg, &slot, stride + 1), -EMSGSIZE);
        CHECK_EQ(shmt_slot_publish(seg, &slot, 5000000, 0), 0);
        shmt_segment_drop(seg);

        int fds = count_fds(NULL);
        seg = NULL;
        CHECK_EQ(shmt_segment_create(&(shmt_config){.slot_nbytes = GIB / 4,
                                                    .slot_stride = 64 * GIB,
                                                    .share = 1,
                                                    .slots = 16,
                                                    .members = 2,
                                                    .flags = SHMT_GROW},
                                     &seg),
                 -ENOMEM); /* not even slot_nbytes each */
        CHECK_EQ(shmt_segment_create(&(shmt_config){.slot_nbytes = 4 * GIB, .slots = 1, .members = 2}, &seg), -ENOMEM);
        CHECK(seg == NULL);
        CHECK_EQ(count_fds(NULL), fds);
        CHECK_EQ(count_maps(MEMFD), 0);
        _exit(0);
    }
    child_ok(pid);
}

/* More than any address space: the same answer. */
static void the_stride_shrinks_to_what_can_be_had_at_all(void) {
    shmt_segment *seg = NULL;
    CHECK_EQ(shmt_segment_create(&(shmt_config){.slot_nbytes = 4096,
                                                .slot_stride = 1024 * GIB,
                                                .share = 1,
                                                .slots = 1024,
                                                .members = 2,
                                                .flags = SHMT_GROW},
                                 &seg),
             0);
    CHECK(shmt_segment_info(seg)->slot_stride >= 4096);
    shmt_segment_drop(seg);
}

static void attaching_without_address_space(void) {
    shmt_segment *seg =
        make_config((shmt_config){.slot_nbytes = 4096, .slot_stride = 4 * GIB, .slots = 4, .flags = SHMT_GROW});
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_segment *other = NULL;
        int fds = count_fds(NULL), maps = count_maps(MEMFD);
        struct rlimit limit = {.rlim_cur = address_space() + GIB, .rlim_max = RLIM_INFINITY};
        CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
        CHECK_EQ(shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &other), -ENOMEM);
        CHECK(other == NULL);
        CHECK_EQ(count_fds(NULL), fds);
        CHECK_EQ(count_maps(MEMFD), maps);
        _exit(0);
    }
    child_ok(pid);
    shmt_segment_drop(seg);
}

static void attaching_without_descriptors(void) {
    shmt_segment *seg = make(1, 0, 0);
    pid_t pid = start_child();
    if (pid == 0) {
        const int maps = count_maps(MEMFD),
                  inherited = count_fds(NULL); /* whoever runs the tests may have left more than three open */
        int top = 0;
        for (int fd = 0; fd < 1000; fd++) {
            top = fcntl(fd, F_GETFD) >= 0 ? fd + 1 : top;
        }
        for (int spare = 0; spare < 3; spare++) {
            struct rlimit limit = {.rlim_cur = (rlim_t)(top + spare), .rlim_max = 1024};
            int holes[1000], n = 0; /* fill what is free below the limit, but for `spare` */
            CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
            while ((holes[n] = fcntl(0, F_DUPFD, 0)) >= 0) {
                n++;
            }
            for (int i = 0; i < spare; i++) {
                close(holes[--n]);
            }
            shmt_segment *other = NULL;
            int rc = shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &other);
            shmt_segment *fresh = NULL;
            shmt_config config = {.slot_nbytes = 1, .slots = 1, .members = 1};
            int made = spare < 2 ? shmt_segment_create(&config, &fresh) : -EMFILE;
            limit.rlim_cur = 1024;
            CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
            while (n > 0) {
                close(holes[--n]);
            }
            CHECK_EQ(rc, spare == 2 ? 0 : -EMFILE);
            CHECK_EQ(made, -EMFILE);
            CHECK((rc == 0) == (other != NULL) && fresh == NULL);
            if (other) {
                shmt_segment_drop(other);
            }
            CHECK_EQ(count_fds(NULL), inherited);
            CHECK_EQ(count_maps(MEMFD), maps);
        }
        _exit(0);
    }
    child_ok(pid);
    shmt_segment_drop(seg);
}

/* ---- what lies in the file is not believed ----------------------------------------------------------------------------- */

static int copy_of(shmt_segment *seg, off_t nbytes) {
    int fd = memfd_create("copy", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)shmt_segment_info(seg)->total_nbytes), 0);
    ssize_t n = (ssize_t)shmt_segment_info(seg)->total_nbytes;
    CHECK_EQ(pwrite(fd, seg->base, (size_t)n, 0), n);
    CHECK_EQ(ftruncate(fd, nbytes < 0 ? (off_t)n : nbytes), 0);
    return fd;
}

static int attach_and_drop(int fd) {
    shmt_segment *seg = NULL;
    int fds = count_fds(NULL), maps = count_maps("memfd:");
    int rc = shmt_segment_attach_fd(fd, &seg);
    if (rc == 0) {
        shmt_segment_drop(seg);
    } else {
        CHECK(seg == NULL);
    }
    CHECK_EQ(count_fds(NULL), fds);
    CHECK_EQ(count_maps("memfd:"), maps);
    return rc;
}

static int attach_changed(shmt_segment *seg, size_t offset, const void *bytes, size_t nbytes) {
    int fd = copy_of(seg, -1);
    CHECK_EQ(pwrite(fd, bytes, nbytes, (off_t)offset), (ssize_t)nbytes);
    int rc = attach_and_drop(fd);
    close(fd);
    return rc;
}

#define GEO(field) (offsetof(shmt_header, geometry) + offsetof(shmt_geometry, field))
#define U64(field) {#field, GEO(field), 8}
#define U32(field) {#field, GEO(field), 4}

static void each_corrupt_field_is_refused(void) {
    static const struct {
        const char *name;
        size_t offset, nbytes;
    } fields[] = {
        U64(total_nbytes), U64(members_offset), U64(slots_offset), U64(ring_offset), U64(meta_offset),
        U64(data_offset),  U64(slot_stride),    U32(slots),        U32(ring),        U32(members),
    };
    shmt_segment *seg =
        make_config((shmt_config){.slot_nbytes = 5000, .slots = 3, .members = 5, .meta = "x", .meta_nbytes = 1});
    int fd = copy_of(seg, -1);
    CHECK_EQ(attach_and_drop(fd), 0); /* the copy as such is fine */
    close(fd);
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++) {
        uint64_t now = 0;
        memcpy(&now, seg->base + fields[f].offset, fields[f].nbytes);
        const uint64_t values[] = {
            0,          now + 1,   now - 1,           now * 2,           now + SHMT_PAGE,  now ^ 1 << 16,
            UINT64_MAX, INT64_MAX, UINT64_MAX - 4095, UINT64_C(1) << 46, UINT64_C(1) << 32};
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            uint64_t value = values[v];
            if (fields[f].nbytes == 4) {
                value &= UINT32_MAX;
            }
            if (value == now) {
                continue;
            }
            int rc = attach_changed(seg, fields[f].offset, &value, fields[f].nbytes);
            if (rc != -EUCLEAN) {
                fprintf(stderr, "%s = %" PRIu64 " instead of %" PRIu64 "\n", fields[f].name, value, now);
            }
            CHECK_EQ(rc, -EUCLEAN);
        }
    }
    const uint64_t larger = 5000 * 2;
    CHECK_EQ(attach_changed(seg, GEO(slot_nbytes), &larger, 8), -EUCLEAN); /* more than the stride */
    const uint32_t meta = SHMT_META_MAX + 1, meta_beyond = 100000, unknown = 1u << 30, all = UINT32_MAX;
    CHECK_EQ(attach_changed(seg, GEO(meta_nbytes), &meta, 4), -EUCLEAN);
    CHECK_EQ(attach_changed(seg, GEO(meta_nbytes), &meta_beyond, 4), -EUCLEAN);
    CHECK_EQ(attach_changed(seg, GEO(flags), &unknown, 4), -EUCLEAN);
    CHECK_EQ(attach_changed(seg, GEO(flags), &all, 4), -EUCLEAN);
    shmt_segment_drop(seg);
}

static void another_build_is_refused(void) {
    shmt_segment *seg = make(3, 0, 0);
    const uint64_t others[] = {
        0, SHMT_ABI - (UINT64_C(1) << 48), SHMT_ABI + (UINT64_C(1) << 48), SHMT_ABI + 1, SHMT_ABI - 256, ~SHMT_ABI};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        CHECK_EQ(attach_changed(seg, GEO(abi), &others[i], 8), -EPROTONOSUPPORT);
    }
    const uint64_t magics[] = {0, SHMT_MAGIC + 1, UINT64_MAX, SHMT_MAGIC << 8};
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
        CHECK_EQ(attach_changed(seg, offsetof(shmt_header, magic), &magics[i], 8), -EBADMSG);
    }
    shmt_segment_drop(seg);
}

static void a_file_of_the_wrong_size_or_kind(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 5000, .slots = 3});
    const off_t total = (off_t)shmt_segment_info(seg)->total_nbytes;
    const struct {
        off_t nbytes;
        int rc;
    } sizes[] = {
        {0, -EBADMSG},         {1, -EBADMSG}, {SHMT_PAGE - 1, -EBADMSG}, {SHMT_PAGE, -EUCLEAN}, {total - 1, -EUCLEAN},
        {total + 1, -EUCLEAN}, {total, 0},    {total * 2, -EUCLEAN}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int fd = copy_of(seg, sizes[i].nbytes);
        CHECK_EQ(attach_and_drop(fd), sizes[i].rc);
        close(fd);
    }
    int ends[2], device = open("/dev/null", O_RDWR | O_CLOEXEC), dir = open("/", O_RDONLY | O_CLOEXEC);
    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(attach_and_drop(device), -EBADMSG);
    CHECK_EQ(attach_and_drop(dir), -EBADMSG);
    CHECK_EQ(attach_and_drop(ends[0]), -EBADMSG);
    CHECK_EQ(attach_and_drop(-1), -EBADF);
    CHECK_EQ(attach_and_drop(12345), -EBADF);
    close(device);
    close(dir);
    close(ends[0]);
    close(ends[1]);

    char path[64];
    int fd = copy_of(seg, -1);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int reader = open(path, O_RDONLY | O_CLOEXEC);
    CHECK_EQ(attach_and_drop(reader), -EACCES);
    close(reader);
    close(fd);
    shmt_segment_drop(seg);
}

/* Without slots nothing grows, so all of it must be there: to map it would fill the memory else. */
static void a_flag_that_lies_fills_no_sparse_file(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 5000});
    int fd = copy_of(seg, -1);
    shmt_geometry geo = seg->geo;
    geo.flags = SHMT_GROW | SHMT_PREFAULT;
    geo.slot_nbytes = 64 * 1024 * KIB;
    CHECK_EQ(shmt_geometry_place(&geo), 0);
    CHECK_EQ(pwrite(fd, &geo, sizeof geo, offsetof(shmt_header, geometry)), sizeof geo);
    CHECK_EQ(ftruncate(fd, (off_t)geo.total_nbytes), 0);
    CHECK_EQ(attach_and_drop(fd), -EUCLEAN);
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    CHECK((uint64_t)st.st_blocks * 512 < 100 * KIB);
    close(fd);
    shmt_segment_drop(seg);
}

/* Whatever the header says: a typed error or a mapping that is safe to look at. */
static void random_headers(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 300, .slots = 3, .members = 3});
    uint64_t random = 12345;
    int attached = 0;
    int fd = copy_of(seg, -1);
    for (int i = 0; i < TIMES(4000); i++) {
        uint8_t header[512];
        memcpy(header, seg->base, sizeof header);
        for (uint64_t n = 1 + next_random(&random) % 3; n > 0; n--) {
            uint64_t at = next_random(&random) % (sizeof(shmt_geometry) + 8);
            uint32_t junk = (uint32_t)next_random(&random);
            header[at] = (uint8_t)(junk & 256 ? junk : header[at] ^ 1u << junk % 8);
        }
        header[GEO(flags) + 0] &= (uint8_t)~SHMT_PREFAULT; /* which is a wish, and would be granted */
        CHECK_EQ(pwrite(fd, header, sizeof header, 0), (ssize_t)sizeof header);
        shmt_segment *other = NULL;
        int rc = shmt_segment_attach_fd(fd, &other);
        CHECK(rc == 0 || rc == -EBADMSG || rc == -EUCLEAN || rc == -EPROTONOSUPPORT);
        if (rc == 0) {
            const shmt_info *info = shmt_segment_info(other);
            uint8_t sum = info->data[0];
            sum = (uint8_t)(sum + info->data[info->data_nbytes - 1]);
            sum = (uint8_t)(sum + (info->meta_nbytes ? ((const uint8_t *)info->meta)[info->meta_nbytes - 1] : 0));
            (void)sum;
            (void)stats_of(other);
            shmt_segment_drop(other);
            attached++;
        }
    }
    close(fd);
    CHECK(attached > 0); /* identity and seq_first may be anything */
    shmt_segment_drop(seg);
}

/* ---- the end --------------------------------------------------------------------------------------------------------------- */

static void two_descriptors_each_and_none_afterwards(void) {
    const int fds = count_fds(NULL), maps = count_maps(MEMFD);
    shmt_segment *seg = make(2, 0, 0), *by_fd = NULL;
    CHECK_EQ(count_fds(NULL), fds + 2);
    CHECK_EQ(shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &by_fd), 0);
    CHECK_EQ(count_fds(NULL), fds + 4);
    shmt_segment *over = same(seg);
    CHECK_EQ(count_fds(NULL), fds + 5); /* a lock of its own, the mapping and its descriptor shared */
    CHECK(shmt_segment_info(over)->data == shmt_segment_info(seg)->data);
    for (uint64_t i = 0; i < 100; i++) {
        put(seg, i);
        CHECK_EQ(get_tag(i % 2 ? by_fd : over), i);
    }
    CHECK_EQ(count_fds(NULL), fds + 5);
    shmt_segment_drop(seg); /* `over` keeps the mapping */
    CHECK_EQ(count_maps(MEMFD), maps + 2);
    put(over, 5);
    CHECK_EQ(get_tag(by_fd), 5);
    shmt_segment_drop(over);
    shmt_segment_drop(by_fd);
    CHECK_EQ(count_fds(NULL), fds);
    CHECK_EQ(count_maps(MEMFD), maps);
}

static void closing_twice_and_what_still_works(void) {
    const int fds = count_fds(NULL);
    shmt_segment *seg = make(4, 0, 0), *peer = peer_of(seg);
    shmt_slot slot, held;
    shmt_lease *lease;
    put(seg, 1);
    put(seg, 2);
    CHECK_EQ(shmt_slot_try_acquire(seg, &held), 0);
    CHECK_EQ(shmt_lease_take(seg, &held, &held.word, 1, &lease), 0);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK(!shmt_segment_is_closed(seg));
    shmt_segment_close(seg);
    shmt_segment_close(seg);
    CHECK(shmt_segment_is_closed(seg) && !shmt_segment_is_closed(peer));
    CHECK_EQ(shmt_load_relaxed(&peer->header->producers_closed), 1); /* and not 2 */

    shmt_slot none;
    uint64_t words[2];
    shmt_stats stats;
    shmt_member_info info;
    CHECK_EQ(shmt_slot_try_claim(seg, &none), -EBADF);
    CHECK_EQ(shmt_slot_claim(seg, SHMT_FOREVER, &none), -EBADF);
    CHECK_EQ(shmt_slot_claim_many(seg, 2, SHMT_FOREVER, words, &none), -EBADF);
    CHECK_EQ(shmt_slot_try_acquire(seg, &none), -EBADF);
    CHECK_EQ(shmt_slot_acquire(seg, SHMT_FOREVER, &none), -EBADF);
    CHECK_EQ(shmt_slot_acquire_many(seg, 2, SHMT_FOREVER, words, &none), -EBADF);
    CHECK_EQ(shmt_stats_get(seg, &stats), -EBADF);
    CHECK_EQ(shmt_member_info_get(seg, 1, &info), -EBADF);
    CHECK_EQ(shmt_member_join(seg), -EBADF);
    CHECK_EQ(shmt_reclaim(seg), -EBADF);

    uint64_t payload; /* what was taken before can be used and given back */
    memcpy(&payload, held.data, sizeof payload);
    CHECK_EQ(payload, 1);
    CHECK_EQ(shmt_reclaim(peer), 0); /* still a member: it may still touch memory */
    memcpy(slot.data, &(uint64_t){9}, 8);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 8, 9), 0);
    shmt_segment_drop(seg);
    CHECK_EQ(slot_of(peer, held.index).state, 3);
    CHECK_EQ(shmt_reclaim(peer), 0);
    CHECK_EQ(count_fds(NULL), fds + 4);
    shmt_lease_drop(lease); /* the last of it */
    CHECK_EQ(slot_of(peer, held.index).state, 0);
    CHECK_EQ(count_fds(NULL), fds + 2);
    CHECK_EQ(get_tag(peer), 2);
    CHECK_EQ(get_tag(peer), 9);
    shmt_segment_drop(peer);
    CHECK_EQ(count_fds(NULL), fds);
}

static void a_slot_that_is_left_behind_is_reclaimed(void) {
    shmt_segment *seg = make(1, 0, 0), *peer = peer_of(seg);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    shmt_segment_drop(seg); /* without publishing */
    CHECK_EQ(shmt_slot_try_claim(peer, &slot), -EAGAIN);
    CHECK_EQ(shmt_reclaim(peer), 0); /* the slot is taken back; nobody has died */
    CHECK_EQ(shmt_slot_try_claim(peer, &slot), 0);
    shmt_segment_drop(peer);
}

static void prefault_within_bounds(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 1 << 20});
    const shmt_info *info = shmt_segment_info(seg);
    memset((void *)(uintptr_t)info->data, 3, 1 << 20);
    CHECK_EQ(shmt_segment_prefault(seg, 0, info->data_nbytes), 0);
    CHECK_EQ(shmt_segment_prefault(seg, 4097, 10), 0);
    CHECK_EQ(shmt_segment_prefault(seg, info->data_nbytes, 0), 0);
    CHECK_EQ(shmt_segment_prefault(seg, 0, info->data_nbytes + 1), -EINVAL);
    CHECK_EQ(shmt_segment_prefault(seg, info->data_nbytes, 1), -EINVAL);
    CHECK_EQ(shmt_segment_prefault(seg, UINT64_MAX, 2), -EINVAL);
    CHECK_EQ(shmt_segment_prefault(seg, 2, UINT64_MAX), -EINVAL);
    CHECK(info->data[0] == 3 && info->data[(1 << 20) - 1] == 3);
    shmt_segment_drop(seg);
}

static void no_core_dump_and_huge_pages(void) {
    for (uint32_t flags = 0; flags <= SHMT_HUGE_PAGES; flags += SHMT_HUGE_PAGES) {
        shmt_segment *seg =
            make_config((shmt_config){.slot_nbytes = 3 << 20, .slots = 2, .flags = flags | SHMT_PREFAULT});
        CHECK_EQ(shmt_segment_info(seg)->total_nbytes % (flags ? 2u << 20 : SHMT_PAGE), 0);
        FILE *f = fopen("/proc/self/smaps", "r");
        CHECK(f != NULL);
        char line[600], marked[600] = "";
        bool here = false;
        while (fgets(line, sizeof line, f)) {
            unsigned long from, to;
            if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
                here = strstr(line, MEMFD) != NULL;
            } else if (here && strncmp(line, "VmFlags:", 8) == 0) {
                snprintf(marked, sizeof marked, "%s", line);
            }
        }
        fclose(f);
        CHECK(strstr(marked, " dd") != NULL);
        put(seg, 1);
        CHECK_EQ(get_tag(seg), 1);
        shmt_segment_drop(seg);
    }
}

/* Without slots there is no hand-off: the verbs say so and do nothing else. */
/* A named file cannot be sealed: somebody punched a hole into what was reserved. Nothing of it is touched. */
static void a_file_with_a_hole(void) {
    const char *name = fresh_name();
    shmt_segment *seg = make_config((shmt_config){.name = name, .slot_nbytes = 100000, .slots = 2}), *other = NULL;
    const shmt_info *info = shmt_segment_info(seg);
    CHECK_EQ(shmt_segment_attach(name, &other), 0);
    shmt_segment_drop(other);
    other = NULL;
    off_t at = (off_t)(info->total_nbytes - 8192);
    CHECK_EQ(fallocate(info->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 4096), 0);
    CHECK_EQ(shmt_segment_attach(name, &other), -EUCLEAN);
    CHECK(other == NULL);
    shmt_segment_drop(seg);
    CHECK(!name_exists(name));
}

/* Beyond the limit ftruncate() would send a signal, which ends whoever does not ignore it. */
static void a_limited_file_size(void) {
    pid_t pid = start_child();
    if (pid == 0) {
        struct rlimit limit = {.rlim_cur = 1 << 20, .rlim_max = RLIM_INFINITY};
        CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
        int fds = count_fds(NULL);
        shmt_segment *seg = NULL;
        shmt_config config = {.slot_nbytes = 200 << 10, .slots = 6, .members = 4};
        CHECK_EQ(shmt_segment_create(&config, &seg), -EFBIG);
        CHECK(seg == NULL && count_fds(NULL) == fds);
        config.slot_stride = 1 << 20; /* what can grow grows less far */
        config.slots = 2;
        config.flags = SHMT_GROW;
        CHECK_EQ(shmt_segment_create(&config, &seg), -EFBIG);
        config.share = 1;
        CHECK_EQ(shmt_segment_create(&config, &seg), 0);
        CHECK(shmt_segment_info(seg)->flags & SHMT_SHRUNK);
        CHECK(shmt_segment_info(seg)->slot_stride > 400 << 10); /* nobody else wants the file */
        CHECK(shmt_segment_info(seg)->total_nbytes <= 1 << 20);
        put(seg, 1);
        CHECK_EQ(get_tag(seg), 1);
        shmt_segment_drop(seg);
        config.slot_stride = 256 << 10;
        CHECK_EQ(shmt_segment_create(&config, &seg), 0);
        CHECK(!(shmt_segment_info(seg)->flags & SHMT_SHRUNK));
        shmt_segment_drop(seg);
        config.flags |= SHMT_SHRUNK; /* not for others to say */
        CHECK_EQ(shmt_segment_create(&config, &seg), -EINVAL);
        _exit(0);
    }
    child_ok(pid);
}

static void a_plain_segment(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 12345}), *other = NULL;
    const shmt_info *info = shmt_segment_info(seg);
    CHECK(info->data_nbytes >= 12345 && info->slots == 0);
    CHECK_EQ(shmt_segment_attach_fd(info->fd, &other), 0);
    memset((void *)(uintptr_t)info->data, 8, 12345);
    CHECK_EQ(shmt_segment_info(other)->data[12344], 8);
    CHECK_EQ(shmt_reclaim(seg), 0);
    CHECK_EQ(stats_of(seg).members, 2);
    shmt_slot_info slot_info;
    CHECK_EQ(shmt_slot_info_get(seg, 0, &slot_info), -EINVAL);
    shmt_segment_drop(other);
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_slot slot;
        uint64_t words[2];
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), -EINVAL);
        CHECK_EQ(shmt_slot_claim_many(seg, 2, SHMT_FOREVER, words, &slot), -EINVAL);
        CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EINVAL);
        CHECK_EQ(shmt_slot_acquire_many(seg, 2, SHMT_FOREVER, words, &slot), -EINVAL);
        _exit(0);
    }
    child_ok(pid);
    shmt_segment_drop(seg);
    seg = make_config(
        (shmt_config){.slot_nbytes = 12345, .flags = SHMT_GROW | SHMT_PREFAULT}); /* what has no slots is whole */
    memset((void *)(uintptr_t)shmt_segment_info(seg)->data, 8, 12345);
    CHECK_EQ(shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &other), 0);
    CHECK_EQ(shmt_segment_info(other)->data[12344], 8);
    shmt_segment_drop(other);
    shmt_segment_drop(seg);
    seg = make_config((shmt_config){.slot_nbytes = 0}); /* of nothing at all */
    CHECK_EQ(shmt_segment_info(seg)->slots, 0);
    shmt_segment_drop(seg);
}

TESTS(TEST(what_was_asked_for_is_what_one_gets), TEST(an_anonymous_file_is_sealed_and_private),
      TEST(a_named_file_is_private), TEST(another_process_attaches), TEST(where_the_payload_lies),
      TEST(impossible_wishes), TEST(the_largest_counts), TEST(growing_slots_cost_what_they_use),
      TEST(a_slot_that_does_not_grow), TEST(slots_take_their_share_of_the_address_space),
      TEST(the_stride_shrinks_to_the_address_space), TEST(the_stride_shrinks_to_what_can_be_had_at_all),
      TEST(attaching_without_address_space), TEST(attaching_without_descriptors), TEST(each_corrupt_field_is_refused),
      TEST(another_build_is_refused), TEST(a_file_of_the_wrong_size_or_kind),
      TEST(a_flag_that_lies_fills_no_sparse_file), TEST(random_headers), TEST(two_descriptors_each_and_none_afterwards),
      TEST(closing_twice_and_what_still_works), TEST(a_slot_that_is_left_behind_is_reclaimed),
      TEST(prefault_within_bounds), TEST(no_core_dump_and_huge_pages), TEST(a_plain_segment), TEST(a_file_with_a_hole),
      TEST(a_limited_file_size))
