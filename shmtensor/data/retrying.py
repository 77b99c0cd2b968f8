"""What it takes to compute a dead worker's batches again: which they were, and which random state the worker had.

With each batch a worker leaves, in memory that it shares with the main process, its random state after that batch. Its
replacement starts from the state that goes with the last batch that came, and does what is left. A dataset that has a
state of its own, as an iterable one, needs more: its replacement does the whole epoch's tasks again, from the state at
the beginning, and what had come already is thrown away.
"""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch

from shmtensor.tensor import SharedTensor

__all__ = ["Notes", "States", "restore"]

_NBYTES = 16384  #: of one state: torch's takes 5 KB, numpy's and random's 2.5 KB each


def _taken() -> bytes:
    return pickle.dumps((torch.get_rng_state().numpy().tobytes(), np.random.get_state(), random.getstate()), 5)


def restore(state: bytes) -> None:
    """Sets the random states of torch, numpy and random."""
    of_torch, of_numpy, of_random = pickle.loads(state)
    torch.set_rng_state(torch.frombuffer(bytearray(of_torch), dtype=torch.uint8))
    np.random.set_state(of_numpy)
    random.setstate(of_random)


class States:
    """The random states of all workers, each after so many batches as can be outstanding."""

    def __init__(self, workers: int, batches: int) -> None:
        self._shared = SharedTensor.zeros((workers, batches, _NBYTES), np.uint8)

    def leave(self, worker: int, number: int) -> None:
        """In the worker, before the batch is published."""
        state = _taken()
        if len(state) > _NBYTES - 8:
            raise RuntimeError(f"a random state of {len(state)} bytes: retries= knows of {_NBYTES - 8}")
        row = self._shared.numpy()[worker, number % self._shared.shape[1]]
        row[8 : 8 + len(state)] = np.frombuffer(state, np.uint8)
        row[:8].view(np.uint64)[0] = len(state)

    def left(self, worker: int, number: int) -> bytes:
        """In the main process, after the batch came."""
        row = self._shared.numpy()[worker, number % self._shared.shape[1]]
        return bytes(row[8 : 8 + int(row[:8].view(np.uint64)[0])])


class Notes:
    """What the main process knows of one worker.

    Args:
        replays: whether its replacement has to do the whole epoch again.
    """

    def __init__(self, *, replays: bool) -> None:
        self._replays = replays
        self._outstanding: dict[int, Any] = {}  # number -> task, in the order in which they were sent
        self._epoch: dict[int, Any] = {}  # likewise, also those that came
        self._tries: dict[int, int] = {}
        self._is_new_epoch = True
        self._at_the_beginning: bytes | None = None  # None: as its seeds make it
        self._last: bytes | None = None

    def sent(self, task: Any) -> None:
        if not isinstance(task, tuple):  # the next epoch is announced, or the end
            self._is_new_epoch = True
            return
        if self._is_new_epoch:
            self._is_new_epoch = False
            self._at_the_beginning = self._last
            self._epoch.clear()
            self._tries.clear()
        self._outstanding[task[0]] = task
        if self._replays:
            self._epoch[task[0]] = task

    def has(self, number: int) -> bool:
        return number in self._outstanding

    def came(self, number: int, state: bytes) -> None:
        del self._outstanding[number]
        self._last = state

    def again(self) -> tuple[bytes | None, list[Any], int]:
        """(random state, tasks) for a replacement, and the how-manieth try of the first that is outstanding this is."""
        first = next(iter(self._outstanding), -1)
        self._tries[first] = self._tries.get(first, 0) + 1
        if self._replays:
            return self._at_the_beginning, list(self._epoch.values()), self._tries[first]
        return self._last, list(self._outstanding.values()), self._tries[first]
