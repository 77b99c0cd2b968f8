"""One epoch: torch's own multiprocess iterator, with slots for its queues.

Which batch is dispatched when, to which worker and in which order it is yielded, is torch's code, so the batches and
the random state are torch's as well.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
from typing import TYPE_CHECKING, Any

import torch.multiprocessing
from torch._utils import ExceptionWrapper
from torch.utils.data import _utils
from torch.utils.data.dataloader import _DatasetKind, _MultiProcessingDataLoaderIter

from shmtensor._core import Parcel
from shmtensor.data import seeds, worker
from shmtensor.data.assembly import RowResults
from shmtensor.data.context import Context
from shmtensor.data.depth import slots_for_batches, slots_for_rows, slots_for_tasks
from shmtensor.data.flight import in_flight
from shmtensor.data.position import Position, pass_over
from shmtensor.data.results import EPOCHS, Results
from shmtensor.data.retrying import Doing, States
from shmtensor.data.rows import RowTasks
from shmtensor.data.tasks import SharedTasks

if TYPE_CHECKING:
    from shmtensor.data.loader import DataLoader

__all__ = ["Iterator"]

_LOOK = 0.25  #: seconds until a wait looks whether a worker has died


class _Loader:
    """A loader with another multiprocessing context: what torch's iterator is built from."""

    def __init__(self, loader: DataLoader[Any], context: Context) -> None:
        self._loader = loader
        self.multiprocessing_context = context
        self.pin_memory = loader.pin_memory and not loader._placement.pins

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _pins(loader: DataLoader[Any]) -> bool:
    """Whether torch's thread that pins memory will be the one that receives."""
    accelerator = getattr(torch, "accelerator", torch.cuda)  # since torch 2.6
    return bool(loader.pin_memory and accelerator.is_available() and not loader._placement.pins)


class Iterator(_MultiProcessingDataLoaderIter):
    """What iter() of a DataLoader with workers gives."""

    _worker_pids_set: bool
    _failure: str | None = None  #: what has ended this epoch, although torch's iterator would go on

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._shutdown = True  # until there is something to shut down
        self._pid = os.getpid()
        self._began: float | None = None  # when the last batch was yielded
        self._counts = loader._counts
        self._shelf = loader._shelf
        self._placement = loader._placement
        self._retries = loader.retries
        self._replay = loader.replay
        self._is_dynamic = loader._is_dynamic
        self._position: Position | None = None
        self._resume = loader._taken_resume()
        self._pass_over = 0  # batches that were yielded before, and are not made again
        self._throw_away = 0  # likewise, but they have to be made
        self._results = self._new_results(loader)
        self._context = Context(
            loader.multiprocessing_context or torch.multiprocessing,
            self._results,
            slots_for_tasks(loader.prefetch_factor or 2, 1),
            worker.run,
            self._begins(loader.num_workers),
            base_seed=None if self._resume is None else self._resume.base_seed,
            shared=RowTasks if loader._by_rows else SharedTasks if self._is_dynamic else None,
            retries=bool(loader.retries),
            replays=loader.replay,
        )
        with seeds.kept() if self._resume else contextlib.nullcontext():
            try:
                super().__init__(_Loader(loader, self._context))
            except BaseException:
                self._give_up()
                raise

    def _new_results(self, loader: DataLoader[Any]) -> Results:
        prefetch = loader.prefetch_factor or 2
        slots = self._shelf.take(slots_for_batches(prefetch, loader.num_workers, loader.keep), loader.max_slot_nbytes)
        if loader._by_rows:
            return RowResults(
                slots,
                loader.keep,
                rows_at_once=slots_for_rows(prefetch, loader.num_workers, loader.batch_size),
                max_slot_nbytes=loader.max_slot_nbytes,
                opens=_pins(loader),
            )
        leaves_states = not self._is_dynamic and bool(loader.retries or loader.stateful)
        return Results(
            slots,
            loader.keep,
            opens=_pins(loader),
            states=States(loader.num_workers, prefetch * loader.num_workers + 2) if leaves_states else None,
            doing=Doing(loader.num_workers) if self._is_dynamic and loader.retries else None,
        )

    # ---- batches

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self._began = None
        self._failure = None
        if first_iter and self._retries:
            self._ignore_deaths()  # before the sampler is begun, which may take as long as it likes
        if self._is_dynamic:
            self._begin_dynamic(loader, first_iter)
        self._position = loader._new_position()
        if self._position is not None:
            self._begin_position(self._position, loader)
        super()._reset(loader, first_iter)
        if self._position is not None and self._results.states is not None and not first_iter:
            states = self._results.states
            self._position.workers = [states.left(i, None) for i in range(self._num_workers)]

    def _begin_dynamic(self, loader: Any, first_iter: bool) -> None:
        """Each epoch has its own seed, whether its workers are new or not."""
        assert self._context.shared is not None
        if not first_iter:  # what a new iterator would have done
            iter(self._index_sampler)
            self._base_seed = int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator).item())
            self._results.epoch = (self._results.epoch + 1) % EPOCHS
        if self._resume is not None:
            self._base_seed = self._resume.base_seed
        self._context.shared.base_seed = self._base_seed

    def _begins(self, num_workers: int) -> list[bytes | None]:
        """The random state that each worker begins with; None: that of its seeds."""
        if self._resume is None or self._is_dynamic:
            return [None] * num_workers
        return list(self._resume.workers)

    def _begin_position(self, position: Position, loader: Any) -> None:
        workers = self._begins(self._num_workers)
        resume, self._resume = self._resume, None
        if resume is not None:
            resume.restart(loader)
            if self._dataset_kind == _DatasetKind.Iterable:
                self._throw_away = resume.yielded
            else:
                self._pass_over = resume.yielded
        position.began(loader, self._base_seed if resume is None else resume.base_seed, workers)
        position.yielded = 0 if resume is None else resume.yielded

    def _try_put_index(self) -> None:
        if self._pass_over:  # the first time: the next batch has the number, and the worker, that it always had
            n, self._pass_over = self._pass_over, 0
            pass_over(self._next_index, n)
            for _ in range(n % self._num_workers):
                next(self._worker_queue_idx_cycle)
            self._send_idx = self._rcvd_idx = n
        super()._try_put_index()

    def __next__(self) -> Any:
        if self._failure is not None:  # what is outstanding will not come
            raise RuntimeError(self._failure)
        while self._throw_away:
            self._throw_away -= 1
            super().__next__()
        began = time.perf_counter()
        if self._began is None:
            self._began = began
        in_flight.poll()
        waited_before = self._results.waited_s
        try:
            batch = super().__next__()
        except StopIteration:
            if self._position is not None:
                self._position.is_over = True
            raise
        if self._position is not None:
            self._note_position(self._position)
        counts = self._counts
        now = time.perf_counter()
        waited_s = self._results.waited_s - waited_before
        counts.batches += 1
        counts.ready += waited_s == 0
        counts.waited_s += waited_s
        counts.elapsed_s += now - self._began
        self._began = now
        return batch

    def _note_position(self, position: Position) -> None:
        position.yielded += 1
        states = self._results.states
        if states is not None and self._dataset_kind == _DatasetKind.Map:
            number = self._rcvd_idx - 1
            i = number % self._num_workers
            position.workers[i] = states.left(i, number)

    def _process_data(self, data: Any, *worker: Any) -> Any:
        if type(data) is Parcel:
            data = self._opened(data)
        return self._placement.placed(super()._process_data(data, *worker))

    def _opened(self, parcel: Parcel) -> Any:
        parked = sum(len(info) == 2 and type(info[1]) is Parcel for info in self._task_info.values())
        slots, most = self._results.slots, parked + self._results.parked + self._results.keep
        copy = not self._placement.has_room(lambda: slots.reading <= most)
        try:  # torch raises what is wrapped once the next task was sent; else the epoch would have fewer batches
            if copy:
                self._counts.has_copied(self._results.keep)
            else:
                self._placement.cover(slots, parcel)
            return parcel.open(copy)
        except Exception:
            return ExceptionWrapper(where="on receiving a batch from a DataLoader worker")

    def _try_get_data(self, timeout: float = _utils.MP_STATUS_CHECK_INTERVAL) -> tuple[bool, Any]:
        # torch looks at its workers at the end of each wait, and there is no SIGCHLD handler off the main thread.
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            step = min(max(left, 0), _LOOK)
            found, data = self._try_with_retries(step) if self._retries else super()._try_get_data(step)
            if found or left <= _LOOK:
                return found, data

    # ---- workers that die, if their batches are to be computed again

    def _try_with_retries(self, timeout: float) -> tuple[bool, Any]:
        try:
            return True, self._data_queue.get(timeout=timeout)
        except queue.Empty:
            for i, process in enumerate(self._workers):
                if self._workers_status[i] and not process.is_alive():
                    self._results.take_in()
                    self._replace(i, process.pid)
            return False, None

    def _replace(self, i: int, pid: int) -> None:
        retries, replay = self._retries, self._replay
        why = ""
        if self._dataset_kind == _DatasetKind.Iterable and not replay:
            why = "an iterable dataset has to start over: see replay="
        else:
            process, queue_of_tasks, tasks, tries = self._context.replacement(i, pid)
            if tries > retries:
                why = f"a batch was tried {tries} times: see retries="
        if why:
            self._mark_worker_as_unavailable(i)
            self._failure = f"DataLoader worker (pid(s) {pid}) exited unexpectedly; {why}"
            raise RuntimeError(self._failure)
        process.start()
        self._workers[i] = process
        self._index_queues[i] = queue_of_tasks
        for task in tasks:
            queue_of_tasks.resend(task)

    def _ignore_deaths(self) -> None:
        """torch's handler of SIGCHLD would raise, wherever the main thread is."""
        if getattr(self, "_worker_pids_set", False):  # not yet, if a worker could not be started
            self._worker_pids_set = False
            _utils.signal_handling._remove_worker_pids(id(self))

    # ---- the end

    def _give_up(self) -> None:
        """Ends the workers that were started before one could not be, or before the sampler raised, and the thread that
        pins."""
        self._shutdown = True
        self._ignore_deaths()  # or torch's handler would raise for those that end now, and know us for ever
        thread = getattr(self, "_pin_memory_thread", None)
        if thread is not None:
            self._pin_memory_thread_done_event.set()
            self._results.put((None, None))  # it waits for something; if there is no room for that, it has something
            thread.join()
        processes = getattr(self, "_workers", [])
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(_utils.MP_STATUS_CHECK_INTERVAL)
            if process.is_alive():  # it has inherited a handler of SIGTERM, or is stopped
                process.kill()
                process.join()

    def _shutdown_workers(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child, which got a copy of us: neither the workers nor their batches are its own
        if self._shutdown or _utils is None or _utils.python_exit_status is not False:
            super()._shutdown_workers()
            return
        self._ignore_deaths()
        self._task_info.clear()
        self._workers_done_event.set()
        self._results.drain()  # or a worker that waits for a slot would not hear of it
        super()._shutdown_workers()
        self._results.drain()
        in_flight.poll()
        if not any(w.is_alive() for w in self._workers):
            self._shelf.leave(self._results.left())
