/* Descriptors that are readable while an acquire would not wait: of each state, who changes it, and what it may not cost
 * others. The thread is the tests' own. */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>

#include "check.h"

#define WATCHES_PER_THREAD 127

static pthread_t threads[4];
static int n_threads;

static void *serve(void *watcher) {
    shmt_watcher_run(watcher);
    return NULL;
}

static shmt_watch *watch_as(shmt_segment *seg, bool anybody) {
    shmt_watch *watch = NULL;
    shmt_watcher *to_run = NULL;
    CHECK_EQ(shmt_watch_begin(seg, anybody, &watch, &to_run), 0);
    CHECK(shmt_watch_is_ours(watch));
    if (to_run) {
        CHECK(n_threads < 4);
        CHECK_EQ(pthread_create(&threads[n_threads++], NULL, serve, to_run), 0);
    }
    return watch;
}

static shmt_watch *watch_of(shmt_segment *seg) { return watch_as(seg, false); }

/* What is watched has ended: so do the threads, by themselves. */
static void end_threads(void) {
    while (n_threads > 0) {
        pthread_join(threads[--n_threads], NULL);
    }
}

static bool readable_within(const shmt_watch *watch, int ms) {
    struct pollfd p = {.fd = shmt_watch_fd(watch), .events = POLLIN};
    return poll(&p, 1, ms) == 1;
}
static void becomes_readable(const shmt_watch *watch) { CHECK(readable_within(watch, 20000)); }
static bool is_readable(const shmt_watch *watch) { return readable_within(watch, 0); }
static void becomes_unreadable(const shmt_watch *watch) {
    for (int64_t end = after_ms(20000); is_readable(watch); sleep_ms(1)) {
        CHECK(shmt_now_ns() < end);
    }
}

static uint64_t take(shmt_segment *seg, shmt_watch *watch) {
    uint64_t tag = get_tag(seg);
    shmt_watch_settle(watch);
    return tag;
}

/* The thread sleeps on the event: whoever publishes now has to wake it. */
static void is_asleep_on(shmt_segment *seg) {
    for (int64_t end = after_ms(20000); !(shmt_load_seq_cst(&seg->header->ready_event.word) & SHMT_EVENT_W);) {
        CHECK(shmt_now_ns() < end);
        sleep_ms(1);
    }
    sleep_ms(5);
}

static void readable_while_something_is_there(void) {
    int fds = count_fds(NULL);
    shmt_segment *seg = make(4, 0, 0);
    shmt_watch *watch = watch_of(seg);
    CHECK(!readable_within(watch, 20));
    for (uint64_t round = 0; round < 20; round++) {
        put(seg, 1);
        becomes_readable(watch);
        put(seg, 2);
        CHECK_EQ(take(seg, watch), 1);
        CHECK(is_readable(watch)); /* a level: one is left */
        CHECK_EQ(take(seg, watch), 2);
        CHECK(!readable_within(watch, round == 0 ? 250 : 0)); /* and then none: whoever took it saw to it at once */
    }
    shmt_watch_end(watch);
    end_threads();
    shmt_segment_drop(seg);
    CHECK_EQ(count_fds(NULL), fds);
    CHECK_EQ(count_maps("memfd:shmtensor"), 0);
}

static void what_is_there_already_is_seen(void) {
    shmt_segment *seg = make(4, 0, 0);
    put(seg, 1);
    shmt_watch *watch = watch_of(seg);
    becomes_readable(watch);
    shmt_watch_end(watch);
    end_threads();
    shmt_segment_drop(seg);
}

/* Another process took it: nobody here is told, and the end of a slice finds out. */
static void what_others_took_is_noticed(void) {
    shmt_segment *seg = make(4, 0, 0), *other = same(seg);
    shmt_watch *watch = watch_of(seg);
    for (int i = 0; i < 3; i++) {
        put(other, 1);
        becomes_readable(watch);
        get_tag(other);
        becomes_unreadable(watch);
    }
    put(other, 2);
    becomes_readable(watch);
    shmt_watch_end(watch);
    end_threads();
    shmt_segment_drop(other);
    shmt_segment_drop(seg);
}

/* Killed after the push and before the wake, and before the push. */
static void of_the_dead_it_hears_at_the_end_of_a_slice(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_watch *watch = watch_as(seg, true);
    for (int pushes = 0; pushes < 2; pushes++) {
        is_asleep_on(seg);
        pid_t pid = start_child();
        if (pid == 0) {
            shmt_slot slot;
            CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
            uint64_t gen = shmt_word_gen(slot.word);
            seg->slots[slot.index].nbytes = 8;
            uint64_t ready = shmt_word(SHMT_READY, shmt_word_owner(slot.word), gen);
            CHECK_EQ(shmt_slots_change(seg, slot.index, slot.word, ready), 0);
            CHECK_EQ(pushes ? shmt_order_push(seg, slot.index, gen) : 0, 0);
            _exit(0);
        }
        child_ok(pid);
        becomes_readable(watch);
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        shmt_watch_settle(watch);
        CHECK(!is_readable(watch));
    }
    shmt_watch_end(watch);
    end_threads();
    shmt_segment_drop(seg);
}

/* A waiter that looks only when it is woken, not at the end of a slice: what it is not woken for, it misses. */
static shmt_atomic32 waits, woken;
static void *wait_for_a_wake_up(void *arg) {
    shmt_event *event = &((shmt_segment *)arg)->header->ready_event;
    struct timespec timeout = {.tv_sec = 20};
    long rc;
    do {
        uint32_t seen = shmt_event_announce(event);
        tell(&waits, 1);
        rc = syscall(SYS_futex, &event->word, FUTEX_WAIT, seen, &timeout, NULL, 0);
    } while (rc != 0 && errno == EAGAIN);
    CHECK_EQ(rc, 0);
    tell(&woken, 1);
    return NULL;
}

/* The kernel wakes whoever came first, and that is the watcher; it wakes one more. */
static void a_wake_up_is_passed_on(void) {
    shmt_segment *seg = make(4, 0, 0), *other = same(seg);
    shmt_watch *watch = watch_of(seg), *also = watch_of(other);
    for (uint64_t i = 0; i < 20; i++) {
        becomes_unreadable(watch);
        becomes_unreadable(also);
        is_asleep_on(seg);
        pthread_t waiter;
        tell(&waits, 0);
        tell(&woken, 0);
        CHECK_EQ(pthread_create(&waiter, NULL, wait_for_a_wake_up, seg), 0);
        told(&waits, 1);
        sleep_ms(2);
        put(seg, i);
        told(&woken, 1);
        pthread_join(waiter, NULL);
        CHECK_EQ(take(seg, watch), i);
        shmt_watch_settle(also);
    }
    shmt_watch_end(watch);
    shmt_watch_end(also);
    end_threads();
    shmt_segment_drop(other);
    shmt_segment_drop(seg);
}

/* Nobody takes the item: two watchers do not go on waking each other. */
static void watchers_do_not_keep_each_other_awake(void) {
    shmt_segment *seg = make(4, 0, 0), *other = same(seg);
    shmt_watch *watch = watch_of(seg), *also = watch_of(other);
    is_asleep_on(seg);
    put(seg, 1);
    becomes_readable(watch);
    becomes_readable(also);
    uint64_t wakes = stats_of(seg).wakes;
    sleep_ms(250);
    put(seg, 2); /* nor does another item wake anybody */
    CHECK(stats_of(seg).wakes <= wakes + 1);
    shmt_watch_end(watch);
    shmt_watch_end(also);
    end_threads();
    shmt_segment_drop(other);
    shmt_segment_drop(seg);
}

static void the_end_is_readable_for_ever(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_watch *watch = watch_of(seg);
    shmt_slot slot;
    put(seg, 1);
    shmt_shutdown(seg);
    becomes_readable(watch);
    CHECK_EQ(take(seg, watch), 1);
    CHECK(readable_within(watch, 0));
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -ESHUTDOWN);
        shmt_watch_settle(watch);
        CHECK(is_readable(watch));
    }
    shmt_watch_end(watch);
    end_threads();
    shmt_segment_drop(seg);
}

static void closed_is_readable_for_ever(void) {
    for (int filled = 0; filled < 2; filled++) {
        shmt_segment *seg = make(4, 0, 0), *peer = peer_of(seg);
        int fds = count_fds(NULL), maps = count_maps("memfd:shmtensor");
        shmt_segment *mine = peer_of(seg);
        shmt_watch *watch = watch_of(mine);
        if (filled) {
            put(seg, 1);
            becomes_readable(watch);
        }
        shmt_segment_close(mine);
        shmt_segment_drop(mine);
        shmt_watch_close(watch);
        shmt_watch_close(watch); /* twice does nothing */
        CHECK(is_readable(watch));
        end_threads(); /* it has let go of the segment, and has nothing else to do */
        CHECK_EQ(count_maps("memfd:shmtensor"), maps);
        CHECK_EQ(count_fds(NULL), fds + 1);
        shmt_watch_settle(watch);
        CHECK(is_readable(watch));
        shmt_watch_end(watch);
        CHECK_EQ(count_fds(NULL), fds);
        shmt_segment_drop(peer);
        shmt_segment_drop(seg);
    }
}

/* A producer that dies ends the wait of whoever waits for it, and of nobody who waits for anybody. */
static void a_dead_producer(void) {
    shmt_segment *seg = make_config((shmt_config){.slots = 4, .slot_nbytes = 256, .producers = 1});
    shmt_watch *watch = watch_as(seg, false), *patient = watch_as(seg, true);
    shmt_slot slot;
    pid_t pid = start_child();
    if (pid == 0) {
        put(seg, 1);
        _exit(0);
    }
    child_ok(pid);
    becomes_readable(watch);
    becomes_readable(patient);
    CHECK_EQ(get_tag(seg), 1);
    shmt_watch_settle(patient);
    CHECK(!readable_within(patient, 250));
    becomes_readable(watch);
    for (int64_t end = after_ms(20000); shmt_slot_try_acquire(seg, &slot) != -EOWNERDEAD;) {
        CHECK(shmt_now_ns() < end); /* until the death was noticed */
    }
    shmt_watch_settle(watch); /* it was told once */
    CHECK(!readable_within(watch, 150));
    shmt_watch_end(watch);
    shmt_watch_end(patient);
    end_threads();
    shmt_segment_drop(seg);
}

/* An item that was taken before its cell was passed: nothing is there, and whoever looks moves on. */
static void a_stale_cell_is_passed_over(void) {
    shmt_segment *seg = make(4, 0, 0);
    put(seg, 1);
    put(seg, 2);
    uint64_t word = word_of(seg, 0);
    uint64_t reading = shmt_word(SHMT_READING, shmt_me(seg), shmt_word_gen(word));
    CHECK_EQ(shmt_slots_change(seg, 0, word, reading), 0);
    CHECK_EQ(shmt_order_peek(seg), 1); /* the second one */
    CHECK_EQ(shmt_load_relaxed(&seg->header->read_seq), 1);
    CHECK_EQ(get_tag(seg), 2);
    CHECK_EQ(shmt_order_peek(seg), -EAGAIN);
    shmt_store_relaxed(&seg->cells[2], shmt_cell(0, 0, 1000));
    CHECK_EQ(shmt_order_peek(seg), -EUCLEAN); /* no such slot */
    CHECK(shmt_slot_would_come(seg, true));
    shmt_store_relaxed(&seg->cells[2], shmt_cell(7, 0, 0));
    CHECK_EQ(shmt_order_peek(seg), -EUCLEAN); /* of no lap near by */
    shmt_segment_drop(seg);
}

/* A child has its parent's descriptor, and does nothing to it. */
static void a_child_has_its_own(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_watch *watch = watch_of(seg);
    put(seg, 1);
    becomes_readable(watch);
    pid_t pid = start_child();
    if (pid == 0) {
        int fds = count_fds(NULL);
        n_threads = 0;
        CHECK(!shmt_watch_is_ours(watch));
        shmt_watch_settle(watch);
        CHECK_EQ(get_tag(seg), 1);
        shmt_watch_settle(watch);
        CHECK(is_readable(watch)); /* the parent's, for whom the item is gone: it will find out by itself */
        if (!UNDER_TSAN) {         /* which allows no new thread in a child of several */
            shmt_watch *own = watch_of(seg);
            CHECK(shmt_watch_fd(own) != shmt_watch_fd(watch));
            put(seg, 2);
            becomes_readable(own);
            CHECK_EQ(take(seg, own), 2);
            CHECK(!is_readable(own));
            shmt_watch_end(own);
            end_threads();
        }
        shmt_watch_close(watch);
        shmt_watch_close(watch); /* twice does nothing */
        shmt_watch_end(watch);
        CHECK_EQ(count_fds(NULL), fds - 1 + 1); /* without the parent's; with the lock of a member */
        shmt_segment_drop(seg);
        CHECK_EQ(count_maps("memfd:shmtensor"), 0);
        _exit(0);
    }
    child_ok(pid);
    becomes_unreadable(watch);
    put(seg, 3);
    becomes_readable(watch);
    pid = start_child();
    if (pid == 0) { /* ended without ever being closed */
        shmt_watch_end(watch);
        shmt_segment_drop(seg);
        CHECK_EQ(count_maps("memfd:shmtensor"), 0);
        _exit(0);
    }
    child_ok(pid);
    CHECK(is_readable(watch));
    shmt_watch_end(watch);
    end_threads();
    shmt_segment_drop(seg);
}

#define MANY 300

static void many_are_served_by_few(void) {
    shmt_segment *seg = make(4, 0, 0), *handles[MANY];
    shmt_watch *watches[MANY];
    int fds = count_fds(NULL);
    for (int i = 0; i < MANY; i++) {
        handles[i] = make_config((shmt_config){.slots = 1, .slot_nbytes = 256, .members = 2});
        watches[i] = watch_of(handles[i]);
        CHECK_EQ(n_threads, 1 + i / WATCHES_PER_THREAD);
    }
    CHECK_EQ(count_fds(NULL), fds + 3 * MANY);
    for (int i = 0; i < MANY; i += 7) {
        put(handles[i], (uint64_t)i);
    }
    for (int i = 0; i < MANY; i++) {
        if (i % 7 == 0) {
            becomes_readable(watches[i]);
            CHECK_EQ(take(handles[i], watches[i]), i);
        }
        CHECK(!is_readable(watches[i]));
    }
    /* Places that become free are used again. */
    shmt_watch_end(watches[0]);
    sleep_ms(20);
    watches[0] = watch_of(handles[0]);
    CHECK_EQ(n_threads, 3);
    for (int i = 0; i < MANY; i++) {
        shmt_watch_end(watches[i]);
        shmt_segment_drop(handles[i]);
    }
    end_threads();
    CHECK_EQ(count_fds(NULL), fds);
    shmt_segment_drop(seg);
}

static void what_cannot_be_watched(void) {
    shmt_segment *plain = make(0, 0, 0), *seg = make(1, 0, 0);
    shmt_watch *watch = NULL;
    shmt_watcher *to_run = NULL;
    CHECK_EQ(shmt_watch_begin(plain, false, &watch, &to_run), -EINVAL);
    struct rlimit was, none = {0};
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &was), 0);
    none.rlim_max = was.rlim_max;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    CHECK_EQ(shmt_watch_begin(seg, false, &watch, &to_run), -EMFILE);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &was), 0);
    CHECK(watch == NULL && to_run == NULL);
    /* No thread could be started: everything is as it was. */
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(shmt_watch_begin(seg, false, &watch, &to_run), 0);
        CHECK(to_run != NULL);
        shmt_watch *second = NULL;
        shmt_watcher *none_to_run = NULL;
        CHECK_EQ(shmt_watch_begin(seg, false, &second, &none_to_run),
                 0); /* while the first's thread is being started */
        CHECK(none_to_run == NULL);
        shmt_watcher_unrun(to_run);
        shmt_watch_end(i % 2 ? watch : second);
        shmt_watch_end(i % 2 ? second : watch);
    }
    watch = watch_of(seg);
    put(seg, 1);
    becomes_readable(watch);
    shmt_watch_end(watch);
    end_threads();
    shmt_segment_close(seg);
    CHECK_EQ(shmt_watch_begin(seg, false, &watch, &to_run), -EBADF);
    shmt_segment_drop(seg);
    shmt_segment_drop(plain);
}

static void ignore(int sig) { (void)sig; }

/* Handlers run in whatever thread there is: the watcher goes on. */
static void signals_in_the_thread(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_watch *watch = watch_of(seg);
    const struct sigaction action = {.sa_handler = ignore}; /* no SA_RESTART */
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    for (uint64_t round = 0; round < 20; round++) {
        is_asleep_on(seg);
        CHECK_EQ(pthread_kill(threads[0], SIGUSR1), 0);
        CHECK(!readable_within(watch, 2));
        put(seg, round);
        becomes_readable(watch);
        CHECK_EQ(take(seg, watch), round);
    }
    shmt_watch_end(watch);
    end_threads();
    shmt_segment_drop(seg);
}

/* From here on this process has no futex_waitv, as before Linux 5.16. */
static bool without_waitv(int error) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 449, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = 4, .filter = program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0 &&
           syscall(449, NULL, 0, 0, NULL, 0) == -1 && errno == error;
}

static void where_there_is_no_futex_waitv(void) {
    for (int error = 0; error < 2; error++) {
        pid_t pid = start_child();
        if (pid == 0) {
            if (!without_waitv(error ? EPERM : ENOSYS)) {
                _exit(77);
            }
            readable_while_something_is_there();
            what_others_took_is_noticed();
            closed_is_readable_for_ever();
            shmt_segment *seg = make(4, 0, 0);
            shmt_watch *watch = watch_of(seg);
            sleep_ms(20);
            uint64_t wakes = stats_of(seg).wakes;
            for (uint64_t i = 0; i < 20; i++) {
                put(seg, i);
                becomes_readable(watch);
                CHECK_EQ(take(seg, watch), i);
            }
            CHECK(stats_of(seg).wakes <= wakes + 1); /* nobody has to be woken */
            shmt_watch_end(watch);
            end_threads();
            shmt_segment_drop(seg);
            _exit(0);
        }
        int status = child_status(pid);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
            SKIP("no seccomp filter may be set here");
        }
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

#define SEGMENTS 3
static shmt_segment *shared[SEGMENTS];
static const uint64_t each = TIMES(20000);

static void *produce(void *arg) {
    uint64_t state = (uint64_t)(uintptr_t)arg + 1;
    shmt_segment *own[SEGMENTS];
    for (int i = 0; i < SEGMENTS; i++) {
        own[i] = same(shared[i]);
    }
    for (uint64_t k = 0; k < each; k++) {
        shmt_segment *seg = own[next_random(&state) % SEGMENTS];
        shmt_slot slot;
        CHECK_EQ(shmt_slot_claim(seg, SHMT_FOREVER, &slot), 0);
        memcpy(slot.data, &k, sizeof k);
        CHECK_EQ(shmt_slot_publish(seg, &slot, sizeof k, k), 0);
        if (next_random(&state) % 50 == 0) {
            sleep_ms(1);
        }
    }
    for (int i = 0; i < SEGMENTS; i++) {
        shmt_segment_drop(own[i]);
    }
    return NULL;
}

static shmt_atomic32 stolen;
static void *steal(void *arg) { /* one who waits on the event of the first segment, beside the watch */
    shmt_segment *seg = arg;
    shmt_slot slot;
    int rc;
    while ((rc = shmt_slot_acquire(seg, SHMT_FOREVER, &slot)) == 0) {
        shmt_add_relaxed(&stolen, 1);
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        sleep_ms(1);
    }
    CHECK_EQ(rc, -ESHUTDOWN);
    return NULL;
}

/* Two producers, three segments, one who polls them all, and one who waits for the first by himself: all comes. */
static void nothing_is_left_lying(void) {
    shmt_watch *watches[SEGMENTS];
    struct pollfd p[SEGMENTS];
    pthread_t producers[2], thief;
    for (int i = 0; i < SEGMENTS; i++) {
        shared[i] = make(4, 0, 0);
        watches[i] = watch_of(shared[i]);
        p[i] = (struct pollfd){.fd = shmt_watch_fd(watches[i]), .events = POLLIN};
    }
    CHECK_EQ(n_threads, 1);
    shmt_segment *thiefs = same(shared[0]);
    CHECK_EQ(pthread_create(&thief, NULL, steal, thiefs), 0);
    for (uintptr_t i = 0; i < 2; i++) {
        CHECK_EQ(pthread_create(&producers[i], NULL, produce, (void *)i), 0);
    }
    uint64_t got = 0, polls = 0;
    while (got + shmt_load_relaxed(&stolen) < 2 * each) {
        int n = poll(p, SEGMENTS, 20000);
        polls++;
        CHECK(n > 0 || got + shmt_load_relaxed(&stolen) == 2 * each);
        for (int i = 0; i < SEGMENTS; i++) {
            shmt_slot slot;
            if (p[i].revents && shmt_slot_try_acquire(shared[i], &slot) == 0) {
                CHECK_EQ(shmt_slot_release(shared[i], &slot), 0);
                got++;
            }
            if (p[i].revents) {
                shmt_watch_settle(watches[i]);
            }
        }
        if (got + shmt_load_relaxed(&stolen) + 4 >=
            2 * each) { /* the thief may have the last one: do not wait for it */
            sleep_ms(5);
            if (got + shmt_load_relaxed(&stolen) == 2 * each) {
                break;
            }
        }
    }
    CHECK(polls > 10);
    for (int i = 0; i < 2; i++) {
        pthread_join(producers[i], NULL);
    }
    shmt_shutdown(shared[0]);
    pthread_join(thief, NULL);
    CHECK_EQ(got + shmt_load_relaxed(&stolen), 2 * each);
    shmt_segment_drop(thiefs);
    for (int i = 0; i < SEGMENTS; i++) {
        shmt_watch_end(watches[i]);
        shmt_segment_drop(shared[i]);
    }
    end_threads();
}

/* Watches that begin and end while the thread is at work, or while it begins and ends with them. */
static void begin_and_end(bool alone) {
    int fds = count_fds(NULL);
    shmt_segment *seg = make(4, 0, 0), *other = make(4, 0, 0);
    shmt_watch *standing = alone ? NULL : watch_of(other);
    for (uint64_t i = 0; i < (uint64_t)TIMES(3000); i++) {
        shmt_segment *own = same(seg);
        shmt_watch *watch = NULL;
        shmt_watcher *to_run = NULL;
        pthread_t thread;
        CHECK_EQ(shmt_watch_begin(own, false, &watch, &to_run), 0);
        CHECK(alone || !to_run);
        if (to_run) {
            CHECK_EQ(pthread_create(&thread, NULL, serve, to_run), 0);
            CHECK_EQ(pthread_detach(thread), 0);
        }
        if (!alone || i % 3 == 0) { /* called each time: to wait for the end of a slice would take minutes in all */
            put(seg, i);
            becomes_readable(watch);
            CHECK_EQ(take(own, watch), i);
        }
        if (i % 2 == 0) {
            shmt_segment_close(own);
            shmt_watch_close(watch);
        }
        shmt_segment_drop(own);
        shmt_watch_end(watch);
    }
    for (int64_t end = after_ms(20000); shmt_load_seq_cst(&seg->refs) != 1; sleep_ms(1)) { /* the last thread's */
        CHECK(shmt_now_ns() < end);
    }
    if (standing) {
        shmt_watch_end(standing);
    }
    end_threads();
    shmt_segment_drop(other);
    shmt_segment_drop(seg);
    CHECK_EQ(count_fds(NULL), fds);
}

static void beginning_and_ending_all_the_time(void) {
    begin_and_end(true);
    begin_and_end(false);
}

TESTS(TEST(readable_while_something_is_there), TEST(what_is_there_already_is_seen), TEST(what_others_took_is_noticed),
      TEST(of_the_dead_it_hears_at_the_end_of_a_slice), TEST(a_wake_up_is_passed_on),
      TEST(watchers_do_not_keep_each_other_awake), TEST(the_end_is_readable_for_ever),
      TEST(closed_is_readable_for_ever), TEST(a_dead_producer), TEST(a_stale_cell_is_passed_over),
      TEST(a_child_has_its_own), TEST(many_are_served_by_few), TEST(what_cannot_be_watched),
      TEST(signals_in_the_thread), TEST(where_there_is_no_futex_waitv), TEST(nothing_is_left_lying),
      TEST(beginning_and_ending_all_the_time))
