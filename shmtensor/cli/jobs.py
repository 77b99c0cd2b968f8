"""What the workers make: a job turns an index into a sample, and can tell whether a sample arrived whole.

Every sample depends only on the job and its index, so each answer makes the same bytes, and anyone can
compute the checksum that an item must have.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import photos

Array = NDArray[Any]


@dataclass
class Job(ABC):
    seed: int
    spoil: int | None = None  # the index of an item to damage on purpose, to see that the check notices

    title: str = field(init=False)
    unit: str = field(init=False)
    shape: tuple[int, ...] = field(init=False)
    dtype: str = field(init=False)

    @abstractmethod
    def fill(self, index: int, out: Array) -> int:
        """Make sample `index` in `out`; the checksum of what was written (a signed 64-bit number)."""

    @abstractmethod
    def checksum(self, data: Array) -> int:
        """The same number, computed from the bytes alone."""

    def make(self, index: int, out: Array) -> int:
        checksum = self.fill(index, out)
        if index == self.spoil:
            out.reshape(-1).view(np.uint8)[-1] ^= 1
        return checksum

    def made(self, index: int) -> tuple[int, int, Array]:
        """The sample in an array of its own, as any function returns it: (index, checksum, array)."""
        out = np.empty(self.shape, self.dtype)
        return index, self.make(index, out), out

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass
class Photographs(Job):
    """A JPEG file decoded, cropped at random and resized: 150,528 bytes that take milliseconds to make."""

    paths: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.title, self.unit = "photographs", "images/s"
        self.shape, self.dtype = (3, photos.SIDE, photos.SIDE), "uint8"

    def fill(self, index: int, out: Array) -> int:
        path = self.paths[index % len(self.paths)]
        photos.sample_into(path, np.random.default_rng((self.seed, index)), out)
        return self.checksum(out)

    def checksum(self, data: Array) -> int:
        return zlib.crc32(data.data)


@dataclass
class Tensors(Job):
    """A prepared array copied, with the index stamped into every page: 4 MB that cost one memcpy to make."""

    STAMP_EVERY = 4096 // 8  # one 64-bit word per page, so that no page of another item goes unnoticed

    def __post_init__(self) -> None:
        self.title, self.unit = "4 MB tensors", "tensors/s"
        self.shape, self.dtype = (1000, 1000), "float32"
        source = np.random.default_rng(self.seed).random(self.shape, dtype=np.float32)
        source.reshape(-1).view(np.int64)[:: self.STAMP_EVERY] = 0
        self._source = source
        self._sum_without_stamps = self.checksum(source)
        self._stamps = len(source.reshape(-1).view(np.int64)[:: self.STAMP_EVERY])

    def fill(self, index: int, out: Array) -> int:
        out[...] = self._source
        out.reshape(-1).view(np.int64)[:: self.STAMP_EVERY] = index + 1
        return _signed(self._sum_without_stamps + self._stamps * (index + 1))

    def checksum(self, data: Array) -> int:
        # A sum of 64-bit words: at 4 MB a CRC would take ten times as long as handing the item over.
        return int(data.reshape(-1).view(np.int64).sum())


def _signed(number: int) -> int:
    """`number` as a 64-bit sum that wraps around would have it."""
    return (number + 2**63) % 2**64 - 2**63
