"""What torch's iterator takes for a multiprocessing context: of it come its queues, its flag, and its processes."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from shmtensor.data.results import Results
from shmtensor.data.retrying import Notes
from shmtensor.data.tasks import SharedTasks, Tasks
from shmtensor.tensor import SharedTensor

__all__ = ["Context"]


class Flag:
    """multiprocessing.Event, as far as it is needed; without its lock, with which a worker may be killed."""

    def __init__(self) -> None:
        self._word = SharedTensor.from_array(np.zeros(1, np.uint8))

    def set(self) -> None:
        self._word.numpy()[0] = 1

    def is_set(self) -> bool:
        return bool(self._word.numpy()[0])


class Context:
    """A multiprocessing context as torch's iterator uses it: it makes one queue for results, then one for each worker's
    tasks, a flag, and the processes.

    Args:
        real: that which makes the processes.
        depth: how many tasks a worker has at most.
        run: what a process runs: it is given torch's loop, its arguments, and what ``begins`` has for the worker.
        begins: of each worker, the random state to begin with; None: its seeds'.
        base_seed: of their seeds; None: that which torch's iterator has drawn.
        shares: whether all have one queue of tasks.
        retries: whether processes that die are replaced.
        replays: whether a replacement has to do the whole epoch again.
    """

    def __init__(
        self,
        real: Any,
        results: Results,
        depth: int,
        run: Any,
        begins: list[bytes | None],
        *,
        base_seed: int | None,
        shares: bool,
        retries: bool,
        replays: bool,
    ) -> None:
        self._real = real
        self._results = results
        self._has_results = False
        self._depth = depth
        self._run = run
        self._begins = begins
        self._base_seed = base_seed
        self.shared: SharedTasks | None = None
        self._shares = shares
        self._retries = retries
        self._replays = replays
        self._made = 0  # queues of tasks
        self._jobs: list[tuple[Any, tuple[Any, ...]]] = []  # of each worker: what it runs

    def Queue(self) -> Results | Tasks:
        if not self._has_results:
            self._has_results = True
            return self._results
        worker = self._made
        self._made += 1
        if self.shared is not None:
            return self.shared
        notes = None
        if self._retries:
            notes = Notes(worker, self._results.states, self._results.doing, replays=self._replays)
            notes.begins_with(self._begins[worker])
            self._results.notes.append(notes)
        if not self._shares:
            return Tasks(self._depth, notes)
        self.shared = SharedTasks(self._depth * len(self._begins), notes, self._results)
        return self.shared

    def Event(self) -> Flag:
        return Flag()

    def Process(self, *, target: Any, args: tuple[Any, ...]) -> Any:
        if self._base_seed is not None:
            call = inspect.signature(target).bind(*args)
            call.arguments["base_seed"] = self._base_seed
            args = call.args
        self._jobs.append((target, args))
        state = self._begins[len(self._jobs) - 1]
        return self._real.Process(target=self._run, args=(target, args, state))

    def replacement(self, worker: int, pid: int) -> tuple[Any, Tasks, list[Any], int]:
        """Another process that runs what a worker ran, that of ``pid``, not started yet; its queue; the tasks to be
        sent; and how often the first was tried. The queue is a new one, for nobody knows how far the other was read, or
        that of all."""
        target, args = self._jobs[worker]
        (queue_of_tasks,) = (x for x in args if isinstance(x, Tasks))
        state, tasks, tries = queue_of_tasks.again(worker, pid)
        if self.shared is None:
            new = Tasks(self._depth, queue_of_tasks.notes)
            args = tuple(new if x is queue_of_tasks else x for x in args)
            queue_of_tasks = new
        self._jobs[worker] = target, args
        process = self._real.Process(target=self._run, args=(target, args, state))
        process.daemon = True
        return process, queue_of_tasks, tasks, tries
