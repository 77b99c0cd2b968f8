/* What the dead held comes back: from every state, by whoever looks, and from a death between any two instructions. */
#include "step.h"

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

static void holds_writing(shmt_segment *seg) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    memset(slot.data, 0xee, 256);
}

/* Killed between the two steps of publish: durable in the slot word, unknown to the ring. */
static void holds_ready(shmt_segment *seg) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
    memcpy(slot.data, &(uint64_t){77}, 8);
    seg->slots[slot.index].nbytes = 8;
    seg->slots[slot.index].tag = 77;
    CHECK_EQ(shmt_slots_change(seg, slot.index, slot.word,
                               shmt_word(SHMT_READY, shmt_member_id(seg), shmt_word_gen(slot.word))),
             0);
}

static void holds_pushed(shmt_segment *seg) { put(seg, 78); }

static void holds_reading(shmt_segment *seg) { get(seg); }

static void holds_nothing(shmt_segment *seg) { CHECK_EQ(shmt_member_join(seg), 0); }

static void nothing_is_left(shmt_segment *seg) {
    shmt_slot slot;
    int rc = shmt_slot_try_acquire(seg, &slot);
    CHECK(rc == -EAGAIN || rc == -EOWNERDEAD); /* the latter where the only producer has died */
    CHECK_EQ(stats_of(seg).free, seg->geo.slots);
    for (uint32_t i = 0; i < seg->geo.slots; i++) {
        CHECK_EQ(slot_of(seg, i).owner, 0);
    }
}

static const uint64_t firsts[] = WRAPS(8); /* of 4 slots */

static void an_item_in_the_making_is_given_up(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(4, 0, firsts[f]);
        pid_t pid = start_holder(seg, holds_writing);
        CHECK_EQ(shmt_reclaim(seg), 0); /* alive */
        CHECK_EQ(stats_of(seg).writing, 1);
        kill_child(pid);
        CHECK_EQ(shmt_reclaim(seg), 1);
        CHECK_EQ(shmt_reclaim(seg), 0);
        nothing_is_left(seg);
        shmt_stats s = stats_of(seg);
        CHECK(s.reclaimed == 1 && s.redelivered == 0 && s.dropped == 0 && s.members == 1);
        shmt_segment_drop(seg);
    }
}

static void a_published_item_that_the_ring_lost_is_found(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(4, f % 2 ? SHMT_DROP : 0, firsts[f]);
        put(seg, 1);
        kill_child(start_holder(seg, holds_ready));
        put(seg, 2);
        CHECK_EQ(get_tag(seg), 1);
        CHECK_EQ(get_tag(seg), 2);
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_acquire(seg, &slot), -EAGAIN);
        CHECK_EQ(shmt_reclaim(seg), 1);
        slot = get(seg);
        CHECK_EQ(slot.tag, 77);
        CHECK_EQ(slot.tries, 0); /* nobody has seen it yet */
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        nothing_is_left(seg);
        CHECK_EQ(stats_of(seg).redelivered, 0);
        shmt_segment_drop(seg);
    }
}

static void a_published_item_in_the_ring_keeps_its_place(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(4, 0, firsts[f]);
        put(seg, 1);
        kill_child(start_holder(seg, holds_pushed));
        put(seg, 2);
        uint64_t publishes = stats_of(seg).publishes;
        CHECK_EQ(shmt_reclaim(seg), 1);
        CHECK_EQ(stats_of(seg).publishes, publishes); /* not pushed twice */
        for (uint32_t i = 0; i < 4; i++) {
            CHECK(slot_of(seg, i).owner == 0 || slot_of(seg, i).owner == shmt_member_id(seg));
        }
        CHECK_EQ(get_tag(seg), 1);
        CHECK_EQ(get_tag(seg), 78);
        CHECK_EQ(get_tag(seg), 2);
        nothing_is_left(seg);
        shmt_segment_drop(seg);
    }
}

static void an_item_being_read_is_redelivered(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(4, 0, firsts[f]);
        put(seg, 5);
        for (uint32_t death = 1; death <= SHMT_TRIES_MAX; death++) {
            kill_child(start_holder(seg, holds_reading));
            CHECK_EQ(shmt_reclaim(seg), 1);
            CHECK_EQ(stats_of(seg).redelivered, death);
            CHECK_EQ(stats_of(seg).ready, 1);
            CHECK_EQ(stats_of(seg).claims, 1);
        }
        shmt_slot slot = get(seg);
        CHECK_EQ(slot.tag, 5);
        CHECK_EQ(slot.tries, SHMT_TRIES_MAX);
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        put(seg, 6);
        slot = get(seg);
        CHECK_EQ(slot.tries, 0); /* the next item in that slot begins afresh */
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        nothing_is_left(seg);
        CHECK_EQ(stats_of(seg).dropped, 0);
        shmt_segment_drop(seg);
    }
}

static void an_item_that_kills_four_readers_is_dropped(void) {
    shmt_segment *seg = make(2, 0, 0);
    put(seg, 5);
    for (uint32_t death = 1; death <= SHMT_TRIES_MAX + 1; death++) {
        kill_child(start_holder(seg, holds_reading));
        CHECK_EQ(shmt_reclaim(seg), 1);
    }
    nothing_is_left(seg);
    CHECK_EQ(stats_of(seg).redelivered, SHMT_TRIES_MAX);
    CHECK_EQ(stats_of(seg).dropped, 1);
    CHECK_EQ(stats_of(seg).reclaimed, SHMT_TRIES_MAX + 1);
    shmt_segment_drop(seg);
}

static void with_drop_it_is_dropped_at_once(void) {
    shmt_segment *seg = make(4, SHMT_DROP, 0);
    put(seg, 5);
    put(seg, 6);
    kill_child(start_holder(seg, holds_reading));
    CHECK_EQ(shmt_reclaim(seg), 1);
    CHECK_EQ(get_tag(seg), 6);
    nothing_is_left(seg);
    CHECK_EQ(stats_of(seg).dropped, 1);
    CHECK_EQ(stats_of(seg).redelivered, 0);
    shmt_segment_drop(seg);
}

static void another_process_may_do_it(void) {
    shmt_segment *seg = make(4, 0, 0);
    put(seg, 5);
    kill_child(start_holder(seg, holds_reading));
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_segment *mine = peer_of(seg);
        CHECK_EQ(shmt_reclaim(mine), 1);
        shmt_segment_drop(mine);
        shmt_segment_drop(seg);
        _exit(0);
    }
    child_ok(pid);
    CHECK_EQ(shmt_reclaim(seg), 0);
    CHECK_EQ(get_tag(seg), 5);
    nothing_is_left(seg);
    shmt_segment_drop(seg);
}

/* What was published stays, though its producer is gone; and that is no death. */
static void leaving_is_not_dying(void) {
    shmt_segment *seg = make(4, 0, 0), *producer = peer_of(seg);
    put(producer, 1);
    put(producer, 2);
    shmt_segment_drop(producer);
    CHECK_EQ(shmt_reclaim(seg), 0);
    CHECK_EQ(stats_of(seg).reclaimed, 0);
    CHECK_EQ(get_tag(seg), 1);
    CHECK_EQ(get_tag(seg), 2);
    nothing_is_left(seg);
    shmt_segment_drop(seg);
}

static void several_at_once(void) {
    shmt_segment *seg = make(8, 0, 0);
    put(seg, 5);
    pid_t pids[] = {start_holder(seg, holds_reading), start_holder(seg, holds_writing), start_holder(seg, holds_ready),
                    start_holder(seg, holds_nothing), start_holder(seg, holds_writing)};
    CHECK_EQ(shmt_reclaim(seg), 0);
    for (int i = 0; i < 4; i++) {
        kill_child(pids[i]);
    }
    CHECK_EQ(shmt_reclaim(seg), 4);
    CHECK_EQ(stats_of(seg).writing, 1); /* of the one that lives */
    kill_child(pids[4]);
    CHECK_EQ(shmt_reclaim(seg), 1);
    uint64_t a = get_tag(seg), b = get_tag(seg);
    CHECK((a == 5 && b == 77) || (a == 77 && b == 5));
    nothing_is_left(seg);
    shmt_segment_drop(seg);
}

static void a_stopped_member_is_alive(void) {
    shmt_segment *seg = make(1, 0, 0);
    shmt_atomic32 *go = new_signal();
    pid_t pid = start_child();
    if (pid == 0) {
        shmt_slot slot;
        CHECK_EQ(shmt_slot_try_claim(seg, &slot), 0);
        memcpy(slot.data, &(uint64_t){4}, 8);
        tell(go, 1);
        told(go, 2);
        CHECK_EQ(shmt_slot_publish(seg, &slot, 8, 4), 0);
        shmt_segment_drop(seg);
        _exit(0);
    }
    told(go, 1);
    CHECK_EQ(kill(pid, SIGSTOP), 0);
    int status;
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status));
    for (int i = 0; i < 200; i++) {
        CHECK_EQ(shmt_reclaim(seg), 0);
    }
    shmt_slot slot;
    CHECK_EQ(shmt_slot_claim(seg, after_ms(250), &slot), -ETIMEDOUT); /* two slices, in which it is looked at */
    CHECK_EQ(kill(pid, SIGCONT), 0);
    tell(go, 2);
    child_ok(pid);
    CHECK_EQ(get_tag(seg), 4);
    CHECK_EQ(stats_of(seg).reclaimed, 0);
    shmt_segment_drop(seg);
    free_signal(go);
}

/* Nobody has waited for it yet, so its pid still answers to kill(pid, 0); its lock does not. */
static void a_zombie_is_dead(void) {
    shmt_segment *seg = make(1, 0, 0);
    pid_t pid = start_holder(seg, holds_writing);
    CHECK_EQ(kill(pid, SIGKILL), 0);
    int64_t end = after_ms(5000);
    while (shmt_reclaim(seg) == 0) {
        CHECK(shmt_now_ns() < end);
        sleep_ms(1);
    }
    CHECK_EQ(kill(pid, 0), 0);
    nothing_is_left(seg);
    child_status(pid);
    shmt_segment_drop(seg);
}

static void who_waits_notices(void) {
    shmt_segment *seg = make(1, 0, 0);
    shmt_slot slot;
    kill_child(start_holder(seg, holds_writing));
    int64_t begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_claim(seg, after_ms(5000), &slot), 0); /* a claim, for a slot that the dead did not free */
    CHECK(shmt_now_ns() - begin < 600 * MS);
    CHECK_EQ(shmt_slot_abort(seg, &slot), 0);
    kill_child(start_holder(seg, holds_ready));
    begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), 0); /* an acquire, for an item that the ring lost */
    CHECK(shmt_now_ns() - begin < 600 * MS);
    CHECK_EQ(slot.tag, 77);
    CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    put(seg, 3);
    kill_child(start_holder(seg, holds_reading));
    begin = shmt_now_ns();
    CHECK_EQ(shmt_slot_acquire(seg, after_ms(5000), &slot), 0); /* and for one that is to be redelivered */
    CHECK(shmt_now_ns() - begin < 600 * MS);
    CHECK(slot.tag == 3 && slot.tries == 1);
    shmt_segment_drop(seg);
}

/* The only free place is the dead one's: whoever takes it settles what was left there. */
static void joining_settles_what_the_last_holder_left(void) {
    shmt_segment *seg = make_config((shmt_config){.slot_nbytes = 256, .slots = 4, .members = 2});
    put(seg, 5);
    kill_child(start_holder(seg, holds_reading));
    CHECK_EQ(stats_of(seg).reading, 1);
    shmt_segment *peer = peer_of(seg);
    CHECK_EQ(stats_of(seg).reading, 0);
    shmt_slot slot = get(peer);
    CHECK(slot.tag == 5 && slot.tries == 1);
    CHECK_EQ(shmt_slot_release(peer, &slot), 0);
    nothing_is_left(seg);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

static void one_reclaimer_at_a_time(void) {
    shmt_segment *seg = make(4, 0, 0), *peer = peer_of(seg);
    kill_child(start_holder(seg, holds_writing));
    uint32_t dead = slot_of(seg, 0).owner;
    for (uint32_t i = 1; dead == 0; i++) {
        dead = slot_of(seg, i).owner;
    }
    CHECK_EQ(shmt_member_try_lock(peer, dead), 1); /* somebody is at it */
    CHECK_EQ(shmt_reclaim(seg), 0);
    CHECK_EQ(stats_of(seg).writing, 1);
    shmt_member_unlock(peer, dead); /* and died */
    CHECK_EQ(shmt_reclaim(seg), 1);
    nothing_is_left(seg);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

/* A reclaimer that died between making the item its own and pushing it. */
static void a_reclaimer_that_died_half_way(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(4, 0, firsts[f]);
        put(seg, 5);
        shmt_slot slot = get(seg);
        kill_child(start_holder(seg, holds_nothing));
        uint32_t dead = 0;
        for (uint32_t id = 1; id <= 16; id++) {
            shmt_member_info info;
            dead = shmt_member_info_get(seg, id, &info) == 0 && !info.alive ? id : dead;
        }
        CHECK(dead != 0);
        uint64_t gen = shmt_word_gen(slot.word) + 1;
        CHECK_EQ(shmt_slots_change(seg, slot.index, slot.word, shmt_word(SHMT_READY | 2, dead, gen)), 0);
        CHECK_EQ(shmt_reclaim(seg), 1);
        slot = get(seg);
        CHECK(slot.tag == 5 && slot.tries == 2);
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
        nothing_is_left(seg);
        shmt_segment_drop(seg);
    }
}

/* Taken for dead though alive (its lock was closed under it): its leases are lost, and nobody's item is touched. */
static void holds_two_readings(shmt_segment *seg) {
    get(seg);
    get(seg);
}

static void holds_two_ready(shmt_segment *seg) {
    holds_ready(seg);
    holds_ready(seg);
}

/* Words that no step of ours leaves: a free slot that has an owner, and a ring that has no room. */
static void corrupt_words_of_the_dead(void) {
    for (int f = 0; f < N_WRAPS; f++) {
        shmt_segment *seg = make(4, 0, firsts[f]);
        pid_t pid = start_holder(seg, holds_writing);
        uint64_t free_of_the_dead = shmt_word(SHMT_FREE, slot_of(seg, 0).owner, slot_of(seg, 0).gen);
        CHECK_EQ(shmt_slots_change(seg, 0, word_of(seg, 0), free_of_the_dead), 0);
        kill_child(pid);
        CHECK_EQ(shmt_reclaim(seg), 1);
        CHECK_EQ(word_of(seg, 0), (int64_t)free_of_the_dead);
        shmt_segment_drop(seg);

        static void (*const held[])(shmt_segment *) = {holds_two_readings, holds_two_ready};
        for (int h = 0; h < 2; h++) {
            seg = make(4, 0, firsts[f]);
            put(seg, 1);
            put(seg, 2);
            pid = start_holder(seg, held[h]);
            while (shmt_order_push(seg, 3, 9) == 0) { /* stale cells, one after the other */
            }
            kill_child(pid);
            CHECK_EQ(shmt_reclaim(seg), -EUCLEAN);
            shmt_slot slot;
            while (shmt_slot_try_acquire(seg, &slot) == 0) { /* passes the stale ones over: there is room again */
                CHECK_EQ(shmt_slot_release(seg, &slot), 0);
            }
            CHECK_EQ(stats_of(seg).writing, 0);
            shmt_segment_drop(seg);
        }
    }
}

static void who_was_taken_for_dead_changes_nothing(void) {
    shmt_segment *seg = make(2, 0, 0), *peer = peer_of(seg);
    shmt_slot writing, reading, other;
    put(peer, 1);
    CHECK_EQ(shmt_slot_try_acquire(seg, &reading), 0);
    CHECK_EQ(shmt_slot_try_claim(seg, &writing), 0);
    shmt_member_unlock(seg, shmt_member_id(seg));
    CHECK_EQ(shmt_reclaim(peer), 1);
    CHECK_EQ(shmt_slot_release(seg, &reading), -ESTALE);
    do { /* the slot that was being written is another's by now */
        CHECK_EQ(shmt_slot_try_claim(peer, &other), 0);
    } while (other.index != writing.index);
    CHECK_EQ(shmt_slot_publish(peer, &other, 8, 50), 0);
    CHECK_EQ(shmt_slot_publish(seg, &writing, 100, 99), -ESTALE);
    CHECK_EQ(shmt_slot_abort(seg, &writing), -ESTALE);
    CHECK_EQ(get_tag(peer), 1);
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(peer, &slot), 0);
    CHECK_EQ(slot.nbytes, 8);
    CHECK_EQ(slot.tag, 50);
    shmt_segment_drop(peer);
    shmt_segment_drop(seg);
}

/* ---- a death after every instruction ------------------------------------------------------------------------------------ */

static shmt_segment *victim_of;
static shmt_atomic32 *progress;

static void join(void) { CHECK_EQ(shmt_member_join(victim_of), 0); }

static void produce(void) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_claim(victim_of, &slot), 0);
    *(uint64_t *)(void *)slot.data = 100;
    shmt_store_release(progress, 1);
    CHECK_EQ(shmt_slot_publish(victim_of, &slot, 8, 100), 0);
    shmt_store_release(progress, 2);
}

static void consume(void) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(victim_of, &slot), 0);
    shmt_store_release(progress, 1);
    CHECK_EQ(shmt_slot_release(victim_of, &slot), 0);
    shmt_store_release(progress, 2);
}

static void requeue(void) {
    shmt_slot slot;
    CHECK_EQ(shmt_slot_try_acquire(victim_of, &slot), 0);
    CHECK_EQ(shmt_slot_requeue(victim_of, &slot), 0);
    shmt_store_release(progress, 2);
}

static void reclaim(void) {
    CHECK_EQ(shmt_reclaim(victim_of), 1);
    shmt_store_release(progress, 2);
}

/* Drains the segment into `seen`, a count per tag; true if all of it came in the order of the tags. */
static bool drain(shmt_segment *seg, int *seen, uint32_t *tries) {
    shmt_slot slot;
    uint64_t last = 0;
    bool ordered = true;
    while (shmt_slot_try_acquire(seg, &slot) == 0) {
        uint64_t payload;
        memcpy(&payload, slot.data, 8);
        CHECK(slot.nbytes == 8 && payload == slot.tag && slot.tag <= 100);
        seen[slot.tag]++;
        tries[slot.tag] = slot.tries;
        ordered = ordered && slot.tag > last;
        last = slot.tag;
        CHECK_EQ(shmt_slot_release(seg, &slot), 0);
    }
    return ordered;
}

/* The death of the one who read `tag` is told, after what it held. */
static void told_of(shmt_segment *seg, shmt_death_cursor *cursor, uint64_t tag) {
    shmt_death death;
    uint32_t reader = 0;
    bool told = false;
    while (!told) {
        int rc = shmt_death_next(seg, cursor, &death);
        if (rc == -EAGAIN && cursor->unfinished_ns != 0) {
            cursor->unfinished_ns -= 2000 * MS; /* whose writer was killed */
            continue;
        }
        CHECK_EQ(rc, 0);
        if (death.slot != SHMT_NO_SLOT && death.reading && death.tag == tag) {
            reader = death.member;
        }
        told = death.slot == SHMT_NO_SLOT && death.member == reader;
    }
}

typedef struct scene {
    void (*prepare)(void);
    void (*body)(void);
    bool dead_peer;
    uint32_t flags;
    uint64_t stride; /* in instructions: what is long is not stopped at each of them, unless EVERY_STEP is set */
} scene;

/* How many points there were. */
static uint64_t die_everywhere(const scene *s, uint64_t seq_first, uint64_t stride) {
    progress = new_signal();
    uint64_t points = 0;
    for (uint64_t n = 0;; n += stride) {
        shmt_segment *seg = victim_of = make_config(
            (shmt_config){.slot_nbytes = 256, .slots = 4, .members = 4, .flags = s->flags, .seq_first = seq_first});
        int seen[101] = {0};
        uint32_t tries[101] = {0};
        step_child child;
        shmt_death_cursor cursor;
        shmt_death_begin(seg, &cursor);
        shmt_store_release(progress, 0);
        put(seg, 1);
        put(seg, 2);
        if (s->dead_peer) {
            kill_child(start_holder(seg, holds_reading)); /* of 1 */
            CHECK_EQ(shmt_member_join(seg), 0);
        }
        bool stopped = step_start(&child, s->prepare, s->body, n);
        if (stopped) {
            step_kill(&child);
        }
        uint32_t reached = shmt_load_acquire(progress);
        CHECK(shmt_reclaim(seg) >= 0);
        bool ordered = drain(seg, seen, tries);
        nothing_is_left(seg); /* no slot is leaked */
        CHECK_EQ(seen[2], 1); /* nobody else's item is lost or doubled */
        if (s->body == produce) {
            CHECK(ordered && seen[1] == 1);
            CHECK(seen[100] == 1 || (seen[100] == 0 && reached < 2));
        } else if (s->body == consume) {
            CHECK(seen[1] == 1 || (seen[1] == 0 && (reached >= 1 || (s->flags & SHMT_DROP))));
            CHECK(seen[1] == 0 || reached < 2);
            CHECK(seen[1] == 0 || tries[1] == 0 || (tries[1] == 1 && !(s->flags & SHMT_DROP)));
        } else if (s->body == requeue) {
            CHECK(seen[1] == 1 && tries[1] <= 1);
        } else if (s->body == reclaim) {
            CHECK(seen[1] == 1 && tries[1] == 1);
            told_of(seg, &cursor, 1);
        } else {
            CHECK(ordered && seen[1] == 1);
        }
        for (uint64_t i = 1; i <= 6; i++) { /* and all goes on */
            put(seg, i);
            CHECK_EQ(get_tag(seg), i);
        }
        shmt_segment_drop(seg);
        points++;
        if (!stopped) {
            break;
        }
    }
    free_signal(progress);
    return points;
}

static void dies(const scene *s) {
    NEEDS_STEPS();
    const bool every = getenv("EVERY_STEP") != NULL;
    const uint64_t stride = every ? 1 : s->stride;
    uint64_t points = die_everywhere(s, 0, stride);
    for (int f = 2; f < N_WRAPS; f++) { /* just before each of the wraps */
        points += die_everywhere(s, firsts[f], every ? stride : 7 * stride);
    }
    CHECK(points > 30);
    printf("  %" PRIu64 " points\n", points);
}

static void nothing(void) {}
static void leave(void) { shmt_segment_drop(victim_of); }

static void a_producer_dies_anywhere(void) { dies(&(scene){join, produce, false, 0, 2}); }
static void a_consumer_dies_anywhere(void) { dies(&(scene){join, consume, false, 0, 2}); }
static void a_consumer_dies_anywhere_with_drop(void) { dies(&(scene){join, consume, false, SHMT_DROP, 3}); }
static void one_who_requeues_dies_anywhere(void) { dies(&(scene){join, requeue, false, 0, 3}); }
static void a_reclaimer_dies_anywhere(void) { dies(&(scene){join, reclaim, true, 0, 7}); }
static void a_member_dies_while_it_joins(void) { dies(&(scene){nothing, join, false, 0, 17}); }
static void a_member_dies_while_it_leaves(void) { dies(&(scene){join, leave, false, 0, 7}); }

TESTS(TEST(an_item_in_the_making_is_given_up), TEST(a_published_item_that_the_ring_lost_is_found),
      TEST(a_published_item_in_the_ring_keeps_its_place), TEST(an_item_being_read_is_redelivered),
      TEST(an_item_that_kills_four_readers_is_dropped), TEST(with_drop_it_is_dropped_at_once),
      TEST(another_process_may_do_it), TEST(leaving_is_not_dying), TEST(several_at_once),
      TEST(a_stopped_member_is_alive), TEST(a_zombie_is_dead), TEST(who_waits_notices),
      TEST(joining_settles_what_the_last_holder_left), TEST(one_reclaimer_at_a_time),
      TEST(a_reclaimer_that_died_half_way), TEST(who_was_taken_for_dead_changes_nothing),
      TEST(a_producer_dies_anywhere), TEST(a_consumer_dies_anywhere), TEST(a_consumer_dies_anywhere_with_drop),
      TEST(one_who_requeues_dies_anywhere), TEST(a_reclaimer_dies_anywhere), TEST(a_member_dies_while_it_joins),
      TEST(corrupt_words_of_the_dead), TEST(a_member_dies_while_it_leaves))
