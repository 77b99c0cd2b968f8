"""What the processes under test do: produce and consume, on record, passing every point at which they may be killed."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import shmtensor as st

from .arena import (
    DIE,
    FLAGGED,
    MADE,
    MODE,
    ORDER,
    PAUSED,
    PHASE,
    STALLS,
    STOP,
    TOOK,
    WAITED,
    WAITS,
    WHEN_MADE,
    WHEN_TOOK,
    Arena,
    At,
)
from .crowd import Crowd, SoakFailed
from .items import KINDS, key_of, read, stamp
from .journal import ABORTED, CHANGED, INTENT, LETTING, LOST_LEASE, PUBLISHED, RELEASED, STALLED, TAKEN, TORN, Journal

PATIENCE = 20.0  #: seconds; nobody waits longer for anything
STALL_NS = 1_000_000_000


@dataclass
class Plan:
    """One round: what the buffer is like and how its users behave."""

    kind: str = "small"
    slots: int = 8
    policy: str = "redeliver"
    name: str | None = None
    spin_us: int = 50
    batch: int = 0  #: at most so many items at once; 0: one by one
    hold: int = 0  #: a consumer keeps up to so many items and lets go of them in any order
    slow_makers: float = 0.0  #: seconds of rest after each item
    slow_takers: float = 0.0
    life: int = 3000  #: items after which a worker leaves by itself, on average
    forks: float = 0.0  #: chance, at each item, that its holder forks
    aborts: float = 0.02
    careless: float = 0.2  #: how often one leaves without closing
    between_kills: float = 0.004  #: seconds, at most
    native: float = 0.0  #: share of the workers that are C programs (named buffers of small items only)
    seed: int = 0

    def create(self) -> st.TensorBuffer:
        kind = KINDS[self.kind]
        return st.TensorBuffer.create(
            kind.spec,
            slots=self.slots,
            name=self.name,
            producers=0,
            spin_us=self.spin_us,
            on_consumer_death=self.policy,
            **kind.options,
        )


@dataclass
class Held:
    """What a consumer has not let go of: a slot or a batch, and views of it."""

    slot: Any
    views: list[np.ndarray]
    keys: list[int]  #: as read when it came; -1: torn
    items: list[tuple[int, int]]  #: (key, redeliveries) of those that are whole


@dataclass
class Worker:
    plan: Plan
    inherited: st.TensorBuffer | None
    crowd: Crowd
    seat: int
    instance: int
    folder: Path
    begin: int
    number: int = 0
    held: list[Held] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arena: Arena = self.crowd.arena
        self.words = self.arena.words
        self.base = self.arena.seat(self.seat)
        self.kind = KINDS[self.plan.kind]
        self.rng = random.Random(self.plan.seed * 1_000_003 + self.instance)
        self.buffer: st.TensorBuffer
        self.journal: Journal

    # ---- points

    def at(self, point: int) -> None:
        words, base = self.words, self.base
        words[base + PHASE] = point
        if words[base + ORDER] == point:
            mode = words[base + MODE]
            if mode == DIE:
                os.kill(os.getpid(), signal.SIGKILL)
            words[base + ORDER] = 0
            time.sleep(mode / 1e6)

    def waited(self, began: int, paused: int, when: int) -> None:
        """``paused``: what PAUSED was when the wait began."""
        now = time.monotonic_ns()
        words, base = self.words, self.base
        words[base + when] = now
        words[base + WAITS] += 1
        if now - began > words[base + WAITED]:
            words[base + WAITED] = now - began
        if now - began > STALL_NS:
            words[base + STALLS] += 1
            time.sleep(0.1)  # who counts the pauses may not have had its turn yet
            paused = min((words[PAUSED] - paused) // 1000, 0xFFFF)
            self.journal.note(STALLED, [((now - began) // 1000, when == WHEN_TOOK)], paused)

    # ---- life

    def live(self, role: str) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked
        self.journal = Journal(self.folder, self.instance, self.begin)
        self.at(At.STARTED)
        self.at(At.JOINING)
        if self.plan.name is not None:
            self.buffer = st.TensorBuffer.attach(self.plan.name, spin_us=self.plan.spin_us)
        else:
            assert self.inherited is not None
            self.buffer = self.inherited
        self.buffer.stats()  # the first verb joins
        for _ in range(1 + int(self.rng.expovariate(1 / self.plan.life))):
            self.at(At.BETWEEN)
            making = role == "maker" or (role == "both" and self.rng.random() < 0.5)
            try:
                self.make() if making else self.take()
            except st.ShutDown:
                if role != "both" or not making:
                    break
                role = "taker"  # what is there is still to be taken
            except st.PeersGone:
                continue  # somebody will take their place
        self.leave()

    def leave(self) -> None:
        """In order, or with items in hand, or without a word: os._exit() is a death like any other."""
        how = self.rng.random()
        if how < self.plan.careless:
            os._exit(0)  # not return: what is held would be let go of in order
        if how < 0.7:
            while self.held:
                self.let_go(0)
        self.at(At.CLOSING)
        self.buffer.close()
        self.at(At.CLOSED)
        while self.held:  # the membership lasts as long as the views
            self.let_go(0)

    # ---- producing

    def make(self) -> None:
        plan, rng = self.plan, self.rng
        self.at(At.CLAIMING)
        began, paused = time.monotonic_ns(), self.words[PAUSED]
        slot: Any
        if plan.batch:
            slot = self.buffer.claim_many(rng.randint(1, plan.batch), PATIENCE)
        else:
            slot = self.buffer.claim(PATIENCE)
        self.waited(began, paused, WHEN_MADE)
        self.at(At.CLAIMED)
        count = len(slot) if plan.batch else 1
        keys = [key_of(self.instance, self.number + i) for i in range(count)]
        self.number += count
        items = [(key, 0) for key in keys]
        giving_up = rng.random() < plan.aborts
        self.journal.note(ABORTED if giving_up else INTENT, items)
        self.at(At.WRITING)
        if plan.batch:
            view = slot.numpy()
            for i, key in enumerate(keys):
                stamp(view[i], key)
            del view
        else:
            self.kind.write(slot, keys[0])
        self.at(At.WRITTEN)
        if rng.random() < plan.forks:
            self.fork(slot, [])
        try:
            if giving_up:
                slot.abort()
                return
            self.at(At.PUBLISHING)
            slot.publish()
        except st.LeaseLost:
            self.journal.note(LOST_LEASE, items)
            return
        self.at(At.PUBLISHED)
        self.journal.note(PUBLISHED, items)
        self.words[self.base + MADE] += count
        if plan.slow_makers:
            self.at(At.BETWEEN)
            time.sleep(rng.expovariate(1 / plan.slow_makers))

    # ---- consuming

    def take(self) -> None:
        plan, rng = self.plan, self.rng
        self.at(At.ACQUIRING)
        began, paused = time.monotonic_ns(), self.words[PAUSED]
        slot: Any
        if self.held:  # who keeps items may not wait: the others may be waiting for these
            slot = self.buffer.try_acquire()
            if slot is None:
                self.let_go(rng.randrange(len(self.held)))
                return
        elif plan.batch:
            slot = self.buffer.acquire_many(rng.randint(1, plan.batch), PATIENCE)
        else:
            slot = self.buffer.acquire(PATIENCE)
        self.waited(began, paused, WHEN_TOOK)
        self.at(At.ACQUIRED)
        held = self.look(slot)
        self.journal.note(TAKEN, held.items)
        self.at(At.HOLDING)
        if len(held.items) < len(held.keys):
            self.journal.note(TORN, [(0, 0)])
        self.words[self.base + TOOK] += len(held.items)
        self.words[self.base + FLAGGED] += sum(tries > 0 for _, tries in held.items)
        self.held.append(held)
        if rng.random() < plan.forks:
            self.fork(slot, held.views)
        del slot, held  # or this frame would keep the views beyond their release below
        if plan.slow_takers:
            time.sleep(rng.expovariate(1 / plan.slow_takers))
        if len(self.held) > plan.hold:
            self.let_go(rng.randrange(len(self.held)))

    def look(self, slot: Any) -> Held:
        if isinstance(slot, st.Batch):
            views, tries = [slot.numpy()], slot.redelivered
        else:
            views, tries = self.kind.views(slot), (slot.redelivered,)
        keys = self.keys(slot, views)
        return Held(slot, views, keys, [(k, t) for k, t in zip(keys, tries, strict=True) if k > 0])

    def keys(self, slot: Any, views: list[np.ndarray]) -> list[int]:
        return [read(row) for row in views[0]] if isinstance(slot, st.Batch) else [self.kind.read(views)]

    def let_go(self, which: int) -> None:
        held = self.held.pop(which)
        if self.keys(held.slot, held.views) != held.keys:
            self.journal.note(CHANGED, held.items)  # under the reader's eyes
        self.at(At.RELEASING)
        self.journal.note(LETTING, held.items)
        held.slot.release()
        items = held.items
        del held  # and with it the last views
        self.at(At.RELEASED)
        self.journal.note(RELEASED, items)

    # ---- forking with a slot in hand

    def fork(self, slot: Any, views: list[np.ndarray]) -> None:
        """The child lets go of its copy of everything, which must do nothing, and stays a while: its parent may die."""
        self.at(At.FORKING)
        pid = os.fork()
        if pid == 0:
            self.crowd.run_and_exit(f"a child of {self.instance}", self.be_a_child, slot, views)

    def be_a_child(self, slot: Any, views: list[np.ndarray]) -> None:
        stays = self.rng.choice([0.0, 0.001, 0.05, 0.5, PATIENCE])
        joins = self.rng.random() < 0.5
        if joins:
            self.buffer.reclaim()  # a member of its own, and no less a reclaimer than others
        if views:
            for held in self.held:
                held.slot.release()
                held.views.clear()
        else:
            ending = self.rng.choice([slot.publish, slot.abort])
            try:
                ending()
            except st.LeaseLost:
                pass
            else:
                raise SoakFailed("a child ended what its parent had claimed")
        self.held.clear()
        del slot, views
        gc.collect()
        end = time.monotonic() + stays
        while time.monotonic() < end and not self.words[STOP]:
            time.sleep(0.01)
        if self.rng.random() < 0.5:
            self.buffer.close()
