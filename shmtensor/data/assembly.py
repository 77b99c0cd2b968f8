"""The main process's part of granularity="sample": slots that it claims for the workers to fill, and makes batches of.

What it publishes it receives itself, so that from there on such a batch is one like all others.
"""

from __future__ import annotations

import queue
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data._utils import collate

from shmtensor._core import Landing, Parcel
from shmtensor.data.filling import Filled, Part
from shmtensor.data.results import Results, tag_of
from shmtensor.data.rows import WHOLE, Row, number_of, places
from shmtensor.data.shelf import SPIN_US
from shmtensor.errors import ShutDown
from shmtensor.objects import ObjectSlots

if TYPE_CHECKING:
    from shmtensor.data.rows import RowTasks

__all__ = ["RowResults"]

_MAPPED_AT_ONCE = 1 << 20  #: bytes of a row that are worth mapping while other rows are still being written
_PATIENCE = 1.0  #: seconds that a batch waits for a slot, of which there should be enough, before it does without


class _Batch:
    """One in the making. While it is, its slot is claimed."""

    def __init__(self, number: int, epoch: int, index: list[Any], base_seed: int, landing: Landing | None) -> None:
        self.number = number
        self.epoch = epoch
        self.index = index
        self.base_seed = base_seed
        self.landing = landing  #: None: it is made as a whole
        self.answers: list[Any] = [None] * (len(index) if landing else 1)
        self.missing = len(self.answers)
        self.tasks: dict[int, Any] = {}  # tag -> task

    def came(self, k: int, answer: Any) -> None:
        self.answers[k] = answer
        self.missing -= 1
        if self.landing is not None and type(answer) is Filled:
            for at, nbytes in places(answer.layout, len(self.answers)):
                if nbytes >= _MAPPED_AT_ONCE:
                    self.landing.map_lent(at + k * nbytes, nbytes)


class RowResults(Results):
    """The batches, of which the workers send rows.

    Args:
        slots, keep, opens: as of Results.
        rows_at_once: how many rows are with the workers, or wait for one, at most; others wait in this process.
        max_slot_nbytes: what a batch may take that is made as a whole.
    """

    tasks: RowTasks

    def __init__(
        self, slots: ObjectSlots, keep: int, *, rows_at_once: int, max_slot_nbytes: int | None, opens: bool
    ) -> None:
        super().__init__(slots, keep, opens=opens, states=None, doing=None)
        self.rows_at_once = rows_at_once
        self._answers = ObjectSlots.create(rows_at_once, max_slot_nbytes=max_slot_nbytes, spin_us=SPIN_US)
        self._missing: dict[int, tuple[_Batch, int]] = {}  # tag of a row that was not answered -> (batch, row)

    def __getstate__(self) -> Any:
        return self.slots, self._answers

    def __setstate__(self, state: Any) -> None:
        slots, self._answers = state
        Results.__init__(self, slots, 0, opens=False, states=None, doing=None)

    @property
    def inbox(self) -> ObjectSlots:
        return self._answers

    # ---- what is to be done

    def begun(self, number: int, index: Iterable[Any], base_seed: int) -> Iterator[tuple[int, Any]]:
        """Claims a slot for a batch; of each of its rows: (tag, task)."""
        landing, (slot, word), index = Landing(self.slots), (0, 0), list(index)
        try:
            if 0 < len(index) < WHOLE:
                slot, word = landing.lend(_PATIENCE)
                batch = _Batch(number, self.epoch, index, base_seed, landing)
                where = [Row(slot, word, row, len(index)) for row in range(len(index))]
                return self._sent(batch, [([i], row) for i, row in zip(index, where, strict=True)])
        except queue.Full:
            pass
        return self._as_a_whole(_Batch(number, self.epoch, index, base_seed, None))

    def _as_a_whole(self, batch: _Batch) -> Iterator[tuple[int, Any]]:
        return self._sent(batch, [(batch.index, None)])

    def _sent(self, batch: _Batch, what: list[tuple[list[Any], Row | None]]) -> Iterator[tuple[int, Any]]:
        for k, (index, row) in enumerate(what):
            r = WHOLE if row is None else row.row
            tag = tag_of(number_of(batch.number, r), batch.epoch)
            self._missing[tag] = batch, k
            batch.tasks[tag] = batch.number, r, index, batch.base_seed, batch.epoch, row
        return iter(batch.tasks.items())

    def missing(self, tags: Iterable[int]) -> list[tuple[int, Any]]:
        """Of those that nobody makes any more: (tag, task) of what is still to be made."""
        return [(tag, self._missing[tag][0].tasks[tag]) for tag in tags if tag in self._missing]

    def those_here(self) -> set[int]:
        """Pids of those who may still answer, or have answered what cannot be received yet."""
        return {m["pid"] for m in self._answers._members() if m["alive"]}

    def forget(self, tags: Iterable[int]) -> None:
        """They were not begun, and nobody will. A slot is free again once nobody writes to it any more."""
        for tag in tags:
            self._missing.pop(tag, None)

    # ---- what was done

    def _receive(self, timeout: float | None) -> tuple[Any, Any]:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self.tasks.flush()
            try:
                tag, x = self._receive_and_time(None if end is None else max(end - time.monotonic(), 0))
            except (ShutDown, queue.Empty):
                if timeout:
                    self.tasks.look()
                raise queue.Empty from None
            if tag == 0:  # from this process
                return x  # type: ignore[no-any-return]
            batch, k = self._missing.pop(tag, (None, 0))
            if batch is None or batch.epoch != self.epoch:
                continue
            batch.came(k, x.open(True) if type(x) is Parcel else x)
            if batch.missing == 0:
                found, data = self._finished(batch)
                if found:
                    return batch.number, data

    def _finished(self, batch: _Batch) -> tuple[bool, Any]:
        """(True, the batch), or False: it has to be made once more."""
        answers, landing = batch.answers, batch.landing
        wrong = next((x for x in answers if isinstance(x, ExceptionWrapper)), None)
        if wrong is not None:
            return True, wrong
        if landing is None:
            return True, answers[0]
        try:
            if any(x is None for x in answers):
                raise ValueError("what is no tensor in them cannot be pickled")
            landing.write(_collated(landing, answers), tag_of(batch.number, batch.epoch), _PATIENCE)
            landing.publish(_PATIENCE)
            _, x = self.slots.receive_parcel(0)
        except Exception as e:  # a worker that makes all of it will have torch's own to say about it
            batch.landing = None
            warnings.warn(
                f'granularity="sample": the rows of a batch do not go together ({e}); one worker makes all of it again',
                RuntimeWarning,
                stacklevel=2,
            )
            again = _Batch(batch.number, batch.epoch, batch.index, batch.base_seed, None)
            for task in self._as_a_whole(again):
                self.tasks.resend(task)
            return False, None
        if self.opens and type(x) is Parcel:
            x = x.open(self.slots.reading > self.keep)
        return True, x

    # ---- the ends

    def take_in(self) -> None:
        self._answers.reclaim()
        super().take_in()

    def put(self, x: Any) -> None:
        self._answers.try_send(x)

    def drain(self) -> None:
        super().drain()
        self._answers.drain()

    def left(self) -> ObjectSlots:
        self._missing.clear()
        return super().left()


def _collated(landing: Landing, answers: list[Filled]) -> Any:
    """The batch, whose tensors are already there."""
    first, rows = answers[0], len(answers)
    if any(x.layout != first.layout for x in answers):
        raise ValueError(f"their tensors are {' and '.join(sorted({str(x.layout) for x in answers})[:2])}")
    tensors = [
        landing.lent(at, (rows, *shape), getattr(torch, dtype))
        for (shape, dtype), (at, _) in zip(first.layout, places(first.layout, rows), strict=True)
    ]

    def whole(parts: list[Any], *, collate_fn_map: Any = None) -> torch.Tensor:
        if any(x != parts[0] for x in parts):
            raise ValueError("their structures differ")
        return tensors[parts[0].k]

    return collate.collate(
        [x.rest for x in answers],
        collate_fn_map={**collate.default_collate_fn_map, torch.Tensor: _stacked, Part: whole},
    )


def _stacked(batch: list[torch.Tensor], *, collate_fn_map: Any = None) -> torch.Tensor:
    """Those that are not in the slot, as torch's workers stack them: the result has its own order in memory."""
    first = batch[0]
    if first.layout is not torch.strided or first.is_nested:
        return collate.collate_tensor_fn(batch, collate_fn_map=collate_fn_map)
    return torch.stack(tuple(batch), 0, out=torch.empty((len(batch), *first.shape), dtype=first.dtype))
