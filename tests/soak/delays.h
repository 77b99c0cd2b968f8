/* delays.h - read before the core, it puts a call before each step that others can see, where a process may rest or die.
 * So a death at a random moment often comes between two steps, which are otherwise a few nanoseconds apart. */
#ifndef SOAK_DELAYS_H
#define SOAK_DELAYS_H

#include "atomic.h"

void soak_step(void);

#undef shmt_cas_seq_cst
#define shmt_cas_seq_cst(p, expected, desired)                                                                         \
    (soak_step(),                                                                                                      \
     atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_seq_cst, memory_order_seq_cst))
#undef shmt_cas_acq_rel
#define shmt_cas_acq_rel(p, expected, desired)                                                                         \
    (soak_step(),                                                                                                      \
     atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_acq_rel, memory_order_acquire))
#undef shmt_or_seq_cst
#define shmt_or_seq_cst(p, v) (soak_step(), atomic_fetch_or_explicit((p), (v), memory_order_seq_cst))
#undef shmt_add_seq_cst
#define shmt_add_seq_cst(p, v) (soak_step(), atomic_fetch_add_explicit((p), (v), memory_order_seq_cst))

#endif
