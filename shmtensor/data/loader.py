"""DataLoader: torch's arguments and ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.utils.data
from torch.utils.data import Dataset, Sampler

from shmtensor.data.iterator import Iterator
from shmtensor.data.shelf import Counts, Shelf
from shmtensor.segments import check_int

__all__ = ["DataLoader"]

_T = TypeVar("_T", covariant=True)


class DataLoader(torch.utils.data.DataLoader[_T]):
    """torch.utils.data.DataLoader, whose workers hand their batches over in shared-memory slots.

    The arguments are torch's, and so are the batches, their order, and the random state afterwards. Batches are views
    of slots: writable, and each slot is used again once the last alias of its tensors has died. With num_workers=0 it
    is torch's own.

    Args:
        keep: how many batches, the one that is being yielded included, may be views at a time; if more than that are
            kept alive, further ones are yielded as copies in memory of their own. 0: always copies.
        retries: how often a batch is computed again if its worker dies: by another process with the same worker id and
            random state, so that the epoch's batches are those of an undisturbed one. 0: RuntimeError, as torch's.
        replay: whether the dataset has a state of its own, as iterable ones do: then a replacement starts the epoch
            over, and what had come already is thrown away.
        max_slot_nbytes: bytes that one batch may take; memory is taken when it is first needed. None: a quarter of the
            machine's memory.

    Raises:
        TypeError, ValueError: an argument is wrong; torch's are checked by torch.
        ShmNoSpaceError: on iterating, memory is short.
    """

    def __init__(
        self,
        dataset: Dataset[_T],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        keep: int = 2,
        retries: int = 0,
        replay: bool = False,
        max_slot_nbytes: int | None = None,
    ) -> None:
        check_int("keep", keep, 0, 2**15)
        check_int("retries", retries, 0, 2**31)
        if retries and pin_memory and torch.cuda.is_available():
            raise ValueError("retries= does not go together with pin_memory=True")
        self.keep = keep
        self.retries = retries
        self.replay = replay
        self.max_slot_nbytes = max_slot_nbytes
        self._counts = Counts()
        self._shelf = Shelf()
        newer = {} if in_order else {"in_order": in_order}  # older versions of torch know only True
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            **newer,
        )

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return Iterator(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shelf": Shelf(), "_counts": Counts()}

    def stats(self) -> dict[str, Any]:
        """Figures of all epochs with workers so far.

        ``batches`` that were yielded; how many of them were ``ready`` when asked for; ``copied``, because more than
        ``keep`` were kept alive; ``waited_s``, seconds that the loop waited for batches, of the ``elapsed_s`` that it
        took; and the ``verdict``, what holds it up.
        """
        return {**dataclasses.asdict(self._counts), "verdict": self._verdict()}

    def _verdict(self) -> str:
        counts = self._counts
        if counts.batches == 0:
            return "nothing was yielded yet"
        waited = counts.waited_s / max(counts.elapsed_s, 1e-9)
        if waited > 0.2:
            return f"worker-bound: the loop waited {waited:.0%} of its time for batches"
        if counts.copied > counts.batches // 20:
            return f"lease-bound: {counts.copied} of {counts.batches} batches were copied; see keep={self.keep}"
        return f"consumer-bound: {counts.ready} of {counts.batches} batches were there when they were asked for"
