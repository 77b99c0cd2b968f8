/* end.pml - the end of the stream: does everybody see it, nobody too early, and is nothing published after it?
 *
 * csrc/handoff.c: why_empty(), why_full(), shut(), take_role(); csrc/slots.c: shmt_slots_any_unread(), _all_ready();
 * csrc/lifecycle.c: close; csrc/reclaim.c: count_lost(). Each load of a shared word is a step, so that whoever adds them up
 * may be overtaken anywhere; the ring, about which handoff.pml is, is one flag for each slot. Nobody sleeps: a waiter tries
 * again when that could bring something, and SPARE times when it could not.
 *
 * Producers are members 1..NP, consumers NP+1..NP+NC; EXPECTED is the buffer's `producers`. One member does not die, the
 * SURVIVOR, and must not be left waiting in vain. tests/test_model.py has the configurations and the mutants. */
#ifndef NP
#define NP 2
#endif
#ifndef NC
#define NC 1
#endif
#ifndef K
#define K 1           /* items of each producer */
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef EXPECTED
#define EXPECTED NP
#endif
#ifndef SURVIVOR
#define SURVIVOR (NP + NC)
#endif
#ifndef SPARE
#define SPARE 1
#endif
/* Switches: SHUTDOWN: somebody calls shutdown() at any moment. STRICT: no excuse for what somebody else is reclaiming while
 * the end is seen: known to fail, docs/protocol.md says what it means. And the mutants, each at its place. */

#define IDS (NP + NC)
#define ALL ((1 << (NP * K)) - 1)

/* states of a slot */
#define FREE 0
#define WRITING 1
#define READY 2
#define READING 3
/* roles in a member record */
#define PRODUCER 1
#define CONSUMER 2
#define IDLE 4        /* not stored: joined and neither */
#define LEFT 8
/* why nothing is to be had */
#define AGAIN 0
#define ENDED 1       /* -ESHUTDOWN */
#define DESERTED 2    /* -EOWNERDEAD: PeersGone */

byte state[SLOTS], owner[SLOTS], data[SLOTS];
bool pushed[SLOTS];
bool shut;
byte closed, lost, seen; /* producers_closed, producers_lost, consumers_seen */
byte role[IDS + 1];
bool known[IDS + 1], lock[IDS + 1];
byte crashes = CRASHES;

/* What is to be proved. */
byte published, taken, orphans; /* sets of items; orphans: taken by one who died, and not taken again */
byte before[IDS + 1];  /* what was unread, or an orphan, when this consumer's call began, and is still not taken */
byte came;             /* producers that claimed at least once: who dies before that was never known to be one */
bool over[IDS + 1];    /* the consumer has seen the end, the producer has done what it wanted or been told why not */
bool left[IDS + 1], dead[IDS + 1]; /* closed of its own will; or not */
byte told_of[IDS + 1]; /* the producer was told that so many consumers have gone */
bool told[IDS + 1];    /* the consumer was told that its peers are gone, with all deaths there were */

#define DIE atomic { crashes > 0 && id != SURVIVOR -> crashes--; dead[id] = true; goto gone }
#define STEP(x) if :: atomic { x } :: DIE fi

#define IS(d, s) (state[d] == (s))
#define SOME(s) (IS(0, s) || IS(SLOTS - 1, s))
#define TO_TAKE ((IS(0, READY) && pushed[0]) || (IS(SLOTS - 1, READY) && pushed[SLOTS - 1]))
#define OWNS(d) (owner[0] == (d) || owner[SLOTS - 1] == (d))
#define GONE(d) (!lock[d] && (known[d] || OWNS(d)))
#ifdef MUTANT_NO_IDLE /* who has joined and done nothing yet is not waited for */
#define ROLE(d) role[d]
#else
#define ROLE(d) (role[d] == 0 && known[d] -> IDLE : role[d])
#endif
#if IDS > 3
#define GONE4 GONE(4)
#define ROLE4 ROLE(4)
#else
#define GONE4 false
#define ROLE4 0
#endif
#if IDS > 2
#define GONE3 GONE(3)
#define ROLE3 ROLE(3)
#else
#define GONE3 false
#define ROLE3 0
#endif
#define ROLES (ROLE(1) | ROLE(2) | ROLE3 | ROLE4)
#define SOMEBODY_GONE (GONE(1) || GONE(2) || GONE3 || GONE4)

/* Somebody else is reclaiming d at this moment: what d had is not there yet, and not ours to wait for. */
#ifdef STRICT
#define EXCUSE skip
#else
#define EXCUSE if :: lock[d] && dead[d] && id > NP -> before[id] = 0 :: else fi
#endif

/* ---- reclaim.c: one look at everybody ------------------------------------------------------------------------------- */

inline reclaim() {
    d = 1;
    do
    :: d <= IDS ->
       if
       :: atomic { GONE(d) -> lock[d] = true; held = d };
          i = 0;
          do
          :: i < SLOTS ->
             STEP(s = (owner[i] == held -> state[i] : FREE);
                  if
                  :: s == WRITING -> state[i] = FREE; owner[i] = 0
                  :: s == READING -> state[i] = READY; owner[i] = id; pushed[i] = false
                  :: else
                  fi);
             if
             :: s == READING -> STEP(pushed[i] = true)
             :: s == READY -> /* roll forward; somebody may have taken it meanwhile */
                STEP(if :: owner[i] == held && IS(i, READY) -> pushed[i] = true :: else fi);
                STEP(if :: owner[i] == held && IS(i, READY) -> owner[i] = 0 :: else fi)
             :: else
             fi;
             i++
          :: else -> break
          od;
          i = 0; s = 0;
#ifdef MUTANT_ROLE_GOES_FIRST /* reclaim: the role goes, then its loss is counted */
          STEP(s = role[held]; role[held] = 0);
          STEP(if :: s & PRODUCER -> lost++ :: else fi; s = 0; known[held] = false);
#else
          STEP(if :: role[held] & PRODUCER -> lost++ :: else fi);
          STEP(role[held] = 0);
          STEP(known[held] = false);
#endif
          STEP(lock[held] = false; held = 0)
       :: atomic { !GONE(d) -> EXCUSE }
       fi;
       d++
    :: else -> break
    od;
    d = 0
}

/* ---- the producer ------------------------------------------------------------------------------------------------------ */

#define CLAIM(slot) :: atomic { IS(slot, FREE) -> state[slot] = WRITING; owner[slot] = id; i = slot }; break
#define COMING(d) (!left[d] && !dead[d])
#define KEPT(slot) (IS(slot, READY) || (IS(slot, READING) && role[owner[slot]] == LEFT))
#define DESERTED_NOW (seen != told_of[id] && !(ROLES & (CONSUMER | IDLE)) && KEPT(0) && KEPT(SLOTS - 1))

/* No slot is free. why is AGAIN, or DESERTED. */
inline why_full() {
    STEP(s = seen; r = (s == told_of[id] -> IDLE : 0));
    if :: r == 0 -> look_at_roles() :: else fi;
    d = 0;
    do
    :: !(r & (CONSUMER | IDLE)) && d < SLOTS -> STEP(r = (KEPT(d) -> r : IDLE)); d++
    :: else -> break
    od;
    why = (r & (CONSUMER | IDLE) -> AGAIN : DESERTED);
    d = 0; r = 0
}
inline look_at_roles() {
    d = 1; r = 0;
    do
    :: d <= IDS -> STEP(r = r | ROLE(d)); d++
    :: else -> break
    od
}

proctype producer(byte id) {
    byte n, i, s, d, r, held, why, spare = SPARE;
    bool end;
    STEP(role[id] = PRODUCER; came++);                              /* N2 */
    do
    :: n < K ->
#ifdef MUTANT_LOOK_THEN_CLAIM
       STEP(end = shut);
#endif
       do
       CLAIM(0)
#if SLOTS > 1
       CLAIM(1)
#endif
       :: shut -> goto close
       :: SOMEBODY_GONE -> reclaim()
       :: atomic { !SOME(FREE) && (DESERTED_NOW || spare > 0) -> spare = (DESERTED_NOW -> spare : spare - 1) };
          why_full();
          if
          :: why == DESERTED ->
             told_of[id] = s;
             assert(!COMING(NP + 1) && !COMING(IDS)); /* truly nobody */
             why = AGAIN
          :: else
          fi;
          s = 0
       :: DIE
       od;
#ifndef MUTANT_LOOK_THEN_CLAIM
       STEP(end = shut);                                            /* C3 */
#endif
       if
       :: end -> STEP(state[i] = FREE; owner[i] = 0); goto close
       :: else
       fi;
       STEP(state[i] = READY; data[i] = (id - 1) * K + n; pushed[i] = false; published = published | (1 << data[i]));
       STEP(if :: owner[i] == id && IS(i, READY) -> pushed[i] = true :: else fi);
       n++
    :: else -> break
    od;
close: /* shmt_segment_close() */
#ifdef MUTANT_LEFT_THEN_COUNT
    STEP(role[id] = LEFT; left[id] = true);
    STEP(closed++);
#else
    STEP(closed++);                                                 /* N1 */
    STEP(role[id] = LEFT; left[id] = true);
#endif
    STEP(role[id] = 0);
    STEP(known[id] = false);
gone:
    atomic {
        lock[id] = false; over[id] = true; n = 0; i = 0; s = 0; d = 0; r = 0; why = 0; spare = 0; end = false;
        if :: held -> lock[held] = false :: else fi; held = 0
    }
}

/* ---- the consumer ------------------------------------------------------------------------------------------------------ */

#define BIT (1 << data[i])
#define WITHOUT(set) set = set & (ALL - BIT)
#define TAKE(slot) :: IS(slot, READY) && pushed[slot] -> state[slot] = READING; owner[slot] = id; i = slot; got = true; \
                      taken = taken | BIT; WITHOUT(orphans); WITHOUT(before[IDS]); WITHOUT(before[NP + 1])
inline take() { /* any: the order is not at issue here */
    STEP(if
         TAKE(0)
#if SLOTS > 1
         TAKE(1)
#endif
         :: else
         fi)
}

#define ALL_CAME(c, l) ((c) + (l) >= EXPECTED && (c) + (l) > 0)
#define ENDED_NOW (!SOME(WRITING) && !SOME(READY) && \
    (shut || (ALL_CAME(closed, lost) && !(ROLES & PRODUCER) && \
              ((EXPECTED > 0 && closed >= EXPECTED) || (lost != lost_told && (EXPECTED > 0 || !(ROLES & IDLE)))))))

inline any_unread() {
    d = 0;
    do
#ifdef MUTANT_ANY_READY /* what is being written does not count */
    :: d < SLOTS && why != AGAIN -> STEP(if :: IS(d, READY) -> why = AGAIN :: else fi); d++
#else
    :: d < SLOTS && why != AGAIN -> STEP(if :: IS(d, READY) || IS(d, WRITING) -> why = AGAIN :: else fi); d++
#endif
    :: else -> break
    od;
    d = 0
}

inline why_empty() {
    why = AGAIN;
    STEP(end = shut);
    if
    :: end -> why = ENDED
    :: else ->
       STEP(s = closed);
       STEP(h = lost);
       if
       :: !ALL_CAME(s, h)
       :: else ->
          look_at_roles();
          if
          :: r & PRODUCER
          :: !(r & PRODUCER) && EXPECTED == 0 && (h == 0 || (r & IDLE))
          :: !(r & PRODUCER) && !(EXPECTED == 0 && (h == 0 || (r & IDLE))) ->
             if
             :: EXPECTED == 0 || s < EXPECTED -> if :: h != lost_told -> why = DESERTED :: else fi
             :: else ->
                why = ENDED;
#ifdef MUTANT_SEARCH_THEN_SHUT
                any_unread();
                if :: why == ENDED -> STEP(shut = true) :: else fi
#else
                STEP(shut = true)                                   /* N3 */
#endif
             fi
          fi
       fi
    fi;
#ifdef MUTANT_SEARCH_THEN_SHUT
    if :: end -> any_unread() :: else fi;
#else
    any_unread();
#endif
    s = 0; h = 0; r = 0; d = 0; end = false
}

/* Nothing was there: has it ended? */
inline conclude() {
    why_empty();
    if
    :: why == AGAIN
    :: else ->
#ifndef MUTANT_NO_LAST_RECLAIM /* the item of a consumer that died is to be drained too */
       reclaim();
#endif
#ifndef MUTANT_NO_LAST_TAKE /* what came before the end counts */
       take();
#endif
       if
       :: got
       :: !got && why == ENDED -> over[id] = true
       :: !got && why == DESERTED ->
          assert(EXPECTED > 0 || (!COMING(1) && !COMING(NP)));
          STEP(lost_told = lost; told[id] = true)
       fi;
       assert(got || before[id] == 0); /* whatever was there when this call began was acquired */
       why = AGAIN
    fi
}

proctype consumer(byte id) {
    byte i, s, d, r, h, held, why, lost_told, spare = SPARE;
    bool got, end;
    STEP(role[id] = CONSUMER);
    STEP(seen++);                                                   /* N4 */
    do
    :: over[id] -> break
    :: !over[id] && SOMEBODY_GONE -> reclaim()
    :: atomic { !over[id] && (TO_TAKE || ENDED_NOW || spare > 0) ->
                spare = (TO_TAKE || ENDED_NOW -> spare : spare - 1); before[id] = (published & (ALL - taken)) | orphans };
       take();
       if :: !got -> conclude() :: else fi;
       before[id] = 0;
       if
       :: got -> STEP(state[i] = FREE; owner[i] = 0); got = false; i = 0 /* release */
       :: else
       fi
    :: DIE
    od;
    STEP(role[id] = LEFT; left[id] = true);
    STEP(role[id] = 0);
    STEP(known[id] = false);
gone:
    atomic {
        if :: got -> orphans = orphans | BIT :: else fi;
        lock[id] = false; i = 0; s = 0; d = 0; r = 0; h = 0; why = 0; before[id] = 0; spare = 0; lost_told = 0;
        got = false; end = false; if :: held -> lock[held] = false :: else fi; held = 0
    }
}

#ifdef SHUTDOWN
proctype closer() { shut = true }
#endif

proctype monitor() {
    byte i;
    timeout;                                                        /* nobody else can move */
    for (i : 1 .. NP) { assert(over[i] || seen == told_of[i]) } /* told of all who came and went, or nobody came */
#if SURVIVOR > NP
    assert(over[SURVIVOR] || told[SURVIVOR] || came < EXPECTED || (EXPECTED == 0 && !shut && lost == 0));
    assert((published & (ALL - taken)) == 0)                        /* nothing was published after the end */
#endif
}

init { atomic {
    byte i;
    for (i : 1 .. IDS) { lock[i] = true; known[i] = true }
    for (i : 1 .. NP) { run producer(i) }
    for (i : NP + 1 .. IDS) { run consumer(i) }
#ifdef SHUTDOWN
    run closer();
#endif
    run monitor();
    i = 0
} }
