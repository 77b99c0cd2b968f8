/* unity.c - the whole core as one translation unit, in the order of the rooms: what the Python extension compiles, so that a
 * hand-off is inlined from the verb down to the compare-and-swap (a third faster than one object per file, and unlike
 * link-time optimisation it asks nothing of the linker). */
#include "copy.c"
#include "memory.c"
#include "geometry.c"
#include "names.c"
#include "registry.c"
#include "segment.c"
#include "members.c"
#include "slots.c"
#include "order.c"
#include "wait.c"
#include "deaths.c"
#include "reclaim.c"
#include "lifecycle.c"
#include "handoff.c"
#include "lease.c"
#include "stats.c"
