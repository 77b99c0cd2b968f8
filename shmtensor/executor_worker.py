"""What a worker process of ProcessPoolExecutor does: takes tasks until there are no more, and sends their results.

Whatever is raised while a task is read, run, or its result written is the task's own error. Beside results a worker
says two things, under the number 0: that it ends as it was told to (its pid), and that its initializer failed (its pid
and a traceback).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import _base
from concurrent.futures.process import _ExceptionWithTraceback
from contextlib import suppress
from traceback import format_exc
from typing import Any

from shmtensor._core import Kept
from shmtensor.errors import ShutDown
from shmtensor.tasks import Results, Tasks

__all__ = ["work"]


def work(
    tasks: Tasks,
    results: Results,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    max_tasks: int | None,
) -> None:
    """A worker's life."""
    tasks.begin()
    with suppress(ShutDown):  # nobody waits for what it has to say
        if initializer is not None:
            try:
                initializer(*initargs)
            except BaseException:
                _base.LOGGER.critical("Exception in initializer:", exc_info=True)
                results.tell((os.getpid(), format_exc()))
                return
        done = 0
        while done != max_tasks and (got := tasks.get(results.refuse)) is not None:
            _do(results, *got)
            del got
            done += 1
        if done == max_tasks:
            results.tell(os.getpid())


def _do(results: Results, number: int, task: Any, kept: Kept) -> None:
    """Runs a task. Its slot is let go after its result is sent, and if neither happens, by this process's death."""
    fn, args, kwargs = task
    del task
    try:
        value, succeeded = fn(*args, **kwargs), True
    except BaseException as e:
        value, succeeded = _with_traceback(e), False
    del fn, args, kwargs
    try:
        results.send(number, succeeded, value)
    except ShutDown:
        raise
    except BaseException as e:
        del value
        _send_error(results, number, e)
    kept.release()


def _send_error(results: Results, number: int, error: BaseException) -> None:
    try:
        results.send(number, False, _with_traceback(error))
    except ShutDown:
        raise
    except BaseException:  # nor can the error be pickled
        results.send(number, False, RuntimeError(f"{type(error).__name__}: {error}"))


def _with_traceback(error: BaseException) -> Any:
    """The error such that its traceback arrives as text, as its cause."""
    return _ExceptionWithTraceback(error, error.__traceback__)  # type: ignore[arg-type]  # it was raised, so it has one
