"""granularity="sample": a batch is made by all workers at once, each row in its own place of one slot.

    rows.py       the batch becomes as many tasks as it has rows; a worker's task stays its own until it has answered
    filling.py    a worker makes the sample, writes its tensors to their places, and answers with what is left of it
    assembly.py   the main process, which has claimed the slot, collates what is left, and publishes

So the slots of the tasks say which row is whose, and a row is given to somebody else only after its worker was found
dead. A row's random states are seeded for it, so that it does not matter who makes it. A batch whose samples turn out
not to be alike is made once more, as a whole, by one worker.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, MapDataPipe, Subset, default_collate
from torch.utils.data._utils import collate
from torch.utils.data._utils.worker import _ResumeIteration

from shmtensor._core import Kept
from shmtensor.data.retrying import Notes
from shmtensor.data.seeds import seed_for
from shmtensor.data.tasks import SharedTasks
from shmtensor.errors import ShutDown

if TYPE_CHECKING:
    from shmtensor.data.assembly import RowResults

__all__ = ["WHOLE", "Layout", "Row", "RowTasks", "is_whole", "number_of", "places", "seeded_samples", "why_not"]

_ROW_BITS = 20
WHOLE = (1 << _ROW_BITS) - 1  #: in place of a row: all of them, by one worker

Layout = tuple[tuple[tuple[int, ...], str], ...]  #: of a sample's tensors: their shapes, and names of their dtypes


def number_of(batch: int, row: int) -> int:
    """What a row is called, and seeded by."""
    return batch << _ROW_BITS | row


def is_whole(number: int) -> bool:
    return number & WHOLE == WHOLE


def places(layout: Layout, rows: int) -> Iterator[tuple[int, int]]:
    """Of each tensor: (where in the slot its first row lies, bytes of a row)."""
    at = 64  # behind the header of the message that the slot will hold
    for shape, dtype in layout:
        nbytes = math.prod(shape) * getattr(torch, dtype).itemsize
        yield at, nbytes
        at += (nbytes * rows + 63) & -64


def why_not(loader: Any) -> str | None:
    """What keeps a loader from having its batches made by rows; None: nothing does."""
    dataset = loader.dataset
    entries = collate.default_collate_fn_map
    if isinstance(dataset, IterableDataset | MapDataPipe):
        return "the dataset is not map-style"
    if not loader._auto_collation:
        return "there are no batches"
    if loader.collate_fn is not default_collate:
        return "the collate_fn is not default_collate"
    if entries.get(torch.Tensor) is not collate.collate_tensor_fn:
        return "default_collate was given another function for tensors"
    while type(dataset) is Subset:  # its own __getitems__ asks for one sample after the other, if there is no other
        dataset = dataset.dataset
    if getattr(dataset, "__getitems__", None):
        return "the dataset has __getitems__"
    return None


class Row(NamedTuple):
    """Where a row is written."""

    slot: int
    word: int  #: of the main process's claim
    row: int
    rows: int  #: of the batch


def seeded_samples(dataset: Any, index: Iterable[Any], base_seed: int, batch: int) -> list[Any]:
    """Those of a whole batch, each with the random states that it is seeded with as a row."""
    samples = []
    for row, i in enumerate(index):
        seed_for(base_seed, number_of(batch, row))
        samples.append(dataset[i])
    return samples


class RowTasks(SharedTasks):
    """The rows that are to be made. In the main process it takes batches, as torch's iterator sends them; a worker
    takes rows out of it."""

    row: Row | None = None  #: in a worker: where the row that it makes is written
    whole: tuple[Any, int, int] | None = None  #: or what the batch is made of, that it makes as a whole
    _kept: Kept | None = None  #: in a worker: the slot of its task

    def __init__(self, depth: int, notes: Notes | None, results: RowResults) -> None:
        super().__init__(results.rows_at_once, None, results)
        self._rows = results
        self._rows.tasks = self
        self._unsent: deque[tuple[int, Any]] = deque()
        self._tries: dict[int, int] = {}
        self._dead: set[int] = set()  # pids of those whose tasks are not known yet
        self._held: dict[int, list[int]] = {}  # by pid, of those who died
        self._has_ended = False

    # ---- in the main process

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(obj, tuple):
            self._unsent.extend(self._rows.begun(obj[0], obj[1], self.base_seed))
            self.flush()
            return
        if not self._has_ended:
            self._withdraw()
            self._tries.clear()
        if isinstance(obj, _ResumeIteration):  # no worker has anything to begin anew
            self._rows.put_back((obj, None))
        else:
            self._has_ended = True
            self._slots.try_send(obj)

    def flush(self) -> None:
        """Sends as many as there is room for."""
        while self._unsent:
            tag, task = self._unsent[0]
            if not self._slots.try_send(task, tag):
                return
            self._unsent.popleft()

    def resend(self, task: tuple[int, Any]) -> None:
        """Before all others: the batch that it is of waits for it."""
        self._unsent.appendleft(task)
        self.flush()

    def _withdraw(self) -> None:
        """What nobody has begun yet."""
        tags = [tag for tag, _ in self._unsent]
        self._unsent.clear()
        with suppress(Empty, ShutDown):
            while True:
                with self._slots.acquire(0) as slot:
                    tags.append(slot.tag)
        self._rows.forget(tags)

    def again(self, worker: int, pid: int) -> tuple[bytes | None, list[Any], int]:
        self._dead.add(pid)
        return None, [], self.look()

    def look(self) -> int:
        """Sends again what dead workers had in hand, once all that they have answered can be received. Returns how
        often one of those rows was tried."""
        if not self._dead:
            return 0
        self._slots.reclaim()
        for _, _, pid, slot, reading, _, _, tag in self._slots._deaths():
            held = self._held.setdefault(pid, [])
            if slot is not None and reading:
                held.append(tag)
        if self._slots._deaths_missed:
            raise RuntimeError("so many workers died at once that it is not known what they were doing")
        known = self._dead & self._held.keys() - self._rows.those_here()  # its child may keep its places for a moment
        if not known:
            return 0
        self._dead -= known
        self._rows.take_in()
        tags = [tag for pid in known for tag in self._held.pop(pid)]
        tasks = self._rows.missing(tags)
        most = 0
        for tag, task in tasks or [(0, None)]:  # 0: it died of nothing that is known
            most = max(most, self._tries.get(tag, 0) + 1)
            self._tries[tag] = self._tries.get(tag, 0) + 1
            if task is not None:
                self.resend((tag, task))
        return most

    # ---- in a worker

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next row. The last one has been answered by now: its task is done."""
        if self._kept is not None:
            self._kept.release()
            self._kept = None
        _, task, error, self._kept = self._slots.receive_kept(timeout)
        if error is not None:
            raise error
        if task is None:
            return None
        batch, row, index, base_seed, epoch, self.row = task
        self.whole = None
        if self.row is None:  # torch's loop has nothing to fetch; the collate function does it
            self.whole, index = (index, base_seed, batch), []
        return number_of(batch, row), index, base_seed, epoch
