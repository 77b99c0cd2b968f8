/* Sleeping and waking: nobody sleeps through what was meant for them, longer than they asked, or more often than need be. */
#include "check.h"

/* What the waiters of these tests wait for: a number of tokens, taken one by one. */
typedef struct pool {
    shmt_atomic32 tokens;
    shmt_atomic32 tries;
} pool;

static int take_token(shmt_segment *seg, void *arg, shmt_effort effort) {
    pool *p = arg;
    (void)seg;
    (void)effort;
    shmt_add_relaxed(&p->tries, 1);
    uint32_t seen = shmt_load_seq_cst(&p->tokens);
    while (seen > 0) {
        if (shmt_cas_seq_cst(&p->tokens, &seen, seen - 1)) {
            return 1;
        }
    }
    return -EAGAIN;
}

static void add_tokens(pool *p, uint32_t n) { shmt_add_seq_cst(&p->tokens, n); }

static shmt_atomic32 slices;
static void on_slice(shmt_segment *seg) {
    (void)seg;
    shmt_add_relaxed(&slices, 1);
}

static uint64_t sleeps(shmt_segment *seg) { return shmt_load_relaxed(&shmt_member_mine(seg)->sleeps); }
static uint64_t wakes(shmt_segment *seg) { return shmt_load_relaxed(&shmt_member_mine(seg)->wakes); }

typedef struct waiter {
    shmt_segment *seg;
    pool *pool;
    int64_t deadline_ns;
    int64_t ended_ns;
    int rc;
    pthread_t thread;
} waiter;

static void *wait_thread(void *arg) {
    waiter *w = arg;
    w->rc = shmt_event_wait(w->seg, &w->seg->header->ready_event, w->deadline_ns, take_token, w->pool, on_slice);
    w->ended_ns = shmt_now_ns();
    return NULL;
}

static void start_waiters(waiter *w, int n, shmt_segment *seg, pool *p, int64_t deadline_ns) {
    for (int i = 0; i < n; i++) {
        w[i] = (waiter){.seg = same(seg), .pool = p, .deadline_ns = deadline_ns};
        CHECK_EQ(pthread_create(&w[i].thread, NULL, wait_thread, &w[i]), 0);
    }
    for (int i = 0; i < n; i++) { /* until all of them sleep */
        while (sleeps(w[i].seg) == 0) {
            sleep_ms(1);
        }
    }
    sleep_ms(5);
}

static void end_waiters(waiter *w, int n) {
    for (int i = 0; i < n; i++) {
        pthread_join(w[i].thread, NULL);
        shmt_segment_drop(w[i].seg);
    }
}

static void what_is_there_is_taken_without_sleeping(void) {
    shmt_segment *seg = make(1, 0, 0);
    pool p = {0};
    add_tokens(&p, 1);
    CHECK_EQ(shmt_event_wait(seg, &seg->header->ready_event, SHMT_FOREVER, take_token, &p, NULL), 1);
    CHECK_EQ(sleeps(seg), 0);
    shmt_spin_set(seg, 0);
    add_tokens(&p, 1);
    CHECK_EQ(shmt_event_wait(seg, &seg->header->ready_event, 0, take_token, &p, NULL), 1); /* even in the past */
    CHECK_EQ(sleeps(seg), 0);
    shmt_segment_drop(seg);
}

static void a_timeout_is_as_long_as_was_asked(void) {
    shmt_segment *seg = make(1, 0, 0);
    static const int64_t ms[] = {0, 1, 20, 99, 100, 101, 250};
    for (size_t i = 0; i < sizeof ms / sizeof *ms; i++) {
        pool p = {0};
        int64_t begin = shmt_now_ns();
        uint64_t before = sleeps(seg);
        CHECK_EQ(shmt_event_wait(seg, &seg->header->ready_event, begin + ms[i] * MS, take_token, &p, on_slice),
                 -ETIMEDOUT);
        int64_t took = shmt_now_ns() - begin;
        CHECK(took >= ms[i] * MS);
        CHECK(took < ms[i] * MS + 400 * MS); /* a busy machine */
        CHECK(sleeps(seg) - before <= (uint64_t)(2 + took / (100 * MS)));
        CHECK(shmt_load_relaxed(&p.tries) >= 1);
    }
    pool p = {0};
    CHECK_EQ(shmt_event_wait(seg, &seg->header->ready_event, -5, take_token, &p, on_slice), -ETIMEDOUT);
    CHECK_EQ(shmt_event_wait(seg, &seg->header->ready_event, INT64_MIN, take_token, &p, on_slice), -ETIMEDOUT);
    CHECK_EQ(shmt_event_wait(seg, &seg->header->ready_event, after_ms(120), take_token, &p, NULL), -ETIMEDOUT);
    shmt_segment_drop(seg);
}

static int fails(shmt_segment *seg, void *arg, shmt_effort effort) {
    (void)seg;
    (void)effort;
    return *(int *)arg;
}

static void any_other_answer_ends_the_wait(void) {
    shmt_segment *seg = make(1, 0, 0);
    static const int answers[] = {-ESHUTDOWN, -EUCLEAN, -EBADF, 0, 1, 17};
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        for (uint32_t spin = 0; spin <= 50; spin += 50) {
            int answer = answers[i];
            shmt_spin_set(seg, spin);
            CHECK_EQ(shmt_event_wait(seg, &seg->header->free_event, SHMT_FOREVER, fails, &answer, NULL), answer);
        }
    }
    CHECK_EQ(sleeps(seg), 0);
    shmt_segment_drop(seg);
}

static void a_sleeper_is_woken(void) {
    shmt_segment *seg = make(1, 0, 0);
    for (int i = 0; i < 5; i++) {
        pool p = {0};
        waiter w;
        start_waiters(&w, 1, seg, &p, SHMT_FOREVER);
        CHECK_EQ(shmt_load_seq_cst(&seg->header->ready_event.word) & SHMT_EVENT_W, SHMT_EVENT_W);
        add_tokens(&p, 1);
        uint64_t before = wakes(seg);
        int64_t now = shmt_now_ns();
        shmt_event_wake(seg, &seg->header->ready_event, 1);
        CHECK_EQ(wakes(seg), before + 1);
        end_waiters(&w, 1);
        CHECK_EQ(w.rc, 1);
        CHECK(w.ended_ns - now < 90 * MS); /* woken, and not at the end of a slice */
    }
    shmt_segment_drop(seg);
}

static void nobody_asleep_costs_no_call(void) {
    shmt_segment *seg = make(1, 0, 0);
    for (int i = 0; i < 1000; i++) {
        shmt_event_wake(seg, &seg->header->ready_event, 1);
    }
    CHECK_EQ(wakes(seg), 0);
    CHECK_EQ(shmt_load_relaxed(&seg->header->ready_event.word), 0);
    /* A sleeper that was killed leaves W: one call takes it away. */
    shmt_store_release(&seg->header->ready_event.word, 40 | SHMT_EVENT_W);
    for (int i = 0; i < 1000; i++) {
        shmt_event_wake(seg, &seg->header->ready_event, 1);
    }
    CHECK_EQ(wakes(seg), 1);
    uint32_t word = shmt_load_relaxed(&seg->header->ready_event.word);
    CHECK_EQ(word & SHMT_EVENT_W, 0);
    CHECK(word > 40);
    shmt_store_release(&seg->header->ready_event.word, UINT32_MAX); /* seq wraps, and W is not touched by that */
    shmt_event_wake_all(&seg->header->ready_event);
    CHECK_EQ(shmt_load_relaxed(&seg->header->ready_event.word), SHMT_EVENT_W);
    shmt_segment_drop(seg);
}

/* k tokens and one call: k sleepers get one each, the others sleep on. */
static void waking_k_wakes_k(void) {
    enum { SLEEPERS = 6 };
    shmt_segment *seg = make(1, 0, 0);
    int exact = 0;
    for (uint32_t k = 1; k <= SLEEPERS; k++) {
        pool p = {0};
        waiter w[SLEEPERS];
        start_waiters(w, SLEEPERS, seg, &p, SHMT_FOREVER);
        const uint32_t tries = shmt_load_relaxed(&p.tries);
        add_tokens(&p, k);
        int64_t now = shmt_now_ns();
        shmt_event_wake(seg, &seg->header->ready_event, k);
        while (shmt_load_seq_cst(&p.tokens) > 0) {
            sched_yield();
        }
        sleep_ms(3);
        exact += shmt_load_relaxed(&p.tries) - tries == k;
        CHECK(shmt_now_ns() - now < 95 * MS); /* all of them were taken before anybody's slice ended */
        add_tokens(&p, SLEEPERS - k);
        shmt_event_wake_all(&seg->header->ready_event);
        end_waiters(w, SLEEPERS);
        for (int i = 0; i < SLEEPERS; i++) {
            CHECK_EQ(w[i].rc, 1);
        }
        CHECK_EQ(shmt_load_relaxed(&p.tokens), 0);
    }
    CHECK(exact >= 4); /* somebody's slice may have ended meanwhile, on a busy machine */
    shmt_segment_drop(seg);
}

/* One leaves for good at each wake-up: those who sleep on can still be woken. */
static void waking_one_after_the_other(void) {
    enum { SLEEPERS = 4 };
    shmt_segment *seg = make(1, 0, 0);
    int late = 0;
    for (int round = 0; round < 3; round++) {
        pool p = {0};
        waiter w[SLEEPERS];
        start_waiters(w, SLEEPERS, seg, &p, SHMT_FOREVER);
        for (int i = 0; i < SLEEPERS; i++) {
            int64_t now = shmt_now_ns();
            add_tokens(&p, 1);
            shmt_event_wake(seg, &seg->header->ready_event, 1);
            while (shmt_load_seq_cst(&p.tokens) > 0) {
                sched_yield();
            }
            late += shmt_now_ns() - now > 40 * MS;
        }
        end_waiters(w, SLEEPERS);
    }
    CHECK(late <= 1);
    shmt_segment_drop(seg);
}

static void fewer_sleepers_than_items(void) {
    shmt_segment *seg = make(1, 0, 0);
    pool p = {0};
    waiter w[2];
    start_waiters(w, 2, seg, &p, SHMT_FOREVER);
    add_tokens(&p, 5);
    shmt_event_wake(seg, &seg->header->ready_event, 5);
    end_waiters(w, 2);
    CHECK(w[0].rc == 1 && w[1].rc == 1);
    CHECK_EQ(shmt_load_seq_cst(&seg->header->ready_event.word) & SHMT_EVENT_W, 0); /* known to be stale: cleared */
    shmt_segment_drop(seg);
}

static void an_idle_waiter_sleeps(void) {
    shmt_segment *seg = make(1, 0, 0);
    pool p = {0};
    struct timespec before, after;
    uint32_t slices_before = shmt_load_relaxed(&slices);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    CHECK_EQ(shmt_event_wait(seg, &seg->header->ready_event, after_ms(1000), take_token, &p, on_slice), -ETIMEDOUT);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    CHECK(sleeps(seg) >= 9 && sleeps(seg) <= 11);
    CHECK(shmt_load_relaxed(&slices) - slices_before >= 8); /* and looks after the dead each time */
    int64_t cpu = (after.tv_sec - before.tv_sec) * 1000 * MS + after.tv_nsec - before.tv_nsec;
    CHECK(cpu < (SANITIZED ? 100 : 10) * MS);
    shmt_segment_drop(seg);
}

/* ---- signals --------------------------------------------------------------------------------------------------------------- */

static void on_signal(int sig) { (void)sig; }

static pool signal_pool;

static void *signal_soon(void *arg) {
    sleep_ms(30);
    pthread_kill(*(pthread_t *)arg, SIGUSR1);
    return NULL;
}

static void a_signal_ends_the_wait(void) {
    shmt_segment *seg = make(1, 0, 0);
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART, as Python's */
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    pthread_t self = pthread_self(), other;
    int64_t begin = shmt_now_ns();
    int rc;
    CHECK_EQ(pthread_create(&other, NULL, signal_soon, &self), 0);
    do { /* a signal that falls between two sleeps is the next signal's business */
        rc = shmt_event_wait(seg, &seg->header->ready_event, begin + 5000 * MS, take_token, &signal_pool, NULL);
    } while (rc == -ETIMEDOUT && shmt_now_ns() - begin < 4000 * MS);
    pthread_join(other, NULL);
    CHECK_EQ(rc, -EINTR);
    CHECK(shmt_now_ns() - begin < 2000 * MS);
    shmt_segment_drop(seg);
}

static void *token_then_signal(void *arg) {
    sleep_ms(30);
    add_tokens(&signal_pool, 1);
    pthread_kill(*(pthread_t *)arg, SIGUSR1);
    return NULL;
}

/* Interrupted, and yet there is something: it is taken, for the wake-up was perhaps meant for this one. */
static void what_came_with_the_signal_is_taken(void) {
    shmt_segment *seg = make(1, 0, 0);
    struct sigaction action = {.sa_handler = on_signal};
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    pthread_t self = pthread_self(), other;
    CHECK_EQ(pthread_create(&other, NULL, token_then_signal, &self), 0);
    CHECK_EQ(shmt_event_wait(seg, &seg->header->ready_event, after_ms(5000), take_token, &signal_pool, NULL), 1);
    pthread_join(other, NULL);
    shmt_segment_drop(seg);
}

/* ---- through the verbs ---------------------------------------------------------------------------------------------------- */

typedef struct verb {
    shmt_segment *seg;
    int64_t deadline_ns;
    int rc;
    bool claims;
    pthread_t thread;
} verb;

static void *verb_thread(void *arg) {
    verb *v = arg;
    shmt_slot slot;
    v->rc =
        v->claims ? shmt_slot_claim(v->seg, v->deadline_ns, &slot) : shmt_slot_acquire(v->seg, v->deadline_ns, &slot);
    return NULL;
}

static void start_verb(verb *v, shmt_segment *seg, bool claims) {
    *v = (verb){.seg = seg, .deadline_ns = SHMT_FOREVER, .claims = claims};
    uint64_t before = sleeps(seg);
    CHECK_EQ(pthread_create(&v->thread, NULL, verb_thread, v), 0);
    while (sleeps(seg) == before) {
        sleep_ms(1);
    }
    sleep_ms(2);
}

static void every_verb_wakes_whom_it_should(void) {
    shmt_segment *seg = make(1, 0, 0), *consumer = same(seg), *producer = same(seg);
    shmt_slot slot, held;
    verb v;
    int64_t begin;
    start_verb(&v, consumer, false);
    begin = shmt_now_ns();
    put(seg, 1); /* publish wakes an acquire */
    pthread_join(v.thread, NULL);
    CHECK(v.rc == 0 && shmt_now_ns() - begin < 90 * MS);

    held = (shmt_slot){.index = 0, .word = word_of(seg, 0), .generation = shmt_fork_generation};
    start_verb(&v, producer, true);
    begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_release(consumer, &held), 0); /* release wakes a claim */
    pthread_join(v.thread, NULL);
    CHECK(v.rc == 0 && shmt_now_ns() - begin < 90 * MS);

    slot = (shmt_slot){.index = 0, .word = word_of(seg, 0), .generation = shmt_fork_generation};
    shmt_segment *second = same(seg);
    start_verb(&v, second, true);
    begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_abort(producer, &slot), 0); /* so does abort */
    pthread_join(v.thread, NULL);
    CHECK(v.rc == 0 && shmt_now_ns() - begin < 90 * MS);

    start_verb(&v, producer, true);
    begin = shmt_now_ns();
    shmt_segment_close(producer); /* closing wakes one's own other threads */
    pthread_join(v.thread, NULL);
    CHECK(v.rc == -EBADF && shmt_now_ns() - begin < 90 * MS);

    verb w;
    start_verb(&v, second, true);
    start_verb(&w, consumer, false);
    begin = shmt_now_ns();
    slot = (shmt_slot){.index = 0, .word = word_of(seg, 0), .generation = shmt_fork_generation};
    CHECK_EQ(shmt_slot_abort(second, &slot), 0);
    pthread_join(v.thread, NULL);
    slot = (shmt_slot){.index = 0, .word = word_of(seg, 0), .generation = shmt_fork_generation};
    CHECK_EQ(shmt_slot_abort(second, &slot), 0);
    shmt_shutdown(seg); /* and the end wakes all */
    pthread_join(w.thread, NULL);
    CHECK(w.rc == -ESHUTDOWN && shmt_now_ns() - begin < 90 * MS);
    shmt_segment_drop(second);
    shmt_segment_drop(producer);
    shmt_segment_drop(consumer);
    shmt_segment_drop(seg);
}

/* A sleeper in another process, over a mapping at another address. */
static void a_process_wakes_another(void) {
    shmt_segment *seg = make(1, 0, 0);
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_segment *mine = peer_of(seg);
        shmt_slot slot;
        for (uint64_t i = 0; i < 20; i++) {
            CHECK_EQ(shmt_slot_acquire(mine, after_ms(20000), &slot), 0);
            CHECK_EQ(slot.tag, i);
            CHECK_EQ(shmt_slot_release(mine, &slot), 0);
        }
        shmt_segment_drop(mine);
        shmt_segment_drop(seg);
        _exit(0);
    }
    int late = 0;
    for (uint64_t i = 0; i < 20; i++) {
        while (!(shmt_load_seq_cst(&seg->header->ready_event.word) & SHMT_EVENT_W)) {
            sleep_ms(1);
        }
        sleep_ms(2);
        int64_t begin = shmt_now_ns();
        put(seg, i);
        while (slot_of(seg, 0).state != 0) {
            sched_yield();
        }
        late += shmt_now_ns() - begin > 50 * MS;
    }
    CHECK(late <= 2);
    child_ok(pid);
    shmt_segment_drop(seg);
}

/* Tokens and sleepers by the thousand: each token is taken, and no wait lasts until its slice ends. */
static pool busy;
static shmt_atomic32 busy_over;
static shmt_atomic32 busy_taken;

static int take_or_end(shmt_segment *seg, void *arg, shmt_effort effort) {
    int rc = take_token(seg, arg, effort);
    return rc == -EAGAIN && shmt_load_seq_cst(&busy_over) ? -ESHUTDOWN : rc;
}

static void *busy_waiter(void *arg) {
    shmt_segment *seg = arg;
    shmt_spin_set(seg, 0);
    while (shmt_event_wait(seg, &seg->header->ready_event, SHMT_FOREVER, take_or_end, &busy, on_slice) == 1) {
        shmt_add_relaxed(&busy_taken, 1);
    }
    return NULL;
}

static void no_wake_up_is_lost(void) {
    enum { WAITERS = 3 };
    shmt_segment *seg = make(1, 0, 0), *handles[WAITERS];
    pthread_t threads[WAITERS];
    uint32_t given = 0, late = 0;
    uint64_t random = 3;
    for (int i = 0; i < WAITERS; i++) {
        handles[i] = same(seg);
        CHECK_EQ(pthread_create(&threads[i], NULL, busy_waiter, handles[i]), 0);
    }
    for (int i = 0; i < TIMES(5000); i++) {
        uint32_t k = 1 + (uint32_t)(next_random(&random) % 4);
        int64_t begin = shmt_now_ns();
        add_tokens(&busy, k);
        shmt_event_wake(seg, &seg->header->ready_event, k);
        given += k;
        while (shmt_load_seq_cst(&busy.tokens) > 0) {
            sched_yield();
        }
        late += shmt_now_ns() - begin >= 99 * MS;
        for (uint64_t n = next_random(&random) % 200; n > 0; n--) {
            shmt_pause();
        }
    }
    shmt_store_release(&busy_over, 1);
    shmt_event_wake_all(&seg->header->ready_event);
    for (int i = 0; i < WAITERS; i++) {
        pthread_join(threads[i], NULL);
        shmt_segment_drop(handles[i]);
    }
    CHECK_EQ(shmt_load_relaxed(&busy_taken), given);
    CHECK(late <= 2); /* a lost wake-up would last a slice, each time */
    shmt_segment_drop(seg);
}

TESTS(TEST(what_is_there_is_taken_without_sleeping), TEST(a_timeout_is_as_long_as_was_asked),
      TEST(any_other_answer_ends_the_wait), TEST(a_sleeper_is_woken), TEST(nobody_asleep_costs_no_call),
      TEST(waking_k_wakes_k), TEST(waking_one_after_the_other), TEST(fewer_sleepers_than_items),
      TEST(an_idle_waiter_sleeps), TEST(a_signal_ends_the_wait), TEST(what_came_with_the_signal_is_taken),
      TEST(every_verb_wakes_whom_it_should), TEST(a_process_wakes_another), TEST(no_wake_up_is_lost))
