"""What found no free slot: messages in a process's own memory, which a thread sends one after the other.

A queue without bound never blocks its producers. This is the part of it that slots cannot hold: in order, but not
durable, for a process that is killed takes it along. The thread starts with the first message.
"""

from __future__ import annotations

import errno
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from multiprocessing import util

import numpy as np
from numpy.typing import NDArray

from shmtensor._codec import encode_to_array
from shmtensor.errors import ClosedError, ShmNoSpaceError, ShutDown
from shmtensor.objects import ObjectSlots

__all__ = ["Feeder"]

_PAUSE = 0.1  #: seconds between two attempts to have memory


class Feeder:
    """``waiting`` is true as long as something was not sent yet: what is put meanwhile must come after it."""

    def __init__(self, slots: ObjectSlots, *, is_joined_at_exit: bool) -> None:
        self._slots = slots
        self._max_nbytes = int(slots._info["slot_stride"])
        self._is_joined_at_exit = is_joined_at_exit
        self.start_over()
        util.register_after_fork(self, Feeder.start_over)

    def start_over(self) -> None:
        """In a forked child: what waits is the parent's, whose thread is not here."""
        #: Messages, and what is to be done when all before it were sent.
        self.waiting: deque[NDArray[np.uint8] | Callable[[], object]] = deque()
        # Reentrant: end() may be called by a collection in the middle of anything.
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._at_exit: util.Finalize | None = None
        self._ended = False
        self._refusal: tuple[type[Exception], str] | None = None  # what add() raises, once all has been said

    def __len__(self) -> int:
        return sum(not callable(entry) for entry in tuple(self.waiting))

    def add(self, obj: object) -> None:
        """Encodes ``obj`` here and now, and leaves the rest to the thread. Raises what pickling raises, ValueError if
        no slot could ever hold it, and after shut() and end() what a queue raises: it would come too late."""
        message = encode_to_array(obj)
        if len(message) > self._max_nbytes:
            raise self._slots._no_room(errno.EMSGSIZE, "an object", len(message))
        with self._changed:
            if self._refusal is not None:
                kind, why = self._refusal
                raise kind(why)  # a new one each time: its traceback would keep the caller's frames
            self.waiting.append(message)
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def then(self, last: Callable[[], object]) -> None:
        """Calls ``last`` once everything that waits was sent: at once if nothing does."""
        with self._changed:
            if self.waiting:
                self.waiting.append(last)
                return
        last()

    def shut(self) -> None:
        """Shuts the slots down once everything that waits was sent. What is put from now on is refused at once: behind
        the shutdown nobody would ever get it."""
        with self._changed:
            self._refusal = ShutDown, "the queue was shut down"
        self.then(self._slots.shutdown)

    def end(self) -> None:
        """Closes the slots once everything that waits was sent, and ends the thread."""

        def close() -> None:
            self._ended = True
            self._slots.close()

        with self._changed:
            self._refusal = self._refusal or (ClosedError, "the queue is closed in this process")
        self.then(close)
        with self._changed:
            self._changed.notify_all()

    def join(self) -> None:
        """After end(): waits until all was sent."""
        if self._thread is not None:
            self._thread.join()

    def wait_until_sent(self) -> None:
        """Waits until nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self.waiting)

    def cancel_join(self) -> None:
        """At exit, what waits is left behind."""
        self._is_joined_at_exit = False
        if self._at_exit is not None:
            self._at_exit.cancel()
            self._at_exit = None

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="shmtensor.Feeder", daemon=True)
        self._thread.start()
        # Here, and not where the queue is made: a forked child has forgotten what its parent had registered.
        util.Finalize(self, _end, [weakref.ref(self)], exitpriority=10)
        if self._is_joined_at_exit:  # as multiprocessing.Queue does, and at the same stage of the exit
            self._at_exit = util.Finalize(self, _join, [weakref.ref(self._thread)], exitpriority=-5)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.waiting or self._ended)
                if not self.waiting:
                    return
                entry = self.waiting[0]
            if callable(entry):
                entry()
            else:
                try:
                    self._send(entry)
                except (ShutDown, ClosedError):  # nobody will ever take it, nor what comes after it
                    with self._changed:
                        self.waiting = deque([entry, *filter(callable, self.waiting)])
            with self._changed:
                self.waiting.popleft()
                self._changed.notify_all()

    def _send(self, message: NDArray[np.uint8]) -> None:
        warned = False
        while True:
            try:
                return self._slots.send_message(message)
            except ShmNoSpaceError as e:
                if not warned:
                    warnings.warn(f"an object that was put waits for memory: {e}", RuntimeWarning, stacklevel=1)
                warned = True
                time.sleep(_PAUSE)


def _end(feeder: weakref.ref[Feeder]) -> None:
    it = feeder()
    if it is not None:
        it.end()


def _join(thread: weakref.ref[threading.Thread]) -> None:
    it = thread()
    if it is not None and it is not threading.current_thread():  # which may be the one that lets the last reference go
        it.join()
