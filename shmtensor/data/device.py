"""Batches on their way to a device: copied by a stream of the loader's own, while the training loop's computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from shmtensor.data import cuda
from shmtensor.data.flight import in_flight
from shmtensor.data.structure import moves, rebuilt

__all__ = ["Moved", "Mover"]


class Mover:
    """To one device. Its stream lives as long as the loader: torch keeps freed memory for each stream apart."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None

    def __call__(self, batch: Any) -> Any:
        """The batch on the device, ready for what is issued on the current stream; the host's is kept until it is
        copied."""
        if self._stream is None:
            self._stream = cuda.runtime.stream(self._device)
        journey = _Journey(self._stream)
        try:
            return rebuilt(batch, journey.one)
        finally:
            journey.end()


class _Journey:
    """Of one batch."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left: list[Any] = []
        self._arrived: list[torch.Tensor] = []
        self._has_others = False

    def one(self, x: Any) -> Any:
        if isinstance(x, PackedSequence):
            own = (x.data, x.sorted_indices, x.unsorted_indices)
            data, *order = (None if part is None else self.one(part) for part in own)
            return type(x)(data, x.batch_sizes, *order)  # whose sizes belong on the CPU
        self._left.append(x)
        if _is_plain(x):
            out = cuda.runtime.copy(x, self._stream)
            self._arrived.append(out)
            return out
        return self._by_itself(x) if moves(x) else x

    def _by_itself(self, x: Any) -> Any:
        """By its own to(), and on the current stream: nobody tells us of which tensors it consists, so that we could
        not say to torch that they are used by two streams."""
        self._has_others = True
        try:
            parameters = inspect.signature(x.to).parameters.values()
        except (TypeError, ValueError):  # a tensor's, which is written in C
            return x.to(self._stream.device, non_blocking=True)
        if any(p.name == "non_blocking" or p.kind is p.VAR_KEYWORD for p in parameters):
            return x.to(self._stream.device, non_blocking=True)
        return x.to(self._stream.device)

    def end(self) -> None:
        """Also after an exception: what was issued is under way."""
        current = cuda.runtime.current_stream(self._stream.device)
        events = []
        if self._arrived:
            events.append(cuda.runtime.record(self._stream))
            cuda.runtime.hand_over(self._arrived, events[0], current)
        if self._has_others:
            events.append(cuda.runtime.record(current))
        if events:
            in_flight.keep(events, self._left)


def _is_plain(x: Any) -> bool:
    """A tensor of the CPU that is no more than its numbers in memory."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and not x.is_nested
        and not x.is_quantized
    )


class Moved:
    """An iterator without workers, whose batches go to a device."""

    def __init__(self, batches: Iterator[Any], move: Callable[[Any], Any]) -> None:
        self._batches = batches
        self._move = move

    def __iter__(self) -> Moved:
        return self

    def __next__(self) -> Any:
        in_flight.poll()
        return self._move(next(self._batches))

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # torch's iterators have one
