"""Hostile bytes above the core: descriptions of fields, shape tables and sizes of items that somebody else wrote.

Each test runs in a child, so that a crash is a failure and not the end of the run. What is demanded: the view that the
bytes, read by an independent judge here, describe, inside the slot - or ShmLayoutError (ValueError where a field counts
as not written); and never more than a second of processor time or a gigabyte.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some
from support import python

import shmtensor as st
from shmtensor._core import Segment
from shmtensor.spec import Spec

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "700"))
BAR = 1.0  #: seconds of processor time that no bytes may cost
MEMORY = 1 << 30  #: bytes, likewise
often = settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True)

# ---- where things lie: read off docs/protocol.md, not off the code --------------------------------------------------

MEMBERS = 3
SLOTS_AT = 4096 + (MEMBERS + 1) * 128  # slot headers, 64 bytes each: word, nbytes, tag, reserved


def nbytes_at(slot: int) -> int:
    return SLOTS_AT + 64 * slot + 8


def data_at(buffer: st.TensorBuffer, slot: int) -> int:
    first = struct.unpack("<Q", os.pread(buffer._fd, 8, 64))[0]  # geometry.data_offset
    return int(first) + slot * int(buffer._info["slot_stride"])


@contextmanager
def within_bounds() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < BAR, "hostile bytes took more than a second"


# ---- the description of the fields ----------------------------------------------------------------------------------

GOOD = [
    {"x": ((3,), "uint8")},
    ((2, 2), "float32"),
    {"a": st.Field((None, 3), "int64", max_shape=(5, 3)), "b": {"c": ((), "bfloat16"), "d": ((None,), "uint8")}},
    {"r": ((2,), np.dtype([("k", "<i4"), ("v", "<f8", (2,))]))},
]
META = [Spec(g).dumps() for g in GOOD]
GIANTS = [b"1e999", b"-1", b"9" * 30, b"9" * 5000, b"NaN", b"Infinity", b"true", b"null", b'"\\ud800"', b"[]", b"{}",
          b"9223372036854775807", b"18446744073709551616", b"140737488355328", b"1e5", b"4294967296"]  # fmt: skip


def doc(fields: Any, version: Any = 1) -> bytes:
    return json.dumps({"version": version, "fields": fields}, separators=(",", ":")).encode()


def record(depth: int) -> str:
    name = '"<i4"'
    for _ in range(depth):
        name = f'[["a",{name}]]'
    return name


BOMBS = [
    b"[" * 100_000,
    b'{"version":1,"fields":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' * 100_000,
    b"9" * 1_000_000,
    b'{"version":1,"fields":[' + b"[]," * 300_000 + b"[]]}",
    b"\xff" * 1_000_000,
    b'"' + b"\\u0000" * 100_000 + b'"',
    doc([[f"f{i}", "uint8", [1], None] for i in range(30_000)]),
    doc([[f"f{i}", "uint8", [2**47], None] for i in range(4096)]),
    doc([["x", "uint8", [10**9] * 32, None]]),
    doc([["x", "uint8", [1] * 300_000, None]]),
    doc([["x", "uint8", [0, 2**62], None]]),
    doc([[".".join("a" * 200_000), "uint8", [1], None]]),
    doc([[".".join(["a"] * 40 + [str(i)]), "uint8", [1], None] for i in range(4096)]),
    doc([["x", "V9999999999", [1], None]]),
    doc([["x", "S2147483647", [2**20], None]]),
    doc([["x", record(31), [1], None]]),
    doc([["x", record(50_000), [1], None]]),
    doc([["x", "[" * 200_000, [1], None]]),
    doc([["x", json.dumps([[f"f{i}", "u1"] for i in range(60_000)]), [1], None]]),
    doc([["x", json.dumps([["a", "V2147483647", [2147483647] * 32]]), [1], None]]),
    doc([["x", json.dumps([["a", "u1", [2**31] * 2]]), [1], None]]),
    doc([["x", "[('__import__(\"os\")')]", [1], None]]),
    doc([["x", "x" * 500_000, [1], None]]),
    doc([["x" * 500_000, "uint8", [1], None]]),
    doc([["x", "uint8", [1], None]] * 4096),
    doc([], version="1" * 500_000),
    doc({"x": 1}),
    doc("uint8"),
    doc(None),
    b"null",
    b"",
]


@some.composite
def metas(draw: Any) -> bytes:
    """A sound description with tokens replaced, spliced, cut or doubled."""
    data = draw(some.sampled_from(META))
    for _ in range(draw(some.integers(1, 4))):
        at = draw(some.integers(0, len(data)))
        to = min(len(data), at + draw(some.integers(0, 12)))
        kind = draw(some.integers(0, 3))
        if kind == 0:
            new = draw(some.binary(max_size=4))
        elif kind == 1:
            new = draw(some.sampled_from(GIANTS))
        elif kind == 2:
            digits = [i for i in range(len(data)) if data[i : i + 1].isdigit()] or [0]
            at = draw(some.sampled_from(digits))
            to, new = at + 1, draw(some.sampled_from(GIANTS) | some.integers(0, 300).map(lambda n: str(n).encode()))
        else:
            new = data[at:to] * 2
        data = data[:at] + new + data[to:]
    return data


def attach_with(meta: bytes, slots: int, slot_nbytes: int) -> None:
    """A segment with these bytes as its description: refused, or as sound as if it had been made here."""
    segment = Segment()
    assert segment._create(name=None, slot_nbytes=slot_nbytes, slots=slots, members=MEMBERS, meta=meta) == 0
    kind: Any = st.TensorBuffer if slots else st.SharedTensor
    try:
        with within_bounds():
            other = kind._from_fd(segment._fd)
    except st.ShmLayoutError as e:
        assert e.errno in (errno.EUCLEAN, errno.EBADMSG) and len(str(e)) < 500, str(e)[:1000]
        return
    finally:
        segment.close()
    spec = other.spec if slots else other._spec
    assert spec.dumps() == meta
    room = other._info["slot_stride" if slots else "slot_nbytes"]
    assert all(p.offset + p.nbytes <= room for p in spec.fields if p.offset >= 0), "a field leaves the slot"
    assert spec.table_nbytes <= room
    if slots and not spec.growable and not spec.dynamic:
        slot = other.claim(timeout=0)
        for p in spec.fields:
            if p.dtype.numpy is not None:
                assert slot.numpy(p.path or None).nbytes == p.nbytes
        del slot
    other.close()


def case_bombs() -> None:
    for bomb in BOMBS:
        for slots in (2, 0):
            attach_with(bomb[: 1 << 20], slots, 4096)
        with suppress(st.ShmLayoutError), within_bounds():
            Spec.loads(bomb)


@often
@given(metas(), some.sampled_from([0, 2]), some.sampled_from([64, 300, 4096]))
@example(META[0], 2, 1)
@example(META[1], 0, 1)
def case_descriptions(meta: bytes, slots: int, slot_nbytes: int) -> None:
    attach_with(meta, slots, slot_nbytes)


# ---- shape tables and sizes of items --------------------------------------------------------------------------------

TABLES: list[tuple[Any, dict[str, Any], Any]] = [
    (
        {"x": st.Field((None, 2), "int16", max_shape=(8, 2)), "y": ((3,), "uint8")},
        {},
        {"x": np.ones((3, 2), "int16"), "y": np.arange(3, dtype="uint8")},
    ),
    (
        {"x": ((None, None), "float32"), "k": ((), "int64"), "z": ((None,), "uint8")},
        {"max_slot_nbytes": 1 << 17},
        {"x": np.ones((3, 2), "float32"), "k": np.int64(7), "z": np.ones(900, "uint8")},
    ),
    (((None,), "complex128"), {"max_slot_nbytes": 1 << 14}, np.ones(5, "complex128")),
    ({"x": ((64,), "int64"), "y": ((), "uint8")}, {"reserve": "grow", "max_slot_nbytes": 1 << 16},
     {"x": np.ones(64, "int64"), "y": np.uint8(1)}),
]  # fmt: skip
EDGES = [0, 1, -1, 63, 64, 128, 2**31, 2**32, 2**46, 2**47, 2**62, 2**63 - 1, -(2**63), 1 << 17, (1 << 17) - 64]
words = some.sampled_from(EDGES) | some.integers(-2, 300) | some.integers(-(2**63), 2**63 - 1)


def judge(p: Any, table: bytes, nbytes: int) -> tuple[tuple[int, ...], int] | str:
    """(shape, offset) of a field as the bytes say, "unwritten" or "corrupt"."""
    if p.table < 0:
        return p.shape, p.offset
    offset, *dims = struct.unpack_from(f"<{1 + len(p.shape)}q", table, p.table)
    if offset == 0:
        return "unwritten"
    bounds = p.max_shape if p.max_shape is not None else [2**63] * len(dims)
    size, packed = p.dtype.itemsize, p.dtype.itemsize
    for n, fixed, most in zip(dims, p.shape, bounds, strict=True):
        if n < 0 or n > most or (fixed >= 0 and n != fixed):
            return "corrupt"
        size *= n
        packed *= max(n, 1)
    if offset < 0 or offset % 64 or offset + size > nbytes or (size == 0 and packed > 2**46):
        return "corrupt"
    return tuple(dims), offset


@often
@given(some.integers(0, len(TABLES) - 1), some.lists(some.tuples(some.integers(0, 5), words), max_size=4),
       some.none() | words.filter(lambda n: n >= 0) | some.integers(2**63, 2**64 - 1), some.integers(0, 3))  # fmt: skip
@example(3, [], 0, 0)  # a size that ends before the fixed fields
@example(0, [(1, 2**62)], None, 0)
@example(1, [(1, 2**32), (2, 2**32)], None, 1)
def case_items(which: int, changes: list[tuple[int, int]], size: int | None, how: int) -> None:
    spec, knobs, item = TABLES[which]
    with st.TensorBuffer.create(spec, slots=1, members=MEMBERS, **knobs) as creator, attached(creator) as buffer:
        creator.put(item)
        fd, at = creator._fd, data_at(creator, 0)
        true = struct.unpack("<Q", os.pread(fd, 8, nbytes_at(0)))[0]
        for word, value in changes:
            if 8 * word + 8 <= creator.spec.table_nbytes:
                os.pwrite(fd, struct.pack("<q", value), at + 8 * word)
        if size is not None:
            os.pwrite(fd, struct.pack("<Q", size), nbytes_at(0))
        nbytes = true if size is None else size
        stride = creator._info["slot_stride"]
        table = os.pread(fd, creator.spec.table_nbytes, at)
        reserved = os.fstat(fd).st_blocks
        reader = buffer if how & 1 else creator
        with within_bounds():
            try:
                slot = reader.acquire(timeout=0)
            except st.ShmLayoutError:
                assert nbytes < creator.spec.nbytes or nbytes > true, "refused a sound size"
                assert [s[:2] for s in creator._slot_states()] == [(0, 0)]  # and given back
                return
            assert creator.spec.nbytes <= nbytes <= stride, "believed a size that cannot be"
            for p in creator.spec.fields:
                expected = judge(p, table, nbytes)
                try:
                    view = slot.torch(p.path or None).numpy() if how & 2 else slot.numpy(p.path or None)
                except (st.ShmLayoutError, ValueError) as e:
                    assert isinstance(expected, str), f"refused {expected} for {p}: {e}"
                    assert isinstance(e, st.ShmLayoutError) == (expected == "corrupt")
                    continue
                assert not isinstance(expected, str), f"a view of {view.shape} where the table is {expected}"
                shape, offset = expected
                assert view.shape == shape and view.dtype == p.dtype.numpy and view.flags.c_contiguous
                if view.nbytes:
                    assert view.tobytes() == os.pread(fd, view.nbytes, at + offset), "a view of other bytes"
                del view
            slot.release()
        assert os.fstat(fd).st_blocks == reserved, "looking at an item took memory"


@contextmanager
def attached(buffer: st.TensorBuffer) -> Iterator[st.TensorBuffer]:
    other = st.TensorBuffer._from_fd(buffer._fd)
    try:
        yield other
    finally:
        other.close()


def case_holes() -> None:
    """READY words over slots that nobody ever reserved, sizes that say so or not: no view, and no memory taken."""
    for spec, knobs, many in ((((8192,), "uint8"), {"reserve": "grow"}, False), (((8192,), "uint8"),
                              {"reserve": "grow"}, True), (((None,), "uint8"), {}, False)):  # fmt: skip
        for size in (0, 1, 8191, 8192, 8193, 1 << 20, 1 << 63):
            knobs = {**knobs, "max_slot_nbytes": 1 << 20}
            with st.TensorBuffer.create(spec, slots=3, members=MEMBERS, **knobs) as buffer:
                item = np.ones(8192, "uint8")
                for _ in range(2 if many else 1):  # the words and cells of true items
                    buffer.put(item)
                fd = buffer._fd
                last = 1 if many else 0
                fallocate_hole(fd, data_at(buffer, last), 1 << 20)
                os.pwrite(fd, struct.pack("<Q", size), nbytes_at(last))
                with attached(buffer) as other:
                    reserved = os.fstat(fd).st_blocks
                    with pytest.raises(st.ShmLayoutError):
                        if many:
                            other.acquire_many(2, timeout=0)["x"].sum()
                        else:
                            other.get(timeout=0).sum()
                    assert os.fstat(fd).st_blocks == reserved
                    assert buffer.stats()["reading"] == 0


def fallocate_hole(fd: int, offset: int, nbytes: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    assert libc.fallocate(fd, 3, offset, nbytes - nbytes % mmap.PAGESIZE) == 0, os.strerror(ctypes.get_errno())


# ---- in a child ----------------------------------------------------------------------------------------------------


def run(case: str) -> None:
    """What the child does."""
    signal.alarm(100)
    if case == "case_items":
        import torch  # noqa: F401 - here, and not where time is measured
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cases: dict[str, Callable[[], None]] = {k: v for k, v in globals().items() if k.startswith("case_")}
    cases[case]()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert grown < MEMORY, f"{grown:,} bytes more"
    print("fine")


@pytest.mark.parametrize("case", ["case_bombs", "case_descriptions", "case_items", "case_holes"])
def test_hostile(case: str) -> None:
    if case == "case_items":
        pytest.importorskip("torch", reason="half of the views are torch's")
    out = python(f"import test_hostile; test_hostile.run({case!r})", timeout=110)
    assert out.endswith("fine\n")
