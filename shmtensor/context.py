"""get_context(): multiprocessing's contexts with our queues and pool, so that existing code changes one line."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from multiprocessing import context
from typing import Any

from shmtensor.pool import Pool
from shmtensor.queue import JoinableQueue, Queue, SimpleQueue

__all__ = ["get_context"]


class _Queues:
    """What is ours in a context: the three queues and the pool."""

    def Queue(self, maxsize: int = 0) -> Queue:
        """Returns a shmtensor.Queue."""
        return Queue(maxsize, ctx=self)

    def JoinableQueue(self, maxsize: int = 0) -> JoinableQueue:
        """Returns a shmtensor.JoinableQueue."""
        return JoinableQueue(maxsize, ctx=self)

    def SimpleQueue(self) -> SimpleQueue:
        """Returns a shmtensor.SimpleQueue."""
        return SimpleQueue(ctx=self)

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> Pool:
        """Returns a shmtensor.Pool."""
        return Pool(processes, initializer, initargs, maxtasksperchild, context=self)

    def without_ours(self) -> Any:
        """multiprocessing's own context of this start method."""
        return multiprocessing.get_context(self.get_start_method())  # type: ignore[attr-defined]

    def get_context(self, method: str | None = None) -> Any:
        """This context, or that of another start method."""
        return self if method is None else get_context(method)


class _Fork(_Queues, context.ForkContext):  # type: ignore[misc]
    pass


class _Spawn(_Queues, context.SpawnContext):  # type: ignore[misc]
    pass


class _ForkServer(_Queues, context.ForkServerContext):  # type: ignore[misc]
    pass


_CONTEXTS: dict[str, Any] = {"fork": _Fork(), "spawn": _Spawn(), "forkserver": _ForkServer()}


def get_context(method: str | None = None) -> Any:
    """A multiprocessing context whose Queue, JoinableQueue, SimpleQueue and Pool are ours; all else is as it is there.

    Args:
        method: "fork", "spawn" or "forkserver"; None: multiprocessing's own default.

    Raises:
        ValueError: there is no such method here.
    """
    if method is None:
        method = multiprocessing.get_start_method()
    if method not in _CONTEXTS:
        raise ValueError(f"cannot find context for {method!r}; there are: {', '.join(_CONTEXTS)}")
    return _CONTEXTS[method]
