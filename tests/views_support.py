"""For tests of views: a buffer's slots seen from outside, and this process's mappings and descriptors of segments."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import shmtensor as st

try:
    import torch as _torch  # noqa: F401
except ImportError:
    HAVE_TORCH = False
else:
    HAVE_TORCH = True

needs_torch = pytest.mark.skipif(not HAVE_TORCH, reason="torch is not installed")


def slots_by_state(buf: st.TensorBuffer) -> dict[str, int]:
    """How many slots are in each state."""
    s = buf.stats()
    return {state: s[state] for state in ("free", "writing", "ready", "reading")}


def segment_mappings() -> list[str]:
    """This process's mappings of segments, anonymous and named, as lines of /proc/self/maps."""
    with open("/proc/self/maps") as f:
        return [line for line in f if "/memfd:shmtensor" in line or "/dev/shm/shmtensor." in line]


def segment_descriptors() -> list[str]:
    """What this process's descriptors of segments point to."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the descriptor that listdir itself used
            continue
        if "/memfd:shmtensor" in target or "/dev/shm/shmtensor." in target:
            found.append(target)
    return found


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fails if there are more mappings or descriptors of segments after the block than before it."""
    gc.collect()
    before = len(segment_mappings()), len(segment_descriptors())
    yield
    gc.collect()
    assert (len(segment_mappings()), len(segment_descriptors())) == before


@contextmanager
def quick_collections() -> Iterator[None]:
    """Leaves what is alive already, torch's many objects above all, out of every collection in the block."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def raw_bytes(x: Any) -> bytes:
    """The elements of a numpy array or CPU tensor, in C order, as bytes; of any dtype."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np.ascontiguousarray(x).tobytes()
    import torch

    x = x.detach().resolve_conj().resolve_neg().contiguous()
    return x.reshape(-1).view(torch.uint8).numpy().tobytes()
