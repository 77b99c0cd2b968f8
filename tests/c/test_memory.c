/* Reserving before touching. The tests bring a fallocate of their own, linked in front of the C library's: it counts, fails
 * when told to, and can pretend, so that a machine that would be asked for too much is not. */
#include "check.h"

static struct {
    uint64_t calls, nbytes, largest, next_offset;
    uint64_t fail_call;     /* the call that fails, from 1; 0: none */
    uint64_t interruptions; /* so many calls are interrupted first */
    uint64_t too_long;      /* calls for more than this are interrupted, each; 0: none */
    int fail_errno;
    bool contiguous, pretend;
} fake;

static void fake_reset(bool pretend) {
    memset(&fake, 0, sizeof fake);
    fake.pretend = pretend;
    fake.contiguous = true;
}

int fallocate(int fd, int mode, off_t offset, off_t nbytes) {
    if (++fake.calls == fake.fail_call) {
        errno = fake.fail_errno;
        return -1;
    }
    uint64_t n = (uint64_t)nbytes;
    if ((fake.too_long > 0 && n > fake.too_long) || fake.interruptions > 0) {
        fake.interruptions -= fake.interruptions > 0;
        errno = EINTR;
        return -1;
    }
    fake.contiguous = fake.contiguous && (uint64_t)offset == fake.next_offset;
    fake.next_offset = (uint64_t)offset + n;
    fake.nbytes += n;
    fake.largest = n > fake.largest ? n : fake.largest;
    return fake.pretend ? 0 : (int)syscall(SYS_fallocate, fd, mode, offset, nbytes);
}

static int memory_file(uint64_t nbytes) {
    int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)nbytes), 0);
    return fd;
}

static uint64_t allocated(int fd) {
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

#define MIB (UINT64_C(1) << 20)

static void memory_left_is_plausible(void) {
    uint64_t left = shmt_memory_left(), total = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    CHECK(f != NULL);
    CHECK_EQ(fscanf(f, "MemTotal: %" SCNu64, &total), 1);
    fclose(f);
    CHECK(left > MIB);
    CHECK(left <= total * 1024);
}

static void clock_goes_forward(void) {
    int64_t a = shmt_now_ns();
    sleep_ms(2);
    int64_t b = shmt_now_ns();
    CHECK(b - a >= 2 * MS && b - a < 5000 * MS);
}

static void reserve_allocates_the_range_and_no_more(void) {
    int fd = memory_file(64 * MIB);
    fake_reset(false);
    CHECK_EQ(shmt_memory_reserve(fd, 8 * MIB, 3 * MIB), 0);
    CHECK_EQ(allocated(fd), 3 * MIB);
    CHECK_EQ(shmt_memory_reserve(fd, 8 * MIB, 3 * MIB), 0); /* again: nothing to do */
    CHECK_EQ(allocated(fd), 3 * MIB);
    fake_reset(false);
    CHECK_EQ(shmt_memory_reserve(fd, 0, 0), 0);
    CHECK_EQ(fake.calls, 0);
    close(fd);
}

static void reserve_goes_in_chunks(void) {
    if (shmt_memory_left() < 512 * MIB) {
        SKIP("less than 512 MiB are left on this machine");
    }
    fake_reset(true);
    fake.next_offset = 4096;
    CHECK_EQ(shmt_memory_reserve(-1, 4096, 200 * MIB + 5), 0);
    CHECK(fake.contiguous);
    CHECK_EQ(fake.nbytes, 200 * MIB + 5);
    CHECK_EQ(fake.calls, 4);
    CHECK_EQ(fake.largest, 64 * MIB);
}

static void an_interrupted_chunk_is_tried_again(void) {
    if (shmt_memory_left() < 512 * MIB) {
        SKIP("less than 512 MiB are left on this machine");
    }
    for (uint64_t call = 1; call <= 4; call++) {
        fake_reset(true);
        fake.fail_call = call;
        fake.fail_errno = EINTR;
        CHECK_EQ(shmt_memory_reserve(-1, 0, 200 * MIB), 0);
        CHECK(fake.contiguous);
        CHECK_EQ(fake.nbytes, 200 * MIB);
        CHECK(fake.calls >= 5 && fake.calls <= 8); /* after it, in halves */
    }
}

/* Where any signal undoes the whole of a call, only calls that are shorter than a timer's period ever end. */
static void a_timer_starves_nobody(void) {
    if (shmt_memory_left() < 512 * MIB) {
        SKIP("less than 512 MiB are left on this machine");
    }
    fake_reset(true);
    fake.too_long = 100000;
    CHECK_EQ(shmt_memory_reserve(-1, 0, 200 * MIB), 0);
    CHECK(fake.contiguous);
    CHECK_EQ(fake.nbytes, 200 * MIB);
    CHECK(fake.largest >= 65536 && fake.calls < 3300);
    fake_reset(true);
    fake.interruptions = 30; /* halves end at 64 KiB */
    CHECK_EQ(shmt_memory_reserve(-1, 0, MIB), 0);
    CHECK_EQ(fake.nbytes, MIB);
    CHECK_EQ(fake.largest, 65536);
}

static void errors_come_back_as_they_are(void) {
    static const struct {
        int is, becomes;
    } table[] = {{ENOSPC, -ENOSPC}, {EFBIG, -ENOSPC}, {EPERM, -EPERM}, {EBADF, -EBADF}, {EDQUOT, -EDQUOT}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        fake_reset(true);
        fake.fail_call = 1;
        fake.fail_errno = table[i].is;
        CHECK_EQ(shmt_memory_reserve(-1, 0, MIB), table[i].becomes);
        CHECK_EQ(fake.calls, 1);
    }
}

static void more_than_is_left_is_refused_untouched(void) {
    const uint64_t too_much[] = {shmt_memory_left() + 1024 * MIB, UINT64_C(1) << 45, UINT64_MAX / 2};
    for (size_t i = 0; i < sizeof too_much / sizeof *too_much; i++) {
        fake_reset(true);
        CHECK_EQ(shmt_memory_reserve(-1, 0, too_much[i]), -ENOSPC);
        CHECK_EQ(fake.calls, 0);
    }
}

/* Other programs come and go between the two looks at the machine: most of the tries decide. */
static void a_margin_stays(void) {
    int refused = 0;
    for (int i = 0; i < 20; i++) {
        uint64_t left = shmt_memory_left();
        if (left < 256 * MIB) {
            SKIP("less than 256 MiB are left on this machine");
        }
        fake_reset(true);
        refused += shmt_memory_reserve(-1, 0, left - 16 * MIB) == -ENOSPC;
    }
    CHECK(refused >= 10);
}

/* Each slot for itself is too small to be compared with the machine; all of them together are not. */
static void many_small_slots_are_refused_together(void) {
    const uint64_t each = 3 * MIB, left = shmt_memory_left();
    if (left / each >= SHMT_SLOTS_MAX - 1000) {
        SKIP("this machine has memory for 65,535 slots of 3 MiB");
    }
    uint32_t slots = (uint32_t)(left / each) + 1000;
    shmt_segment *seg = NULL;
    int fds = count_fds(NULL);
    fake_reset(true);
    CHECK_EQ(shmt_segment_create(
                 &(shmt_config){
                     .slot_nbytes = each, .slot_stride = 4 * MIB, .slots = slots, .members = 2, .flags = SHMT_GROW},
                 &seg),
             -ENOSPC);
    CHECK(fake.nbytes < 64 * MIB);
    CHECK(seg == NULL);
    CHECK_EQ(count_fds(NULL), fds);
}

/* Whatever reservation fails while a segment is made, nothing of it stays. */
static void a_failed_creation_leaves_nothing(void) {
    static const uint32_t flags[] = {0, SHMT_GROW};
    for (size_t f = 0; f < 2; f++) {
        for (int named = 0; named < 2; named++) {
            for (uint64_t call = 1; call <= 6; call++) {
                const char *name = fresh_name();
                int fds = count_fds(NULL), maps = count_maps("shmtensor");
                shmt_segment *seg = NULL;
                fake_reset(false);
                fake.fail_call = call;
                fake.fail_errno = ENOSPC;
                int rc = shmt_segment_create(&(shmt_config){.name = named ? name : NULL,
                                                            .slot_nbytes = 8192,
                                                            .slot_stride = MIB,
                                                            .slots = 4,
                                                            .members = 4,
                                                            .flags = flags[f]},
                                             &seg);
                bool fails = call <= (flags[f] ? 5 : 1); /* one for all; or the head and each slot */
                CHECK_EQ(rc, fails ? -ENOSPC : 0);
                if (fails) {
                    CHECK(seg == NULL);
                } else {
                    shmt_segment_drop(seg);
                }
                CHECK_EQ(count_fds(NULL), fds);
                CHECK_EQ(count_maps("shmtensor"), maps);
                CHECK(!name_exists(name));
            }
        }
    }
    fake_reset(false);
}

/* What a peer says of a slot's size is looked up in the file. */
static void what_is_not_there_is_not_present(void) {
    int fd = memory_file(4 * MIB);
    fake_reset(false);
    CHECK_EQ(shmt_memory_reserve(fd, MIB, MIB), 0);
    CHECK_EQ(shmt_memory_populate(NULL, 0), 0);
    uint8_t *at = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(at != MAP_FAILED);
    memset(at + MIB, 1, MIB);
    CHECK_EQ(shmt_memory_present(fd, MIB, 0, MIB), 0);
    CHECK_EQ(shmt_memory_present(fd, MIB, 4096, MIB), 0);
    CHECK_EQ(shmt_memory_present(fd, MIB, 0, MIB + 1), -EUCLEAN);
    CHECK_EQ(shmt_memory_present(fd, 0, 0, 1), -EUCLEAN);
    CHECK_EQ(shmt_memory_present(fd, 4 * MIB, 0, 1), -EUCLEAN); /* beyond the file */
    munmap(at, 4 * MIB);
    close(fd);
    CHECK_EQ(shmt_memory_present(fd, 0, 0, 1), -EBADF);
}

static void a_slot_that_cannot_grow_stays_usable(void) {
    fake_reset(false);
    shmt_segment *seg =
        make_config((shmt_config){.slot_nbytes = 4096, .slot_stride = MIB, .slots = 2, .flags = SHMT_GROW});
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    shmt_slot before = slot;
    fake_reset(false);
    fake.fail_call = 1;
    fake.fail_errno = ENOSPC;
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 500000), -ENOSPC);
    CHECK_EQ(memcmp(&before, &slot, sizeof slot), 0);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 4097, 0), -EMSGSIZE);
    memset(slot.data, 7, 4096);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 500000), 0);
    CHECK(slot.nbytes >= 500000 && slot.nbytes <= MIB);
    CHECK(slot.data[4095] == 7 && slot.data[4096] == 0 && slot.data[499999] == 0);
    memset(slot.data, 9, slot.nbytes);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 500000, 1), 0);
    shmt_segment_drop(seg);
}

static void populate_keeps_what_is_there(void) {
    const size_t n = 4 * MIB;
    int fd = memory_file(n);
    uint8_t *at = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(at != MAP_FAILED);
    for (size_t i = 0; i < n; i++) {
        at[i] = (uint8_t)(i * 7 >> 3);
    }
    munmap(at, n);
    at = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(at != MAP_FAILED);
    CHECK_EQ(shmt_memory_populate(at, 0), 0);
    CHECK_EQ(shmt_memory_populate(at + 5, n - 5), 0); /* not at a page's beginning */
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        wrong += at[i] != (uint8_t)(i * 7 >> 3);
    }
    getrusage(RUSAGE_SELF, &after);
    CHECK_EQ(wrong, 0);
    bool supported = madvise(at, SHMT_PAGE, 23 /* MADV_POPULATE_WRITE */) == 0;
    munmap(at, n);
    close(fd);
    if (!supported) {
        SKIP("this kernel has no MADV_POPULATE_WRITE");
    }
#if !UNDER_TSAN /* whose own bookkeeping faults */
    CHECK(after.ru_minflt - before.ru_minflt < 50);
#endif
}

static void populate_beyond_the_file_is_an_error(void) {
    int fd = memory_file(SHMT_PAGE);
    uint8_t *at = mmap(NULL, 4 * SHMT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(at != MAP_FAILED);
    bool supported = madvise(at, SHMT_PAGE, 23 /* MADV_POPULATE_WRITE */) == 0;
    int rc = shmt_memory_populate(at, 4 * SHMT_PAGE);
    munmap(at, 4 * SHMT_PAGE);
    close(fd);
    if (!supported) {
        SKIP("this kernel has no MADV_POPULATE_WRITE");
    }
    CHECK(rc < 0);
}

/* A /dev/shm of 1 MiB, as in a small container: an error and no SIGBUS, nothing left, and memory without a name works. */
static void a_full_dev_shm(void) {
    pid_t pid = start_child();
    if (pid == 0) {
        if (!private_shm("size=1m")) {
            _exit(77);
        }
        fake_reset(false);
        int fds = count_fds(NULL);
        shmt_config config = {.name = "full", .slot_nbytes = 4 * MIB, .members = 2};
        shmt_segment *seg = NULL, *other = NULL;
        CHECK_EQ(shmt_segment_create(&config, &seg), -ENOSPC);
        CHECK(seg == NULL && !name_exists("full"));
        CHECK_EQ(count_fds(NULL), fds);

        config.slot_nbytes = 64 * 1024;
        config.slot_stride = 16 * MIB;
        config.slots = 2;
        config.flags = SHMT_GROW;
        CHECK_EQ(shmt_segment_create(&config, &seg), 0);
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        CHECK_EQ(shmt_slot_reserve(seg, &slot, 8 * MIB), -ENOSPC);
        memset(slot.data, 1, slot.nbytes);
        CHECK_EQ(shmt_slot_publish(seg, &slot, 64 * 1024, 0), 0);

        config.name = NULL;
        config.slots = 0;
        config.flags = 0;
        config.slot_nbytes = 64 * MIB;
        int rc = shmt_segment_create(&config, &other);
        CHECK(rc == 0 || shmt_memory_left() < 192 * MIB);
        if (rc == 0) {
            memset((void *)(uintptr_t)shmt_segment_info(other)->data, 3, 64 * MIB);
            shmt_segment_drop(other);
        }
        shmt_segment_drop(seg);
        CHECK(!name_exists("full"));
        CHECK_EQ(count_fds(NULL), fds);
        _exit(0);
    }
    int status = child_status(pid);
    CHECK(WIFEXITED(status)); /* and not ended by SIGBUS */
    if (WEXITSTATUS(status) == 77) {
        SKIP("a mount namespace needs root");
    }
    CHECK_EQ(WEXITSTATUS(status), 0);
}

TESTS(TEST(memory_left_is_plausible), TEST(clock_goes_forward), TEST(reserve_allocates_the_range_and_no_more),
      TEST(reserve_goes_in_chunks), TEST(an_interrupted_chunk_is_tried_again), TEST(a_timer_starves_nobody),
      TEST(errors_come_back_as_they_are), TEST(more_than_is_left_is_refused_untouched), TEST(a_margin_stays),
      TEST(many_small_slots_are_refused_together), TEST(a_failed_creation_leaves_nothing),
      TEST(what_is_not_there_is_not_present), TEST(a_slot_that_cannot_grow_stays_usable),
      TEST(populate_keeps_what_is_there), TEST(populate_beyond_the_file_is_an_error), TEST(a_full_dev_shm))
