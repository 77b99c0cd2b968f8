"""The thread of ProcessPoolExecutor that settles its futures, and watches over its workers.

It sleeps until a result comes, or a nudge, and looks ten times a second whether a worker has ended. It knows the
executor only weakly: one that is dropped is finished like one that is shut down.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future, InvalidStateError, _base
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from contextlib import suppress
from traceback import format_exception
from typing import Any

from shmtensor.executor_worker import work
from shmtensor.objects import ObjectSlots
from shmtensor.tasks import TICK, Results, Settled, Tasks

__all__ = ["Item", "Manager", "Office", "is_exiting", "started"]

_GRACE = 5.0  #: seconds that workers of a broken pool have to end by SIGTERM

_exiting = False
_managers: weakref.WeakSet[Manager] = weakref.WeakSet()


def is_exiting() -> bool:
    """Whether the interpreter is: nothing can be submitted any more."""
    return _exiting


def _at_exit() -> None:
    """As concurrent.futures does: whatever was submitted is finished first."""
    global _exiting
    _exiting = True
    managers = list(_managers)
    for manager in managers:
        manager.office.nudge()
    for manager in managers:
        manager.join()


def _in_forked_child() -> None:
    global _exiting, _managers
    _exiting = False
    _managers = weakref.WeakSet()  # theirs are not here


os.register_at_fork(after_in_child=_in_forked_child)
with suppress(RuntimeError):  # imported while the interpreter exits
    # Before the threads that are no daemons are joined, which a function of atexit would come after.
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]


class Item:
    """What was submitted."""

    __slots__ = ("future", "is_running", "task")

    def __init__(self, future: Future[Any], task: tuple[Any, ...]) -> None:
        self.future = future
        self.task: tuple[Any, ...] | None = task  #: function, arguments, keyword arguments; until it was sent
        self.is_running = False  #: the future cannot be cancelled any more

    def begin(self) -> bool:
        """False: there is nothing to do any more; whoever waits for a cancelled future has been told."""
        try:
            self.is_running = self.future.set_running_or_notify_cancel()
        except (InvalidStateError, RuntimeError):  # settled by somebody else
            return False
        return self.is_running


class Office:
    """What an executor and its manager both handle."""

    def __init__(
        self,
        mp_context: Any,
        max_workers: int,
        job: tuple[Any, ...],
        retries: int,
        slots: int,
        max_slot_nbytes: int | None,
        copy: bool,
    ) -> None:
        self.pid = os.getpid()
        self.mp_context = mp_context
        self.max_workers = max_workers
        self.job = job  #: what a worker is told beside the slots
        # As many tasks are in slots, or in hand, as the standard executor's call queue and workers have at most: those
        # can no longer be cancelled. Views that workers keep may take half of the slots.
        self.most_out = 2 * max_workers + 1
        self.tasks = Tasks(ObjectSlots.create(2 * self.most_out + 2, max_slot_nbytes=max_slot_nbytes), retries)
        self.results = Results(ObjectSlots.create(slots, max_slot_nbytes=max_slot_nbytes, copy=copy), self.tasks)
        self.processes: dict[int, Any] = {}  #: by pid
        self.lock = threading.RLock()  #: of what is below
        self.pending: set[Item] = set()  #: whose futures are not settled
        self.waiting: deque[Item] = deque()  #: those that were not sent
        self.broken: str | None = None
        self.shut = False
        self.cancel_pending = False
        self.forced = False  #: workers are being ended on purpose: none is replaced
        self._nudged = False

    def nudge(self) -> None:
        """Wakes the manager; called by anybody at any time, a collection included. If it is lost, the manager looks by
        itself a tick later."""
        if not self._nudged and self.pid == os.getpid():
            self._nudged = True
            with suppress(Exception):
                self._nudged = self.results.slots.try_send(None, 0)

    def nudged(self) -> None:
        """The manager has heard it, and looks at everything afterwards."""
        self._nudged = False

    def take(self) -> Item | None:
        """The first that waits, if there is room for it; it is the caller's to send. Those that were cancelled, or
        settled by somebody else, are forgotten."""
        with self.lock:
            while self.waiting:
                item = self.waiting[0]
                if not item.future.done() and len(self.tasks.out) >= self.most_out:
                    return None
                self.waiting.popleft()
                if item.is_running or item.begin():
                    return item
                self.pending.discard(item)
        return None

    def send(self, item: Item) -> bool:
        """False: there is no slot just now; it waits again. Raises what pickling raises: it is still the caller's."""
        if self.tasks.try_put(item, item.task):
            item.task = None  # its arguments go as soon as they can; a retry has its own reference
            return True
        self.put_back(item)
        return False

    def put_back(self, item: Item) -> None:
        with self.lock:
            if item in self.pending:
                self.waiting.appendleft(item)

    def start_worker(self) -> None:
        """One more. Raises what starting a process raises."""
        process = self.mp_context.Process(target=work, args=(self.tasks, self.results, *self.job))
        process.start()
        if process.pid in self.processes:  # of one that has ended since, and was not buried yet
            self.processes[-process.pid] = self.processes[process.pid]
        self.processes[process.pid] = process

    def close(self) -> None:
        """Nobody works any more."""
        self.tasks.slots.close()
        self.results.slots.close()

    @property
    def lacks_workers(self) -> bool:
        """Whether another worker would have something to do."""
        return len(self.processes) < min(self.max_workers, len(self.pending))


class Manager(threading.Thread):
    """Runs until everything that was submitted is settled, and nothing more can be."""

    def __init__(self, executor: Any, office: Office) -> None:
        super().__init__(name="shmtensor.ProcessPoolExecutor")
        self.office = office
        self._executor = weakref.ref(executor, lambda _: office.nudge())
        self._next_look = 0.0
        self._failed: tuple[int, str] | None = None  # whose initializer did, and how
        self._left: list[int] = []  # pids of workers that have said that they end
        self._stillborn = 0  # workers that died one after the other without having had a task

    def run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as e:
            self._break("".join(format_exception(type(e), e, e.__traceback__)))
        self._close()

    def _step(self) -> bool:
        """Whether there will be another."""
        office = self.office
        if office.cancel_pending:
            self._cancel_waiting()
        self._send_waiting()
        if self._is_over():
            return False
        self._receive(TICK)
        if self._failed is not None:
            return self._break_after_initializer(*self._failed)
        if self._left:
            self._bury_those_who_left()
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + TICK
            return self._look_after_workers()
        return True

    def _is_over(self) -> bool:
        """Nothing is pending, and nothing can be submitted any more."""
        office = self.office
        with office.lock:
            if not (office.shut or _exiting or self._executor() is None):
                return False
            office.shut = True
            return not office.pending

    def _cancel_waiting(self) -> None:
        office = self.office
        with office.lock:
            office.cancel_pending = False
            items = list(office.waiting)
        for item in items:  # what its callbacks do is done without the lock
            try:
                item.future.cancel()  # not those that run already; take() forgets them
            except BaseException:
                _log_callback(item)

    # ---- tasks and results

    def _send_waiting(self) -> None:
        while (item := self.office.take()) is not None:
            try:
                if not self.office.send(item):
                    return
            except BaseException as e:
                e.__cause__ = _remote_traceback('"""', "".join(format_exception(type(e), e, e.__traceback__)))
                self._finish(Settled(item, False, e))

    def _receive(self, timeout: float | None) -> bool:
        """Takes one result; False: there was none."""
        try:
            settled = self.office.results.get(timeout, self._note)
        except queue.Empty:
            return False
        if settled is not None:
            self._stillborn = 0
            self._finish(settled)
        return True

    def _finish(self, settled: Settled) -> None:
        item = settled.key
        with self.office.lock:
            self.office.pending.discard(item)
        _settle(item, settled.succeeded, settled.value)

    def _note(self, what: Any) -> None:
        if what is None:
            self.office.nudged()
        elif isinstance(what, int):
            self._left.append(what)
        else:
            self._failed = what

    # ---- workers

    def _bury_those_who_left(self) -> None:
        office = self.office
        for pid in self._left:
            process = office.processes.get(pid)
            if process is not None:
                process.join()
                with office.lock:
                    del office.processes[pid]
        self._left.clear()
        self._fill_up()

    def _fill_up(self) -> None:
        with self.office.lock:
            while self.office.lacks_workers:
                self.office.start_worker()

    def _look_after_workers(self) -> bool:
        office = self.office
        ended = {pid: p.exitcode for pid, p in list(office.processes.items()) if p.exitcode is not None}
        if ended:
            drained = office.results.drained()
            while not drained() and self._receive(0):  # what they have sent counts
                pass
            for pid in self._left:
                ended.pop(pid, None)
            if self._failed is not None:
                return self._break_after_initializer(*self._failed)
        if ended:
            how = ", ".join(f"worker process {abs(pid)} ended with exit code {code}" for pid, code in ended.items())
            if office.forced or not office.tasks.retries:
                return self._break(how)
            held = office.results.look_for_the_dead()
            self._stillborn = 0 if held else self._stillborn + len(ended)
            if self._stillborn > 3 * office.max_workers + office.tasks.retries:
                return self._break(f"{how}; so did {self._stillborn - 1} before it, and none of them had a task")
            for pid in ended:
                office.processes[pid].join()
            with office.lock:
                for pid in ended:
                    del office.processes[pid]
            self._fill_up()
        elif office.results.is_burying:
            office.results.look_for_the_dead()
        if office.tasks.retries and office.tasks.missed:
            return self._break("so many workers died at once that it is not known which tasks they had")
        return True

    def _break_after_initializer(self, pid: int, text: str) -> bool:
        process = self.office.processes.get(pid)
        if process is not None:
            process.join(_GRACE)  # it has been logging: what it says must come out before we end it
        return self._break(text)

    def _break(self, why: str) -> bool:
        """Settles everything by BrokenProcessPool, and ends the workers."""
        office = self.office
        if office.cancel_pending:
            self._cancel_waiting()
        with office.lock:
            office.broken = "A child process terminated abruptly, the process pool is not usable anymore"
            office.shut = True
            items = list(office.pending)
            office.pending.clear()
            office.waiting.clear()
        for item in items:
            if item.future.cancelled():
                item.begin()  # tells whoever waits for it
                continue
            error = BrokenProcessPool(
                "A process in the process pool was terminated abruptly while the future was running or pending."
            )
            error.__cause__ = _remote_traceback("'''", why)
            _settle(item, False, error)
        for process in list(office.processes.values()):
            process.terminate()
        return False

    def _close(self) -> None:
        """Everything is settled: the workers end, and are joined."""
        office = self.office
        office.tasks.slots.shutdown()
        office.results.slots.shutdown()
        end = time.monotonic() + _GRACE
        for process in list(office.processes.values()):
            if office.broken is not None:
                process.join(max(0.0, end - time.monotonic()))
                process.kill()  # it would not listen, or was stopped
            process.join()
        office.close()


def _remote_traceback(quotes: str, text: str) -> Exception:
    """Shown in a traceback as the standard executor shows what happened elsewhere."""
    made: Any = _RemoteTraceback  # of a str, whatever typeshed says
    return made(f"\n{quotes}\n{text}{quotes}")  # type: ignore[no-any-return]


def _settle(item: Item, succeeded: bool, value: Any) -> None:
    """Raises nothing, whatever the future's owner has done to it, and whatever its callbacks do."""
    try:
        if succeeded:
            item.future.set_result(value)
        else:
            item.future.set_exception(value)
    except InvalidStateError:
        pass  # somebody else has settled it, or it was cancelled
    except BaseException:
        _log_callback(item)


def _log_callback(item: Item) -> None:
    _base.LOGGER.exception("exception calling callback for %r", item.future)


def started(executor: Any, office: Office) -> Manager:
    """A manager that runs. Raises RuntimeError if no thread can be started any more."""
    manager = Manager(executor, office)
    try:
        manager.start()
    except BaseException:
        manager._break("the thread that manages it could not be started")
        manager._close()
        raise
    _managers.add(manager)
    return manager
