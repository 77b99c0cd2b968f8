"""What a loader and its iterators have in common, so that neither keeps the other alive: segments, and figures."""

from __future__ import annotations

import dataclasses
import os
import warnings

from shmtensor.objects import ObjectSlots

__all__ = ["SPIN_US", "Counts", "Shelf"]

#: How long a loader's waits spin. What they wait for takes longer than a wake-up, and is computed by processes that
#: want the core: with two workers on two cores, 4.8 MB batches went from 1,440 to 1,910 a second.
SPIN_US = 0
_SHARE = 4  #: batches are the largest that there is: of a limited address space they get more than a queue's objects


@dataclasses.dataclass
class Counts:
    """Since the loader was made, over all of its epochs."""

    batches: int = 0
    ready: int = 0
    copied: int = 0
    waited_s: float = 0.0
    elapsed_s: float = 0.0

    def has_copied(self, keep: int) -> None:
        self.copied += 1
        if self.copied == 1:  # and not again, where warnings are errors
            warnings.warn(
                f"more than keep={keep} batches of a DataLoader are kept alive: further ones are copied. "
                "Raise keep= to have them as views, or drop them earlier",
                RuntimeWarning,
                stacklevel=7,
            )


class Shelf:
    """Segments that an epoch has left, whose memory is warm."""

    def __init__(self) -> None:
        self.spare: list[tuple[int, ObjectSlots]] = []  # (of which process, segment)

    def take(self, slots: int, max_slot_nbytes: int | None) -> ObjectSlots:
        """One with so many slots; a new one if there is none."""
        while self.spare:
            pid, found = self.spare.pop()
            if pid == os.getpid() and found._info["slots"] == slots:  # a forked child's parent will use its own again
                return found
        return ObjectSlots.create(slots, max_slot_nbytes=max_slot_nbytes, spin_us=SPIN_US, share=_SHARE)

    def leave(self, slots: ObjectSlots) -> None:
        slots.reclaim()
        self.spare.append((os.getpid(), slots))
