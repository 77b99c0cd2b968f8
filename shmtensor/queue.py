"""Queue, JoinableQueue and SimpleQueue of multiprocessing, over slots: any objects, whose arrays and tensors are not
pickled and come back as views.

put() writes the object into a slot itself: when it returns, the object survives the process. There is no thread and no
pipe, unless more is put than there are slots; see feeder.py.
"""

from __future__ import annotations

import queue
import weakref
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import context
from types import GenericAlias
from typing import Any

from shmtensor.errors import ShutDown
from shmtensor.feeder import Feeder
from shmtensor.objects import ObjectSlots
from shmtensor.segments import check_int

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

_SLOTS = 64  #: of a queue without bound


class _Base:
    """What the queues share: an endpoint that passes to other processes, as multiprocessing's, by inheritance only."""

    _slots: ObjectSlots
    _maxsize: int
    _closed: bool

    def __class_getitem__(cls, item: Any) -> GenericAlias:
        return GenericAlias(cls, item)

    def _open(self, slots: ObjectSlots, maxsize: int) -> None:
        self._slots = slots
        self._maxsize = maxsize
        self._closed = False
        self._init()

    def _init(self) -> None: ...

    def __getstate__(self) -> tuple[ObjectSlots, int]:
        context.assert_spawning(self)
        return self._slots, self._maxsize

    def __setstate__(self, state: tuple[ObjectSlots, int]) -> None:
        self._open(*state)

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to get, or the end to be learnt: for select, poll,
        epoll, asyncio's add_reader() and multiprocessing.connection.wait(). It stays the same, and valid, as long as
        this object lives; after close() it is readable for ever. Nobody may read from it, write to it or close it.

        Readable means, as of any descriptor, a moment ago: another process may have been quicker. So use get_nowait(),
        and be prepared for queue.Empty. The first call starts a thread, which serves all that this process watches.

        Raises:
            ValueError: the queue was closed in this process, and has no descriptor.
            OSError: no descriptor is to be had.
            RuntimeError: no thread is to be had.
        """
        if self._closed and self._slots._watch_fd < 0:
            self._check_open()
        return self._slots.fileno()

    def _check_open(self, error: type[Exception] = ValueError) -> None:
        if self._closed:
            raise error(f"{type(self).__name__} {self!r} is closed")


class Queue(_Base):
    """multiprocessing.Queue's interface, and ``put_many``, ``get_many``, ``shutdown``, ``stats``.

    Args:
        maxsize: how many objects it holds at most, 1..65535; put() then waits for a place. 0 or less: no bound, put()
            never waits; what finds no free slot waits in this process's own memory, from where a thread sends it.
        ctx: taken and ignored, as there is nothing that depends on the start method.
        slots: of a queue without bound, how many objects are in shared memory at once.
        max_slot_nbytes: bytes that one object may take; memory is taken when it is first needed. None: a quarter of
            the machine's memory, but all slots together no more than an eighth of the address space that is left.
        reserve: how many slots the views of received arrays may never keep: above ``slots - reserve``, arrays are
            received as copies. None: half.
        copy: True: arrays are always received as copies.
        spin_us: microseconds that a wait spins before it sleeps.

    What is delivered, is delivered at most once: an object that a process has taken is gone if that process dies.

    Raises:
        TypeError, ValueError: an argument is wrong.
        ShmNoSpaceError: memory is short; nothing is left behind.
    """

    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: object = None,
        slots: int | None = None,
        max_slot_nbytes: int | None = None,
        reserve: int | None = None,
        copy: bool = False,
        spin_us: int = 50,
    ) -> None:
        if maxsize > 0:
            check_int("maxsize", maxsize, 1, 65535)
            if slots not in (None, maxsize):
                raise ValueError("slots= is of a queue without bound; the slots of this one are its maxsize")
            slots = maxsize
        elif slots is None:
            slots = _SLOTS
        self._open(
            ObjectSlots.create(slots, max_slot_nbytes=max_slot_nbytes, reserve=reserve, copy=copy, spin_us=spin_us),
            max(maxsize, 0),
        )

    def _init(self) -> None:
        self._feeder: Feeder | None = None
        self._is_joined_at_exit = True
        self._was_used = False

    # ---- putting

    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        """Puts ``obj``, as it is now: the sender may go on changing it.

        Args:
            block, timeout: of a queue with a bound, whether and for how many seconds (None: for ever) to wait.

        Raises:
            queue.Full: there was no place.
            ShutDown: the queue was shut down.
            ValueError: it is closed in this process, or the object is larger than max_slot_nbytes.
            What pickling raises, if ``obj`` cannot be sent. Nothing was put then.
        """
        if self._closed:
            self._check_open()
        if self._maxsize:
            self._slots.send(obj, _seconds(block, timeout))
        elif (self._feeder is not None and self._feeder.waiting) or not self._slots.try_send(obj):
            self._overflow().add(obj)

    def put_nowait(self, obj: object) -> None:
        """put() without waiting."""
        self.put(obj, False)

    def put_many(self, objs: Iterable[object], block: bool = True, timeout: float | None = None) -> int:
        """Puts each of ``objs``; returns how many that were. ``timeout`` holds for each wait, and what was put before
        an error stays."""
        count = 0
        for obj in objs:
            self.put(obj, block, timeout)
            count += 1
        return count

    def _overflow(self) -> Feeder:
        if self._feeder is None:
            self._feeder = Feeder(self._slots, is_joined_at_exit=self._is_joined_at_exit)
            weakref.finalize(self, self._feeder.end).atexit = False
        return self._feeder

    # ---- getting

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The oldest object. Its large arrays and tensors are views of shared memory, as long as they live; see
        ``reserve`` and ``copy``.

        Raises:
            queue.Empty: there was none within ``timeout`` seconds (None: for ever), or at once without ``block``.
            ShutDown: the queue was shut down, and everything has been taken.
            ValueError: it is closed in this process.
            What unpickling raises; the object is then gone.
        """
        if self._closed:
            self._check_open()
        return self._slots.receive(_seconds(block, timeout))

    def get_nowait(self) -> Any:
        """get() without waiting."""
        return self.get(False)

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[Any]:
        """Between 1 and ``n`` objects, the oldest first; waits, as get(), only for the first."""
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        out = [self.get(block, timeout)]
        with suppress(queue.Empty, ShutDown):
            while len(out) < n:
                out.append(self.get(False))
        return out

    # ---- how it stands

    def qsize(self) -> int:
        """How many objects wait to be taken; those that wait for a slot in other processes are not counted."""
        return len(self._slots) + (len(self._feeder) if self._feeder is not None else 0)

    def empty(self) -> bool:
        """Whether there is nothing to get now. Of one that was closed and never used: True, as there.

        Raises:
            OSError: the queue was used, and is closed in this process.
        """
        if self._was_used:
            self._check_open(OSError)
        return self._closed or self.qsize() == 0

    def full(self) -> bool:
        """Whether put() would have to wait: never without a bound."""
        return self._maxsize > 0 and self._slots._count()[1] == 0

    def stats(self) -> dict[str, int]:
        """Figures since it was created, as TensorBuffer.stats(); and of this process ``waiting``, the objects that
        wait for a slot, and ``copied``, how many were received as copies lest their views keep too many slots."""
        waiting = 0 if self._feeder is None else len(self._feeder)
        return {**self._slots.stats(), "waiting": waiting, "copied": self._slots.copied}

    def trim(self) -> int:
        """Gives the memory that slots have grown for large objects, and that lies in free ones, back to the system;
        returns how many bytes that were. May be called at any time: what needs it next takes it again. Whoever puts
        without waiting may meanwhile find a queue full that has one place left, which is being trimmed."""
        self._check_open()
        return self._slots.trim()

    # ---- ending

    def shutdown(self, immediate: bool = False) -> None:
        """As queue.Queue.shutdown(): put() raises ShutDown from now on, and get() once everything was taken. What waits
        for a slot in this process is still sent, and until then other processes can still put; what waits in others
        when it is done is lost.

        Args:
            immediate: True: what is in the queue is thrown away.
        """
        if self._feeder is not None and not immediate:
            self._feeder.shut()
        else:
            self._slots.shutdown()
        if immediate:
            self._slots.drain(self._thrown_away)

    def _thrown_away(self) -> None:
        """An object that nobody will get."""

    def close(self) -> None:
        """This process puts and gets nothing more; what it has put is still sent. Closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._was_used = self._slots._was_used
            if self._feeder is not None:
                self._feeder.end()
                self._slots._watch_closed()
            else:
                self._slots.close()

    def join_thread(self) -> None:
        """After close(): waits until what this process has put has found its slots."""
        if not self._closed:
            raise AssertionError(f"{type(self).__name__} {self!r} not closed")
        if self._feeder is not None:
            self._feeder.join()

    def cancel_join_thread(self) -> None:
        """This process may end before what it has put has found its slots: what has not by then is lost."""
        self._is_joined_at_exit = False
        if self._feeder is not None:
            self._feeder.cancel_join()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} maxsize={self._maxsize} at {id(self):#x}>"


class JoinableQueue(Queue):
    """multiprocessing.JoinableQueue's interface: a Queue that knows how many of its objects are dealt with.

    The count is that of the slots' own order, so no death can make it wrong; but an object whose taker dies before its
    task_done() stays unfinished for ever, as it does there.
    """

    def task_done(self) -> None:
        """One of the objects that were taken is dealt with.

        Raises:
            ValueError: that would be more than were ever put.
        """
        self._slots.tasks_done()

    def join(self) -> None:
        """Waits until all objects that were put are dealt with. Those that wait for a slot in other processes count
        once they have one."""
        if self._feeder is not None:
            self._feeder.wait_until_sent()
        self._slots.tasks_join()

    def _thrown_away(self) -> None:
        self.task_done()


class SimpleQueue(_Base):
    """multiprocessing.SimpleQueue's interface. put() waits while there is no free slot, as it does there while the
    pipe is full."""

    def __init__(self, *, ctx: object = None) -> None:
        self._open(ObjectSlots.create(_SLOTS), _SLOTS)

    def _init(self) -> None:
        self._slots.can_be_set = False

    def put(self, obj: object) -> None:
        """Puts ``obj``, as it is now. Raises as Queue.put(), but not Full."""
        self._check_open()
        self._slots.send(obj)

    def get(self) -> Any:
        """The oldest object, waiting for one. Raises as Queue.get(), but not Empty."""
        self._check_open()
        return self._slots.receive()

    def empty(self) -> bool:
        """Whether there is nothing to get now.

        Raises:
            OSError: the queue is closed in this process.
        """
        self._check_open(OSError)
        return len(self._slots) == 0

    def trim(self) -> int:
        """As Queue.trim()."""
        self._check_open()
        return self._slots.trim()

    def close(self) -> None:
        """This process puts and gets nothing more."""
        self._closed = True
        self._slots.close()


def _seconds(block: bool, timeout: float | None) -> float | None:
    """multiprocessing's way of saying how long to wait, as ours."""
    if not block:
        return 0
    if timeout is None:
        return None
    try:
        return 0 if timeout < 0 else timeout  # NaN is refused where the wait begins
    except TypeError:
        raise TypeError(f"timeout must be None or a number of seconds, not {timeout!r:.80}") from None
