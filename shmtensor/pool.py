"""Pool: multiprocessing's pool of worker processes, whose tasks and results go through slots.

The standard library's class does all but the transport, and what it has no answer for: a worker that is killed.
There, the task is lost and whoever waits for it waits for ever. Here a task's slot stays the worker's until its result
is published, so the slots say which task a dead worker had:

    parent                              worker
      put: number -> (job, i), a slot     get: the slot is kept
                                          the result, under the same number, then the slot is let go
      get: the number is settled
      every 0.1 s: whoever died with a number that is not settled, once every result that its process
      published has been received: settled by WorkerDied, or sent again

Each number is settled once. Tasks and results have slots of their own: a worker keeps the views of its task while it
waits for a slot for the result.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import context as contexts
from multiprocessing import pool
from threading import Thread
from typing import Any, NamedTuple

from shmtensor._core import Kept
from shmtensor.errors import ShutDown, WorkerDied
from shmtensor.objects import ObjectSlots
from shmtensor.segments import check_int

__all__ = ["Pool"]

_RESULTS = 64  #: slots for results, if nobody says otherwise
_TICK = 0.1  #: seconds between two looks at who died
_Task = tuple[Any, ...]  # of multiprocessing.pool: (job, i, function, arguments, keyword arguments)
_Result = tuple[Any, ...]  # likewise: (job, i, (whether it succeeded, value or exception))


class _Out(NamedTuple):
    """A task that was sent and is not settled."""

    job: int
    i: Any
    task: _Task | None  #: to be sent again
    tries: int


class _Tasks:
    """What goes to the workers."""

    def __init__(self, slots: ObjectSlots, retries: int) -> None:
        self.slots = slots
        self.retries = retries
        self.out: dict[int, _Out] = {}
        self._numbers = itertools.count(1)
        self._begun_in = 0  # which process has

    def __getstate__(self) -> ObjectSlots:
        contexts.assert_spawning(self)
        return self.slots

    def __setstate__(self, slots: ObjectSlots) -> None:
        self.__init__(slots, 0)  # type: ignore[misc]

    # ---- in the parent

    def put(self, task: _Task | None) -> None:
        """Sends a task; None: that was the last one."""
        if task is None:
            self.slots.shutdown()
            return
        self._send(_Out(task[0], task[1], task if self.retries else None, 0), task, wait=True)

    def try_again(self, out: _Out) -> bool:
        """Sends a task once more; False: there is no slot just now."""
        return self._send(out._replace(tries=out.tries + 1), out.task, wait=False)

    def _send(self, out: _Out, task: _Task | None, *, wait: bool) -> bool:
        number = next(self._numbers)
        self.out[number] = out  # first: the result may be here before send() is back
        sent = False
        try:
            if wait:
                self.slots.send(task, None, number)
                sent = True
            else:
                sent = self.slots.try_send(task, number)
        finally:
            if not sent:
                self.out.pop(number, None)
        return sent

    def dead(self) -> list[tuple[int, int]]:
        """(pid, number) of each task that somebody who died had in hand; once."""
        self.slots.reclaim()
        return [
            (pid, number)
            for _, _, pid, slot, reading, _, _, number in self.slots._deaths()
            if slot is not None and reading and number in self.out
        ]

    # ---- in a worker

    def get(self, refuse: Callable[[int, Exception], None]) -> tuple[int, Any, Kept] | None:
        """(number, task, its slot); None: there is no more. What cannot be decoded here is refused."""
        if self._begun_in != os.getpid():
            self._begun_in = os.getpid()
            if "torch" in sys.modules:  # of a parent that was forked after OpenMP ran: its threads are not here
                sys.modules["torch"].set_num_threads(1)
        while True:
            try:
                number, task, error, kept = self.slots.receive_kept()
            except ShutDown:
                return None
            if error is None:
                return number, task, kept
            refuse(number, error)
            kept.release()


class _Results:
    """What comes from the workers, and of those who will send nothing any more."""

    def __init__(self, slots: ObjectSlots, tasks: _Tasks) -> None:
        self.slots = slots
        self.tasks = tasks
        self._taken = 0
        self._next_look = 0.0
        self._dead: list[tuple[int, int]] = []  # (pid, number), whose results may still be on their way
        self._settling: deque[tuple[int, int, int]] = deque()  # (results that come before, number, pid)
        self._again: deque[_Out] = deque()
        self._ready: deque[_Result] = deque()

    def __getstate__(self) -> tuple[ObjectSlots, _Tasks]:
        contexts.assert_spawning(self)
        return self.slots, self.tasks

    def __setstate__(self, state: tuple[ObjectSlots, _Tasks]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    # ---- in the parent

    def put(self, end: None) -> None:
        """Tells who receives that there will be no more."""
        self.slots.shutdown()

    def get(self) -> _Result | None:
        """The next result of a task that is not settled yet; None: there will be no more."""
        while True:
            if time.monotonic() >= self._next_look:
                self._look_for_the_dead()
            if self._ready:
                return self._ready.popleft()
            try:
                number, result, error, kept = self.slots.receive_kept(_TICK)
            except queue.Empty:
                continue
            except ShutDown:
                return None
            kept.release()
            self._taken += 1
            out = self.tasks.out.pop(number, None)
            if out is None:
                continue  # settled already
            if error is None and result[2] is not None:
                return result  # type: ignore[no-any-return]
            return out.job, out.i, (False, error or result[3])

    def _look_for_the_dead(self) -> None:
        self._next_look = time.monotonic() + _TICK
        self._dead += self.tasks.dead()
        if self._dead:
            # A dead process's descriptors close one after the other: it may still have its place here.
            self.slots.reclaim()
            here = {m["pid"] for m in self.slots._members() if m["alive"]}
            pushed = self.slots.unfinished  # nothing here is ever counted as done
            self._settling += [(pushed, number, pid) for pid, number in self._dead if pid not in here]
            self._dead = [(pid, number) for pid, number in self._dead if pid in here]
        while self._settling and self._settling[0][0] <= self._taken:
            _, number, pid = self._settling.popleft()
            out = self.tasks.out.pop(number, None)
            if out is not None:
                self._settle(out, pid)
        while self._again and self.tasks.try_again(self._again[0]):
            self._again.popleft()

    def _settle(self, out: _Out, pid: int) -> None:
        if out.tries < self.tasks.retries:
            self._again.append(out)
            return
        tried = f", as others did {out.tries} times before" if out.tries else ""
        error = WorkerDied(f"worker process {pid} died while it had this task{tried}; see retries=")
        self._ready.append((out.job, out.i, (False, error)))

    # ---- in a worker

    def send(self, number: int, result: _Result) -> None:
        """Raises what pickling raises; nothing was sent then."""
        self.slots.send(result, None, number)

    def refuse(self, number: int, error: Exception) -> None:
        """The answer to a task that could not even be read."""
        try:
            self.slots.send((None, None, None, error), None, number)
        except ShutDown:
            raise
        except Exception:
            self.slots.send((None, None, None, RuntimeError(f"{type(error).__name__}: {error}")), None, number)


class _WorkersTasks:
    """The standard worker's `inqueue`."""

    def __init__(self, tasks: _Tasks, results: _Results) -> None:
        self.tasks, self.results = tasks, results
        self.number = 0
        self.kept: Kept | None = None

    def get(self) -> _Task | None:
        got = self.tasks.get(self.results.refuse)
        if got is None:
            return None
        self.number, task, self.kept = got
        return task  # type: ignore[no-any-return]

    def put(self, task: _Task | None) -> None:
        self.tasks.put(task)


class _WorkersResults:
    """The standard worker's `outqueue`, which knows whose task the result is."""

    def __init__(self, tasks: _WorkersTasks) -> None:
        self.tasks = tasks

    def put(self, result: _Result | None) -> None:
        tasks = self.tasks
        if result is None:
            tasks.results.put(None)
            return
        with suppress(ShutDown):  # the pool has been terminated: nobody waits for it
            tasks.results.send(tasks.number, result)
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
        max_slot_nbytes: bytes that one task or result may take. None: a quarter of the machine's memory.
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
        some = min(max(4 * (processes or os.cpu_count() or 1), 8), 4096)  # so that no worker waits
        if slots is None:
            slots = max(some, _RESULTS)
        self._options = retries, some, slots, max_slot_nbytes, copy
        if context is not None and hasattr(context, "without_ours"):
            context = context.without_ours()  # what the standard class does with its own queues needs their pipes
        super().__init__(processes, initializer, initargs, maxtasksperchild, context or multiprocessing.get_context())

    def _setup_queues(self) -> None:
        retries, some, slots, max_slot_nbytes, copy = self._options
        tasks = _Tasks(ObjectSlots.create(some, max_slot_nbytes=max_slot_nbytes), retries)
        results = _Results(ObjectSlots.create(slots, max_slot_nbytes=max_slot_nbytes, copy=copy), tasks)
        self._inqueue = _WorkersTasks(tasks, results)
        self._outqueue = _WorkersResults(self._inqueue)
        self._quick_put = tasks.put
        self._quick_get = results.get

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
