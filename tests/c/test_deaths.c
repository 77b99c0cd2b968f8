/* Who died holding what: what is told, how often, of whom; and a log whose writers die, stop or lie. */
#include "check.h"

static shmt_atomic32 *ready;

static pid_t start_holder(shmt_segment *seg, void (*hold)(shmt_segment *seg)) {
    if (!ready) {
        ready = new_signal();
    }
    tell(ready, 0);
    pid_t pid = start_child();
    if (pid == 0) {
        hold(seg);
        await_death(ready);
    }
    told(ready, 1);
    return pid;
}

static void holds_both(shmt_segment *seg) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_try_acquire(seg, &slot), 0);
}

static void holds_nothing(shmt_segment *seg) { CHECK_EQ(shmt_member_join(seg), 0); }

static void put_tagged(shmt_segment *seg, uint64_t tag) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    CHECK_EQ(shmt_slot_publish(seg, &slot, 8, tag), 0);
}

static void each_slot_and_then_the_member(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_death_cursor cursor;
    shmt_death death;
    shmt_death_begin(seg, &cursor);
    put_tagged(seg, 4711);
    pid_t pid = start_holder(seg, holds_both);
    CHECK_EQ(shmt_reclaim(seg), 0);
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN); /* alive */
    kill_child(pid);
    CHECK_EQ(shmt_reclaim(seg), 1);
    int writing = 0, reading = 0;
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(shmt_death_next(seg, &cursor, &death), 0);
        CHECK_EQ(death.pid, (uint32_t)pid);
        CHECK(death.slot < 4 && death.joined_ns > 0 && death.found_ns > death.joined_ns);
        writing += !death.reading;
        reading += death.reading && death.tag == 4711 && death.tries == 0;
    }
    CHECK(writing == 1 && reading == 1);
    uint32_t member = death.member;
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), 0);
    CHECK_EQ(death.slot, SHMT_NO_SLOT);
    CHECK_EQ(death.member, member);
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN);
    CHECK_EQ(cursor.missed, 0);
    shmt_segment_drop(seg);
}

static void one_who_leaves_is_no_death(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_death_cursor cursor;
    shmt_death death;
    shmt_death_begin(seg, &cursor);
    pid_t pid = start_child();
    if (pid == 0) {
        holds_nothing(seg);
        shmt_segment_drop(seg);
        _exit(0);
    }
    child_ok(pid);
    CHECK_EQ(shmt_reclaim(seg), 0);
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN);
    shmt_segment_drop(seg);
}

static void a_joiner_tells_of_whom_it_replaces(void) {
    shmt_config config = {.slot_nbytes = 64, .slots = 4, .members = 2};
    shmt_segment *seg;
    CHECK_EQ(shmt_segment_create(&config, &seg), 0);
    shmt_death_cursor cursor;
    shmt_death death;
    shmt_death_begin(seg, &cursor);
    pid_t first = start_holder(seg, holds_nothing);
    kill_child(first);
    pid_t second = start_holder(seg, holds_nothing); /* two places: it takes over the dead one's */
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), 0);
    CHECK(death.pid == (uint32_t)first && death.slot == SHMT_NO_SLOT);
    kill_child(second);
    CHECK_EQ(shmt_reclaim(seg), 1);
    CHECK_EQ(stats_of(seg).reclaimed, 2);
    shmt_segment_drop(seg);
}

static void what_was_overwritten_is_counted(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_death_cursor cursor;
    shmt_death death;
    shmt_death_begin(seg, &cursor);
    const uint32_t lap = seg->geo.deaths;
    for (uint32_t i = 0; i < lap + 5; i++) {
        shmt_death_record(seg, 1, SHMT_NO_SLOT, 0, i);
    }
    for (uint32_t i = 5; i < lap + 5; i++) {
        CHECK_EQ(shmt_death_next(seg, &cursor, &death), 0);
        CHECK_EQ(death.tag, i);
    }
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN);
    CHECK_EQ(cursor.missed, 5);
    shmt_segment_drop(seg);
}

static void an_unfinished_record_holds_nobody_up(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_death_cursor cursor;
    shmt_death death;
    shmt_death_begin(seg, &cursor);
    shmt_death_record(seg, 1, 0, 0, 1);
    shmt_store_relaxed(&seg->deaths[0].seq, 0); /* as if its writer had died */
    shmt_death_record(seg, 1, 1, 0, 2);
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN);
    CHECK(cursor.unfinished_ns != 0);
    cursor.unfinished_ns -= 2000 * MS;
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), 0);
    CHECK_EQ(death.slot, 1);
    CHECK_EQ(cursor.missed, 1);
    shmt_segment_drop(seg);
}

/* After one that was given up a later one that somebody is just writing has a second of its own. */
static void each_unfinished_record_has_its_time(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_death_cursor cursor;
    shmt_death death;
    shmt_death_begin(seg, &cursor);
    shmt_death_record(seg, 1, 0, 0, 1);
    shmt_store_relaxed(&seg->deaths[0].seq, 0); /* as if its writer had died */
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN);
    cursor.unfinished_ns -= 2000 * MS;
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN);
    CHECK_EQ(cursor.missed, 1);
    shmt_death_record(seg, 1, 1, 0, 2);
    uint64_t whole = shmt_load_relaxed(&seg->deaths[1].seq);
    shmt_store_relaxed(&seg->deaths[1].seq, 0); /* as if its writer were half way */
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN);
    CHECK_EQ(cursor.missed, 1);
    shmt_store_relaxed(&seg->deaths[1].seq, whole);
    CHECK_EQ(shmt_death_next(seg, &cursor, &death), 0);
    CHECK_EQ(death.slot, 1);
    shmt_segment_drop(seg);
}

static void nonsense_is_passed_over(void) {
    shmt_segment *seg = make(4, 0, 0);
    shmt_death_cursor cursor;
    shmt_death death;
    for (int what = 0; what < 7; what++) {
        shmt_death_begin(seg, &cursor);
        uint64_t p = cursor.position;
        shmt_death_record(seg, 1, 2, 0, 3);
        shmt_death_cell *cell = &seg->deaths[p & (seg->geo.deaths - 1)];
        shmt_atomic64 *words[] = {&cell->who, &cell->word, &cell->tag, &cell->joined, &cell->found, &cell->sum};
        if (what < 6) {
            shmt_store_relaxed(words[what], shmt_load_relaxed(words[what]) ^ UINT64_C(0x10000));
        } else {
            shmt_store_relaxed(&seg->header->death_seq, p - 1000); /* a cursor that is ahead of the log */
        }
        for (int turn = 0; turn < 2; turn++) {
            CHECK_EQ(shmt_death_next(seg, &cursor, &death), -EAGAIN);
            cursor.unfinished_ns -= cursor.unfinished_ns ? 2000 * MS : 0;
        }
        CHECK(cursor.missed >= 1);
    }
    shmt_store_relaxed(&seg->header->death_seq, UINT64_MAX);
    for (int i = 0; i < 100; i++) {
        CHECK(shmt_death_next(seg, &cursor, &death) == -EAGAIN);
    }
    shmt_segment_drop(seg);
}

static shmt_segment *shared;

static void *write_records(void *arg) {
    uint32_t id = (uint32_t)(uintptr_t)arg;
    for (uint32_t i = 0; i < (uint32_t)TIMES(200000); i++) {
        shmt_death_record(shared, id, id, UINT64_C(0x100000000) * id + i, i);
    }
    return NULL;
}

/* A reader that is overtaken sees whole records or none. */
static void writers_and_a_reader_at_once(void) {
    shared = make(4, 0, 0);
    shmt_death_cursor cursor;
    shmt_death death;
    shmt_death_begin(shared, &cursor);
    pthread_t writers[2];
    for (uintptr_t id = 1; id <= 2; id++) {
        CHECK_EQ(pthread_create(&writers[id - 1], NULL, write_records, (void *)id), 0);
    }
    uint64_t got = 0, last[3] = {0};
    while (got + cursor.missed < 2 * (uint64_t)TIMES(200000)) {
        if (shmt_death_next(shared, &cursor, &death) != 0) {
            continue;
        }
        got++;
        CHECK(death.member >= 1 && death.member <= 2 && death.slot == death.member);
        CHECK(death.gen == UINT64_C(0x100000000) * death.member + death.tag);
        CHECK(death.tag >= last[death.member]);
        last[death.member] = death.tag;
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(writers[i], NULL);
    }
    CHECK(got > 0);
    shmt_segment_drop(shared);
}

/* A plain segment has no log: where one would begin lie the spec and the payload. */
static void of_a_plain_segment_nothing_is_written(void) {
    char meta[300];
    memset(meta, 'm', sizeof meta);
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 5000, .meta = meta, .meta_nbytes = sizeof meta});
    for (int i = 0; i < 8; i++) { /* each would have written to another place */
        kill_child(start_holder(seg, holds_nothing));
        CHECK_EQ(shmt_reclaim(seg), 1);
        shmt_store_release(&seg->header->death_seq, UINT64_C(1) << (i * 4));
    }
    CHECK_EQ(memcmp(shmt_segment_info(seg)->meta, meta, sizeof meta), 0);
    for (uint64_t i = 0; i < 5000; i++) {
        CHECK_EQ(seg->data[i], 0);
    }
    CHECK_EQ(stats_of(seg).reclaimed, 8);
    shmt_segment_drop(seg);
}

TESTS(TEST(each_slot_and_then_the_member), TEST(one_who_leaves_is_no_death), TEST(a_joiner_tells_of_whom_it_replaces),
      TEST(what_was_overwritten_is_counted), TEST(an_unfinished_record_holds_nobody_up),
      TEST(each_unfinished_record_has_its_time), TEST(nonsense_is_passed_over), TEST(writers_and_a_reader_at_once),
      TEST(of_a_plain_segment_nothing_is_written))
