"""Where a worker's tensors land: in the slot that the batch will be sent in, if it is the loader's thread that asks.

Two ways lead there. torch's default collate stacks the samples of a batch straight into the slot; and a dataset can ask
for memory there itself, with empty(), before it decodes. What is not made there is copied there once, when the batch is
sent; so it never matters for the result whether there is a landing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data._utils import collate

from shmtensor._core import Landing

__all__ = ["Collate", "begin", "empty"]

_Collate = Callable[..., Any]


class _Here(threading.local):
    """What a thread lands on: nothing, but in the main thread of a worker process."""

    landing: Landing | None = None
    patiently: Callable[[Callable[[float], Any]], Any]
    is_collating = False


_here = _Here()


def begin(landing: Landing, patiently: Callable[[Callable[[float], Any]], Any]) -> None:
    """From now on this thread's tensors land. ``patiently`` calls what it is given, which may wait for some seconds,
    again and again."""
    _here.landing = landing
    _here.patiently = patiently
    entries: dict[Any, _Collate] = collate.default_collate_fn_map
    if entries.get(torch.Tensor) is collate.collate_tensor_fn:  # else somebody has put in their own
        entries[torch.Tensor] = _stack


def empty(shape: int | Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised CPU tensor. In a worker of our DataLoader it lies in the batch's own slot, and what a dataset
    decodes or computes there is not copied any more; elsewhere it is an ordinary torch.empty().

    Return it from ``__getitem__``, as it is or as part of a sample. Samples of one shape and dtype are stacked without
    a copy, too. Or make the whole batch in it, in a ``collate_fn``. A dataset that keeps the tensor for itself may do
    so: a copy of it is sent then. A generator that yields it by a name keeps it, until it is asked for the next one.

    Args:
        shape: as torch.empty() takes it.
        dtype: None: torch's default.

    Raises:
        What torch.empty() raises.
        ShmNoSpaceError: memory is short.
        ValueError: it is larger than the loader's max_slot_nbytes.
    """
    landing = _here.landing
    if landing is not None:
        like = torch.empty(shape, dtype=dtype, device="meta")  # what a shape and a dtype are, is torch's to say
        size, wanted = tuple(like.shape), like.dtype
        # A collate function makes the batch; what a dataset makes is one sample, after which its siblings will come.
        make = landing.whole if _here.is_collating else landing.empty
        out = _here.patiently(lambda seconds: make(size, wanted, seconds))
        if out is not None:
            return out
    return torch.empty(shape, dtype=dtype, device="cpu")


class Collate:
    """A loader's collate function: while it runs, what default_collate stacks lands."""

    def __init__(self, collate_fn: _Collate) -> None:
        self._collate_fn = collate_fn

    def __call__(self, samples: Any) -> Any:
        _here.is_collating = True
        try:
            return self._collate_fn(samples)
        finally:
            _here.is_collating = False


def _stack(batch: Any, *, collate_fn_map: Any = None) -> Any:
    """default_collate's entry for tensors: torch's own, but for where the result lies."""
    landing = _here.landing
    first = batch[0]
    if (
        landing is None
        or not _here.is_collating
        or type(first) is not torch.Tensor
        or first.layout is not torch.strided
        or first.device.type != "cpu"
        or first.is_nested
        or first.is_quantized
    ):
        return collate.collate_tensor_fn(batch, collate_fn_map=collate_fn_map)
    shape = (len(batch), *first.shape)
    if landing.has_rows and _follow_each_other(batch):
        out = landing.joined(first.data_ptr(), shape, first.dtype)
        if out is not None:
            return out
    out = _here.patiently(lambda seconds: landing.whole(shape, first.dtype, seconds))
    if out is None:  # torch's collate gives an out=, too: without one the strides might be those of the samples
        out = torch.empty(shape, dtype=first.dtype)
    return torch.stack(tuple(batch), 0, out=out)


def _follow_each_other(batch: Sequence[torch.Tensor]) -> bool:
    """Whether they are one tensor already."""
    first = batch[0]
    at, step, shape, dtype = first.data_ptr(), first.nbytes, first.shape, first.dtype
    for x in batch:
        if x.data_ptr() != at or x.dtype is not dtype or x.shape != shape or not x.is_contiguous() or x.requires_grad:
            return False
        at += step
    return True
