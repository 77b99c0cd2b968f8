"""SIGKILL at random moments, to one or to several at once, at chosen points and in the middle of verbs."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

import shmtensor as st

from .arena import DIE, FLAGGED, LIVING, MADE, MAKING, MODE, ORDER, PHASE, STOP, TAKING, TOOK, WAITED, Arena, At
from .crowd import Crowd, Player, SoakFailed
from .items import KINDS
from .journal import LETTING, RECORD, TAKEN, read_all
from .laws import judge
from .programs import program
from .report import Progress
from .workers import PATIENCE, Plan, Worker

ROLES = ["maker"] * 3 + ["taker"] * 3 + ["both"] * 2
#: where a death is waited for and then comes after a moment of chance; elsewhere the worker kills itself on the spot
INSIDE = (At.JOINING, At.CLAIMING, At.WRITING, At.PUBLISHING, At.ACQUIRING, At.FORKING, At.CLOSING)


def new_name(rng: random.Random) -> str:
    return f"soak-{os.getpid()}-{rng.randrange(1 << 40):x}"


def draw_storm(rng: random.Random) -> Plan:
    """Workers in C, of which most rest between the steps of the verbs: there most deaths come."""
    return Plan(
        slots=rng.choice([16, 64, 256]),
        policy=rng.choice(["redeliver", "redeliver", "drop"]),
        name=new_name(rng),
        batch=rng.choice([1, 8, 64, 64]),
        between_kills=rng.choice([0.004, 0.02]),
        native=rng.choice([1.0, 1.0, 0.5]),
        seed=rng.randrange(1 << 30),
    )


def draw_plan(rng: random.Random) -> Plan:
    kind = rng.choice(["small", "small", "fields", "large", "growing"])
    slots = rng.choice([1, 2, 4, 8, 16, 16, 64, 64])
    slow = rng.choice(["neither", "makers", "takers"])
    pause = rng.choice([0.0002, 0.002])
    return Plan(
        kind=kind,
        slots=slots,
        policy=rng.choice(["redeliver", "redeliver", "drop"]),
        name=new_name(rng) if rng.random() < 0.3 else None,
        spin_us=rng.choice([50, 50, 0]),
        batch=rng.choice([0, 0, 7, 64]) if KINDS[kind].batches else 0,
        hold=rng.randrange(min(slots, 6)),
        slow_makers=pause if slow == "makers" else 0.0,
        slow_takers=pause if slow == "takers" else 0.0,
        life=rng.choice([300, 3000]),
        forks=rng.choice([0.0, 1 / 500]),
        between_kills=rng.choice([0.004, 0.03] if slots > 8 else [0.03, 0.06]),
        seed=rng.randrange(1 << 30),
    )


class Round:
    """One buffer and its users, from the first to the last; run() ends it with judgement."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self.plan, self.rng = plan, rng
        self.arena = Arena()
        self.figures: Counter[str] = Counter()
        self.where: Counter[str] = Counter()
        self.highest: dict[str, float] = {}

    def run(self, kills: int, until: float) -> None:
        """Kills so many, or until then (time.monotonic())."""
        with Crowd(self.arena) as self.crowd, self.plan.create() as self.buffer:
            self.set_up()
            self.crowd.pulse()
            self.fill_seats()
            while self.figures["kills"] < kills and time.monotonic() < until:
                self.rng.choice([self.strike, self.strike, self.order, self.surprise])()
                if self.rng.random() < 0.5:  # else the dead stay zombies for a while
                    self.bury()
                    self.fill_seats()
                self.crowd.check()
            self.end(kills=self.rng.randrange(4))
            self.judge()
        if self.plan.name is not None and os.path.exists(f"/dev/shm/shmtensor.{self.plan.name}"):
            raise SoakFailed("the last one to close left the name behind")

    def set_up(self) -> None:
        self.begin = time.monotonic_ns()
        self.folder = self.crowd.folder / "journals"
        self.folder.mkdir()
        self.seats: dict[int, Player] = {}
        self.programs = [program(name) for name in ("native", "native_slow", "native_slow")] if self.plan.native else []

    # ---- the living

    def fill_seats(self) -> None:
        for seat, role in enumerate(ROLES):
            if seat not in self.seats:
                work = self.execute if self.rng.random() < self.plan.native else self.work
                self.seats[seat] = self.crowd.start(seat, role, lambda i, s=seat, r=role, w=work: w(i, s, r))

    def work(self, instance: int, seat: int, role: str) -> None:
        inherited = self.buffer if self.plan.name is None else None
        Worker(self.plan, inherited, self.crowd, seat, instance, self.folder, self.begin).live(role)

    def execute(self, instance: int, seat: int, role: str) -> None:
        """The same in C."""
        journal = os.open(self.folder / str(instance), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.set_inheritable(journal, True)
        os.set_inheritable(self.arena.fd, True)
        errors = os.open(self.crowd.errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(errors, 2)
        os.nice(5)  # it never rests, and the runner has to get its turn
        words = (
            self.plan.name,
            journal,
            self.arena.fd,
            seat,
            instance,
            role,
            self.plan.batch,
            self.plan.seed,
            self.begin,
        )
        path = self.programs[instance % len(self.programs)]
        os.execv(path, [path, *map(str, words)])

    # ---- the dead

    def bury(self) -> list[Player]:
        ended = self.crowd.reap()
        for player in ended:
            base = self.arena.seat(player.seat)
            words = self.arena.words
            self.highest["longest wait, ms"] = max(
                self.highest.get("longest wait, ms", 0.0), words[base + WAITED] / 1e6
            )
            self.figures["made"] += words[base + MADE]
            self.figures["took"] += words[base + TOOK]
            self.figures["flagged, live count"] += words[base + FLAGGED]
            if player.status == signal.SIGKILL:
                self.figures["kills"] += 1
                self.where[At(player.phase).name.lower()] += 1
            else:
                self.figures["left by themselves"] += 1
            del self.seats[player.seat]
        return ended

    def living(self) -> list[Player]:
        return [p for p in self.seats.values() if not p.killed_ns]

    def strike(self) -> None:
        """At any moment; one, some or all of them at once."""
        time.sleep(self.rng.random() * self.plan.between_kills)
        living = self.living()
        count = self.rng.choices([1, 2, 3, len(living)], [80, 12, 6, 2])[0]
        self.crowd.kill(*self.rng.sample(living, min(count, len(living))))

    def order(self) -> None:
        """One kills itself exactly between two steps; or rests there until it is killed, or gets away."""
        if not (living := self.living()):
            return
        victim = self.rng.choice(living)
        words, base = self.arena.words, self.arena.seat(victim.seat)
        rests = self.rng.random() < 0.3
        words[base + MODE] = self.rng.randrange(500, 20_000) if rests else DIE
        words[base + ORDER] = self.rng.choice(self.points(victim))
        time.sleep(self.rng.random() * 0.005)
        if rests:
            if self.rng.random() < 0.7:
                self.crowd.kill(victim)
            return

    def surprise(self) -> None:
        """One that is in the middle of a verb."""
        if not (living := self.living()):
            return
        victim = self.rng.choice(living)
        wanted = self.rng.choice([p for p in self.points(victim) if p in INSIDE])
        words, phase = self.arena.words, self.arena.seat(victim.seat) + PHASE
        end = time.monotonic() + 0.008
        while words[phase] != wanted:
            if time.monotonic() > end:
                return
        pause = time.monotonic() + self.rng.choice([0.0, self.rng.random() * 5e-5, self.rng.random() * 1e-3])
        while time.monotonic() < pause:
            pass
        self.crowd.kill(victim)

    def points(self, player: Player) -> list[At]:
        points = {"maker": MAKING, "taker": TAKING, "both": MAKING + TAKING}[player.role]
        if self.plan.native:  # these neither leave by themselves nor fork
            return [*points, At.JOINING]
        return [*points, *LIVING, *[At.FORKING] * bool(self.plan.forks)]

    # ---- the end

    def end(self, kills: int) -> None:
        """The stream ends; ``kills`` die even then. What is left is drained here."""
        self.arena.words[STOP] = 1
        self.buffer.shutdown()
        for _ in range(kills):
            time.sleep(self.rng.random() * 0.002)
            self.bury()
            if living := self.living():
                self.crowd.kill(self.rng.choice(living))
        end = time.monotonic() + 2 * PATIENCE
        while self.crowd.left():
            self.bury()
            self.crowd.check()
            if time.monotonic() > end:
                where = [(p.role, At(self.crowd.phase_of(p))) for p in self.living()]
                raise SoakFailed(f"some do not end: {where}, of pids {self.crowd.left()}")
            time.sleep(0.0005)
        self.drained = self.drain()

    def drain(self) -> np.ndarray:
        """What nobody took, as records of instance 0."""
        kind = KINDS[self.plan.kind]
        found = []
        self.buffer.reclaim()
        while True:
            try:
                slot = self.buffer.try_acquire()
            except st.ShutDown:
                break
            if slot is None:
                raise SoakFailed(f"the stream has ended, and yet there is neither an item nor the end: {self.buffer!r}")
            key = kind.read(kind.views(slot))
            if key < 0:
                raise SoakFailed("an item was torn: found at the end")
            found.append((key, 0xFFFF_FFFF, TAKEN, slot.redelivered, 0))
            slot.release()
        return np.array(found, RECORD)

    def judge(self) -> None:
        records, writers = read_all(self.folder)
        shutil.rmtree(self.folder)
        letting = self.drained.copy()
        letting["kind"] = LETTING
        records = np.concatenate([records, self.drained, letting])
        writers = np.concatenate([writers, np.zeros(2 * len(self.drained), np.int64)])
        again = self.buffer.reclaim()
        stats = self.buffer.stats()
        verdict = judge(records, writers, self.crowd.ended, stats, self.plan.policy, self.plan.batch)
        leaked = [s for s in self.buffer._slot_states() if s[:2] != (0, 0)]
        verdict.figures["leaked"] = len(leaked)
        verdict.require(not leaked, f"slots that nobody holds are not free: (state, owner) {leaked}")
        verdict.require(again == 0, f"a second reclaim found {again} more dead")
        verdict.require(stats["members"] == 1, f"{stats['members']} members are left of 1")
        verdict.require(
            self.plan.policy == "redeliver" or stats["redelivered"] == 0, "redelivered although it was to be dropped"
        )
        for name in ("redelivered", "dropped", "reclaimed"):
            self.figures[f"core: {name}"] += stats[name]
        self.figures.update(verdict.figures)
        if verdict.broken:
            raise SoakFailed(f"{'; '.join(verdict.broken)}\nin {self.plan}\n{dict(self.figures)}")


def storm(*, kills: int, seconds: float, seed: int, progress: Progress) -> dict[str, object]:
    """The same with workers in C, most of whom die in the middle of a verb."""
    return run(kills=kills, seconds=seconds, seed=seed, progress=progress, draw=draw_storm)


def run(
    *, kills: int, seconds: float, seed: int, progress: Progress, draw: Callable[[random.Random], Plan] = draw_plan
) -> dict[str, object]:
    """SIGKILL to producers and consumers at random moments, at chosen points and in the middle of verbs."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    total: Counter[str] = Counter()
    where: Counter[str] = Counter()
    policies: Counter[str] = Counter()
    longest = 0.0
    rounds = 0
    while total["kills"] < kills and time.monotonic() < until:
        plan = draw(rng)
        one = Round(plan, rng)
        # Not too long where millions of items are put on record.
        one.run(
            min(rng.choice([50, 150, 300]), kills - total["kills"]),
            min(until, time.monotonic() + (4 if plan.native else 60)),
        )
        total.update(one.figures)
        where.update(one.where)
        policies[plan.policy] += one.figures["kills"]
        longest = max(longest, one.highest.get("longest wait, ms", 0.0))
        rounds += 1
        progress(f"{total['kills']:,} of {kills:,} kills in {rounds} rounds, {total['published']:,} items published")
    return {
        "rounds": rounds,
        **{k: total[k] for k in sorted(total)},
        "longest wait, ms": round(longest, 1),
        "died while": dict(where.most_common()),
        "kills by policy": dict(policies),
    }
