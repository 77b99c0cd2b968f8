"""A worker process: torch's own worker loop, between queues of ours.

torch's loop still holds a batch when it puts it, so it is published one step later, when the loop comes back for its
next task: who then still looks at the batch has kept it.
"""

from __future__ import annotations

import inspect
import queue
from collections.abc import Callable
from typing import Any, TypeVar

from torch._utils import ExceptionWrapper

from shmtensor._core import Landing
from shmtensor.data import landing
from shmtensor.data.assembly import RowResults
from shmtensor.data.filling import Fill
from shmtensor.data.results import Results, tag_from, tag_of
from shmtensor.data.rows import RowTasks, is_whole
from shmtensor.data.seeds import restore, seed_for
from shmtensor.data.tasks import Tasks
from shmtensor.tasks import orphan_test

__all__ = ["run"]

_T = TypeVar("_T")
_STEP = 1.0  #: seconds until a wait looks whether there is anybody left to wait for


def run(loop: Callable[..., None], args: tuple[Any, ...], state: bytes | None = None) -> None:
    """Calls torch's worker loop with the arguments that it was to be called with; ``state``: the random state to begin
    with, if it is not that of its seeds."""
    bound = inspect.signature(loop).bind(*args)
    given = bound.arguments
    patiently = _Patience()
    results, tasks = given["data_queue"], given["index_queue"]
    sender = _Sender(results, given["worker_id"], patiently)
    given["data_queue"] = sender
    given["index_queue"] = _Receiver(tasks, sender, patiently)
    if state is not None:
        given["init_fn"] = _Restoring(given["init_fn"], state)
    if isinstance(tasks, RowTasks):
        given["collate_fn"] = Fill(given["collate_fn"], given["dataset"], tasks, results.slots)
    else:
        given["collate_fn"] = landing.Collate(given["collate_fn"])
        landing.begin(sender.landing, patiently)
    loop(*bound.args, **bound.kwargs)


class _Restoring:
    """A worker_init_fn, after which the random states are those of another time."""

    def __init__(self, init_fn: Callable[[int], None] | None, state: bytes) -> None:
        self._init_fn = init_fn
        self._state = state

    def __call__(self, worker_id: int) -> None:
        if self._init_fn is not None:
            self._init_fn(worker_id)
        restore(self._state)


class _Patience:
    """Waits for a slot or a task, as long as there is somebody who could end that. torch's loop looks as well, but only
    between tasks, and not if the parent died before the loop began."""

    def __init__(self) -> None:
        self._is_orphan = orphan_test()

    def __call__(self, wait: Callable[[float], _T]) -> _T:
        while True:
            try:
                return wait(_STEP)
            except (queue.Full, queue.Empty):
                if self._is_orphan():
                    raise SystemExit(1) from None


class _Sender:
    """The loop's data queue."""

    def __init__(self, results: Results, worker_id: int, patiently: _Patience) -> None:
        self.landing = Landing(results.inbox)
        self._patiently = patiently
        self._states = results.states
        self._doing = results.doing
        self._worker_id = worker_id
        self._epoch = 0
        self._sends_rows = isinstance(results, RowResults)

    def begin(self, number: int, rows: int, base_seed: int | None = None, epoch: int = 0) -> None:
        """The next that is put will be this batch."""
        self._epoch = epoch
        self.landing.begin(rows)
        if self._doing is not None:
            self._doing[self._worker_id] = number
        if base_seed is not None:
            seed_for(base_seed, number)

    def put(self, result: tuple[Any, Any]) -> None:
        number, data = result
        is_answer = not isinstance(number, int)  # to something else than a task
        if self._states is not None:
            self._states.leave(self._worker_id, None if is_answer else number)
        if is_answer:
            self._write(result, tag_from(self._worker_id))
            return
        try:
            self._write(data, tag_of(number, self._epoch))
        except Exception:  # it cannot be sent: that is the result
            wrong = ExceptionWrapper(where=f"in DataLoader worker process {self._worker_id}")
            self._write(None if self._sends_rows and not is_whole(number) else wrong, tag_of(number, self._epoch))

    def _write(self, x: Any, tag: int) -> None:
        self._patiently(lambda seconds: self.landing.write(x, tag, seconds))

    def flush(self) -> None:
        self._patiently(self.landing.publish)

    def cancel_join_thread(self) -> None:
        """Nothing waits in this process."""

    def close(self) -> None:
        self.flush()


class _Receiver:
    """The loop's index queue."""

    def __init__(self, tasks: Tasks, sender: _Sender, patiently: _Patience) -> None:
        self._tasks = tasks
        self._patiently = patiently
        self._sender = sender

    def get(self, timeout: float | None = None) -> Any:
        """Waits for ever, whatever ``timeout`` is: torch's loop would only look whether its parent is there."""
        self._sender.flush()
        task = self._patiently(lambda seconds: self._tasks.get(timeout=seconds))
        if not isinstance(task, tuple):
            return task
        number, index, *how = task
        self._sender.begin(number, len(index) if isinstance(index, list) else 1, *how)
        return number, index
