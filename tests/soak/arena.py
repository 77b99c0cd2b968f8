"""Words that the runner shares with its workers and that survive any of them: where each one is, what it is told to do.

They lie beside the buffer under test, in a mapping of their own: what is examined must not carry the examination.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum

SEATS = 32
WORDS = 16

# words of the whole run, at index 0..WORDS-1
STOP, EPISODE, QUOTA = range(3)
PAUSED = 3  #: microseconds for which the whole machine stood still: Crowd.pulse() counts them

# words of one seat
PHASE, ORDER, MODE, MADE, TOOK, WAITED, WAITS, STALLS, WHEN_MADE, WHEN_TOOK, FLAGGED, HELD = range(12)

DIE = -1  #: in MODE; else microseconds to rest at the ordered point


class At(IntEnum):
    """Where a worker is: written before each step, so that it says in which step a worker died."""

    NOWHERE = 0
    STARTED = 1
    JOINING = 2
    BETWEEN = 3
    CLAIMING = 4
    CLAIMED = 5
    WRITING = 6
    WRITTEN = 7
    PUBLISHING = 8
    PUBLISHED = 9
    ACQUIRING = 10
    ACQUIRED = 11
    HOLDING = 12
    RELEASING = 13
    RELEASED = 14
    FORKING = 15
    CLOSING = 16
    CLOSED = 17


#: between taking an item and having put that on record: who dies here has taken what nobody knows of
UNRECORDED = (At.ACQUIRING, At.ACQUIRED)

MAKING = (At.CLAIMING, At.CLAIMED, At.WRITING, At.WRITTEN, At.PUBLISHING, At.PUBLISHED)
TAKING = (At.ACQUIRING, At.ACQUIRED, At.HOLDING, At.RELEASING, At.RELEASED)
LIVING = (At.STARTED, At.JOINING, At.BETWEEN, At.CLOSING, At.CLOSED)


class Arena:
    """64-bit words in shared memory, inherited by fork; through a descriptor for programs that are executed."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("arena")
        os.ftruncate(self.fd, (1 + SEATS) * WORDS * 8)
        self.map = mmap.mmap(self.fd, 0)
        self.words = memoryview(self.map).cast("q")

    def seat(self, number: int) -> int:
        """The index of a seat's first word."""
        return (1 + number) * WORDS

    def close(self) -> None:
        self.words.release()
        self.map.close()
        os.close(self.fd)

    def total(self, word: int) -> int:
        return sum(self.words[self.seat(s) + word] for s in range(SEATS))

    def highest(self, word: int) -> int:
        return max(self.words[self.seat(s) + word] for s in range(SEATS))
