"""One epoch: torch's own multiprocess iterator, with slots for its queues.

Which batch is dispatched when, to which worker and in which order it is yielded, is torch's code, so the batches and
the random state are torch's as well.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import torch.multiprocessing
from torch._utils import ExceptionWrapper
from torch.utils.data import _utils
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from shmtensor._core import Parcel
from shmtensor.data import worker
from shmtensor.data.transport import Context, Results

if TYPE_CHECKING:
    from shmtensor.data.loader import DataLoader

__all__ = ["Iterator"]

_LOOK = 0.25  #: seconds until a wait looks whether a worker has died


class _Loader:
    """A loader with another multiprocessing context: what torch's iterator is built from."""

    def __init__(self, loader: DataLoader[Any], context: Context) -> None:
        self._loader = loader
        self.multiprocessing_context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _pins(loader: DataLoader[Any]) -> bool:
    """Whether torch's thread that pins memory will be the one that receives."""
    accelerator = getattr(torch, "accelerator", torch.cuda)  # since torch 2.6
    return bool(loader.pin_memory and accelerator.is_available())


class Iterator(_MultiProcessingDataLoaderIter):
    """What iter() of a DataLoader with workers gives."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._shutdown = True  # until there is something to shut down
        self._pid = os.getpid()
        self._loader = loader
        self._results = Results(
            loader._slots_for_an_epoch(),
            loader.keep,
            opens=bool(loader.pin_memory and torch.accelerator.is_available()),
        )
        context = Context(
            loader.multiprocessing_context or torch.multiprocessing,
            self._results,
            2 * (loader.prefetch_factor or 2) + 4,
            worker.run,
        )
        super().__init__(_Loader(loader, context))

    # ---- batches

    def _process_data(self, data: Any, *worker: Any) -> Any:
        if type(data) is Parcel:
            data = self._opened(data)
        return super()._process_data(data, *worker)

    def _opened(self, parcel: Parcel) -> Any:
        parked = sum(len(info) == 2 and type(info[1]) is Parcel for info in self._task_info.values())
        copy = self._results.slots.reading - parked > self._results.keep
        if copy:
            self._loader._has_copied()
        try:
            return parcel.open(copy)
        except Exception:
            return ExceptionWrapper(where="on receiving a batch from a DataLoader worker")

    def _try_get_data(self, timeout: float = _utils.MP_STATUS_CHECK_INTERVAL) -> tuple[bool, Any]:
        # torch looks at its workers at the end of each wait, and there is no SIGCHLD handler off the main thread.
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            found, data = super()._try_get_data(min(max(left, 0), _LOOK))
            if found or left <= _LOOK:
                return found, data

    # ---- the end

    def _shutdown_workers(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child, which got a copy of us: neither the workers nor their batches are its own
        if self._shutdown or _utils is None or _utils.python_exit_status is not False:
            super()._shutdown_workers()
            return
        self._task_info.clear()
        self._workers_done_event.set()
        self._results.drain()  # or a worker that waits for a slot would not hear of it
        super()._shutdown_workers()
        self._results.drain()
        if not any(w.is_alive() for w in self._workers):
            self._loader._leave_to_the_next(self._results.slots)
