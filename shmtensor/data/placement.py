"""Where a loader's batches end up, if not just in their slots: in slots that are page-locked, or on a device."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from shmtensor._core import Parcel
from shmtensor.data import cuda
from shmtensor.data.device import Mover
from shmtensor.data.flight import in_flight
from shmtensor.data.pinning import Ranges
from shmtensor.objects import ObjectSlots

__all__ = ["IN_PLACE", "Placement"]

IN_PLACE = "in_place"  #: as pin_memory=

_PATIENCE = 5.0  #: seconds that a batch waits for the copies of those before it, rather than to be copied on the host


class Placement:
    """Of one loader; its iterators come and go."""

    def __init__(self, pin_memory: bool | str, device: torch.device | str | int | None) -> None:
        if isinstance(pin_memory, str) and pin_memory != IN_PLACE:
            raise ValueError(f'pin_memory must be True, False or "{IN_PLACE}", not {pin_memory!r}')
        self._args = pin_memory, device
        self._wants_in_place = pin_memory == IN_PLACE
        self._mover: Mover | None = None
        if device is not None:
            to = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
            if to.type != "cuda":
                raise ValueError(f"device must be a CUDA device, not {device!r}")
            if not cuda.runtime.is_available():
                raise RuntimeError(f"device={device!r}: torch finds no CUDA device")
            self._mover = Mover(to)
        self._has_failed = False
        self._ranges: weakref.WeakKeyDictionary[ObjectSlots, Ranges] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return Placement, self._args  # streams and registrations are a process' own

    @cached_property
    def pins(self) -> bool:
        """Whether batches are pinned here, where they lie. Without CUDA it is as pin_memory=True, to torch."""
        return self._wants_in_place and cuda.runtime.is_available()

    # ---- one batch

    def has_room(self, is_there: Callable[[], bool]) -> bool:
        """Whether there is, if need be after a wait for copies: what they keep is free soon."""
        return is_there() or (self._mover is not None and in_flight.wait(_PATIENCE, is_there))

    def cover(self, slots: ObjectSlots, parcel: Parcel) -> None:
        """Page-locks the slot of a batch that is to be opened."""
        if not self.pins:
            return
        ranges = self._ranges.get(slots)
        if ranges is None:
            ranges = self._ranges[slots] = Ranges(cuda.runtime)
            slots.before_trim = ranges.before_trim
            weakref.finalize(slots, ranges.close)  # runs before the handle, and with it the mapping, goes
        try:
            ranges.cover(*parcel.range, afresh=not self._has_failed)
        except RuntimeError as e:
            self._has_failed = True
            warnings.warn(
                f"the batches of a DataLoader cannot be page-locked, so they are not pinned from now on: {e}. "
                "There may be a limit on locked memory (ulimit -l)",
                RuntimeWarning,
                stacklevel=7,
            )

    def placed(self, batch: Any) -> Any:
        """The batch as it is yielded. Parts of it may be too small to lie in the slot, or all of it is a copy: torch
        pins those."""
        if self.pins and not self._has_failed:
            batch = cuda.runtime.pinned(batch)
        return self.moved(batch)

    def moved(self, batch: Any) -> Any:
        """On the device, if one was asked for."""
        return batch if self._mover is None else self._mover(batch)
