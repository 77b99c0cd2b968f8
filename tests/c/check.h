/* check.h - what every C test needs: checks that say where they failed, a list of tests, children, and small segments.
 *
 * A failed check ends its process at once with status 1; a child's failure is its parent's, through child_ok(). A test
 * that cannot run here calls SKIP: the others run all the same, and the program then exits with 77, its last line saying
 * what was left out. A test that hangs is named and ended. With arguments, only the tests of those names run. */
#ifndef CHECK_H
#define CHECK_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#endif
#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#endif
#ifndef UNDER_TSAN
#define UNDER_TSAN 0
#endif
#ifndef UNDER_ASAN
#define UNDER_ASAN 0
#endif
#define SANITIZED (UNDER_TSAN || UNDER_ASAN)

/* What a child has reached counts too, unless it is killed. */
#ifdef COVERAGE
extern void __gcov_dump(void);
static inline void exit_counted(int status) {
    __gcov_dump();
    _exit(status);
}
#define _exit exit_counted
#endif

/* How often to repeat what races: a sanitizer slows it down by about these factors. */
#define TIMES(n) ((n) / (UNDER_TSAN ? 10 : UNDER_ASAN ? 4 : 1))

#define MS INT64_C(1000000)
#define TEST_SECONDS 100

typedef struct check_test {
    const char *name;
    void (*run)(void);
} check_test;

static const char *check_now = "(before the first test)";
static char check_skipped[2000];
static int check_skips;

static inline void check_fail(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: in %s: %s\n", file, line, check_now, what);
    fflush(stderr);
    _exit(1);
}

static inline void check_equal(const char *file, int line, const char *what, int64_t is, int64_t expected) {
    if (is != expected) {
        char text[600];
        snprintf(text, sizeof text, "%s is %" PRId64 " (0x%" PRIx64 ", %s) and should be %" PRId64 " (0x%" PRIx64 ")",
                 what, is, (uint64_t)is, is < 0 && is > -200 ? strerror((int)-is) : "no errno", expected,
                 (uint64_t)expected);
        check_fail(file, line, text);
    }
}

#define CHECK(condition) ((condition) ? (void)0 : check_fail(__FILE__, __LINE__, "not so: " #condition))
#define CHECK_EQ(is, expected) check_equal(__FILE__, __LINE__, #is, (int64_t)(is), (int64_t)(expected))

static inline void check_skip(const char *why) {
    size_t used = strlen(check_skipped);
    snprintf(check_skipped + used, sizeof check_skipped - used, "%s%s: %s", used ? "; " : "", check_now, why);
    check_skips++;
}
#define SKIP(why)                                                                                                      \
    do {                                                                                                               \
        check_skip(why);                                                                                               \
        return;                                                                                                        \
    } while (0)

static inline void check_hung(int sig) {
    static const char text[] = "hung: ended by the watchdog in ";
    (void)sig;
    if (write(2, text, sizeof text - 1) < 0 || write(2, check_now, strlen(check_now)) < 0 || write(2, "\n", 1) < 0) {
        _exit(3);
    }
    _exit(2);
}

static inline int check_main(const check_test *tests, size_t n, int argc, char **argv) {
    int ran = 0;
    signal(SIGALRM, check_hung);
    for (size_t i = 0; i < n; i++) {
        bool wanted = argc < 2;
        for (int a = 1; a < argc; a++) {
            wanted |= strcmp(argv[a], tests[i].name) == 0;
        }
        if (wanted) {
            check_now = tests[i].name;
            alarm(TEST_SECONDS);
            int64_t begin = shmt_now_ns();
            tests[i].run();
            printf("%-40s %5" PRId64 " ms\n", tests[i].name, (shmt_now_ns() - begin) / MS);
            ran++;
        }
    }
    alarm(0);
    printf("%d ran, %d of them skipped%s%s\n", ran, check_skips, check_skips ? ": " : "", check_skipped);
    return ran == 0 ? 1 : check_skips ? 77 : 0;
}

#define TEST(f) {#f, f}
#define TESTS(...)                                                                                                     \
    int main(int argc, char **argv) {                                                                                  \
        static const check_test tests[] = {__VA_ARGS__};                                                               \
        return check_main(tests, sizeof tests / sizeof *tests, argc, argv);                                            \
    }

/* ---- time ---------------------------------------------------------------------------------------------------------- */

static inline int64_t after_ms(int64_t ms) { return shmt_now_ns() + ms * MS; }

static inline void sleep_ms(int64_t ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * MS};
    nanosleep(&t, NULL);
}

/* ---- children ------------------------------------------------------------------------------------------------------ */

static inline pid_t start_child(void) {
    fflush(stdout);
    fflush(stderr);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(TEST_SECONDS);
    }
    return pid;
}

static inline int child_status(pid_t pid) {
    int status;
    pid_t got;
    while ((got = waitpid(pid, &status, 0)) < 0 && errno == EINTR) {
    }
    CHECK_EQ(got, pid);
    return status;
}

static inline void child_ok(pid_t pid) {
    int status = child_status(pid);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

static inline void kill_child(pid_t pid) {
    CHECK_EQ(kill(pid, SIGKILL), 0);
    int status = child_status(pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* A word between a parent and its children: told() waits for what tell() says. */
static inline shmt_atomic32 *new_signal(void) {
    void *page = mmap(NULL, SHMT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    return page;
}
static inline void free_signal(shmt_atomic32 *s) { munmap(s, SHMT_PAGE); }
static inline void tell(shmt_atomic32 *s, uint32_t value) { shmt_store_release(s, value); }
static inline void told(shmt_atomic32 *s, uint32_t value) {
    for (int64_t end = after_ms(20000); shmt_load_acquire(s) < value;) {
        CHECK(shmt_now_ns() < end);
        sleep_ms(1);
    }
}

/* The child has done what it was to do: it says so and waits to be killed. */
static inline void await_death(shmt_atomic32 *s) {
    tell(s, 1);
    for (;;) {
        pause();
    }
}

/* ---- the system ------------------------------------------------------------------------------------------------------ */

/* Descriptors of this process; with `what`, only those that lead to a path that contains it. */
static inline int count_fds(const char *what) {
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir != NULL);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char path[300], target[500];
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == dirfd(dir)) {
            continue;
        }
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        if (length >= 0) {
            target[length] = '\0';
            n += !what || strstr(target, what) != NULL;
        }
    }
    closedir(dir);
    return n;
}

/* Lines of /proc/self/maps that contain `what`. */
static inline int count_maps(const char *what) {
    FILE *f = fopen("/proc/self/maps", "r");
    CHECK(f != NULL);
    char line[600];
    int n = 0;
    while (fgets(line, sizeof line, f)) {
        n += strstr(line, what) != NULL;
    }
    fclose(f);
    return n;
}

/* A /dev/shm of this process's own, of the given size: nobody else's sweep reaches into it. Needs root. */
static inline bool private_shm(const char *options) {
    return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("tmpfs", "/dev/shm", "tmpfs", 0, options) == 0;
}

static inline const char *fresh_name(void) {
    static char name[64];
    static int n;
    snprintf(name, sizeof name, "test-%d-%d", (int)getpid(), n++);
    return name;
}

static inline bool name_exists(const char *name) {
    char path[300];
    CHECK_EQ(shmt_name_path(name, path, sizeof path), 0);
    return access(path, F_OK) == 0;
}

/* A different number each time, the same in each run. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* ---- segments ------------------------------------------------------------------------------------------------------ */

static inline shmt_segment *make_config(shmt_config config) {
    shmt_segment *seg = NULL;
    config.members = config.members ? config.members : 16;
    CHECK_EQ(shmt_segment_create(&config, &seg), 0);
    return seg;
}

static inline shmt_segment *make(uint32_t slots, uint32_t flags, uint64_t seq_first) {
    return make_config((shmt_config){.slot_nbytes = 256, .slots = slots, .flags = flags, .seq_first = seq_first});
}

static inline shmt_segment *same(shmt_segment *seg) {
    shmt_segment *other = NULL;
    CHECK_EQ(shmt_segment_attach_same(seg, &other), 0);
    return other;
}

/* Another member over a mapping of its own: it keeps nothing of the first handle alive, as same() does. */
static inline shmt_segment *peer_of(shmt_segment *seg) {
    shmt_segment *other = NULL;
    CHECK_EQ(shmt_segment_attach_fd(shmt_segment_info(seg)->fd, &other), 0);
    return other;
}

/* Sequences that begin just before each of the counters wraps, for a ring of `ring` cells. */
#define WRAPS(ring)                                                                                                    \
    {0,                                                                                                                \
     1,                                                                                                                \
     (ring) - 1,                                                                                                       \
     (UINT64_C(1) << 24) - 5,                                                                                          \
     (UINT64_C(1) << 24) * (ring) - 5,                                                                                 \
     (UINT64_C(1) << 48) - 5,                                                                                          \
     UINT64_MAX - 4}
#define N_WRAPS 7

static inline uint64_t word_of(shmt_segment *seg, uint32_t index) { return shmt_load_seq_cst(&seg->slots[index].word); }

static inline shmt_slot_info slot_of(shmt_segment *seg, uint32_t index) {
    shmt_slot_info info;
    CHECK_EQ(shmt_slot_info_get(seg, index, &info), 0);
    return info;
}

static inline shmt_stats stats_of(shmt_segment *seg) {
    shmt_stats stats;
    CHECK_EQ(shmt_stats_get(seg, &stats), 0);
    return stats;
}

/* Puts one item in, whose payload and tag are `tag`. */
static inline void put(shmt_segment *seg, uint64_t tag) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    memcpy(slot.data, &tag, sizeof tag);
    CHECK_EQ(shmt_slot_publish(seg, &slot, sizeof tag, tag), 0);
}

/* Acquires the next item, which must be whole; the caller releases it. */
static inline shmt_slot get(shmt_segment *seg) {
    shmt_slot slot;
    uint64_t payload;
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
    CHECK_EQ(slot.nbytes, sizeof payload);
    memcpy(&payload, slot.data, sizeof payload);
    CHECK_EQ(payload, slot.tag);
    return slot;
}

static inline uint64_t get_tag(shmt_segment *seg) {
    shmt_slot slot = get(seg);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    return slot.tag;
}

#endif
