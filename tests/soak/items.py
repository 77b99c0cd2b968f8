"""Items whose every word depends on who wrote them and when, in every kind of slot that a buffer can have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import shmtensor as st

LARGE = 1 << 17
#: Odd, so that equal words at different places, or shifted ones, do not look alike.
PATTERN = np.arange(LARGE, dtype=np.int64) * np.int64(0x1E37_79B9_7F4A_7C15 & 0xFFFF_FFFF)


def key_of(instance: int, number: int) -> int:
    return instance << 32 | number


def stamp(out: np.ndarray, key: int) -> None:
    np.add(PATTERN[: len(out)], key, out=out)


def stamped(n: int, key: int) -> np.ndarray:
    return PATTERN[:n] + key


def read(view: np.ndarray) -> int:
    """The key; -1 if one word of the item is not what stamp() wrote."""
    key = int(view[0])
    return key if key > 0 and np.array_equal(view, PATTERN[: len(view)] + key) else -1


@dataclass(frozen=True)
class Kind:
    """How one kind of item is made, written and read."""

    spec: Any
    write: Callable[[st.Slot, int], None]
    views: Callable[[st.Slot], list[np.ndarray]]
    options: dict[str, Any]
    batches: bool = False

    def read(self, views: list[np.ndarray]) -> int:
        keys = {read(v) for v in views}
        return keys.pop() if len(keys) == 1 else -1


def _write_small(slot: st.Slot, key: int) -> None:
    stamp(slot.numpy(), key)


def _write_fields(slot: st.Slot, key: int) -> None:
    slot.write({"head": stamped(8, key), "body": {"a": stamped(256, key), "b": stamped(300, key)}})


def _write_large(slot: st.Slot, key: int) -> None:
    slot.write(stamped(LARGE, key))  # one copy without the global lock


def _length(key: int) -> int:
    return 8 + key * 2654435761 % 6000


def _write_growing(slot: st.Slot, key: int) -> None:
    slot.write(stamped(_length(key), key))


def _views_growing(slot: st.Slot) -> list[np.ndarray]:
    view = slot.numpy()
    # of another length than its key says: as good as torn
    return [view] if len(view) == _length(int(view[0])) else [view, view[1:]]


KINDS = {
    "small": Kind(((8,), "int64"), _write_small, lambda s: [s.numpy()], {}, batches=True),
    "fields": Kind(
        {"head": ((8,), "int64"), "body": {"a": ((256,), "int64"), "b": ((300,), "int64")}},
        _write_fields,
        lambda s: [s["head"], s["body.a"], s["body.b"]],
        {},
    ),
    "large": Kind(((LARGE,), "int64"), _write_large, lambda s: [s.numpy()], {}),
    "growing": Kind(((None,), "int64"), _write_growing, _views_growing, {"max_slot_nbytes": 1 << 20}),
}
