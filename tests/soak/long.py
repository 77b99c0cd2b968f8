"""Very many items and no deaths: none lost, doubled or out of order, and nothing grows.

The volume goes through handoffs.c, a share through Python: in batches, and one by one by each way to put and get.
"""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import shmtensor as st

from .arena import EPISODE, MADE, STALLS, STOP, TOOK, Arena
from .crowd import Crowd, SoakFailed
from .items import PATTERN, key_of, read, stamp, stamped
from .programs import program
from .report import Progress
from .workers import PATIENCE, STALL_NS

MAKERS = TAKERS = 3
WORDS = 8
BATCH = 64
GROWTH_KIB = 256  #: private memory of a Python process that is no growth: its allocator takes and gives in steps
GROWTH_KIB_C = 16  #: a page of stack, or of the heap, that is touched late
#: producers, consumers, slots, batch, and what share of all items goes this way
SHAPES = [(3, 3, 64, 16, 0.8), (3, 3, 8, 1, 0.1), (1, 1, 64, 1, 0.05), (1, 3, 16, 7, 0.03), (3, 1, 2, 2, 0.02)]

_ROWS = np.tile(PATTERN[:WORDS], (BATCH, 1))
_COUNT = np.arange(BATCH, dtype=np.int64)[:, None]


def cost_of(pid: int) -> tuple[int, int]:
    """Private memory, KiB, and descriptors of a process."""
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) if found else 0, len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Stream:
    """A stream through Python processes; every item is ticked off in a map that they share."""

    def __init__(self, each: int, batches: bool) -> None:
        self.each, self.batches = each, batches
        self.arena = Arena()
        self.words = self.arena.words
        self.seen = np.frombuffer(mmap.mmap(-1, MAKERS * each), np.uint8)

    def run(self, progress: Callable[[str], None]) -> dict[str, int]:
        total = MAKERS * self.each
        with (
            Crowd(self.arena) as self.crowd,
            st.TensorBuffer.create(((WORDS,), "int64"), slots=256 if self.batches else 16, producers=0) as self.buffer,
        ):
            players = [self.crowd.start(s, "maker", lambda i, s=s: self.make(s)) for s in range(MAKERS)]
            players += [self.crowd.start(MAKERS + s, "taker", lambda i, s=s: self.take(s)) for s in range(TAKERS)]
            self.until(total // 4, progress)
            warm = [cost_of(p.pid) for p in players]
            self.until(total, progress)
            costs = [cost_of(p.pid) for p in players]
            self.words[STOP] = 1
            self.buffer.shutdown()
            self.crowd.wait_all(PATIENCE)
            stats = self.buffer.stats()
            took, stalls, slots = self.arena.total(TOOK), self.arena.total(STALLS), self.buffer.slots
        lost, doubled = int((self.seen == 0).sum()), int((self.seen > 1).sum())
        figures = {
            "items": total,
            "private KiB more": max(after[0] - before[0] for before, after in zip(warm, costs, strict=True)),
            "descriptors more": max(after[1] - before[1] for before, after in zip(warm, costs, strict=True)),
            "stalls": stalls,
            "slots not free": slots - stats["free"],
        }
        wrong = lost, doubled, took - total, stats["redelivered"], figures["slots not free"]
        if any(wrong) or figures["descriptors more"] > 0:
            raise SoakFailed(f"{lost} lost, {doubled} doubled; {figures}; {stats}")
        if figures["private KiB more"] > GROWTH_KIB:
            raise SoakFailed(f"memory grows: {warm} KiB and descriptors at a quarter, {costs} at the end")
        return figures

    def until(self, items: int, progress: Callable[[str], None]) -> None:
        before, since = -1, time.monotonic()
        while (took := self.arena.total(TOOK)) < items:
            self.crowd.check()
            self.crowd.reap()
            if took != before:
                before, since = took, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise SoakFailed(f"nothing moves after {took:,} items: {self.buffer!r}")
            progress(f"{took:,} of {MAKERS * self.each:,} items through Python")
            time.sleep(0.005)

    # ---- producers

    def make(self, seat: int) -> None:
        buffer, words, base = self.buffer, self.words, self.arena.seat(seat)
        number = 0
        while number < self.each:
            began = time.monotonic_ns()
            key = key_of(seat + 1, number)
            count = 1
            if self.batches:
                with buffer.claim_many(min(BATCH, self.each - number), PATIENCE) as batch:
                    count = len(batch)
                    np.add(_ROWS[:count], _COUNT[:count] + key, out=batch.numpy())
            elif seat == 0:
                with buffer.claim(PATIENCE) as slot:
                    stamp(slot.numpy(), key)
            elif seat == 1:
                buffer.put(stamped(WORDS, key), PATIENCE)
            else:
                with buffer.claim(PATIENCE) as slot:
                    slot.write(stamped(WORDS, key))
            number += count
            words[base + MADE] = number
            words[base + STALLS] += time.monotonic_ns() - began > STALL_NS
        while not words[STOP]:  # its costs are looked at first
            time.sleep(0.001)
        buffer.close()

    # ---- consumers

    def take(self, seat: int) -> None:
        buffer, words, base = self.buffer, self.words, self.arena.seat(MAKERS + seat)
        last = np.full(MAKERS + 1, -1, np.int64)
        while True:
            began = time.monotonic_ns()
            try:
                if self.batches:
                    with buffer.acquire_many(BATCH, PATIENCE) as batch:
                        count = self.look_at_all(batch.numpy(), last)
                elif seat == 0:
                    with buffer.acquire(PATIENCE) as slot:
                        count = self.look_at(slot.numpy(), last)
                else:
                    count = self.look_at(buffer.get(PATIENCE, copy=seat == 1), last)
            except st.ShutDown:
                break
            words[base + TOOK] += count
            words[base + STALLS] += not words[EPISODE] and time.monotonic_ns() - began > STALL_NS
        buffer.close()

    def look_at(self, item: np.ndarray, last: np.ndarray) -> int:
        key = read(item)
        maker, number = key >> 32, key & 0xFFFF_FFFF
        if key < 0 or number <= last[maker]:
            raise SoakFailed(f"torn or out of order: {item}, after {last}")
        last[maker] = number
        self.seen[(maker - 1) * self.each + number] += 1
        return 1

    def look_at_all(self, items: np.ndarray, last: np.ndarray) -> int:
        keys = items[:, 0].copy()
        if not np.array_equal(items, _ROWS[: len(items)] + keys[:, None]):
            raise SoakFailed(f"torn: {items}")
        makers, numbers = keys >> 32, keys & 0xFFFF_FFFF
        for maker in np.unique(makers):
            mine = numbers[makers == maker]
            if mine[0] <= last[maker] or not (np.diff(mine) > 0).all():
                raise SoakFailed(f"items of producer {maker} out of order: {mine}, after {last[maker]}")
            last[maker] = mine[-1]
        self.seen[(makers - 1) * self.each + numbers] += 1
        return len(items)


def in_c(items: int, shape: tuple[int, int, int, int], progress: Progress) -> dict[str, int]:
    """Through handoffs.c, in pieces."""
    producers, consumers, slots, batch = shape
    piece = min(max(items // 20, 10_000), 10_000_000)
    command = [program("handoffs"), *map(str, (items, piece, producers, consumers, slots, batch))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            progress(f"{line.strip()} items, {producers} x {consumers} over {slots} slots")
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise SoakFailed(f"{command}: {out}")
    figures: dict[str, int] = json.loads(out)
    if figures["private KiB more"] > GROWTH_KIB_C or figures["descriptors more"] or figures["slots not free"]:
        raise SoakFailed(f"{command}: {figures}")
    return figures


def run(*, handoffs: int, seconds: float, seed: int, progress: Progress) -> dict[str, object]:
    """Very many items: none lost, doubled or out of order, nothing grows."""
    single, batched = min(handoffs // 50, 3_000_000), min(handoffs // 10, 30_000_000)
    figures: dict[str, object] = {}
    figures["Python, one by one"] = one = Stream(single // MAKERS, False).run(progress)
    figures["Python, in batches"] = many = Stream(batched // MAKERS, True).run(progress)
    left = handoffs - one["items"] - many["items"]
    parts = [one, many]
    for *shape, share in SHAPES:
        producers, consumers, slots, batch = map(int, shape)
        part = in_c(int(left * share), (producers, consumers, slots, batch), progress)
        figures[f"C, {producers} x {consumers}, {slots} slots, batches of {batch}"] = part
        parts.append(part)
    total = {k: sum(p[k] for p in parts) for k in ("items", "stalls", "slots not free")}
    return {"handoffs": total["items"], "lost, doubled, reordered": 0, "stalls": total["stalls"], **figures}
