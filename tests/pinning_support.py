"""A CUDA that is none: it records what it is asked for, refuses what CUDA refuses, and copies when it is told to."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shmtensor.data.cuda import Cuda


def is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split()[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            return "memfd:shmtensor" in line
    return False


class Stream:
    """What was issued, and how much of it was done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.issued: list[Any] = []
        self.done = 0

    def run(self, n: int | None = None) -> None:
        end = len(self.issued) if n is None else min(self.done + n, len(self.issued))
        while self.done < end:
            work = self.issued[self.done]
            self.done += 1
            if work is not None:
                work()


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.at = len(stream.issued)


class Fake(Cuda):
    """``stalls``: nothing is done until somebody calls run(); else each ``lag`` looks at events get one copy done.
    Looks that come too early are counted."""

    HERE = torch.device("cpu")  # what its streams call their device

    def __init__(self) -> None:
        self.ranges: dict[int, int] = {}
        self.log: list[tuple[str, int]] = []
        self.errors: list[str] = []
        self.room = 1 << 60  # bytes that may be registered
        self.stalls = False
        self.lag = 1  # looks that a copy takes
        self.looks = self.all_looks = 0
        self.pinned_batches = 0
        self.streams: list[Stream] = []
        self.current = Stream(self.HERE)
        self.handed_over: list[tuple[int, Event, Stream]] = []

    def is_available(self) -> bool:
        return True

    # ---- page-locked memory

    def register(self, address: int, nbytes: int) -> None:
        if address % mmap.PAGESIZE or nbytes % mmap.PAGESIZE or nbytes <= 0:
            self.errors.append(f"{address:#x}, {nbytes} are no pages")
        if any(address < a + n and a < address + nbytes for a, n in self.ranges.items()):
            self.errors.append(f"{address:#x}, {nbytes} overlap with {self.ranges}")
        if not is_mapped(address) or not is_mapped(address + nbytes - 1):
            self.errors.append(f"{address:#x}, {nbytes} are not mapped")
        if sum(self.ranges.values()) + nbytes > self.room:
            self.log.append(("failed", address))
            raise RuntimeError("cudaHostRegister() failed with error 2")
        self.ranges[address] = nbytes
        self.log.append(("register", address))

    def unregister(self, address: int) -> None:
        if self.ranges.pop(address, None) is None:
            self.errors.append(f"{address:#x} was not registered")
        if not is_mapped(address):
            self.errors.append(f"{address:#x} was unmapped before it was unregistered")
        self.log.append(("unregister", address))

    def count(self, what: str) -> int:
        return sum(name == what for name, _ in self.log)

    def covers(self, x: torch.Tensor) -> bool:
        return any(a <= x.data_ptr() and x.data_ptr() + x.nbytes <= a + n for a, n in self.ranges.items())

    def touches(self, x: torch.Tensor) -> bool:
        return any(x.data_ptr() < a + n and a < x.data_ptr() + x.nbytes for a, n in self.ranges.items())

    def pinned(self, batch: Any) -> Any:
        self.pinned_batches += 1
        return batch

    # ---- copies

    def stream(self, device: torch.device) -> Stream:
        assert device.type == "cuda"
        self.streams.append(Stream(self.HERE))
        return self.streams[-1]

    def current_stream(self, device: torch.device) -> Stream:
        assert device == self.HERE
        return self.current

    def copy(self, x: torch.Tensor, stream: Stream) -> torch.Tensor:
        assert x.is_contiguous()
        out = torch.full_like(x, 77)
        source, n = x.data_ptr(), x.nbytes  # and not x: that would keep its slot
        stream.issued.append(lambda: ctypes.memmove(out.data_ptr(), source, n))
        return out

    def hand_over(self, tensors: Sequence[torch.Tensor], event: Event, stream: Stream) -> None:
        self.handed_over.append((len(tensors), event, stream))

    def record(self, stream: Stream) -> Event:
        return Event(stream)

    def is_due(self) -> bool:
        self.all_looks += 1
        return self.all_looks % self.lag == 0

    def is_done(self, event: Event) -> bool:
        if not self.stalls and self.is_due():
            event.stream.run(1)
        if event.stream.done < event.at:
            self.looks += 1
        return event.stream.done >= event.at

    def run(self) -> None:
        for stream in (*self.streams, self.current):
            stream.run()
