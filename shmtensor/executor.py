"""ProcessPoolExecutor: concurrent.futures' executor over worker processes, whose tasks and results go through slots.

    the caller's thread          the manager's thread                  workers
      submit: into a slot,         results settle futures                take a task, keep its slot,
      or into the queue before     what waits is sent where there        send the result, let the slot go
                                   is room; who died is replaced, or
                                   breaks the pool

This file is what users see; executor_manager.py is the thread, executor_worker.py the worker, and tasks.py what
Pool has in common with it: how it is found which task a dead worker had.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool, _chain_from_iterable_of_lists, _process_chunk
from functools import partial
from typing import Any, ParamSpec, TypeVar

from shmtensor.executor_manager import Item, Manager, Office, is_exiting, started
from shmtensor.segments import check_int
from shmtensor.tasks import slots_for_results

__all__ = ["ProcessPoolExecutor"]

_WORKERS_MAX = 1000  #: the slots have 1,024 members' places

P = ParamSpec("P")
T = TypeVar("T")


class ProcessPoolExecutor(Executor):
    """concurrent.futures.ProcessPoolExecutor's interface: ``submit map shutdown``, futures and their cancellation, and
    of Python 3.14 ``terminate_workers kill_workers``. Arrays and tensors in arguments and results are not pickled;
    results come back as views of shared memory.

    Args:
        max_workers, mp_context, initializer, initargs, max_tasks_per_child: as there; at most 1,000 workers.
        retries: how often a task is given to another worker if its worker dies; a new one is started in its place, and
            the pool goes on. A task whose workers died once more often than that gets WorkerDied. With 0, a worker's
            death breaks the pool, as there: everything that is not settled gets BrokenProcessPool. A task that is not
            safe to run twice needs 0.
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
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
        slots: int | None = None,
        max_slot_nbytes: int | None = None,
        copy: bool = False,
    ) -> None:
        if max_workers is None:
            max_workers = min(getattr(os, "process_cpu_count", os.cpu_count)() or 1, _WORKERS_MAX)
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        check_int("max_workers", max_workers, 1, _WORKERS_MAX)
        if mp_context is None:
            mp_context = multiprocessing.get_context("spawn" if max_tasks_per_child is not None else None)
        self._is_forking = mp_context.get_start_method(allow_none=False) == "fork"
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if self._is_forking:
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; supply a "
                    "different mp_context."
                )
        check_int("retries", retries, 0, 2**31)
        if slots is None:
            slots = slots_for_results(max_workers)
        job = initializer, tuple(initargs), max_tasks_per_child
        self._office = Office(mp_context, max_workers, job, retries, slots, max_slot_nbytes, copy)
        # What follows is called as it is there, since there are those who look at it.
        self._max_workers = max_workers
        self._mp_context = mp_context
        self._processes: dict[int, Any] | None = self._office.processes
        self._executor_manager_thread: Manager | None = None

    @property
    def _broken(self) -> str | None:
        return self._office.broken

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As there. Where a slot is free the arguments are copied into it at once, else when there is one: do not
        change them before the task is done. What cannot be pickled, or is larger than max_slot_nbytes, is the future's
        error.

        Raises:
            BrokenProcessPool: a worker died, or its initializer failed.
            RuntimeError: after shutdown(), at the interpreter's exit, and in a process that was forked from the
                executor's.
        """
        office = self._office
        if office.pid != os.getpid():
            raise RuntimeError("cannot schedule new futures in a forked process: the executor belongs to its parent")
        with office.lock:
            if office.broken is not None:
                raise BrokenProcessPool(office.broken)
            if office.shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if is_exiting():
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            future: Future[T] = Future()
            item = Item(future, (fn, args, kwargs))
            office.pending.add(item)
            try:
                self._start()
            except BaseException:
                office.pending.discard(item)
                raise
            office.waiting.append(item)
        self._send()
        return future

    def _start(self) -> None:
        """The workers that are wanted, and the manager. As there, all that are forked are before its thread is, but for
        those who replace the dead."""
        office = self._office
        if self._is_forking and self._executor_manager_thread is None:
            while len(office.processes) < self._max_workers:
                office.start_worker()
        elif office.lacks_workers:
            office.start_worker()
        if self._executor_manager_thread is None:
            self._executor_manager_thread = started(self, office)

    def _send(self) -> None:
        """Sends what waits, here and now: a change of threads takes longer. What fails is left to the manager, so that
        no future's callbacks are called by submit()."""
        office = self._office
        while (item := office.take()) is not None:
            try:
                if not office.send(item):
                    return
            except BaseException as e:
                office.put_back(item)
                office.nudge()
                if not isinstance(e, Exception):
                    raise
                return

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """As there: ``map(fn, *iterables)``, evaluated by the workers, in order.

        Args:
            timeout: seconds from now on within which each result must be there; None: no limit.
            chunksize: how many calls make one task. With ``retries``, that many are run again if a worker dies.

        Raises:
            TimeoutError: when a result is asked for that is not there in time.
            ValueError: chunksize is less than 1.
            What ``fn`` raises, when its result is asked for.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        chunks = super().map(partial(_process_chunk, fn), _chunks(zip(*iterables), chunksize), timeout=timeout)  # noqa: B905
        return _chain_from_iterable_of_lists(chunks)  # type: ignore[no-any-return]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As there: nothing can be submitted any more; what was, is finished.

        Args:
            wait: whether to return only when everything is settled and the workers have ended.
            cancel_futures: cancels what no worker, and no slot, has got yet.
        """
        office = self._office
        manager = self._executor_manager_thread
        if office.pid != os.getpid():
            return  # of a forked process: it is its parent's
        with office.lock:
            office.shut = True
            office.cancel_pending = office.cancel_pending or cancel_futures
        office.nudge()
        if manager is None:
            office.close()
        elif wait:
            manager.join()
        self._executor_manager_thread = None
        self._processes = None

    def terminate_workers(self) -> None:
        """Ends the executor at once, by SIGTERM to its workers. What waits is cancelled, what is being done gets
        BrokenProcessPool, whatever ``retries`` says."""
        self._end_workers("terminate")

    def kill_workers(self) -> None:
        """terminate_workers() by SIGKILL."""
        self._end_workers("kill")

    def _end_workers(self, how: str) -> None:
        processes = list((self._processes or {}).values())
        self._office.forced = True
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            if process.is_alive():
                getattr(process, how)()

    def stats(self) -> dict[str, int]:
        """Figures of the results' slots, as Queue.stats(); ``tasks``: how many are in slots or in hand, ``waiting``:
        how many wait for a slot; ``copied``: results received as copies.

        Raises:
            ClosedError: after shutdown().
        """
        office = self._office
        results = office.results.slots
        counts = {"copied": results.copied, "tasks": len(office.tasks.out), "waiting": len(office.waiting)}
        return {**results.stats(), **counts}


def _chunks(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    it = iter(items)
    while chunk := tuple(itertools.islice(it, size)):
        yield chunk
