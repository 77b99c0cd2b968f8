"""Leases: a slot belongs to whoever still sees it, by whatever alias, and is given back once, when the last dies."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from views_support import (
    needs_torch,
    nothing_left_behind,
    quick_collections,
    raw_bytes,
    segment_mappings,
    slots_by_state,
)

import shmtensor as st
import shmtensor._views

SHAPE = (4, 6)
SLOTS = 3
PATTERN = np.arange(24, dtype="f4").reshape(SHAPE) + 1


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    with quick_collections():
        yield


@pytest.fixture
def buf() -> Iterator[st.TensorBuffer]:
    with st.TensorBuffer.create({"x": (SHAPE, "float32")}, slots=SLOTS) as b:
        yield b


@pytest.fixture
def single() -> Iterator[st.TensorBuffer]:
    with st.TensorBuffer.create((SHAPE, "float32"), slots=SLOTS) as b:
        yield b


# ---- ways to see a slot --------------------------------------------------------------------------


def _torch() -> Any:
    return pytest.importorskip("torch")


def _fallback(slot: st.Slot, field: str | None = None) -> Any:
    _torch()
    shmtensor._views._use_exchange_api(False)
    try:
        return slot.torch(field)
    finally:
        shmtensor._views._use_exchange_api(True)


def _from_slot(view: Callable[[st.Slot], Any], key: str | None = "x") -> Callable[[st.TensorBuffer], Any]:
    def get(b: st.TensorBuffer) -> Any:
        with b.acquire(timeout=5) as slot:
            return view(slot)

    return get


def _from_batch(view: Callable[[st.Batch], Any]) -> Callable[[st.TensorBuffer], Any]:
    def get(b: st.TensorBuffer) -> Any:
        with b.acquire_many(1, timeout=5) as batch:
            assert len(batch) == 1
            return view(batch)[0]

    return get


class Path(NamedTuple):
    get: Callable[[st.TensorBuffer], Any]
    named: bool = False  # needs a spec with names; else one that is a single array
    torch: bool = False


PATHS = {
    "slot[x]": Path(_from_slot(lambda s: s["x"]), named=True),
    "slot.numpy": Path(_from_slot(lambda s: s.numpy("x")), named=True),
    "slot.numpy()": Path(_from_slot(lambda s: s.numpy())),
    "slot.torch": Path(_from_slot(lambda s: s.torch("x")), named=True, torch=True),
    "slot.torch()": Path(_from_slot(lambda s: s.torch()), torch=True),
    "slot.torch, fallback": Path(_from_slot(lambda s: _fallback(s, "x")), named=True, torch=True),
    "np.asarray": Path(_from_slot(np.asarray)),
    "slot.__array__": Path(_from_slot(lambda s: s.__array__())),
    "__array_interface__": Path(_from_slot(lambda s: np.asarray(_Interface(s.__array_interface__)))),
    "memoryview": Path(_from_slot(lambda s: np.asarray(memoryview(s)))),
    "memoryview of an item": Path(
        _from_slot(lambda s: np.asarray(memoryview(s)[:96]).view("f4").reshape(SHAPE)), named=True
    ),
    "np.frombuffer": Path(_from_slot(lambda s: np.frombuffer(s, "f4").reshape(SHAPE))),
    "np.from_dlpack": Path(_from_slot(np.from_dlpack)),
    "torch.from_dlpack": Path(_from_slot(lambda s: _torch().from_dlpack(s)), torch=True),
    "torch.from_dlpack of a plain capsule": Path(
        _from_slot(lambda s: _torch().from_dlpack(s.__dlpack__())), torch=True
    ),
    "torch.frombuffer": Path(
        _from_slot(lambda s: _torch().frombuffer(s, dtype=_torch().float32).view(SHAPE)), torch=True
    ),
    "torch.frombuffer of an item": Path(
        _from_slot(lambda s: _torch().frombuffer(s, dtype=_torch().float32, count=24).view(SHAPE)),
        named=True,
        torch=True,
    ),
    "torch.asarray": Path(_from_slot(lambda s: _torch().asarray(s).view(SHAPE)), torch=True),
    "buf.get": Path(lambda b: b.get(timeout=5)),
    "buf.get of names": Path(lambda b: b.get(timeout=5)["x"], named=True),
    "buf.get(torch=True)": Path(lambda b: b.get(timeout=5, torch=True), torch=True),
    "buf.get_many": Path(lambda b: b.get_many(1, timeout=5)[0]),
    "iteration": Path(lambda b: next(iter(b))),
    "batch[x]": Path(_from_batch(lambda b: b["x"]), named=True),
    "batch.torch": Path(_from_batch(lambda b: b.torch()), torch=True),
}


class _Interface:
    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


# ---- ways to alias a view ------------------------------------------------------------------------


def _saved(t: Any) -> Any:
    """The output of an operation for whose gradient autograd saved the view."""
    weight = _torch().ones(SHAPE, requires_grad=True)
    return (weight * t).sum()


def _read_saved(y: Any) -> Any:
    return y.grad_fn.next_functions[0][0]._saved_other


def _capsule(x: Any) -> Any:
    return x.__dlpack__()


class _Importable:
    """A capsule as an object that from_dlpack() takes."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.x.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class Alias(NamedTuple):
    make: Callable[[Any], Any]
    read: Callable[[Any], Any] | None = None  # alias -> an array of the bytes it shows; None: itself
    expect: Callable[[np.ndarray], Any] = lambda a: a


NUMPY_ALIASES = {
    "itself": Alias(lambda a: a),
    "slice": Alias(lambda a: a[1:, ::2], expect=lambda a: a[1:, ::2]),
    "row": Alias(lambda a: a[2], expect=lambda a: a[2]),
    "reshape": Alias(lambda a: a.reshape(2, 12)),
    "ravel": Alias(lambda a: a.ravel()),
    "transpose": Alias(lambda a: a.T, expect=lambda a: a.T),
    "dtype": Alias(lambda a: a.view("u1")),
    "asarray": Alias(np.asarray),
    "broadcast": Alias(lambda a: np.broadcast_to(a, (2, *SHAPE)), lambda b: b[0]),
    "iterated": Alias(lambda a: list(a), lambda rows: np.stack(rows)),
    "memoryview": Alias(memoryview, np.asarray),
    "frombuffer": Alias(lambda a: np.frombuffer(a, "f4")),
    "flat iterator": Alias(lambda a: a.flat, lambda f: f.base),
    "interface": Alias(lambda a: np.asarray(_Owner(a))),
    "capsule": Alias(_capsule),
    "capsule, versioned": Alias(lambda a: a.__dlpack__(max_version=(1, 0))),
    "from_dlpack": Alias(np.from_dlpack),
    "in a container": Alias(lambda a: {"k": [(a,)]}, lambda c: c["k"][0][0]),
}
TORCH_ALIASES = {
    "itself": Alias(lambda t: t),
    "slice": Alias(lambda t: t[1:, ::2], expect=lambda a: a[1:, ::2]),
    "row": Alias(lambda t: t[2], expect=lambda a: a[2]),
    "reshape": Alias(lambda t: t.reshape(2, 12)),
    "view dtype": Alias(lambda t: t.view(_torch().uint8)),
    "transpose": Alias(lambda t: t.t(), expect=lambda a: a.T),
    "expand": Alias(lambda t: t.expand(2, *SHAPE), lambda t: t[0]),
    "detach": Alias(lambda t: t.detach()),
    "data": Alias(lambda t: t.data),
    "untyped_storage": Alias(
        lambda t: t.untyped_storage(), lambda s: _torch().tensor([], dtype=_torch().float32).set_(s)[:24]
    ),
    "numpy": Alias(lambda t: t.numpy()),
    "Parameter": Alias(lambda t: _torch().nn.Parameter(t)),
    "saved by autograd": Alias(_saved, _read_saved),
    "capsule": Alias(_capsule),
    "capsule, versioned": Alias(lambda t: t.__dlpack__(max_version=(1, 0))),
    "torch.from_dlpack": Alias(lambda t: _torch().from_dlpack(t)),
    "torch.from_dlpack of a capsule": Alias(lambda t: _torch().from_dlpack(t.__dlpack__())),
    "np.from_dlpack": Alias(np.from_dlpack),
    "to dtype": Alias(lambda t: t.to(_torch().float32)),
    "to device": Alias(lambda t: t.to("cpu")),
    "contiguous": Alias(lambda t: t.contiguous()),
    "float": Alias(lambda t: t.float()),
    "unbind": Alias(lambda t: t.unbind(), lambda rows: _torch().stack(rows)),
    "split": Alias(lambda t: t.split(2), lambda rows: _torch().cat(rows)),
    "memoryview": Alias(lambda t: memoryview(t.numpy()), np.asarray),
    "frombuffer": Alias(lambda t: np.frombuffer(memoryview(t.numpy()).cast("B"), "f4")),
    "as_tensor": Alias(lambda t: _torch().as_tensor(t)),
    "as_subclass": Alias(lambda t: t.as_subclass(_torch().nn.Buffer)),
    "TensorDataset": Alias(
        lambda t: _torch().utils.data.TensorDataset(t), lambda d: _torch().stack([d[i][0] for i in range(4)])
    ),
    "item of a TensorDataset": Alias(
        lambda t: _torch().utils.data.TensorDataset(t)[1], lambda item: item[0], expect=lambda a: a[1]
    ),
    "state_dict": Alias(lambda t: _state(t), lambda state: state["weight"]),
}


def _state(t: Any) -> Any:
    module = _torch().nn.Linear(6, 4)
    module.weight = _torch().nn.Parameter(t)
    return module.state_dict()


class _Owner:
    """What only has an __array_interface__, so that numpy makes it the base."""

    def __init__(self, a: np.ndarray) -> None:
        self.a = a
        self.__array_interface__ = a.__array_interface__


CASES = [("numpy", k, v) for k, v in NUMPY_ALIASES.items()] + [("torch", k, v) for k, v in TORCH_ALIASES.items()]
paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
aliases = pytest.mark.parametrize(
    ("kind", "alias"), [(kind, alias) for kind, _, alias in CASES], ids=[f"{kind} {name}" for kind, name, _ in CASES]
)


def _as(kind: str, view: Any) -> Any:
    """The view in numpy's or torch's hands, without a copy."""
    if kind == "numpy":
        return view if isinstance(view, np.ndarray) else view.numpy()
    torch = _torch()
    return torch.from_numpy(view) if isinstance(view, np.ndarray) else view


def _buffer(path: Path, **options: Any) -> st.TensorBuffer:
    if path.torch:
        _torch()
    spec: Any = (SHAPE, "float32")
    return st.TensorBuffer.create({"x": spec} if path.named else spec, **{"slots": SLOTS, **options})


def _item(b: st.TensorBuffer, array: Any) -> Any:
    return array if b.spec.single else {"x": array}


def _churn(b: st.TensorBuffer, held: set[int]) -> None:
    """Fills and empties the slots that are not held, several times over, and checks that only those were used."""
    states = b._slot_states()
    assert {i for i, (state, *_) in enumerate(states) if state == 3} == held
    for round in range(2 * SLOTS):
        with b.claim(timeout=5) as slot:
            assert slot.index not in held
            slot.write(_item(b, np.full(SHAPE, -1.0 - round, "f4")))
        got = b.get(timeout=5, copy=True)
        assert (got if b.spec.single else got["x"])[0, 0] == -1 - round
    claimed = []
    while (slot := b.try_claim()) is not None:
        claimed.append(slot)
    assert {slot.index for slot in claimed} == set(range(SLOTS)) - held
    for slot in claimed:
        slot.abort()


def _check_given_back_once(b: st.TensorBuffer) -> None:
    """The slot is free; and a second release, if one were still to come, would now hit its next holder."""
    assert slots_by_state(b) == {"free": SLOTS, "writing": 0, "ready": 0, "reading": 0}
    slots = [b.claim(timeout=5) for _ in range(SLOTS)]
    for i, slot in enumerate(slots):
        slot.write(_item(b, np.full(SHAPE, 100.0 + i, "f4")))
        slot.publish()
    held = [b.acquire(timeout=5) for _ in range(SLOTS)]
    gc.collect()
    assert slots_by_state(b)["reading"] == SLOTS
    assert b.try_claim() is None
    for i, slot in enumerate(held):
        assert slot.numpy()[0, 0] == 100 + i if b.spec.single else slot["x"][0, 0] == 100 + i
        slot.release()
    assert slots_by_state(b)["free"] == SLOTS


def _obtain(b: st.TensorBuffer, path: Path, kind: str, alias: Alias) -> Any:
    """An alias of a view, of which nothing else is left."""
    b.put(_item(b, PATTERN))
    return alias.make(_as(kind, path.get(b)))


def _shows(alias: Alias, x: Any) -> None:
    if type(x).__name__ == "PyCapsule":
        return  # it cannot be looked into without being consumed
    seen = x if alias.read is None else alias.read(x)
    assert raw_bytes(seen) == raw_bytes(np.ascontiguousarray(alias.expect(PATTERN)))


# ---- an alias keeps its slot ---------------------------------------------------------------------


@aliases
@paths
def test_an_alias_keeps_the_slot_and_gives_it_back_once(path: Path, kind: str, alias: Alias) -> None:
    if kind == "torch":
        _torch()
    with _buffer(path) as b:
        b.put(_item(b, PATTERN * 0))  # so that it is not always the first slot
        first = b.acquire()
        x = _obtain(b, path, kind, alias)
        first.release()
        _shows(alias, x)
        (held,) = (i for i, (state, *_) in enumerate(b._slot_states()) if state == 3)
        _churn(b, {held})
        _shows(alias, x)
        del x
        _check_given_back_once(b)
        assert len(segment_mappings()) == 1


@paths
def test_a_view_dies_in_another_thread(path: Path) -> None:
    with _buffer(path) as b:
        for _ in range(3):
            box = [_obtain(b, path, "numpy", NUMPY_ALIASES["slice"])]
            assert slots_by_state(b)["reading"] == 1
            thread = threading.Thread(target=box.clear)
            thread.start()
            thread.join()
            _check_given_back_once(b)


class _Knot:
    pass


@paths
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_view_in_a_cycle_dies_in_the_collector(path: Path, kind: str) -> None:
    if kind == "torch":
        _torch()
    with _buffer(path) as b:
        gc.collect()
        gc.disable()
        try:
            view = _obtain(b, path, kind, Alias(lambda x: x))
            if kind == "torch":
                view.me = view
            else:
                knot = _Knot()
                knot.me, knot.view = knot, view
                del knot
            del view
            assert slots_by_state(b)["reading"] == 1
            _churn(b, {i for i, (state, *_) in enumerate(b._slot_states()) if state == 3})
            thread = threading.Thread(target=gc.collect)  # the collector runs wherever it is triggered
            thread.start()
            thread.join()
        finally:
            gc.enable()
        _check_given_back_once(b)


@needs_torch
def test_backward_gives_the_slot_back(buf: st.TensorBuffer) -> None:
    torch = _torch()
    weight = torch.ones(SHAPE, requires_grad=True)
    buf.put({"x": PATTERN})
    with buf.acquire() as slot:
        y = (weight * slot.torch("x")).sum()
    assert slots_by_state(buf)["reading"] == 1
    _churn(buf, {i for i, (state, *_) in enumerate(buf._slot_states()) if state == 3})
    y.backward()
    assert slots_by_state(buf)["free"] == SLOTS
    assert weight.grad.numpy().tobytes() == PATTERN.tobytes()


def test_many_views_of_one_slot_die_in_many_threads(buf: st.TensorBuffer) -> None:
    """Each thread drops its views while the others do: the last one, whichever it is, gives the slot back."""
    for _ in range(30):
        buf.put({"x": PATTERN})
        with buf.acquire() as slot:
            boxes = [[slot["x"], slot["x"][1], np.frombuffer(slot, "f4", 24)] for _ in range(4)]
        start = threading.Barrier(4)

        def drop(box: list[Any], start: threading.Barrier = start) -> None:
            start.wait()
            while box:
                box.pop()

        threads = [threading.Thread(target=drop, args=(box,)) for box in boxes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert slots_by_state(buf)["free"] == SLOTS
    _check_given_back_once(buf)


OWN_EXPORTS: dict[str, Callable[[st.Slot], Any]] = {
    "numpy": lambda s: s.numpy(),
    "memoryview": memoryview,
    "np.from_dlpack": np.from_dlpack,
    "capsule": lambda s: s.__dlpack__(),
    "versioned capsule": lambda s: s.__dlpack__(max_version=(1, 0)),
    "torch": lambda s: s.torch() if _torch() else None,
    "torch, fallback": _fallback,
    "torch.from_dlpack": lambda s: _torch().from_dlpack(s),
    "torch.frombuffer": lambda s: _torch().frombuffer(s, dtype=_torch().float32),
}


@pytest.mark.parametrize("export", OWN_EXPORTS.values(), ids=OWN_EXPORTS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_only_the_last_of_several_exports_gives_the_slot_back(
    single: st.TensorBuffer, order: tuple[int, ...], export: Callable[[st.Slot], Any]
) -> None:
    single.put(PATTERN)
    with single.acquire() as slot:
        views = [export(slot), slot.numpy()[1:], export(slot)]
    for i in order:
        assert slots_by_state(single)["reading"] == 1
        views[i] = None
    assert slots_by_state(single)["free"] == SLOTS
    _check_given_back_once(single)


@pytest.mark.parametrize("key", ["a", "b"])
def test_one_field_of_an_item_keeps_the_whole_slot(key: str) -> None:
    with st.TensorBuffer.create({"a": (3, "int32"), "b": ((), "float64")}, slots=2) as b:
        b.put({"a": [1, 2, 3], "b": 4.0})
        view = b.get()[key]
        assert slots_by_state(b)["reading"] == 1
        del view
        assert slots_by_state(b)["free"] == 2


def test_a_batch_keeps_all_its_slots_and_gives_each_back_once(single: st.TensorBuffer) -> None:
    single.put_many([PATTERN, PATTERN + 1])
    with single.acquire_many(2) as batch:
        assert len(batch) == 2
        row = batch.numpy()[1]
    assert slots_by_state(single)["reading"] == 2
    _churn(single, {0, 1})
    assert row.tobytes() == (PATTERN + 1).tobytes()
    del row, batch
    _check_given_back_once(single)


# ---- what does not keep it -----------------------------------------------------------------------


def _saved_and_loaded(t: Any) -> Any:
    file = io.BytesIO()
    _torch().save(t, file)
    file.seek(0)
    return _torch().load(file)


COPIES = {
    "copy": ("numpy", lambda a: a.copy()),
    "astype": ("numpy", lambda a: a.astype("f4")),
    "deepcopy": ("numpy", copy.deepcopy),
    "pickle": ("numpy", lambda a: pickle.loads(pickle.dumps(a))),
    "np.array": ("numpy", np.array),
    "ascontiguousarray of a transpose": ("numpy", lambda a: np.ascontiguousarray(a.T).T),
    "np.stack": ("numpy", lambda a: np.stack([a])[0]),
    "tobytes": ("numpy", lambda a: np.frombuffer(a.tobytes(), "f4")),
    "fancy index": ("numpy", lambda a: a[[0, 1, 2, 3]]),
    "clone": ("torch", lambda t: t.clone()),
    "torch deepcopy": ("torch", copy.deepcopy),
    "torch pickle": ("torch", lambda t: pickle.loads(pickle.dumps(t))),
    "torch.save": ("torch", _saved_and_loaded),
    "stack": ("torch", lambda t: _torch().stack([t])[0]),
    "default_collate": ("torch", lambda t: _torch().utils.data.default_collate([t])[0]),
    "contiguous of a transpose": ("torch", lambda t: t.t().contiguous().t()),
    "to copy": ("torch", lambda t: t.to(_torch().float32, copy=True)),
    "torch.tensor": ("torch", lambda t: t.clone().detach()),
    "tolist": ("torch", lambda t: np.array(t.tolist(), "f4")),
}


@pytest.mark.parametrize(("kind", "make"), COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(
    "path", [PATHS["slot[x]"], PATHS["slot.torch()"], PATHS["buf.get"]], ids=["[x]", "torch", "get"]
)
def test_a_copy_does_not_keep_the_slot(path: Path, kind: str, make: Callable[[Any], Any]) -> None:
    if kind == "torch":
        _torch()
    with _buffer(path) as b:
        own = _obtain(b, path, kind, Alias(make))
        _check_given_back_once(b)
        assert raw_bytes(own) == PATTERN.tobytes()


@pytest.mark.parametrize("torch", [False, pytest.param(True, marks=needs_torch)])
@pytest.mark.parametrize("named", [False, True])
def test_get_with_copy_does_not_keep_the_slot(torch: bool, named: bool) -> None:
    with st.TensorBuffer.create({"x": (SHAPE, "f4")} if named else (SHAPE, "f4"), slots=SLOTS) as b:
        for get in (b.get, lambda **options: b.get_many(1, **options)[0]):
            b.put(_item(b, PATTERN))
            own = get(copy=True, torch=torch)
            own = own["x"] if named else own
            _check_given_back_once(b)
            assert raw_bytes(own) == PATTERN.tobytes()
            own[...] = 0  # it is writable, and nobody else's


def test_array_with_copy_does_not_keep_the_slot(single: st.TensorBuffer) -> None:
    single.put(PATTERN)
    with single.acquire() as slot:
        own = [np.array(slot), slot.__array__(copy=True), slot.__array__("f8"), np.asarray(slot, "f8")]
    _check_given_back_once(single)
    for a in own:
        np.testing.assert_array_equal(a, PATTERN)


def test_a_name_bound_to_the_slot_does_not_keep_it(buf: st.TensorBuffer) -> None:
    buf.put({"x": PATTERN})
    with buf.acquire() as slot:
        view = slot["x"]
    del view
    assert slots_by_state(buf)["free"] == SLOTS
    with pytest.raises(ValueError, match="already released"):
        slot["x"]
    with pytest.raises(ValueError, match="already released"):
        memoryview(slot)
    with pytest.raises(ValueError, match="already released"):
        slot.release()
    _check_given_back_once(buf)


def test_an_acquired_slot_that_is_dropped_is_released(buf: st.TensorBuffer) -> None:
    buf.put({"x": PATTERN})
    slot = buf.acquire()
    assert slots_by_state(buf)["reading"] == 1
    del slot
    _check_given_back_once(buf)
    buf.put({"x": PATTERN})
    view = buf.acquire()["x"]  # and a view of it keeps it
    assert slots_by_state(buf)["reading"] == 1
    del view
    _check_given_back_once(buf)


def test_the_end_of_an_exception_gives_the_slot_back(buf: st.TensorBuffer) -> None:
    buf.put({"x": PATTERN})
    with pytest.raises(ZeroDivisionError), buf.acquire() as slot:
        slot["x"][0, 0] / 1
        raise ZeroDivisionError
    _check_given_back_once(buf)


def test_iteration_keeps_no_item_while_it_waits(single: st.TensorBuffer) -> None:
    single.put_many([PATTERN, PATTERN])
    single.shutdown()
    for item in single:
        assert slots_by_state(single)["reading"] == 1
        del item
    assert slots_by_state(single)["free"] == SLOTS


def test_kept_items_starve_nobody_else() -> None:
    """Slots may be given back in any order: all but two are kept, and the two go round."""
    with st.TensorBuffer.create(((), "int64"), slots=10) as b:
        kept = []
        for i in range(8):
            b.put(i)
            kept.append(b.get())
        for i in range(100, 200):
            b.put(i)
            assert b.get(timeout=5, copy=True) == i
        assert [int(k) for k in kept] == list(range(8))
        with pytest.raises(TimeoutError, match="8 acquired"):
            for _ in range(3):
                b.put(0, timeout=0.01)
        del kept[3]
        b.put(7, timeout=5)


# ---- strict --------------------------------------------------------------------------------------


@paths
def test_strict_refuses_to_release_under_a_view(path: Path) -> None:
    with _buffer(path) as b:
        b.put(_item(b, PATTERN))
        slot = b.acquire(strict=True)
        views = [slot["x"]] if path.named else [np.asarray(slot)]
        if path.torch:
            views = [slot.torch()] if b.spec.single else [slot.torch("x")]
        with pytest.raises(BufferError, match=r"views of it are alive.*strict"):
            slot.release()
        assert slots_by_state(b)["reading"] == 1
        _churn(b, {slot.index})
        assert raw_bytes(views[0]) == PATTERN.tobytes()
        views.clear()
        slot.release()
        _check_given_back_once(b)


@pytest.mark.parametrize("make", [memoryview, np.from_dlpack, lambda s: s.__dlpack__(), lambda s: s.numpy()[1:]])
def test_strict_sees_every_kind_of_view(single: st.TensorBuffer, make: Callable[[Any], Any]) -> None:
    single.put(PATTERN)
    view: Any = None
    with pytest.raises(BufferError), single.acquire(strict=True) as slot:
        view = make(slot)
    assert slots_by_state(single)["reading"] == 1
    with pytest.raises(BufferError):
        slot.release()
    del view
    slot.release()
    _check_given_back_once(single)


@pytest.mark.parametrize("looked", [False, True])
def test_strict_releases_without_views(buf: st.TensorBuffer, looked: bool) -> None:
    buf.put({"x": PATTERN})
    with buf.acquire(strict=True) as slot:
        if looked:
            assert slot["x"][0, 0] == 1
            assert slot.numpy("x")[0, 1] == 2
    _check_given_back_once(buf)


def test_strict_gives_way_to_the_exception_of_the_block(buf: st.TensorBuffer) -> None:
    buf.put({"x": PATTERN})
    with pytest.raises(ZeroDivisionError), buf.acquire(strict=True) as slot:
        view = slot["x"]
        raise ZeroDivisionError
    assert slots_by_state(buf)["reading"] == 1
    del view
    _check_given_back_once(buf)


def test_a_strict_slot_that_was_refused_is_released_when_it_is_dropped(buf: st.TensorBuffer) -> None:
    buf.put({"x": PATTERN})
    slot = buf.try_acquire(strict=True)
    view = slot["x"]
    with pytest.raises(BufferError):
        slot.release()
    del slot
    assert slots_by_state(buf)["reading"] == 1
    del view
    _check_given_back_once(buf)


# ---- the producer's side -------------------------------------------------------------------------


def test_publishing_turns_numpy_views_read_only(buf: st.TensorBuffer) -> None:
    with buf.claim() as slot:
        first, second = slot["x"], slot.numpy("x")
        first[...] = PATTERN
    for view in (first, second):
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    assert slots_by_state(buf)["ready"] == 1
    assert (buf.get()["x"] == PATTERN).all()


def test_publishing_a_batch_turns_numpy_views_read_only(buf: st.TensorBuffer) -> None:
    with buf.claim_many(2) as batch:
        view = batch["x"]
        view[...] = PATTERN
    with pytest.raises(ValueError, match="read-only"):
        view[...] = 0


def test_views_of_an_acquired_slot_are_writable(buf: st.TensorBuffer) -> None:
    buf.put({"x": PATTERN})
    with buf.acquire() as slot:
        view = slot["x"]
        view += 1
        assert view.flags.writeable
        assert slot["x"].tobytes() == (PATTERN + 1).tobytes()
    assert view.flags.writeable  # it is ours until it dies


def test_a_producers_view_does_not_hold_the_slot_up(buf: st.TensorBuffer) -> None:
    """It keeps the mapping only: consumers get the item, and the slot goes round."""
    with buf.claim() as slot:
        kept = [slot["x"], memoryview(slot)]
        kept[0][...] = PATTERN
    for _ in range(2 * SLOTS):
        assert buf.get(timeout=5, copy=True)["x"].shape == SHAPE
        buf.put({"x": PATTERN}, timeout=5)
    assert kept[0].shape == SHAPE


@pytest.mark.parametrize("n", [None, 2])
def test_dropping_what_was_claimed_aborts_it(buf: st.TensorBuffer, n: int | None) -> None:
    slot = buf.claim() if n is None else buf.claim_many(n)
    view = slot["x"]
    assert slots_by_state(buf)["writing"] == (n or 1)
    del slot
    assert slots_by_state(buf) == {"free": SLOTS, "writing": 0, "ready": 0, "reading": 0}
    assert buf.try_acquire() is None
    del view
    _check_given_back_once(buf)


def test_an_exception_aborts_what_was_claimed(buf: st.TensorBuffer) -> None:
    with pytest.raises(ZeroDivisionError), buf.claim() as slot:
        slot["x"][...] = PATTERN
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="already aborted"):
        slot.publish()
    with pytest.raises(ZeroDivisionError), buf.claim_many(2) as batch:
        batch["x"][...] = PATTERN
        raise ZeroDivisionError
    assert slots_by_state(buf)["free"] == SLOTS
    assert buf.stats()["publishes"] == 0


# ---- close ---------------------------------------------------------------------------------------


@paths
def test_views_outlive_close(path: Path) -> None:
    with nothing_left_behind():
        b = _buffer(path)
        view = _obtain(b, path, "numpy", Alias(lambda a: a[1:]))
        b.close()
        assert b.closed
        assert len(segment_mappings()) == 1
        assert view.tobytes() == PATTERN[1:].tobytes()
        view[...] = 5
        assert (view == 5).all()
        del b
        assert view.tobytes() == np.full((3, 6), 5, "f4").tobytes()
        del view
        assert segment_mappings() == []


@pytest.mark.parametrize("verb", ["claim", "acquire", "claim_many", "acquire_many"])
def test_a_slot_outlives_close(verb: str) -> None:
    """What is held when the buffer is closed can still be used and ended, or dropped."""
    for end in (True, False):
        with nothing_left_behind():
            b = st.TensorBuffer.create({"x": (SHAPE, "float32")}, slots=SLOTS)
            b.put({"x": PATTERN})
            slot = getattr(b, verb)(*((2,) if verb.endswith("many") else ()))
            b.close()
            view = slot["x"]
            if "claim" in verb:
                view[...] = PATTERN
                if end:
                    slot.publish()
            elif end:
                slot.release()
            assert raw_bytes(view).endswith(PATTERN.tobytes())
            del slot, b
            assert len(segment_mappings()) == 1
            assert raw_bytes(view).endswith(PATTERN.tobytes())
            del view


def test_close_by_one_handle_leaves_another() -> None:
    name = f"lease-{os.getpid()}"
    with nothing_left_behind(), st.TensorBuffer.create({"x": (SHAPE, "f4")}, slots=2, name=name) as one:
        two = st.TensorBuffer.attach(name)
        one.put({"x": PATTERN})
        view = two.get()["x"]
        two.close()
        assert slots_by_state(one)["reading"] == 1
        one.put({"x": PATTERN + 1})
        assert one.get(copy=True)["x"].tobytes() == (PATTERN + 1).tobytes()
        assert view.tobytes() == PATTERN.tobytes()
        del view
        assert slots_by_state(one)["free"] == 2


# ---- fork ----------------------------------------------------------------------------------------


def _in_child(what: Callable[[], None]) -> None:
    """Runs ``what`` in a forked child, which must end well."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            what()
            code = 0
        except BaseException as e:
            os.write(2, f"in the child: {e!r}\n".encode())
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@paths
def test_a_forked_childs_collection_releases_nothing(path: Path) -> None:
    with _buffer(path) as b:
        box = [_obtain(b, path, "numpy", Alias(lambda a: a))]
        box.append(b.claim(timeout=5))

        def drop() -> None:
            for x in box:
                if isinstance(x, np.ndarray):
                    assert x.tobytes() == PATTERN.tobytes()
            box.clear()
            gc.collect()
            assert slots_by_state(b)["reading"] == 1
            assert slots_by_state(b)["writing"] == 1

        _in_child(drop)
        assert slots_by_state(b) == {"free": 1, "writing": 1, "ready": 0, "reading": 1}
        assert b.reclaim() >= 0  # the child was a member for a moment
        assert slots_by_state(b) == {"free": 1, "writing": 1, "ready": 0, "reading": 1}
        assert box[0].tobytes() == PATTERN.tobytes()
        box.clear()
        _check_given_back_once(b)


def test_a_forked_child_cannot_end_its_parents_slots(buf: st.TensorBuffer) -> None:
    buf.put({"x": PATTERN})
    reading, writing = buf.acquire(), buf.claim()

    def end() -> None:
        with pytest.raises(st.LeaseLost):
            writing.publish()
        reading.release()
        assert buf.try_acquire() is None
        buf.put({"x": PATTERN})
        assert (buf.get()["x"] == PATTERN).all()  # it works here as a member of its own

    _in_child(end)
    assert slots_by_state(buf) == {"free": 1, "writing": 1, "ready": 0, "reading": 1}
    writing.write({"x": PATTERN + 1})
    writing.publish()
    reading.release()
    assert (buf.get()["x"] == PATTERN + 1).all()
    _check_given_back_once(buf)


def test_a_childs_orderly_exit_releases_nothing() -> None:
    """The interpreter's finalisation of a forked child collects everything, modules and all."""
    code = """
import os, sys
import numpy as np, shmtensor as st
b = st.TensorBuffer.create((4, "int64"), slots=3)
b.put(np.arange(4)); b.put(np.arange(4) + 10)
view, slot, claimed = b.get(), b.acquire(), b.claim()
knot = [view]; knot.append(knot)
pid = os.fork()
if pid == 0:
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
s = b.stats()
assert (s["reading"], s["writing"], s["free"]) == (2, 1, 0), s
assert view.tolist() == [0, 1, 2, 3] and slot.numpy().tolist() == [10, 11, 12, 13]
claimed.abort(); slot.release()
assert b.stats()["free"] == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
