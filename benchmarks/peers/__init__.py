"""Adapters: the ways of handing an array over that the benchmarks compare, one small class each."""

from .base import Peer
from .memcpy import Memcpy
from .stdlib import LockedRing, Pipe, Queue, Ring
from .tensorbuffer import (
    Assign,
    Batches,
    BatchesWritten,
    Plain,
    PlainByName,
    PlainTorch,
    TensorBuffer,
    With,
    WithByName,
    WithTorch,
)

__all__ = [
    "Assign",
    "Batches",
    "BatchesWritten",
    "LockedRing",
    "Memcpy",
    "Peer",
    "Pipe",
    "Plain",
    "PlainByName",
    "PlainTorch",
    "Queue",
    "Ring",
    "TensorBuffer",
    "With",
    "WithByName",
    "WithTorch",
]
