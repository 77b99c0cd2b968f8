"""shmtensor.spec: dtypes, fields, layout, names in and out, and the JSON form against hostile bytes."""

from __future__ import annotations

import contextlib
import copy
import datetime
import itertools
import json
import math
import pickle
import subprocess
import sys
import types
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shmtensor.errors import ShmLayoutError
from shmtensor.spec import MAX_FIELDS, MAX_JSON, MAX_NBYTES, DType, Field, Placed, Spec, resolve_dtype

# name: (bytes, DLPack code and bits)
NUMPY_AND_TORCH = {
    "bool": (1, (6, 8)),
    "int8": (1, (0, 8)),
    "int16": (2, (0, 16)),
    "int32": (4, (0, 32)),
    "int64": (8, (0, 64)),
    "uint8": (1, (1, 8)),
    "uint16": (2, (1, 16)),
    "uint32": (4, (1, 32)),
    "uint64": (8, (1, 64)),
    "float16": (2, (2, 16)),
    "float32": (4, (2, 32)),
    "float64": (8, (2, 64)),
    "complex64": (8, (5, 64)),
    "complex128": (16, (5, 128)),
}
TORCH_ONLY = {
    "complex32": (4, (5, 32)),
    "bfloat16": (2, (4, 16)),
    "float8_e4m3fn": (1, (10, 8)),
    "float8_e4m3fnuz": (1, (11, 8)),
    "float8_e5m2": (1, (12, 8)),
    "float8_e5m2fnuz": (1, (13, 8)),
    "float8_e8m0fnu": (1, (14, 8)),
    "float4_e2m1fn_x2": (1, None),
}
FIRST_CLASS = {**NUMPY_AND_TORCH, **TORCH_ONLY}
RECORD = [("a", "<f4", (2, 3)), ("b", [("c", "u1"), ("d", ">i8")])]
NUMPY_ONLY = [
    *(
        "S10",
        "U5",
        "V8",
        ">i4",
        ">f8",
        ">c16",
        "M8[ns]",
        "M8",
        "m8[25s]",
        ">m8[D]",
        "longdouble",
        "clongdouble",
    ),
    *("S2147483647", "f4,i8", RECORD),
    np.dtype(RECORD, align=True),
    np.dtype({"names": ["x", "y"], "formats": ["u1", "f8"], "offsets": [3, 16], "itemsize": 40}),
    np.dtype([("\ud800 \u2603 '\"", "u1")]),
]
NESTED = {"image": ((3, 224, 224), "uint8"), "obs": {"state": (7, "float32"), "deep": {"x": ((), ">i4")}}}
FRAGMENTS = ["{}", "[]", "null", "true", "-1", "0", '"', "1e999", "NaN", "9" * 30, '"O"', '""', ".", "\ud800"]


# --- dtypes


@pytest.mark.parametrize("name", FIRST_CLASS)
def test_first_class_dtype(name: str) -> None:
    d = resolve_dtype(name)
    assert (d.name, d.torch, d.itemsize, d.dlpack) == (name, name, *FIRST_CLASS[name])
    assert resolve_dtype(f"torch.{name}") is d
    assert resolve_dtype(d) is d
    assert {d: 1}[copy.deepcopy(d)] == 1
    assert pickle.loads(pickle.dumps(d)) == d


@pytest.mark.parametrize("name", NUMPY_AND_TORCH)
def test_numpy_dtype(name: str) -> None:
    d = resolve_dtype(name)
    assert d.numpy == np.dtype(name)
    for x in (np.dtype(name), np.dtype(name).type, np.dtype(name).str, np.dtype(name, metadata={"x": 1})):
        assert resolve_dtype(x) is d
    if d.itemsize > 1:
        swapped = resolve_dtype(np.dtype(name).newbyteorder("S"))
        assert (swapped.name[1:], swapped.dlpack, swapped.torch) == (np.dtype(name).str[1:], None, None)


@pytest.mark.parametrize(
    ("x", "name"),
    [
        (int, "int64"),
        (float, "float64"),
        (complex, "complex128"),
        (bool, "bool"),
        ("float", "float64"),
        ("torch.float", "float32"),
        ("torch.half", "float16"),
        ("torch.double", "float64"),
        ("torch.long", "int64"),
        ("torch.int", "int32"),
        ("torch.short", "int16"),
        ("torch.chalf", "complex32"),
        ("torch.cfloat", "complex64"),
        ("torch.cdouble", "complex128"),
        ("longlong", "int64"),
        ("f4", "float32"),
    ],
)
def test_dtype_alias(x: Any, name: str) -> None:
    assert resolve_dtype(x) is resolve_dtype(name)


@pytest.mark.parametrize("x", NUMPY_ONLY, ids=lambda x: ascii(x)[:40])
def test_numpy_only_dtype(x: Any) -> None:
    d = resolve_dtype(x)
    assert d.numpy == np.dtype(x)
    assert (d.itemsize, d.dlpack, d.torch) == (np.dtype(x).itemsize, None, None)
    assert resolve_dtype(d.name) == d
    spec = Spec(((2,), x))
    again = Spec.loads(spec.dumps())
    assert again == spec
    assert again.fields[0].dtype.numpy == np.dtype(x)
    assert again.fields[0].dtype.numpy.fields == np.dtype(x).fields


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ("O", "pickle the object"),
        (object, "fixed size"),
        ([("a", "O")], "fixed size"),
        (datetime.date, "fixed size"),
        ("S", "no size"),
        (str, "no size"),
        ("V", "no size"),
        ([], "no size"),
        ("3f4", r"\(3,\)"),
        (None, "missing"),
        ("unit8", "did you mean 'uint8'"),
        ("torch.flaot32", "did you mean 'float32'"),
        ("torch.", "not supported"),
        ("torch.Tensor", "not supported"),
        ("torch.qint8", "not supported"),
        ("", "dtype"),
        ("bfloat", "did you mean 'bfloat16'"),
        ("[" * 100_000, "no dtype"),
        ("[]", "no dtype"),
        ("f4,,", "no dtype"),
        (7, "no dtype"),
        (3.5, "no dtype"),
        (np.dtype({"names": ["x"], "formats": ["u1"], "titles": ["t"]}), "not supported"),
        (np.dtype({"names": ["x", "y"], "formats": ["u4", "u4"], "offsets": [0, 2]}), "overlapping"),
    ],
    ids=lambda x: ascii(x)[:40],
)
def test_bad_dtype(x: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        resolve_dtype(x)
    with pytest.raises(TypeError, match=f"field 'x': .*({says}|shape alone)"):
        Spec({"x": (3, x)})


def test_string_dtype_is_refused() -> None:
    strings = getattr(np.dtypes, "StringDType", None) if hasattr(np, "dtypes") else None
    if strings is None:
        pytest.skip("needs numpy 2")
    with pytest.raises(TypeError, match="Python objects"):
        resolve_dtype(strings())


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_numpy_dtype_appears_with_ml_dtypes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    d = resolve_dtype(name)
    monkeypatch.delitem(sys.modules, "ml_dtypes", raising=False)
    assert d.numpy is None
    fake = types.ModuleType("ml_dtypes")
    monkeypatch.setitem(sys.modules, "ml_dtypes", fake)
    assert d.numpy is None, "an old ml_dtypes without this type"
    monkeypatch.setattr(fake, name, np.uint16, raising=False)
    assert d.numpy == np.dtype("uint16")


def test_real_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in set(TORCH_ONLY) & set(dir(ml_dtypes)):
        d = resolve_dtype(getattr(ml_dtypes, name))
        assert d is resolve_dtype(name)
        assert d.numpy == np.dtype(getattr(ml_dtypes, name))
        assert d.numpy is not None
        assert d.numpy.itemsize == d.itemsize
        with pytest.raises(TypeError):
            resolve_dtype([("a", getattr(ml_dtypes, name))])
    with pytest.raises(TypeError, match="use uint8 and view"):
        resolve_dtype(ml_dtypes.int4)


def test_torch_dtypes() -> None:
    torch = pytest.importorskip("torch")
    for name in FIRST_CLASS:
        if not hasattr(torch, name):
            continue
        t = getattr(torch, name)
        d = resolve_dtype(t)
        assert d is resolve_dtype(name)
        assert d.torch is not None
        assert getattr(torch, d.torch) is t
        assert d.itemsize == t.itemsize
        assert Field((2,), t) == Field((2,), name)
    for name in ("half", "float", "double", "chalf", "cfloat", "cdouble", "short", "int", "long"):
        assert resolve_dtype(f"torch.{name}") is resolve_dtype(getattr(torch, name))
    for bad in (torch.qint8, torch.bits8, torch.zeros(2), torch.Size([2]), torch.strided):
        with pytest.raises(TypeError):
            resolve_dtype(bad)


def test_dlpack_codes_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    consume = pytest.importorskip("torch.utils.dlpack").from_dlpack
    for name in NUMPY_AND_TORCH:
        array = np.zeros(2, name)
        assert str(consume(array).dtype) == f"torch.{name}"
    shape = torch.Size([3, 4])
    assert Spec((shape, torch.bfloat16)).fields[0].nbytes == 24


def test_torch_is_not_imported() -> None:
    code = "import sys, shmtensor.spec as s; s.Spec({'x': (3, 'torch.bfloat16')}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- fields


def test_field() -> None:
    f = Field([None, np.int64(4)], np.float32, max_shape=(np.uint8(9), 4))
    assert (f.shape, f.dtype.name, f.max_shape) == ((None, 4), "float32", (9, 4))
    assert all(type(n) is int for n in (f.shape[1], *(f.max_shape or ())))
    assert eval(repr(f)) == f
    assert pickle.loads(pickle.dumps(f)) == f
    assert Field(5, "u1").shape == (5,)
    assert Field((), "u1").shape == ()
    assert Field([None], "u1", max_shape=7).max_shape == (7,)
    assert Field((0,) * 32, "u1").shape == (0,) * 32
    assert Field((MAX_NBYTES,), "u1").shape == (MAX_NBYTES,)
    with pytest.raises(AttributeError):
        f.shape = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        (("uint8", (3,)), TypeError, r"order is \(shape, dtype\)"),
        ((np.uint8, 3), TypeError, "order"),
        ((None, "u1"), TypeError, "shape must be"),
        ((True, "u1"), TypeError, "shape must be"),
        (((2, False), "u1"), TypeError, "shape must be"),
        (((2, np.True_), "u1"), TypeError, "shape must be"),
        (((2.0,), "u1"), TypeError, "shape must be"),
        ((("3",), "u1"), TypeError, "shape must be"),
        (({3}, "u1"), TypeError, "shape must be"),
        (((-1, 3), "u1"), ValueError, r">= 0 or None \(dynamic\)"),
        (((1,) * 33, "u1"), ValueError, "at most 32"),
        (((2**47 + 1,), "u1"), ValueError, "larger than"),
        (((2**44 + 1,), "f8"), ValueError, "larger than"),
        (((2**30,) * 32, "u1"), ValueError, "larger than"),
        (((0, 2**60), "u1"), ValueError, "larger than"),
        (((None, 2**60), "u1"), ValueError, "larger than"),
        (((10**5000,), "u1"), ValueError, "dimensions|larger|digits"),
        (((3,), "u1", (3,)), ValueError, "no dynamic dimension"),
        (((), "u1", ()), ValueError, "no dynamic dimension"),
        (((None, 3), "u1", (5, 4)), ValueError, "repeat the fixed"),
        (((None, 3), "u1", (5,)), ValueError, "repeat the fixed"),
        (((None, 3), "u1", (None, 3)), TypeError, "max_shape must be"),
        (((None, 3), "u1", (-5, 3)), ValueError, "max_shape must consist of ints >= 0"),
        (((None, 3), "u1", (2**47, 3)), ValueError, "larger than"),
        (((3,), "O"), TypeError, "Python objects"),
    ],
)
def test_bad_field(args: tuple[Any, ...], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Field(*args)
    if len(args) == 2:
        with pytest.raises(error, match=f"field 'a.b': .*{says}"):
            Spec({"a": {"b": args}})


# --- layout


def test_layout() -> None:
    spec = Spec(
        {
            "image": ((3, 5, 7), "uint8"),
            "obs": {"tokens": Field((None,), "int32", max_shape=10), "text": ((None, 2), "float64")},
            "label": ((), "int64"),
            "none": ((0, 4), "bool"),
        }
    )
    u1, i4, f8, i8, b1 = map(resolve_dtype, ("uint8", "int32", "float64", "int64", "bool"))
    assert spec.table_nbytes == 16 + 24
    assert spec.fields == (
        Placed("image", u1, (3, 5, 7), None, 64, 105, -1),
        Placed("obs.tokens", i4, (-1,), (10,), 192, 40, 0),
        Placed("obs.text", f8, (-1, 2), None, -1, -1, 16),
        Placed("label", i8, (), None, 256, 8, -1),
        Placed("none", b1, (0, 4), None, 320, 0, -1),
    )
    assert (spec.nbytes, spec.single, spec.dynamic, spec.growable) == (320, False, True, True)
    assert spec.tree == {
        "image": "image",
        "obs": {"tokens": "obs.tokens", "text": "obs.text"},
        "label": "label",
        "none": "none",
    }
    assert repr(spec) == (
        "Spec(image: uint8[3,5,7], obs.tokens: int32[<=10], obs.text: float64[?,2], label: int64[], none: bool[0,4])"
    )


@pytest.mark.parametrize("user", [((4,), "f4"), [[4], "f4"], Field(4, "f4"), (np.int32(4), np.float32)])
def test_single_field(user: Any) -> None:
    spec = Spec(user)
    assert spec.fields == (Placed("", resolve_dtype("float32"), (4,), None, 0, 16, -1),)
    assert (spec.single, spec.tree, spec.nbytes, spec.table_nbytes) == (True, None, 64, 0)
    assert not spec.dynamic
    assert not spec.growable
    assert spec.flatten(user) == [user]
    assert spec.pack([user]) is user
    assert repr(spec) == "Spec(float32[4])"
    with pytest.raises(TypeError, match="single field"):
        spec.flatten({"": user})


def test_only_unbounded() -> None:
    spec = Spec(((None,), "f4"))
    assert (spec.nbytes, spec.table_nbytes, spec.growable) == (64, 16, True)
    assert repr(spec) == "Spec(float32[?])"


def test_parse_eq_hash_pickle() -> None:
    spec = Spec(NESTED)
    assert Spec.parse(spec) is spec
    assert Spec.parse(NESTED) == spec == Spec(spec) == pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec)
    assert hash(Spec(NESTED)) == hash(spec)
    assert Spec(spec).fields == spec.fields
    other = {"obs": NESTED["obs"], "image": NESTED["image"]}
    assert Spec(other) != spec, "the order of fields is part of the layout"
    assert spec != NESTED
    assert spec != Spec(NESTED["image"])
    assert len(repr(Spec({f"f{i}": (1, "u1") for i in range(500)}))) < 500


@pytest.mark.parametrize(
    ("user", "error", "says"),
    [
        ({}, ValueError, "^the dict of fields is empty: name at least one, as in"),
        ({"a": {}}, ValueError, "^field 'a': the dict of fields is empty"),
        ({"": (1, "u1")}, ValueError, "name must be"),
        ({"a.b": (1, "u1")}, ValueError, "name must be"),
        ({"a\n": (1, "u1")}, ValueError, "name must be"),
        ({"\ud800": (1, "u1")}, ValueError, "name must be"),
        ({3: (1, "u1")}, TypeError, "must be a str"),
        ({"a": None}, TypeError, r"field 'a': expected \(shape, dtype\)"),
        ({"a": (1, "u1", 1)}, TypeError, "expected"),
        ({"a": "u1"}, TypeError, "expected"),
        ("u1", TypeError, r'as in \(\(3, 224, 224\), "uint8"\), not \'u1\''),
        (None, TypeError, "expected"),
        ({"a": (3, 224)}, TypeError, r"field 'a': expected \(shape, dtype\).*: \(\(3, 224\), \"float32\"\)$"),
        ({"a": [3, 4]}, TypeError, r"shape alone: \(\(3, 4\), \"float32\"\)$"),
        ((3, 224, 224), TypeError, r"shape alone: \(\(3, 224, 224\), \"float32\"\)$"),
        ((3,), TypeError, r"shape alone: \(\(3,\), \"float32\"\)$"),
        ((None, np.int64(4)), TypeError, "shape alone"),
        ((3, 224, "uint8"), TypeError, r"brackets of its own, \(\(3, 224\), 'uint8'\)$"),
        ({"a": np.zeros(3)}, TypeError, r"field 'a': .*not an array: \(x.shape, x.dtype\)"),
        ({"a": np.uint8}, TypeError, "as in .* not <class 'numpy.uint8'>"),
        ([], TypeError, "expected"),
        ({"a": (-1, "u1")}, ValueError, "field 'a': shape"),
        ({"a": (1, "u1"), "b": (2**47, "u1")}, ValueError, "an item takes"),
        ({f"f{i}": (1, "u1") for i in range(MAX_FIELDS + 1)}, ValueError, "more than 4096"),
        ({f"{i}" + "x" * 300: (1, "u1") for i in range(MAX_FIELDS)}, ValueError, "bytes of JSON"),
    ],
)
def test_bad_spec(user: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Spec(user)


def test_nesting_limit() -> None:
    def nest(depth: int) -> Any:
        user: Any = (1, "u1")
        for _ in range(depth):
            user = {"a": user}
        return user

    spec = Spec(nest(32))
    assert Spec.loads(spec.dumps()) == spec
    for depth in (33, 34, 100_000):
        with pytest.raises(ValueError, match="nested more than 32"):
            Spec(nest(depth))
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(ValueError, match="nested more than 32"):
        Spec(endless)
    assert len(Spec({f"f{i}": (1, "u1") for i in range(MAX_FIELDS)}).fields) == MAX_FIELDS


# --- items in and out


def test_flatten_errors() -> None:
    spec = Spec(NESTED)
    good = {"image": 1, "obs": {"state": 2, "deep": {"x": 3}}}
    assert spec.flatten(good) == [1, 2, 3]
    assert spec.pack([1, 2, 3]) == good
    for flat in ([], [1, 2], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="expected 3 arrays"):
            spec.pack(flat)
    bad: list[tuple[Any, type[Exception], str]] = [
        ({"image": 1}, KeyError, "missing 'obs'; the fields are: image, obs"),
        ({**good, "imgae": 1}, KeyError, r"unknown 'imgae' \(did you mean 'image'\?\); the fields are"),
        ({**good, "obs": {"stat": 1, "deep": 1}}, KeyError, "field 'obs': missing 'state', unknown 'stat'"),
        ({**good, "obs": {"state": 2, "deep": {"x": 3, 5: 3}}}, KeyError, "field 'obs.deep': unknown 5"),
        ({**good, "obs": 7}, TypeError, "field 'obs': expected a dict, not int"),
        ([1, 2, 3], TypeError, "expected a dict, not list"),
        (np.zeros(3, [("image", "u1")]), TypeError, "expected a dict, not ndarray"),
        (None, TypeError, "expected a dict"),
    ]
    for item, error, says in bad:
        with pytest.raises(error, match=says):
            spec.flatten(item)


def test_flatten_flat() -> None:
    spec = Spec({"a": (1, "u1"), "b": (1, "u1")})
    assert spec.flatten({"b": 2, "a": 1}) == [1, 2]
    assert spec.flatten(OrderedDict(b=2, a=1)) == [1, 2]
    assert spec.flatten(types.MappingProxyType({"b": 2, "a": 1})) == [1, 2]
    made: defaultdict[str, int] = defaultdict(int, a=1, c=3)
    for item in (made, {"a": 1, "c": 3}, {"a": 1, "b": 2, "c": 3}, {"a": 1}, {}):
        with pytest.raises(KeyError):
            spec.flatten(item)
    assert made == {"a": 1, "c": 3}, "looking must not create entries"
    assert Spec({"a": (1, "u1")}).flatten({"a": (1, 2)}) == [(1, 2)]
    assert Spec({"a": (1, "u1")}).pack([(1, 2)]) == {"a": (1, 2)}
    groups = Spec({"o": {"x": (1, "u1")}, "p": {"y": (1, "u1")}})
    assert groups.flatten(groups.pack([1, 2])) == [1, 2]
    with pytest.raises(KeyError):
        groups.flatten({"o.x": 1, "p.y": 2})


# --- random specs

dtypes = st.sampled_from([*FIRST_CLASS, *NUMPY_ONLY])
names = st.text(st.characters(exclude_characters=".", codec="utf-8"), min_size=1, max_size=8).filter(str.isprintable)


@st.composite
def fields(draw: st.DrawFn) -> Field:
    bound = tuple(draw(st.lists(st.integers(0, 20), max_size=5)))
    shape = tuple(draw(st.sampled_from([n, n, None])) for n in bound)
    keep = None in shape and draw(st.booleans())
    return Field(shape, draw(dtypes.filter(lambda d: d != "S2147483647")), bound if keep else None)


def leaves(user: Any) -> list[Field]:
    return [user] if isinstance(user, Field) else [f for sub in user.values() for f in leaves(sub)]


specs = st.recursive(fields(), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=5), max_leaves=20)


@given(specs)
@settings(deadline=None)
def test_layout_of_random_specs(user: Any) -> None:
    spec = Spec(user)
    given_fields = leaves(user)
    spans = [(0, spec.table_nbytes)]
    tables = [(spec.table_nbytes, spec.table_nbytes)]
    for f, p in zip(given_fields, spec.fields, strict=True):
        assert (f.dtype, f.max_shape) == (p.dtype, p.max_shape)
        assert tuple(-1 if n is None else n for n in f.shape) == p.shape
        dynamic, bounded = None in f.shape, None not in f.shape or f.max_shape is not None
        assert (p.table >= 0) == dynamic
        assert (p.offset >= 0) == (p.nbytes >= 0) == bounded
        if dynamic:
            assert p.table % 8 == 0
            tables.append((p.table, p.table + 8 * (1 + len(p.shape))))
        if bounded:
            assert p.offset % 64 == 0
            assert p.nbytes == math.prod(f.max_shape or p.shape) * p.dtype.itemsize
            spans.append((p.offset, p.offset + p.nbytes))
    for ranges, end in ((spans, spec.nbytes), (tables, spec.table_nbytes)):
        ranges.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges)), "overlap"
        assert ranges[0][0] == 0
        assert ranges[-1][1] <= end
    assert spec.nbytes == max(64, spans[-1][1])
    assert spec.dynamic == any(None in f.shape for f in given_fields)
    assert spec.growable == any(p.offset < 0 for p in spec.fields)
    assert spec.dynamic or spec.fields[0].offset == 0


@given(specs)
@settings(deadline=None)
def test_round_trips_of_random_specs(user: Any) -> None:
    spec = Spec(user)
    data = spec.dumps()
    again = Spec.loads(data, spec.nbytes)
    assert again == spec
    assert again.fields == spec.fields
    assert again.tree == spec.tree
    assert [p.dtype.numpy for p in again.fields] == [p.dtype.numpy for p in spec.fields]
    assert repr(again) == repr(spec)
    with pytest.raises(ShmLayoutError, match="but a slot has"):
        Spec.loads(data, spec.nbytes - 1)
    flat = list(range(len(spec.fields)))
    item = spec.pack(flat)
    assert spec.flatten(item) == flat
    assert spec.pack(spec.flatten(item)) == item
    if isinstance(user, dict):
        assert list(item) == list(user)


# --- the JSON form against hostile bytes


def check_loads(data: bytes) -> None:
    """Whatever the bytes: a ShmLayoutError, or a spec that writes itself down as just these bytes."""
    try:
        spec = Spec.loads(data)
    except ShmLayoutError as e:
        assert len(str(e)) < 500
    else:
        assert spec.dumps() == data
        assert 64 <= spec.nbytes <= MAX_NBYTES


def rows(*fields: Any, version: Any = 1) -> str:
    return json.dumps({"version": version, "fields": fields}, separators=(",", ":"))


RICH = Spec({**NESTED, "r": (2, RECORD), "t": Field((None, 2), "m8[ns]", (4, 2)), "u": ((None,), "S3")}).dumps()


def test_loads_form() -> None:
    spec = Spec({"x": ((None, 3), "bfloat16")})
    assert spec.dumps() == rows(["x", "bfloat16", [None, 3], None]).encode()
    assert Spec.loads(RICH).dumps() == RICH
    with pytest.raises(ShmLayoutError, match="version is 2, this build of shmtensor reads 1") as info:
        Spec.loads(rows(["x", "uint8", [1], None], version=2).encode())
    assert isinstance(info.value, OSError)
    assert info.value.errno
    row = ["x", "uint8", [1], None]
    for text, says in (
        (rows(row, row), "more than one field 'x'"),
        (rows(*[row] * (MAX_FIELDS + 1)), "more than 4096 fields"),
        (rows(row) + " ", "canonical"),
        (" " * (MAX_JSON + 1), "longer than"),
    ):
        with pytest.raises(ShmLayoutError, match=says):
            Spec.loads(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "3",
        '"x"',
        "[]",
        "{}",
        '{"version":1}',
        '{"version":1,"fields":{}}',
        "[" * 100_000,
        '{"version":1,"fields":' + "[" * 100_000,
        '{"a":' * 100_000,
        rows(),
        rows(3),
        rows("abcd"),
        rows([]),
        rows(["x", "uint8", [1]]),
        rows(["x", "uint8", [1], None, 0]),
        rows([3, "uint8", [1], None]),
        rows(["x", 3, [1], None]),
        rows(["x", "uint8", "1", None]),
        rows(["x", "uint8", 1, None]),
        rows(["x", "uint8", [-1], None]),
        rows(["x", "uint8", [True], None]),
        rows(["x", "uint8", [1.0], None]),
        rows(["x", "uint8", [float("nan")], None]),
        rows(["x", "uint8", [float("inf")], None]),
        rows(["x", "uint8", [2**48], None]),
        rows(["x", "uint8", [2**64], None]),
        rows(["x", "uint8", [1] * 33, None]),
        rows(["x", "uint8", [None], [-1]]),
        rows(["x", "uint8", [1], [1]]),
        rows(["x", "uint8", None, None]),
        rows(["x", "u1", [1], None]),
        rows(["x", "|u1", [1], None]),
        rows(["x", "O", [1], None]),
        rows(["x", "|O", [1], None]),
        rows(["x", "O8", [1], None]),
        rows(["x", "f4,O", [1], None]),
        rows(["x", "3f4", [1], None]),
        rows(["x", "S0", [1], None]),
        rows(["x", "S9999999999", [1], None]),
        rows(["x", "torch.uint8", [1], None]),
        rows(["x", "M8[__import__('os')]", [1], None]),
        rows(["x", '[["a","O"]]', [1], None]),
        rows(["x", '[["a","f4"]]', [1], None]),
        rows(["x", '[["a", "<f4"]]', [1], None]),
        rows(["x", '[["a","<f4",[1152921504606846976]]]', [1], None]),
        rows(["x", '[["a","<f4",[2],[2]]]', [1], None]),
        rows(["x", '[["a","<f4",[]]]', [1], None]),
        rows(["x", '[[3,"<f4"]]', [1], None]),
        rows(["x", '[[null,"<f4"]]', [1], None]),
        rows(["x", "[]", [1], None]),
        rows(["x", '[["a","<f4"],["a","<f4"]]', [1], None]),
        rows(["x", "[" * 100_000, [1], None]),
        rows(["x", '[["a",' * 40 + '"<f4"' + "]]" * 40, [1], None]),
        rows(["", "uint8", [1], None], ["x", "uint8", [1], None]),
        rows([".", "uint8", [1], None]),
        rows(["x.", "uint8", [1], None]),
        rows(["x" + ".x" * 32, "uint8", [1], None]),
        rows(["x" + ".x" * 100_000, "uint8", [1], None]),
        rows(["x", "uint8", [1], None], ["x", "uint8", [1], None]),
        rows(["x", "uint8", [1], None], ["x.y", "uint8", [1], None]),
        rows(["x\n", "uint8", [1], None]),
        rows(["x", "uint8", [1], None], ["x.y.z", "uint8", [1], None]),
        rows(["\ud800", "uint8", [1], None]),
        rows(["x.y", "uint8", [1], None], ["x", "uint8", [1], None]),
        rows(["x.y", "uint8", [1], None], ["z", "uint8", [1], None], ["x.z", "uint8", [1], None]),
        rows(*(["x", "uint8", [2**47], None] for _ in range(2))),
        rows(["x", "uint8", [1], None]) + " ",
        rows(["x", "uint8", [1], None]) + "\0",
        " " + rows(["x", "uint8", [1], None]),
        "\ufeff" + rows(),
        rows(["x", "uint8", [1], None], version=True),
        rows(["x", "uint8", [1], None], version="1"),
        rows(["x", "uint8", [1], None], version=1.0),
        rows(["x", "uint8", [1], None])[:-1] + ',"more":1}',
        '{"version":1,"version":1' + rows(["x", "uint8", [1], None])[12:],
        "9" * 100_000,
        "x" * (MAX_JSON + 1),
        rows(*(["x" + str(i), "uint8", [1], None] for i in range(MAX_FIELDS + 1))),
    ],
    ids=lambda text: ascii(text[:60]),
)
def test_loads_refuses(text: str) -> None:
    with pytest.raises(ShmLayoutError):
        Spec.loads(text.encode("utf-8", "surrogatepass"))


def test_loads_refuses_other_encodings() -> None:
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        with pytest.raises(ShmLayoutError):
            Spec.loads(RICH.decode().encode(encoding))
    for not_bytes in (RICH.decode(), None, 3):
        with pytest.raises(ShmLayoutError):
            Spec.loads(not_bytes)  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_loads_random_bytes(data: bytes) -> None:
    check_loads(data)


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(RICH)),
            st.integers(0, 12),
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from([t.encode("utf-8", "surrogatepass") for t in FRAGMENTS]),
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=500, deadline=None)
def test_loads_mutated_bytes(edits: list[tuple[int, int, bytes]]) -> None:
    data = RICH
    for at, skip, new in edits:
        data = data[:at] + new + data[at + skip :]
    check_loads(data)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from([*FIRST_CLASS, "S3"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
paths = st.sampled_from(["", "a", "b", "a.b", "a.c", "b.", "a.b.c"])
shapes = st.lists(st.one_of(st.integers(-1, 3), st.none(), st.just(2**47)), max_size=3)
descrs = st.recursive(
    st.sampled_from(["<f4", "|u1", ">i8", "|S3", "|V2", "|O", "<M8[ns]"]),
    lambda inner: st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["a", "b", ""]), inner),
            st.tuples(st.sampled_from(["a", "b", ["t", "c"]]), inner, shapes),
        ),
        max_size=3,
    ),
)
named = st.one_of(
    st.sampled_from([*FIRST_CLASS, ">i4", "S3", "O"]),
    descrs.map(lambda d: json.dumps(d, separators=(",", ":"))),
)
row = st.tuples(paths, named, shapes, st.one_of(st.none(), shapes))


@given(st.lists(st.one_of(row, row, row, json_values), max_size=4))
@settings(max_examples=500, deadline=None)
@example([("", '[["","|V4"],["b","|u1"]]', [1], None)])
@example([("", '[["a","<f4",[0]]]', [1], None)])
def test_loads_near_valid_json(fields: list[Any]) -> None:
    check_loads(json.dumps({"version": 1, "fields": fields}, separators=(",", ":")).encode())


@given(json_values)
def test_loads_any_json(value: Any) -> None:
    check_loads(json.dumps(value, separators=(",", ":")).encode())


@pytest.mark.filterwarnings("ignore")  # of numpy, about some of its own names
@given(st.one_of(json_values, st.tuples(json_values, json_values)))
@settings(max_examples=300, deadline=None)
def test_any_user_spec_is_typeerror_or_valueerror(value: Any) -> None:
    with contextlib.suppress(TypeError, ValueError):
        Spec(value)


@pytest.mark.filterwarnings("ignore")  # of numpy, about some of its own names
@given(st.text(max_size=12))
@settings(max_examples=300)
def test_any_dtype_name_is_typeerror(text: str) -> None:
    with contextlib.suppress(TypeError):
        assert isinstance(resolve_dtype(text), DType)
