"""How long the living wait for what the dead held: one process has every slot, others wait for them, it is killed.

It stays a zombie until the others have gone on, because its parent may be busy too.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import Any

import shmtensor as st

from .arena import EPISODE, HELD, MADE, PAUSED, PHASE, QUOTA, TOOK, WHEN_MADE, WHEN_TOOK, Arena, At
from .crowd import Crowd, Player, SoakFailed
from .items import key_of, read, stamp
from .report import Progress, percentiles
from .workers import PATIENCE

SLOTS = 4
CLAIMERS, ACQUIRERS = 2, 2
ENDED = -1  #: in EPISODE


class Stage:
    """A buffer, its waiters, and one victim after another."""

    def __init__(self, policy: str, rng: random.Random) -> None:
        self.policy, self.rng = policy, rng
        self.arena = Arena()
        self.times: dict[str, list[float]] = {"reader": [], "writer": []}
        self.slices: list[int] = []
        self.disturbed = 0
        self.killed = 0
        self.with_children = 0
        self.flagged = 0

    def run(self, episodes: int, until: float) -> None:
        with (
            Crowd(self.arena) as self.crowd,
            st.TensorBuffer.create(
                ((8,), "int64"), slots=SLOTS, producers=0, on_consumer_death=self.policy
            ) as self.buffer,
        ):
            self.crowd.pulse()
            self.waiters = [self.crowd.start(seat, "claimer", self.claimer(seat)) for seat in range(CLAIMERS)]
            first = CLAIMERS
            self.waiters += [
                self.crowd.start(seat, "acquirer", self.acquirer(seat)) for seat in range(first, first + ACQUIRERS)
            ]
            for number in range(1, episodes + 1):
                self.episode(number)
                if time.monotonic() > until:
                    break
            self.arena.words[EPISODE] = ENDED
            self.crowd.wait_all(PATIENCE)
            stats = self.buffer.stats()
            if stats["free"] != SLOTS or stats["reclaimed"] != self.killed:
                raise SoakFailed(f"after {self.killed} deaths: {stats}")

    # ---- the waiters: for each episode one item by each claimer, and acquirers until all of it is taken

    def claimer(self, seat: int) -> Any:
        words, base = self.arena.words, self.arena.seat(seat)

        def work(instance: int) -> None:
            self.buffer.stats()
            seen = 0
            while (seen := self.next_episode(seen)) != ENDED:
                words[base + PHASE] = At.CLAIMING
                with self.buffer.claim(PATIENCE) as slot:
                    words[base + WHEN_MADE] = time.monotonic_ns()
                    words[base + PHASE] = At.CLAIMED
                    stamp(slot.numpy(), key_of(instance, seen))
                words[base + MADE] += 1
                words[base + PHASE] = At.BETWEEN
            self.buffer.close()

        return work

    def acquirer(self, seat: int) -> Any:
        words, base = self.arena.words, self.arena.seat(seat)

        def work(instance: int) -> None:
            self.buffer.stats()
            seen = 0
            while (seen := self.next_episode(seen)) != ENDED:
                first = True
                while self.arena.total(TOOK) < words[QUOTA]:
                    words[base + PHASE] = At.ACQUIRING
                    try:
                        slot = self.buffer.acquire(0.45)  # the others may take everything
                    except TimeoutError:
                        continue
                    if first:
                        words[base + WHEN_TOOK] = time.monotonic_ns()
                        first = False
                    with slot:
                        if read(slot.numpy()) < 0:
                            raise SoakFailed("torn")
                        words[base + HELD] += slot.redelivered
                    words[base + TOOK] += 1
                words[base + PHASE] = At.BETWEEN
            self.buffer.close()

        return work

    def next_episode(self, seen: int) -> int:
        while self.arena.words[EPISODE] == seen:
            time.sleep(0.0005)
        return int(self.arena.words[EPISODE])

    # ---- the victim

    def victim(self, reads: bool, has_child: bool, base: int) -> Any:
        """``has_child``: it has forked, and the child, which has copies of everything, outlives it for a while."""
        words = self.arena.words

        def work(instance: int) -> None:
            held: list[Any] = []
            for i in range(SLOTS):
                slot = self.buffer.claim(PATIENCE)
                view = slot.numpy()
                stamp(view, key_of(instance, i))
                if reads:
                    slot.publish()
                    slot = self.buffer.acquire(PATIENCE)
                    view = slot.numpy()
                held.append((slot, view))
            number = words[EPISODE]
            if has_child and os.fork() == 0:
                while words[EPISODE] in (number, number + 1):
                    time.sleep(0.005)
                os._exit(0)
            words[base + HELD] = SLOTS
            time.sleep(3 * PATIENCE)

        return work

    # ---- one death

    def episode(self, number: int) -> None:
        reads = self.rng.random() < 0.5
        seat = CLAIMERS + ACQUIRERS
        has_child = self.rng.random() < 0.3
        victim = self.crowd.start(seat, "victim", self.victim(reads, has_child, self.arena.seat(seat)))
        self.with_children += has_child
        words = self.arena.words
        self.until(lambda: words[self.arena.seat(seat) + HELD] == SLOTS, "the victim holds everything")
        comes_again = SLOTS if reads and self.policy == "redeliver" else 0
        words[QUOTA] += comes_again + CLAIMERS
        words[EPISODE] = number
        waiting = (At.CLAIMING, At.ACQUIRING)
        self.until(lambda: all(self.crowd.phase_of(w) in waiting for w in self.waiters), "the others wait")
        time.sleep(0.001 + self.rng.random() * 0.1)  # somewhere in their slices of 100 ms
        self.check_nothing_moved(number)
        sleeps, paused = self.buffer.stats()["sleeps"], words[PAUSED]
        self.crowd.kill(victim)
        self.until(lambda: self.gone_on(victim), "somebody goes on after a death")
        self.slices.append(-(-(self.buffer.stats()["sleeps"] - sleeps) // len(self.waiters)))
        self.until(lambda: self.arena.total(TOOK) == words[QUOTA], "everything is taken")
        self.until(lambda: self.arena.total(MADE) == number * CLAIMERS, "everything is made")
        first = min(self.moments(victim))
        time.sleep(0.03)  # who counts the pauses may not have had its turn yet
        if words[PAUSED] > paused:
            self.disturbed += 1
        else:
            self.times["reader" if reads else "writer"].append((first - victim.killed_ns) / 1e6)
        self.crowd.reap(victim.pid, wait=True)
        self.crowd.reap()  # orphans of earlier ones
        self.killed += 1
        self.flagged += comes_again
        self.until(lambda: all(self.crowd.phase_of(w) == At.BETWEEN for w in self.waiters), "the episode is over")
        seen = sum(words[self.arena.seat(w.seat) + HELD] for w in self.waiters)
        if seen != self.flagged or self.buffer.stats()["free"] != SLOTS:
            raise SoakFailed(f"{self.flagged} items were to come again, {seen} did; {self.buffer!r}")

    def moments(self, victim: Player) -> list[int]:
        """When each waiter that has gone on since the death did."""
        words = self.arena.words
        when = [words[self.arena.seat(w.seat) + at] for w in self.waiters for at in (WHEN_MADE, WHEN_TOOK)]
        return [at for at in when if at > victim.killed_ns]

    def gone_on(self, victim: Player) -> bool:
        return bool(self.moments(victim))

    def check_nothing_moved(self, number: int) -> None:
        if self.arena.total(MADE) != (number - 1) * CLAIMERS or self.buffer.stats()["reclaimed"] != self.killed:
            raise SoakFailed("somebody went on although the holder of all slots lives")

    def until(self, true: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            self.crowd.check()
            if time.monotonic() > end:
                raise SoakFailed(f"not within {PATIENCE} s: {what}; {self.buffer!r}")
            time.sleep(0.0005)


def run(*, episodes: int, seconds: float, seed: int, progress: Progress) -> dict[str, object]:
    """How long the living wait for what the dead held: every slot."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    times: dict[str, list[float]] = {"reader": [], "writer": []}
    slices: Counter[int] = Counter()
    killed = with_children = disturbed = 0
    while killed < episodes and time.monotonic() < until:
        stage = Stage(rng.choice(["redeliver", "drop"]), rng)
        stage.run(min(50, episodes - killed), until)
        for who, values in stage.times.items():
            times[who] += values
        slices.update(stage.slices)
        killed += stage.killed
        with_children += stage.with_children
        disturbed += stage.disturbed
        both = times["reader"] + times["writer"]
        progress(f"{killed:,} of {episodes:,} deaths with everything in hand; recovery, ms: {percentiles(both)}")
    if max(slices, default=0) > 10:
        raise SoakFailed(f"waiters slept {max(slices)} slices of 100 ms before they had what the dead held")
    return {
        "deaths with everything in hand": killed,
        "of which with a forked child that lives on": with_children,
        "not timed, because the whole machine stood still": disturbed,
        "recovery, ms": percentiles(times["reader"] + times["writer"]),
        "recovery from a reader, ms": percentiles(times["reader"]),
        "recovery from a writer, ms": percentiles(times["writer"]),
        "slices slept": dict(sorted(slices.items())),
    }
