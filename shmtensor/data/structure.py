"""Going through a batch: as torch's pin_memory does, and into dataclasses too."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import torch

__all__ = ["leaves", "moves", "rebuilt"]


def moves(x: Any) -> bool:
    """Whether it is something that has a way of its own to a device."""
    return not isinstance(x, type) and callable(getattr(x, "to", None))


def rebuilt(x: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers, with ``change(leaf)`` for each leaf."""
    if isinstance(x, (torch.Tensor, str, bytes, bytearray, memoryview)) or moves(x):
        return change(x)
    if isinstance(x, Mapping):
        items = {k: rebuilt(v, change) for k, v in x.items()}
        try:
            if not isinstance(x, MutableMapping):
                return type(x)(items)  # type: ignore[call-arg]
            clone: Any = copy.copy(x)  # which may have more than its items
            clone.update(items)
            return clone
        except TypeError:
            return items
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(rebuilt(v, change) for v in x))
    if isinstance(x, Sequence):
        values = [rebuilt(v, change) for v in x]
        try:
            if not isinstance(x, MutableSequence):
                return type(x)(values)  # type: ignore[call-arg]
            twin: Any = copy.copy(x)
            for i, value in enumerate(values):
                twin[i] = value
            return twin
        except TypeError:
            return values
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        record: Any = copy.copy(x)
        for f in dataclasses.fields(x):
            if hasattr(x, f.name):
                object.__setattr__(record, f.name, rebuilt(getattr(x, f.name), change))  # a frozen one, too
        return record
    return change(x)


def leaves(x: Any) -> list[Any]:
    """All of them."""
    found: list[Any] = []

    def take(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    rebuilt(x, take)
    return found
