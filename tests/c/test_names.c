/* Files in /dev/shm: refused with suspicion, born whole, removed by the last one out or swept after the dead. */
#include "check.h"

static char dir_seen[64][SHMT_NAME_MAX + 60];
static int dir_stale[64];
static int n_seen;

static void on_seen(void *arg, const char *name, int stale) {
    CHECK(arg == &n_seen);
    CHECK(n_seen < 64);
    snprintf(dir_seen[n_seen], sizeof dir_seen[0], "%s", name);
    dir_stale[n_seen++] = stale;
}

/* 1 stale, 0 live, -1 not seen */
static int sweep_says(const char *name) {
    for (int i = 0; i < n_seen; i++) {
        if (strcmp(dir_seen[i], name) == 0) {
            return dir_stale[i];
        }
    }
    return -1;
}

static int sweep(bool dry_run) {
    n_seen = 0;
    return shmt_sweep(dry_run, on_seen, &n_seen);
}

static const char *path_of(const char *name) {
    static char path[300];
    CHECK_EQ(shmt_name_path(name, path, sizeof path), 0);
    return path;
}

static void make_file(const char *path, mode_t mode, size_t nbytes) {
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    for (size_t i = 0; i < nbytes; i++) {
        CHECK_EQ(write(fd, "x", 1), 1);
    }
    CHECK_EQ(fchmod(fd, mode), 0);
    close(fd);
}

static shmt_config named(const char *name) {
    return (shmt_config){.name = name, .slot_nbytes = 100, .slots = 3, .members = 4};
}

static void names(void) {
    char longest[SHMT_NAME_MAX + 2], path[300];
    memset(longest, 'n', sizeof longest);
    longest[SHMT_NAME_MAX + 1] = '\0';
    const struct {
        const char *name;
        int rc;
    } table[] = {
        {"", -EINVAL},
        {"a/b", -EINVAL},
        {"/a", -EINVAL},
        {"../a", -EINVAL},
        {"a b", -EINVAL},
        {"a\n", -EINVAL},
        {"%s", -EINVAL},
        {"na\xc3\xafve", -EINVAL},
        {"a:b", -EINVAL},
        {"a@b", -EINVAL},
        {"a[b", -EINVAL},
        {"a`b", -EINVAL},
        {"a{b", -EINVAL},
        {"a\x7f", -EINVAL},
        {longest, -ENAMETOOLONG},
        {longest + 1, 0},
        {"a", 0},
        {"A.b_c-9", 0},
        {"..", 0}, /* the prefix makes a file of it */
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        CHECK_EQ(shmt_name_path(table[i].name, path, sizeof path), table[i].rc);
        if (table[i].rc != 0) { /* and each verb that takes a name says the same */
            shmt_segment *seg = NULL;
            shmt_config config = named(table[i].name);
            CHECK_EQ(shmt_segment_create(&config, &seg), table[i].rc);
            CHECK_EQ(shmt_segment_attach(table[i].name, &seg), table[i].rc);
            CHECK(seg == NULL);
        }
    }
    CHECK_EQ(shmt_name_path("A.b_c-9", path, sizeof path), 0);
    CHECK_EQ(strcmp(path, "/dev/shm/shmtensor.A.b_c-9"), 0);
    CHECK_EQ(shmt_name_path("abc", path, 22), -ENAMETOOLONG);
    CHECK_EQ(shmt_name_path("abc", path, 23), 0);
}

static void what_is_not_ours_is_not_opened(void) {
    const char *name = fresh_name(), *path = path_of(name);
    int fds = count_fds(NULL), fd = -7;
    shmt_segment *seg = NULL;
    CHECK_EQ(shmt_name_open(path, &fd), -ENOENT);
    CHECK_EQ(shmt_segment_attach(name, &seg), -ENOENT);

    CHECK_EQ(symlink("/dev/null", path), 0);
    CHECK_EQ(shmt_name_open(path, &fd), -EPERM);
    CHECK_EQ(shmt_segment_attach(name, &seg), -EPERM);
    unlink(path);
    CHECK_EQ(symlink("/nowhere/at/all", path), 0);
    CHECK_EQ(shmt_name_open(path, &fd), -EPERM);
    unlink(path);

    CHECK_EQ(mkfifo(path, 0600), 0); /* and it does not hang */
    CHECK_EQ(shmt_name_open(path, &fd), -EPERM);
    unlink(path);

    CHECK_EQ(mkdir(path, 0600), 0);
    CHECK(shmt_name_open(path, &fd) < 0);
    rmdir(path);

    static const mode_t modes[] = {0644, 0660, 0606, 0666, 0700, 0777};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        make_file(path, modes[i], 0);
        CHECK_EQ(shmt_name_open(path, &fd), -EPERM);
        CHECK_EQ(shmt_segment_attach(name, &seg), -EPERM);
        unlink(path);
    }
    CHECK_EQ(fd, -7);
    CHECK(seg == NULL);

    make_file(path, 0600, 10);
    CHECK_EQ(shmt_name_open(path, &fd), 0);
    CHECK(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    close(fd);
    unlink(path);
    CHECK_EQ(count_fds(NULL), fds);
}

static void another_users_file(void) {
    if (geteuid() != 0) {
        SKIP("giving a file to another user needs root");
    }
    const char *name = fresh_name(), *path = path_of(name);
    int fd = -7;
    shmt_segment *seg = NULL;
    make_file(path, 0600, 0);
    CHECK_EQ(chown(path, 12345, 12345), 0);
    CHECK_EQ(shmt_name_open(path, &fd), -EPERM);
    CHECK_EQ(shmt_segment_attach(name, &seg), -EPERM);
    shmt_config config = named(name);
    CHECK_EQ(shmt_segment_create(&config, &seg), -EEXIST);
    CHECK_EQ(access(path, F_OK), 0);
    CHECK(fd == -7 && seg == NULL);
    unlink(path);
}

static void a_file_that_is_no_segment(void) {
    static const size_t sizes[] = {0, 1, 4095, 4096, 20000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const char *name = fresh_name(), *path = path_of(name);
        shmt_segment *seg = NULL;
        int fds = count_fds(NULL);
        make_file(path, 0600, sizes[i]);
        CHECK_EQ(shmt_segment_attach(name, &seg), -EBADMSG);
        CHECK(seg == NULL);
        CHECK_EQ(count_fds(NULL), fds);
        CHECK_EQ(access(path, F_OK), 0); /* a failed attach removes nothing */
        unlink(path);
    }
}

static void born_without_a_name(void) {
    const char *name = fresh_name();
    char path[300];
    snprintf(path, sizeof path, "%s", path_of(name));
    mode_t before = umask(0777);
    int fd = -1, rc = shmt_name_born(&fd);
    umask(before);
    CHECK_EQ(rc, 0);
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    CHECK_EQ(st.st_mode & 07777, 0600);
    CHECK(S_ISREG(st.st_mode));
    CHECK_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    CHECK_EQ(shmt_name_linked(fd), 0);
    CHECK(!shmt_name_is(path, fd));

    CHECK_EQ(shmt_name_link(fd, path), 0);
    CHECK_EQ(shmt_name_linked(fd), 1);
    CHECK(shmt_name_is(path, fd));

    int second = -1;
    CHECK_EQ(shmt_name_born(&second), 0);
    CHECK_EQ(shmt_name_link(second, path), -EEXIST);
    CHECK(shmt_name_is(path, fd) && !shmt_name_is(path, second));
    CHECK_EQ(shmt_name_linked(second), 0);

    CHECK_EQ(unlink(path), 0);
    CHECK(!shmt_name_is(path, fd));
    CHECK_EQ(shmt_name_link(second, path), 0); /* the same path, another file */
    CHECK(!shmt_name_is(path, fd) && shmt_name_is(path, second));
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(symlink("/dev/null", path), 0);
    CHECK(!shmt_name_is(path, second));
    CHECK_EQ(unlink(path), 0);
    close(fd);
    close(second);
    CHECK_EQ(shmt_name_linked(second), -EBADF);
}

/* Inodes are numbered in each file system anew. */
static void the_same_number_elsewhere_is_another_file(void) {
    char dir[] = "/tmp/shmtensor-names-XXXXXX", path[64];
    CHECK(mkdtemp(dir) != NULL);
    if (mount("tmpfs", dir, "tmpfs", 0, "size=1m,nr_inodes=10000") != 0) {
        rmdir(dir);
        SKIP("mounting needs root");
    }
    int fd = -1;
    struct stat ours, other;
    CHECK_EQ(shmt_name_born(&fd), 0);
    CHECK_EQ(fstat(fd, &ours), 0);
    bool met = false;
    for (int i = 0; i < 5000 && !met; i++) {
        snprintf(path, sizeof path, "%s/%d", dir, i);
        make_file(path, 0600, 0);
        CHECK_EQ(stat(path, &other), 0);
        met = other.st_ino == ours.st_ino;
        CHECK(!shmt_name_is(path, fd));
    }
    close(fd);
    CHECK_EQ(umount(dir), 0);
    CHECK_EQ(rmdir(dir), 0);
    if (!met) {
        SKIP("no two files had one number");
    }
}

static void an_existing_name_is_left_alone(void) {
    const char *name = fresh_name();
    shmt_config config = named(name);
    shmt_segment *seg = make_config(config), *second = NULL, *third = NULL;
    int fds = count_fds(NULL);
    CHECK_EQ(shmt_segment_create(&config, &second), -EEXIST);
    CHECK(second == NULL);
    CHECK_EQ(count_fds(NULL), fds);
    put(seg, 11);
    CHECK_EQ(shmt_segment_attach(name, &third), 0);
    CHECK_EQ(shmt_segment_info(third)->identity, shmt_segment_info(seg)->identity);
    CHECK_EQ(get_tag(third), 11);
    shmt_segment_drop(third);
    shmt_segment_drop(seg);
    CHECK(!name_exists(name));

    make_file(path_of(name), 0644, 3); /* somebody's file, which no sweep may touch */
    CHECK_EQ(shmt_segment_create(&config, &second), -EEXIST);
    CHECK(second == NULL && name_exists(name));
    unlink(path_of(name));
}

static void the_last_one_out_removes(void) {
    const char *name = fresh_name();
    char path[300];
    snprintf(path, sizeof path, "%s", path_of(name));
    shmt_segment *a = make_config(named(name)), *b = NULL;
    CHECK_EQ(shmt_segment_attach(name, &b), 0);
    int outsider = -1;
    CHECK_EQ(shmt_name_open(path, &outsider), 0);
    CHECK_EQ(shmt_name_remove_if_last(outsider, path, 4, 0), 0);
    CHECK(name_exists(name));
    shmt_segment_drop(a);
    CHECK(name_exists(name));
    CHECK_EQ(shmt_name_remove_if_last(outsider, path, 4, 0), 0);
    shmt_segment_close(b);
    CHECK(!name_exists(name));
    shmt_segment_drop(b);
    CHECK(!name_exists(name));
    make_file(path, 0600, 5); /* the path has come to mean another file: not ours to remove */
    CHECK_EQ(shmt_name_remove_if_last(outsider, path, 4, 0), 1);
    CHECK(name_exists(name));
    unlink(path);
    close(outsider);
}

/* The name is gone, a lease keeps the mapping: whoever has the descriptor, a forked child say, may still join. */
static void removing_the_name_keeps_nobody_out(void) {
    const char *name = fresh_name();
    shmt_segment *seg = make_config(named(name));
    shmt_lease *lease;
    put(seg, 1);
    put(seg, 2);
    shmt_slot slot = get(seg);
    CHECK_EQ(shmt_lease_take(seg, &slot, &slot.word, 1, &lease), 0);
    shmt_segment_close(seg);
    CHECK(!name_exists(name));
    shmt_segment *late = peer_of(seg);
    CHECK(shmt_member_id(late) != shmt_member_id(seg));
    CHECK_EQ(shmt_reclaim(late), 0); /* the lease's holder is still a member */
    CHECK_EQ(get_tag(late), 2);
    shmt_lease_drop(lease);
    shmt_segment_drop(seg);
    CHECK_EQ(stats_of(late).free, 3);
    shmt_segment_drop(late);
}

/* Holds a segment of that name in a child until it is killed. */
static pid_t holder(const char *name, shmt_atomic32 *ready) {
    tell(ready, 0);
    pid_t pid = start_child();
    if (pid == 0) {
        make_config(named(name));
        await_death(ready);
    }
    told(ready, 1);
    return pid;
}

static void the_sweep_takes_what_the_dead_left(void) {
    shmt_atomic32 *ready = new_signal();
    char stale[64], live[64], own[64], foreign[64];
    snprintf(stale, sizeof stale, "%s", fresh_name());
    snprintf(live, sizeof live, "%s", fresh_name());
    snprintf(own, sizeof own, "%s", fresh_name());
    snprintf(foreign, sizeof foreign, "%s", fresh_name());
    pid_t dead = holder(stale, ready), alive = holder(live, ready);
    shmt_segment *mine = make_config(named(own));
    make_file(path_of(foreign), 0600, 5000); /* of the same user, with a name like ours, and no segment */
    CHECK(name_exists(stale));               /* the sweep of the second creation let the first, still alive, be */
    kill_child(dead);

    int fds = count_fds(NULL);
    CHECK(sweep(true) >= 1);
    CHECK_EQ(sweep_says(stale), 1);
    CHECK_EQ(sweep_says(live), 0);
    CHECK_EQ(sweep_says(own), 0);
    CHECK_EQ(sweep_says(foreign), -1);
    CHECK(name_exists(stale)); /* only looked */

    CHECK(sweep(false) >= 1);
    CHECK_EQ(sweep_says(stale), 1);
    CHECK_EQ(sweep_says(live), 0);
    CHECK(!name_exists(stale) && name_exists(live) && name_exists(own) && name_exists(foreign));
    CHECK_EQ(count_fds(NULL), fds);
    CHECK(sweep(false) >= 0);
    CHECK_EQ(sweep_says(stale), -1);
    CHECK(shmt_sweep(true, NULL, NULL) >= 0);

    put(mine, 1); /* the sweep took no lock away: each of these is still a member */
    shmt_member_info info;
    CHECK_EQ(shmt_member_info_get(mine, shmt_member_id(mine), &info), 0);
    shmt_segment *seg = NULL;
    CHECK_EQ(shmt_segment_attach(live, &seg), 0);
    CHECK_EQ(shmt_reclaim(seg), 0);
    kill_child(alive);
    CHECK_EQ(shmt_reclaim(seg), 1);
    shmt_segment_drop(seg);
    CHECK(!name_exists(live));
    shmt_segment_drop(mine);
    unlink(path_of(foreign));
    free_signal(ready);
}

static void creation_sweeps_and_takes_a_dead_name(void) {
    shmt_atomic32 *ready = new_signal();
    char name[64], other[64];
    snprintf(name, sizeof name, "%s", fresh_name());
    snprintf(other, sizeof other, "%s", fresh_name());
    kill_child(holder(name, ready));
    CHECK(name_exists(name));
    kill_child(holder(other, ready)); /* its creation took the first one's name away */
    CHECK(!name_exists(name));
    shmt_segment *seg = make_config(named(other));
    put(seg, 1);
    shmt_segment_drop(seg);
    CHECK(!name_exists(other));
    free_signal(ready);
}

/* A segment that comes and goes, and dies at any moment: whoever attaches gets a whole one or hears that there is none. */
static void half_a_segment_is_never_seen(void) {
    const char *name = fresh_name();
    int found = 0, killed = 0;
    int64_t end = after_ms(SANITIZED ? 1500 : 800);
    uint64_t random = 1;
    while (shmt_now_ns() < end) {
        pid_t pid = start_child();
        if (pid == 0) {
            for (;;) {
                shmt_segment *seg;
                shmt_config config = named(name);
                int rc = shmt_segment_create(&config, &seg);
                CHECK(rc == 0 || rc == -EEXIST); /* the parent may still have the last one */
                if (rc == 0) {
                    shmt_segment_drop(seg);
                }
            }
        }
        int64_t stop = shmt_now_ns() + (int64_t)(next_random(&random) % 10) * MS;
        while (shmt_now_ns() < stop) {
            shmt_segment *seg;
            int rc = shmt_segment_attach(name, &seg);
            if (rc == 0) {
                CHECK_EQ(stats_of(seg).free, 3);
                shmt_segment_drop(seg);
                found++;
            } else {
                CHECK_EQ(rc, -ENOENT);
            }
        }
        kill_child(pid);
        killed++;
    }
    CHECK(killed > 3);
    CHECK(found > 0);
    sweep(false);
    CHECK(!name_exists(name));
}

static void unlinking_by_hand(void) {
    const char *name = fresh_name();
    shmt_segment *a = make_config(named(name)), *b = NULL, *anonymous = make(1, 0, 0);
    CHECK_EQ(shmt_segment_attach(name, &b), 0);
    CHECK_EQ(shmt_segment_unlink(anonymous), -EINVAL);
    CHECK_EQ(shmt_segment_unlink(b), 0);
    CHECK(!name_exists(name));
    CHECK_EQ(shmt_segment_unlink(a), -ENOENT);
    shmt_segment *open_to_others = make_config(named(name)); /* since it was created: not ours to open any more */
    CHECK_EQ(chmod(path_of(name), 0644), 0);
    CHECK_EQ(shmt_segment_unlink(open_to_others), -ENOENT);
    CHECK_EQ(chmod(path_of(name), 0600), 0);
    shmt_segment_drop(open_to_others);
    CHECK(!name_exists(name));
    put(a, 3);
    CHECK_EQ(get_tag(b), 3); /* those who are attached go on */
    shmt_segment *c = make_config(named(name));
    CHECK_EQ(shmt_segment_unlink(a), -ENOENT); /* the name is another segment's by now */
    CHECK(name_exists(name));
    shmt_segment_drop(a);
    shmt_segment_drop(b);
    CHECK(name_exists(name));
    shmt_segment_drop(c);
    CHECK(!name_exists(name));
    shmt_segment_drop(anonymous);
}

/* Alone in /dev/shm where that is possible: other programs' creations sweep too. */
static void a_dev_shm_of_our_own(void) {
    if (!private_shm("size=64m")) {
        SKIP("a mount namespace needs root: the other tests share /dev/shm with whoever is there");
    }
}

TESTS(TEST(a_dev_shm_of_our_own), TEST(names), TEST(what_is_not_ours_is_not_opened), TEST(another_users_file),
      TEST(a_file_that_is_no_segment), TEST(born_without_a_name), TEST(the_same_number_elsewhere_is_another_file),
      TEST(an_existing_name_is_left_alone), TEST(the_last_one_out_removes), TEST(removing_the_name_keeps_nobody_out),
      TEST(the_sweep_takes_what_the_dead_left), TEST(creation_sweeps_and_takes_a_dead_name),
      TEST(half_a_segment_is_never_seen), TEST(unlinking_by_hand))
