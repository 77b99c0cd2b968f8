/* Whatever system call or allocation fails, once or from then on: an error that says so, nothing left behind, and the next
 * try succeeds. Each verb is run again and again, with its first, its second, ... call failing, until none is left. */
#include "check.h"

#if SANITIZED
#define FAULTS_KEEP_HEAP
#endif
#include "faults.h"

static char name[64];
static shmt_segment *seg, *peer, *made;
static shmt_slot slot;

static shmt_config config(uint32_t flags, bool named) {
    return (shmt_config){.name = named ? name : NULL,
                         .slot_nbytes = 8192,
                         .slot_stride = 1 << 20,
                         .share = 1,
                         .slots = 3,
                         .members = 4,
                         .flags = flags | SHMT_PREFAULT};
}

static int create(uint32_t flags, bool named) {
    shmt_config wish = config(flags, named);
    return shmt_segment_create(&wish, &made);
}

/* ---- the verbs: what is before, what may fail, and what is to be so afterwards --------------------------------------- */

static void nothing(void) {}

static int creates(void) { return create(0, false); }
static int creates_large(void) { return create(SHMT_HUGE_PAGES, false); }
static int creates_growing(void) { return create(SHMT_GROW, false); }
static int creates_named(void) { return create(0, true); }
static int creates_growing_named(void) { return create(SHMT_GROW, true); }

static void drops_made(int rc) {
    CHECK_EQ(made != NULL, rc == 0);
    CHECK_EQ(name_exists(name), rc == 0 && shmt_segment_info(made)->name);
    if (rc == 0) {
        put(made, 1);
        CHECK_EQ(get_tag(made), 1);
        shmt_segment_drop(made);
    }
}

static void a_dead_one(void) {
    pid_t pid = start_child();
    if (pid == 0) {
        create(0, true);
        kill(getpid(), SIGKILL);
    }
    child_status(pid);
}

/* The sweep that was to take the name away may have failed. */
static void drops_made_or_sweeps(int rc) {
    if (rc != 0) {
        CHECK(shmt_sweep(false, NULL, NULL) >= 0);
    }
    drops_made(rc);
}

static void a_named_one(void) {
    CHECK_EQ(create(0, true), 0);
    seg = made;
    made = NULL;
}

static int attaches(void) { return shmt_segment_attach(name, &made); }
static int attaches_fd(void) { return shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &made); }

static void drops_both(int rc) {
    CHECK_EQ(made != NULL, rc == 0);
    CHECK(name_exists(name)); /* who fails to attach removes nothing */
    if (rc == 0) {
        put(made, 2);
        shmt_segment_drop(made);
        CHECK_EQ(get_tag(seg), 2);
    }
    put(seg, 3);
    CHECK_EQ(get_tag(seg), 3);
    shmt_segment_drop(seg);
    CHECK(!name_exists(name));
}

static int unlinks(void) { return shmt_segment_unlink(seg); }

static void drops_unlinked(int rc) {
    CHECK_EQ(name_exists(name), rc != 0);
    shmt_segment_drop(seg);
    CHECK(!name_exists(name));
}

static int sweeps(void) {
    int rc = shmt_sweep(false, NULL, NULL);
    return rc > 0 ? 0 : rc;
}

static void sweeps_again(int rc) {
    CHECK(rc != 0 || !name_exists(name) || faults.calls > 0);
    CHECK(shmt_sweep(false, NULL, NULL) >= 0);
    CHECK(!name_exists(name));
}

/* In a forked child: it joins, or says why not and may try again. */
static int joins(void) { return shmt_member_join(seg); }

static void joins_again(int rc) {
    CHECK_EQ(stats_of(seg).members, 2);
    (void)rc;
    put(seg, 4);
    CHECK_EQ(get_tag(seg), 4);
}

static void a_growing_one(void) {
    CHECK_EQ(create(SHMT_GROW, true), 0);
    seg = made;
    made = NULL;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    memset(slot.data, 7, slot.nbytes);
}

static int grows(void) {
    shmt_slot before = slot;
    int rc = shmt_slot_reserve(seg, &slot, 300000);
    CHECK(rc == 0 ? slot.nbytes >= 300000 : memcmp(&before, &slot, sizeof slot) == 0);
    return rc;
}

static void grows_again(int rc) {
    (void)rc;
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 300000), 0);
    memset(slot.data + 8192, 7, 300000 - 8192);
    for (size_t i = 0; i < 300000; i++) {
        CHECK(slot.data[i] == 7);
    }
    CHECK_EQ(shmt_slot_publish(seg, &slot, 300000, 1), 0);
    shmt_segment_drop(seg);
}

/* Published by one who had it grow; acquired by one who has mapped little of it. */

static void a_large_item_for_a_peer(void) {
    CHECK_EQ(create(SHMT_GROW, true), 0);
    seg = made;
    made = NULL;
    peer = peer_of(seg);
    for (uint64_t tag = 1; tag <= 2; tag++) {
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        CHECK_EQ(shmt_slot_reserve(seg, &slot, 300000), 0);
        memset(slot.data, 7, 300000);
        CHECK_EQ(shmt_slot_publish(seg, &slot, 300000, tag), 0);
    }
}

static shmt_slot got;
static uint64_t words[4];
static int n_got;

static int acquires(void) {
    n_got = shmt_slot_try_acquire_many(peer, 1, words, &got);
    return n_got < 0 ? n_got : 0;
}

static int acquires_many(void) {
    n_got = shmt_slot_try_acquire_many(peer, 2, words, &got);
    return n_got < 0 ? n_got : 0;
}

/* An item that could not be shown is not lost: both come, once each. */
static void acquires_the_rest(int rc) {
    uint64_t tags = 0;
    CHECK_EQ(stats_of(seg).reading, rc == 0 ? n_got : 0);
    for (;;) {
        if (rc == 0) {
            for (int i = 0; i < n_got; i++) {
                CHECK(got.data[(uint64_t)i * shmt_segment_info(seg)->slot_stride + 299999] == 7);
                tags += UINT64_C(1) << 8 * (got.tag - 1 + (uint64_t)i);
            }
            CHECK_EQ(shmt_slot_release_many(peer, &got, words, (uint32_t)n_got), 0);
        }
        rc = acquires();
        if (rc != 0) {
            break;
        }
    }
    CHECK_EQ(rc, -EAGAIN);
    CHECK_EQ(tags, 0x101);
    CHECK_EQ(stats_of(seg).free, 3);
    CHECK_EQ(stats_of(seg).claims, 2);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

/* What a dead producer had published and not pushed, and what a dead consumer held. */
static void a_dead_member(void) {
    a_named_one();
    put(seg, 5);
    pid_t pid = start_child();
    if (pid == 0) {
        get(seg);
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        CHECK_EQ(shmt_slots_change(seg, slot.index, slot.word, slot.word ^ UINT64_C(5) << 60),
                 0); /* WRITING to READY */
        _exit(0);
    }
    child_ok(pid);
}

static int reclaims(void) {
    int rc = shmt_reclaim(seg);
    return rc > 0 ? 0 : rc;
}

static void reclaims_again(int rc) {
    CHECK(shmt_reclaim(seg) >= 0);
    (void)rc;
    shmt_stats s = stats_of(seg);
    CHECK(s.ready == 2 && s.free == 1 && s.members == 1 && s.reclaimed == 1 && s.redelivered == 1);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    shmt_segment_drop(seg);
}

/* A batch's lease is on the heap: without one the batch is still the caller's. */
static void a_batch(void) {
    a_named_one();
    put(seg, 1);
    put(seg, 2);
    CHECK_EQ(shmt_slot_try_acquire_many(seg, 2, words, &got), 2);
}

static shmt_lease *lease;

static int leases(void) { return shmt_lease_take(seg, &got, words, 2, &lease); }

static void lets_go(int rc) {
    if (rc == 0) {
        shmt_lease_drop(lease);
    } else {
        CHECK_EQ(shmt_slot_release_many(seg, &got, words, 2), 0);
    }
    CHECK_EQ(stats_of(seg).free, 3);
    shmt_segment_drop(seg);
}

static int attaches_same(void) { return shmt_segment_attach_same(seg, &made); }

/* One of its slots holds an item, the others are free and have grown. */
static void grown_slots(void) {
    CHECK_EQ(create(SHMT_GROW, true), 0);
    seg = made;
    made = NULL;
    shmt_slot all[3];
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(shmt_slot_try_claim(seg, &all[i]), 0);
        CHECK_EQ(shmt_slot_reserve(seg, &all[i], 300000), 0);
        memset(all[i].data, 7, 300000);
    }
    CHECK_EQ(shmt_slot_abort(seg, &all[0]), 0);
    CHECK_EQ(shmt_slot_publish(seg, &all[1], 300000, 1), 0);
    CHECK_EQ(shmt_slot_abort(seg, &all[2]), 0);
}

static int trims(void) {
    uint64_t given = 0;
    int rc = shmt_trim(seg, &given);
    CHECK_EQ(given >= 2 * (300000 - 8192), rc == 0);
    CHECK(rc != -EINTR); /* a signal is no reason to stop */
    return rc;
}

/* A slot whose memory could not be taken is free all the same, and both are looked at again. */
static void trims_again(int rc) {
    CHECK_EQ(stats_of(seg).free, 2);
    uint64_t given = 0;
    CHECK_EQ(shmt_trim(seg, &given), 0);
    CHECK_EQ(given > 0, rc != 0);
    uint64_t kept = stats_of(seg).reserved_nbytes - 2 * 8192;
    CHECK(kept >= 300000 && kept < 600000);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(slot.nbytes, 8192);
    grows_again(0);
}

static shmt_stats figures;

static int looks(void) { return shmt_stats_get(seg, &figures); }

static void a_peer(void) {
    a_named_one();
    peer = peer_of(seg);
}

static void looked(int rc) {
    CHECK_EQ(rc, 0);
    CHECK(figures.members >= 1 && figures.free == 3);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static shmt_watch *watch;
static shmt_watcher *to_run;

static int watches(void) {
    watch = NULL;
    return shmt_watch_begin(seg, false, &watch, &to_run);
}

static void ends_watch(int rc) {
    CHECK_EQ(watch != NULL, rc == 0);
    if (rc == 0) {
        shmt_watcher_unrun(to_run); /* as if no thread could be started for it */
        shmt_watch_end(watch);
    }
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

typedef struct verb {
    const char *what;
    void (*before)(void);
    int (*run)(void);
    void (*after)(int rc);
    bool in_child;
    unsigned least; /* calls that it makes at least: else these tests look at nothing */
} verb;

static const verb verbs[] = {
    {"create", nothing, creates, drops_made, false, 10},
    {"create, large pages", nothing, creates_large, drops_made, false, 10},
    {"create, growing", nothing, creates_growing, drops_made, false, 16},
    {"create by name", nothing, creates_named, drops_made, false, 12},
    {"create by a dead one's name", a_dead_one, creates_named, drops_made_or_sweeps, false, 18},
    {"create by name, growing", nothing, creates_growing_named, drops_made, false, 18},
    {"attach by name", a_named_one, attaches, drops_both, false, 10},
    {"attach by descriptor", a_named_one, attaches_fd, drops_both, false, 8},
    {"join after fork", a_named_one, joins, joins_again, true, 3},
    {"unlink", a_named_one, unlinks, drops_unlinked, false, 6},
    {"sweep", a_dead_one, sweeps, sweeps_again, false, 6},
    {"grow", a_growing_one, grows, grows_again, false, 3},
    {"acquire", a_large_item_for_a_peer, acquires, acquires_the_rest, false, 2},
    {"acquire many", a_large_item_for_a_peer, acquires_many, acquires_the_rest, false, 2},
    {"reclaim", a_dead_member, reclaims, reclaims_again, false, 1},
    {"attach to one's own", a_named_one, attaches_same, drops_both, false, SANITIZED ? 2 : 5},
    {"lease of a batch", a_batch, leases, lets_go, false, SANITIZED ? 0 : 1},
    {"trim", grown_slots, trims, trims_again, false, 2},
    {"watch", a_peer, watches, ends_watch, false, 1},
    {"figures", a_peer, looks, looked, false, 1},
};

/* ---- each call of each verb ---------------------------------------------------------------------------------------------------- */

/* What fails without harm: figures of the machine, advice, a number that only has to be random, and the sweep before a
 * creation. */
static bool may_pass(const verb *v, int error) {
    static const char *const harmless[] = {"read",  "advise",  "getrandom",        "opendir",
                                           "pread", "nothing", "sched_getaffinity"};
    const char *what = faults_what();
    bool unknown = error == EMFILE || error == ENOMEM; /* a figure may be there, and low */
    bool fine = error == EINTR || (strcmp(what, "open a figure") == 0 && !unknown) || v->run == sweeps ||
                v->run == looks || (v->before == a_dead_one && v->run == creates_named) ||
                (v->run == grows && strcmp(what, "lseek") == 0) ||  /* then it is reserved, perhaps once more */
                (v->run == reclaims && strcmp(what, "fcntl") == 0); /* who may be alive is not touched */
    if (error == EACCES) { /* "held by somebody", on some systems: the next byte is tried */
        fine |= strcmp(what, "fcntl") == 0;
    }
    if (error == ENOMEM && (v->run == creates_growing || v->run == creates_growing_named)) {
        fine |= strcmp(what, "ftruncate") == 0 || strcmp(what, "mmap") == 0; /* slots grow less far */
    }
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
        fine |= strcmp(what, harmless[i]) == 0;
    }
    return fine;
}

typedef struct outcome {
    unsigned calls;
    int rc;
} outcome;

static outcome run_verb(const verb *v, unsigned fail, int error, bool and_after) {
    snprintf(name, sizeof name, "%s", fresh_name());
    seg = peer = made = NULL;
    int fds = count_fds(NULL), maps = count_maps("shmtensor"), seg_fds;
    outcome o = {0};
    v->before();
    seg_fds = count_fds(NULL);
    faults_arm(fail, error, and_after);
    o.rc = v->run();
    o.calls = faults_disarm();
    if (o.rc == 0 && !may_pass(v, error)) {
        fprintf(stderr, "%s: call %u (%s) failing with %s went unnoticed\n", v->what, fail, faults_what(),
                strerror(error));
        CHECK(o.rc != 0);
    }
    if (o.rc != 0 && !v->in_child) {
        CHECK_EQ(count_fds(NULL), seg_fds);
    }
    v->after(o.rc);
    if (!v->in_child) {
        CHECK(!name_exists(name));
        CHECK_EQ(count_fds(NULL), fds);
        CHECK_EQ(count_maps("shmtensor"), maps);
    }
    return o;
}

/* The errors that say something else than the system did, because they know more. */
static bool says(const verb *v, int rc, int error) {
    bool heap = faults_heap() && rc == -ENOMEM;
    bool lock_denied = error == EACCES && rc == -EUSERS; /* "locked by another" on some systems */
    bool nothing_there = rc == -ENOENT;                  /* what cannot be looked at is not there */
    bool no_patience = error == EACCES && rc == -EBUSY;
    bool not_swept = v->before == a_dead_one && rc == -EEXIST;
    return rc == 0 || rc == -error || heap || not_swept || lock_denied || (nothing_there && v->run == unlinks) ||
           no_patience || (rc == -EAGAIN && error == EACCES);
}

static void every_call(const verb *v, int error, bool and_after) {
    unsigned reached = 0, told = 0;
    for (unsigned n = 1;; n++) {
        outcome o;
        if (v->in_child) {
            outcome *shared = (void *)new_signal();
            if (n == 1) {
                v->before();
            }
            pid_t pid = start_child();
            if (pid == 0) {
                int fds = count_fds(NULL);
                faults_arm(n, error, and_after);
                shared->rc = v->run();
                shared->calls = faults_disarm();
                CHECK_EQ(count_fds(NULL), fds + (shared->rc == 0));
                v->after(shared->rc);
                shmt_segment_drop(seg);
                _exit(0);
            }
            child_ok(pid);
            o = *shared;
            free_signal((void *)shared);
        } else {
            o = run_verb(v, n, error, and_after);
        }
        if (!says(v, o.rc, error)) {
            fprintf(stderr, "%s: call %u (%s) failing with %s: %s\n", v->what, n, faults_what(), strerror(error),
                    strerror(-o.rc));
            CHECK_EQ(o.rc, -error);
        }
        told += o.rc != 0;
        if (o.calls < n) {
            CHECK_EQ(o.rc, 0);
            break;
        }
        reached = n;
    }
    if (v->in_child) {
        shmt_segment_drop(seg);
    }
    if (getenv("FAULTS_VERBOSE")) {
        printf("%-28s %-28s %s: %u calls, %u errors\n", v->what, strerror(error), and_after ? "on" : "once", reached,
               told);
    }
    if (reached < v->least) {
        fprintf(stderr, "%s: %u calls\n", v->what, reached);
    }
    CHECK(reached >= v->least);
    bool heap_only = v->run == reclaims || v->run == leases;
    CHECK(told > 0 || error == EINTR || v->run == looks || (SANITIZED && heap_only));
}

static void each_verb(int error, bool and_after) {
    for (size_t k = 0; k < sizeof verbs / sizeof *verbs; k++) {
        every_call(&verbs[k], error, and_after);
    }
}

static void no_space(void) { each_verb(ENOSPC, false); }
static void no_space_from_then_on(void) { each_verb(ENOSPC, true); }
static void no_memory(void) { each_verb(ENOMEM, false); }
static void no_memory_from_then_on(void) { each_verb(ENOMEM, true); }
static void no_descriptor(void) { each_verb(EMFILE, false); }
static void no_permission(void) { each_verb(EACCES, false); }
static void a_signal(void) { each_verb(EINTR, false); }

/* Alone in /dev/shm where that is possible: a sweep looks at everybody's files, and its calls are counted. */
static void a_dev_shm_of_our_own(void) {
    if (!private_shm("size=64m")) {
        SKIP("a mount namespace needs root: the other tests share /dev/shm with whoever is there");
    }
}

TESTS(TEST(a_dev_shm_of_our_own), TEST(no_space), TEST(no_space_from_then_on), TEST(no_memory),
      TEST(no_memory_from_then_on), TEST(no_descriptor), TEST(no_permission), TEST(a_signal))
