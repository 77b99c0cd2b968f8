/* Fork: the child lets go of its parent's lock without unlocking it, is nobody until it joins, and owns nothing of its parent's. */
#include "check.h"

#define MEMFD "memfd:shmtensor"

static bool alive(shmt_segment *seg, uint32_t id) {
    shmt_member_info info;
    return shmt_member_info_get(seg, id, &info) == 0 && info.alive;
}

static void a_child_is_a_new_member(void) {
    shmt_segment *seg = make(4, 0, 0);
    const uint32_t parent_id = shmt_member_id(seg), generation = shmt_fork_generation;
    CHECK(parent_id != 0);
    pid_t pid = start_child();
    if (pid == 0) {
        CHECK_EQ(shmt_fork_generation, generation + 1);
        CHECK_EQ(seg->lock_fd, -1);
        CHECK_EQ(count_fds(MEMFD), 1); /* the segment's own; the inherited lock's is closed */
        CHECK_EQ(shmt_member_id(seg), 0);
        CHECK_EQ(shmt_member_join(seg), 0);
        CHECK_EQ(shmt_member_join(seg), 0); /* once is enough */
        CHECK(shmt_member_id(seg) != 0 && shmt_member_id(seg) != parent_id);
        CHECK_EQ(count_fds(MEMFD), 2);
        CHECK(alive(seg, parent_id)); /* its lock was not unlocked */
        CHECK_EQ(stats_of(seg).members, 2);
        put(seg, 21);
        shmt_slot_info info = slot_of(seg, 0);
        for (uint32_t i = 1; info.state == 0; i++) {
            info = slot_of(seg, i);
        }
        CHECK_EQ(info.owner, shmt_member_id(seg));
        pid_t grandchild = start_child();
        if (grandchild == 0) {
            CHECK_EQ(shmt_fork_generation, generation + 2);
            CHECK_EQ(shmt_member_id(seg), 0);
            CHECK_EQ(get_tag(seg), 21); /* joins by itself */
            CHECK(shmt_member_id(seg) != 0 && shmt_member_id(seg) != parent_id);
            put(seg, 22);
            shmt_segment_drop(seg);
            CHECK_EQ(count_fds(MEMFD), 0);
            _exit(0);
        }
        child_ok(grandchild);
        shmt_segment_drop(seg);
        CHECK_EQ(count_fds(MEMFD), 0);
        _exit(0);
    }
    child_ok(pid);
    CHECK_EQ(shmt_fork_generation, generation);
    CHECK_EQ(shmt_member_id(seg), parent_id);
    CHECK_EQ(get_tag(seg), 22);
    CHECK_EQ(stats_of(seg).members, 1); /* both left of their own will */
    CHECK_EQ(shmt_reclaim(seg), 0);
    shmt_segment_drop(seg);
}

/* Each verb of the child on each thing of the parent's: lost, and nothing changes. */
static void what_the_parent_holds_stays_the_parents(void) {
    shmt_segment *seg = make(4, SHMT_GROW, 0);
    shmt_slot claimed, acquired;
    shmt_lease *lease;
    put(seg, 1);
    CHECK_EQ(shmt_slot_try_acquire(seg, &acquired), 0);
    CHECK_EQ(shmt_lease_take(seg, &acquired, &acquired.word, 1, &lease), 0);
    CHECK_EQ(shmt_slot_try_claim(seg, &claimed), 0);
    shmt_lease_hold(lease);
    for (int joined = 0; joined < 2; joined++) {
        pid_t pid = start_child();
        if (pid == 0) {
            CHECK_EQ(joined ? shmt_member_join(seg) : 0, 0);
            shmt_slot copy = claimed;
            CHECK_EQ(shmt_slot_reserve(seg, &copy, 4096), -ESTALE);
            CHECK_EQ(shmt_slot_publish(seg, &claimed, 8, 99), -ESTALE);
            CHECK_EQ(shmt_slot_publish_many(seg, &claimed, &claimed.word, 1, 8), -ESTALE);
            CHECK_EQ(shmt_slot_abort(seg, &claimed), -ESTALE);
            CHECK_EQ(shmt_slot_abort_many(seg, &claimed, &claimed.word, 1), -ESTALE);
            CHECK_EQ(shmt_slot_release(seg, &acquired), -ESTALE);
            CHECK_EQ(shmt_slot_release_many(seg, &acquired, &acquired.word, 1), -ESTALE);
            CHECK_EQ(shmt_lease_count(lease), 2);
            shmt_lease_drop(lease);
            shmt_lease_drop(lease);
            shmt_segment_drop(seg);
            CHECK_EQ(count_fds(MEMFD), 0);
            _exit(0);
        }
        child_ok(pid);
        CHECK_EQ(word_of(seg, claimed.index), claimed.word);
        CHECK_EQ(word_of(seg, acquired.index), acquired.word);
        CHECK_EQ(shmt_lease_count(lease), 2);
    }
    shmt_lease_drop(lease);
    CHECK_EQ(word_of(seg, acquired.index), acquired.word);
    shmt_lease_drop(lease);
    CHECK_EQ(slot_of(seg, acquired.index).state, 0);
    CHECK_EQ(shmt_slot_publish(seg, &claimed, 0, 0), 0);
    shmt_segment_drop(seg);
}

/* The child of a lease's holder takes a lease of its own on the very slot, once the parent has released it. */
static void a_child_leases_a_slot_that_its_parent_had(void) {
    shmt_segment *seg = make(1, 0, 0);
    shmt_atomic32 *go = new_signal();
    shmt_slot slot;
    shmt_lease *lease;
    put(seg, 1);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lease), 0);
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_slot mine;
        shmt_lease *own;
        told(go, 1);
        CHECK_EQ(shmt_slot_try_acquire(seg, &mine), 0);
        CHECK_EQ(shmt_lease_take(seg, &mine, &mine.word, 1, &own), 0);
        shmt_lease_drop(lease); /* the copy of the parent's, whose slot is now ours: releases nothing */
        CHECK_EQ(slot_of(seg, 0).state, 3);
        CHECK_EQ(slot_of(seg, 0).owner, shmt_member_id(seg));
        shmt_lease_drop(own);
        CHECK_EQ(slot_of(seg, 0).state, 0);
        shmt_segment_drop(seg);
        _exit(0);
    }
    shmt_lease_drop(lease);
    put(seg, 2);
    tell(go, 1);
    child_ok(pid);
    shmt_segment_drop(seg);
    free_signal(go);
}

/* A child that does nothing, then dies in any way, takes nothing of its parent's with it. */
static void a_child_that_only_dies(void) {
    shmt_segment *seg = make(2, 0, 0), *watcher = same(seg);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    for (int how = 0; how < 3; how++) {
        pid_t pid = start_child();
        if (pid == 0) {
            if (how == 0) {
                shmt_segment_drop(watcher);
                shmt_segment_drop(seg);
            } else if (how == 1) {
                raise(SIGKILL);
            }
            _exit(0);
        }
        child_status(pid);
        CHECK(alive(watcher, shmt_member_id(seg)));
        CHECK_EQ(shmt_reclaim(watcher), 0);
        CHECK_EQ(word_of(seg, slot.index), slot.word);
    }
    CHECK(!shmt_segment_is_closed(seg));
    CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
    shmt_segment_drop(watcher);
    shmt_segment_drop(seg);
}

/* A parent that dies is dead, though its child has inherited every descriptor and lives on. */
static void a_parent_dies_before_its_child(void) {
    shmt_segment *seg = make(2, 0, 0);
    shmt_atomic32 *ready = new_signal();
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, 0);
            tell(ready, 1);
            told(ready, 2);
            _exit(0);
        }
        for (;;) {
            pause();
        }
    }
    told(ready, 1);
    CHECK_EQ(stats_of(seg).writing, 1);
    CHECK_EQ(shmt_reclaim(seg), 0);
    kill_child(pid);
    CHECK_EQ(shmt_reclaim(seg), 1);
    CHECK_EQ(stats_of(seg).writing, 0);
    tell(ready, 2);
    shmt_segment_drop(seg);
    sleep_ms(20);
    free_signal(ready);
}

static void every_handle_lets_go_wherever_it_stands_in_the_list(void) {
    shmt_segment *seg[5];
    for (int i = 0; i < 5; i++) {
        seg[i] = make(1, 0, 0);
    }
    static const int order[] = {2, 0, 4}; /* from the middle, and from both ends */
    for (int gone = 0; gone < 3; gone++) {
        shmt_segment_drop(seg[order[gone]]);
        seg[order[gone]] = NULL;
        pid_t pid = start_child();
        if (pid == 0) {
            CHECK_EQ(count_fds(MEMFD), 4 - gone);
            for (int i = 0; i < 5; i++) {
                CHECK(!seg[i] || seg[i]->lock_fd == -1);
                CHECK_EQ(seg[i] ? shmt_member_join(seg[i]) : 0, 0);
            }
            _exit(0);
        }
        child_ok(pid);
    }
    shmt_segment_drop(seg[1]);
    shmt_segment_drop(seg[3]);
    CHECK_EQ(count_fds(MEMFD), 0);
}

static shmt_segment *churned;
static shmt_atomic32 churn_over;

static void *churn(void *arg) {
    (void)arg;
    while (!shmt_load_acquire(&churn_over)) {
        shmt_segment_drop(same(churned));
    }
    return NULL;
}

/* Another thread joins and leaves all the time: whenever the fork falls, the child inherits no lock that stays. */
static void fork_while_others_come_and_go(void) {
    /* Many members make leaving, which looks at each, slow. */
    churned = make_config((shmt_config){.slot_nbytes = 64, .slots = 1, .members = 1000});
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, churn, NULL), 0);
    int wrong = 0;
    const int64_t end = after_ms(1000);
    for (int i = 0; i < 1000 && shmt_now_ns() < end; i++) {
        pid_t pid = start_child();
        if (pid == 0) {
            _exit(count_fds(MEMFD) == 1 ? 0 : 9);
        }
        int status = child_status(pid);
        CHECK(WIFEXITED(status));
        wrong += WEXITSTATUS(status) != 0;
    }
    shmt_store_release(&churn_over, 1);
    pthread_join(thread, NULL);
    CHECK_EQ(wrong, 0);
    shmt_segment_drop(churned);
}

TESTS(TEST(a_child_is_a_new_member), TEST(what_the_parent_holds_stays_the_parents),
      TEST(a_child_leases_a_slot_that_its_parent_had), TEST(a_child_that_only_dies),
      TEST(a_parent_dies_before_its_child), TEST(every_handle_lets_go_wherever_it_stands_in_the_list),
      TEST(fork_while_others_come_and_go))
