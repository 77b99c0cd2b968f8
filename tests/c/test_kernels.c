/* Kernels that lack something, machines without /proc, and what comes between two system calls. */
#include "check.h"

#if SANITIZED
#define FAULTS_KEEP_HEAP
#endif
#include "faults.h"

static char name[64];
static shmt_segment *seg, *peer, *made;
static shmt_slot slot, got;

static void next_name(void) { snprintf(name, sizeof name, "%s", fresh_name()); }

static int create(uint32_t flags, bool named) {
    shmt_config wish = {.name = named ? name : NULL,
                        .slot_nbytes = 8192,
                        .slot_stride = 1 << 20,
                        .share = 1,
                        .slots = 3,
                        .members = 4,
                        .flags = flags | SHMT_PREFAULT};
    return shmt_segment_create(&wish, &made);
}

static void a_named_one(void) {
    next_name();
    CHECK_EQ(create(0, true), 0);
    seg = made;
    made = NULL;
}

static void drops(void) {
    shmt_segment_drop(made);
    made = NULL;
}

/* Of the very first segment of a process: nobody is there yet to be forgotten in a forked child. */
static void no_handler_for_forks(void) {
    if (!FAULTS_OF_START) {
        return;
    }
    int fds = count_fds(NULL);
    faults_arm_only("pthread_atfork", ENOMEM);
    CHECK_EQ(create(0, false), -ENOMEM);
    CHECK_EQ(faults_disarm(), 1);
    CHECK_EQ(count_fds(NULL), fds);
    CHECK_EQ(count_maps("shmtensor"), 0);
    CHECK_EQ(create(0, false), 0);
    drops();
}

static void works(void) {
    static const uint32_t flags[] = {0, SHMT_GROW, SHMT_HUGE_PAGES};
    for (int k = 0; k < 6; k++) {
        next_name();
        CHECK_EQ(create(flags[k % 3], k >= 3), 0);
        seg = made;
        peer = peer_of(seg);
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        uint64_t size = flags[k % 3] ? 8192 : 8000;
        if (flags[k % 3] == SHMT_GROW) {
            size = 300000;
            CHECK_EQ(shmt_slot_reserve(seg, &slot, size), 0);
        }
        slot.data[0] = slot.data[8000 - 1] = 7; /* the rest is not touched: to others it looks like a hole */
        CHECK_EQ(shmt_slot_publish(seg, &slot, size, 0), 0);
        CHECK_EQ(shmt_slot_try_acquire(peer, &got), 0);
        CHECK(got.data[0] == 7 && got.data[7999] == 7 && got.data[size - 1] == (size == 8000 ? 7 : 0));
        CHECK_EQ(shmt_slot_release(peer, &got), 0);
        shmt_segment_drop(peer);
        shmt_segment_drop(seg);
    }
    made = NULL;
}

/* A child, since what a process has learnt of its kernel it does not forget. */
static void with_every(const char *what, int error, void (*run)(void)) {
    pid_t pid = start_child();
    if (pid == 0) {
        faults_arm_only(what, error);
        run();
        CHECK(faults_disarm() > 0);
        _exit(0);
    }
    child_ok(pid);
}

/* Before Linux 5.14 there is no MADV_POPULATE_WRITE, before 6.3 no MFD_NOEXEC_SEAL; with more than 1,024 processors
 * sched_getaffinity() wants a larger set; and some sandboxes refuse one or another. */
static void an_old_kernel(void) {
    with_every("populate", EINVAL, works);
    with_every("advise", EINVAL, works);
    with_every("getrandom", ENOSYS, works);
    if (FAULTS_OF_START) {
        with_every("sched_getaffinity", EINVAL, works);
    }
    next_name();
    unsigned first = 0;
    for (unsigned n = 1; n < 20 && !first; n++) {
        faults_arm(n, EINVAL, false);
        int rc = create(0, false);
        faults_disarm();
        first = strcmp(faults_what(), "syscall") == 0 ? n : 0;
        if (first) {
            CHECK_EQ(rc, 0); /* the second try did without the seal */
        }
        if (rc == 0) {
            drops();
        }
    }
    CHECK(first > 0);
}

static void the_kernel_is_busy(void) {
    unsigned found = 0;
    for (unsigned n = 1; n < 40; n++) {
        next_name();
        faults_arm(n, EAGAIN, false);
        int rc = create(0, false);
        faults_disarm();
        if (strcmp(faults_what(), "populate") == 0) {
            CHECK_EQ(rc, 0);
            found++;
        }
        if (rc == 0) {
            drops();
        }
    }
    CHECK(found > 0);
}

/* Without /proc nothing can be created, and a name is the only way to a description of one's own. */
static void without_proc(void) {
    a_named_one();
    faults_arm_only("open again", ENOENT);
    CHECK_EQ(shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &made), -ENXIO);
    CHECK_EQ(create(0, false), -ENXIO);
    CHECK_EQ(shmt_segment_attach(name, &made), 0);
    faults_disarm();
    put(made, 2);
    drops();
    CHECK_EQ(get_tag(seg), 2);
    shmt_segment_drop(seg);

    a_named_one();
    CHECK_EQ(shmt_segment_unlink(seg), 0);
    pid_t pid = start_child();
    if (pid == 0) {
        faults_arm_only("open again", ENOENT);
        CHECK_EQ(shmt_member_join(seg), -ENXIO); /* the name is gone */
        _exit(0);
    }
    child_ok(pid);
    CHECK_EQ(create(0, true), 0); /* the name is another segment's */
    pid = start_child();
    if (pid == 0) {
        faults_arm_only("open again", ENOENT);
        CHECK_EQ(shmt_member_join(seg), -ENXIO);
        _exit(0);
    }
    child_ok(pid);
    shmt_segment_drop(seg);
    drops();

    next_name();
    faults_arm_only("linkat", ENOENT);
    CHECK_EQ(create(0, true), -ENXIO);
    faults_disarm();
    faults_arm_only("linkat", EPERM);
    CHECK_EQ(create(0, true), -EPERM);
    faults_disarm();
    CHECK(!name_exists(name));
}

/* By descriptor where /proc is missing: the opener may. */
static void a_link_by_descriptor(void) {
    next_name();
    unsigned found = 0;
    for (unsigned n = 1; n < 40 && !found; n++) {
        faults_arm(n, ENOENT, false);
        int rc = create(0, true);
        faults_disarm();
        if (strcmp(faults_what(), "linkat") == 0) {
            CHECK(rc == 0 || rc == -ENXIO); /* before Linux 6.10 root's alone */
            CHECK_EQ(name_exists(name), rc == 0);
            found++;
        }
        if (rc == 0) {
            drops();
        }
    }
    CHECK(found > 0);
}

/* And the name may be taken. */
static void no_link_by_descriptor_to_a_taken_name(void) {
    a_named_one();
    unsigned found = 0;
    for (unsigned n = 1; n < 40; n++) {
        faults_arm(n, ENOENT, false);
        int rc = create(0, true);
        faults_disarm();
        CHECK(rc < 0);
        if (strcmp(faults_what(), "linkat") == 0) {
            CHECK(rc == -EEXIST || rc == -ENXIO);
            found++;
        }
    }
    CHECK_EQ(found, 1);
    shmt_segment_drop(seg);
}

/* Larger than a file system takes: what can grow grows less far. */
static void no_file_so_large(void) {
    static const int errors[] = {EINVAL, EFBIG, ENOMEM};
    for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
        unsigned found = 0;
        for (unsigned n = 1; n < 20; n++) {
            next_name();
            faults_arm(n, errors[e], false);
            int rc = create(SHMT_GROW, false);
            faults_disarm();
            if (strcmp(faults_what(), "ftruncate") == 0) {
                CHECK_EQ(rc, 0);
                CHECK(shmt_segment_info(made)->flags & SHMT_SHRUNK);
                CHECK(shmt_segment_info(made)->slot_stride > 500 << 10 &&
                      shmt_segment_info(made)->slot_stride <= 1 << 19);
                found++;
            }
            if (rc == 0) {
                drops();
            }
        }
        CHECK_EQ(found, 1);
    }
}

/* A name that the last one out may not remove stays for the next sweep. */
static void a_name_that_cannot_be_removed(void) {
    a_named_one();
    faults_arm_only("unlink", EACCES);
    CHECK_EQ(shmt_segment_unlink(seg), -EACCES);
    shmt_segment_drop(seg);
    CHECK(faults_disarm() >= 2);
    CHECK(name_exists(name));
    CHECK_EQ(shmt_sweep(false, NULL, NULL), 1);
    CHECK(!name_exists(name));
    pid_t pid = start_child();
    if (pid == 0) {
        create(0, true);
        kill(getpid(), SIGKILL);
    }
    child_status(pid);
    faults_arm_only("open", ENFILE);
    CHECK_EQ(shmt_sweep(false, NULL, NULL), -ENFILE);
    faults_disarm();
    CHECK_EQ(shmt_sweep(false, NULL, NULL), 1);
}

/* ---- what comes between two calls ------------------------------------------------------------------------------------- */

static shmt_atomic32 *in_reclaim, *may_go_on;
static uint32_t reclaimed;

/* Stands still as soon as a thread that reclaims has got the byte of a dead member. */
static void stands_still(int fd, int cmd, void *arg) {
    const struct flock *range = arg;
    (void)fd;
    if (cmd == F_OFD_SETLK && range->l_type == F_WRLCK && range->l_len == 1) {
        reclaimed = (uint32_t)range->l_start;
        faults.after = NULL;
        tell(in_reclaim, 1);
        told(may_go_on, 1);
    }
}

static void *reclaims_in_a_thread(void *arg) {
    CHECK_EQ(shmt_reclaim(arg), 1);
    return NULL;
}

/* Threads share the description that holds the locks. The one that closes must not let go of the other's, or a third could
 * become the member whose slots are just being taken back. */
static void closing_leaves_a_reclaim_its_lock(void) {
    char path[300];
    pthread_t thread;
    in_reclaim = new_signal();
    may_go_on = new_signal();
    a_named_one();
    put(seg, 5);
    pid_t pid = start_child();
    if (pid == 0) {
        get(seg);
        _exit(0);
    }
    child_ok(pid);
    shmt_segment_hold(seg); /* as a view does */
    CHECK_EQ(shmt_name_path(name, path, sizeof path), 0);
    faults.after = stands_still;
    CHECK_EQ(pthread_create(&thread, NULL, reclaims_in_a_thread, seg), 0);
    told(in_reclaim, 1);
    CHECK_EQ(shmt_reclaim(seg), 0); /* it is being done */
    int own = -1;
    CHECK_EQ(shmt_name_open(path, &own), 0);
    shmt_segment_close(seg);
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)reclaimed, .l_len = 1};
    CHECK_EQ(fcntl(own, F_OFD_GETLK, &byte), 0);
    CHECK(byte.l_type != F_UNLCK);
    tell(may_go_on, 1);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    shmt_segment_drop(seg);
    shmt_segment_drop(seg);
    CHECK(!name_exists(name));
    close(own);
    free_signal(in_reclaim);
    free_signal(may_go_on);
}

/* Alone in /dev/shm where that is possible: a sweep looks at everybody's files, and its calls are counted. */
static void a_dev_shm_of_our_own(void) {
    if (!private_shm("size=64m")) {
        SKIP("a mount namespace needs root: the other tests share /dev/shm with whoever is there");
    }
}

TESTS(TEST(a_dev_shm_of_our_own), TEST(no_handler_for_forks), TEST(an_old_kernel), TEST(the_kernel_is_busy),
      TEST(without_proc), TEST(a_link_by_descriptor), TEST(no_link_by_descriptor_to_a_taken_name),
      TEST(no_file_so_large), TEST(a_name_that_cannot_be_removed), TEST(closing_leaves_a_reclaim_its_lock))
