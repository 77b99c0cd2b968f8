/* How much memory is left, as the machine and the control groups say: read from files of our own making. The tests bring an
 * open() that looks below a folder of theirs for whatever begins with /proc or /sys. */
#include <stdarg.h>

#include "check.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

static char root[] = "/tmp/shmtensor-groups-XXXXXX";
static int opens, fail_open, fail_errno; /* the open that fails, from 1; 0: none */

int open(const char *path, int flags, ...) {
    va_list list;
    char below[700];
    va_start(list, flags);
    int mode = (flags & O_CREAT) ? va_arg(list, int) : 0;
    va_end(list);
    bool ours = strncmp(path, "/proc/self/fd/", 14) == 0;
    if (!ours && (strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/sys/", 5) == 0)) {
        if (++opens == fail_open) {
            errno = fail_errno;
            return -1;
        }
        snprintf(below, sizeof below, "%s%s", root, path);
        path = below;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static void write_file(const char *path, const char *text) {
    char at[800];
    snprintf(at, sizeof at, "%s%s", root, path);
    for (char *slash = at + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        CHECK(mkdir(at, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    FILE *f = fopen(at, "w");
    CHECK(f != NULL);
    CHECK(fputs(text, f) >= 0);
    CHECK_EQ(fclose(f), 0);
}

static void fresh(const char *groups) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s/proc %s/sys", root, root);
    CHECK_EQ(system(command), 0);
    write_file("/proc/meminfo", "MemTotal:       25000000 kB\nMemFree:          100 kB\nMemAvailable:   20000000 kB\n");
    if (groups) {
        write_file("/proc/self/cgroup", groups);
    }
    opens = fail_open = 0;
}

static void group(const char *dir, bool v2, const char *limit, const char *used, const char *stat) {
    char path[400];
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    write_file(path, limit);
    if (used) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", dir, v2 ? "memory.current" : "memory.usage_in_bytes");
        write_file(path, used);
    }
    if (stat) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.stat", dir);
        write_file(path, stat);
    }
}

static const uint64_t machine = UINT64_C(20000000) * 1024;

static void without_groups(void) {
    fresh(NULL);
    CHECK_EQ(shmt_memory_left(), machine);
    fresh("");
    CHECK_EQ(shmt_memory_left(), machine);
    fresh("0::/\n"); /* no controller there */
    CHECK_EQ(shmt_memory_left(), machine);
    fresh("garbage\n9:only one\n4:cpu,cpuacct:/user\n");
    CHECK_EQ(shmt_memory_left(), machine);
}

static void the_unified_hierarchy(void) {
    fresh("0::/box/job\n");
    group("/box/job", true, "max\n", "5000000\n", "anon 1\n");
    CHECK_EQ(shmt_memory_left(), machine);
    group("/box/job", true, "1073741824\n", "1000000\n", "anon 5\ninactive_file 0\n");
    CHECK_EQ(shmt_memory_left(), GIB - 1000000);
    group("/box/job", true, "1073741824\n", "1000000\n", "anon 5\ninactive_file 400000\n"); /* is given back */
    CHECK_EQ(shmt_memory_left(), GIB - 600000);
    group("/box/job", true, "1073741824\n", "1000000\n", "inactive_file 9000000\n");
    CHECK_EQ(shmt_memory_left(), GIB);
    group("/box", true, "536870912\n", "536870000\n", NULL); /* all above it count as well */
    CHECK_EQ(shmt_memory_left(), 912);
    group("/box", true, "536870912\n", "536870999\n", NULL);
    CHECK_EQ(shmt_memory_left(), 0);
    group("/box", true, "536870912\n", "0\n", NULL);
    CHECK_EQ(shmt_memory_left(), GIB / 2);
}

static void the_older_hierarchy(void) {
    fresh("9:name=systemd:/\n4:memory:/box/job\n0::/elsewhere\n");
    group("/memory/box/job", false, "9223372036854771712\n", "5000000\n", "total_inactive_file 1\n"); /* no limit */
    CHECK_EQ(shmt_memory_left(), machine);
    group("/memory/box/job", false, "209715200\n", "104857600\n", "inactive_file 99\ntotal_inactive_file 1048576\n");
    CHECK_EQ(shmt_memory_left(), 101 * MIB);
    group("/memory", false, "104857600\n", "62914560\n", NULL);
    CHECK_EQ(shmt_memory_left(), 40 * MIB);
    group("/elsewhere", true, "31457280\n", "0\n", NULL); /* both at once */
    CHECK_EQ(shmt_memory_left(), 30 * MIB);
}

/* The path in /proc/self/cgroup is the host's, and the mount shows the container's own group as its root. */
static void in_a_container(void) {
    fresh("0::/system.slice/docker-1234.scope\n");
    group("", true, "268435456\n", "134217728\n", "inactive_file 0\n");
    CHECK_EQ(shmt_memory_left(), 128 * MIB);
    fresh("4:memory:/docker/1234\n");
    group("/memory", false, "268435456\n", "201326592\n", "total_inactive_file 0\n");
    CHECK_EQ(shmt_memory_left(), 64 * MIB);
}

static void what_cannot_be_read_limits_nothing(void) {
    fresh("0::/a\n");
    group("/a", true, "1000000\n", NULL, NULL); /* no usage */
    CHECK_EQ(shmt_memory_left(), machine);
    group("/a", true, "", "5\n", NULL);
    CHECK_EQ(shmt_memory_left(), machine);
    group("/a", true, "99999999999999999999999999\n", "5\n", NULL); /* beyond 64 bits */
    CHECK_EQ(shmt_memory_left(), machine);
    group("/a", true, "18446744073709551616\n", "5\n", NULL);
    CHECK_EQ(shmt_memory_left(), machine);
    write_file("/proc/meminfo", "MemAvailable: a lot\n");
    CHECK(shmt_memory_left() > (UINT64_C(1) << 62));
    write_file("/proc/meminfo", "MemTotal: 5 kB");
    CHECK(shmt_memory_left() > (UINT64_C(1) << 62));
    write_file("/proc/meminfo", "MemAvailable: -5 kB\n");
    CHECK(shmt_memory_left() > (UINT64_C(1) << 62));
    write_file("/proc/meminfo", "MemAvailable: 5x\n");
    CHECK_EQ(shmt_memory_left(), 5 * 1024);
    char longest[1000] = "0::/";
    memset(longest + 4, 'a', 800);
    fresh(longest);
    group("", true, "1000000\n", "5\n", NULL);
    CHECK_EQ(shmt_memory_left(), machine);
}

/* Of a file that is longer than anybody expects the beginning counts. */
static void a_long_file(void) {
    static char stat[20000];
    memset(stat, '\n', sizeof stat - 1);
    memcpy(stat, "inactive_file 1000\n", 19);
    fresh("0::/a\n");
    group("/a", true, "1000000\n", "5000\n", stat);
    CHECK_EQ(shmt_memory_left(), 996000);
    memset(stat, '\n', 19);
    memcpy(stat + 19000, "inactive_file 1000\n", 19);
    group("/a", true, "1000000\n", "5000\n", stat);
    CHECK_EQ(shmt_memory_left(), 995000);
}

static void more_than_a_group_has_left_is_refused(void) {
    fresh("0::/a\n");
    group("/a", true, "209715200\n", "10485760\n", NULL); /* 190 MiB left, 64 of them in reserve */
    CHECK_EQ(shmt_memory_check(126 * MIB), 0);
    CHECK_EQ(shmt_memory_check(126 * MIB + 1), -ENOSPC);
    CHECK_EQ(shmt_memory_check(191 * MIB), -ENOSPC);
    CHECK_EQ(shmt_memory_check(UINT64_MAX), -ENOSPC);
    group("/a", true, "209715200\n", "209715200\n", NULL);
    CHECK_EQ(shmt_memory_check(64 * 1024), -ENOSPC);
    CHECK_EQ(shmt_memory_check(64 * 1024 - 1), 0); /* too small to be worth the look */
}

/* A slot that would grow beyond what the group has left: an error, and what is there goes on. */
static void growth_ends_before_the_group_does(void) {
    fresh("0::/a\n");
    group("/a", true, "71303168\n", "2097152\n", NULL); /* 66 MiB left */
    shmt_segment *seg = NULL;
    shmt_slot slot;
    shmt_config config = {.slot_stride = 16 * MIB, .slots = 2, .members = 4, .flags = SHMT_GROW};
    config.slot_nbytes = 1536 * 1024;
    CHECK_EQ(shmt_segment_create(&config, &seg), -ENOSPC); /* two of them */
    config.slot_nbytes = 512 * 1024;
    CHECK_EQ(shmt_segment_create(&config, &seg), 0);
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, MIB), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, 8 * MIB), -ENOSPC);
    CHECK(slot.nbytes >= MIB && slot.nbytes < 2 * MIB);
    memset(slot.data, 1, slot.nbytes);
    CHECK_EQ(shmt_slot_publish(seg, &slot, MIB, 0), 0);
    fail_errno = EMFILE;
    fail_open = opens + 1;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, MIB), -EMFILE);
    CHECK_EQ(shmt_slot_reserve(seg, &slot, MIB), 0);
    CHECK_EQ(shmt_slot_publish(seg, &slot, MIB, 0), 0);
    shmt_segment_drop(seg);
}

/* To know nothing is no reason to risk the OOM killer: out of descriptors, a reservation says so. */
static void out_of_descriptors(void) {
    static const int errors[] = {EMFILE, ENFILE, ENOMEM};
    for (int how = 0; how < 2; how++) {
        fresh(how ? "0::/a/b\n" : "4:memory:/a/b\n");
        group(how ? "/a/b" : "/memory/a/b", how, "1073741824\n", "1000000\n", "x 1\n");
        CHECK_EQ(shmt_memory_check(MIB), 0);
        int all = opens;
        CHECK(all >= 5);
        for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
            for (int n = 1; n <= all; n++) {
                opens = 0;
                fail_open = n;
                fail_errno = errors[e];
                CHECK_EQ(shmt_memory_check(MIB), -errors[e]);
                opens = 0;
                CHECK(shmt_memory_left() >= GIB - 1000000); /* what is known; the caller only wants to say it */
                opens = 0;
                fail_errno = EACCES; /* hidden from us: no limit that we know of */
                CHECK_EQ(shmt_memory_check(MIB), 0);
            }
        }
    }
}

static void a_folder(void) { CHECK(mkdtemp(root) != NULL); }

static void no_folder(void) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", root);
    CHECK_EQ(system(command), 0);
}

TESTS(TEST(a_folder), TEST(without_groups), TEST(the_unified_hierarchy), TEST(the_older_hierarchy),
      TEST(in_a_container), TEST(what_cannot_be_read_limits_nothing), TEST(a_long_file),
      TEST(more_than_a_group_has_left_is_refused), TEST(growth_ends_before_the_group_does), TEST(out_of_descriptors),
      TEST(no_folder))
