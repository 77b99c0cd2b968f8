/* Who takes part: one lock byte each, held by an open file description of its own, gone with its process. */
#include "check.h"

static bool is_alive(shmt_segment *seg, uint32_t id) {
    shmt_member_info info;
    return shmt_member_info_get(seg, id, &info) == 0 && info.alive;
}

static void every_place_is_taken_once(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 8, .slots = 1, .members = 5}), *all[5] = {seg};
    bool taken[6] = {0};
    int fds = 0;
    for (int i = 0; i < 5; i++) {
        if (i > 0) {
            all[i] = peer_of(seg);
        }
        uint32_t id = shmt_member_id(all[i]);
        CHECK(id >= 1 && id <= 5 && !taken[id]);
        taken[id] = true;
    }
    fds = count_fds(NULL);
    shmt_segment *late = NULL;
    CHECK_EQ(shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &late), -EUSERS);
    CHECK_EQ(shmt_segment_attach_same(seg, &late), -EUSERS);
    CHECK(late == NULL);
    CHECK_EQ(count_fds(NULL), fds);
    uint32_t free_id = shmt_member_id(all[3]);
    shmt_segment_drop(all[3]);
    late = peer_of(seg);
    CHECK_EQ(shmt_member_id(late), free_id); /* the only one that is free */
    shmt_segment_drop(late);
    for (int i = 0; i < 5; i++) {
        if (i != 3) {
            shmt_segment_drop(all[i]);
        }
    }
}

static void newcomers_spread(void) {
    shmt_segment *seg = make(64, 0, 0), *b = peer_of(seg), *c = peer_of(seg);
    uint32_t first = shmt_member_id(b);
    CHECK(shmt_member_id(seg) != first && shmt_member_id(c) != first && shmt_member_id(c) != shmt_member_id(seg));
    CHECK(shmt_load_relaxed(&b->cursor) != shmt_load_relaxed(&c->cursor));
    shmt_segment_drop(b);
    b = peer_of(seg);
    CHECK(shmt_member_id(b) != first); /* a place that was just left rests a while */
    shmt_segment_drop(b);
    shmt_segment_drop(c);
    shmt_segment_drop(seg);
}

static void what_is_known_of_a_member(void) {
    int64_t begin = shmt_now_ns();
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 8, .slots = 2, .members = 3}), *b = peer_of(seg);
    shmt_member_info info = {.id = 77};
    CHECK_EQ(shmt_member_info_get(seg, 0, &info), -EINVAL);
    CHECK_EQ(shmt_member_info_get(seg, 4, &info), -EINVAL);
    CHECK_EQ(shmt_member_info_get(seg, UINT32_MAX, &info), -EINVAL);
    uint32_t free_id = 6 - shmt_member_id(seg) - shmt_member_id(b);
    CHECK_EQ(shmt_member_info_get(seg, free_id, &info), -ENOENT);
    CHECK_EQ(info.id, 77);
    put(seg, 1);
    CHECK_EQ(get_tag(b), 1);
    const shmt_segment *both[] = {seg, b};
    const uint32_t roles[] = {SHMT_PRODUCER, SHMT_CONSUMER};
    for (int i = 0; i < 2; i++) {
        for (int asker = 0; asker < 2; asker++) {
            CHECK_EQ(shmt_member_info_get(asker ? b : seg, shmt_member_id(both[i]), &info), 0);
            CHECK_EQ(info.id, shmt_member_id(both[i]));
            CHECK_EQ(info.pid, getpid());
            CHECK_EQ(info.roles, roles[i]);
            CHECK(info.alive);
            CHECK(info.joined_ns >= begin && info.joined_ns <= shmt_now_ns());
        }
    }
    uint32_t gone = shmt_member_id(b);
    shmt_segment_drop(b);
    CHECK_EQ(shmt_member_info_get(seg, gone, &info), -ENOENT);
    shmt_segment_drop(seg);
}

static void a_dead_member_is_known_until_it_is_reclaimed(void) {
    shmt_segment *seg = make(2, 0, 0);
    shmt_atomic32 *ready = new_signal();
    pid_t pid = start_child();
    if (pid == 0) {
        CHECK_EQ(shmt_member_join(seg), 0);
        await_death(ready);
    }
    told(ready, 1);
    uint32_t id = 1;
    shmt_member_info info;
    while (shmt_member_info_get(seg, id, &info) != 0 || info.pid != (uint32_t)pid) {
        CHECK(++id <= 16);
    }
    CHECK(info.alive);
    kill_child(pid);
    CHECK_EQ(shmt_member_info_get(seg, id, &info), 0);
    CHECK(!info.alive);
    CHECK_EQ(info.pid, pid);
    CHECK_EQ(shmt_reclaim(seg), 1);
    CHECK_EQ(shmt_member_info_get(seg, id, &info), -ENOENT);
    shmt_segment_drop(seg);
    free_signal(ready);
}

/* A POSIX lock would be gone once any descriptor of the file is closed. */
static void closing_another_descriptor_keeps_the_lock(void) {
    char name[64];
    snprintf(name, sizeof name, "%s", fresh_name());
    shmt_segment *seg = make_config((shmt_config){.name = name, .slot_nbytes = 8, .slots = 1}), *peer = peer_of(seg);
    char path[300];
    CHECK_EQ(shmt_name_path(name, path, sizeof path), 0);
    close(open(path, O_RDWR | O_CLOEXEC));
    close(dup(shmt_segment_info(seg)->fd));
    close(fcntl(seg->lock_fd, F_DUPFD_CLOEXEC, 0));
    CHECK(is_alive(peer, shmt_member_id(seg)));
    CHECK_EQ(shmt_member_try_lock(peer, shmt_member_id(seg)), 0);
    CHECK_EQ(shmt_reclaim(peer), 0);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void trying_the_lock_of_the_dead_and_the_living(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 8, .slots = 1, .members = 4}), *b = peer_of(seg),
                 *c = peer_of(seg);
    uint32_t id = shmt_member_id(c);
    CHECK_EQ(shmt_member_try_lock(seg, id), 0);
    shmt_segment_drop(c);
    CHECK_EQ(shmt_member_try_lock(seg, id), 1);
    CHECK_EQ(shmt_member_try_lock(b, id), 0); /* one at a time */
    CHECK(is_alive(b, id));                   /* as long as somebody has the byte, nobody else may act */
    shmt_member_unlock(seg, id);
    CHECK_EQ(shmt_member_try_lock(b, id), 1);
    shmt_member_unlock(b, id);
    CHECK(is_alive(b, shmt_member_id(seg))); /* its own byte stayed locked */
    shmt_segment_drop(b);
    shmt_segment_drop(seg);
}

static void announcing_begins_afresh(void) {
    shmt_segment *seg = make(2, 0, 0);
    shmt_member_record *mine = shmt_member_mine(seg);
    CHECK(mine == &seg->records[shmt_member_id(seg)]);
    put(seg, 1);
    shmt_store_relaxed(&mine->sleeps, 5);
    shmt_store_relaxed(&mine->wakes, 6);
    shmt_store_relaxed(&mine->spins, 7);
    shmt_store_relaxed(&mine->claim_waits, 8);
    shmt_store_relaxed(&mine->acquire_waits, 9);
    shmt_store_relaxed(&mine->ready_high, 10);
    CHECK_EQ(stats_of(seg).sleeps, 5);
    shmt_member_announce(seg, shmt_member_id(seg));
    shmt_stats s = stats_of(seg);
    CHECK_EQ(s.sleeps + s.wakes + s.spins + s.claim_waits + s.acquire_waits + s.ready_high, 0);
    CHECK_EQ(shmt_load_relaxed(&mine->roles), 0);
    CHECK_EQ(shmt_load_relaxed(&mine->pid), (uint32_t)getpid());
    CHECK_EQ(shmt_load_relaxed(&seg->header->joined), 1);
    shmt_segment *b = peer_of(seg);
    CHECK_EQ(shmt_load_relaxed(&seg->header->joined), 2);
    shmt_segment_drop(b);
    CHECK_EQ(shmt_load_relaxed(&seg->header->joined), 1);
    shmt_segment_drop(seg);
}

static void which_roles_there_are(void) {
    shmt_segment *seg = make(2, 0, 0);
    shmt_slot slot;
    CHECK_EQ(shmt_member_roles(seg), SHMT_IDLE);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN);
    CHECK_EQ(shmt_member_roles(seg), SHMT_CONSUMER);
    shmt_segment *b = peer_of(seg);
    CHECK_EQ(shmt_member_roles(seg), SHMT_CONSUMER | SHMT_IDLE);
    CHECK_EQ(shmt_slot_try_claim(b, &slot), 0);
    CHECK_EQ(shmt_member_roles(seg), SHMT_CONSUMER | SHMT_PRODUCER);
    CHECK_EQ(shmt_member_roles(b), SHMT_CONSUMER | SHMT_PRODUCER);
    CHECK_EQ(shmt_slot_abort(b, &slot), 0);
    CHECK_EQ(shmt_member_roles(seg) & SHMT_PRODUCER, SHMT_PRODUCER); /* once and for all */
    shmt_segment_close(b);
    CHECK_EQ(shmt_member_roles(seg) & SHMT_PRODUCER, 0);
    shmt_segment_drop(b);
    CHECK_EQ(shmt_member_roles(seg), SHMT_CONSUMER);
    shmt_segment_drop(seg);
}

static void *join_thread(void *arg) {
    CHECK_EQ(shmt_member_join(arg), 0);
    CHECK(shmt_member_id(arg) != 0);
    return NULL;
}

static void threads_join_once(void) {
    shmt_segment *seg = make(2, 0, 0);
    for (int round = 0; round < 20; round++) {
        pid_t pid = start_child(); /* in which nobody has joined yet */
        if (pid == 0) {
            pthread_t threads[4];
            int fds = count_fds(NULL);
            for (int i = 0; i < 4; i++) {
                CHECK_EQ(pthread_create(&threads[i], NULL, join_thread, seg), 0);
            }
            for (int i = 0; i < 4; i++) {
                pthread_join(threads[i], NULL);
            }
            CHECK_EQ(count_fds(NULL), fds + 1);
            CHECK_EQ(stats_of(seg).members, 2);
            shmt_segment_drop(seg);
            _exit(0);
        }
        child_ok(pid);
    }
    CHECK_EQ(stats_of(seg).members, 1);
    shmt_segment_drop(seg);
}

/* count_fds() without /proc */
static int open_fds(void) {
    int n = 0;
    for (int fd = 0; fd < 200; fd++) {
        n += fcntl(fd, F_GETFD) >= 0;
    }
    return n;
}

/* Without /proc an anonymous segment cannot be joined, and says so; a named one opens its name. */
static void without_proc(void) {
    char name[64];
    snprintf(name, sizeof name, "%s", fresh_name());
    shmt_segment *anonymous = make(1, 0, 0);
    shmt_segment *named = make_config((shmt_config){.name = name, .slot_nbytes = 64, .slots = 1});
    pid_t pid = start_child();
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
            mount("tmpfs", "/proc", "tmpfs", 0, "size=4k") != 0) {
            _exit(77);
        }
        shmt_segment *seg = NULL;
        shmt_slot slot;
        int before = open_fds();
        CHECK_EQ(shmt_segment_attach_fd(shmt_segment_info(anonymous)->fd, &seg), -ENXIO);
        CHECK_EQ(shmt_segment_create(&(shmt_config){.slot_nbytes = 8, .slots = 1, .members = 1}, &seg), -ENXIO);
        CHECK_EQ(shmt_slot_try_claim(anonymous, &slot), -ENXIO); /* a forked child that joins at its first verb */
        CHECK(seg == NULL);
        CHECK_EQ(shmt_segment_attach(name, &seg), 0);
        put(seg, 4);
        shmt_segment_drop(seg);
        CHECK_EQ(get_tag(named), 4);
        CHECK_EQ(open_fds(), before + 1); /* the lock of `named`; nothing else was left open */
        _exit(0);
    }
    int status = child_status(pid);
    CHECK(WIFEXITED(status));
    if (WEXITSTATUS(status) != 77) {
        CHECK_EQ(WEXITSTATUS(status), 0);
    }
    shmt_segment_drop(anonymous);
    shmt_segment_drop(named);
    if (WEXITSTATUS(status) == 77) {
        SKIP("a mount namespace needs root");
    }
}

TESTS(TEST(every_place_is_taken_once), TEST(newcomers_spread), TEST(what_is_known_of_a_member),
      TEST(a_dead_member_is_known_until_it_is_reclaimed), TEST(closing_another_descriptor_keeps_the_lock),
      TEST(trying_the_lock_of_the_dead_and_the_living), TEST(announcing_begins_afresh), TEST(which_roles_there_are),
      TEST(threads_join_once), TEST(without_proc))
