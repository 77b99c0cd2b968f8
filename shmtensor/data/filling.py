"""A worker's part of granularity="sample": one sample, whose tensors go to their places in a slot that is not ours."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shmtensor._core import has_place
from shmtensor.data.rows import Layout, RowTasks, places, seeded_samples
from shmtensor.objects import ObjectSlots

__all__ = ["Fill", "Filled", "Part"]


@dataclasses.dataclass(frozen=True)
class Part:
    """Stands in a sample for one of its tensors, which is in the slot."""

    k: int  #: which of them


@dataclasses.dataclass(frozen=True)
class Filled:
    """What a worker answers."""

    layout: Layout
    rest: Any  #: the sample, with parts for tensors


class Fill:
    """A loader's collate function in a worker."""

    def __init__(self, collate_fn: Callable[[Any], Any], dataset: Any, tasks: RowTasks, slots: ObjectSlots) -> None:
        self._collate_fn = collate_fn
        self._dataset = dataset
        self._tasks = tasks
        self._slots = slots

    def __call__(self, samples: list[Any]) -> Any:
        row = self._tasks.row
        if row is None:
            assert self._tasks.whole is not None
            return self._collate_fn(seeded_samples(self._dataset, *self._tasks.whole))
        found: list[torch.Tensor] = []
        rest = _hollowed(samples[0], found)
        layout = tuple((tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in found)
        for x, (at, nbytes) in zip(found, places(layout, row.rows), strict=True):
            self._slots.write_part(row.slot, row.word, at + row.row * nbytes, x, row.row == row.rows - 1)
        return Filled(layout, rest)


def _hollowed(x: Any, found: list[torch.Tensor]) -> Any:
    """``x`` without the tensors in it, which are ``found``: in the containers that default_collate goes through, as far
    as they are nothing but containers. All else goes with the answer."""
    kind = type(x)
    if kind is torch.Tensor and _is_plain(x):
        found.append(x)
        return Part(len(found) - 1)
    if kind is np.ndarray and has_place(x.dtype):
        try:
            tensor = torch.as_tensor(x)
        except TypeError:  # it is torch that does not have the dtype, and default_collate will say so
            return x
        return _hollowed(tensor, found)
    if kind is dict or kind is OrderedDict:
        return kind((key, _hollowed(value, found)) for key, value in x.items())
    if kind is list or kind is tuple:
        return kind([_hollowed(value, found) for value in x])
    if kind.__bases__ == (tuple,) and hasattr(x, "_fields"):  # a namedtuple, and no class made of one
        return kind._make([_hollowed(value, found) for value in x])
    return x


def _is_plain(x: torch.Tensor) -> bool:
    return (
        x.layout is torch.strided
        and x.numel() > 0
        and x.device.type == "cpu"
        and has_place(x.dtype)
        and not (x.requires_grad or x.is_nested or x.is_quantized or x.is_conj() or x.is_neg())
    )
