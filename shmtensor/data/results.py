"""What torch's iterator takes for its data queue: batches come back, each in a slot.

Of a batch only its number is looked at when it comes; it is opened when it is its turn, for it is then that one knows
how many batches the user still keeps.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from contextlib import suppress
from typing import Any

from shmtensor._core import Parcel
from shmtensor.data.retrying import Doing, Notes, States
from shmtensor.errors import ShutDown
from shmtensor.objects import ObjectSlots

__all__ = ["EPOCHS", "Results", "tag_from", "tag_of"]

#: A tag says which batch of which epoch it is: the epoch above, and below the number + 1. 0 below: it is no batch, but
#: an answer of the worker that stands above, + 1; or nobody's.
_EPOCH_SHIFT = 48
EPOCHS = 1 << 15


def tag_of(number: int, epoch: int) -> int:
    """Of a batch."""
    return epoch << _EPOCH_SHIFT | number + 1


def tag_from(worker: int) -> int:
    """Of an answer."""
    return worker + 1 << _EPOCH_SHIFT


class Results:
    """The batches of all workers, as the main process sees them.

    Args:
        slots: where they lie.
        keep: how many the user may hold as views.
        opens: whether they are opened at once, because the receiver needs their contents (a thread that pins them).
        states: where the workers leave their random states, if those are needed.
        doing: where they leave what they are at, if that is needed.
    """

    def __init__(
        self, slots: ObjectSlots, keep: int, *, opens: bool, states: States | None, doing: Doing | None
    ) -> None:
        self.slots = slots
        self.keep = keep
        self.opens = opens
        self.states = states
        self.doing = doing
        self.notes: list[Notes] = []  # of each worker, or of all, if they are replaced when they die
        self.epoch = 0  # of whose batches the others are thrown away
        self._early: deque[tuple[Any, Any]] = deque()
        self.waited_s = 0.0  #: seconds of waiting for others

    def __getstate__(self) -> tuple[ObjectSlots, States | None, Doing | None]:
        return self.slots, self.states, self.doing

    def __setstate__(self, state: tuple[ObjectSlots, States | None, Doing | None]) -> None:
        slots, states, doing = state
        self.__init__(slots, 0, opens=False, states=states, doing=doing)  # type: ignore[misc]

    @property
    def inbox(self) -> ObjectSlots:
        """What the workers send to."""
        return self.slots

    def get(self, timeout: float | None = None) -> tuple[Any, Any]:
        """(number, batch or Parcel), or another pair of what a worker has sent."""
        if self._early:
            return self._early.popleft()
        return self._receive(timeout)

    def _receive(self, timeout: float | None) -> tuple[Any, Any]:
        while True:
            try:
                tag, x = self._receive_and_time(timeout)
            except ShutDown:
                raise queue.Empty from None
            epoch, number = tag >> _EPOCH_SHIFT, (tag & (1 << _EPOCH_SHIFT) - 1) - 1
            if number < 0:
                if self.notes and epoch > 0:
                    self.notes[epoch - 1].acknowledged()
                return x.open(True) if type(x) is Parcel else x  # type: ignore[no-any-return]
            if epoch != self.epoch:
                continue
            if self.opens and type(x) is Parcel:
                x = x.open(self.slots.reading > self.keep)
            if not self.notes or self._is_new(number):
                return number, x

    def _receive_and_time(self, timeout: float | None) -> tuple[int, Any]:
        """As the slots' own, and takes down how long it waited."""
        try:
            return self.inbox.receive_parcel(0)
        except queue.Empty:
            if timeout == 0:
                raise
        began = time.perf_counter()
        try:
            return self.inbox.receive_parcel(timeout)
        finally:
            self.waited_s += time.perf_counter() - began

    def _is_new(self, number: int) -> bool:
        """Takes down that a batch came; False: it came before, and was made again on the way to a later one, or by
        another worker."""
        for notes in self.notes:
            if notes.has(number):
                notes.came(number)
                return True
        return False

    @property
    def parked(self) -> int:
        """Slots of batches that came, and that nobody was given yet."""
        return sum(type(x) is Parcel for _, x in self._early)

    def put_back(self, x: tuple[Any, Any]) -> None:
        """It will be given out before anything else."""
        self._early.append(x)

    def take_in(self) -> None:
        """Whatever somebody who is dead has sent will be given out before anything else."""
        self.slots.reclaim()
        with suppress(queue.Empty):
            while True:
                self.put_back(self._receive(0))

    def put(self, x: Any) -> None:
        """For whoever waits here in another thread."""
        with suppress(queue.Full):
            self.slots.send(x, 0)

    def drain(self) -> None:
        """Throws away what has come: whoever waits for a slot has one."""
        self._early.clear()
        self.slots.drain()

    def left(self) -> ObjectSlots:
        """The slots, for another epoch: nobody else is there any more."""
        return self.slots

    def cancel_join_thread(self) -> None:
        """Nothing waits in this process."""

    def close(self) -> None:
        """The slots are the loader's."""
