"""What it takes to compute a dead worker's batches again: which they were, and which random state the worker had.

With each batch a worker leaves, in memory that it shares with the main process, its random state after that batch. Its
replacement starts from the state that goes with the last batch that came, and does what is left. A dataset that has a
state of its own, as an iterable one, needs more: its replacement does the whole epoch's tasks again, from the state at
the beginning, and what had come already is thrown away. Where each batch has a random state of its own, as with
schedule="dynamic", it is enough to know what is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shmtensor.data.seeds import taken
from shmtensor.tensor import SharedTensor

__all__ = ["Doing", "Notes", "States"]

_NBYTES = 16384  #: of one state: torch's takes 5 KB, numpy's and random's 2.5 KB each


class States:
    """The random states of all workers, each after so many batches as can be outstanding, and as it began the epoch."""

    def __init__(self, workers: int, batches: int) -> None:
        self._shared = SharedTensor.zeros((workers, batches + 1, _NBYTES), np.uint8)

    def _row(self, worker: int, number: int | None) -> Any:
        rows = self._shared.numpy()[worker]
        return rows[0 if number is None else 1 + number % (len(rows) - 1)]

    def leave(self, worker: int, number: int | None) -> None:
        """In the worker, before the batch is published; None: before the epoch's first."""
        state = taken()
        if len(state) > _NBYTES - 8:
            raise RuntimeError(f"a random state of {len(state)} bytes, of which {_NBYTES - 8} can be kept")
        row = self._row(worker, number)
        row[8 : 8 + len(state)] = np.frombuffer(state, np.uint8)
        row[:8].view(np.uint64)[0] = len(state)

    def left(self, worker: int, number: int | None) -> bytes | None:
        """In the main process, after the batch came; None: there is none."""
        row = self._row(worker, number)
        return bytes(row[8 : 8 + int(row[:8].view(np.uint64)[0])]) or None


class Doing:
    """Which batch each worker began last: what it died of, probably."""

    def __init__(self, workers: int) -> None:
        self._shared = SharedTensor.zeros((workers,), np.int64)

    def __setitem__(self, worker: int, number: int) -> None:
        self._shared.numpy()[worker] = number

    def __getitem__(self, worker: int) -> int:
        return int(self._shared.numpy()[worker])


class Notes:
    """What the main process knows of one worker; or of all, if they take their tasks from one queue.

    Args:
        worker: whose they are.
        states: where it leaves its random states; None: each batch has its own.
        doing: what the workers are at, if they have one queue.
        replays: whether a replacement has to do the whole epoch again.
    """

    def __init__(self, worker: int, states: States | None, doing: Doing | None, *, replays: bool) -> None:
        self._worker = worker
        self._states = states
        self._doing = doing
        self._replays = replays
        self._outstanding: dict[int, Any] = {}  # number -> task, in the order in which they were sent
        self._epoch: dict[int, Any] = {}  # likewise, also those that came
        self._tries: dict[int, int] = {}
        self._announced: Any = None  # the new epoch, until it is acknowledged
        self._last: bytes | None = None  # None: as its seeds make it
        self._at_the_beginning: bytes | None = None

    def begins_with(self, state: bytes | None) -> None:
        """Its random state, if it is not that which its seeds make."""
        self._last = self._at_the_beginning = state

    def sent(self, task: Any) -> None:
        if isinstance(task, tuple):
            self._outstanding[task[0]] = task
            if self._replays:
                self._epoch[task[0]] = task
        elif task is not None:  # the next epoch: what is left of this one is of no use any more
            self._announced = task
            self._outstanding.clear()
            self._epoch.clear()
            self._tries.clear()

    def acknowledged(self) -> None:
        """It has heard of the new epoch."""
        self._announced = None
        if self._states is not None:
            self._last = self._at_the_beginning = self._states.left(self._worker, None)

    def has(self, number: int) -> bool:
        return number in self._outstanding

    def came(self, number: int) -> None:
        del self._outstanding[number]
        if self._states is not None:
            self._last = self._states.left(self._worker, number)

    def again(self, worker: int) -> tuple[bytes | None, list[Any], int]:
        """(random state, tasks) for the replacement of ``worker``, and how often that was done for the batch which it
        died of."""
        if self._announced is not None:
            return self._last, [self._announced], 0
        blamed = -1 if self._doing is None else self._doing[worker]
        if blamed not in self._outstanding:
            blamed = next(iter(self._outstanding), -1)
        self._tries[blamed] = self._tries.get(blamed, 0) + 1
        if self._replays:
            return self._at_the_beginning, list(self._epoch.values()), self._tries[blamed]
        return self._last, list(self._outstanding.values()), self._tries[blamed]
