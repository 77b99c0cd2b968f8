"""The random states that a batch depends on: torch's, numpy's and random's, of one process.

They are taken and restored whole; seeded for one batch; and written so that they can be kept in a checkpoint.
"""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["dumped", "kept", "loaded", "restore", "seed_for", "taken"]


def taken() -> bytes:
    """The states of this process, about 11 KB."""
    return pickle.dumps((torch.get_rng_state().numpy().tobytes(), np.random.get_state(), random.getstate()), 5)


def restore(state: bytes) -> None:
    """Sets them to what they were."""
    of_torch, of_numpy, of_random = pickle.loads(state)
    torch.set_rng_state(torch.frombuffer(bytearray(of_torch), dtype=torch.uint8))
    np.random.set_state(of_numpy)
    random.setstate(of_random)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Afterwards they are what they were before."""
    state = taken()
    try:
        yield
    finally:
        restore(state)


def seed_for(base_seed: int, number: int) -> None:
    """Seeds them for one batch of an epoch, whoever makes it."""
    seed = base_seed + number
    torch.default_generator.manual_seed(seed)  # torch.manual_seed() looks for accelerators first, which takes 140 us
    np.random.seed((seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    random.seed(seed)


def dumped(state: bytes) -> dict[str, Any]:
    """As tensors and numbers, which torch.load(weights_only=True) reads as well."""
    of_torch, (_, keys, *rest), (version, internal, gauss) = pickle.loads(state)
    return {
        "torch": torch.frombuffer(bytearray(of_torch), dtype=torch.uint8),
        "numpy": [torch.from_numpy(keys.astype(np.int64)), *rest],
        "random": [version, torch.tensor(internal), gauss],
    }


def loaded(state: dict[str, Any]) -> bytes:
    """What dumped() was given. ValueError, or what else comes of looking at it: these are no random states."""
    (keys, at, *rest), (version, internal, gauss) = state["numpy"], state["random"]
    _check_words("numpy's random state", keys, at, 624)
    _check_words("random's state", internal, int(internal[-1]), 625)
    has_gauss, of_gauss = rest
    if has_gauss not in (0, 1) or not isinstance(of_gauss, float) or not isinstance(gauss, float | None):
        raise ValueError("a random state has to say what is left of a pair of normal deviates, or that nothing is")
    of_random = version, tuple(internal.tolist()), gauss
    torch.Generator().set_state(state["torch"])  # those who know best
    random.Random().setstate(of_random)
    of_numpy = ("MT19937", keys.numpy().astype(np.uint32), at, has_gauss, of_gauss)
    return pickle.dumps((state["torch"].numpy().tobytes(), of_numpy, of_random), 5)


def _check_words(what: str, words: torch.Tensor, at: int, n: int) -> None:
    """numpy takes what is given to it, and reads beyond the end then."""
    if words.dtype != torch.int64 or words.shape != (n,) or int(words.min()) < 0 or int(words.max()) >= 2**32:
        raise ValueError(f"{what} has to be {n} integers of 32 bits, as int64")
    if type(at) is not int or not 0 <= at <= 624:
        raise ValueError(f"{what} has to be at a place of 0..624, not {at!r}")
