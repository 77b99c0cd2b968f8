/* report.h - what is being tried, what was found, and whether this machine allows it at all. */
#ifndef REPORT_H
#define REPORT_H

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- what this run is about, and complaints ---------------------------------------------------------------------------- */

static struct {
    const char *scenario, *wrap, *mode;
    uint32_t point; /* instructions done; of the second process in the high half, where there are two */
    uint64_t rip;   /* where it was stopped */
    bool failed;    /* this point */
    uint32_t shown; /* complaints printed of this scenario */
    uint64_t points, failures, drifted; /* of this scenario */
    uint64_t all_points, all_failures;
} now;

static uint32_t shown_max = 4;

/* A mistake of the test or of the system, not a finding. */
static inline void give_up(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: %s (%s, %s, %s, point %u): %s\n", file, line, what, now.scenario ? now.scenario : "start",
            now.wrap ? now.wrap : "-", now.mode ? now.mode : "-", now.point, strerror(errno));
    fflush(stderr);
    _exit(3);
}
#define NEED(condition) ((condition) ? (void)0 : give_up(__FILE__, __LINE__, "not so: " #condition))

/* The function and line of an address of this program or of a library, for people. */
static inline void where(uint64_t rip, char *text, size_t size) {
    char self[512], command[700];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    snprintf(text, size, "0x%" PRIx64, rip);
    if (n <= 0) {
        return;
    }
    self[n] = '\0';
    snprintf(command, sizeof command, "addr2line -fipse '%s' 0x%" PRIx64 " 2>/dev/null", self, rip);
    FILE *f = popen(command, "r");
    if (f) {
        if (fgets(text, (int)size, f)) {
            text[strcspn(text, "\n")] = '\0';
        }
        pclose(f);
    }
}

static inline void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline void fail(const char *format, ...) {
    if (!now.failed) {
        now.failed = true;
        now.failures++;
        if (now.shown++ < shown_max) {
            char text[300], at[300];
            va_list args;
            va_start(args, format);
            vsnprintf(text, sizeof text, format, args);
            va_end(args);
            where(now.rip, at, sizeof at);
            printf("  FAIL %s, %s, %s: point %u, before %s: %s\n", now.scenario, now.wrap, now.mode, now.point, at,
                   text);
        }
    }
}
#define LAW(condition, ...) ((condition) ? (void)0 : fail(__VA_ARGS__))

/* ---- results ---------------------------------------------------------------------------------------------------------------------- */

static inline void report_begin(const char *scenario, const char *wrap, const char *mode) {
    now.scenario = scenario;
    now.wrap = wrap;
    now.mode = mode;
    now.points = now.failures = now.drifted = 0;
    now.shown = 0;
}

static inline int finish_up(void) {
    alarm(0);
    printf("TOTAL %" PRIu64 " points %" PRIu64 " failures\n", now.all_points, now.all_failures);
    return now.all_failures ? 1 : 0;
}

static inline void report_end(void) {
    printf("%-18s %-9s %-24s %7" PRIu64 " points %6" PRIu64 " failures", now.scenario, now.wrap, now.mode, now.points,
           now.failures);
    now.drifted ? printf(" (%" PRIu64 " by steps)\n", now.drifted) : printf("\n");
    fflush(stdout);
    now.all_points += now.points;
    now.all_failures += now.failures;
}

#endif
