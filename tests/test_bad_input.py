"""Bad input of every kind: a typed error that names the knob, nothing left behind, a buffer that works as before."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import SECONDS, Crew, hear, leaves_nothing, not_permitted, path_of, python, unique_name

import shmtensor as st

SPEC = {"image": ((2, 3), "uint8"), "label": ((), "int64")}
NUMBER = ((), "int64")
ITEM = {"image": np.zeros((2, 3), "uint8"), "label": 1}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing():
        yield


@pytest.fixture
def buffer() -> Iterator[st.TensorBuffer]:
    """Whatever a test did to it, it works afterwards, all of it."""
    with st.TensorBuffer.create(SPEC, slots=2) as buffer:
        yield buffer
        assert buffer.stats()["free"] == 2
        for label in range(5):
            buffer.put({**ITEM, "label": label}, timeout=0)
            assert buffer.get(timeout=0, copy=True)["label"] == label


# ---- items that do not fit the spec ------------------------------------------------------------------------

WRONG_ITEMS: list[tuple[Any, Any, str | None]] = [
    ({"image": ITEM["image"]}, KeyError, "missing 'label'"),
    ({**ITEM, "labl": 1}, KeyError, "unknown 'labl'.*did you mean 'label'"),
    ({"image": ITEM["image"], "labl": 1}, KeyError, "labl"),
    ({}, KeyError, "missing"),
    (np.zeros((2, 3), "uint8"), TypeError, "dict"),
    (None, TypeError, "dict"),
    ([1, 2], TypeError, "dict"),
    ({**ITEM, "image": np.zeros((3, 2), "uint8")}, ValueError, r"'image' takes shape \(2, 3\), got \(3, 2\)"),
    ({**ITEM, "image": np.zeros((2, 3, 1), "uint8")}, ValueError, "'image'"),
    ({**ITEM, "image": np.zeros((20, 30), "uint8")}, ValueError, "'image'"),
    ({**ITEM, "image": np.zeros(0, "uint8")}, ValueError, "'image'"),
    ({**ITEM, "image": np.zeros((2, 3), "int8")}, TypeError, "'image' takes dtype uint8, got int8"),
    ({**ITEM, "image": np.zeros((2, 3), ">u2")}, TypeError, "'image'"),
    ({**ITEM, "image": np.zeros((2, 3), "float32")}, TypeError, "'image'"),
    ({**ITEM, "image": np.full((2, 3), None)}, TypeError, "'image'"),
    ({**ITEM, "image": [[1, 2, 3], [4, 5]]}, (TypeError, ValueError), None),
    ({**ITEM, "image": "picture"}, TypeError, "'image'"),
    ({**ITEM, "label": 1.5}, TypeError, "'label'"),
    ({**ITEM, "label": "one"}, TypeError, "'label'"),
    ({**ITEM, "label": None}, TypeError, "'label'"),
    ({**ITEM, "label": -(2**63) - 1}, (TypeError, ValueError), "'label'"),
    ({**ITEM, "label": object()}, TypeError, "'label'"),
    ({**ITEM, "label": [1, 2]}, ValueError, "'label'"),
    ({**ITEM, "label": 2**63}, ValueError, "'label'"),
]


@pytest.mark.parametrize(("item", "error", "text"), WRONG_ITEMS)
def test_wrong_items_leave_no_slot_claimed(buffer: st.TensorBuffer, item: Any, error: Any, text: str | None) -> None:
    for call in (lambda: buffer.put(item), lambda: buffer.put(item, timeout=0), lambda: buffer.put_many([item])):
        with pytest.raises(error, match=text):
            call()
        assert buffer.stats()["free"] == 2
    with pytest.raises(error, match=text), buffer.claim() as slot:
        slot.write(item)
    assert buffer.stats()["free"] == 2
    assert buffer.stats()["publishes"] == 0


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ({"x": 1}, TypeError),
        ([1, 2], ValueError),
        ("x", TypeError),
        (1.5, TypeError),
        (np.zeros((), "int32"), TypeError),
    ],
)
def test_wrong_items_of_a_single_field(item: Any, error: type[Exception]) -> None:
    with st.TensorBuffer.create(NUMBER, slots=1) as buffer:
        for _ in range(3):
            with pytest.raises(error, match=r"the item|single"):
                buffer.put(item, timeout=0)
        buffer.put(7, timeout=0)
        assert buffer.get(timeout=0, copy=True) == 7


def test_an_item_that_raises_while_it_is_read(buffer: st.TensorBuffer) -> None:
    class Hostile:
        shape, dtype = (), np.dtype("int64")

        def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        buffer.put({**ITEM, "label": Hostile()})

    def items() -> Iterator[Any]:
        yield ITEM
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        buffer.put_many(items())
    assert buffer.get(timeout=0, copy=True)["label"] == 1


def test_an_item_that_closes_the_buffer_while_it_is_read() -> None:
    for spec, wrap in ((NUMBER, lambda x: x), ({"x": NUMBER}, lambda x: {"x": x})):
        buffer = st.TensorBuffer.create(spec, slots=2)

        class Hostile:
            def __array__(self, *args: Any, buffer: Any = buffer, **kwargs: Any) -> np.ndarray:
                buffer.close()
                return np.array(5)

        buffer.put(wrap(Hostile()))
        with pytest.raises(st.ClosedError):
            buffer.put(wrap(5))


def test_wrong_tensors() -> None:
    torch = pytest.importorskip("torch")
    with st.TensorBuffer.create({"x": ((2, 2), "float32")}, slots=1) as buffer:
        for x, error in (
            (torch.zeros(2, 2, dtype=torch.float64), TypeError),
            (torch.zeros(2, 3), ValueError),
            (torch.zeros(4), ValueError),
            (torch.zeros(2, 2, device="meta"), TypeError),
            (torch.zeros(2, 2).to_sparse(), TypeError),
        ):
            with pytest.raises(error, match="'x'"):
                buffer.put({"x": x}, timeout=0)
        buffer.put({"x": torch.ones(2, 2)}, timeout=0)
        assert buffer.get(timeout=0, copy=True)["x"].sum() == 4


@pytest.mark.parametrize("key", ["labl", "", "image.x", 5, None, ("image",), b"image"])
def test_unknown_fields(buffer: st.TensorBuffer, key: Any) -> None:
    buffer.put(ITEM)
    writer, reader = buffer.claim(), buffer.acquire()
    for slot in (writer, reader):
        for call in (slot.numpy, slot.torch, slot.__getitem__):
            if call == slot.torch:
                pytest.importorskip("torch")
            with pytest.raises((KeyError, ValueError), match=r"image, label|unknown field"):
                call(key)
    with pytest.raises((KeyError, ValueError)):
        writer.write(key, 1)
    with pytest.raises((KeyError, ValueError)):
        writer[key] = 1
    writer.abort()
    reader.release()
    for batch in (buffer.claim_many(1),):
        with pytest.raises((KeyError, ValueError)):
            batch[key]
        with pytest.raises((KeyError, ValueError)):
            batch.write(key, 1)
        batch.abort()


def test_wrong_batches(buffer: st.TensorBuffer) -> None:
    batch = buffer.claim_many(2)
    for value, error in (
        (np.zeros((2, 2), "int64"), ValueError),
        (np.zeros(3, "int64"), ValueError),
        (np.zeros((), "int64"), ValueError),
        (np.zeros(2, "int32"), TypeError),
    ):
        with pytest.raises(error, match="'label'"):
            batch.write("label", value)
    with pytest.raises(KeyError):
        batch.write({"label": np.zeros(2, "int64")})
    for count in (-1, 3):
        with pytest.raises(ValueError, match=r"count must be 0\.\.2"):
            batch.publish(count)
    with pytest.raises(TypeError):
        batch.publish("all")
    assert buffer.stats()["writing"] == 2
    batch.abort()
    for n, error in ((0, ValueError), (-1, ValueError), ("x", TypeError), (None, TypeError), (2**40, OverflowError)):
        for verb in (buffer.claim_many, buffer.acquire_many, buffer.get_many):
            with pytest.raises(error):
                verb(n)


# ---- verbs out of turn -------------------------------------------------------------------------------------


def test_after_publish_or_abort_a_slot_is_over(buffer: st.TensorBuffer) -> None:
    for end, word in (("publish", "published"), ("abort", "aborted")):
        slot = buffer.claim()
        slot.write(ITEM)
        getattr(slot, end)()
        for call in (
            slot.publish,
            slot.abort,
            slot.release,
            slot.__enter__,
            lambda slot=slot: slot.write(ITEM),
            lambda slot=slot: slot["label"],
            lambda slot=slot: slot.numpy("label"),
            lambda slot=slot: slot.empty("label", ()),
            lambda slot=slot: setattr(slot, "tag", 1),
            lambda slot=slot: memoryview(slot),
        ):
            with pytest.raises((ValueError, BufferError), match=f"already {word}"):
                call()
    buffer.get(timeout=0)


def test_after_release_a_slot_is_over(buffer: st.TensorBuffer) -> None:
    buffer.put(ITEM)
    slot = buffer.acquire()
    for call in (slot.publish, slot.abort, lambda: slot.write(ITEM), lambda: slot.write("label", 1)):
        with pytest.raises(ValueError, match="acquired"):
            call()
    slot.release()
    for call in (slot.release, slot.publish, slot.abort, slot.__enter__, lambda: slot["label"]):
        with pytest.raises(ValueError, match="already released"):
            call()
    slot = buffer.claim()
    with pytest.raises(ValueError, match="claimed, not acquired"):
        slot.release()
    slot.abort()


def test_batches_out_of_turn(buffer: st.TensorBuffer) -> None:
    batch = buffer.claim_many(2)
    with pytest.raises(ValueError, match="claimed, not acquired"):
        batch.release()
    batch.publish(1)
    for call in (batch.publish, batch.abort, batch.release, batch.__enter__, lambda: batch["label"]):
        with pytest.raises(ValueError, match="already published"):
            call()
    batch = buffer.acquire_many(2)
    for call in (batch.publish, batch.abort, lambda: batch.write("label", [1])):
        with pytest.raises(ValueError, match="acquired, not claimed"):
            call()
    batch.release()
    with pytest.raises(ValueError, match="already released"):
        batch.release()


VERBS: dict[str, Callable[[st.TensorBuffer], Any]] = {
    "claim": lambda b: b.claim(),
    "claim 0": lambda b: b.claim(timeout=0),
    "try_claim": lambda b: b.try_claim(),
    "acquire": lambda b: b.acquire(),
    "acquire strict": lambda b: b.acquire(strict=True),
    "try_acquire": lambda b: b.try_acquire(),
    "claim_many": lambda b: b.claim_many(2),
    "acquire_many": lambda b: b.acquire_many(2),
    "put": lambda b: b.put(ITEM),
    "get": lambda b: b.get(),
    "put_many": lambda b: b.put_many([ITEM]),
    "get_many": lambda b: b.get_many(2),
    "iterate": lambda b: next(iter(b)),
    "shutdown": lambda b: b.shutdown(),
    "reclaim": lambda b: b.reclaim(),
    "stats": lambda b: b.stats(),
    "len": len,
    "unlink": lambda b: b.unlink(),
    "name": lambda b: b.name,
    "slots": lambda b: b.slots,
    "nbytes": lambda b: b.nbytes,
    "slot_nbytes": lambda b: b.slot_nbytes,
    "with": lambda b: b.__enter__(),
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_buffer(verb: str) -> None:
    buffer = st.TensorBuffer.create(SPEC, slots=2)
    buffer.put(ITEM)
    buffer.close()
    with pytest.raises(st.ClosedError, match="closed"):
        VERBS[verb](buffer)
    assert buffer.closed
    buffer.close()


@pytest.mark.parametrize("verb", VERBS)
def test_a_buffer_that_was_never_opened(verb: str) -> None:
    """No way leads there but __new__: not even that crashes."""
    with pytest.raises((st.ClosedError, TypeError)):
        VERBS[verb](st.TensorBuffer.__new__(st.TensorBuffer))


def test_the_bare_classes_say_how_to_get_one() -> None:
    for arguments in ((), (SPEC,), (SPEC, 8)):
        with pytest.raises(TypeError, match=r"TensorBuffer\.create\(.*\.attach\(name\)"):
            st.TensorBuffer(*arguments)
        with pytest.raises(TypeError, match=r"SharedTensor\.from_array\(.*\.attach\(name\)"):
            st.SharedTensor(*arguments)
    with pytest.raises(TypeError, match=r"TensorBuffer\.create\("):
        st.TensorBuffer(spec=SPEC, slots=2)


def test_a_subclass_is_made_by_the_same_ways() -> None:
    class Frames(st.TensorBuffer):
        pass

    class Weights(st.SharedTensor):
        pass

    with Frames.create(NUMBER, slots=1, name=unique_name()) as frames, Frames.attach(frames.name) as same:
        assert type(frames) is type(same) is Frames
    with Weights.zeros(3, "int8") as weights:
        assert type(weights) is Weights
    with pytest.raises(TypeError, match=r"Frames\.create\("):
        Frames()


@pytest.mark.parametrize(
    "what", ["numpy", "torch", "write", "asarray", "memoryview", "dlpack", "name", "unlink", "pickle", "with"]
)
def test_a_closed_shared_tensor(what: str) -> None:
    if what == "torch":
        pytest.importorskip("torch")
    tensor = st.SharedTensor.zeros(3, "int32")
    tensor.close()
    with pytest.raises(st.ClosedError, match="closed"):
        {
            "numpy": lambda: tensor.numpy(),
            "torch": lambda: tensor.torch(),
            "write": lambda: tensor.write(np.zeros(3, "int32")),
            "asarray": lambda: np.asarray(tensor),
            "memoryview": lambda: memoryview(tensor),
            "dlpack": lambda: tensor.__dlpack__(),
            "name": lambda: tensor.name,
            "unlink": lambda: tensor.unlink(),
            "pickle": lambda: pickle.dumps(tensor),
            "with": lambda: tensor.__enter__(),
        }[what]()
    assert tensor.closed
    tensor.close()


# ---- knobs -------------------------------------------------------------------------------------------------

BAD_KNOBS: list[tuple[str, Any, type[Exception]]] = [
    *[("slots", v, ValueError) for v in (0, -1, 65536, 2**70)],
    *[("slots", v, TypeError) for v in ("8", 2.0, None, True, [1])],
    *[("members", v, ValueError) for v in (0, -1, 4096)],
    *[("members", v, TypeError) for v in ("8", 2.0, None)],
    *[("producers", v, ValueError) for v in (-1, 2**32)],
    *[("producers", v, TypeError) for v in ("1", 1.0, None)],
    *[("spin_us", v, ValueError) for v in (-1, 10**9 + 1)],
    *[("spin_us", v, TypeError) for v in ("50", 0.5, None)],
    *[("max_slot_nbytes", v, ValueError) for v in (0, -1, 8, 2**60)],
    *[("max_slot_nbytes", v, TypeError) for v in ("1k", 1e6)],
    *[("reserve", v, ValueError) for v in ("some", 1, True)],
    *[("on_consumer_death", v, ValueError) for v in ("weep", None)],
    *[
        ("name", v, ValueError)
        for v in ("", "a/b", "/a", "..//x", "a b", "a\0b", "\0", "ü", "\udcff", "a\n", "x" * 201)
    ],
    *[("name", v, TypeError) for v in (5, b"x", Path("x"), True)],
]


@pytest.mark.parametrize(("knob", "value", "error"), BAD_KNOBS, ids=lambda v: repr(v)[:20])
def test_bad_knobs(knob: str, value: Any, error: type[Exception]) -> None:
    files = set(os.listdir("/dev/shm"))
    with pytest.raises(error, match=knob):
        st.TensorBuffer.create({"x": ((4,), "int64"), "y": ((None,), "uint8")}, **{knob: value})
    if knob == "name":
        with pytest.raises(error, match=knob):
            st.TensorBuffer.attach(value)
        for make in (st.SharedTensor.empty, st.SharedTensor.zeros):
            with pytest.raises(error, match=knob):
                make(3, "int8", name=value)
        with pytest.raises(error, match=knob):
            st.SharedTensor.attach(value)
    if knob == "members":
        with pytest.raises(error, match=knob):
            st.SharedTensor.empty(3, "int8", members=value)
    if knob == "spin_us":
        with st.TensorBuffer.create(NUMBER, name=unique_name()) as buffer, pytest.raises(error, match=knob):
            st.TensorBuffer.attach(buffer.name, spin_us=value)
    assert set(os.listdir("/dev/shm")) <= files


def test_knobs_nobody_knows() -> None:
    with pytest.raises(TypeError, match="slot_count"):
        st.TensorBuffer.create(NUMBER, slot_count=3)
    with pytest.raises(TypeError):
        st.TensorBuffer.create(NUMBER, 3)
    with pytest.raises(TypeError, match="name"):
        st.TensorBuffer.attach(None)
    with pytest.raises(TypeError, match="name"):
        st.SharedTensor.attach(None)


@pytest.mark.parametrize(
    "spec", [None, 5, "uint8", {}, {"x": {}}, ((3,), "uint9"), ((3,), object), {"a.b": NUMBER}, {1: NUMBER}]
)
def test_bad_specs(spec: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        st.TensorBuffer.create(spec)


TIMED: dict[str, Callable[[st.TensorBuffer, Any], Any]] = {
    "claim": lambda b, t: b.claim(t),
    "acquire": lambda b, t: b.acquire(timeout=t),
    "claim_many": lambda b, t: b.claim_many(2, timeout=t),
    "acquire_many": lambda b, t: b.acquire_many(2, t),
    "put": lambda b, t: b.put(ITEM, t),
    "get": lambda b, t: b.get(t),
    "get copy": lambda b, t: b.get(timeout=t, copy=True),
    "put_many": lambda b, t: b.put_many([ITEM], timeout=t),
    "get_many": lambda b, t: b.get_many(2, timeout=t),
}


@pytest.mark.parametrize("verb", TIMED)
@pytest.mark.parametrize("waits", [False, True])
def test_bad_time_outs(verb: str, waits: bool) -> None:
    """Wrong is wrong even where there is nothing to wait for."""
    with st.TensorBuffer.create(SPEC, slots=2) as buffer:
        reads = "get" in verb or "acquire" in verb
        if reads != waits:
            buffer.put_many([ITEM, ITEM])
        before = buffer.stats()
        for timeout in (-1, -1e-9, float("nan"), float("-inf"), "1", [], b"", object(), 1j):
            with pytest.raises((ValueError, TypeError), match="timeout"):
                TIMED[verb](buffer, timeout)
        assert buffer.stats() == before


# ---- names -------------------------------------------------------------------------------------------------


def attach_all(name: str, error: type[Exception], text: str = "") -> None:
    """Neither kind attaches, and the error names the segment's name or what is wrong with it."""
    before = path_of(name).lstat() if os.path.lexists(path_of(name)) else None
    for attach in (st.TensorBuffer.attach, st.SharedTensor.attach):
        with pytest.raises(error, match=text or re.escape(name)):
            attach(name)
    if before is not None:
        after = path_of(name).lstat()
        assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)


@pytest.fixture
def name() -> Iterator[str]:
    """A name whose file is taken away after the test, whatever it is by then."""
    name = unique_name()
    yield name
    path = path_of(name)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.fixture
def image(name: str) -> bytes:
    """The bytes of a sound segment; there is no file of it any more."""
    with st.TensorBuffer.create(SPEC, slots=2, name=name, members=4) as buffer:
        buffer.put(ITEM)
        return path_of(name).read_bytes()


def write_file(name: str, data: bytes, mode: int = 0o600) -> None:
    path_of(name).write_bytes(data)
    path_of(name).chmod(mode)


def test_the_image_itself_is_sound(name: str, image: bytes) -> None:
    write_file(name, image)
    with st.TensorBuffer.attach(name) as buffer:
        assert buffer.get(timeout=0, copy=True)["label"] == 1


def test_attach_to_nothing(name: str) -> None:
    for attach in (st.TensorBuffer.attach, st.SharedTensor.attach):
        with pytest.raises(FileNotFoundError, match=r"start the process that creates it first, or create\(\) it here"):
            attach(name)
    attach_all(name, FileNotFoundError)


def test_create_what_exists(name: str) -> None:
    with st.TensorBuffer.create(SPEC, name=name) as buffer:
        buffer.put(ITEM)
        for create in (
            lambda: st.TensorBuffer.create(SPEC, name=name),
            lambda: st.SharedTensor.zeros(3, "int8", name=name),
        ):
            with pytest.raises(FileExistsError, match=name):
                create()
        with st.TensorBuffer.attach(name) as other:
            assert other.get(timeout=0, copy=True)["label"] == 1


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o400, 0o700, 0o000, 0o666])
def test_wrong_mode(name: str, image: bytes, mode: int) -> None:
    write_file(name, image, mode)
    attach_all(name, PermissionError)
    with pytest.raises(FileExistsError, match=name):
        st.TensorBuffer.create(SPEC, name=name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_foreign_owner(name: str, image: bytes) -> None:
    write_file(name, image)
    os.chown(path_of(name), 12345, 12345)
    attach_all(name, PermissionError)
    with pytest.raises(FileExistsError, match=name):
        st.TensorBuffer.create(SPEC, name=name)
    st.TensorBuffer.create(SPEC, name=unique_name()).close()  # sweeps
    assert path_of(name).exists(), "what is somebody else's is not swept"


def test_symlink(name: str, image: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(image)
    target.chmod(0o600)
    path_of(name).symlink_to(target)
    attach_all(name, PermissionError)
    with pytest.raises(FileExistsError, match=name):
        st.TensorBuffer.create(SPEC, name=name)
    assert target.read_bytes() == image


def test_symlink_to_a_sound_segment(name: str) -> None:
    with st.TensorBuffer.create(SPEC, name=unique_name()) as buffer:
        path_of(name).symlink_to(path_of(buffer.name or ""))
        attach_all(name, PermissionError)


def test_directory_fifo_and_socket(name: str) -> None:
    path = path_of(name)
    for make, undo in ((path.mkdir, path.rmdir), (lambda: os.mkfifo(path, 0o600), path.unlink)):
        make()
        attach_all(name, OSError)
        with pytest.raises(FileExistsError, match=name):
            st.TensorBuffer.create(SPEC, name=name)
        undo()


@pytest.mark.parametrize("data", [b"", b"\0", b"hello" * 10, b"\0" * 4096, b"\xff" * 8192, b"#!/bin/sh\n" * 1000])
def test_other_files(name: str, data: bytes) -> None:
    write_file(name, data)
    attach_all(name, st.ShmLayoutError)


@pytest.mark.parametrize("cut", [1, 4095, 4096, 4097, -1, -4096, "half"])
def test_truncated_and_extended(name: str, image: bytes, cut: int | str) -> None:
    n = len(image) // 2 if cut == "half" else int(cut) if int(cut) > 0 else len(image) + int(cut)
    write_file(name, image[:n])
    attach_all(name, st.ShmLayoutError)
    write_file(name, image + b"\0" * abs(n))
    attach_all(name, st.ShmLayoutError)


def test_an_older_layout(name: str, image: bytes) -> None:
    assert image[14:16] == b"\2\0", "the layout version is the top 16 bits of the second word"
    for version in (0, 1, 3, 0xFFFF):
        write_file(name, image[:14] + version.to_bytes(2, "little") + image[16:])
        attach_all(name, st.ShmLayoutError, "incompatible version")


def test_a_half_made_segment(name: str, image: bytes) -> None:
    """The magic is stored last."""
    write_file(name, b"\0" * 8 + image[8:])
    attach_all(name, st.ShmLayoutError)


def test_each_kind_of_segment_is_told_from_the_other(name: str) -> None:
    with st.SharedTensor.zeros(3, "int8", name=name) as tensor:
        with pytest.raises(st.ShmLayoutError, match="SharedTensor"):
            st.TensorBuffer.attach(name)
        assert path_of(name).exists()
        assert tensor.numpy().tolist() == [0] * 3
    with st.TensorBuffer.create(NUMBER, slots=1, name=name) as buffer:
        with pytest.raises(st.ShmLayoutError, match="TensorBuffer"):
            st.SharedTensor.attach(name)
        assert path_of(name).exists()
        buffer.put(3)


def test_a_spec_that_was_tampered_with(name: str, image: bytes) -> None:
    start = image.index(b'{"version"')
    end = image.index(b"\0", start)
    meta = image[start:end]
    json.loads(meta)
    for bad in (
        meta.replace(b"uint8", b"uint9"),
        meta.replace(b"[2,3]", b"[9,9]"),
        meta.replace(b"[2,3]", b"[2,-3]"),
        meta.replace(b"image", b"label"),
        meta.replace(b'"version":1', b'"version":2'),
        b"[" * len(meta),
        b"\xff" * len(meta),
        meta[:-1] + b"\0",
    ):
        assert bad != meta
        write_file(name, image[:start] + bad.ljust(len(meta))[: len(meta)] + image[end:])
        with pytest.raises(st.ShmLayoutError):
            st.TensorBuffer.attach(name)


# ---- limits ------------------------------------------------------------------------------------------------


def memory_total() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("prefault", [False, True])
def test_more_than_there_is_memory(named: bool, prefault: bool) -> None:
    """At once, and before anything is touched."""
    name = unique_name() if named else None
    each = memory_total()
    with pytest.raises(st.ShmNoSpaceError, match=f"{4 * each:,} bytes wanted") as caught:
        st.TensorBuffer.create(((each,), "uint8"), slots=4, name=name, prefault=prefault)
    assert caught.value.errno == errno.ENOSPC
    assert "bytes of memory are left" in str(caught.value)
    assert isinstance(caught.value, OSError)
    with pytest.raises(st.ShmNoSpaceError, match=f"{4 * each:,} bytes"):
        st.SharedTensor.zeros(4 * each, "uint8", name=name, prefault=prefault)


@pytest.mark.parametrize(
    ("spec", "slots"),
    [
        (((2**44,), "uint8"), 1000),
        (((2**45,), "uint8"), 65535),
        (((2**46 + 1,), "uint8"), 1),
        ({"text": ((None,), "uint8"), "x": ((2**45,), "uint8")}, 8),
    ],
)
def test_larger_than_any_segment(spec: Any, slots: int) -> None:
    """Whatever the machine has; a growing buffer too, whose slots could not hold one item."""
    with pytest.raises(ValueError, match=r"bytes in all; at most 70,368,744,177,664 \(64 TiB\) are possible.*slots="):
        st.TensorBuffer.create(spec, slots=slots)


def test_larger_than_any_segment_by_a_header() -> None:
    with pytest.raises(ValueError, match=r"larger than 2\*\*46 bytes \(64 TiB\)"):
        st.TensorBuffer.create(((2**46,), "uint8"), slots=1)
    with pytest.raises(ValueError, match=r"at most 70,368,744,177,664 \(64 TiB\) are possible"):
        st.SharedTensor.empty(2**46 + 1, "uint8")


def test_members_run_out(name: str) -> None:
    with st.TensorBuffer.create(NUMBER, slots=2, members=2, name=name) as buffer:
        second = st.TensorBuffer.attach(name)
        for _ in range(3):
            with pytest.raises(st.ShmError, match="members="):
                st.TensorBuffer.attach(name)
        buffer.put(1)
        assert second.get(timeout=0, copy=True) == 1
        second.close()
        with st.TensorBuffer.attach(name) as third:
            third.put(2)
        assert buffer.get(timeout=0, copy=True) == 2


def test_members_run_out_for_a_forked_child() -> None:
    def child(connection: Connection) -> None:
        for call in (buffer.stats, buffer.claim, buffer.acquire, lambda: buffer.put(1), buffer.get):
            try:
                call()
            except st.ShmError as e:
                assert "members=" in str(e)
            else:
                raise AssertionError("one member too many")
        connection.send("told")
        connection.recv()
        connection.send(int(buffer.get(timeout=SECONDS, copy=True)))

    with st.TensorBuffer.create(NUMBER, slots=2, members=2) as buffer, Crew() as crew:
        held = crew.start(first_member, buffer)
        hear(held)
        connection = crew.start(child)
        assert hear(connection) == "told"
        crew.processes[0].kill()  # its place is free
        crew.processes[0].join()
        buffer.put(3)
        connection.send("go")
        assert hear(connection) == 3
        del crew.processes[0]


def first_member(connection: Connection, buffer: st.TensorBuffer) -> None:
    buffer.stats()
    connection.send("joined")
    connection.recv()


LIMITED_ADDRESS_SPACE = """
import resource
from pathlib import Path
import numpy as np
import shmtensor as st
any = ((None,), "uint8")
with st.TensorBuffer.create(any, slots=8) as buffer:
    free = buffer.slot_nbytes
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
def too_large(buffer):
    try:
        with buffer.claim() as slot:
            slot.empty(None, buffer.slot_nbytes + 1)
    except ValueError as e:
        return str(e)
with st.TensorBuffer.create(any, slots=8) as buffer:
    assert 1 << 20 < buffer.slot_nbytes < min(free, 50 << 20), buffer.slot_nbytes
    buffer.put(np.full(1 << 20, 7, "uint8"))
    assert buffer.get(copy=True).min() == 7
    assert "(`ulimit -v`)" in too_large(buffer) and "or set max_slot_nbytes=" in too_large(buffer)
with st.TensorBuffer.create(any, slots=8, max_slot_nbytes=1 << 20) as buffer:
    assert "max_slot_nbytes" in too_large(buffer) and "ulimit" not in too_large(buffer)
for make in (
    lambda: st.TensorBuffer.create(((500 << 20,), "uint8"), slots=1),
    lambda: st.TensorBuffer.create({"x": ((500 << 20,), "uint8"), "text": any}, slots=1),
    lambda: st.SharedTensor.empty(500 << 20, "uint8"),
    lambda: st.TensorBuffer.create({"a": ((500 << 20,), "uint8"), "b": any}, slots=1),
):
    try:
        make()
    except st.ShmNoSpaceError as e:
        assert "ulimit -v" in str(e) and "bytes wanted" in str(e), e
    else:
        raise AssertionError
print("done")
"""


def test_a_limited_address_space() -> None:
    """Slots that can grow grow less; what needs its size says which limit to raise."""
    assert python(LIMITED_ADDRESS_SPACE) == "done\n"


NO_DESCRIPTORS = """
import os, resource
import shmtensor as st
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
number = ((), "int64")
name = "test-nofile-%d" % os.getpid()
buffer = st.TensorBuffer.create(number, slots=2, name=name)
buffer.put(5)
st.TensorBuffer.attach(name).close()
calls = {
    "create": lambda: st.TensorBuffer.create(number),
    "create by name": lambda: st.TensorBuffer.create(number, name=name + "-2"),
    "tensor": lambda: st.SharedTensor.zeros(3, "int8"),
    "attach": lambda: st.TensorBuffer.attach(name),
}
def fill():
    taken = []
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return taken
for room in (0, 1):
    for what, call in calls.items():
        taken = fill()
        for fd in taken[len(taken) - room:]:
            os.close(fd)
        try:
            call()
        except OSError as e:
            assert e.errno == 24 and "ulimit -n" in str(e), (what, e)
        else:
            raise AssertionError((what, room))
        again = fill()
        assert len(again) == room, f"{what} kept {room - len(again)} descriptors"
        for fd in again + taken[:len(taken) - room]:
            os.close(fd)
        assert os.path.exists("/dev/shm/shmtensor." + name) and not os.path.exists(f"/dev/shm/shmtensor.{name}-2")
        if os.fork() == 0:
            taken = fill()
            try:
                buffer.stats()
            except OSError as e:
                ok = e.errno == 24
            for fd in taken:
                os.close(fd)
            ok = ok and buffer.stats()["members"] == 2
            buffer.close()
            os._exit(0 if ok else 1)
        assert os.wait()[1] == 0
assert buffer.get(timeout=0, copy=True) == 5
for call in calls.values():
    call().close()
print("done")
"""


def test_no_descriptors_left() -> None:
    assert python(NO_DESCRIPTORS) == "done\n"


FULL_DEV_SHM = """
import os, subprocess, sys
import numpy as np
import shmtensor as st
subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=1M", "none", "/dev/shm"])
before = len(os.listdir("/proc/self/fd"))
spec = ((1 << 20,), "uint8")
for make in (
    lambda: st.TensorBuffer.create(spec, slots=8, name="full"),
    lambda: st.TensorBuffer.create(spec, slots=8, name="full", prefault=False),
    lambda: st.TensorBuffer.create(spec, slots=8, name="full", huge_pages=True),
    lambda: st.SharedTensor.zeros(8 << 20, "uint8", name="full"),
    lambda: st.SharedTensor.from_array(np.ones(8 << 20, "uint8"), name="full"),
):
    try:
        make()
    except st.ShmNoSpaceError as e:
        assert "--shm-size" in str(e) and "/dev/shm" in str(e), e
        assert "8,388,608" in str(e), e
    else:
        raise AssertionError
    assert os.listdir("/dev/shm") == []
assert len(os.listdir("/proc/self/fd")) == before
with open("/dev/shm/filler", "wb") as f:  # full to the last page
    try:
        f.write(b"x" * (2 << 20))
    except OSError:
        pass
    for make in (
        lambda: st.TensorBuffer.create(((), "int8"), name="full"),
        lambda: st.SharedTensor.zeros(1, "int8", name="full"),
    ):
        try:
            make()
        except st.ShmNoSpaceError:
            pass
        else:
            raise AssertionError
assert os.listdir("/dev/shm") == ["filler"]
with st.TensorBuffer.create(((8 << 20,), "uint8"), slots=8) as buffer:  # 64 MiB
    for i in range(16):
        buffer.put(np.full(8 << 20, i, "uint8"))
        assert buffer.get().min() == i
os.unlink("/dev/shm/filler")
with st.TensorBuffer.create(((1 << 16,), "uint8"), slots=4, name="full") as buffer:
    buffer.put(np.ones(1 << 16, "uint8"))
    assert os.listdir("/dev/shm") == ["shmtensor.full"]
print("done")
"""


def test_a_full_dev_shm() -> None:
    """An exception and no SIGBUS, no file left; an anonymous buffer is not concerned."""
    wrapper = ("unshare", "--mount")
    if why := not_permitted(*wrapper, "mount", "-t", "tmpfs", "none", "/dev/shm"):
        pytest.skip(why)
    assert python(FULL_DEV_SHM, wrapper=wrapper) == "done\n"


NO_PROC = """
import os, subprocess, sys
import shmtensor as st
name = sys.argv[1]
inherited = st.TensorBuffer.create(((), "int64"), slots=2)
subprocess.check_call(["mount", "-t", "tmpfs", "none", "/proc"])
def descriptors():
    return sum(os.path.exists(f"/dev/fd/{i}") for i in range(3)), [i for i in range(64) if alive(i)]
def alive(fd):
    try:
        return os.fstat(fd) and True
    except OSError:
        return False
before = descriptors()
for make in (lambda: st.TensorBuffer.create(((), "int64"), slots=2), lambda: st.SharedTensor.zeros(3, "int8")):
    try:
        make()
    except st.ShmError as e:
        assert "/proc" in str(e), e
    else:
        raise AssertionError
if os.fork() == 0:  # to take part a child needs a description of its own
    try:
        inherited.stats()
    except st.ShmError as e:
        os._exit(0 if "/proc" in str(e) else 1)
    os._exit(2)
assert os.wait()[1] == 0
inherited.put(3)
assert inherited.get(copy=True) == 3
with st.TensorBuffer.attach(name) as buffer:  # through its name
    assert buffer.get(copy=True) == 5
    buffer.put(6)
    if os.fork() == 0:
        buffer.put(7)
        os._exit(0)
    assert os.wait()[1] == 0
for make in (
    lambda: st.TensorBuffer.create(((), "int64"), slots=2, name=name + "-2"),
    lambda: st.SharedTensor.zeros(3, "int8", name=name + "-2"),
):
    try:
        make().close()
    except st.ShmError as e:
        assert "/proc" in str(e), e
assert not os.path.exists(f"/dev/shm/shmtensor.{name}-2")
assert descriptors() == before
print("done")
"""


def test_no_proc(name: str) -> None:
    wrapper = ("unshare", "--mount")
    if why := not_permitted(*wrapper, "mount", "-t", "tmpfs", "none", "/proc"):
        pytest.skip(why)
    with st.TensorBuffer.create(NUMBER, slots=4, name=name) as buffer:
        buffer.put(5)
        assert python(NO_PROC, name, wrapper=wrapper) == "done\n"
        assert [int(x) for x in buffer.get_many(9, timeout=0, copy=True)] == [6, 7]


# ---- corrupt memory ----------------------------------------------------------------------------------------

# Runs by itself, for a crash would take the tests along. Prints what came of each mutation.
FUZZ = """
import collections, faulthandler, os, random, signal, sys
import numpy as np
import shmtensor as st
faulthandler.enable()
name, how, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
path = "/dev/shm/shmtensor." + name
specs = {
    "fixed": ({"x": ((4,), "int32"), "y": ((), "uint8")}, {}),
    "dynamic": (
        {"x": st.Field((None, 2), "int16", max_shape=(8, 2)), "y": ((None,), "uint8")},
        {"max_slot_nbytes": 1 << 16},
    ),
}
rng = random.Random(seed)
seen = collections.Counter()
TYPED = (st.ShmError, OSError, ValueError, BufferError)

def item(spec):
    if spec == "fixed":
        return {"x": np.ones(4, "int32"), "y": 3}
    return {"x": np.ones((3, 2), "int16"), "y": np.ones(900, "uint8")}

def attempt(call):
    try:
        result = call()
        seen["ok"] += 1
        return result
    except TYPED as e:
        assert str(e), type(e)
        seen[type(e).__name__] += 1

def look(slot):
    with slot:
        for key in ("x", "y"):
            view = slot[key]
            view.sum()
            view.tobytes()
        slot.tag, slot.nbytes, slot.redelivered

def use(buffer, spec):
    for _ in range(3):
        attempt(lambda: buffer.get(timeout=0, copy=True))
        slot = attempt(buffer.try_acquire)
        if slot is not None:
            attempt(lambda: look(slot))
        attempt(lambda: buffer.put(item(spec), timeout=0))
        attempt(lambda: repr(buffer))
        attempt(buffer.stats)
        attempt(buffer.reclaim)
        if spec == "fixed":
            batch = attempt(lambda: buffer.claim_many(2, timeout=0))
            if batch is not None:
                attempt(lambda: batch.publish())
            batch = attempt(lambda: buffer.acquire_many(2, timeout=0))
            if batch is not None:
                attempt(lambda: batch["x"].sum())
                attempt(batch.release)

def mutate(data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) // 8) * 8 if rng.random() < 0.5 else rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 1, 127, 128, 255))
        else:
            n = rng.choice((1, 2, 4, 8))
            value = {2: (1 << 8 * n) - 1, 3: 1 << (8 * n - 1), 4: rng.getrandbits(8 * n)}[kind]
            data[at : at + n] = value.to_bytes(n, "little")[: len(data) - at]
    return bytes(data)

for spec, (fields, knobs) in specs.items():
    def create(n=name):
        buffer = st.TensorBuffer.create(fields, slots=2, name=n, members=3, **knobs)
        buffer.put(item(spec))
        return buffer
    with create() as buffer:
        image = open(path, "rb").read()
        control = buffer.nbytes - 2 * buffer._info["slot_stride"]
        state = control + (256 if spec == "dynamic" else 0)
    def write(data):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, data)
        os.ftruncate(fd, len(image))
        os.close(fd)
    used = [i for i in range(control) if image[i]]
    if how == "bytes":  # every byte of the header, and every other that is in use
        mutants = [
            image[:i] + bytes([v]) + image[i + 1:]
            for i in sorted({*range(320), *used})
            for v in {image[i] ^ 1, image[i] ^ 255, 0x80}
        ]
    elif how == "random":
        mutants = [mutate(image[:state]) + image[state:] for _ in range(1500)]
    else:
        mutants = [None] * 500
    for data in mutants:
        signal.alarm(20)
        if data is not None:
            write(data)
            buffer = attempt(lambda: st.TensorBuffer.attach(name))
            if buffer is not None:
                use(buffer, spec)
                buffer.close()
            attempt(lambda: st.SharedTensor.attach(name).close())
            if os.path.exists(path):
                os.unlink(path)
        else:  # while it is attached, behind the geometry, which is not read again
            buffer = create()
            with open(path, "r+b", buffering=0) as f:
                for _ in range(5):
                    f.seek(256)
                    part = f.read(state - 256)
                    f.seek(256)
                    f.write(mutate(part))
                    use(buffer, spec)
            buffer.close()
            if os.path.exists(path):
                os.unlink(path)
signal.alarm(0)
print(sum(seen.values()), dict(seen))
assert seen["ok"] and (seen["ShmLayoutError"] or how == "alive")
"""


@pytest.mark.parametrize(("how", "seed"), [("bytes", 0), ("random", 1), ("alive", 2)])
def test_hostile_bytes(name: str, how: str, seed: int) -> None:
    """Each byte of a header changed, then many at random, before and after attaching: typed errors, and no more."""
    out = python(FUZZ, name, how, str(seed))
    assert int(out.split()[0]) > 1000, out


SPARSE = """
import os, subprocess
import shmtensor as st
subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=64M", "none", "/dev/shm"])
path = "/dev/shm/shmtensor.sparse"
with st.TensorBuffer.create(((None,), "uint8"), slots=8, name="sparse", max_slot_nbytes=1 << 30) as buffer:
    size = buffer.nbytes
    with open(path, "rb") as f:
        data = bytearray(f.read(1 << 16))
assert not os.path.exists(path)
flags = int.from_bytes(data[120:124], "little")
assert flags in (1, 3), "SHMT_GROW, perhaps with SHMT_PREFAULT"
data[120] = 2
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
os.write(fd, data)
os.ftruncate(fd, size)
os.close(fd)
before = os.statvfs("/dev/shm").f_bfree
try:
    st.TensorBuffer.attach("sparse").close()
except st.ShmError as e:
    print("refused;", (before - os.statvfs("/dev/shm").f_bfree) * 4096 < 1 << 20)
"""


def test_a_corrupt_flag_does_not_populate_a_sparse_segment() -> None:
    """A growing buffer that reads as one reserved in full: mapping all of its 8 GiB would end in the OOM killer."""
    wrapper = ("unshare", "--mount")
    if why := not_permitted(*wrapper, "mount", "-t", "tmpfs", "none", "/dev/shm"):
        pytest.skip(why)
    assert python(SPARSE, wrapper=wrapper) == "refused; True\n"


def test_the_sweep_leaves_what_is_no_segment(name: str, image: bytes) -> None:
    """A file of nobody's that only has a name like ours is somebody's; a dead segment, even a corrupt one, is not."""
    write_file(name, b"\xff" * 100)
    dead = unique_name()
    write_file(dead, image[:2000] + b"\xff" * 100 + image[2100:])
    st.TensorBuffer.create(NUMBER, name=unique_name()).close()
    assert path_of(name).read_bytes() == b"\xff" * 100
    assert not path_of(dead).exists()
    path_of(name).unlink()


def test_errors_are_what_they_say_in_the_standard_library_too() -> None:
    assert issubclass(st.ShmNoSpaceError, OSError)
    assert issubclass(st.ShmLayoutError, OSError)
    assert issubclass(st.ClosedError, ValueError)
    for error in (st.ShmNoSpaceError, st.ShmLayoutError, st.LeaseLost, st.PeersGone, st.ClosedError, st.ShutDown):
        assert issubclass(error, st.ShmError)
        assert pickle.loads(pickle.dumps(error("x"))).args == ("x",)
