"""The ways to a view, and from one view to the next, that the state machine knows; each with what it does to a twin.

A twin is a numpy array of the test's own in which the same bytes must stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

#: what it is called -> (kind of the view, how a slot gives it, whether only a slot of a single array does)
VIEWS: dict[str, tuple[str, Callable[..., Any], bool]] = {
    "numpy view": ("numpy", lambda slot, *path: slot.numpy(*path), False),
    "slot[]": ("numpy", lambda slot, path=None: slot[path], False),
    "asarray": ("numpy", np.asarray, True),
    "memoryview": ("memory", memoryview, True),
    "numpy from dlpack": ("numpy", np.from_dlpack, True),
    "capsule": ("opaque", lambda slot: slot.__dlpack__(), True),
    "versioned capsule": ("opaque", lambda slot: slot.__dlpack__(max_version=(1, 0)), True),
    "interface": ("opaque", lambda slot: slot.__array_interface__, True),
}

#: what it is called -> (kind of the source, kind of the alias, how it is made, what that does to the twin)
ALIASES: dict[str, tuple[str, str, Callable[..., Any], Callable[..., Any] | None]] = {}


def _same(twin: Any, a: int, s: int) -> Any:
    return twin


def _part(x: Any, a: int, s: int) -> Any:
    return x[a::s] if x.ndim else _no()


def _no() -> Any:
    raise NotImplementedError


def _flat(x: Any, a: int, s: int) -> Any:
    return x.reshape(-1) if x.flags.c_contiguous else _no()


def _as_bytes(x: Any, a: int, s: int) -> Any:
    return x.view("u1") if x.flags.c_contiguous and x.ndim and x.size else _no()


def _turned(x: Any, a: int, s: int) -> Any:
    return x.T


def _of_memory(m: Any, a: int, s: int) -> Any:
    return m[a::s] if m.ndim == 1 else _no()


def _bytes_of_memory(m: Any, a: int, s: int) -> Any:
    return m.cast("B") if m.c_contiguous and m.nbytes and m.ndim else _no()


ALIASES.update(
    {
        "part": ("numpy", "numpy", _part, _part),
        "flat": ("numpy", "numpy", _flat, _flat),
        "bytes": ("numpy", "numpy", _as_bytes, _as_bytes),
        "turned": ("numpy", "numpy", _turned, _turned),
        "memory": ("numpy", "memory", lambda x, a, s: memoryview(x), _same),
        "numpy dlpack": ("numpy", "numpy", lambda x, a, s: np.from_dlpack(x), _same),
        "numpy capsule": ("numpy", "opaque", lambda x, a, s: x.__dlpack__(), None),
        "memory to numpy": ("memory", "numpy", lambda m, a, s: np.asarray(m), _same),
        "memory part": ("memory", "memory", _of_memory, _part),
        "memory bytes": ("memory", "memory", _bytes_of_memory, lambda t, a, s: t.reshape(-1).view("u1")),
        "memory again": ("memory", "memory", lambda m, a, s: memoryview(m), _same),
    }
)

if torch is not None:

    def _tensor_bytes(t: Any, a: int, s: int) -> Any:
        return t.view(torch.uint8) if t.is_contiguous() and t.ndim and t.numel() else _no()

    VIEWS.update(
        {
            "torch view": ("torch", lambda slot, *path: slot.torch(*path), False),
            "torch from dlpack": ("torch", torch.from_dlpack, True),
            # of anything with the buffer protocol, torch.asarray takes the bytes as its default dtype, unless told
            "torch asarray": ("torch", lambda slot: torch.asarray(slot, dtype=torch.int64), True),
        }
    )
    ALIASES.update(
        {
            "to torch": ("numpy", "torch", lambda x, a, s: torch.from_numpy(x), _same),
            "to torch by dlpack": ("numpy", "torch", lambda x, a, s: torch.from_dlpack(x), _same),
            "tensor part": ("torch", "torch", _part, _part),
            "tensor flat": (
                "torch",
                "torch",
                lambda t, a, s: t.view(-1) if t.is_contiguous() else _no(),
                lambda x, a, s: x.reshape(-1),
            ),
            "tensor bytes": ("torch", "torch", _tensor_bytes, _as_bytes),
            "tensor turned": ("torch", "torch", lambda t, a, s: t.permute(*reversed(range(t.ndim))), _turned),
            "detach": ("torch", "torch", lambda t, a, s: t.detach(), _same),
            "to numpy": ("torch", "numpy", lambda t, a, s: t.numpy(), _same),
            "tensor dlpack to numpy": ("torch", "numpy", lambda t, a, s: np.from_dlpack(t), _same),
            "tensor dlpack": ("torch", "torch", lambda t, a, s: torch.from_dlpack(t), _same),
            "storage": ("torch", "opaque", lambda t, a, s: t.untyped_storage(), None),
        }
    )


def raw(view: Any) -> bytes:
    """The bytes of a view, in C order."""
    if isinstance(view, (np.ndarray, memoryview)):
        return view.tobytes()
    return view.numpy().tobytes()  # type: ignore[no-any-return]


def fill(view: Any, value: int) -> None:
    view[...] = value
