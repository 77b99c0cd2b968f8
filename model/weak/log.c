/* log.c - D1, D2: records of deaths that are written while somebody reads the log.
 *
 * The log has one cell, and no word of a record is like that of the other: what a reader gets is one record as it was
 * written, and that of the position it asked for. One reclaimer writes both, or (WRITERS=2) two of them one each, a lap
 * apart in the same cell, where only the sum tells a mixture. FOLLOW: the reader asks twice, and hears of no death
 * twice. */
#include "stubs.h"

static __thread int64_t clock_of_thread;
int64_t shmt_now_ns(void) { return clock_of_thread; }

/* GenMC has none for what a pointer leads to; here only deaths are copied. */
void *memcpy(void *to, const void *from, size_t n) {
    const shmt_death *death = from;
    shmt_death *copy = to;
    assert(n == sizeof *death);
    copy->member = death->member;
    copy->pid = death->pid;
    copy->slot = death->slot;
    copy->reading = death->reading;
    copy->tries = death->tries;
    copy->gen = death->gen;
    copy->tag = death->tag;
    copy->joined_ns = death->joined_ns;
    copy->found_ns = death->found_ns;
    return to;
}

#include "deaths.c"

#ifndef WRITERS
#define WRITERS 1
#endif

/* Member 1 died with slot 0, member 2 with none. */
static void record(shmt_segment *seg, uint32_t id) {
    clock_of_thread = 70 + id;
    shmt_death_record(seg, id, id == 1 ? 0 : SHMT_NO_SLOT, shmt_word(SHMT_READING, id, 30 + id), 40 + id);
}

static void *writer(void *seg) {
#if WRITERS == 1
    record(seg, 1);
    record(seg, 2);
#else
    record(seg, shmt_me(seg));
#endif
    return NULL;
}

static uint32_t told(shmt_segment *seg, shmt_death_cursor *cursor) {
    static shmt_death death; /* not on the stack: GenMC 0.10 takes one frame's memory for another's */
    int rc = shmt_death_next(seg, cursor, &death);
    assert(rc == 0 || rc == -EAGAIN);
    if (rc != 0) {
        return 0;
    }
    const uint32_t id = death.member;
    assert(id == 1 || id == 2);
#if WRITERS == 1
    assert(cursor->position == id); /* in order */
#endif
    assert(death.pid == 10 + id && death.slot == (id == 1 ? 0 : SHMT_NO_SLOT)); /* of this member, all of it */
    assert(death.gen == 30 + id && death.reading);
    assert(death.tag == 40 + id);
    assert(death.joined_ns == 20 + id);
    assert(death.found_ns == 70 + id);
    return id;
}

static void *reader(void *seg) {
    static shmt_death_cursor cursor; /* from the first record on */
    const uint32_t one = told(seg, &cursor);
#ifdef FOLLOW
    const uint32_t two = told(seg, &cursor);
    assert(one == 0 || one != two);
#endif
    (void)one;
    return NULL;
}

int main(void) {
    for (uint32_t id = 1; id <= 3; id++) {
        handle(id);
        shmt_store_relaxed(&records[id].pid, 10 + id);
        shmt_store_relaxed(&records[id].joined_ns, 20 + id);
    }
    for (uint32_t id = 1; id <= WRITERS; id++) {
        start(writer, &handles[id]);
    }
    start(reader, &handles[3]);
    join_all();
    return 0;
}
