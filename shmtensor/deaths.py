"""Who died holding what, as a parent hears of it: TensorBuffer.deaths() and on_death().

Whoever takes back what a dead member held writes down, in the segment, each of its slots and then its death. Here the
records of one death are put together again; those that were written twice, because the first to write them died, are
taken once.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Death", "HeldSlot"]

_REMEMBERED = 1024  # deaths whose repetition is recognised


class HeldSlot(NamedTuple):
    """A slot that a member held when it died."""

    #: Which slot of the buffer: 0..slots-1.
    slot: int
    #: "reading": it had been acquired. "writing": it had been claimed and not published, and nobody saw the item.
    state: str
    #: The tag of the item that was being read; None of one that was being written.
    tag: int | None
    #: How often the item had been handed out before, to consumers who died with it.
    redelivered: int


class Death(NamedTuple):
    """A member that died: it was killed, or it ended without closing the buffer."""

    #: As seen in its own pid namespace.
    pid: int
    #: Its place among the members of the buffer, 1..members. Places are used again.
    member: int
    #: What it held. With on_consumer_death="redeliver" what it was reading is handed out again by itself.
    held: tuple[HeldSlot, ...]


class Watch:
    """What one process has heard of the deaths of one buffer."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Death], Any]] = []
        self._due: deque[tuple[Death, Callable[[Death], Any]]] = deque()
        self._untold: deque[Death] = deque()
        self._held: dict[tuple[int, int], dict[tuple[int, int], HeldSlot]] = {}
        self._known: dict[tuple[int, int], None] = {}  # in order of their being told
        self._missed = 0
        self._of_process()

    def _of_process(self) -> None:
        self._pid = os.getpid()
        # Records are taken in in the order in which they were read, whichever thread reads them.
        self._lock = threading.RLock()

    def _check_process(self) -> None:
        """After a fork the parent's callbacks are not the child's, nor is its lock, which may have been held."""
        if self._pid != os.getpid():
            self._of_process()
            self.callbacks = []
            self._due.clear()

    def add(self, callback: Callable[[Death], Any]) -> None:
        self._check_process()
        self.callbacks.append(callback)

    def note(self, records: list[tuple[Any, ...]], missed: int = 0) -> None:
        """Takes in what Buffer._deaths() returned."""
        for member, joined_ns, pid, slot, reading, tries, gen, tag in records:
            life = (member, joined_ns)
            if life in self._known:
                continue
            if slot is not None:
                state, of = ("reading", tag) if reading else ("writing", None)
                self._held.setdefault(life, {})[slot, gen] = HeldSlot(slot, state, of, tries)
                continue
            self._untold.append(Death(pid, member, tuple(self._held.pop(life, {}).values())))
            self._known[life] = None
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
        if missed > self._missed:
            new, self._missed = missed - self._missed, missed  # first: where warnings are errors, one is enough
            warnings.warn(
                f"{new} records of deaths were overwritten before they were read: call deaths() more often",
                RuntimeWarning,
                stacklevel=4,
            )

    def take(self) -> list[Death]:
        """What has not been told yet."""
        out = []
        while self._untold:
            out.append(self._untold.popleft())
        return out

    def tell(self, buffer: Any) -> None:
        """Takes in what is new and calls the callbacks, if there are any; else deaths() will return it."""
        self._check_process()
        with self._lock:
            self.note(buffer._deaths(), buffer._deaths_missed)
            if self.callbacks:
                self._due.extend((death, callback) for death in self.take() for callback in self.callbacks)
        while True:  # one at a time: if one raises, the others are called next time
            try:
                death, callback = self._due.popleft()
            except IndexError:
                return
            callback(death)
