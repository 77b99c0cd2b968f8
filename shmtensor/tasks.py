"""Tasks to worker processes and their results, through slots: what Pool and ProcessPoolExecutor have in common.

A task's slot stays the worker's until its result is published, so the slots say which task a dead worker had:

    parent                              worker
      put: number -> key, a slot          get: the slot is kept
                                          the result, under the same number, then the slot is let go
      get: the number is settled
      look_for_the_dead: whoever died with a number that is not settled, once every result that its
      process published has been received: settled by WorkerDied, or sent again

Each number is settled once. Tasks and results have slots of their own: a worker keeps the views of its task while it
waits for a slot for the result.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import sys
from collections import deque
from collections.abc import Callable
from multiprocessing import context
from typing import Any, NamedTuple

from shmtensor._core import Kept
from shmtensor.errors import ShmNoSpaceError, ShutDown, WorkerDied
from shmtensor.objects import ObjectSlots

__all__ = ["TICK", "Dead", "Out", "Results", "Settled", "Tasks", "orphan_test", "slots_for_results"]

TICK = 0.1  #: seconds between two looks at who died
_RESULTS = 64  #: slots for results, at least, if nobody says otherwise
_ORPHAN = 1.0  #: seconds between two looks, by a worker that has nothing to do, at whether its parent lives


class Out(NamedTuple):
    """A task that was sent and is not settled."""

    key: Any  #: whose task it is
    task: Any  #: to be sent again; None without retries
    tries: int


class Settled(NamedTuple):
    """What became of a task."""

    key: Any
    succeeded: bool
    value: Any  #: or the exception


class Dead(NamedTuple):
    """A task that somebody who died had in hand."""

    pid: int
    number: int


class Tasks:
    """What goes to the workers."""

    def __init__(self, slots: ObjectSlots, retries: int = 0) -> None:
        self.slots = slots
        self.retries = retries
        self.out: dict[int, Out] = {}
        self._numbers = itertools.count(1)
        self._begun_in = 0  # which process has
        self._is_orphan: Callable[[], bool] = bool

    def __getstate__(self) -> ObjectSlots:
        context.assert_spawning(self)
        return self.slots

    def __setstate__(self, slots: ObjectSlots) -> None:
        self.__init__(slots)  # type: ignore[misc]

    # ---- in the parent

    def put(self, key: Any, task: Any) -> None:
        """Sends a task, waiting for a slot. Raises as ObjectSlots.send(); it was not sent then."""
        self._send(Out(key, task if self.retries else None, 0), task, wait=True)

    def try_put(self, key: Any, task: Any) -> bool:
        """put() without waiting; False: there is no slot just now."""
        return self._send(Out(key, task if self.retries else None, 0), task, wait=False)

    def try_again(self, out: Out) -> bool:
        """Sends a task once more; False: there is no slot just now."""
        return self._send(out._replace(tries=out.tries + 1), out.task, wait=False)

    def _send(self, out: Out, task: Any, *, wait: bool) -> bool:
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

    def dead(self) -> list[Dead]:
        """Each task that somebody who died had in hand; once."""
        self.slots.reclaim()
        return [
            Dead(pid, number)
            for _, _, pid, slot, reading, _, _, number in self.slots._deaths()
            if slot is not None and reading and number in self.out
        ]

    @property
    def missed(self) -> bool:
        """Whether so many died at once that it is not known what they had."""
        return bool(self.slots._deaths_missed)

    # ---- in a worker

    def begin(self) -> None:
        """What a worker does first; get() does so too."""
        if self._begun_in != os.getpid():
            self._begun_in = os.getpid()
            if "torch" in sys.modules:  # of a parent that was forked after OpenMP ran: its threads are not here
                sys.modules["torch"].set_num_threads(1)
            self._is_orphan = orphan_test()

    def get(self, refuse: Callable[[int, BaseException], None]) -> tuple[int, Any, Kept] | None:
        """(number, task, its slot); None: there is no more, or nobody who would give it. What cannot be decoded here is
        refused."""
        self.begin()
        while True:
            try:
                number, task, error, kept = self.slots.receive_kept(_ORPHAN)
            except queue.Empty:
                if self._is_orphan():
                    return None
                continue
            except ShutDown:
                return None
            if error is None:
                return number, task, kept
            refuse(number, error)
            kept.release()


class Results:
    """What comes from the workers, and of those who will send nothing any more."""

    def __init__(self, slots: ObjectSlots, tasks: Tasks) -> None:
        self.slots = slots
        self.tasks = tasks
        self._taken = 0
        self._dead: list[Dead] = []  # whose results may still be on their way
        self._settling: deque[tuple[int, Dead]] = deque()  # (results that come before, whose)
        self._again: deque[Out] = deque()
        self._ready: deque[Settled] = deque()

    def __getstate__(self) -> tuple[Tasks, ObjectSlots]:
        context.assert_spawning(self)
        return self.tasks, self.slots  # in this order: see _those_here()

    def __setstate__(self, state: tuple[Tasks, ObjectSlots]) -> None:
        self.__init__(state[1], state[0])  # type: ignore[misc]

    # ---- in the parent

    def get(self, timeout: float | None, note: Callable[[Any], None] | None = None) -> Settled | None:
        """The next task that is settled; None: something came that settles nothing. What was sent under the number 0
        goes to ``note``.

        Raises:
            queue.Empty: nothing came within ``timeout`` seconds.
            ShutDown: there will be no more.
        """
        if self._ready:
            return self._ready.popleft()
        number, result, error, kept = self.slots.receive_kept(timeout)
        kept.release()
        self._taken += 1
        if number == 0:
            if note is not None:
                note(result)
            return None
        out = self.tasks.out.pop(number, None)
        if out is None:
            return None  # settled already
        if error is not None:
            return Settled(out.key, False, error)
        succeeded, value = result
        return Settled(out.key, succeeded, value)

    @property
    def is_burying(self) -> bool:
        """Whether look_for_the_dead() has more to do, although nobody else dies."""
        return bool(self._dead or self._settling or self._again or self._ready)

    def drained(self) -> Callable[[], bool]:
        """What says, later, whether all that was sent until now has been received."""
        self.slots.reclaim()  # what a dead process has published is put in its place
        pushed = self.slots.unfinished  # nothing here is ever counted as done
        return lambda: self._taken >= pushed

    def look_for_the_dead(self) -> int:
        """Settles the tasks of those who died, or sends them again; get() returns what is settled. Returns how many
        tasks were found in a dead one's hand."""
        found = self.tasks.dead()
        self._dead += found
        if self._dead:
            # A dead process's descriptors close one after the other: it may still have its place here.
            self.slots.reclaim()
            here = self._those_here()
            pushed = self.slots.unfinished  # nothing here is ever counted as done
            self._settling += [(pushed, dead) for dead in self._dead if dead.pid not in here]
            self._dead = [dead for dead in self._dead if dead.pid in here]
        while self._settling and self._settling[0][0] <= self._taken:
            _, (pid, number) = self._settling.popleft()
            out = self.tasks.out.pop(number, None)
            if out is not None:
                self._settle(out, pid)
        while self._again and self._is_sent_again(self._again[0]):
            self._again.popleft()
        return len(found)

    def _those_here(self) -> set[int]:
        """Pids of the processes that have a place among the results' members, but for those that have had it since a
        process of the same pid was born: a process joins the tasks first, so what is here longer than its namesake is
        there belongs to a dead one."""
        places = [(m["pid"], m["joined_ns"]) for m in self.slots._members() if m["alive"]]  # first: namesakes may come
        wanted = {dead.pid for dead in self._dead}
        born: dict[int, int] = {}
        for m in self.tasks.slots._members():
            if m["pid"] in wanted and m["alive"]:
                born[m["pid"]] = min(m["joined_ns"], born.get(m["pid"], m["joined_ns"]))
        return {pid for pid, joined_ns in places if pid not in born or joined_ns < born[pid]}

    def _is_sent_again(self, out: Out) -> bool:
        """Sent, or settled since it never can be; False: later. Raises nothing: this is the thread of all results."""
        try:
            return self.tasks.try_again(out)
        except ShmNoSpaceError:
            return False
        except ShutDown:
            error: BaseException = WorkerDied("a worker process died while it had this task, and no more are sent")
        except BaseException as e:  # its arguments can be pickled no more
            error = e
        self._ready.append(Settled(out.key, False, error))
        return True

    def _settle(self, out: Out, pid: int) -> None:
        if out.tries < self.tasks.retries:
            self._again.append(out)
            return
        tried = f", as did {out.tries} before it" if out.tries else ""
        error = WorkerDied(f"worker process {pid} died while it had this task{tried}; see retries=")
        self._ready.append(Settled(out.key, False, error))

    # ---- in a worker

    def send(self, number: int, succeeded: bool, value: Any) -> None:
        """Raises what pickling raises; nothing was sent then. ShutDown: nobody waits for it."""
        self._send((succeeded, value), number)

    def tell(self, what: Any) -> None:
        """Sends something that is no task's result."""
        self._send(what, 0)

    def refuse(self, number: int, error: BaseException) -> None:
        """The answer to a task that could not even be read."""
        try:
            self.send(number, False, error)
        except ShutDown:
            raise
        except Exception:
            self.send(number, False, RuntimeError(f"{type(error).__name__}: {error}"))

    def _send(self, message: Any, number: int) -> None:
        while True:
            try:
                return self.slots.send(message, 5 * _ORPHAN, number)
            except queue.Full:
                if self.tasks._is_orphan():
                    raise ShutDown("the process that gave this task is gone") from None


def slots_for_results(workers: int) -> int:
    """As many as nobody has to wait for, if nobody says how many."""
    return min(max(4 * workers, _RESULTS), 4096)


def orphan_test() -> Callable[[], bool]:
    """What says, later, whether this process's parent is gone."""
    parent = multiprocessing.parent_process()
    ppid = os.getppid()
    if parent is None:
        return bool  # a pool of threads' worker, or a test's: nobody's child
    if parent.pid == ppid:  # its end of a pipe would not do: siblings that were forked later have it too
        return lambda: os.getppid() != ppid
    return lambda: not parent.is_alive()  # of a fork server, which outlives it
