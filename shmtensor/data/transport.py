"""What torch's iterator and its workers take for queues: tasks go out, batches come back, each in a slot.

Of a batch only its number is looked at when it comes; it is opened when it is its turn, for it is then that one knows
how many batches the user still keeps.
"""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import Any

import numpy as np

from shmtensor._core import Parcel
from shmtensor.errors import ShutDown
from shmtensor.objects import ObjectSlots
from shmtensor.queue import Queue
from shmtensor.tensor import SharedTensor

__all__ = ["Context", "Flag", "Results", "Tasks"]


class Flag:
    """multiprocessing.Event, as far as it is needed; without its lock, with which a worker may be killed."""

    def __init__(self) -> None:
        self._word = SharedTensor.from_array(np.zeros(1, np.uint8))

    def set(self) -> None:
        self._word.numpy()[0] = 1

    def is_set(self) -> bool:
        return bool(self._word.numpy()[0])


class Tasks(Queue):
    """What one worker has to do. Its bound is that of the iterator, which has no more outstanding."""

    def __init__(self, depth: int) -> None:
        super().__init__(slots=depth, copy=True)


class Results:
    """The batches of all workers, as the main process sees them.

    Args:
        slots: where they lie.
        opens: whether they are opened at once, because the receiver needs their contents (a thread that pins them).
        keep: how many the user may hold as views.
    """

    def __init__(self, slots: ObjectSlots, keep: int, *, opens: bool) -> None:
        self.slots = slots
        self.keep = keep
        self.opens = opens

    def get(self, timeout: float | None = None) -> tuple[Any, Any]:
        """(number, batch or Parcel), or another pair of what a worker has sent."""
        try:
            tag, x = self.slots.receive_parcel(timeout)
        except ShutDown:
            raise queue.Empty from None
        if tag == 0:
            return x.open(True) if type(x) is Parcel else x  # type: ignore[no-any-return]
        if self.opens and type(x) is Parcel:
            x = x.open(self.slots.reading > self.keep)
        return tag - 1, x

    def put(self, x: Any) -> None:
        """For whoever waits here in another thread."""
        with suppress(queue.Full):
            self.slots.send(x, 0)

    def drain(self) -> None:
        """Throws away what has come: whoever waits for a slot has one."""
        with suppress(queue.Empty, ShutDown):
            while True:
                self.slots.acquire(0).release()

    def cancel_join_thread(self) -> None:
        """Nothing waits in this process."""

    def close(self) -> None:
        """The slots are the loader's."""


class Context:
    """A multiprocessing context as torch's iterator uses it: it makes one queue for results, then one for each worker's
    tasks, a flag, and the processes."""

    def __init__(self, real: Any, results: Results, depth: int, run: Any) -> None:
        self._real = real
        self._results: Results | None = results
        self._depth = depth
        self._run = run

    def Queue(self) -> Results | Tasks:
        results, self._results = self._results, None
        return Tasks(self._depth) if results is None else results

    def Event(self) -> Flag:
        return Flag()

    def Process(self, *, target: Any, args: Any) -> Any:
        return self._real.Process(target=self._run, args=(target, args))
