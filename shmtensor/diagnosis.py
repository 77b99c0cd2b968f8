"""Why a wait timed out: who holds which slots, for how long at least, and what that is likely to mean.

Nothing on the hot path notes when a slot was taken. Ages come from comparing two looks: what has neither changed hands
nor generation since an earlier look has been held at least since then. The earlier look is that of this buffer's last
time-out, or one that the wait itself took early on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shmtensor._core import Buffer

MAX_LINES = 8  # of members
MAX_RUNS = 6  # of slot numbers that follow each other
FREE, WRITING, READY, READING = range(4)
PRODUCER, CONSUMER, LEFT = 1, 2, 8
DONE = {WRITING: "claimed", READING: "acquired"}


@dataclass(frozen=True)
class Look:
    """What the slots and members were doing at one moment, about."""

    when: float  #: time.monotonic()
    slots: list[tuple[int, int, int]]  #: state, owner, generation
    members: dict[int, dict[str, Any]]

    @classmethod
    def at(cls, buffer: Buffer, *, members: bool = True) -> Look:
        """Looks, now. No other process is disturbed; asking who lives costs a system call for each member."""
        slots = buffer._slot_states()
        return cls(time.monotonic(), slots, {m["id"]: m for m in buffer._members()} if members else {})

    def same_since(self, earlier: Look, index: int) -> bool:
        """Whether a slot that is held has been in the same hands, without a pause, since an earlier look."""
        return self.slots[index] == earlier.slots[index]


def poll(buffer: Buffer, verb: str) -> str:
    """The message where nobody waited (timeout=0). Such calls come in loops: it says what costs nothing."""
    s = buffer.stats()
    counts = _counts([s["free"], s["writing"], s["ready"], s["reading"]])
    what = "no slot is free" if verb == "claim" else "nothing is published"
    return f"{what} ({counts}); with a timeout above 0 this error says who holds them"


def _counts(counts: list[int]) -> str:
    free, writing, ready, reading = counts
    return f"{sum(counts)} slots: {free} free, {writing} claimed, {ready} published, {reading} acquired"


def explain(buffer: Buffer, verb: str, timeout: float, now: Look, earlier: Iterable[Look]) -> str:
    """The message of a TimeoutError: what was waited for, the slots, the members, and the likely reason."""
    counts = [sum(slot[0] == state for slot in now.slots) for state in range(4)]
    what = "no slot became free" if verb == "claim" else "nothing was published"
    said = f"{what} within {timeout} s ({_counts(counts)})"
    people = [_Person(buffer, member, now) for member in now.members.values()]
    wanted = CONSUMER if verb == "claim" else PRODUCER
    told = [p for p in people if p.held or p.roles & wanted or p.stopped or not p.alive]
    told.sort(key=lambda p: (-len(p.held), p.id))
    lines = ["  " + p.line(now, list(earlier)) for p in told[:MAX_LINES]]
    if len(told) > MAX_LINES:
        lines.append(f"  and {len(told) - MAX_LINES} more members")
    verdict = _why_full(people, counts) if verb == "claim" else _why_empty(people, counts)
    return "\n".join([said, *lines, f"Likely: {verdict}"])


class _Person:
    """A member, with what it holds."""

    def __init__(self, buffer: Buffer, member: dict[str, Any], look: Look) -> None:
        self.id: int = member["id"]
        self.pid: int = member["pid"]
        self.alive: bool = member["alive"]
        self.roles: int = member["roles"]
        self.joined: float = member["joined_ns"] / 1e9
        self.me = self.id == buffer._member
        self.held = [i for i, slot in enumerate(look.slots) if slot[0] in DONE and slot[1] == self.id]
        self.stopped = self.alive and not self.me and _is_stopped(self.pid, buffer._fd)

    def holds(self, look: Look, state: int) -> list[int]:
        return [i for i in self.held if look.slots[i][0] == state]

    def __str__(self) -> str:
        return f"member {self.id} (pid {self.pid})"

    def line(self, look: Look, earlier: list[Look]) -> str:
        what = [self._hold(look, state, earlier) for state in DONE if self.holds(look, state)]
        if not self.alive:
            what.append("it is dead: whoever waits next takes this back, and so does reclaim()")
        if self.stopped:
            what.append("it is stopped (SIGSTOP, a debugger)")
        return f"member {self.id}, {self._who(look)}: {'; '.join(what) or 'holds no slot'}"

    def _who(self, look: Look) -> str:
        roles = [name for role, name in ((PRODUCER, "producer"), (CONSUMER, "consumer")) if self.roles & role]
        if self.roles == LEFT:
            roles = ["closed, but views of its slots are alive"]
        age = f"joined {max(look.when - self.joined, 0):.1f} s ago"
        return ", ".join([f"pid {self.pid}" + (" (this process)" if self.me else ""), *roles, age])

    def _hold(self, look: Look, state: int, earlier: list[Look]) -> str:
        indices = self.holds(look, state)
        text = f"{DONE[state]} slot{'s' * (len(indices) > 1)} {_runs(indices)}"
        for past in sorted(earlier, key=lambda past: past.when):
            if old := [i for i in indices if look.same_since(past, i)]:
                of_them = "" if old == indices else f"{_runs(old)} "
                return f"{text}, {of_them}at least {look.when - past.when:.1f} s ago"
        return text


def _runs(indices: list[int]) -> str:
    """ "0-2, 5": numbers in ascending order."""

    def runs() -> Iterator[str]:
        first = last = indices[0]
        for i in [*indices[1:], -1]:
            if i != last + 1:
                yield str(first) if first == last else f"{first}-{last}"
                first = i
            last = i

    found = list(runs())
    return ", ".join(found[:MAX_RUNS]) + (", ..." if len(found) > MAX_RUNS else "")


def _is_stopped(pid: int, fd: int) -> bool:
    """Whether the process is stopped, if it can be seen that it is the one that is meant: that it has the segment open.
    A pid alone may be one of another pid namespace."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
        if state not in (b"T", b"t"):
            return False
        segment = os.fstat(fd)
        return any(os.path.samestat(os.stat(f"/proc/{pid}/fd/{n}"), segment) for n in os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return False


def _most(people: list[_Person]) -> str:
    """Of whom one should ask first why the slots are kept."""
    keeper = max(people, key=lambda p: len(p.held))
    if not keeper.held:
        return ""
    return ", most of them by " + ("this process" if keeper.me else f"{keeper}{', which is stopped' * keeper.stopped}")


def _why_full(people: list[_Person], counts: list[int]) -> str:
    """Why there is no free slot."""
    consumers = [p for p in people if p.roles & CONSUMER and p.alive]
    writers = [p for p in people if p.held]
    if sum(len(p.held) for p in people if not p.alive) >= max(counts):
        return "those who held the slots have died: wait a little longer, or call reclaim()"
    if counts[READING] >= max(counts[READY], counts[WRITING]):
        return f"leases are kept{_most(people)}: release them, drop or copy the views, or raise slots="
    if counts[READY] >= counts[WRITING]:
        return _slow(consumers, "consumer", "producers")
    if writers and all(p.stopped for p in writers):
        return "the producers that hold the claimed slots are stopped"
    return "producers hold claimed slots: publish or abort them"


def _why_empty(people: list[_Person], counts: list[int]) -> str:
    """Why nothing was published."""
    producers = [p for p in people if p.roles & PRODUCER and p.alive]
    if counts[READING] == sum(counts):
        return f"leases are kept on every slot{_most(people)}, so no producer can claim one: release them"
    if counts[WRITING] and not (producers and all(p.stopped for p in producers)):
        return "producer-bound: a producer is in the middle of writing"
    return _slow(producers, "producer", "consumers")


def _slow(people: list[_Person], role: str, others: str) -> str:
    """What is the matter with those who could have ended the wait."""
    if not people:
        return f"no {role} is there: start one"
    if all(p.me for p in people):
        return f"{role}-bound: the only {role} is this process itself"
    if all(p.stopped or p.me for p in people):
        return f"{role}-bound: every {role} is stopped"
    return f"{role}-bound: {role}s are slower than {others}"
