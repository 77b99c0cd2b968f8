"""DataLoader: torch's arguments and ours."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
import torch.utils.data
from torch.utils.data import Dataset, IterableDataset, MapDataPipe, Sampler

from shmtensor.data import cuda
from shmtensor.data.depth import check_prefetch
from shmtensor.data.device import Moved
from shmtensor.data.inprocess import InProcess
from shmtensor.data.iterator import Iterator
from shmtensor.data.placement import IN_PLACE, Placement
from shmtensor.data.position import Position, generators_of
from shmtensor.data.progress import Progress
from shmtensor.data.rows import why_not
from shmtensor.data.shelf import Counts, Shelf
from shmtensor.segments import check_int

__all__ = ["DataLoader"]

_T = TypeVar("_T", covariant=True)

has_in_order = "in_order" in inspect.signature(torch.utils.data.DataLoader.__init__).parameters


class DataLoader(torch.utils.data.DataLoader[_T]):
    """torch.utils.data.DataLoader, whose workers hand their batches over in shared-memory slots.

    The arguments are torch's, and so are the batches, their order, and the random state afterwards. Batches are views
    of slots: writable, and each slot is used again once the last alias of its tensors has died. With num_workers=0 it
    is torch's own.

    Args:
        pin_memory: True: as torch's, copies in pinned memory, made in a thread. "in_place": the slots themselves are
            page-locked, and nothing is copied; who then copies to a GPU without waiting says so by
            ``shmtensor.data.record_stream()``, or leaves it to ``device``. Without CUDA it is the same as True.
        device: a CUDA device. Batches come on it, copied by a stream of the loader's own; the current stream waits for
            the copy, the process does not, and the slot is free again once it is done.
        keep: how many batches, the one that is being yielded included, may be views at a time; if more than that are
            kept alive, further ones are yielded as copies in memory of their own. 0: always copies.
        retries: how often a batch is computed again if its worker dies: by another process with the same worker id and
            random state, so that the epoch's batches are those of an undisturbed one. 0: RuntimeError, as torch's.
        replay: whether the dataset has a state of its own, as iterable ones do: then a replacement starts the epoch
            over, and what had come already is thrown away.
        schedule: "static": torch's; batch i is made by worker ``i % num_workers``. "dynamic": whoever is idle makes the
            next batch, so that a slow one holds up nobody but itself; the random states (torch's, numpy's and random's)
            are seeded for each batch, so that the batches depend neither on who makes them nor on ``num_workers``, of
            which 0 is one. For map-style datasets.
        granularity: "batch": a worker makes a batch. "sample": all workers make each batch, one sample after the other,
            so that the first is there sooner, and none waits for one worker alone; for batches of a few large samples.
            The random states are seeded for each sample, so that the batches do not depend on ``num_workers``, as with
            the dynamic schedule. It needs a map-style dataset without ``__getitems__``, default_collate and samples of
            one shape; without those it warns, and a worker makes a batch.
        stateful: whether state_dict() can be called under the static schedule: then each worker leaves its random state
            with each batch, about 0.1 ms.
        progress: whether an epoch has a progress bar, which is tqdm's and needs it installed.
        max_slot_nbytes: bytes that one batch may take; memory is taken when it is first needed. None: a quarter of the
            machine's memory, but all slots together no more than a quarter of the address space that is left.

    Raises:
        TypeError, ValueError: an argument is wrong; torch's are checked by torch.
        RuntimeError: ``device`` without CUDA.
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
        pin_memory: bool | str = False,
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
        schedule: Literal["static", "dynamic"] = "static",
        granularity: Literal["batch", "sample"] = "batch",
        stateful: bool = False,
        progress: bool = False,
        max_slot_nbytes: int | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        check_int("keep", keep, 0, 2**15)
        check_int("retries", retries, 0, 2**31)
        if retries and pin_memory and pin_memory != IN_PLACE and cuda.runtime.is_available():
            raise ValueError('retries= does not go together with pin_memory=True; with pin_memory="in_place" it does')
        self._placement = Placement(pin_memory, device)
        self.device = device
        self.keep = keep
        self.retries = retries
        self.replay = replay
        self.schedule = schedule
        self.granularity = granularity
        self.stateful = stateful
        self.progress = progress
        self.max_slot_nbytes = max_slot_nbytes
        self._counts = Counts()
        self._shelf = Shelf()
        self._position = Position()
        self._resume: Position | None = None
        self._iterator: Any = None
        self.in_order = in_order
        newer = {} if in_order else {"in_order": in_order}
        if newer and not has_in_order:
            raise ValueError(f"in_order=False needs torch 2.6 or later; this is {torch.__version__}")
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
        check_prefetch(self.prefetch_factor or 2, self.num_workers, keep, shares=schedule == "dynamic")

        self._check_schedule()
        self._by_rows = self._check_granularity()

    def _check_schedule(self) -> None:
        if self.schedule not in ("static", "dynamic"):
            raise ValueError(f"schedule has to be 'static' or 'dynamic', not {self.schedule!r}")
        if self.schedule == "dynamic" and isinstance(self.dataset, IterableDataset | MapDataPipe):
            raise ValueError(
                "schedule='dynamic' is for map-style datasets: an iterable one or a datapipe divides its samples among "
                "workers by itself, so that it matters who reads what"
            )
        if self.stateful and not self.in_order:
            raise ValueError("stateful=True needs in_order=True, or what was yielded is no beginning of the epoch")

    def _check_granularity(self) -> bool:
        """Whether batches are made by rows."""
        if self.granularity not in ("batch", "sample"):
            raise ValueError(f"granularity has to be 'batch' or 'sample', not {self.granularity!r}")
        if self.granularity == "batch":
            return False
        why = why_not(self)
        if why is not None:
            warnings.warn(f"granularity='sample' is not possible, as {why}: one worker makes a batch", stacklevel=3)
        return why is None

    @property
    def _is_dynamic(self) -> bool:
        """Whether all workers have one queue of tasks, and each task its own seed."""
        return self.schedule == "dynamic" or self._by_rows

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return Progress(self, batches) if self.progress else batches

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            batches = InProcess(self) if self._is_stateful or self._is_dynamic else super()._get_iterator()
            return batches if self.device is None else Moved(batches, self._placement.moved)
        self.check_worker_number_rationality()
        return Iterator(self)

    def __getstate__(self) -> dict[str, Any]:
        own = {"_shelf": Shelf(), "_counts": Counts(), "_position": Position(), "_resume": None}
        return {**self.__dict__, **own, "_placement": copy.copy(self._placement)}  # which is a fresh one

    # ---- checkpoints

    @property
    def _is_stateful(self) -> bool:
        return self.in_order and (self.stateful or self._is_dynamic)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch is that was begun last: after the last batch that was yielded. It holds tensors and numbers
        only, for torch.save(). The interface is that of torchdata's StatefulDataLoader.

        Raises:
            RuntimeError: neither ``stateful=True`` nor the dynamic schedule was asked for.
        """
        self._check_stateful()
        return self._position.dumped(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next epoch that is begun will go on from there: it yields what that one would have yielded next.

        Neither the dataset's own state is part of it, if it has any, nor the random state of this process. An epoch of
        an iterable dataset is read from its beginning, and what was yielded is thrown away.

        Raises:
            RuntimeError: as state_dict().
            ValueError: it is the state of a loader of another kind; ``num_workers`` may differ under the dynamic
                schedule only.
        """
        self._check_stateful()
        position = Position.loaded(state, self)
        if self._iterator is not None:  # its workers are at another place
            self._iterator._shutdown_workers()
            self._iterator = None
        self._position = position
        self._resume = None if position.is_over else dataclasses.replace(position)
        if position.is_over:
            for generator, its_state in zip(generators_of(self), position.generators, strict=True):
                generator.set_state(its_state)

    def _check_stateful(self) -> None:
        if not self._is_stateful:
            raise RuntimeError(
                "there is a state_dict() with stateful=True, schedule='dynamic' or granularity='sample', if in_order"
            )

    def _new_position(self) -> Position | None:
        """For an epoch that begins now; None: nobody will ask for it."""
        if not self._is_stateful:
            return None
        self._position = Position()
        return self._position

    def _taken_resume(self) -> Position | None:
        resume, self._resume = self._resume, None
        return resume

    # ---- figures

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
