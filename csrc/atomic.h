/* atomic.h - the only includer of <stdatomic.h>: every word that two processes share is read and written through here.
 *
 * C11 operations, no free-standing fences (ThreadSanitizer cannot follow those), no volatile. Each call elsewhere names
 * its edge: a letter and a number, explained at both ends and listed in docs/protocol.md. Relaxed calls say why nothing
 * depends on their order. tests/test_lint.py fails on an atomic call without such a comment.
 */
#ifndef SHMT_ATOMIC_H
#define SHMT_ATOMIC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic uint64_t shmt_atomic64;
typedef _Atomic uint32_t shmt_atomic32;

/* Words in shared memory must be plain lock-free machine words: a lock would be private to one process. */
_Static_assert(sizeof(shmt_atomic64) == 8 && ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free");
_Static_assert(sizeof(shmt_atomic32) == 4 && ATOMIC_INT_LOCK_FREE == 2, "32-bit atomics must be lock-free");

#define shmt_load_relaxed(p) atomic_load_explicit((p), memory_order_relaxed)
#define shmt_load_acquire(p) atomic_load_explicit((p), memory_order_acquire)
#define shmt_load_seq_cst(p) atomic_load_explicit((p), memory_order_seq_cst)
#define shmt_store_relaxed(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define shmt_store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define shmt_add_relaxed(p, v) atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define shmt_add_seq_cst(p, v) atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define shmt_sub_relaxed(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_relaxed)
#define shmt_sub_acq_rel(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_acq_rel)
#define shmt_or_relaxed(p, v) atomic_fetch_or_explicit((p), (v), memory_order_relaxed)
#define shmt_or_seq_cst(p, v) atomic_fetch_or_explicit((p), (v), memory_order_seq_cst)
#define shmt_exchange_acquire(p, v) atomic_exchange_explicit((p), (v), memory_order_acquire)
#define shmt_exchange_acq_rel(p, v) atomic_exchange_explicit((p), (v), memory_order_acq_rel)

/* Compare-and-swap, strong; on failure *expected is what was found. The failure order is relaxed wherever the caller
 * looks again before it believes anything. */
#define shmt_cas_relaxed(p, expected, desired)                                                                         \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_relaxed, memory_order_relaxed)
#define shmt_cas_acquire(p, expected, desired)                                                                         \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_acquire, memory_order_relaxed)
#define shmt_cas_release(p, expected, desired)                                                                         \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_release, memory_order_relaxed)
#define shmt_cas_acq_rel(p, expected, desired)                                                                         \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_acq_rel, memory_order_acquire)
#define shmt_cas_seq_cst(p, expected, desired)                                                                         \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_seq_cst, memory_order_seq_cst)

/* One polite moment of a spin. */
static inline void shmt_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

#endif
