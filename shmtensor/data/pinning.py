"""Which memory of a segment is page-locked: of each slot what this process has mapped of it, or nothing.

A copy must not touch memory of which a part is registered and a part is not, or that two registrations share: CUDA
refuses it. So a slot that has grown is registered anew as a whole, and where that fails it has no registration at all.
"""

from __future__ import annotations

import os

from shmtensor.data.cuda import Cuda
from shmtensor.data.flight import in_flight
from shmtensor.objects import ObjectSlots

__all__ = ["Ranges"]

_PATIENCE = 5.0  #: seconds that the end of a segment waits for copies


class Ranges:
    """The registrations of one segment in the process that made them; a forked child has none."""

    def __init__(self, runtime: Cuda) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        self._of: dict[int, tuple[int, int, int]] = {}  # slot -> (address, bytes, how often it had been trimmed)

    def cover(self, slot: int, address: int, nbytes: int, trims: int, *, afresh: bool = True) -> None:
        """Of a slot that we hold and nobody else looks at, so that no copy from it is under way. ``afresh``: may what
        is not registered yet be so now? RuntimeError: it cannot be, and the slot is not registered."""
        known = self._of.get(slot)
        if known is not None and known[2] == trims and known[1] >= nbytes:
            return
        self._drop(slot)
        if afresh:
            self._runtime.register(address, nbytes)
            self._of[slot] = address, nbytes, trims

    def before_trim(self, slots: ObjectSlots) -> None:
        """Page-locked pages would stay, and stay registered under addresses where others come to lie. Slots that
        somebody has are not trimmed; should one become free in between, cover() finds that it was."""
        if self._pid == os.getpid():
            for slot, (state, *_) in enumerate(slots._slot_states()):
                if state == 0:
                    self._drop(slot)

    def close(self) -> None:
        """Before the mapping goes. Where copies do not come to an end, neither does the mapping."""
        if self._pid != os.getpid():
            return
        if self._of and not in_flight.wait(_PATIENCE):
            in_flight.give_up()
            return
        for slot in list(self._of):
            self._drop(slot)

    def _drop(self, slot: int) -> None:
        known = self._of.pop(slot, None)
        if known is not None:
            self._runtime.unregister(known[0])
