"""The answers people know to "how do I get tensors out of worker processes?", and this package's.

Each is a plain function of the same form: make items 0 to `total` - 1 of `job` in the crew's workers, and
call ``deliver(index, checksum, array)`` for each in the main process. Each is written as someone who knows it
well would write it; none waits for anything that another does not wait for.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from .jobs import Array, Job

Deliver = Callable[[int, int, Array], None]
Answer = Callable[[Job, int, "Crew", Deliver], None]

PATIENCE = 60.0  # seconds that a wait may last before a worker must be considered lost


@dataclass(frozen=True)
class Crew:
    """What all answers share, so that they differ in nothing but the hand-off."""

    workers: int
    context: BaseContext
    chunk: int = 8  # items per message, for the answers that send several at once

    @property
    def slots(self) -> int:
        # For each worker one in the making and one that waits, and one in the main process's hands.
        return 2 * self.workers + 1


class Tickets:
    """Hands each index to one worker, whoever asks first; for the answers that bring no task queue."""

    def __init__(self, total: int, context: BaseContext) -> None:
        self._total = total
        self._next = context.Value("q", 0)

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._next.get_lock():
                index = self._next.value
                self._next.value = index + 1
            if index >= self._total:
                return
            yield index


# --- no hand-off ----------------------------------------------------------------------------------


def one_process(job: Job, total: int, crew: Crew, deliver: Deliver) -> None:
    """No workers: the main process makes each sample itself, in one array that stays warm."""
    out = np.empty(job.shape, job.dtype)
    for index in range(total):
        deliver(index, job.make(index, out), out)


# --- (a) and (b): the standard library's pool -----------------------------------------------------


def pool_pickle(job: Job, total: int, crew: Crew, deliver: Deliver) -> None:
    """`Pool.imap`: each result is pickled, sent through a pipe and unpickled."""
    _pool(job, total, crew, deliver, chunk=1)


def pool_chunks(job: Job, total: int, crew: Crew, deliver: Deliver) -> None:
    """`Pool.imap` with `chunksize`: as before, with several results in one message."""
    _pool(job, total, crew, deliver, chunk=crew.chunk)


def _pool(job: Job, total: int, crew: Crew, deliver: Deliver, chunk: int) -> None:
    with crew.context.Pool(crew.workers, _start_pool_worker, (job,)) as pool:
        for item in pool.imap(_pool_item, range(total), chunk):
            deliver(*item)


def _start_pool_worker(job: Job) -> None:
    global _job
    _leave_ctrl_c_to_main()
    _job = job


def _pool_item(index: int) -> tuple[int, int, Array]:
    return _job.made(index)


_job: Job  # a pool's function takes one argument: the rest is set once per worker


# --- (c): shared memory by hand -------------------------------------------------------------------


def by_hand(job: Job, total: int, crew: Crew, deliver: Deliver) -> None:
    """`SharedMemory` cut into slots: one queue brings the numbers of full slots, another takes them back."""
    segment = SharedMemory(create=True, size=crew.slots * job.nbytes)
    try:
        _by_hand(job, total, crew, deliver, segment)
    finally:
        segment.unlink()
        with suppress(BufferError):  # after an error, its traceback still holds a view
            segment.close()


def _by_hand(job: Job, total: int, crew: Crew, deliver: Deliver, segment: SharedMemory) -> None:
    free, full = crew.context.SimpleQueue(), crew.context.SimpleQueue()
    for number in range(crew.slots):
        free.put(number)
    slots = _slots_in(segment, job, crew.slots)
    work = (job, crew.slots, segment, free, full, Tickets(total, crew.context))
    with _running(crew, _fill_by_hand, work, lambda: full.put(None)):
        for _ in range(total):
            message = full.get()
            if message is None:
                raise RuntimeError("a worker died")
            number, index, checksum = message
            deliver(index, checksum, slots[number])
            free.put(number)


def _fill_by_hand(job: Job, count: int, segment: SharedMemory, free: Any, full: Any, tickets: Tickets) -> None:
    slots = _slots_in(segment, job, count)
    for index in tickets:
        number = free.get()
        full.put((number, index, job.make(index, slots[number])))
    del slots  # or the segment cannot be closed


def _slots_in(segment: SharedMemory, job: Job, count: int) -> Array:
    return np.ndarray((count, *job.shape), job.dtype, segment.buf)


# --- (d): torch -----------------------------------------------------------------------------------


def torch_loader(job: Job, total: int, crew: Crew, deliver: Deliver) -> None:
    """torch's `DataLoader`: workers stack each batch in a fresh shared segment and send its descriptor."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _Dataset(job, total),  # any object with a length and items will do
        batch_size=crew.chunk,
        num_workers=crew.workers,
        multiprocessing_context=crew.context,
        worker_init_fn=_start_torch_worker,
    )
    for indices, checksums, batch in loader:
        for index, checksum, data in zip(indices.tolist(), checksums.tolist(), batch.numpy(), strict=True):
            deliver(index, checksum, data)


class _Dataset:
    def __init__(self, job: Job, total: int) -> None:
        self.job, self.total = job, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> tuple[int, int, Any]:
        import torch

        _, checksum, data = self.job.made(index)
        return index, checksum, torch.from_numpy(data)


def _start_torch_worker(number: int) -> None:
    import torch

    _leave_ctrl_c_to_main()
    torch.set_num_threads(1)
    # Errors go to the main process by the queue. All that is printed here is a helper thread's complaint
    # that nobody came for a descriptor, after Ctrl-C.
    sys.excepthook = lambda *about: None


# --- this package ---------------------------------------------------------------------------------


def shmtensor_buffer(job: Job, total: int, crew: Crew, deliver: Deliver) -> None:
    """`TensorBuffer`: workers make each sample straight in a slot, and the main process reads it there."""
    import shmtensor as st

    spec = {"data": (job.shape, job.dtype), "checksum": ((), "int64")}
    tickets = Tickets(total, crew.context)
    with (
        st.TensorBuffer.create(spec, slots=crew.slots, producers=crew.workers) as buf,
        _running(crew, _fill_slots, (job, buf, tickets), buf.shutdown),
        suppress(st.ShutDown),  # every worker has closed its end
    ):
        while True:
            with buf.acquire(timeout=PATIENCE) as slot:
                deliver(slot.tag, int(slot["checksum"]), slot["data"])


def _fill_slots(job: Job, buf: Any, tickets: Tickets) -> None:
    import shmtensor as st

    with buf, suppress(st.ShutDown):  # the main process has ended it, for another worker died
        for index in tickets:
            with buf.claim(timeout=PATIENCE) as slot:
                slot.tag = index
                slot["checksum"][...] = job.make(index, slot["data"])


# --- processes ------------------------------------------------------------------------------------


@contextmanager
def _running(
    crew: Crew, work: Callable[..., None], arguments: Sequence[Any], on_death: Callable[[], None]
) -> Iterator[None]:
    """Worker processes that are gone, one way or the other, when the block ends."""
    processes = [
        crew.context.Process(target=_work, args=(work, *arguments), daemon=True)  # type: ignore[attr-defined]
        for _ in range(crew.workers)
    ]
    for process in processes:
        process.start()
    watcher = threading.Thread(target=_watch, args=(processes, on_death), daemon=True)
    watcher.start()
    try:
        yield
        watcher.join(PATIENCE)
    finally:
        for process in processes:
            process.terminate()
        watcher.join(PATIENCE)
        for process in processes:
            process.kill()
        watcher.join(PATIENCE)


def _work(work: Callable[..., None], *arguments: Any) -> None:
    _leave_ctrl_c_to_main()
    work(*arguments)


def _watch(processes: list[BaseProcess], on_death: Callable[[], None]) -> None:
    """Wait for the end of every worker; say so when one ends before its work does."""
    alive: dict[Any, BaseProcess] = {process.sentinel: process for process in processes}
    while alive:
        for sentinel in connection.wait(list(alive)):
            process = alive.pop(sentinel)
            process.join()
            if process.exitcode:
                on_death()


def _leave_ctrl_c_to_main() -> None:
    """Ctrl-C reaches the whole process group; only the main process answers it, by ending the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- all of them ----------------------------------------------------------------------------------

OURS = "shmtensor"

BASELINE = {"one process, no hand-off": one_process}
STANDARD = {
    "(a) Pool.imap, pickle": pool_pickle,
    "(b) Pool.imap in chunks": pool_chunks,
    "(c) SharedMemory by hand": by_hand,
}
TORCH = {"(d) torch DataLoader": torch_loader}


def available() -> dict[str, Answer]:
    """Every answer that can run here, ours last."""
    torch = TORCH if find_spec("torch") else {}
    return {**BASELINE, **STANDARD, **torch, OURS: shmtensor_buffer}
