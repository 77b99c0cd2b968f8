"""What a worker did, put on record before the next step, in a file that its death does not touch.

One append-only file per worker: a record is a single write() of 16 bytes, so it is there whole or not at all, and what
was written survives SIGKILL because the kernel has it. INTENT comes before publish() and PUBLISHED after it: an item
whose producer died in between may be there or not. TAKEN comes as soon as an item was acquired and looked at, LETTING
before its release and RELEASED after it. STALLED says for how many microseconds somebody had to wait,
and during how many milliseconds of them the whole machine stood still.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

INTENT, PUBLISHED, ABORTED, TAKEN, LETTING, RELEASED, TORN, CHANGED, LOST_LEASE, STALLED = range(1, 11)

RECORD = np.dtype([("key", "<u8"), ("time", "<u4"), ("kind", "u1"), ("tries", "u1"), ("more", "<u2")])
_pack = struct.Struct("<QIBBH").pack


class Journal:
    """The record of one worker; ``begin`` is when its round began, monotonic nanoseconds."""

    def __init__(self, folder: Path, instance: int, begin: int) -> None:
        self.fd = os.open(folder / str(instance), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.begin = begin

    def note(self, kind: int, items: Iterable[tuple[int, int]], more: int = 0) -> None:
        """``items``: (key, how often it was redelivered)."""
        now = (time.monotonic_ns() - self.begin) // 1000
        os.write(self.fd, b"".join([_pack(key, now, kind, tries, more) for key, tries in items]))

    def close(self) -> None:
        os.close(self.fd)


def read_all(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every record of a round in the order of each worker, and beside it the instance that wrote it."""
    parts, owners = [], []
    for path in sorted(folder.iterdir(), key=lambda p: int(p.name)):
        records = np.fromfile(path, RECORD)
        parts.append(records)
        owners.append(np.full(len(records), int(path.name), np.int64))
    if not parts:
        return np.empty(0, RECORD), np.empty(0, np.int64)
    return np.concatenate(parts), np.concatenate(owners)
