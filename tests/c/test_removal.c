/* Names go one at a time: a remover stopped or killed before any of its system calls takes no living segment's name along.
 *
 * What a name leads to, and who holds which byte of its file, changes in system calls only. So A, a child, is stopped
 * before each of its own in turn; B, this process, does what could come in between; then A goes on, or is killed. */
#include <sys/ptrace.h>

#include "check.h"

static char name[64];

static void next_name(void) { snprintf(name, sizeof name, "%s", fresh_name()); }

static shmt_config config(void) { return (shmt_config){.name = name, .slot_nbytes = 100, .slots = 3, .members = 4}; }

static shmt_segment *create(void) { return make_config(config()); }

static shmt_segment *attach(void) {
    shmt_segment *seg = NULL;
    CHECK_EQ(shmt_segment_attach(name, &seg), 0);
    return seg;
}

/* Does the name lead to this very segment? */
static bool is_named(const shmt_segment *seg) {
    char path[300];
    CHECK_EQ(shmt_name_path(name, path, sizeof path), 0);
    return shmt_name_is(path, shmt_segment_info(seg)->fd);
}

/* Leaves a segment behind whose only member is dead. */
static void leave_dead(void) {
    pid_t pid = start_child();
    if (pid == 0) {
        create();
        kill(getpid(), SIGKILL);
    }
    CHECK(WIFSIGNALED(child_status(pid)));
    CHECK(name_exists(name));
}

/* ---- a child that stands before its n-th system call --------------------------------------------------------------------- */

typedef struct stopped {
    pid_t pid;
    bool alive;
} stopped;

static int next_stop(pid_t pid) {
    CHECK_EQ(ptrace(PTRACE_SYSCALL, pid, NULL, NULL), 0);
    return child_status(pid);
}

/* False: it made fewer, and has ended. */
static bool stop_before(stopped *a, void (*prepare)(void), void (*body)(void), int n) {
    a->pid = start_child();
    if (a->pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
            _exit(99);
        }
        prepare();
        raise(SIGSTOP);
        body();
        _exit(0);
    }
    int status = child_status(a->pid);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK_EQ(ptrace(PTRACE_SETOPTIONS, a->pid, NULL, (void *)PTRACE_O_TRACESYSGOOD), 0);
    for (int stops = 0; stops <= 2 * n;) { /* each call stops twice: before and after it */
        status = next_stop(a->pid);
        if (WIFEXITED(status)) {
            CHECK_EQ(WEXITSTATUS(status), 0);
            return false;
        }
        CHECK(WIFSTOPPED(status));
        stops += WSTOPSIG(status) == (SIGTRAP | 0x80);
    }
    return a->alive = true;
}

static void go_on(stopped *a) {
    CHECK_EQ(ptrace(PTRACE_DETACH, a->pid, NULL, NULL), 0);
    child_ok(a->pid);
    a->alive = false;
}

static void end(stopped *a, bool killed) {
    if (killed) {
        kill_child(a->pid);
        a->alive = false;
    } else {
        go_on(a);
    }
}

static shmt_segment *mine;
static int waits; /* how often B could not do what it wanted because A stood in the middle of a removal */

/* A stops before each of its calls; B comes; A ends in one of two ways; and whatever remains can be cleared away. */
static void at_each_call(void (*before)(void), void (*prepare)(void), void (*body)(void), void (*b)(stopped *, bool)) {
    for (int killed = 0; killed < 2; killed++) {
        int n = 0;
        for (bool reached = true; reached; n++) {
            stopped a = {0};
            next_name();
            mine = NULL;
            before();
            reached = stop_before(&a, prepare, body, n);
            if (reached) {
                b(&a, killed);
            } else if (mine) {
                shmt_segment_drop(mine);
            }
            CHECK(!a.alive);
            CHECK(shmt_sweep(false, NULL, NULL) >= 0);
            CHECK(!name_exists(name));
        }
        CHECK(n > 4);
    }
}

/* ---- what A does, and what B does meanwhile -------------------------------------------------------------------------------- */

static void nothing(void) {}
static void a_attaches(void) { mine = attach(); }
static void a_creates(void) { mine = create(); }
static void a_drops(void) { shmt_segment_drop(mine); }
static void a_sweeps(void) { CHECK(shmt_sweep(false, NULL, NULL) >= 0); }
static void a_unlinks(void) {
    int rc = shmt_segment_unlink(mine);
    CHECK(rc == 0 || rc == -ENOENT || rc == -EBUSY);
}

static void b_creates_before(void) { mine = create(); }

/* B takes the name if it is to be had. Then it is B's, whatever A was about to do. */
static void b_takes_the_name(stopped *a, bool killed) {
    shmt_segment *seg = NULL;
    shmt_config wish = config();
    int rc = shmt_segment_create(&wish, &seg);
    CHECK(rc == 0 || rc == -EEXIST);
    waits += rc != 0;
    end(a, killed);
    if (rc == 0) {
        CHECK(is_named(seg));
        shmt_segment_drop(seg);
        CHECK(!name_exists(name));
    }
}

static void b_unlinks_and_takes_the_name(stopped *a, bool killed) {
    int rc = shmt_segment_unlink(mine);
    CHECK(rc == 0 || rc == -ENOENT || rc == -EBUSY);
    if (rc == -EBUSY) { /* A has it in hand */
        waits++;
        end(a, killed);
        CHECK_EQ(shmt_segment_unlink(mine), killed ? 0 : -ENOENT);
        CHECK(!name_exists(name));
        shmt_segment_drop(mine);
        return;
    }
    CHECK(!is_named(mine));
    shmt_segment_drop(mine);
    b_takes_the_name(a, killed);
}

/* The same, but B unlinks as somebody who is no member: A may be the last one out. */
static void b_unlinks_from_outside(stopped *a, bool killed) {
    char path[300];
    int fd = -1;
    CHECK_EQ(shmt_name_path(name, path, sizeof path), 0);
    if (shmt_name_open(path, &fd) == 0) {
        int rc = shmt_name_remove(path, fd);
        CHECK(rc == 0 || rc == -EBUSY);
        waits += rc != 0;
        close(fd);
    }
    b_takes_the_name(a, killed);
}

static void an_unlink_takes_no_other_segments_name(void) {
    waits = 0;
    at_each_call(b_creates_before, a_attaches, a_unlinks, b_unlinks_and_takes_the_name);
    CHECK(waits >= 2); /* B has met A between its look and its removal: the tests would show nothing else */
}

static void the_last_one_out_takes_no_other_segments_name(void) {
    waits = 0;
    at_each_call(nothing, a_creates, a_drops, b_unlinks_from_outside);
    CHECK(waits >= 2);
    at_each_call(nothing, a_creates, a_drops, b_takes_the_name);
}

static void a_sweep_takes_no_other_segments_name(void) {
    waits = 0;
    at_each_call(leave_dead, nothing, a_sweeps, b_unlinks_from_outside);
    CHECK(waits >= 2);
    at_each_call(leave_dead, nothing, a_sweeps, b_takes_the_name);
}

static void b_drops(stopped *a, bool killed) {
    shmt_segment_drop(mine);
    end(a, killed);
    CHECK(killed || !name_exists(name));
}

/* Of two who leave at once one must find himself the last: else the name stays until somebody sweeps. */
static void two_leave_at_once(void) { at_each_call(b_creates_before, a_attaches, a_drops, b_drops); }

static void *removes_soon(void *path) {
    sleep_ms(4);
    CHECK_EQ(unlink(path), 0);
    return NULL;
}

/* Whoever holds byte 0 is waited for a while; when the name is gone, so is the wait. */
static void what_somebody_else_removes_is_gone(void) {
    char path[300];
    pthread_t thread;
    int fd = -1;
    next_name();
    mine = create();
    CHECK_EQ(shmt_name_path(name, path, sizeof path), 0);
    CHECK_EQ(shmt_name_open(path, &fd), 0);
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    CHECK_EQ(fcntl(fd, F_OFD_SETLK, &byte), 0);
    int64_t begin = shmt_now_ns();
    CHECK_EQ(shmt_segment_unlink(mine), -EBUSY);
    CHECK(shmt_now_ns() - begin >= 10 * MS);
    bool gone = false;
    for (int turn = 0; turn < 20 && !gone; turn++) { /* our patience may end first where the machine is busy */
        CHECK_EQ(pthread_create(&thread, NULL, removes_soon, path), 0);
        int rc = shmt_segment_unlink(mine);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        CHECK(rc == -ENOENT || rc == -EBUSY);
        CHECK(!name_exists(name));
        gone = rc == -ENOENT;
        shmt_segment_drop(mine);
        mine = create();
        close(fd);
        CHECK_EQ(shmt_name_open(path, &fd), 0);
        CHECK_EQ(fcntl(fd, F_OFD_SETLK, &byte), 0);
    }
    CHECK(gone);
    close(fd);
    shmt_segment_drop(mine);
    CHECK(!name_exists(name));
}

/* ---- coming while somebody removes ----------------------------------------------------------------------------------------- */

static void a_attaches_if_it_can(void) {
    shmt_segment *seg = NULL;
    int rc = shmt_segment_attach(name, &seg);
    CHECK(rc == 0 || rc == -ENOENT);
    if (rc == 0) { /* B only sweeps and leaves: neither may take the name of a segment that somebody is in */
        CHECK(is_named(seg));
        put(seg, 4);
        CHECK_EQ(get_tag(seg), 4);
        shmt_segment_drop(seg);
    }
}

static void b_sweeps(stopped *a, bool killed) {
    CHECK(shmt_sweep(false, NULL, NULL) >= 0);
    end(a, killed);
}

static void whoever_attaches_is_in_a_segment_with_a_name(void) {
    at_each_call(b_creates_before, nothing, a_attaches_if_it_can, b_drops);
    at_each_call(leave_dead, nothing, a_attaches_if_it_can, b_sweeps);
}

static void a_creates_if_it_can(void) {
    shmt_segment *seg = NULL;
    shmt_config wish = config();
    int rc = shmt_segment_create(&wish, &seg);
    CHECK(rc == 0 || rc == -EEXIST);
    if (rc == 0) {
        CHECK(is_named(seg));
        shmt_segment_drop(seg);
    }
}

static void whoever_creates_has_the_name(void) {
    at_each_call(nothing, nothing, a_creates_if_it_can, b_sweeps);
    at_each_call(leave_dead, nothing, a_creates_if_it_can, b_sweeps);
    at_each_call(leave_dead, nothing, a_creates_if_it_can, b_takes_the_name);
    at_each_call(b_creates_before, nothing, a_creates_if_it_can, b_drops);
}

/* ---- what a sweep says of a name that somebody is removing ------------------------------------------------------------------- */

static int said, stale_said;

static void on_seen(void *arg, const char *seen, int stale) {
    (void)arg;
    if (strcmp(seen, name) == 0) {
        said++;
        stale_said += stale;
    }
}

static void b_looks(stopped *a, bool killed) {
    said = stale_said = 0;
    bool there = name_exists(name);
    CHECK(shmt_sweep(true, on_seen, NULL) >= 0);
    CHECK_EQ(said, there);
    waits += there && !stale_said;
    end(a, killed);
    said = stale_said = 0;
    int removed = shmt_sweep(false, on_seen, NULL);
    CHECK_EQ(removed, said);
    CHECK_EQ(stale_said, said);
    CHECK_EQ(said, there && killed);
}

/* While B sweeps, A, who stands in its own sweep, goes on and ends it: B has nothing to say. True: it said nothing. */
static bool silent;

static void b_sweeps_while_a_goes_on(stopped *a, bool killed) {
    for (int dry_run = 0; dry_run < 2 && !killed && name_exists(name); dry_run++) {
        shmt_atomic32 *begun = new_signal();
        pid_t b = start_child();
        if (b == 0) {
            said = 0;
            tell(begun, 1);
            CHECK(shmt_sweep(dry_run, on_seen, NULL) >= 0);
            _exit(said > stale_said ? 5 : 0); /* "in use" */
        }
        told(begun, 1);
        sleep_ms(3);
        if (a->alive) {
            go_on(a);
        }
        int status = child_status(b);
        CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 5));
        silent = silent && WEXITSTATUS(status) == 0;
        free_signal(begun);
    }
    if (a->alive) {
        end(a, killed);
    }
}

static void two_sweeps_at_once(void) {
    waits = 0;
    at_each_call(leave_dead, nothing, a_sweeps, b_looks);
    CHECK(waits >= 2); /* A stood with every byte in hand: not known to be stale */
    silent = false;
    for (int turn = 0; turn < 20 && !silent; turn++) { /* B's patience may end first where the machine is busy */
        silent = true;
        at_each_call(leave_dead, nothing, a_sweeps, b_sweeps_while_a_goes_on);
    }
    CHECK(silent);
}

/* ---- all at once ------------------------------------------------------------------------------------------------------------- */

/* In the payload: how many asked for the name to go. */
static shmt_atomic32 *asked(shmt_segment *seg) {
    return (shmt_atomic32 *)(void *)(uintptr_t)shmt_segment_info(seg)->data;
}

/* Whoever is in a segment that nobody asked to be unlinked finds its name leading to it. */
static void hold_and_look(shmt_segment *seg, uint64_t *random) {
    for (uint64_t turn = next_random(random) % 4; turn > 0; turn--) {
        sched_yield();
        CHECK(is_named(seg) || shmt_load_seq_cst(asked(seg)) > 0);
    }
}

static void come_and_go(uint64_t seed) {
    shmt_config wish = {.name = name, .slot_nbytes = 100, .members = 8};
    for (;;) {
        shmt_segment *seg = NULL;
        uint64_t what = next_random(&seed) % 8;
        if (what == 0) {
            CHECK(shmt_sweep(false, NULL, NULL) >= 0);
            continue;
        }
        int rc = what < 4 ? shmt_segment_create(&wish, &seg) : shmt_segment_attach(name, &seg);
        CHECK(rc == 0 || rc == -EEXIST || rc == -ENOENT || rc == -EUSERS); /* EUSERS: the last one out holds them all */
        if (rc == 0) {
            hold_and_look(seg, &seed);
            if (what % 2) {
                shmt_add_seq_cst(asked(seg), 1);
                rc = shmt_segment_unlink(seg);
                CHECK(rc == 0 || rc == -ENOENT || rc == -EBUSY);
            }
            shmt_segment_drop(seg);
        }
    }
}

static void many_under_one_name(void) {
    enum { N = 4 };
    pid_t pids[N] = {0};
    uint64_t random = 3;
    next_name();
    for (int64_t stop = after_ms(SANITIZED ? 3000 : 2000); shmt_now_ns() < stop;) {
        uint32_t one = (uint32_t)(next_random(&random) % N);
        if (pids[one]) {
            kill_child(pids[one]);
        }
        pids[one] = start_child();
        if (pids[one] == 0) {
            come_and_go(next_random(&random));
        }
        sleep_ms(3);
    }
    for (int i = 0; i < N; i++) {
        if (pids[i]) {
            kill_child(pids[i]);
        }
    }
    CHECK(shmt_sweep(false, NULL, NULL) >= 0);
    CHECK(!name_exists(name));
}

/* Alone in /dev/shm where that is possible: other programs' sweeps would come in between. */
static void a_dev_shm_of_our_own(void) {
    if (!private_shm("size=64m")) {
        SKIP("a mount namespace needs root: the other tests share /dev/shm with whoever is there");
    }
}

TESTS(TEST(a_dev_shm_of_our_own), TEST(an_unlink_takes_no_other_segments_name),
      TEST(the_last_one_out_takes_no_other_segments_name), TEST(a_sweep_takes_no_other_segments_name),
      TEST(two_leave_at_once), TEST(what_somebody_else_removes_is_gone),
      TEST(whoever_attaches_is_in_a_segment_with_a_name), TEST(whoever_creates_has_the_name), TEST(two_sweeps_at_once),
      TEST(many_under_one_name))
