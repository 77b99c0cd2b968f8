"""How far growing slots may grow, and what is said where that is too little.

Such a slot is a range of addresses, of which only what an item needed is memory. Where max_slot_nbytes= is given, it is
that large, or there is an error. Else it is as large as anybody could need, so long as all slots together leave room
for others: threads, malloc, further segments, and the processes that map this one too.
"""

from __future__ import annotations

import errno
import os

from shmtensor._core import Buffer
from shmtensor.errors import error_from
from shmtensor.limits import shortage
from shmtensor.segments import NBYTES_MAX, check_total

__all__ = ["KNOBS", "SHARE", "no_room", "reach"]

SHARE = 8  #: one segment takes at most this part of the address space that is left, if nobody says how much it needs
KNOBS = "lower max_slot_nbytes= or slots="  #: what helps where it was said


def reach(what: str, slots: int, max_slot_nbytes: int | None, least: int, share: int = SHARE) -> tuple[int, int, int]:
    """slot_stride=, slot_least= and share= of Segment._create(): how far each of ``slots`` may grow, at least to
    ``least``. ValueError: ``max_slot_nbytes`` of each are more than any segment can have."""
    if max_slot_nbytes is None:
        quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        return min(quarter, (NBYTES_MAX - 2**32) // slots), least, share
    check_total(what, max_slot_nbytes * slots, KNOBS)
    return max(max_slot_nbytes, least), least, 0


def no_room(buffer: Buffer, code: int, what: str, nbytes: int, *, can_be_set: bool = True) -> Exception:
    """The exception for a slot that cannot grow to ``nbytes``, naming what is in the way. ``can_be_set``: whether there
    is a max_slot_nbytes= for it."""
    if code != errno.EMSGSIZE:
        return shortage(code, what, nbytes, buffer.name) or error_from(code, what)
    info = buffer._info
    knob = "raise max_slot_nbytes=" if can_be_set else "a quarter of the machine's memory"
    if info["shrunk"]:
        knob = (
            "by default all of them take a part of what their creator's limits on address space (`ulimit -v`) and file "
            f"size (`ulimit -f`) leave: raise those{', or set max_slot_nbytes=' * can_be_set}"
        )
    return ValueError(f"{what} needs a slot of {nbytes:,} bytes, and slots can grow to {info['slot_stride']:,}: {knob}")
