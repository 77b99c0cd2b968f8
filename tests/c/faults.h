/* faults.h - the system calls and allocations that the core makes, each of which can be made to fail.
 *
 * These functions stand in front of the C library's: linked into a test program, or, compiled as a shared object and
 * preloaded, in front of an extension module's. While armed they count the calls; the call of that number fails once, or
 * it and all that follow. FAULTS_OF names the object whose calls count (a part of its file's name); without it, all do.
 *
 *     faults_arm(n, error, false);  verb();  calls = faults_disarm();   n > calls: nothing has failed
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct {
    bool armed, and_after, heap;
    unsigned fail, calls;
    int error;
    const char *only;                          /* calls of this kind fail, each; NULL: by number */
    const char *what;                          /* the first call that failed */
    void (*after)(int fd, int cmd, void *arg); /* called after each successful fcntl() */
} faults;

void faults_arm(unsigned fail, int error, bool and_after) {
    faults.fail = fail;
    faults.error = error;
    faults.and_after = and_after;
    faults.only = NULL;
    faults.calls = 0;
    faults.what = "nothing";
    faults.heap = false;
    __atomic_store_n(&faults.armed, true, __ATOMIC_SEQ_CST);
}

/* Every call of one kind fails, as on a kernel that does not know it. */
void faults_arm_only(const char *what, int error) {
    faults_arm(0, error, false);
    faults.only = what;
}

unsigned faults_disarm(void) {
    __atomic_store_n(&faults.armed, false, __ATOMIC_SEQ_CST);
    return faults.calls;
}

const char *faults_what(void) { return faults.what; }

/* Did an allocation fail among them? It says ENOMEM whatever else was to be said. */
bool faults_heap(void) { return faults.heap; }

/* Does this call fail? Then errno is set. */
static bool faulty(const char *what, const void *caller) {
    if (!__atomic_load_n(&faults.armed, __ATOMIC_SEQ_CST)) {
        return false;
    }
#ifdef FAULTS_OF
    Dl_info from;
    if (!dladdr(caller, &from) || !strstr(from.dli_fname, FAULTS_OF)) {
        return false;
    }
#else
    (void)caller;
#endif
    if (faults.only) {
        errno = faults.error;
        return strcmp(what, faults.only) == 0 && ++faults.calls > 0;
    }
    unsigned call = ++faults.calls;
    if (call == faults.fail || (faults.and_after && call > faults.fail)) {
        faults.what = call == faults.fail ? what : faults.what;
        faults.heap = faults.heap || strcmp(what, "malloc") == 0 || strcmp(what, "calloc") == 0;
        errno = faults.error;
        return true;
    }
    return false;
}

#define FAULTY(name) faulty(#name, __builtin_return_address(0))

/* The real one by number where that is all there is to it; else the next in the order of linking. */
#define NEXT(name)                                                                                                     \
    static __typeof__(&name) next;                                                                                     \
    if (!next) {                                                                                                       \
        *(void **)&next = dlsym(RTLD_NEXT, #name);                                                                     \
    }

static long call(long number, long a, long b, long c, long d, long e, long f) {
    static long (*next)(long, ...);
    if (!next) {
        *(void **)&next = dlsym(RTLD_NEXT, "syscall");
    }
    return next(number, a, b, c, d, e, f);
}

long syscall(long number, ...) {
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(list, long);
    }
    va_end(list);
    return number != SYS_futex && FAULTY(syscall) ? -1 : call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static int open_file(const char *path, int flags, va_list list) {
    int mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(list, int) : 0;
    return (int)call(SYS_openat, AT_FDCWD, (long)path, flags, mode, 0, 0);
}

/* Which open(): of the kernel's files, which may be missing, or of one that matters. */
static const char *opened(const char *path) {
    return strncmp(path, "/proc/self/fd/", 14) == 0                            ? "open again"
           : strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/sys/", 5) == 0 ? "open a figure"
                                                                               : "open";
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        int fd = faulty(opened(path), __builtin_return_address(0)) ? -1 : open_file(path, flags, list);                \
        va_end(list);                                                                                                  \
        return fd;                                                                                                     \
    }
OPEN(open)
OPEN(open64)

/* Locks given up cannot fail, whatever else may. */
static bool may_fail(int cmd, const void *arg) {
    return !(cmd == F_OFD_SETLK && ((const struct flock *)arg)->l_type == F_UNLCK);
}

static int control(int fd, int cmd, void *arg) {
    int rc = (int)call(SYS_fcntl, fd, cmd, (long)arg, 0, 0, 0);
    if (rc >= 0 && faults.after) {
        faults.after(fd, cmd, arg);
    }
    return rc;
}

#define CONTROL(name)                                                                                                  \
    int name(int fd, int cmd, ...) {                                                                                   \
        va_list list;                                                                                                  \
        va_start(list, cmd);                                                                                           \
        void *arg = va_arg(list, void *);                                                                              \
        va_end(list);                                                                                                  \
        return may_fail(cmd, arg) && FAULTY(name) ? -1 : control(fd, cmd, arg);                                        \
    }
CONTROL(fcntl)
CONTROL(fcntl64)

#define SIMPLE(name, number, parameters, ...)                                                                          \
    int name parameters { return FAULTY(name) ? -1 : (int)call(number, __VA_ARGS__); }
SIMPLE(ftruncate, SYS_ftruncate, (int fd, off_t n), fd, n, 0, 0, 0, 0)
SIMPLE(ftruncate64, SYS_ftruncate, (int fd, off_t n), fd, n, 0, 0, 0, 0)
SIMPLE(fallocate, SYS_fallocate, (int fd, int mode, off_t at, off_t n), fd, mode, at, n, 0, 0)
SIMPLE(fallocate64, SYS_fallocate, (int fd, int mode, off_t at, off_t n), fd, mode, at, n, 0, 0)
SIMPLE(eventfd, SYS_eventfd2, (unsigned value, int flags), value, flags, 0, 0, 0, 0)
SIMPLE(fchmod, SYS_fchmod, (int fd, mode_t mode), fd, mode, 0, 0, 0, 0)
SIMPLE(unlink, SYS_unlinkat, (const char *path), AT_FDCWD, (long)path, 0, 0, 0, 0)
SIMPLE(linkat, SYS_linkat, (int from, const char *path, int to, const char *new_path, int flags), from, (long)path, to,
       (long)new_path, flags, 0)
SIMPLE(statx, SYS_statx, (int dir, const char *restrict path, int flags, unsigned mask, struct statx *restrict out),
       dir, (long)path, flags, mask, (long)out, 0)

ssize_t getrandom(void *to, size_t n, unsigned flags) {
    return FAULTY(getrandom) ? -1 : (ssize_t)call(SYS_getrandom, (long)to, (long)n, (long)flags, 0, 0, 0);
}
ssize_t pread(int fd, void *to, size_t n, off_t at) {
    return FAULTY(pread) ? -1 : (ssize_t)call(SYS_pread64, fd, (long)to, (long)n, at, 0, 0);
}
ssize_t read(int fd, void *to, size_t n) {
    return FAULTY(read) ? -1 : (ssize_t)call(SYS_read, fd, (long)to, (long)n, 0, 0, 0);
}
off_t lseek(int fd, off_t at, int whence) {
    return FAULTY(lseek) ? -1 : (off_t)call(SYS_lseek, fd, at, whence, 0, 0, 0);
}
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) {
    return FAULTY(pwrite) ? -1 : (ssize_t)call(SYS_pwrite64, fd, (long)from, (long)n, at, 0, 0);
}
ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) { return pwrite(fd, from, n, at); }
int madvise(void *at, size_t n, int advice) {
    const char *what = advice == 22 || advice == 23 /* MADV_POPULATE_READ, _WRITE */ ? "populate" : "advise";
    return faulty(what, __builtin_return_address(0)) ? -1 : (int)call(SYS_madvise, (long)at, (long)n, advice, 0, 0, 0);
}
void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t from) {
    return FAULTY(mmap) ? MAP_FAILED : (void *)call(SYS_mmap, (long)at, (long)n, protection, flags, fd, from);
}

DIR *opendir(const char *path) {
    NEXT(opendir)
    return FAULTY(opendir) ? NULL : next(path);
}

/* clang's ThreadSanitizer calls these two before it can bear to be called itself. */
#if !(defined(__clang__) && defined(UNDER_TSAN) && UNDER_TSAN)
#define FAULTS_OF_START 1

int sched_getaffinity(pid_t pid, size_t n, cpu_set_t *set) {
    memset(set, 0, n);
    return FAULTY(sched_getaffinity) || call(SYS_sched_getaffinity, pid, (long)n, (long)set, 0, 0, 0) < 0 ? -1 : 0;
}

#ifndef FAULTS_OF /* an extension module brings its own */
int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *object);

int pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void)) {
    return FAULTY(pthread_atfork) ? errno : __register_atfork(prepare, parent, child, NULL);
}
#endif
#else
#define FAULTS_OF_START 0
#endif

#ifndef FAULTS_KEEP_HEAP /* a sanitizer's own would be passed by */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);

void *malloc(size_t n) { return FAULTY(malloc) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return FAULTY(calloc) ? NULL : __libc_calloc(n, size); }
#endif
