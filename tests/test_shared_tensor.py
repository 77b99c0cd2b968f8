"""SharedTensor: one array that processes share, by name or as a handle, for as long as anybody sees it."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from views_support import (
    needs_torch,
    nothing_left_behind,
    quick_collections,
    raw_bytes,
    segment_descriptors,
    segment_mappings,
)

import shmtensor as st
import shmtensor.tensor
from shmtensor import SharedTensor

METHODS = ["fork", "spawn", "forkserver"]
ARRAY = np.arange(12, dtype="i4").reshape(3, 4)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    with quick_collections():
        yield


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every test here ends with no mapping, no descriptor and no file of its own."""
    names = set(os.listdir("/dev/shm"))
    with nothing_left_behind():
        yield
    assert not {n for n in set(os.listdir("/dev/shm")) - names if n.startswith("shmtensor.st-")}


@pytest.fixture
def name() -> str:
    return f"st-{uuid.uuid4().hex[:12]}"


# ---- making one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SharedTensor.empty, SharedTensor.zeros])
@pytest.mark.parametrize(
    ("shape", "dtype", "nbytes"),
    [((3, 4), "int32", 48), ((), "float64", 8), (5, "bool", 5), ((0, 3), "uint8", 0), ([2, 2], np.float32, 16)],
)
def test_empty_and_zeros(make: Any, shape: Any, dtype: Any, nbytes: int) -> None:
    with make(shape, dtype) as t:
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        assert (t.shape, t.dtype, t.nbytes, t.name, t.closed) == (dims, np.dtype(dtype).name, nbytes, None, False)
        a = t.numpy()
        assert a.shape == dims and a.dtype == np.dtype(dtype) and a.flags.writeable and a.flags.c_contiguous
        assert not a.any()
        assert a.nbytes == nbytes and (nbytes == 0 or a.ctypes.data % 64 == 0)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float32", 2.5), ("int8", -3), ("bool", True), ("complex64", 1 + 2j), ("S3", b"abc"), ("M8[D]", "2020-01-01")],
)
def test_full(dtype: str, value: Any) -> None:
    t = SharedTensor.full((2, 3), value, dtype)
    assert (t.numpy() == np.full((2, 3), value, dtype)).all() and t.shape == (2, 3)


def test_full_of_what_does_not_fit_leaves_nothing() -> None:
    with pytest.raises((OverflowError, ValueError)):
        SharedTensor.full(3, 300, "uint8")
    with pytest.raises((TypeError, ValueError)):
        SharedTensor.full(3, "x", "float32")


@needs_torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_full_of_what_numpy_lacks(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    t = SharedTensor.full((2, 3), 1.5, dtype)
    assert t.dtype == dtype and t.torch().dtype is getattr(torch, dtype)
    assert t.torch().to(torch.float32).eq(1.5).all()


@pytest.mark.parametrize(
    "source",
    [
        ARRAY,
        np.asfortranarray(ARRAY),
        ARRAY[::-1, ::2],
        np.broadcast_to(ARRAY[0], (3, 4)),
        ARRAY.astype(">i8"),
        np.float32(3),
        np.zeros((0, 2), "u2"),
        np.array([("a", 1)], [("s", "S4"), ("n", "i8")]),
        np.array(["2020-01-01"], "M8[s]"),
    ],
    ids=repr,
)
def test_from_array(source: Any) -> None:
    t = SharedTensor.from_array(source)
    assert t.shape == source.shape and t.numpy().dtype == source.dtype and t.numpy().tobytes() == source.tobytes()


@pytest.mark.parametrize(
    "source", [[1, 2], [[1.5], [2]], 3, True, range(4), memoryview(b"abc"), ((1, 2), (3, 4))], ids=repr
)
def test_from_array_of_what_is_none(source: Any) -> None:
    expected = np.asarray(source)
    t = SharedTensor.from_array(source)
    assert t.numpy().dtype == expected.dtype and np.array_equal(t.numpy(), expected)


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64", "bool", "int64", "float8_e5m2"])
def test_from_array_of_a_tensor(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    source = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    sources = [source, source.t(), source[::2], source[0, 0], source.clone()[:0]]
    if source.is_floating_point() and "8" not in dtype.removeprefix("bfloat"):
        sources += [source.clone().requires_grad_(), torch.nn.Parameter(source), source[:1].expand(5, 4)]
    if source.is_complex():
        sources += [source.conj()]
    for s in sources:
        t = SharedTensor.from_array(s)
        assert t.torch().dtype is source.dtype and t.shape == tuple(s.shape)
        assert raw_bytes(t.torch()) == raw_bytes(s)
    again = SharedTensor.from_array(t)  # of a SharedTensor, too
    assert raw_bytes(again.torch()) == raw_bytes(t.torch())
    assert SharedTensor.from_array(s, name=f"st-{os.getpid()}").name == f"st-{os.getpid()}"


@pytest.mark.parametrize("source", [np.zeros(3, "O"), object(), [[1], [2, 3]], None, {"a": 1}], ids=repr)
def test_from_array_of_what_cannot_be_shared(source: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        SharedTensor.from_array(source)


@needs_torch
def test_from_array_of_tensors_without_memory() -> None:
    torch = pytest.importorskip("torch")
    for source in (torch.zeros(3, device="meta"), torch.zeros(3).to_sparse(), torch._efficientzerotensor((3,))):
        with pytest.raises(TypeError, match=r"cannot copy this tensor|has no memory"):
            SharedTensor.from_array(source)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (((3, None), "f4"), {}, ValueError),
        (((-1,), "f4"), {}, ValueError),
        (((1,) * 33, "f4"), {}, ValueError),
        (((2**40, 2**40), "f4"), {}, ValueError),
        (((2.5,), "f4"), {}, TypeError),
        (("f4", (3,)), {}, TypeError),
        ((3, "nope"), {}, TypeError),
        ((3, "O"), {}, TypeError),
        ((3, "S"), {}, TypeError),
        ((3, None), {}, TypeError),
        ((3, "f4"), {"members": 0}, ValueError),
        ((3, "f4"), {"members": 4096}, ValueError),
        ((3, "f4"), {"members": "many"}, TypeError),
        ((3, "f4"), {"name": ""}, ValueError),
        ((3, "f4"), {"name": "a/b"}, ValueError),
        ((3, "f4"), {"name": "a" * 201}, ValueError),
        ((3, "f4"), {"name": "a\0b"}, ValueError),
        ((3, "f4"), {"name": b"a"}, TypeError),
        ((3, "f4"), {"color": 1}, TypeError),
    ],
    ids=repr,
)
def test_wrong_arguments(arguments: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        SharedTensor.empty(*arguments, **options)


def test_more_memory_than_there_is() -> None:
    with pytest.raises(st.ShmNoSpaceError, match=r"70,000,000,000,000 bytes wanted.*limit") as caught:
        SharedTensor.empty(70_000_000_000_000, "u1")
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("prefault", [True, False])
@pytest.mark.parametrize("huge_pages", [True, False])
def test_memory_advice_changes_no_values(prefault: bool, huge_pages: bool) -> None:
    t = SharedTensor.zeros((1 << 20,), "u1", prefault=prefault, huge_pages=huge_pages)
    assert not t.numpy().any()
    t.numpy()[...] = 7
    assert (t.numpy() == 7).all()


def _resident(t: SharedTensor) -> int:
    """Bytes of the array that are mapped to pages in this process, as the kernel counts them."""
    address, inside, found = t.numpy().ctypes.data, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            inside = start <= address < end
        elif inside and line.startswith("Rss:"):
            found = int(line.split()[1]) * 1024
    return found


def test_large_arrays_are_prefaulted_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = (64 << 20) + 12345
    parts: list[tuple[int, int]] = []
    plain = SharedTensor._prefault

    def noted(self: SharedTensor, offset: int, length: int) -> None:
        parts.append((offset, length))
        plain(self, offset, length)

    monkeypatch.setattr(SharedTensor, "_prefault", noted)
    with SharedTensor.empty((nbytes,), "u1") as t:
        end = 0
        for offset, length in sorted(parts):  # each byte once
            assert offset == end
            end += length
        assert end == nbytes and len(parts) == min(8, len(os.sched_getaffinity(0)))
        assert _resident(t) >= nbytes
        assert not t.numpy()[:: 1 << 16].any()
    with SharedTensor.empty((nbytes,), "u1", prefault=False) as t:
        assert _resident(t) < nbytes // 2
    assert len(parts) == min(8, len(os.sched_getaffinity(0)))


def test_small_arrays_are_prefaulted_too() -> None:
    with SharedTensor.empty((8 << 20,), "u1") as t:
        assert _resident(t) >= 8 << 20
    with SharedTensor.empty((8 << 20,), "u1", prefault=False) as t:
        assert _resident(t) < 4 << 20


# ---- seeing it -----------------------------------------------------------------------------------


def test_every_view_sees_the_same_memory() -> None:
    t = SharedTensor.from_array(ARRAY)
    address = t.numpy().ctypes.data
    views = [
        t.numpy(),
        np.asarray(t),
        np.from_dlpack(t),
        np.asarray(memoryview(t)),
        np.frombuffer(t, "i4").reshape(3, 4),
    ]
    for view in views:
        assert view.ctypes.data == address and view.tobytes() == ARRAY.tobytes()
    t.numpy()[1, 2] = 99
    for view in views:
        assert view[1, 2] == 99
    assert memoryview(t).shape == (3, 4) and memoryview(t).format == "i" and not memoryview(t).readonly
    assert np.array(t).ctypes.data != address and np.asarray(t, "f8").dtype == "f8"


@needs_torch
def test_torch_sees_the_same_memory() -> None:
    torch = pytest.importorskip("torch")
    t = SharedTensor.from_array(ARRAY)
    views = [t.torch(), torch.from_dlpack(t), torch.frombuffer(t, dtype=torch.int32).view(3, 4)]
    t.torch().add_(1)
    for view in views:
        assert view.data_ptr() == t.numpy().ctypes.data
        assert torch.equal(view, torch.from_numpy(ARRAY + 1))


def test_write() -> None:
    t = SharedTensor.zeros((3, 4), "int32")
    for source in (ARRAY, ARRAY.tolist(), SharedTensor.from_array(ARRAY), np.asfortranarray(ARRAY)):
        t.numpy()[...] = 0
        t.write(source)
        assert t.numpy().tobytes() == ARRAY.tobytes()
    for wrong, error in ((ARRAY.astype("i8"), TypeError), (ARRAY[:2], ValueError), (None, TypeError), (3, ValueError)):
        with pytest.raises(error, match="the item"):
            t.write(wrong)
    assert t.numpy().tobytes() == ARRAY.tobytes()


def test_what_numpy_lacks_is_said_so() -> None:
    if "ml_dtypes" in sys.modules:
        pytest.skip("something has imported ml_dtypes, so numpy has bfloat16")
    t = SharedTensor.zeros(3, "bfloat16")
    assert (t.dtype, t.nbytes) == ("bfloat16", 6)
    for use in (t.numpy, lambda: np.asarray(t), lambda: memoryview(t)):
        with pytest.raises(TypeError, match=r"bfloat16, which numpy does not have: use \.torch\(\)"):
            use()


def test_repr() -> None:
    t = SharedTensor.zeros((3, 4), "int32", name=f"st-{os.getpid()}")
    assert repr(t) == f"<SharedTensor 'st-{os.getpid()}' int32[3, 4]>"
    t.close()
    assert repr(t) == "<SharedTensor closed>"
    assert repr(SharedTensor.zeros((), "bool")) == "<SharedTensor bool[]>"


# ---- names ---------------------------------------------------------------------------------------


def test_attach_by_name(name: str) -> None:
    with SharedTensor.from_array(ARRAY, name=name) as t:
        file = Path(f"/dev/shm/shmtensor.{name}")
        assert t.name == name and file.stat().st_mode & 0o777 == 0o600
        with SharedTensor.attach(name) as u:
            assert (u.shape, u.dtype, u.name) == (t.shape, t.dtype, name)
            u.numpy()[0, 0] = 42
            assert t.numpy()[0, 0] == 42
            with pytest.raises(FileExistsError, match="in use"):
                SharedTensor.empty(3, "f4", name=name)
        assert file.exists()  # we are still there
    assert not file.exists()  # the last one out removes it
    with pytest.raises(FileNotFoundError, match=name):
        SharedTensor.attach(name)


def test_unlink(name: str) -> None:
    with SharedTensor.from_array(ARRAY, name=name) as t, SharedTensor.attach(name) as u:
        t.unlink()
        with pytest.raises(FileNotFoundError):
            SharedTensor.attach(name)
        with pytest.raises(FileNotFoundError):
            t.unlink()
        t.numpy()[0, 0] = 7
        assert u.numpy()[0, 0] == 7  # whoever is attached goes on
        with SharedTensor.zeros(2, "u1", name=name) as other:  # and the name is free
            u.close()
            t.close()
            assert SharedTensor.attach(name).shape == other.shape
    with SharedTensor.zeros(2, "u1") as t, pytest.raises(ValueError):
        t.unlink()


def test_attach_to_something_else(name: str) -> None:
    with pytest.raises(FileNotFoundError):
        SharedTensor.attach(name)
    with pytest.raises(TypeError, match="anonymous"):
        SharedTensor.attach(None)
    with st.TensorBuffer.create((3, "f4"), slots=1, name=name) as b:
        with pytest.raises(st.ShmLayoutError, match="is a TensorBuffer"):
            SharedTensor.attach(name)
        b.put([1, 2, 3])
    with SharedTensor.zeros(3, "f4", name=name), pytest.raises(st.ShmLayoutError, match="is a SharedTensor"):
        st.TensorBuffer.attach(name)
    file = Path(f"/dev/shm/shmtensor.{name}")
    try:
        file.write_bytes(b"something else entirely" * 1000)
        file.chmod(0o600)
        with pytest.raises(st.ShmLayoutError, match="not a shmtensor segment"):
            SharedTensor.attach(name)
        file.chmod(0o644)
        with pytest.raises(PermissionError, match="0600"):
            SharedTensor.attach(name)
        assert file.exists()  # a failed attach undoes nothing
    finally:
        file.unlink()


def test_a_corrupt_description_is_refused(name: str) -> None:
    with SharedTensor.from_array(ARRAY, name=name) as t:
        file = Path(f"/dev/shm/shmtensor.{name}")
        at = file.read_bytes().index(t._meta)
        for wrong in (b'{"version":9', t._meta.replace(b"[3,4]", b"[3,9]"), b"\0" * len(t._meta), b"["):
            with open(file, "r+b") as f:
                f.seek(at)
                f.write(wrong)
            with pytest.raises(st.ShmLayoutError):
                SharedTensor.attach(name)
        assert t.numpy().tobytes() == ARRAY.tobytes()


# ---- to other processes --------------------------------------------------------------------------


def _add_one(t: SharedTensor, answers: Any) -> None:
    a = t.numpy()
    answers.put((t.shape, t.dtype, t.name, a.tobytes()))
    a += 1
    t.close()


def _serve(questions: Any, answers: Any) -> None:
    for t in iter(questions.get, None):
        if t.dtype != "bfloat16":
            t.numpy()[...] *= 2
        else:
            t.torch().mul_(2)
        answers.put(t.nbytes)
        del t


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("named", [False, True])
def test_as_an_argument_of_a_process(method: str, named: bool, name: str) -> None:
    context = multiprocessing.get_context(method)
    with SharedTensor.from_array(ARRAY, name=name if named else None) as t:
        answers = context.SimpleQueue()
        child = context.Process(target=_add_one, args=(t, answers))
        child.start()
        assert answers.get() == (t.shape, t.dtype, t.name, ARRAY.tobytes())
        child.join()
        assert child.exitcode == 0
        assert t.numpy().tobytes() == (ARRAY + 1).tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_through_a_queue(method: str) -> None:
    context = multiprocessing.get_context(method)
    questions, answers = context.Queue(), context.Queue()
    child = context.Process(target=_serve, args=(questions, answers))
    child.start()
    try:
        tensors = [SharedTensor.full((n, 2), 21, "int64") for n in range(1, 6)]
        for t in tensors:
            questions.put(t)
        for t in tensors:
            assert answers.get(timeout=60) == t.nbytes
        for t in tensors:
            assert (t.numpy() == 42).all()
    except queue.Empty:
        pytest.fail("the child did not answer")
    finally:
        questions.put(None)
        child.join()
        for q in (questions, answers):
            q.close()
            q.join_thread()
    assert child.exitcode == 0


@needs_torch
def test_what_numpy_lacks_through_a_process() -> None:
    pytest.importorskip("torch")
    context = multiprocessing.get_context("fork")
    questions, answers = context.SimpleQueue(), context.SimpleQueue()
    t = SharedTensor.full(4, 1.5, "bfloat16")
    child = context.Process(target=_serve, args=(questions, answers))
    child.start()
    questions.put(t)
    questions.put(None)
    child.join()
    assert child.exitcode == 0 and t.torch().tolist() == [3.0] * 4
    assert answers.get() == 8


def test_pickling_outside_of_a_start() -> None:
    """A named one pickles anywhere; a descriptor travels only while a process is started or through a connection."""
    with SharedTensor.from_array(ARRAY, name=f"st-{os.getpid()}") as t:
        u = pickle.loads(pickle.dumps(t))
        u.numpy()[0, 0] = 5
        assert t.numpy()[0, 0] == 5
        v = copy.copy(t)
        assert v.numpy()[0, 0] == 5
        u.close()
        assert u.closed and not v.closed and not t.closed
        assert t.numpy()[0, 0] == v.numpy()[0, 0] == 5
        v.close()
        assert os.path.exists(f"/dev/shm/shmtensor.{t.name}")


def test_a_connection_carries_it() -> None:
    ours, theirs = multiprocessing.Pipe()
    with SharedTensor.from_array(ARRAY) as t:
        ours.send(t)
        u = theirs.recv()
        u.numpy()[0, 0] = 77
        assert t.numpy()[0, 0] == 77
        u.close()
    ours.close()
    theirs.close()
    end = time.monotonic() + 10  # multiprocessing closes its copy of the descriptor in a thread of its own
    while segment_descriptors() and time.monotonic() < end:
        time.sleep(0.01)


def test_a_child_of_fork_inherits_it() -> None:
    with SharedTensor.from_array(ARRAY) as t:
        view = t.numpy()
        pid = os.fork()
        if pid == 0:
            view[0, 0] = 11
            t.numpy()[0, 1] = 12
            del view
            t.close()
            gc.collect()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert t.numpy()[0, :2].tolist() == [11, 12] and view[0, 0] == 11


# ---- close ---------------------------------------------------------------------------------------


def test_close() -> None:
    t = SharedTensor.from_array(ARRAY)
    assert not t.closed and len(segment_descriptors()) <= 2
    t.close()
    t.close()
    assert t.closed and segment_mappings() == [] and segment_descriptors() == []
    uses = (t.numpy, t.torch, t.unlink, t.__enter__, t.__dlpack__, t.__array__)
    for use in (*uses, lambda: t.write(ARRAY), lambda: t.name, lambda: memoryview(t), lambda: pickle.dumps(t)):
        with pytest.raises((st.ClosedError, ImportError), match=r"closed|torch"):
            use()
    with pytest.raises(ValueError, match="closed"):
        np.asarray(t)
    assert t.shape == (3, 4) and t.dtype == "int32" and t.nbytes == 48  # what it was is still known


def test_the_context_manager_closes(name: str) -> None:
    with pytest.raises(ZeroDivisionError), SharedTensor.zeros(3, "f4", name=name) as t:
        raise ZeroDivisionError
    assert t.closed and not os.path.exists(f"/dev/shm/shmtensor.{name}")
    with pytest.raises(st.ClosedError), t:
        pass


class _Interface:
    def __init__(self, t: SharedTensor) -> None:
        self.__array_interface__ = t.__array_interface__


def _torch() -> Any:
    return pytest.importorskip("torch")


VIEWS = {
    "numpy": lambda t: t.numpy(),
    "slice": lambda t: t.numpy()[1:],
    "asarray": np.asarray,
    "__array__": lambda t: t.__array__(),
    "interface": lambda t: np.asarray(_Interface(t)),
    "memoryview": memoryview,
    "frombuffer": lambda t: np.frombuffer(t, "i4"),
    "from_dlpack": np.from_dlpack,
    "capsule": lambda t: t.__dlpack__(),
    "versioned capsule": lambda t: t.__dlpack__(max_version=(1, 0)),
    "torch": lambda t: t.torch() if _torch() else None,
    "torch slice": lambda t: t.torch()[1:] if _torch() else None,
    "torch storage": lambda t: t.torch().untyped_storage() if _torch() else None,
    "torch to numpy": lambda t: t.torch().numpy() if _torch() else None,
    "torch.from_dlpack": lambda t: _torch().from_dlpack(t),
    "torch.frombuffer": lambda t: _torch().frombuffer(t, dtype=_torch().int32),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("drop", ["close", "del", "with"])
def test_views_outlive_it(view: Any, drop: str) -> None:
    t = SharedTensor.from_array(ARRAY)
    seen = view(t)
    if drop == "close":
        t.close()
    elif drop == "with":
        with t:
            pass
    del t
    assert len(segment_mappings()) == 1
    if type(seen).__name__ != "PyCapsule":
        raw = bytes(seen) if type(seen).__name__ == "UntypedStorage" else np.asarray(seen).tobytes()
        assert ARRAY.tobytes().endswith(raw) and len(raw) >= 32
    del seen
    assert segment_mappings() == [] and segment_descriptors() == []


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[ms]", "S4", "U2", ">i4", "V5"])
def test_asarray_outlives_it_where_the_buffer_protocol_fails(dtype: str) -> None:
    """numpy then looks at other ways to the array, of which one used to forget who keeps the memory."""
    t = SharedTensor.zeros(4, dtype)
    seen = np.asarray(t)
    t.close()
    assert len(segment_mappings()) == 1
    assert seen.tobytes() == bytes(4 * np.dtype(dtype).itemsize)
    del seen
    assert segment_mappings() == []


def test_close_while_threads_write() -> None:
    """A writer that is in the middle of it keeps the memory; those who come later are told."""
    for _ in range(5):
        t = SharedTensor.zeros(1 << 20, "u1")
        source = np.ones(1 << 20, "u1")
        ended: list[bool] = []

        def write(t: SharedTensor = t, source: np.ndarray = source, ended: list[bool] = ended) -> None:
            try:
                while True:
                    t.write(source)
            except st.ClosedError:
                ended.append(True)

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        t.close()
        for thread in threads:
            thread.join()
        assert len(ended) == 3
        del t, write, threads, thread


def test_a_thousand_come_and_go() -> None:
    for i in range(1000):
        t = SharedTensor.full(4, i, "int32")
        view = t.numpy()
        del t
        assert view[3] == i
    del view
    assert segment_mappings() == []


# ---- torch is not needed -------------------------------------------------------------------------


def test_torch_is_not_imported_without_need() -> None:
    code = """
import inspect, sys
import numpy as np, shmtensor as st
t = st.SharedTensor.from_array(np.arange(6.0).reshape(2, 3))
assert t.numpy().sum() == 15 and np.from_dlpack(t).sum() == 15 and memoryview(t).nbytes == 48
st.SharedTensor.zeros(3, "bfloat16")
with st.TensorBuffer.create({"x": (3, "float32"), "y": ((None,), "bfloat16")}, slots=2) as b:
    with b.claim() as slot:
        slot["x"] = [1, 2, 3]
        slot.abort()
with st.TensorBuffer.create((3, "float32"), slots=2) as b:
    b.put([1, 2, 3]); b.put(t.numpy()[0].astype("f4"))
    assert b.get().tolist() == [1, 2, 3]
    with b.acquire() as slot: assert np.from_dlpack(slot).tolist() == [0, 1, 2]
assert "torch" not in sys.modules
sys.modules["torch"] = None  # as if it were not installed
try:
    t.torch()
except ImportError as e:
    assert "shmtensor[torch]" in str(e), e
else:
    raise AssertionError
t.write(np.zeros((2, 3)))
try:
    st.DataLoader
except ModuleNotFoundError as e:
    assert e.name == "torch" and "shmtensor[torch]" in str(e), e
else:
    raise AssertionError
inspect.getmembers(st)  # as help() does
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_threshold_for_parallel_prefault_is_what_the_docs_say() -> None:
    assert shmtensor.tensor._PARALLEL_FROM == 64 << 20
