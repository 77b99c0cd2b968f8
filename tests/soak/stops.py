"""SIGSTOP and SIGCONT: who is stopped is not dead. Nothing of theirs is taken, the others go on, nothing is doubled."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from typing import Any

import shmtensor as st

from .arena import HELD, MADE, TOOK, Arena
from .crowd import Crowd, Player, SoakFailed
from .items import key_of, stamp
from .kills import Round, new_name
from .report import Progress, percentiles
from .workers import PATIENCE, Plan

SLICE = 0.1  #: seconds after which who waits looks for the dead


def stop(*players: Player) -> None:
    """Returns when they stand still: a signal that was sent has not yet arrived."""
    for p in players:
        os.kill(p.pid, signal.SIGSTOP)
    for p in players:
        _, status = os.waitpid(p.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise SoakFailed(f"{p.role} {p.instance} ended with wait status {status:#x} instead of stopping")


def go_on(*players: Player) -> None:
    for p in players:
        os.kill(p.pid, signal.SIGCONT)


class Stops(Round):
    """As a round of kills, but nobody dies, so every item is taken exactly once."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        super().__init__(plan, rng)
        self.waits: list[float] = []

    def run(self, stops: int, until: float) -> None:
        with Crowd(self.arena) as self.crowd, self.plan.create() as self.buffer:
            self.set_up()
            self.crowd.pulse()
            self.fill_seats()
            while self.figures["stops"] < stops and time.monotonic() < until:
                self.stop_some(min(2, stops - self.figures["stops"]))
            self.end(kills=0)
            self.judge()
            stats = self.buffer.stats()
            if stats["reclaimed"] or stats["redelivered"] or stats["dropped"]:
                raise SoakFailed(f"nobody died, and yet: {stats}")
            if self.figures["published"] != self.figures["taken"]:
                raise SoakFailed(f"{self.figures['published']} published, {self.figures['taken']} taken")

    def stop_some(self, most: int) -> None:
        """One or two stand still until others, of either kind, have gone on; now and then for some slices longer."""
        players = list(self.seats.values())
        victims = self.rng.sample(players, self.rng.randint(1, most))
        stop(*victims)
        others = [self.arena.seat(p.seat) for p in players if p not in victims]
        words = self.arena.words
        before = [[words[base + at] for base in others] for at in (MADE, TOOK)]
        begin = time.monotonic()
        lasts = self.rng.random() < 0.01
        while True:
            now = [[words[base + at] for base in others] for at in (MADE, TOOK)]
            self.figures["false reclaims"] += self.buffer.reclaim()
            if all(a != b for a, b in zip(before, now, strict=True)):
                break
            if time.monotonic() - begin > PATIENCE:
                raise SoakFailed(f"while {[p.role for p in victims]} stand still nobody goes on: {self.buffer!r}")
            time.sleep(0.0001)
        self.waits.append((time.monotonic() - begin) * 1e3)
        if lasts:
            self.figures["long stops"] += 1
            time.sleep(2.5 * SLICE)
            self.figures["false reclaims"] += self.buffer.reclaim()
        go_on(*victims)
        self.figures["stops"] += len(victims)


def hold_everything(rng: random.Random) -> None:
    """One stands still with every slot in hand: who waits for them gets nothing, whatever their slices say."""
    arena = Arena()
    with Crowd(arena) as crowd, st.TensorBuffer.create(((8,), "int64"), slots=3, producers=0) as buffer:
        reads = rng.random() < 0.5
        words, base = arena.words, arena.seat(0)

        def hold(instance: int) -> None:
            held: list[Any] = []
            for i in range(3):
                slot = buffer.claim(PATIENCE)
                stamp(slot.numpy(), key_of(instance, i))
                if reads:
                    slot.publish()
                    slot = buffer.acquire(PATIENCE)
                held.append(slot)
            words[base + HELD] = 3
            while words[base + HELD] == 3:
                time.sleep(0.001)
            for slot in held:
                slot.release() if reads else slot.publish()  # raises LeaseLost if it was taken away
            buffer.close()

        player = crowd.start(0, "holder", hold)
        while words[base + HELD] != 3:
            crowd.check()
            time.sleep(0.001)
        stop(player)
        for verb in (buffer.claim, buffer.acquire):
            try:
                verb(timeout=2.5 * SLICE)
            except TimeoutError:
                continue
            raise SoakFailed("a slot was taken from a process that stands still")
        words[base + HELD] = 0
        go_on(player)
        crowd.wait_all(PATIENCE)
        stats = buffer.stats()
        expected = {"reclaimed": 0, "redelivered": 0, "free": 3 if reads else 0, "ready": 0 if reads else 3}
        if any(stats[name] != value for name, value in expected.items()):
            raise SoakFailed(f"after a stop with everything in hand: {stats}")


def draw_plan(rng: random.Random) -> Plan:
    """Plenty of slots: two who stand still may keep a few each."""
    return Plan(
        kind=rng.choice(["small", "fields", "large", "growing"]),
        slots=rng.choice([24, 64]),
        policy=rng.choice(["redeliver", "drop"]),
        name=new_name(rng) if rng.random() < 0.3 else None,
        spin_us=rng.choice([50, 0]),
        batch=0,
        hold=rng.randrange(3),
        life=1 << 40,
        forks=0.0,
        careless=0.0,
        seed=rng.randrange(1 << 30),
    )


def run(*, stops: int, seconds: float, seed: int, progress: Progress) -> dict[str, object]:
    """SIGSTOP and SIGCONT at random: nobody who stands still is taken for dead."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    total: Counter[str] = Counter()
    waits: list[float] = []
    while total["stops"] < stops and time.monotonic() < until:
        plan = draw_plan(rng)
        one = Stops(plan, rng)
        one.run(min(500, stops - total["stops"]), until)
        total.update(one.figures)
        waits += one.waits
        hold_everything(rng)
        total["stops"] += 1
        total["stops with everything in hand"] += 1
        progress(f"{total['stops']:,} of {stops:,} stops, {total['published']:,} items published")
    if total["false reclaims"]:
        raise SoakFailed(f"{dict(total)}")
    wanted = ["stops", "long stops", "stops with everything in hand", "false reclaims", "published", "taken"]
    wanted += ["waits over 1 s", "waits over 1 s of a paused machine", "standstills"]
    wanted += ["lost", "unflagged", "reordered", "torn", "leaked"]
    return {**{k: total[k] for k in wanted}, "until others went on, ms": percentiles(waits)}
