"""What torch's iterator and its workers take for queues: tasks go out, batches come back, each in a slot.

Of a batch only its number is looked at when it comes; it is opened when it is its turn, for it is then that one knows
how many batches the user still keeps.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from shmtensor._core import Parcel
from shmtensor.data.retrying import Notes, States
from shmtensor.data.shelf import SPIN_US
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

    def __init__(self, depth: int, notes: Notes | None) -> None:
        super().__init__(slots=depth, copy=True, spin_us=SPIN_US)
        self.notes = notes

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.notes = None  # are the main process's

    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        if self.notes is not None:
            self.notes.sent(obj)
        super().put(obj, block, timeout)

    def resend(self, task: Any) -> None:
        """A task that was sent before, to one who is dead."""
        super().put(task)


class Results:
    """The batches of all workers, as the main process sees them.

    Args:
        slots: where they lie.
        keep: how many the user may hold as views.
        opens: whether they are opened at once, because the receiver needs their contents (a thread that pins them).
        states: of the workers, if those that die are to be replaced.
    """

    def __init__(self, slots: ObjectSlots, keep: int, *, opens: bool, states: States | None) -> None:
        self.slots = slots
        self.keep = keep
        self.opens = opens
        self.states = states
        self.notes: list[Notes] = []  # of each worker, if there are states
        self._early: deque[tuple[Any, Any]] = deque()
        self.waited_s = 0.0  #: seconds of waiting for others

    def __getstate__(self) -> tuple[ObjectSlots, States | None]:
        return self.slots, self.states

    def __setstate__(self, state: tuple[ObjectSlots, States | None]) -> None:
        slots, states = state
        self.__init__(slots, 0, opens=False, states=states)  # type: ignore[misc]

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
            if tag == 0:
                return x.open(True) if type(x) is Parcel else x  # type: ignore[no-any-return]
            if self.opens and type(x) is Parcel:
                x = x.open(self.slots.reading > self.keep)
            if self.states is None or self._is_new(tag - 1):
                return tag - 1, x

    def _receive_and_time(self, timeout: float | None) -> tuple[int, Any]:
        """As the slots' own, and takes down how long it waited."""
        try:
            return self.slots.receive_parcel(0)
        except queue.Empty:
            if timeout == 0:
                raise
        began = time.perf_counter()
        try:
            return self.slots.receive_parcel(timeout)
        finally:
            self.waited_s += time.perf_counter() - began

    def _is_new(self, number: int) -> bool:
        """Takes down that a batch came; False: it came before, and was made again on the way to a later one."""
        for worker, notes in enumerate(self.notes):
            if notes.has(number):
                assert self.states is not None
                notes.came(number, self.states.left(worker, number))
                return True
        return False

    def take_in(self) -> None:
        """Whatever somebody who is dead has sent will be given out before anything else."""
        self.slots.reclaim()
        with suppress(queue.Empty):
            while True:
                self._early.append(self._receive(0))

    def put(self, x: Any) -> None:
        """For whoever waits here in another thread."""
        with suppress(queue.Full):
            self.slots.send(x, 0)

    def drain(self) -> None:
        """Throws away what has come: whoever waits for a slot has one."""
        self._early.clear()
        self.slots.drain()

    def cancel_join_thread(self) -> None:
        """Nothing waits in this process."""

    def close(self) -> None:
        """The slots are the loader's."""


class Context:
    """A multiprocessing context as torch's iterator uses it: it makes one queue for results, then one for each worker's
    tasks, a flag, and the processes."""

    def __init__(self, real: Any, results: Results, depth: int, run: Any, *, replays: bool) -> None:
        self._real = real
        self._results = results
        self._has_results = False
        self._depth = depth
        self._run = run
        self._replays = replays
        self._jobs: list[tuple[Any, tuple[Any, ...]]] = []  # of each worker: what it runs

    def Queue(self) -> Results | Tasks:
        if not self._has_results:
            self._has_results = True
            return self._results
        notes = None
        if self._results.states is not None:
            notes = Notes(replays=self._replays)
            self._results.notes.append(notes)
        return Tasks(self._depth, notes)

    def Event(self) -> Flag:
        return Flag()

    def Process(self, *, target: Any, args: tuple[Any, ...]) -> Any:
        self._jobs.append((target, args))
        return self._real.Process(target=self._run, args=(target, args))

    def replacement(self, worker: int, state: bytes | None) -> tuple[Any, Tasks]:
        """Another process that runs what a worker ran, not started yet, and its queue: a new one, for nobody knows how
        far the other was read."""
        target, args = self._jobs[worker]
        (old,) = (x for x in args if isinstance(x, Tasks))
        new = Tasks(self._depth, old.notes)
        args = tuple(new if x is old else x for x in args)
        self._jobs[worker] = target, args
        process = self._real.Process(target=self._run, args=(target, args, state))
        process.daemon = True
        return process, new
