"""One epoch without workers: torch's own iterator, where more is asked of it than torch's does."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from torch.utils.data import _utils
from torch.utils.data.dataloader import _DatasetKind, _SingleProcessDataLoaderIter

from shmtensor.data import seeds
from shmtensor.data.position import Position, pass_over
from shmtensor.data.rows import seeded_samples

if TYPE_CHECKING:
    from shmtensor.data.loader import DataLoader

__all__ = ["InProcess"]


class InProcess(_SingleProcessDataLoaderIter):
    """What iter() of a DataLoader with num_workers=0 gives, if it can tell its position, or seeds each batch."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._seeds_batches = loader._is_dynamic
        self._seeds_rows = loader._by_rows
        self._position = loader._new_position() or Position()
        self._throw_away = 0
        resume = loader._taken_resume()
        with seeds.kept() if resume else contextlib.nullcontext():
            if self._seeds_batches:  # as with workers, where the sampler is begun again after the seed was drawn
                super().__init__(loader)
            if resume:
                resume.restart(loader)
            self._position.began(loader, 0, [])
            if self._seeds_batches:
                self._sampler_iter = iter(self._index_sampler)
            else:
                super().__init__(loader)
            if resume:
                self._pass_over(resume.yielded)
                self._base_seed = resume.base_seed
        self._position.base_seed = self._base_seed

    def _pass_over(self, n: int) -> None:
        self._position.yielded = n
        if self._dataset_kind == _DatasetKind.Iterable:
            self._throw_away = n
            return
        pass_over(self._next_index, n)

    def __next__(self) -> Any:
        if self._throw_away:
            with seeds.kept():
                for _ in range(self._throw_away):
                    super().__next__()
            self._throw_away = 0
        try:
            batch = super().__next__()
        except StopIteration:
            self._position.is_over = True
            raise
        self._position.yielded += 1
        return batch

    def _next_data(self) -> Any:
        if not self._seeds_batches:
            return super()._next_data()
        index = self._next_index()
        with seeds.kept():
            if self._seeds_rows:
                samples = seeded_samples(self._dataset, index, self._base_seed, self._position.yielded)
                data = self._collate_fn(samples)
            else:
                seeds.seed_for(self._base_seed, self._position.yielded)
                data = self._dataset_fetcher.fetch(index)
        return _utils.pin_memory.pin_memory(data, self._pin_memory_device) if self._pin_memory else data
