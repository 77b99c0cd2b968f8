"""Batches from which a device still copies: kept until the events behind the copies have passed.

torch does the same for its own pinned memory and knows nothing of ours. Nobody waits for an event here but at the end:
whoever asks for a batch looks which have passed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from shmtensor.data import cuda
from shmtensor.data.structure import leaves

__all__ = ["InFlight", "in_flight", "record_stream"]

_FIRST_STEP, _LAST_STEP = 0.0001, 0.005  #: seconds between two looks of a wait


@dataclasses.dataclass(eq=False)
class _Entry:
    number: int
    events: Sequence[Any]
    things: list[Any]  # tensors and whatever else may keep a slot


class InFlight:
    """Of this process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._count = 0
        self._kept: list[_Entry] = []
        self._for_ever: list[_Entry] = []

    def _own(self) -> list[_Entry]:
        if self._pid != os.getpid():  # a child does not ask for its parent's events, nor end them
            self._for_ever += self._kept
            self._kept = []
            self._pid = os.getpid()
        return self._kept

    def __len__(self) -> int:
        return len(self._own())

    def keep(self, events: Sequence[Any], things: list[Any]) -> None:
        self._count += 1
        self._own().append(_Entry(self._count, events, things))

    def poll(self) -> None:
        """Lets go of what the device is done with."""
        if not self._kept:  # as for everybody who does not copy; they pay for no system call
            return
        kept = self._own()
        for entry in tuple(kept):  # which stays in the list until it is done, for whoever looks in another thread
            if all(map(cuda.runtime.is_done, entry.events)) and entry in kept:
                kept.remove(entry)

    def wait(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Sleeps until what is in flight now is done, or ``until`` says that this is enough. False: it took too long,
        or it was not enough."""
        last = self._count  # and not the entries themselves, with what they keep
        end = time.monotonic() + seconds
        step = _FIRST_STEP
        while True:
            self.poll()
            if until is not None and until():
                return True
            if not any(entry.number <= last for entry in self._own()):
                return until is None
            if time.monotonic() >= end:
                return False
            time.sleep(step)
            step = min(2 * step, _LAST_STEP)

    def give_up(self) -> None:
        """The device does not answer: its memory stays as it is until the process ends."""
        kept = self._own()
        self._for_ever += kept
        kept.clear()


in_flight = InFlight()


def record_stream(batch: Any, stream: torch.cuda.Stream) -> None:
    """Keeps a batch's slot until what was issued on a CUDA stream so far is done: for whoever copies batches that are
    pinned in place by themselves. Call it after the batch's last ``.to(device, non_blocking=True)``, with the batch as
    it came from the loader.

    Raises:
        RuntimeError: there is no CUDA device, so that nothing can be under way.
        TypeError: ``stream`` is None.
        ValueError: the batch has tensors, but all of them are on a device already.
    """
    if not cuda.runtime.is_available():
        raise RuntimeError("record_stream(): torch finds no CUDA device, so no batch can be on its way to one")
    if stream is None:
        raise TypeError("stream must be a torch.cuda.Stream, as torch.cuda.current_stream() returns it, not None")
    found = leaves(batch)
    tensors = [x for x in found if isinstance(x, torch.Tensor)]
    if tensors and all(x.device.type != "cpu" for x in tensors):
        raise ValueError("record_stream() takes the batch as it came from the loader; all of this one is on a device")
    in_flight.keep([cuda.runtime.record(stream)], found)
