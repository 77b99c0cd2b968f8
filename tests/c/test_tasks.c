/* How much of what was pushed is done: counted by nobody who could die in between, and waited for without a miss. */
#include "check.h"

static void publish_one(shmt_segment *seg) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 1, 0), 0);
}

static void acquire_one(shmt_segment *seg) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
}

static void what_is_pushed_is_unfinished_until_it_is_done(void) {
    for (uint64_t first = 0; first < 2; first++) {
        shmt_segment *seg = make_config((shmt_config){
            .slots = 4, .slot_nbytes = 8, .members = 3, .flags = SHMT_DROP, .seq_first = first ? UINT64_MAX - 5 : 0});
        CHECK_EQ(shmt_tasks_unfinished(seg), 0);
        CHECK_EQ(shmt_tasks_done(seg, 1), -ERANGE);
        CHECK_EQ(shmt_tasks_join(seg, 0), 0);
        for (uint64_t i = 0; i < 20; i++) { /* laps, and in the second round the sequence's own end */
            publish_one(seg);
            publish_one(seg);
            CHECK_EQ(shmt_tasks_unfinished(seg), 2);
            CHECK_EQ(shmt_tasks_done(seg, 3), -ERANGE);
            acquire_one(seg);
            CHECK_EQ(shmt_tasks_unfinished(seg), 2);
            CHECK_EQ(shmt_tasks_done(seg, 1), 0);
            CHECK_EQ(shmt_tasks_join(seg, shmt_now_ns() + 1), -ETIMEDOUT);
            acquire_one(seg);
            CHECK_EQ(shmt_tasks_done(seg, 1), 0);
            CHECK_EQ(shmt_tasks_join(seg, 0), 0);
        }
        shmt_segment_drop(seg);
    }
}

/* Killed between the cell and write_seq: the item is there, so it counts. */
static void a_push_that_nobody_finished_counts(void) {
    shmt_segment *seg = make(4, SHMT_DROP, 0);
    publish_one(seg);
    publish_one(seg);
    shmt_store_relaxed(&seg->header->write_seq, 1); /* as if its producer had died before moving it on */
    CHECK_EQ(shmt_tasks_unfinished(seg), 2);
    CHECK_EQ(shmt_load_relaxed(&seg->header->write_seq), 2);
    shmt_segment_drop(seg);
}

static void an_item_given_up_is_no_task(void) {
    shmt_segment *seg = make(4, SHMT_DROP, 0);
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        _exit(0);
    }
    child_ok(pid);
    CHECK_EQ(shmt_reclaim(seg), 1);
    CHECK_EQ(shmt_tasks_unfinished(seg), 0);
    CHECK_EQ(shmt_tasks_join(seg, 0), 0);
    shmt_segment_drop(seg);
}

#define TASKS ((uint32_t)TIMES(20000))
#define WORKERS 3
static shmt_segment *shared;
static shmt_atomic32 *taken;

static void *work(void *arg) {
    (void)arg;
    shmt_segment *seg = same(shared);
    for (;;) {
        shmt_slot slot;
        int rc = shmt_slot_acquire(seg, shmt_now_ns() + 10000 * MS, &slot);
        if (rc == -ESHUTDOWN) {
            break;
        }
        CHECK_EQ(rc, 0);
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        shmt_add_relaxed(taken, 1);
        CHECK_EQ(shmt_tasks_done(seg, 1), 0);
    }
    shmt_segment_drop(seg);
    return NULL;
}

/* Each join returns only when all are done, and no wake-up is lost: it never takes until the slice is over. */
static void joiners_are_woken(void) {
    static shmt_atomic32 count;
    taken = &count;
    shared = make(8, SHMT_DROP, 0);
    pthread_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        CHECK_EQ(pthread_create(&workers[i], NULL, work, NULL), 0);
    }
    uint32_t put = 0;
    for (uint32_t round = 1; put < TASKS; round++) {
        for (uint32_t i = 0; i < round % 40; i++, put++) {
            shmt_slot slot;
            CHECK_EQ(shmt_slot_claim(shared, shmt_now_ns() + 10000 * MS, &slot), 0);
            CHECK_EQ(shmt_slot_publish(shared, &slot, 1, 0), 0);
        }
        CHECK_EQ(shmt_tasks_join(shared, shmt_now_ns() + 10000 * MS), 0);
        CHECK_EQ(shmt_load_relaxed(taken), put);
    }
    shmt_shutdown(shared);
    for (int i = 0; i < WORKERS; i++) {
        CHECK_EQ(pthread_join(workers[i], NULL), 0);
    }
    shmt_segment_drop(shared);
}

static void of_a_segment_that_was_closed(void) {
    shmt_segment *seg = make(4, SHMT_DROP, 0);
    publish_one(seg);
    shmt_segment_close(seg);
    CHECK_EQ(shmt_tasks_done(seg, 1), -EBADF);
    CHECK_EQ(shmt_tasks_join(seg, 0), -EBADF);
    CHECK_EQ(shmt_tasks_unfinished(seg), 1);
    shmt_segment_drop(seg);
}

TESTS(TEST(what_is_pushed_is_unfinished_until_it_is_done), TEST(a_push_that_nobody_finished_counts),
      TEST(an_item_given_up_is_no_task), TEST(of_a_segment_that_was_closed), TEST(joiners_are_woken))
