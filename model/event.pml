/* event.pml - the futex word of csrc/wait.c: is a wake-up ever lost?
 *
 * Producers publish K items, then wake K; consumers try, set W, try again, sleep. (So do claimers, on the other event.)
 * There is no time-out here but what a kill buys: it lets those who wait at that moment end one slice of theirs. So a
 * wake-up that is lost without a kill is a deadlock, and so is a kill that costs more than one slice; Spin reports both.
 *
 * The last consumer lives, is patient and takes until the end. The others may die anywhere, waken or asleep; after any
 * item they may take no more, as if it kept them busy for ever; and if they are IMPATIENT, a time-out of their own or a
 * signal may end their wait at any moment. Producers may die anywhere. tests/test_model.py has the configurations. */
#ifndef NP
#define NP 2
#endif
#ifndef NC
#define NC 2
#endif
#ifndef ROUNDS
#define ROUNDS 2  /* of each producer */
#endif
#ifndef K
#define K 1       /* items published in each round, with one wake-up */
#endif
#ifndef TAKE
#define TAKE 1    /* items that a consumer takes at once, at most */
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef NW
#define NW 0      /* watchers (csrc/watch.c), who are woken as consumers are and take nothing */
#endif
#define SLEEPERS (NC + NW)
/* Switches: IMPATIENT. TAKER: the last watcher's user takes what there is, and is the one who lives until the end. EARLY: the end may be announced before everything is taken. And the mutants, each at its place. */

byte items, ended; /* ended: producers */
bool closed;
byte seq; bool W;  /* the word */
bool asleep[SLEEPERS];   /* the kernel's queue of sleepers on the word */
bool slice[SLEEPERS];    /* somebody died since this one began to wait: its slice may end */
byte crashes = CRASHES;

#ifdef MUTANT_NO_SLICE /* sleep for ever: what kills would cost */
#define ALLOW_SLICES skip
#else
#define ALLOW_SLICES c = 0; do :: c < SLEEPERS -> slice[c] = true; c++ :: else -> c = 0; break od
#endif
#define DIE atomic { crashes > 0 && mortal -> crashes--; goto gone }
#define STEP(x) if :: atomic { x } :: DIE fi

/* FUTEX_WAKE(many): any of the sleepers, at most so many; n is how many. */
inline futex_wake(many) {
    n = 0;
    do
    :: n < many && asleep[0] -> asleep[0] = false; n++
#if SLEEPERS > 1
    :: n < many && asleep[1] -> asleep[1] = false; n++
#endif
#if SLEEPERS > 2
    :: n < many && asleep[2] -> asleep[2] = false; n++
#endif
#if SLEEPERS > 3
    :: n < many && asleep[3] -> asleep[3] = false; n++
#endif
    :: else -> break
    od
}

/* The word as a whole: what was seen is still there, and W was seen. */
#define UNCHANGED (seq == s && W)

/* shmt_event_wake(): many is how much was published. */
#ifdef MUTANT_CLEAR_FIRST /* clear W, wake one, set W again */
inline wake(many) {
    STEP(s = seq; w = W);
    do
    :: !w -> break
    :: else ->
       STEP(ok = UNCHANGED; if :: ok -> seq++; W = false :: else fi; s = seq; w = W);
       if
       :: ok ->
          STEP(futex_wake(1));
          if :: n > 0 -> STEP(W = true) :: else fi;
          break
       :: else
       fi
    od;
    s = 0; w = false; ok = false; n = 0
}
#else
#ifdef MUTANT_WAKE_ONE /* one wake-up for K items */
#define MANY 1
#else
#define MANY many
#endif
#ifdef MUTANT_SAME_SEQ /* whoever looked before the change falls asleep after the wake-up */
#define NEXT skip
#else
#define NEXT seq++
#endif
inline wake(many) {
    STEP(s = seq; w = W);                                                       /* E2 */
    do
    :: !w -> break
    :: else ->
       STEP(ok = UNCHANGED; if :: ok -> NEXT :: else fi; s = seq; w = W);       /* E3: keeps W */
       if
       :: ok ->
          STEP(futex_wake(MANY));
          if
          :: n < MANY -> /* fewer slept than there is work: W may be stale */
             STEP(ok = UNCHANGED; if :: ok -> NEXT; W = false :: else fi);      /* E3 */
#ifndef MUTANT_NO_WAKE_ALL
             if :: ok -> STEP(futex_wake(SLEEPERS)) :: else fi
#endif
          :: else
          fi;
          break
       :: else
       fi
    od;
    s = 0; w = false; ok = false; n = 0
}
#endif

proctype producer(bool mortal) {
    byte left = ROUNDS, s, n, k, c; bool w, ok;
    do
    :: left > 0 ->
#ifdef MUTANT_WAKE_FIRST /* before the change */
       wake(K);
#endif
       do
       :: k < K -> STEP(items++); k++
       :: else -> break
       od;
       k = 0;
#ifndef MUTANT_WAKE_FIRST
       wake(K);
#endif
       left--
    :: else -> break
    od;
gone:
    atomic {
        if :: left > 0 -> ALLOW_SLICES :: else fi;
        left = 0; s = 0; n = 0; k = 0; w = false; ok = false;
        ended++
    }
}

inline try() {
    STEP(if
         :: items > 0 -> got = true; items = (items > TAKE -> items - TAKE : 0)
         :: items == 0 && closed -> over = true
         :: else
         fi)
}

proctype consumer(byte me; bool mortal; bool may_leave) {
    byte s, c; bool got, over, woken;
again:
    do
    :: got && mortal -> goto out                                          /* keeps its item for ever */
    :: got -> got = false; try()
    :: over -> goto out
    :: !got && !over -> /* shmt_event_wait(), one turn */
#ifdef MUTANT_W_AFTER_TRY
       try();
       if :: got || over -> goto again :: else fi;
       STEP(W = true; s = seq; slice[me] = false);
#else
       STEP(W = true; s = seq; slice[me] = false);                        /* E1 */
#ifndef MUTANT_NO_SECOND_TRY
       try();
       if :: got || over -> goto again :: else fi;
#endif
#endif
       if
       :: may_leave -> goto out                                           /* -ETIMEDOUT */
       :: atomic { if :: UNCHANGED -> asleep[me] = true :: else fi }      /* FUTEX_WAIT(seen) */
       :: DIE
       fi;
       if
       :: !asleep[me] -> woken = true
       :: atomic { asleep[me] && slice[me] -> slice[me] = false; asleep[me] = false }
       :: atomic { asleep[me] && may_leave -> asleep[me] = false }        /* its time is over, or a signal came */
       :: DIE
       fi;
#ifdef MUTANT_NO_LAST_TRY /* a woken waiter honours its time-out before it tries */
       if :: woken && may_leave -> goto out :: else fi;
#endif
       woken = false;
       try();
       if
       :: !got && !over && may_leave -> goto out                          /* -EINTR */
       :: true
       fi
    od;
    goto out;
gone:
    atomic { ALLOW_SLICES; asleep[me] = false; s = 0; got = false; over = false; woken = false };
out:
    atomic { s = 0; got = false; over = false; woken = false }
}

/* Of go_round() in csrc/watch.c the part that concerns one watch. While it is RAISED it is not asleep on the word; its user
 * takes, or leaves it to others; whoever finds that nothing is left makes it ARMED again. */
proctype watcher(byte me; bool mortal; bool takes) {
    byte s, n, c; bool w, ok, got, over;
    do
    :: over -> goto out
    :: else ->
#ifdef MUTANT_LOOK_FIRST
       STEP(got = (items > 0); over = closed);
       STEP(W = true; s = seq; slice[me] = false);
#else
       STEP(W = true; s = seq; slice[me] = false);                        /* E1 */
       STEP(got = (items > 0); over = closed);
#endif
       if
       :: got || over ->
#ifndef MUTANT_NO_PASS_ON
          wake(1);
#endif
          got = false;
          do
          :: takes && !over -> try(); if :: got -> got = false :: else -> break fi
          :: !takes && (items == 0 || closed) -> break
          :: takes && over -> break
          :: DIE
          od
       :: else ->
          if
          :: atomic { if :: UNCHANGED -> asleep[me] = true :: else fi }   /* futex_waitv() */
          :: DIE
          fi;
          if
          :: !asleep[me]
          :: atomic { asleep[me] && slice[me] -> slice[me] = false; asleep[me] = false }
          :: DIE
          fi
       fi
    od;
gone:
    atomic { ALLOW_SLICES; asleep[me] = false };
out:
    atomic { s = 0; n = 0; w = false; ok = false; got = false; over = false }
}

/* shmt_shutdown(), by somebody who does not die. */
proctype closer() {
    byte n;
#ifdef EARLY
    skip;
#else
    ended == NP && items == 0;
#endif
    closed = true;
#ifndef MUTANT_QUIET_END
    seq++;
    atomic { futex_wake(SLEEPERS); n = 0 } /* shmt_event_wake_all() */
#endif
}

#ifdef TAKER /* who takes until the end */
#define LIVES (SLEEPERS - 1)
#else
#define LIVES (NC - 1)
#endif

init { atomic {
    byte i;
    for (i : 1 .. NP) { run producer(true) }
#ifdef IMPATIENT
    for (i : 0 .. NC - 1) { run consumer(i, i < LIVES, i < LIVES) }
#else
    for (i : 0 .. NC - 1) { run consumer(i, i < LIVES, false) }
#endif
#if NW > 0
    for (i : NC .. SLEEPERS - 1) { run watcher(i, i != LIVES, i == LIVES) }
#endif
    run closer();
    i = 0
} }
