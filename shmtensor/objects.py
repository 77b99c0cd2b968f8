"""The slots of a queue: how they are created and passed on, and what is said when one cannot be had."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import context
from typing import Any

from shmtensor._core import Objects
from shmtensor.errors import ShutDown
from shmtensor.growth import KNOBS, SHARE, no_room, reach
from shmtensor.segments import NBYTES_MAX, attached, check_int, created, from_handle, handle_of
from shmtensor.spec import Spec

__all__ = ["ObjectSlots"]

_MEMBERS = 1024  #: processes that may use a queue at once
_FIRST = 4096  #: bytes that each slot has from the start: most objects need no more
_BYTES = Spec.parse(((None,), "uint8"))


class ObjectSlots(Objects):
    """Objects in slots that grow, anonymous; errors are those of the queue module."""

    can_be_set = True  #: whether whoever sees our errors has a max_slot_nbytes= to set
    before_trim: Callable[[ObjectSlots], object] | None = None  #: of whoever has told others where the memory lies

    @classmethod
    def create(
        cls,
        slots: int,
        *,
        max_slot_nbytes: int | None = None,
        reserve: int | None = None,
        copy: bool = False,
        spin_us: int = 50,
        share: int = SHARE,
    ) -> ObjectSlots:
        """The arguments are those of Queue, and are checked here. ``share``: without ``max_slot_nbytes``, the part of
        the address space left that all slots may take."""
        check_int("slots", slots, 1, 65535)
        check_int("spin_us", spin_us, 0, 10**9)
        if max_slot_nbytes is not None:
            check_int("max_slot_nbytes", max_slot_nbytes, 1, NBYTES_MAX)
        if reserve is None:
            reserve = (slots + 1) // 2
        check_int("reserve", reserve, 0, slots)
        what = f"creating a queue of {slots} slots"
        stride, least, share = reach(what, slots, max_slot_nbytes, _FIRST, share)
        self = cls.__new__(cls)
        rc = self._create(
            name=None,
            slot_nbytes=_FIRST,
            slot_stride=stride,
            slot_least=least,
            share=share,
            slots=slots,
            members=_MEMBERS,
            grow=True,
            drop=True,
            meta=_BYTES.dumps(),
        )
        addresses = (least if share else stride) * slots
        created(self, rc, what, None, _FIRST * slots, addresses, "" if share else KNOBS, closes_at_exit=False)
        self._begin(slots - reserve, bool(copy), spin_us)
        return self

    def _begin(self, keep: int, copies: bool, spin_us: int) -> None:
        """How this process receives."""
        self._set_objects(_BYTES, spin_us, keep, copies)
        self.waits_for_anybody = True
        self.spin_us = spin_us

    @classmethod
    def _from_fd(cls, fd: int) -> ObjectSlots:
        self = cls.__new__(cls)
        attached(self, self._attach_fd(fd), "attaching to a queue by descriptor", closes_at_exit=False)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)
        return _received, (handle_of(self), self.keep, self.copies, self.spin_us)

    def __len__(self) -> int:
        return self._count()[0]

    def trim(self) -> int:
        if self.before_trim is not None:
            self.before_trim(self)
        return super().trim()

    def drain(self, thrown_away: Callable[[], object] = bool) -> None:
        """Throws away what there is, and calls ``thrown_away`` for each object."""
        with suppress(queue.Empty, ShutDown):
            while True:
                self.acquire(0).release()
                thrown_away()

    def _look(self) -> None:
        """No explanation is asked for: Full and Empty have none."""

    def _timed_out(self, verb: str, timeout: float, before: object = None) -> Exception:
        return queue.Full() if verb == "claim" else queue.Empty()

    def _no_room(self, code: int, what: str, nbytes: int) -> Exception:
        return no_room(self, code, what, nbytes, can_be_set=self.can_be_set)


def _received(handle: tuple[Any, ...], keep: int, copies: bool, spin_us: int) -> ObjectSlots:
    slots: ObjectSlots = from_handle(ObjectSlots, *handle)
    slots._begin(keep, copies, spin_us)
    return slots
