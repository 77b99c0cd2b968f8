"""Views: every dtype, shape and exporter shows the bytes that were written; and shape tables are not trusted."""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from views_support import raw_bytes

import shmtensor as st
import shmtensor._views
from shmtensor.spec import resolve_dtype

COMMON = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
TORCH_ONLY = [
    *("complex32", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", "float4_e2m1fn_x2"),
]
NUMPY_ONLY = {
    "big-endian": ">i4",
    "bytes": "S7",
    "unicode": "U5",
    "void": "V6",
    "datetime": "M8[ns]",
    "timedelta": "m8[25s]",
    "longdouble": "longdouble",
    "clongdouble": "clongdouble",
    "record": [("a", "<f4", (2, 3)), ("b", [("c", "u1"), ("d", ">i8")])],
    "aligned record": np.dtype([("c", "u1"), ("d", "f8")], align=True),
}
SHAPES = [(), (1,), (5,), (3, 4), (0,), (2, 0, 3), (2, 1, 3, 1), (1,) * 31 + (3,)]
shapes = pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: "x".join(map(str, s)) if len(s) < 9 else f"{len(s)} dims"
)


@pytest.fixture(params=["exchange API", "fallback"])
def torch(request: pytest.FixtureRequest) -> Iterator[Any]:
    """torch, seen once through its C exchange API and once as an older torch without it."""
    module = pytest.importorskip("torch")
    shmtensor._views._use_exchange_api(request.param == "exchange API")
    yield module
    shmtensor._views._use_exchange_api(True)


def _bytes_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random bytes that make up an array: any bits are a number, but not a bool."""
    itemsize = resolve_dtype(dtype).itemsize
    high = 2 if dtype == "bool" else 256
    return np.random.default_rng(7).integers(0, high, (math.prod(shape), itemsize), np.uint8)


def _tensor(torch: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    kind = getattr(torch, dtype, None)
    if kind is None:
        pytest.skip(f"this torch has no {dtype}")
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=kind)
    return torch.from_numpy(_bytes_of(dtype, shape).reshape(-1)).view(kind).reshape(shape)


# ---- dtypes and shapes ---------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("dtype", COMMON)
def test_numpy_to_numpy(dtype: str, shape: tuple[int, ...]) -> None:
    array = _bytes_of(dtype, shape).view(dtype).reshape(shape)
    with st.TensorBuffer.create((shape, dtype), slots=2) as b:
        b.put(array)
        seen = b.get()
        assert (seen.dtype, seen.shape, seen.strides) == (array.dtype, array.shape, array.strides)
        assert seen.flags.c_contiguous and seen.flags.aligned and seen.flags.writeable and not seen.flags.owndata
        assert seen.size == 0 or seen.ctypes.data % 64 == 0
        assert seen.tobytes() == array.tobytes()
        with b.claim() as slot:
            slot.numpy()[...] = array
        assert b.get(copy=True).tobytes() == array.tobytes()


@shapes
@pytest.mark.parametrize("dtype", [*COMMON, *TORCH_ONLY])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_torch_to_torch(torch: Any, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = _tensor(torch, dtype, shape)
    with st.TensorBuffer.create((shape, dtype), slots=2) as b:
        b.put(tensor)
        seen = b.get(torch=True)
        assert seen.dtype is tensor.dtype and seen.shape == tensor.shape
        assert seen.stride() == tensor.stride() or seen.numel() == 0  # then they mean nothing
        assert seen.is_contiguous() and seen.device.type == "cpu" and not seen.requires_grad
        assert seen.numel() == 0 or seen.data_ptr() % 64 == 0
        assert raw_bytes(seen) == raw_bytes(tensor)
        with b.claim() as slot:
            view = slot.torch()
            assert view.dtype is tensor.dtype and view.shape == tensor.shape
            if tensor.numel():
                view.view(torch.uint8).copy_(tensor.view(torch.uint8)) if shape else slot.write(tensor)
        own = b.get(copy=True, torch=True)
        assert own.dtype is tensor.dtype and raw_bytes(own) == raw_bytes(tensor)
        assert b.stats()["free"] == 1


@pytest.mark.parametrize("dtype", COMMON)
def test_numpy_and_torch_see_each_other(torch: Any, dtype: str) -> None:
    array = _bytes_of(dtype, (3, 4)).view(dtype).reshape(3, 4)
    with st.TensorBuffer.create({"a": ((3, 4), dtype), "t": ((3, 4), dtype)}, slots=1) as b:
        b.put({"a": array, "t": torch.from_numpy(array)})
        with b.acquire() as slot:
            assert raw_bytes(slot.torch("a")) == slot["t"].tobytes() == array.tobytes()
            assert slot.torch("a").data_ptr() == slot["a"].ctypes.data
            slot["a"][...] = 0
            assert not slot.torch("a").any()
            slot.torch("t")[...] = 1
            assert (slot["t"] == 1).all()


@pytest.mark.parametrize("dtype", NUMPY_ONLY.values(), ids=NUMPY_ONLY)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2)])
def test_numpy_only_dtypes(dtype: Any, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(dtype)
    if dtype.kind in "SUV" and dtype.names is None:
        array = np.full(shape, b"ab" if dtype.kind != "U" else "a\N{SNOWMAN}", dtype)
    elif dtype.names is None:
        array = np.full(shape, 3, "i8").astype(dtype)
    else:
        array = np.zeros(shape, dtype)
        array[dtype.names[0]] = 7
    with st.TensorBuffer.create((shape, dtype), slots=2) as b:
        b.put(array)
        with b.acquire() as slot:
            seen = [slot.numpy(), slot.__array__()]
            if dtype.str != "|V6":  # the buffer protocol makes that a record without fields, of numpy's own arrays too
                seen.append(np.asarray(slot))
            for method in (slot.torch, slot.__dlpack__):
                with pytest.raises((TypeError, BufferError, ImportError), match=r"does not have|need torch"):
                    method()
        for view in seen:
            assert view.dtype == dtype and view.shape == shape and view.tobytes() == array.tobytes()
        assert b.stats()["reading"] == 1
        del view, seen
        assert b.stats()["free"] == 2


@pytest.mark.parametrize("dtype", TORCH_ONLY)
def test_numpy_access_to_what_numpy_lacks_says_what_to_do(dtype: str) -> None:
    if "ml_dtypes" in sys.modules:
        pytest.skip("something has imported ml_dtypes, so numpy has these types")
    with st.TensorBuffer.create({"x": (3, dtype)}, slots=2) as b:
        slot = b.claim()
        with pytest.raises(TypeError, match=rf"field 'x' is {dtype}, which numpy does.*\.torch\(\).*ml_dtypes"):
            slot["x"]
        with pytest.raises(TypeError, match=rf"field 'x' is {dtype}.*write a torch tensor"):
            slot.write("x", [1, 2, 3])
        with pytest.raises(TypeError, match=f"takes dtype {dtype}, got float32"):
            slot.write("x", np.ones(3, "f4"))
        slot.publish()
        for options in ({}, {"copy": True}):
            with pytest.raises(TypeError, match=dtype):
                b.get(**options)
            assert b.stats()["ready"] == 1  # neither the item nor its slot is lost


def test_ml_dtypes_gives_numpy_the_types_it_lacks() -> None:
    code = """
import numpy as np, shmtensor as st
try:
    import ml_dtypes
except ImportError:
    raise SystemExit(77)
for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"):
    kind = np.dtype(getattr(ml_dtypes, name))
    a = np.array([1, 2, 4], kind)
    with st.TensorBuffer.create((3, name), slots=2) as b:
        b.put(a)
        with b.acquire() as slot:
            views = [slot.numpy(), np.asarray(slot)]
        for v in views:
            assert v.dtype == kind and v.tobytes() == a.tobytes(), (name, v.dtype)
        assert b.stats()["reading"] == 1
        del v, views
        assert b.stats()["free"] == 2
        b.put([1, 2, 4])
        assert b.get(copy=True).tobytes() == a.tobytes()
    t = st.SharedTensor.from_array(a)
    assert t.dtype == name and np.asarray(t).dtype == kind and np.asarray(t).tobytes() == a.tobytes()
    t = st.SharedTensor.full(3, 2, name)
    assert t.numpy().astype("f4").tolist() == [2, 2, 2]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("ml_dtypes is not installed")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dims", [32, 31])
def test_as_many_dimensions_as_there_may_be(dims: int) -> None:
    shape = (2, *[1] * (dims - 2), 3)
    array = np.arange(6, dtype="i2").reshape(shape)
    with st.TensorBuffer.create({"fixed": (shape, "i2"), "free": ((None,) * dims, "i2")}, slots=2) as b:
        b.put({"fixed": array, "free": array})
        item = b.get()
        for view in item.values():
            assert view.shape == shape and view.tobytes() == array.tobytes()
            assert np.from_dlpack(view).shape == shape


# ---- DLPack --------------------------------------------------------------------------------------


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _look_into(capsule: Any, versioned: bool) -> _DLTensor:
    name = b"dltensor_versioned" if versioned else b"dltensor"
    pointer = _pointer_in(capsule, name)  # ValueError if that is not its name
    if versioned:
        block = _Versioned.from_address(pointer)
        assert block.major == 1 and block.flags == 0 and block.deleter
        return block.tensor
    return _DLTensor.from_address(pointer)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dtype", [*COMMON, *TORCH_ONLY[:-1]])
@pytest.mark.parametrize("shape", [(), (3, 4), (2, 0)])
def test_what_a_capsule_says(dtype: str, versioned: bool, shape: tuple[int, ...]) -> None:
    options = {"max_version": (1, 0)} if versioned else {}
    with st.TensorBuffer.create((shape, dtype), slots=1) as b, b.claim() as slot:
        assert slot.__dlpack_device__() == (1, 0)
        for exporter in (slot, st.SharedTensor.empty(shape, dtype)):
            capsule = exporter.__dlpack__(**options)
            t = _look_into(capsule, versioned)
            assert (t.device_type, t.device_id, t.lanes, t.byte_offset) == (1, 0, 1, 0)
            assert (t.code, t.bits) == resolve_dtype(dtype).dlpack
            assert tuple(t.shape[: t.ndim]) == shape
            if shape == (3, 4):
                assert t.strides[:2] == [4, 1]
            assert (t.data is None) == (0 in shape)
            if exporter is slot and dtype in COMMON and 0 not in shape:
                assert t.data == slot.numpy().ctypes.data


def test_float4_is_not_in_dlpack() -> None:
    with pytest.raises(BufferError, match="float4_e2m1fn_x2, which DLPack does not have"):
        st.SharedTensor.empty(2, "float4_e2m1fn_x2").__dlpack__()


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 3), (2, 0)])
def test_the_capsule_is_of_the_generation_asked_for(version: tuple[int, int] | None) -> None:
    t = st.SharedTensor.empty(3, "f4")
    _look_into(t.__dlpack__(max_version=version), version is not None and version >= (1, 0))


def test_requests_that_shared_memory_cannot_meet() -> None:
    t = st.SharedTensor.empty(3, "f4")
    with st.TensorBuffer.create((3, "f4"), slots=1) as b, b.claim() as slot:
        for exporter in (t, slot):
            assert exporter.__dlpack__(dl_device=(1, 0), copy=False, stream=None) is not None
            with pytest.raises(BufferError, match="CPU"):
                exporter.__dlpack__(dl_device=(2, 0))
            with pytest.raises(BufferError, match="copy"):
                exporter.__dlpack__(copy=True)


@pytest.mark.parametrize("dtype", COMMON)
@pytest.mark.parametrize("versioned", [False, True])
def test_torch_imports_both_generations(dtype: str, versioned: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.dlpack import from_dlpack

    array = _bytes_of(dtype, (3, 4)).view(dtype).reshape(3, 4)
    t = st.SharedTensor.from_array(array)
    seen = from_dlpack(t.__dlpack__(max_version=(1, 0)) if versioned else t.__dlpack__())
    assert seen.dtype is getattr(torch, dtype) and raw_bytes(seen) == array.tobytes()
    assert seen.data_ptr() == t.numpy().ctypes.data


def test_numpy_imports_through_dlpack() -> None:
    for dtype in COMMON:
        array = _bytes_of(dtype, (3, 4)).view(dtype).reshape(3, 4)
        t = st.SharedTensor.from_array(array)
        seen = np.from_dlpack(t)
        assert seen.dtype == array.dtype and seen.tobytes() == array.tobytes()
        assert seen.ctypes.data == t.numpy().ctypes.data


# ---- the buffer protocol and __array__ -----------------------------------------------------------


@pytest.mark.parametrize("dtype", COMMON)
def test_memoryview_of_a_single_array(dtype: str) -> None:
    array = _bytes_of(dtype, (3, 4)).view(dtype).reshape(3, 4)
    with st.TensorBuffer.create((array.shape, dtype), slots=1) as b:
        b.put(array)
        with b.acquire() as slot:
            m = memoryview(slot)
            assert (m.shape, m.itemsize, m.nbytes, m.readonly) == ((3, 4), array.itemsize, array.nbytes, False)
            assert m.format == memoryview(array).format and m.tobytes() == array.tobytes()
            assert bytes(slot) == array.tobytes()


def test_memoryview_of_an_item_is_its_bytes() -> None:
    with st.TensorBuffer.create({"a": (3, "u1"), "b": (2, "f8")}, slots=1) as b:
        b.put({"a": [1, 2, 3], "b": [4, 5]})
        with b.acquire() as slot:
            m = memoryview(slot)
            assert (m.format, m.ndim, m.nbytes) == ("B", 1, b.spec.nbytes)
            for f in b.spec.fields:
                assert m[f.offset : f.offset + f.nbytes] == slot[f.path].tobytes()


def test_asarray_of_a_slot() -> None:
    with st.TensorBuffer.create((3, "i4"), slots=1) as b:
        b.put([1, 2, 3])
        with b.acquire() as slot:
            same = np.asarray(slot)
            same[0] = 9
            assert slot.numpy()[0] == 9
            assert np.asarray(slot, "f8").tolist() == [9, 2, 3]
            assert slot.__array__(np.dtype("i4"), False).ctypes.data == same.ctypes.data
            with pytest.raises(ValueError, match="without a copy"):
                slot.__array__("f8", copy=False)


def test_views_of_a_part_of_a_nested_item() -> None:
    spec = {"image": ((2, 2), "u1"), "obs": {"state": (3, "f4"), "deep": {"n": ((), "i8")}}}
    with st.TensorBuffer.create(spec, slots=1) as b:
        b.put({"image": [[1, 2], [3, 4]], "obs": {"state": [5, 6, 7], "deep": {"n": 8}}})
        with b.acquire() as slot:
            assert slot["obs.deep.n"] == 8 and slot["obs"]["state"].tolist() == [5, 6, 7]
            assert slot["obs.deep"] == {"n": 8} and slot.numpy("obs")["deep"]["n"].shape == ()
            for wrong in ("obs.", "obs.nope", "image.x", "", ".", "Image", 3, None, ["image"], ("obs",)):
                with pytest.raises((KeyError, ValueError), match="field"):
                    slot[wrong]
            with pytest.raises(ValueError, match=r"several fields: say which of image, obs\.state"):
                slot.numpy()
            with pytest.raises(KeyError, match="did you mean 'image'"):
                slot["imgae"]


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "complex128", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 2)])
def test_batch_views(dtype: str, shape: tuple[int, ...]) -> None:
    arrays = [np.full(shape, i, dtype) for i in range(4)]
    with st.TensorBuffer.create({"x": (shape, dtype), "y": ((), "int64")}, slots=4) as b:
        with b.claim_many(4) as batch:
            assert len(batch) == 4 and batch["x"].shape == (4, *shape)
            batch["x"][...] = np.stack(arrays)
            batch["y"][...] = range(4)
        with b.acquire_many(4) as batch:
            assert len(batch) == 4
            assert batch["x"].dtype == np.dtype(dtype) and (batch["x"] == np.stack(arrays)).all()
            assert batch["y"].tolist() == [0, 1, 2, 3]
        with b.claim_many(4) as batch:
            batch.write({"x": np.stack(arrays), "y": [3, 2, 1, 0]})
        for i in range(4):
            item = b.get(copy=True)
            assert (item["x"] == arrays[i]).all() and item["y"] == 3 - i


def test_batch_views_in_torch(torch: Any) -> None:
    for dtype in (*COMMON, "bfloat16", "float8_e5m2"):
        tensor = (
            torch.stack([_tensor(torch, dtype, (3, 5))] * 4)
            if dtype in COMMON
            else torch.cat([_tensor(torch, dtype, (1, 3, 5)).view(torch.uint8)] * 4).view(getattr(torch, dtype))
        )
        with st.TensorBuffer.create(((3, 5), dtype), slots=4) as b:
            with b.claim_many(4) as batch:
                assert batch.torch().shape == (4, 3, 5)
                batch.write(tensor)
            with b.acquire_many(4) as batch:
                seen = batch.torch()
            assert seen.dtype is tensor.dtype and seen.shape == (4, 3, 5)
            assert raw_bytes(seen) == raw_bytes(tensor)
            assert b.stats()["reading"] == 4
            del seen
            assert b.stats()["free"] == 4


# ---- dynamic shapes ------------------------------------------------------------------------------

BOUNDED = {"x": st.Field((None, 3), "float32", max_shape=(10, 3)), "n": ((), "int64")}
UNBOUNDED = {"x": ((None, 3), "float32"), "y": ((None, None), "uint8"), "n": ((), "int64")}


@pytest.mark.parametrize("rows", [0, 1, 7, 10])
@pytest.mark.parametrize("reserve", ["full", "grow"])
def test_bounded_dynamic_shapes(rows: int, reserve: str) -> None:
    array = np.arange(3 * rows, dtype="f4").reshape(rows, 3)
    with st.TensorBuffer.create(BOUNDED, slots=2, reserve=reserve) as b:
        for _ in range(3):
            b.put({"x": array, "n": rows})
            item = b.get()
            assert item["x"].shape == (rows, 3) and item["x"].tobytes() == array.tobytes() and item["n"] == rows
            del item
            with b.claim() as slot:
                slot.empty("x", (rows, 3))[...] = array
                slot["n"] = rows
            assert b.get(copy=True)["x"].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("shape", "error"),
    [((11, 3), ValueError), ((2, 4), ValueError), ((3,), ValueError), ((-1, 3), ValueError), ((2.5, 3), TypeError)],
)
def test_shapes_out_of_bounds(shape: Any, error: type[Exception]) -> None:
    with st.TensorBuffer.create(BOUNDED, slots=1) as b:
        with pytest.raises(error, match=r"field 'x'.*(\(<=10, 3\)|2 dimensions)"), b.claim() as slot:
            slot.empty("x", shape)
        if error is ValueError and min(shape) >= 0:
            with pytest.raises(ValueError, match="field 'x'"):
                b.put({"x": np.zeros(shape, "f4"), "n": 0})
        assert b.stats()["free"] == 1
        b.put({"x": np.zeros((2, 3), "f4"), "n": 0})


def test_unbounded_dynamic_shapes() -> None:
    rng = np.random.default_rng(1)
    with st.TensorBuffer.create(UNBOUNDED, slots=2, max_slot_nbytes=1 << 22) as b:
        for x_rows, y_shape in ((1, (0, 5)), (1000, (3, 4)), (0, (0, 0)), (5, (1000, 1000)), (40000, (1, 1))):
            x, y = rng.random((x_rows, 3), "f4"), rng.integers(0, 255, y_shape, "u1")
            b.put({"x": x, "y": y, "n": x_rows})
            item = b.get()
            assert item["x"].tobytes() == x.tobytes() and item["y"].tobytes() == y.tobytes()
            assert item["x"].ctypes.data % 64 == 0 and item["y"].shape == y_shape
        with pytest.raises(ValueError, match=r"field 'y' of shape \(4000, 4000\) needs a slot.*max_slot_nbytes="):
            b.put({"x": x, "y": np.zeros((4000, 4000), "u1"), "n": 0})
        for shape in (4000, (4000,), (10**30, 1), (2**62, 2**62), None):
            with pytest.raises((ValueError, TypeError), match="field 'y'"), b.claim() as slot:
                slot.empty("y", shape)
        del item
        assert b.stats()["free"] == 2


def test_dynamic_shapes_in_torch(torch: Any) -> None:
    with st.TensorBuffer.create({"x": ((None,), "bfloat16")}, slots=2) as b:
        for n in (0, 1, 5000):
            t = torch.arange(n).to(torch.bfloat16)
            b.put({"x": t})
            seen = b.get(torch=True)["x"]
            assert seen.shape == (n,) and seen.dtype is torch.bfloat16 and torch.equal(seen, t)


def test_a_dynamic_field_must_be_written() -> None:
    with st.TensorBuffer.create(UNBOUNDED, slots=1) as b:
        slot = b.claim()
        slot.write("x", np.ones((2, 3), "f4"))
        for read in (slot.__getitem__, slot.numpy):
            with pytest.raises(ValueError, match="field 'y' has not been written yet"):
                read("y")
        with pytest.raises(ValueError, match="field 'y' has not been written yet"):
            slot.publish()
        slot.empty("y", (1, 1))[...] = 3
        slot.publish()
        assert b.get(copy=True)["y"].tolist() == [[3]]
        # The next item of that slot begins anew.
        with pytest.raises(ValueError, match="field 'x' has not been written yet"), b.claim():
            pass
        assert b.stats()["free"] == 1
        with pytest.raises(TypeError, match="dynamic"):
            b.claim_many(1)
        with pytest.raises(ValueError, match=r"field 'n' has the fixed shape \(\)"), b.claim() as slot:
            slot.empty("n", ())


def test_the_shape_may_be_given_again() -> None:
    with st.TensorBuffer.create(UNBOUNDED, slots=1) as b:
        with b.claim() as slot:
            slot.write("x", np.zeros((100, 3), "f4"))
            slot.write("y", np.zeros((2, 2), "u1"))
            slot.write("x", np.ones((1000, 3), "f4"))
            slot["n"] = 1
        item = b.get()
        assert item["x"].shape == (1000, 3) and (item["x"] == 1).all() and (item["y"] == 0).all()


# ---- a corrupt shape table -----------------------------------------------------------------------

SPECIAL = [
    *(0, 1, 3, 63, 64, 65, 128, 4096, -1, -64, (1 << 62) // 3, 0x5555555555555556),
    *(1 << n for n in (20, 31, 32, 40, 46, 60, 61, 62)),
    *((1 << 63) - 1, (1 << 63) - 64, -(1 << 62), -(1 << 63)),
]
WORDS = some.one_of(some.sampled_from(SPECIAL), some.integers(-(1 << 63), (1 << 63) - 1), some.integers(0, 512))
PLAUSIBLE = some.lists(some.sampled_from([1, 2, 3, 4, 10, 64, 128, 192, 256, 320, 448]), min_size=3, max_size=10)
CORRUPTIBLE = {
    "bounded": {"x": st.Field((None, 3), "float32", max_shape=(10, 3)), "n": ((), "int64")},
    "unbounded": {"x": ((None, 3), "float32"), "y": ((None, None, None), "complex128"), "z": ((None,), "u1")},
    "mixed": {"x": ((None,) * 4, "i8"), "y": st.Field((None, 2, None), "u2", (4, 2, 4)), "z": ((5,), "f8")},
}


def _valid(spec: Any) -> dict[str, np.ndarray]:
    item = {}
    for f in st.Spec(spec).fields:
        item[f.path] = np.ones(tuple(2 if n < 0 else n for n in f.shape), f.dtype.numpy)
    return item


@pytest.fixture(scope="module", params=CORRUPTIBLE)
def corruptible(request: pytest.FixtureRequest) -> Iterator[st.TensorBuffer]:
    with st.TensorBuffer.create(CORRUPTIBLE[request.param], slots=2, max_slot_nbytes=1 << 16) as b:
        yield b


def _within(view: np.ndarray, whole: np.ndarray) -> None:
    start, end = whole.ctypes.data, whole.ctypes.data + whole.nbytes
    assert view.size == 0 or start <= view.ctypes.data <= view.ctypes.data + view.nbytes <= end
    view.tobytes()  # and it is all there


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=some.one_of(some.lists(WORDS, min_size=1, max_size=10), PLAUSIBLE))
@example(words=[64, -1, 3])
@example(words=[64, 1 << 62, 3])
@example(words=[64, 1 << 62, 1 << 62, 1 << 62])
@example(words=[(1 << 63) - 64, 2, 3])
@example(words=[-64, 2, 3])
@example(words=[64, 0, 3, 64, 0, 1 << 62, 1 << 62])
def test_a_corrupt_shape_table_raises_or_stays_inside(corruptible: st.TensorBuffer, words: list[int]) -> None:
    b = corruptible
    names = [f.path for f in b.spec.fields]
    table = np.array(words[: b.spec.table_nbytes // 8], "i8").tobytes()
    allowed = (st.ShmLayoutError, ValueError)

    # while it is acquired
    b.put(_valid(b.spec))
    with b.acquire() as slot:
        whole = np.frombuffer(slot, "u1")
        whole[: len(table)] = np.frombuffer(table, "u1")
        for name in names:
            for read in (slot.__getitem__, slot.numpy):
                with suppress(*allowed):
                    _within(read(name), whole)
            if "torch" in sys.modules:
                with suppress(*allowed):
                    _within(slot.torch(name).numpy(), whole)
    del whole

    # between publication and arrival, by a producer who still has a view
    for copy in (False, True):
        with b.claim() as slot:
            slot.write(_valid(b.spec))
            raw = memoryview(slot)
        raw[: len(table)] = table
        with suppress(*allowed):
            item = b.get(copy=copy)
            for name in names:
                item[name].tobytes()
                assert copy or item[name].nbytes <= 1 << 16
        item = None

    # while it is written
    with suppress(*allowed), b.claim() as slot:
        slot.write(_valid(b.spec))
        memoryview(slot)[: len(table)] = table
        for name in names:
            with suppress(*allowed):
                slot[name]
    item = b.try_acquire()
    del item, raw
    s = b.stats()
    assert (s["free"], s["ready"], s["reading"], s["writing"]) == (2, 0, 0, 0)


@pytest.mark.parametrize(
    "words",
    [
        [128, 10, 3],
        [192, 2, 3],
        [256, 0, 3],
        [64, 11, 3],
        [64, 2, 4],
        [64, -1, 3],
        [65, 2, 3],
        [1 << 40, 2, 3],
        [-64, 2, 3],
        [64, 1 << 62, 3],
    ],
)
def test_a_corrupt_shape_table_is_named(words: list[int]) -> None:
    with st.TensorBuffer.create(CORRUPTIBLE["bounded"], slots=1) as b:
        b.put(_valid(b.spec))
        with b.acquire() as slot:
            memoryview(slot)[:24] = np.array(words, "i8").tobytes()
            with pytest.raises(st.ShmLayoutError, match=re.escape("field 'x': shape table")) as caught:
                slot["x"]
            assert isinstance(caught.value, OSError) and "corrupt" in str(caught.value)
            assert slot["n"] == 1  # the others are not touched by it
        assert b.stats()["free"] == 1
