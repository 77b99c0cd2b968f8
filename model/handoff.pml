/* handoff.pml - claim, publish, push, take, release, abort, reclaim, join: does a kill before any step lose, double or
 * leak anything?
 *
 * One line of csrc/ that touches shared memory is one step here. Whoever is mortal may die instead of any step (DIE), as
 * long as `crashes` lasts: the kernel then frees its lock byte. Memory is sequentially consistent (model/weak is about what
 * is not), and nobody sleeps: whoever has nothing to do blocks until there is something (event.pml has the sleeping).
 *
 * Producers are members 1..NP, consumers NP+1..NP+NC, then come NR members that only reclaim. The last consumer never dies:
 * the survivor, who takes and reclaims, and for whom the promises must hold. NJ=1: one more process joins, under the first
 * free lock byte it finds, and produces one item. tests/test_model.py has the configurations and the mutants. */
#ifndef NP
#define NP 2
#endif
#ifndef NC
#define NC 1
#endif
#ifndef NR
#define NR 0
#endif
#ifndef NJ
#define NJ 0
#endif
#ifndef K
#define K 1         /* items of each producer */
#endif
#ifndef K1
#define K1 K        /* of the first one: at most K */
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef BATCH
#define BATCH 1     /* claimed, published and taken at once, at most */
#endif
#ifndef CRASHES
#define CRASHES 1   /* how many may die */
#endif
#ifndef ABORTS
#define ABORTS 0    /* claims that each producer may give up instead of publishing */
#endif
#ifndef TRIES_MAX
#define TRIES_MAX 3 /* redeliveries of an item before it is dropped */
#endif
#ifndef LAPS
#define LAPS 4      /* the lap of a cell is counted modulo this (2^24 in csrc/layout.h) */
#endif
#ifndef GENS
#define GENS 4      /* likewise the generation in a cell; that in a slot word does not wrap in so short a run */
#endif
#ifndef START
#define START 30    /* seq_first: where both sequences and the generations begin; here just below the wrap of all three */
#endif
/* Switches: DROP: on_consumer_death="drop". LEAVE: producers leave after their last item, alive. TWICE: consumers release
 * a slot once more, as a stale handle would, when they have the next one. DISORDER: say nothing about the order. And the mutants, MUTANT_...,
 * each at its place. */

#if SLOTS > 2
#define RING 8 /* the power of two >= 2 * SLOTS */
#else
#define RING (2 * SLOTS)
#endif
#define IDS (NP + NC + NR)
#define SURVIVOR (NP + NC)
#define ITEMS (NP * K + NJ)

/* ---- layout.h: slot word = state, owner, gen; cell = lap, gen, index -------------------------------------------------- */
#define WORD(s, o, g) ((s) * 1024 + (o) * 64 + (g))
#define STATE(w) ((w) >> 10)
#define OWNER(w) (((w) >> 6) & 15)
#define GEN(w) ((w) & 63)
#define FREE 0
#define WRITING 1
#define READY 4   /* 4..7: tries */
#define READING 8 /* 8..11 */
#define IS_FREE(w) (STATE(w) == FREE)
#define IS_READY(w) ((STATE(w) & 12) == READY)
#define IS_READING(w) ((STATE(w) & 12) == READING)
#define TRIES(w) (STATE(w) & 3)
#define CELL(l, g, i) ((l) * 512 + ((g) % GENS) * 8 + (i))
#define CELL_LAP(c) ((c) >> 9)
#define CELL_GEN(c) (((c) >> 3) & 63)
#define CELL_INDEX(c) ((c) & 7)
#define LAP(p) (((p) / RING) % LAPS)
#define BEFORE(p) (((p) / RING + LAPS - 1) % LAPS)
#define AT(p) ((p) % RING)

short slot[SLOTS], cell[RING];
byte write_seq = START, read_seq = START;
byte crashes = CRASHES;
bool lock[IDS + 1], known[IDS + 1]; /* the kernel's lock byte; the member record, as far as its pid goes */

#ifdef DROP
#define MAX 0
#else
#define MAX TRIES_MAX
#endif

/* What is to be proved, seen by nobody in the model. */
byte data[SLOTS];        /* the item in each slot */
bool published[ITEMS];
bool settled[ITEMS];     /* released by a living consumer, or given up by the policy */
byte takes[ITEMS];       /* how often it was handed out */
byte last[NP + NJ];      /* 1 + the last item of each producer that was handed out for the first time */
bool done[IDS + NJ + 1]; /* the producer has done all it wanted, or died */

#define DIE atomic { crashes > 0 && id != SURVIVOR -> crashes--; goto gone }
#define BURY lock[id] = false; if :: held != 0 -> UNLOCK_DEAD :: else fi
#define STEP(x) if :: atomic { x } :: DIE fi

/* ---- order.c ------------------------------------------------------------------------------------------------------------ */

inline move_write_seq() { if :: write_seq == p -> write_seq++ :: else fi }
inline move_read_seq() { if :: read_seq == p -> read_seq++ :: else fi }

/* shmt_order_push(). The assertions are its -EUCLEAN: a ring that is full, a cell of neither lap. */
inline push(index, generation) {
    do
    :: STEP(p = write_seq; assert(p < read_seq + RING));
       STEP(c = cell[AT(p)]);
#ifdef MUTANT_NO_RECHECK /* between the two loads the sequence may have come round, all but one lap */
       ok = true;
#else
       STEP(ok = (write_seq == p));
#endif
       if
       :: !ok
       :: ok && CELL_LAP(c) == BEFORE(p) ->
#ifdef MUTANT_TICKET_FIRST /* write_seq before the cell */
          STEP(ok = (write_seq == p); if :: ok -> write_seq++ :: else fi);
          if :: ok -> STEP(cell[AT(p)] = CELL(LAP(p), generation, index)); break :: else fi
#else
          STEP(ok = (cell[AT(p)] == c); if :: ok -> cell[AT(p)] = CELL(LAP(p), generation, index) :: else fi);
          if :: ok -> STEP(move_write_seq()); break :: else fi
#endif
       :: ok && CELL_LAP(c) == LAP(p) -> STEP(move_write_seq()) /* help whoever pushed here and stopped */
       :: else -> STEP(assert(write_seq != p))
       fi
    od;
    p = 0; c = 0; ok = false
}

#define NOT_EMPTY (CELL_LAP(cell[AT(read_seq)]) == LAP(read_seq))

/* shmt_slots_take(): READY -> READING; ok says whether. */
inline take_slot() {
    STEP(w = slot[CELL_INDEX(c)]);
    do
    :: IS_READY(w) && GEN(w) % GENS == CELL_GEN(c) ->
       STEP(if
            :: slot[CELL_INDEX(c)] == w ->
               w = WORD(READING + TRIES(w), id, GEN(w));
               slot[CELL_INDEX(c)] = w;
               x = data[CELL_INDEX(c)];
               assert(published[x] && !settled[x]);
               assert(takes[x] == TRIES(w)); /* never again, unless it is flagged; once for each death */
               assert(takes[x] <= MAX);      /* and not for ever */
               takes[x]++;
#ifndef DISORDER
               if
               :: TRIES(w) == 0 -> assert(last[x / K] < x + 1); last[x / K] = x + 1 /* each producer's own order */
               :: else
               fi;
#endif
               x = 0;
               ok = true
            :: else -> w = slot[CELL_INDEX(c)] /* what a failed compare-and-swap returns */
            fi);
       if :: ok -> break :: else fi
    :: else -> break
    od
}

/* shmt_order_take(): mine[0..got-1] are the words of the slots first..first+got-1. */
inline take() {
    do
    :: STEP(p = read_seq);
       STEP(c = cell[AT(p)]);
       if
       :: CELL_LAP(c) != LAP(p) && got > 0 -> break
       :: CELL_LAP(c) != LAP(p) && got == 0 ->
          STEP(ok = (read_seq == p));
          if
          :: ok -> ok = false; assert(CELL_LAP(c) == BEFORE(p)); break /* empty; else -EUCLEAN */
          :: else
          fi
       :: CELL_LAP(c) == LAP(p) && got > 0 && CELL_INDEX(c) != first + got -> break
       :: else ->
#ifdef MUTANT_SEQ_FIRST /* read_seq on before the slot is ours */
          STEP(move_read_seq());
#endif
          take_slot();
          STEP(move_read_seq());
          if
          :: ok ->
             ok = false;
             if :: got == 0 -> first = CELL_INDEX(c) :: else fi;
             mine[got] = w;
             got++;
             if :: got == BATCH -> break :: else fi
          :: !ok && got > 0 -> break
          :: else /* a stale cell: on to the next */
          fi
       fi
    od;
    p = 0; c = 0; w = 0
}

/* ---- handoff.c and the claim of slots.c ------------------------------------------------------------------------------- */

#ifdef MUTANT_RELEASE_ANY /* release compares the state, not the whole word */
#define STILL(index, word) IS_READING(slot[index])
#else
#define STILL(index, word) (slot[index] == (word))
#endif
#ifdef MUTANT_CLAIM_SAME_GEN
#define CLAIMED(g) (g)
#else
#define CLAIMED(g) ((g) + 1)
#endif

inline release() {
    k = 0;
#ifdef TWICE
    if
    :: old_word != 0 -> STEP(if :: STILL(old, old_word) -> slot[old] = WORD(FREE, 0, GEN(old_word)) :: else fi)
    :: else
    fi;
    old = first; old_word = mine[0];
#endif
    do
    :: k < got ->
       STEP(assert(slot[first + k] == mine[k]); /* a living owner never loses its slot */
            slot[first + k] = WORD(FREE, 0, GEN(mine[k]));
            settled[data[first + k]] = true);
       mine[k] = 0;
       k++
    :: else -> break
    od;
    k = 0; got = 0; first = 0
}

/* Cursors may stand anywhere: the first slot is any that is free. Then its neighbours, as long as they are free. */
inline claim(n) {
    do
    :: atomic { IS_FREE(slot[0]) -> first = 0; w = slot[0] }; claim_one(); if :: got -> break :: else fi
#if SLOTS > 1
    :: atomic { IS_FREE(slot[1]) -> first = 1; w = slot[1] }; claim_one(); if :: got -> break :: else fi
#endif
#if SLOTS > 2
    :: atomic { IS_FREE(slot[2]) -> first = 2; w = slot[2] }; claim_one(); if :: got -> break :: else fi
#endif
    :: DIE
    od;
#if BATCH > 1
    do
    :: got < n && first + got < SLOTS ->
       STEP(w = slot[first + got]);
       if :: IS_FREE(w) -> k = got; claim_one(); if :: got == k -> break :: else fi :: else -> break fi
    :: else -> break
    od;
    k = 0;
#endif
    w = 0
}
inline claim_one() {
    STEP(if
         :: slot[first + got] == w ->
            mine[got] = WORD(WRITING, id, CLAIMED(GEN(w)));
            slot[first + got] = mine[got];
            got++
         :: else
         fi)
}

inline publish(item) { /* slot first + k */
#ifdef MUTANT_PUSH_BEFORE_PUBLISH
    push(first + k, GEN(mine[k]));
#endif
    STEP(assert(slot[first + k] == mine[k]);
         slot[first + k] = WORD(READY, id, GEN(mine[k]));
         data[first + k] = item;
         published[item] = true);
#ifndef MUTANT_PUSH_BEFORE_PUBLISH
    push(first + k, GEN(mine[k]));
#endif
    mine[k] = 0
}

inline produce(item, count) {
    do
    :: x < count ->
       claim((count - x < BATCH -> count - x : BATCH));
       k = 0;
       if
       :: may_abort > 0 -> /* give the first back */
          may_abort--;
          STEP(assert(slot[first] == mine[0]); slot[first] = WORD(FREE, 0, GEN(mine[0])));
          mine[0] = 0; k = 1
       :: true
       fi;
       do
       :: k < got -> publish(item + x); x++; k++
       :: else -> break
       od;
       k = 0; got = 0; first = 0
    :: else -> break
    od;
    x = 0; may_abort = 0
}

/* ---- reclaim.c -------------------------------------------------------------------------------------------------------------- */

#define CHANGE(index, from, to) if :: slot[index] == (from) -> slot[index] = (to) :: else fi

inline reclaim_member(dead) {
    k = 0; /* the slot */
    do
    :: k < SLOTS ->
       STEP(w = slot[k]);
       if
       :: OWNER(w) == dead && STATE(w) == WRITING -> STEP(CHANGE(k, w, WORD(FREE, 0, GEN(w))))
       :: OWNER(w) == dead && IS_READING(w) -> settle_reading()
       :: OWNER(w) == dead && IS_READY(w) -> asked[k] = true; gens[k] = GEN(w); any = true
       :: else
       fi;
       k++
    :: else -> break
    od;
    k = 0; w = 0;
#ifndef MUTANT_NO_ROLL_FORWARD
    if :: any -> roll_forward(dead) :: else fi;
#endif
    any = false
}

#ifdef MUTANT_REDELIVER_SAME_GEN
#define NEXT(g) (g)
#else
#define NEXT(g) ((g) + 1)
#endif
#ifdef MUTANT_REDELIVER_TO_NOBODY /* until it is pushed: nobody would look after it */
#define RECLAIMER 0
#else
#define RECLAIMER id
#endif
#ifdef MUTANT_NOT_FLAGGED
#define FLAGGED 0
#else
#define FLAGGED (TRIES(w) + 1)
#endif
#ifdef MUTANT_REDELIVER_ALL /* whatever the policy says */
#define GIVE_UP (TRIES(w) == TRIES_MAX)
#elif defined(DROP)
#define GIVE_UP true
#elif defined(MUTANT_FOR_EVER) /* an item that kills its consumers is redelivered again and again */
#define GIVE_UP false
#else
#define GIVE_UP (TRIES(w) == TRIES_MAX)
#endif

inline settle_reading() {
    STEP(if
         :: slot[k] == w && GIVE_UP -> slot[k] = WORD(FREE, 0, GEN(w)); settled[data[k]] = true
         :: slot[k] == w && !(GIVE_UP) ->
            slot[k] = WORD(READY + FLAGGED, RECLAIMER, NEXT(GEN(w)));
            ok = true
         :: else
         fi);
    if :: ok -> ok = false; push(k, NEXT(GEN(w))) :: else fi
}

inline roll_forward(dead) {
    /* shmt_order_mark(): one pass from read_seq to the first cell that is not filled */
    STEP(r = read_seq);
    do
    :: k < RING ->
       STEP(c = cell[AT(r + k)]);
       if
       :: CELL_LAP(c) == BEFORE(r + k) -> break
       :: else ->
          if
          :: asked[CELL_INDEX(c)] && gens[CELL_INDEX(c)] % GENS == CELL_GEN(c) -> found[CELL_INDEX(c)] = true
          :: else
          fi
       fi;
       k++
    :: else -> break
    od;
    r = 0; c = 0; k = 0;
    do
    :: k < SLOTS && !asked[k] -> k++
    :: k < SLOTS && asked[k] ->
       STEP(w = slot[k]);
       if
       :: IS_READY(w) && OWNER(w) == dead && GEN(w) == gens[k] ->
#ifdef MUTANT_NOBODY_FIRST /* disown, then push */
          STEP(CHANGE(k, w, WORD(STATE(w), 0, gens[k])));
#endif
          if :: !found[k] -> push(k, gens[k]) :: else fi;
#ifdef MUTANT_DISOWN_ANY /* compares the state, not the whole word */
          STEP(if :: STATE(slot[k]) == STATE(w) -> slot[k] = WORD(STATE(w), 0, gens[k]) :: else fi)
#else
          STEP(CHANGE(k, w, WORD(STATE(w), 0, gens[k])))
#endif
       :: else /* acquired since we looked */
       fi;
       asked[k] = false; found[k] = false; gens[k] = 0; w = 0;
       k++
    :: else -> break
    od;
    k = 0
}

#define HAS(d) (OWNER(slot[0]) == (d) || OWNER(slot[SLOTS - 1]) == (d) || OWNER(slot[SLOTS / 2]) == (d))
#define GONE(d) (!lock[d] && (known[d] || HAS(d)))
#ifdef MUTANT_NO_LOCK /* looks whether the byte is free, but does not take it */
#define TRY(d) :: atomic { GONE(d) -> held = d }
#define UNLOCK skip
#define UNLOCK_DEAD skip
#else
#define TRY(d) :: atomic { GONE(d) -> lock[d] = true; held = d }
#define UNLOCK assert(!HAS(held)); lock[held] = false /* nothing is left of it, and nobody else came */
#define UNLOCK_DEAD lock[held] = false
#endif
#if IDS > 2
#define TRY3 TRY(3)
#else
#define TRY3
#endif
#if IDS > 3
#define TRY4 TRY(4)
#else
#define TRY4
#endif
#if IDS > 4
#define TRY5 TRY(5)
#else
#define TRY5
#endif
#define TRY_LOCK if TRY(1) TRY(2) TRY3 TRY4 TRY5 fi

/* shmt_reclaim(), for one of the dead. */
inline reclaim() {
    reclaim_member(held);
    STEP(known[held] = false);
    STEP(UNLOCK; held = 0)
}

/* ---- the processes ------------------------------------------------------------------------------------------------------------ */

#ifdef TWICE
#define PRIVATE byte held, p, k, x, got, first, old; short w, c, mine[BATCH], old_word; bool ok
#else
#define PRIVATE byte held, p, k, x, got, first; short w, c, mine[BATCH]; bool ok
#endif
#define FORGET held = 0; p = 0; k = 0; x = 0; got = 0; first = 0; w = 0; c = 0; mine[0] = 0; mine[BATCH - 1] = 0; ok = false
#define RECLAIMS byte r, gens[SLOTS]; bool any, asked[SLOTS], found[SLOTS]
#define FORGET_RECLAIM r = 0; any = false; gens[0] = 0; gens[SLOTS / 2] = 0; gens[SLOTS - 1] = 0; asked[0] = false; \
    asked[SLOTS / 2] = false; asked[SLOTS - 1] = false; found[0] = false; found[SLOTS / 2] = false; found[SLOTS - 1] = false

proctype producer(byte id, items) {
    byte may_abort = ABORTS;
    PRIVATE;
    produce((id - 1) * K, items);
    done[id] = true;
#ifdef LEAVE
    STEP(known[id] = false);
    STEP(lock[id] = false);
#endif
    goto out;
gone:
    atomic { BURY; done[id] = true; may_abort = 0; FORGET };
out: skip
}

#if NC > 1
proctype consumer(byte id) {
    PRIVATE;
    do
    :: NOT_EMPTY -> take(); release()
    :: DIE
    od;
gone:
    atomic { BURY; FORGET }
}
#endif

proctype survivor(byte id) {
    PRIVATE;
    RECLAIMS;
    do
    :: NOT_EMPTY -> take(); release()
    :: TRY_LOCK; reclaim()
    od;
gone:
    skip
}

#if NR > 0
proctype reclaimer(byte id) {
    PRIVATE;
    RECLAIMS;
    do
    :: TRY_LOCK; reclaim()
    :: DIE
    od;
gone:
    atomic { BURY; FORGET; FORGET_RECLAIM }
}
#endif

#if NJ > 0
#define JOIN(d) :: atomic { !lock[d] -> lock[d] = true; id = d }
proctype joiner() {
    byte may_abort = 0, id;
    PRIVATE;
    RECLAIMS;
    if
    JOIN(1) JOIN(2)
#if IDS > 2
    JOIN(3)
#endif
#if IDS > 3
    JOIN(4)
#endif
    fi;
#ifndef MUTANT_NO_JOIN_RECLAIM /* a lock byte changes hands with what its last holder had */
    reclaim_member(id);
#endif
    STEP(known[id] = true);
    produce(NP * K, 1);
    done[IDS + NJ] = true;
    false; /* lives on */
gone:
    atomic { BURY; FORGET; FORGET_RECLAIM; done[IDS + NJ] = true; id = 0 }
}
#endif

proctype monitor() {
    byte i;
    timeout; /* nobody else can move */
    for (i : 0 .. ITEMS - 1) { assert(!published[i] || settled[i]) } /* nothing published is lost */
    for (i : 0 .. SLOTS - 1) { assert(slot[i] == WORD(FREE, 0, GEN(slot[i]))) } /* no slot leaks */
    for (i : 1 .. NP) { assert(done[i]) } /* nobody hangs: every producer is through, or dead */
    for (i : 1 .. IDS) {
        assert(lock[i] || !known[i]); /* no death goes unnoticed */
        assert(NJ == 0 || lock[i] || done[IDS + NJ]) /* nobody is kept from joining */
    }
}

init { atomic {
    byte i;
    for (i : 0 .. SLOTS - 1) { slot[i] = WORD(FREE, 0, START) }
    for (i : 0 .. RING - 1) { cell[AT(START + i)] = CELL(BEFORE(START + i), 0, 0) }
    for (i : 1 .. IDS) { lock[i] = true; known[i] = true }
    run producer(1, K1);
#if NP > 1
    for (i : 2 .. NP) { run producer(i, K) }
#endif
    for (i : NP + 1 .. IDS) {
        if
#if NC > 1
        :: i < SURVIVOR -> run consumer(i)
#endif
        :: i == SURVIVOR -> run survivor(i)
#if NR > 0
        :: i > SURVIVOR -> run reclaimer(i)
#endif
        fi
    }
#if NJ > 0
    run joiner();
#endif
    run monitor();
    i = 0
} }
