"""Writing: a copy of exactly the source's bytes, of any layout; what does not fit is refused and loses nothing."""

from __future__ import annotations

import array
import datetime
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from views_support import needs_torch, raw_bytes, slots_by_state

import shmtensor as st
import shmtensor._views

SHAPE = (4, 6)


def _base(dtype: str = "float32") -> np.ndarray:
    return (np.arange(24) % 97 + 1).astype(dtype).reshape(SHAPE)


@pytest.fixture(params=["exchange API", "fallback"])
def torch(request: pytest.FixtureRequest) -> Iterator[Any]:
    """torch, seen once through its C exchange API and once as an older torch without it."""
    module = pytest.importorskip("torch")
    shmtensor._views._use_exchange_api(request.param == "exchange API")
    yield module
    shmtensor._views._use_exchange_api(True)


# Each way in takes (array) and returns the item as it arrives; they must all agree.


def _by_put(b: st.TensorBuffer, x: Any) -> np.ndarray:
    b.put(x)
    return b.get(copy=True)


def _by_write(b: st.TensorBuffer, x: Any) -> np.ndarray:
    with b.claim() as slot:
        slot.write(x)
    return b.get(copy=True)


def _by_field(b: st.TensorBuffer, x: Any) -> np.ndarray:
    with b.claim() as slot:
        slot.write("", x)
    return b.get(copy=True)


def _by_assignment(b: st.TensorBuffer, x: Any) -> np.ndarray:
    with b.claim() as slot:
        slot[""] = x
    return b.get(copy=True)


WAYS = [_by_put, _by_write, _by_field, _by_assignment]

# ---- numpy layouts -------------------------------------------------------------------------------


class _Mine(np.ndarray):
    pass


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, "u1")
    out = raw[1:].view(a.dtype).reshape(a.shape)
    out[...] = a
    assert not out.flags.aligned or a.dtype.kind in "bSu"
    return out


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: a.T.copy().T,
    "negative strides": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "negative rows": lambda a: a[::-1].copy()[::-1],
    "sliced": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "sliced rows": lambda a: np.repeat(a, 2, 0)[1::2],
    "a column of more": lambda a: np.repeat(a[..., None], 2, -1)[..., 0],
    "broadcast rows": lambda a: np.broadcast_to(a[1], SHAPE),
    "broadcast columns": lambda a: np.broadcast_to(a[:, 2:3], SHAPE),
    "broadcast scalar": lambda a: np.broadcast_to(a[3:, 3:4], SHAPE),
    "read-only": _read_only,
    "unaligned": _unaligned,
    "field of records": lambda a: np.rec.fromarrays([a, a], names="p,q")["q"],
    "subclass": lambda a: a.view(_Mine),
    "matrix of memory": lambda a: np.frombuffer(bytearray(a.tobytes()), a.dtype).reshape(SHAPE),
}


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int16", "float32", "float64", "complex128", ">i4", "S3", "U3"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_numpy_of_every_layout(dtype: str, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    source = layout(_base("u1").astype(dtype))
    before = source.tobytes()
    with st.TensorBuffer.create((SHAPE, dtype), slots=2) as b:
        for way in WAYS:
            got = way(b, source)
            assert got.dtype == np.dtype(dtype) and got.tobytes() == before == source.tobytes()


@settings(max_examples=300, deadline=None)
@given(data=some.data())
def test_numpy_of_random_strides(data: some.DataObject) -> None:
    """Any slicing and transposition of any array, of item sizes with and without a fast path."""
    shape = data.draw(some.lists(some.integers(0, 5), min_size=0, max_size=5), label="shape")
    dtype = data.draw(some.sampled_from(["u1", "i2", "f4", "f8", "c16", "S3", "S24"]), label="dtype")
    source = np.arange(int(np.prod(shape, dtype=int))).astype(dtype).reshape(shape)
    source = source.transpose(data.draw(some.permutations(range(source.ndim)), label="axes"))
    for axis in range(source.ndim):
        step = data.draw(some.sampled_from([1, 1, 2, 3, -1, -2]), label="step")
        source = source[(slice(None),) * axis + (slice(None, None, step),)]
    if source.ndim and data.draw(some.booleans(), label="broadcast"):
        source = np.broadcast_to(source[..., None, :], (*source.shape[:-1], 3, source.shape[-1]))
    with st.TensorBuffer.create((source.shape, dtype), slots=1) as b:
        assert _by_put(b, source).tobytes() == source.tobytes()
    out = st.SharedTensor.from_array(source)
    assert out.numpy().tobytes() == source.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_around_the_switches_of_the_copy(order: str, extra: int) -> None:
    """64 KiB: the interpreter's lock is given up; 16 MiB: stores go past the caches."""
    for nbytes in (1 << 16, 1 << 24):
        n = nbytes // 8 + extra
        source = np.arange(2 * n, dtype="u4").reshape(2, n, order=order)
        with st.TensorBuffer.create(((2, n), "u4"), slots=1) as b:
            b.put(source)
            np.testing.assert_array_equal(b.get(), source)


# ---- torch layouts -------------------------------------------------------------------------------


def _mine(torch: Any, t: Any) -> Any:
    class Mine(torch.Tensor):
        pass

    return t.as_subclass(Mine)


TORCH_LAYOUTS: dict[str, Callable[[Any, Any], Any]] = {
    "contiguous": lambda torch, t: t,
    "transposed": lambda torch, t: t.t().contiguous().t(),
    "sliced": lambda torch, t: t.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3],
    "offset": lambda torch, t: torch.cat([t * 0, t])[4:],
    "expanded": lambda torch, t: t[:1].expand(SHAPE),
    "expanded scalar": lambda torch, t: t[2, 2].expand(SHAPE),
    "flipped": lambda torch, t: t.flip(0),
    "as_strided": lambda torch, t: t.as_strided(SHAPE, (1, 2)),
    "requires_grad": lambda torch, t: t.clone().requires_grad_(),
    "computed": lambda torch, t: t.clone().requires_grad_() * 2,
    "Parameter": lambda torch, t: torch.nn.Parameter(t),
    "subclass": _mine,
    "negated": lambda torch, t: torch._neg_view(t),
    "shared": lambda torch, t: t.clone().share_memory_(),
    "inference": lambda torch, t: _inference(torch, t),
    "one of a batch": lambda torch, t: torch.stack([t, t + 1], -1)[..., 1],
}


def _inference(torch: Any, t: Any) -> Any:
    with torch.inference_mode():
        return t * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("layout", TORCH_LAYOUTS.values(), ids=TORCH_LAYOUTS)
def test_torch_of_every_layout(torch: Any, dtype: str, layout: Callable[[Any, Any], Any]) -> None:
    source = layout(torch, torch.from_numpy(_base()).to(getattr(torch, dtype)))
    with st.TensorBuffer.create((SHAPE, dtype), slots=2) as b:
        b.put(source)
        with b.claim() as slot:
            slot.write(source)
        for got in b.get_many(2, torch=True):
            assert raw_bytes(got) == raw_bytes(source)
            assert torch.equal(got, source)


def test_torch_conjugated_and_negated(torch: Any) -> None:
    t = torch.complex(torch.from_numpy(_base()), torch.from_numpy(_base() * 2))
    with st.TensorBuffer.create((SHAPE, "complex64"), slots=1) as b:
        for source in (t.conj(), torch._neg_view(t), torch._neg_view(t.conj()), t.mH.mT, t.conj().t().contiguous().t()):
            b.put(source)
            got = b.get(copy=True, torch=True)
            assert torch.equal(got, source) and not got.is_conj() and not got.is_neg()
    with st.TensorBuffer.create((SHAPE, "float32"), slots=1) as b:
        source = t.conj().imag
        assert source.is_neg()
        b.put(source)
        assert torch.equal(b.get(copy=True, torch=True), source)


def test_torch_channels_last(torch: Any) -> None:
    t = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert not t.is_contiguous()
    with st.TensorBuffer.create(((2, 3, 4, 5), "int64"), slots=1) as b:
        b.put(t)
        got = b.get(torch=True)
        assert torch.equal(got, t) and got.is_contiguous()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "uint16", "float64", "float8_e4m3fn", "float4_e2m1fn_x2"])
def test_torch_of_other_dtypes_and_strides(torch: Any, dtype: str) -> None:
    kind = getattr(torch, dtype, None) or pytest.skip(f"this torch has no {dtype}")
    itemsize = torch.empty(0, dtype=kind).element_size()
    raw = (torch.arange(48 * itemsize) % (2 if dtype == "bool" else 256)).to(torch.uint8)
    source = raw.view(kind).reshape(8, 6)[::2]
    with st.TensorBuffer.create((SHAPE, dtype), slots=1) as b:
        b.put(source)
        assert raw_bytes(b.get(torch=True)) == raw.reshape(8, -1)[::2].contiguous().numpy().tobytes()


def test_writing_a_view_of_a_slot_into_a_slot(torch: Any) -> None:
    with st.TensorBuffer.create((SHAPE, "float32"), slots=3) as b:
        b.put(_base())
        with b.acquire() as taken:
            b.put(taken.torch())
            b.put(taken.numpy())
        for _ in range(2):
            assert b.get(copy=True).tobytes() == _base().tobytes()
        t = st.SharedTensor.from_array(_base())
        for source in (t, t.torch(), t.numpy(), memoryview(t), taken := b.claim()):
            if source is taken:
                source.write(_base())
            with b.claim() as slot:
                slot.write(source)
            assert b.get(copy=True).tobytes() == _base().tobytes()


# ---- Python values -------------------------------------------------------------------------------

FITTING = [
    ("uint8", 7, 7),
    ("uint8", [[1, 2], [3, 255]], [[1, 2], [3, 255]]),
    ("uint8", ((1, 2), (3, 4)), [[1, 2], [3, 4]]),
    ("uint8", True, 1),
    ("int8", -128, -128),
    ("int64", -(2**63), -(2**63)),
    ("uint64", 2**64 - 1, 2**64 - 1),
    ("float32", 7, 7),
    ("float32", 7.5, 7.5),
    ("float16", [[0.5, 1], [2, 3]], [[0.5, 1], [2, 3]]),
    ("float64", float("inf"), float("inf")),
    ("complex64", 1 + 2j, 1 + 2j),
    ("complex64", 3, 3),
    ("bool", True, True),
    ("bool", [[True, False], [False, True]], [[True, False], [False, True]]),
    ("S4", b"abcd", b"abcd"),
    ("U4", "ab", "ab"),
    ("int32", np.int32(5), 5),
    ("M8[s]", np.datetime64("2020-01-01T00:00:00", "s"), np.datetime64("2020-01-01", "s")),
    ("float64", array.array("d", [1, 2]), [1, 2]),
    ("float64", memoryview(np.ones((2, 2))), [[1, 1], [1, 1]]),
    ("uint8", range(3), [0, 1, 2]),
    ("uint8", [], []),
]


@pytest.mark.parametrize(("dtype", "value", "expected"), FITTING, ids=[f"{d} {v!r:.20}" for d, v, _ in FITTING])
def test_python_values_that_fit(dtype: str, value: Any, expected: Any) -> None:
    if isinstance(value, list) and not value:
        dtype = "float64"  # an empty list is of floats, for numpy
    shape = np.shape(expected)
    with st.TensorBuffer.create({"x": (shape, dtype)}, slots=1) as b:
        b.put({"x": value})
        got = b.get(copy=True)["x"]
        assert got.dtype == np.dtype(dtype) and got.shape == shape
        assert np.array_equal(got, expected)


REFUSED = [
    ("uint8", 300, ValueError),
    ("uint8", -1, ValueError),
    ("int8", [128], ValueError),
    ("uint8", [1, 2, 300], ValueError),
    ("int64", 2**63, ValueError),
    ("int64", 2**70, TypeError),
    ("uint64", -1, ValueError),
    ("int32", 7.5, TypeError),
    ("int32", 7.0, TypeError),
    ("int32", [1, 2.5], TypeError),
    ("bool", 0.5, TypeError),
    ("float32", 1j, TypeError),
    ("float32", "1.5", TypeError),
    ("float32", None, TypeError),
    ("float32", object(), TypeError),
    ("float32", {"a": 1}, TypeError),
    ("float32", {1.0}, TypeError),
    ("float32", [None, 1.0], TypeError),
    ("float32", datetime.date(2020, 1, 1), TypeError),
    ("float32", np.float64(1), TypeError),
    ("uint8", np.int64(7), TypeError),
    ("float64", memoryview(np.ones(3, "f4")), TypeError),
    ("S4", b"abcde", ValueError),
    ("U4", "abcde", ValueError),
    ("S4", "abcd", TypeError),
    ("M8[s]", np.datetime64("2020-01-01", "ms"), TypeError),
    ("M8[s]", 5, TypeError),
]


@pytest.mark.parametrize(("dtype", "value", "error"), REFUSED, ids=[f"{d} {v!r:.30}" for d, v, _ in REFUSED])
def test_python_values_that_do_not_fit(dtype: str, value: Any, error: type[Exception]) -> None:
    shape = np.shape(value) if not isinstance(value, (set, dict)) else ()
    with st.TensorBuffer.create({"n": ((), "u1"), "obs": {"x": (shape, dtype)}}, slots=2) as b:
        _refused(b, {"n": 1, "obs": {"x": value}}, error, r"field 'obs\.x'")


@pytest.mark.parametrize("value", [[[1, 2], [3]], [[1], 2]])
def test_ragged_lists(value: Any) -> None:
    with st.TensorBuffer.create({"x": ((2, 2), "f4"), "y": ((None, None), "f4")}, slots=2) as b:
        for item in ({"x": value, "y": [[1.0]]}, {"x": [[1, 2], [3, 4]], "y": value}):
            _refused(b, item, (ValueError, TypeError), None)


def _refused(b: st.TensorBuffer, item: Any, error: Any, match: str | None) -> None:
    """Every way in refuses the item, says why, gives the slot back and goes on working."""
    publishes = b.stats()["publishes"]
    for _ in range(b.slots + 1):  # more often than there are slots to lose
        with pytest.raises(error, match=match):
            b.put(item)
        with pytest.raises(error, match=match), b.claim(timeout=1) as slot:
            slot.write(item)
        with pytest.raises(error, match=match):
            b.put_many([item])
    assert slots_by_state(b) == {"free": b.slots, "writing": 0, "ready": 0, "reading": 0}
    assert b.stats()["publishes"] == publishes
    assert b.try_acquire() is None


# ---- arrays that do not fit ----------------------------------------------------------------------

WRONG_ARRAYS = {
    "dtype": (np.zeros(SHAPE, "f8"), TypeError, r"takes dtype float32, got float64"),
    "byte order": (np.zeros(SHAPE, ">f4"), TypeError, r"takes dtype float32, got >f4"),
    "integers": (np.zeros(SHAPE, "i4"), TypeError, r"takes dtype float32, got int32"),
    "objects": (np.zeros(SHAPE, "O"), TypeError, r"takes dtype float32, got object"),
    "shape": (np.zeros((6, 4), "f4"), ValueError, r"takes shape \(4, 6\), got \(6, 4\)"),
    "size": (np.zeros((4, 7), "f4"), ValueError, r"takes shape \(4, 6\), got \(4, 7\)"),
    "dimensions": (np.zeros((1, 4, 6), "f4"), ValueError, r"takes shape \(4, 6\), got \(1, 4, 6\)"),
    "no dimensions": (np.float32(1), ValueError, r"takes shape \(4, 6\), got \(\)"),
    "number": (1.0, ValueError, r"takes shape \(4, 6\), got \(\)"),
    "more dimensions than a field may have": (np.zeros((1,) * 60, "f4"), ValueError, r"takes shape \(4, 6\), got"),
    "empty": (np.zeros((0, 6), "f4"), ValueError, r"takes shape \(4, 6\), got \(0, 6\)"),
    "record": (np.zeros(SHAPE, [("a", "f4")]), TypeError, r"takes dtype float32"),
    "void of that size": (np.zeros(SHAPE, "V4"), TypeError, r"takes dtype float32"),
}


@pytest.mark.parametrize(("x", "error", "match"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_arrays_that_do_not_fit(x: Any, error: type[Exception], match: str) -> None:
    with st.TensorBuffer.create((SHAPE, "float32"), slots=2) as b:
        _refused(b, x, error, match)
    with st.TensorBuffer.create({"a": ((), "u1"), "x": (SHAPE, "float32")}, slots=2) as b:
        _refused(b, {"a": 0, "x": x}, error, f"field 'x' {match}")
        with b.claim() as slot:  # an error in one field leaves the slot claimed: it can be put right
            slot.write("a", 3)
            with pytest.raises(error, match=match):
                slot.write("x", x)
            with pytest.raises(error, match=match):
                slot["x"] = x
            slot.write("x", _base())
        got = b.get(copy=True)
        assert got["a"] == 3 and got["x"].tobytes() == _base().tobytes()


def _fake(torch: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(10, 6)[6:]


def _freed(torch: Any, offset: int = 0) -> Any:
    t = torch.zeros(4 + offset, 6)[offset:]
    t.untyped_storage().resize_(0)
    return t


def _wrapper(torch: Any) -> Any:
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, SHAPE, dtype=torch.float32)

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return NotImplemented

    return Wrapper()


WRONG_TENSORS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "dtype": (lambda torch: torch.zeros(SHAPE, dtype=torch.float64), r"takes dtype float32, got torch\.float64"),
    "same size": (lambda torch: torch.zeros(SHAPE, dtype=torch.int32), r"takes dtype float32, got torch\.int32"),
    "bfloat16": (lambda torch: torch.zeros(SHAPE, dtype=torch.bfloat16), r"got torch\.bfloat16"),
    "complex": (lambda torch: torch.zeros(SHAPE, dtype=torch.complex64).conj(), r"got torch\.complex64"),
    "meta": (lambda torch: torch.zeros(SHAPE, device="meta"), r"meta"),
    "sparse": (lambda torch: torch.zeros(SHAPE).to_sparse(), r"cannot copy this tensor"),
    "sparse rows": (lambda torch: torch.ones(SHAPE).to_sparse_csr(), r"cannot copy this tensor"),
    "quantized": (lambda torch: torch.quantize_per_tensor(torch.ones(SHAPE), 0.1, 0, torch.qint8), ""),
    "mkldnn": (lambda torch: torch.ones(SHAPE).to_mkldnn(), r"cannot copy this tensor"),
    "nested": (lambda torch: torch.nested.nested_tensor([torch.ones(6)] * 4), ""),
    "jagged": (lambda torch: torch.nested.nested_tensor([torch.ones(6)] * 4, layout=torch.jagged), ""),
    "fake": (_fake, "has no memory"),
    "freed": (_freed, "has no memory"),
    "freed, with an offset": (lambda torch: _freed(torch, 3), "has no memory"),
    "wrapper": (_wrapper, "has no memory"),
    "zeros of autograd": (lambda torch: torch._efficientzerotensor(SHAPE), "has no memory"),
    "shape": (lambda torch: torch.zeros(6, 4), r"takes shape \(4, 6\), got \(6, 4\)"),
    "no dimensions": (lambda torch: torch.tensor(1.0), r"takes shape \(4, 6\), got \(\)"),
    "100 dimensions": (lambda torch: torch.zeros([1] * 100), r"takes shape \(4, 6\), got 100 dimensions"),
    "65 dimensions": (lambda torch: torch.zeros([1] * 65), r"takes shape \(4, 6\), got 65 dimensions"),
    "empty": (lambda torch: torch.zeros(4, 0), r"takes shape \(4, 6\), got \(4, 0\)"),
}


@pytest.mark.parametrize(("make", "match"), WRONG_TENSORS.values(), ids=WRONG_TENSORS)
@pytest.mark.filterwarnings("ignore")  # torch warns of what is a prototype, deprecated or undefined
def test_tensors_that_do_not_fit(torch: Any, make: Callable[[Any], Any], match: str) -> None:
    x = make(torch)
    error = (TypeError, ValueError)
    with st.TensorBuffer.create((SHAPE, "float32"), slots=2) as b:
        _refused(b, x, error, f"the item.*{match}")
        try:
            b.put(x)
        except error as e:
            assert "\n" not in str(e)  # torch's own messages may carry a stack
    with st.TensorBuffer.create({"x": (SHAPE, "float32")}, slots=2) as b:
        _refused(b, {"x": x}, error, f"field 'x'.*{match}")


def test_tensors_inside_torch_func(torch: Any) -> None:
    """Inside a transformation a tensor is a stand-in without memory: refused, not followed."""
    with st.TensorBuffer.create((3, "float32"), slots=1) as b:
        with pytest.raises(TypeError, match="cannot copy this tensor"):
            torch.vmap(lambda t: (b.put(t), t)[1])(torch.ones(2, 3))
        assert slots_by_state(b)["free"] == 1


@needs_torch
def test_a_tensor_for_a_dtype_that_torch_lacks() -> None:
    torch = pytest.importorskip("torch")
    with st.TensorBuffer.create({"x": (3, ">i4")}, slots=1) as b:
        _refused(b, {"x": torch.zeros(3, dtype=torch.int32)}, TypeError, r"field 'x' takes dtype >i4, got torch\.int32")


# ---- names ---------------------------------------------------------------------------------------

NESTED = {"image": ((2, 2), "u1"), "obs": {"state": (3, "f4"), "deep": {"n": ((), "i8")}}}


def _item() -> dict[str, Any]:
    return {
        "image": np.array([[1, 2], [3, 4]], "u1"),
        "obs": {"state": np.array([5, 6, 7], "f4"), "deep": {"n": np.array(8)}},
    }


def _same(got: dict[str, Any]) -> None:
    assert got["image"].tolist() == [[1, 2], [3, 4]]
    assert got["obs"]["state"].tolist() == [5, 6, 7] and got["obs"]["deep"]["n"] == 8


@pytest.fixture
def nested() -> Iterator[st.TensorBuffer]:
    with st.TensorBuffer.create(NESTED, slots=2) as b:
        yield b


def _piecewise(slot: st.Slot) -> None:
    slot["obs"] = _item()["obs"]
    slot.write("image", [[1, 2], [3, 4]])


def _by_path(slot: st.Slot) -> None:
    slot["obs.state"] = [5, 6, 7]
    slot["obs.deep.n"] = 8
    slot["image"][...] = [[1, 2], [3, 4]]


def _by_views(slot: st.Slot) -> None:
    slot["obs"]["deep"]["n"][...] = 8
    slot["obs"]["state"][...] = [5, 6, 7]
    slot.numpy("image")[...] = [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "write",
    [
        lambda slot: slot.write(_item()),
        lambda slot: slot.write(OrderedDict(reversed(_item().items()))),
        lambda slot: slot.write(MappingProxyType(_item())),
        lambda slot: slot.write({"obs": MappingProxyType(_item()["obs"]), "image": _item()["image"]}),
        _piecewise,
        _by_path,
        _by_views,
    ],
)
def test_nested_items(nested: st.TensorBuffer, write: Callable[[st.Slot], None]) -> None:
    with nested.claim() as slot:
        write(slot)
    _same(nested.get())


def _without(*path: str) -> dict[str, Any]:
    item = node = _item()
    for name in path[:-1]:
        node = node[name]
    del node[path[-1]]
    return item


WRONG_NAMES = {
    "missing": (_without("image"), KeyError, "missing 'image'"),
    "missing inside": (_without("obs", "deep", "n"), KeyError, "'obs.deep'.*missing 'n'"),
    "unknown": (_item() | {"imgae": 1}, KeyError, "unknown 'imgae'.*did you mean 'image'"),
    "empty": ({}, KeyError, "missing"),
    "no dict": (np.zeros(3), TypeError, "expected a dict"),
    "no dict inside": (_item() | {"obs": 3}, TypeError, "'obs'.*expected a dict, not int"),
    "none": (None, TypeError, "expected a dict"),
    "wrong inside": (
        _item() | {"obs": {"state": [1, 2], "deep": {"n": 0}}},
        ValueError,
        r"'obs\.state'.*\(3,\), got \(2,\)",
    ),
}


@pytest.mark.parametrize(("item", "error", "match"), WRONG_NAMES.values(), ids=WRONG_NAMES)
def test_names_that_do_not_fit(nested: st.TensorBuffer, item: Any, error: type[Exception], match: str) -> None:
    _refused(nested, item, error, match)
    nested.put(_item())
    _same(nested.get())


def test_writing_to_names_that_are_not_there(nested: st.TensorBuffer, torch: Any) -> None:
    with nested.claim() as slot:
        slot.write(_item())
        for key in ("imgae", "obs.nope", "obs.", "", None, 3, ("image",), ["image"]):
            with pytest.raises((KeyError, ValueError, TypeError)):
                slot.write(key, [[1, 2], [3, 4]])
            with pytest.raises((KeyError, ValueError, TypeError)):
                slot[key] = torch.zeros(2, 2)
        with pytest.raises((KeyError, TypeError)):
            slot["obs"] = {"state": [1, 2, 3]}
        with pytest.raises((KeyError, TypeError)):
            slot["obs"] = 3
        for args in ((), (1, 2, 3)):
            with pytest.raises(TypeError):
                slot.write(*args)
        with pytest.raises(KeyError, match="nope"):
            slot.empty("nope", (1,))
    _same(nested.get())


def test_a_single_array_is_no_dict() -> None:
    with st.TensorBuffer.create((SHAPE, "float32"), slots=2) as b:
        _refused(b, {"x": _base()}, TypeError, "the item")
        with b.claim() as slot:
            with pytest.raises(KeyError, match="without names"):
                slot.write("x", _base())
            slot.write(_base())
        assert b.get(copy=True).tobytes() == _base().tobytes()


# ---- the wrong moment ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["publish", "abort"])
def test_writing_after_the_end(nested: st.TensorBuffer, end: str) -> None:
    slot = nested.claim()
    slot.write(_item())
    getattr(slot, end)()
    for use in (
        lambda: slot.write(_item()),
        lambda: slot.__setitem__("image", 0),
        lambda: slot["image"],
        lambda: slot.torch("image"),
        lambda: slot.empty("image", (2, 2)),
        lambda: memoryview(slot),
        slot.publish,
        slot.abort,
        slot.release,
        slot.__enter__,
    ):
        with pytest.raises(ValueError, match=f"already {end.removesuffix('e')}"):
            use()
    assert nested.stats()["ready"] == (end == "publish")


def test_an_acquired_slot_is_not_written_through_the_slot(nested: st.TensorBuffer) -> None:
    nested.put(_item())
    with nested.acquire() as slot:
        for use in (lambda: slot.write(_item()), slot.publish, slot.abort, lambda: setattr(slot, "tag", 3)):
            with pytest.raises(ValueError, match=r"was acquired, not claimed.*release\(\)"):
                use()
        _same({"image": slot["image"], "obs": slot["obs"]})
    with nested.claim() as slot:
        with pytest.raises(ValueError, match="was claimed, not acquired"):
            slot.release()
        slot.write(_item())


def test_publishing_twice(nested: st.TensorBuffer) -> None:
    with nested.claim() as slot:
        slot.write(_item())
        slot.publish()  # and the end of the block finds nothing to do
    assert nested.stats()["publishes"] == 1
    with nested.claim() as slot:
        slot.abort()
    assert nested.stats()["publishes"] == 1 and len(nested) == 1


@pytest.mark.parametrize("tag", [0, 1, 2**64 - 1])
def test_tags(nested: st.TensorBuffer, tag: int) -> None:
    with nested.claim() as slot:
        slot.write(_item())
        slot.tag = tag
        for wrong in (-1, 2**64, "x"):
            with pytest.raises((OverflowError, TypeError)):
                slot.tag = wrong
        assert slot.tag == tag
    with nested.acquire() as slot:
        assert slot.tag == tag and slot.redelivered == 0
        assert slot.nbytes == nested.spec.nbytes


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_batch_takes_every_layout(layout: Callable[[np.ndarray], np.ndarray]) -> None:
    source = layout(_base())  # four items of six numbers
    with st.TensorBuffer.create({"x": (6, "float32"), "y": ((), "float32")}, slots=4) as b:
        for write in (
            lambda batch: batch.write({"x": source, "y": source[:, 1]}),
            lambda batch: (batch.write("x", source), batch.write("y", source[:, 1])),
        ):
            with b.claim_many(4) as batch:
                write(batch)
            for i in range(4):
                item = b.get(copy=True)
                assert item["x"].tobytes() == source[i].tobytes() and item["y"] == source[i, 1]


@pytest.mark.parametrize("layout", TORCH_LAYOUTS.values(), ids=TORCH_LAYOUTS)
def test_a_batch_takes_every_layout_of_torch(torch: Any, layout: Callable[[Any, Any], Any]) -> None:
    source = layout(torch, torch.from_numpy(_base()))
    with st.TensorBuffer.create((6, "float32"), slots=4) as b:
        with b.claim_many(4) as batch:
            batch.write(source)
        with b.acquire_many(4) as batch:
            assert torch.equal(batch.torch(), source)


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.zeros((3, 6), "f4"), ValueError),
        (np.zeros((4, 5), "f4"), ValueError),
        (np.zeros(6, "f4"), ValueError),
        (np.zeros((4, 6), "f8"), TypeError),
        (np.float32(3), ValueError),
        (None, TypeError),
        ({"x": 1}, TypeError),
    ],
)
def test_batches_that_do_not_fit(x: Any, error: type[Exception]) -> None:
    with st.TensorBuffer.create((6, "float32"), slots=4) as b:
        for _ in range(3):
            with pytest.raises(error, match=r"the item|single"), b.claim_many(4) as batch:
                batch.write(x)
            assert slots_by_state(b)["free"] == 4
        with b.claim_many(4) as batch:
            for args in ((), (1, 2, 3)):
                with pytest.raises(TypeError):
                    batch.write(*args)
            with pytest.raises(KeyError):
                batch.write("x", _base())
            batch.write(_base())
            batch.publish(2)
        assert len(b) == 2 and slots_by_state(b)["free"] == 2
        with b.acquire_many(4) as batch:
            assert len(batch) == 2
            with pytest.raises(ValueError, match="acquired, not claimed"):
                batch.write(_base()[:2])


def test_a_shape_that_grows_with_the_slot(torch: Any) -> None:
    with st.TensorBuffer.create({"x": ((None, 2), "float32"), "n": ((), "i8")}, slots=2) as b:
        for n in (1, 100_000, 0, 3):
            source = torch.arange(4.0 * n).reshape(n, 4)[:, ::2]
            b.put({"x": source, "n": n})
            assert raw_bytes(b.get()["x"]) == raw_bytes(source)
        publishes = b.stats()["publishes"]
        for wrong, error in (
            (torch.zeros(2, 3), ValueError),
            (torch.zeros(2, 2, dtype=torch.float64), TypeError),
            (np.zeros(2, "f4"), ValueError),
            (torch.zeros(2, 2, device="meta"), TypeError),
            ([[1, 2, 3]], ValueError),
        ):
            with pytest.raises(error, match="field 'x'"):
                b.put({"x": wrong, "n": 0})
        assert slots_by_state(b)["free"] == 2 and b.stats()["publishes"] == publishes
        b.put({"x": [[1, 2], [3, 4.5]], "n": 2})
        assert b.get()["x"].tolist() == [[1, 2], [3, 4.5]]
