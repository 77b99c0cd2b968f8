"""Pool: multiprocessing's pool of worker processes, whose tasks and results go through slots.

The standard library's class does all but the transport, and what it has no answer for: a worker that is killed. There,
the task is lost and whoever waits for it waits for ever; how it is found here says tasks.py.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import pool
from threading import Thread
from typing import Any

from shmtensor._core import Kept
from shmtensor.errors import ShutDown
from shmtensor.objects import ObjectSlots
from shmtensor.segments import check_int
from shmtensor.tasks import TICK, Results, Tasks, slots_for_results

__all__ = ["Pool"]

_Task = tuple[Any, ...]  # of multiprocessing.pool: (job, i, function, arguments, keyword arguments)
_Result = tuple[Any, ...]  # likewise: (job, i, (whether it succeeded, value or exception))


class _ParentsTasks(Tasks):
    """What the standard task handler puts its tasks into."""

    def put_task(self, task: _Task | None) -> None:
        """Sends a task; None: that was the last one."""
        if task is None:
            self.slots.shutdown()
        else:
            self.put(task[:2], task)


class _ParentsResults(Results):
    """What the standard result handler gets its results from."""

    _next_look = 0.0

    def get_result(self) -> _Result | None:
        """The next result of a task that is not settled yet; None: there will be no more."""
        while True:
            if time.monotonic() >= self._next_look:
                self.look_for_the_dead()
                self._next_look = time.monotonic() + TICK
            try:
                settled = self.get(TICK)
            except queue.Empty:
                continue
            except ShutDown:
                return None
            if settled is not None:
                return *settled.key, settled[1:]


class _WorkersTasks:
    """The standard worker's `inqueue`."""

    def __init__(self, tasks: _ParentsTasks, results: _ParentsResults) -> None:
        self.tasks, self.results = tasks, results
        self.number = 0
        self.kept: Kept | None = None

    def get(self) -> _Task | None:
        got = self.tasks.get(self._refuse)
        if got is None:
            return None
        self.number, task, self.kept = got
        return task  # type: ignore[no-any-return]

    def put(self, task: _Task | None) -> None:
        self.tasks.put_task(task)

    def _refuse(self, number: int, error: BaseException) -> None:
        if not isinstance(error, Exception):
            raise error  # SystemExit ends a worker, and its task with it
        self.results.refuse(number, error)


class _WorkersResults:
    """The standard worker's `outqueue`, which knows whose task the result is."""

    def __init__(self, tasks: _WorkersTasks) -> None:
        self.tasks = tasks

    def put(self, result: _Result | None) -> None:
        tasks = self.tasks
        if result is None:
            tasks.results.slots.shutdown()
            return
        with suppress(ShutDown):  # the pool has been terminated: nobody waits for it
            tasks.results.send(tasks.number, *result[2])
        if tasks.kept is not None:
            tasks.kept.release()
            tasks.kept = None


class Pool(pool.Pool):
    """multiprocessing.Pool's interface: ``map imap imap_unordered starmap apply``, their ``_async`` forms, callbacks,
    ``close terminate join``. Arrays and tensors in arguments and results are not pickled; results come back as views of
    shared memory.

    Args:
        processes, initializer, initargs, maxtasksperchild, context: as there.
        retries: how often a task is given to another worker if its worker dies; after that, and with 0, whoever waits
            for it gets WorkerDied. A task that is not safe to run twice needs 0.
        slots: how many results are in shared memory at once, those that are kept included; a slot costs memory when a
            result needs it. None: 64, or four for each worker.
        max_slot_nbytes: bytes that one task or result may take. None: a quarter of the machine's memory, but all slots
            together no more than an eighth of the address space that is left.
        copy: True: results are always received as copies. Else they are as long as views keep half of the slots.

    Raises:
        TypeError, ValueError: an argument is wrong.
        ShmNoSpaceError: memory is short.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        retries: int = 0,
        slots: int | None = None,
        max_slot_nbytes: int | None = None,
        copy: bool = False,
    ) -> None:
        self._pool: list[Any] = []
        self._state = pool.INIT  # for __del__, if this raises
        check_int("retries", retries, 0, 2**31)
        workers = processes or os.cpu_count() or 1
        some = min(max(4 * workers, 8), 4096)  # so that no worker waits
        if slots is None:
            slots = slots_for_results(workers)
        self._options = retries, some, slots, max_slot_nbytes, copy
        if context is not None and hasattr(context, "without_ours"):
            context = context.without_ours()  # what the standard class does with its own queues needs their pipes
        super().__init__(processes, initializer, initargs, maxtasksperchild, context or multiprocessing.get_context())

    def _setup_queues(self) -> None:
        retries, some, slots, max_slot_nbytes, copy = self._options
        tasks = _ParentsTasks(ObjectSlots.create(some, max_slot_nbytes=max_slot_nbytes), retries)
        results = _ParentsResults(ObjectSlots.create(slots, max_slot_nbytes=max_slot_nbytes, copy=copy), tasks)
        self._inqueue = _WorkersTasks(tasks, results)
        self._outqueue = _WorkersResults(self._inqueue)
        self._quick_put = tasks.put_task
        self._quick_get = results.get_result

    def _get_sentinels(self) -> list[Any]:
        return [self._change_notifier._reader]  # type: ignore[attr-defined]

    @staticmethod
    def _help_stuff_finish(inqueue: _WorkersTasks, task_handler: Thread, size: int) -> None:
        """The task handler may be waiting for a slot."""
        inqueue.put(None)

    def trim(self) -> int:
        """As Queue.trim(), of the slots for tasks and for results."""
        return self._inqueue.tasks.slots.trim() + self._inqueue.results.slots.trim()

    def stats(self) -> dict[str, int]:
        """Figures of the results' slots, as Queue.stats(), and ``tasks``: how many are out, and not settled."""
        results = self._inqueue.results.slots
        return {**results.stats(), "copied": results.copied, "tasks": len(self._inqueue.tasks.out)}
