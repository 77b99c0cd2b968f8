"""Objects of every kind, drawn by hypothesis: what test_side_by_side.py sends.

A graph is drawn node by node: leaves first, then containers of nodes that are there already, so that some turn up more
than once, then edges back, so that some contain themselves. Its classes are found under this module's name by whoever
receives them.
"""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import sys
import threading
import types
import typing
import uuid
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from hypothesis import strategies as some
from hypothesis.extra import numpy as hnp

try:
    import torch
except ModuleNotFoundError:
    torch = None  # type: ignore[assignment]

__all__ = ["ARRAYS", "BAD", "FAST_GRAPHS", "GRAPHS", "LEAVES", "PARTS", "TENSORS", "graphs"]

# ---- classes ---------------------------------------------------------------------------------------------------------

Pair = collections.namedtuple("Pair", "first second")


class Typed(typing.NamedTuple):
    x: Any
    y: Any = 3


class Counting(collections.namedtuple("Counting", "a b")):
    """Has a __dict__, other than its base."""


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any = None


@dataclasses.dataclass
class Derived(Plain):
    c: Any = dataclasses.field(default=5, repr=False)
    kind: typing.ClassVar[str] = "derived"


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    a: Any
    b: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotted:
    a: Any


@dataclasses.dataclass
class Checked:
    """Its __post_init__ must not run again."""

    a: Any
    start: dataclasses.InitVar[Any] = None
    ran: int = dataclasses.field(default=0, init=False)

    def __post_init__(self, start: Any) -> None:
        self.ran += 1
        self.beside = start


@dataclasses.dataclass
class OwnState:
    a: Any

    def __getstate__(self) -> Any:
        return {"a": self.a, "how": "by its own state"}


@dataclasses.dataclass
class OfAnyKind(typing.Generic[typing.TypeVar("T")]):  # type: ignore[misc]
    a: Any


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Rights(enum.IntFlag):
    READ = 1
    WRITE = 2


class Bare:
    def __init__(self, *args: Any) -> None:
        self.args = args


class Slots:
    __slots__ = ("__dict__", "a", "b")

    def __init__(self, a: Any) -> None:
        self.a = a
        self.beside = 1


class Reduced:
    """Made anew by a call, then by state, items and pairs."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.items: list[Any] = []
        self.pairs: dict[Any, Any] = {}
        self.state: Any = None

    def __reduce__(self) -> Any:
        return Reduced, self.args, self.state, iter(self.items), iter(self.pairs.items())

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[key] = value


class NewArgs:
    def __new__(cls, a: Any, *, b: Any = None) -> NewArgs:
        self = super().__new__(cls)
        self.made_of = (a, b)  # type: ignore[attr-defined]
        return self

    def __getnewargs_ex__(self) -> Any:
        return (self.made_of[0],), {"b": self.made_of[1]}  # type: ignore[attr-defined]


class OwnList(list[Any]):
    pass


class OwnDict(dict[Any, Any]):
    pass


class OwnTuple(tuple[Any, ...]):
    pass


class OwnInt(int):
    pass


class OwnText(str):
    pass


class Registered:
    """Reduced by a function of copyreg's."""

    def __init__(self, a: Any) -> None:
        self.a = a


class OfMultiprocessing(Registered):
    """Reduced by a function of multiprocessing's pickler only."""


@dataclasses.dataclass
class RegisteredPlain:
    """The same, of a class that would travel without pickle."""

    a: Any


copyreg.pickle(Registered, lambda x: (Registered, (("by copyreg", x.a),)))
ForkingPickler.register(OfMultiprocessing, lambda x: (OfMultiprocessing, (("by multiprocessing", x.a),)))
ForkingPickler.register(RegisteredPlain, lambda x: (RegisteredPlain, (("by multiprocessing", x.a),)))


class OnlyOne:
    def __reduce__(self) -> str:
        return "ONLY_ONE"


ONLY_ONE = OnlyOne()


class Calibrated(np.ndarray):
    """A subclass that carries something along."""

    gain: Any = None

    def __array_finalize__(self, obj: Any) -> None:
        self.gain = getattr(obj, "gain", None)

    def __reduce__(self) -> Any:
        function, args, state = super().__reduce__()
        return function, args, (*state, self.gain)

    def __setstate__(self, state: Any) -> None:
        *state, self.gain = state
        super().__setstate__(tuple(state))


class Unit(np.ndarray):
    """A subclass that carries nothing."""


class Refused(Exception):
    pass


class RaisesWhenSent:
    def __init__(self, error: Any = Refused) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("not me")


class RaisesWhenRead:
    def __init__(self, error: Any = Refused) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raise_this, (self.error, "not by you")


def raise_this(kind: Any, *args: Any) -> None:
    raise kind(*args)


class ReducedBadly:
    def __reduce__(self) -> Any:
        return 5


class NotCallable:
    def __reduce__(self) -> Any:
        return 5, ()


def local(kind: str) -> Any:
    """What only this function knows."""

    class Local:
        pass

    @dataclasses.dataclass
    class LocalData:
        a: int = 1

    LocalPair = collections.namedtuple("LocalPair", "a")
    LocalPair.__qualname__ = "local.<locals>.LocalPair"
    return {
        "class": Local,
        "object": Local(),
        "dataclass": LocalData(),
        "named tuple": LocalPair(1),
        "lambda": lambda: 0,
        "function": local,
    }[kind]


# ---- leaves ----------------------------------------------------------------------------------------------------------

NUMBERS = (
    some.integers()
    | some.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**64, 10**400, -(10**4000), 256, 257])
    | some.floats()
    | some.sampled_from([-0.0, 5e-324, float("inf"), float("nan"), -float("nan")])
    | some.complex_numbers()
    | some.decimals(allow_nan=False)  # which has a NaN that cannot be hashed
    | some.fractions()
)
TEXTS = (
    some.text(max_size=20)
    | some.text(some.characters(categories=("Cs", "Lu")), max_size=6)  # lone surrogates
    | some.sampled_from(["", "\0", "ü" * 700, "x" * 1023, "x" * 1024, "\U0001f600" * 300, "\ud800" * 600])
    | some.binary(max_size=20)
    | some.sampled_from([b"", b"y" * 1023, b"y" * 1024, bytes(5000)])
)
TIMES = (
    some.datetimes()
    | some.datetimes(timezones=some.sampled_from([datetime.timezone.utc, datetime.timezone(datetime.timedelta(0, 60))]))
    | some.dates()
    | some.times()
    | some.timedeltas()
)
OTHERS: Any = some.sampled_from(
    [
        Ellipsis,
        NotImplemented,
        int,
        np.ndarray,
        Pair,
        Colour,
        len,
        raise_this,
        Plain.__init__,
        "a".upper,
        Colour.RED,
        Colour.BLUE,
        Rights.READ | Rights.WRITE,
        Rights(0),
        range(3),
        range(10**30, -5, -7),
        slice(None),
        slice(1, None, -2),
        ONLY_ONE,
        OwnInt(5),
        OwnText("text"),
        uuid.UUID(int=5),
        pathlib.PurePosixPath("a/b"),
        decimal.Decimal("NaN123"),
        fractions.Fraction(1, 3),
        np.ma.masked,
        np.dtype("i4"),
        np.float32,
        np.add,
        np.random.default_rng(1).bit_generator.state["state"]["state"],
        types.MappingProxyType,
        functools.partial(int, "7", base=8),
        datetime.timezone.utc,
    ]
)
#: Without NaN, whose hash is its address: sets that have one are in no order.
HASHABLE: Any = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats(allow_nan=False)
    | some.fractions()
    | TEXTS
    | some.sampled_from([Colour.RED, Rights.READ, ONLY_ONE, int]),
    lambda inner: (
        some.tuples(inner)
        | some.tuples(inner, inner)
        | some.frozensets(inner, max_size=3)
        | some.builds(Pair, inner, inner)
        | some.builds(FrozenSlotted, inner)
        | some.builds(Frozen, inner)
    ),
    max_leaves=3,
)
MUTABLE = some.binary(max_size=30).map(bytearray) | some.sampled_from([2000]).map(bytearray)

# ---- arrays ----------------------------------------------------------------------------------------------------------

_CODES = ["?", "i1", "u2", "i4", ">i4", "u8", "f2", "f4", "f8", ">f8", "c8", "c16"]
_CODES += ["M8[us]", "M8[25s]", "m8[D]", "m8", "S1", "S3", "U2", ">U3", "V5"]
_RECORD = [("a", "i1"), ("b", "f8", (2,)), ("c", "S3")]
_DEEP = [("r", np.dtype(_RECORD, align=True)), ("n", "i2")]
DTYPES: Any = (
    some.sampled_from([np.dtype(code) for code in _CODES])
    | hnp.array_dtypes(some.sampled_from([np.dtype(c) for c in _CODES]), max_size=3, allow_subarrays=True)
    | some.sampled_from(
        [
            np.dtype("g"),
            np.dtype("G"),
            np.dtype(_RECORD),
            np.dtype(_RECORD, align=True),
            np.dtype((np.record, _RECORD)),
            np.dtype(_DEEP),
            np.dtype([("r", np.dtype(_RECORD)), ("n", "i2")]),
            np.dtype([("r", (np.record, _RECORD)), ("n", "i2")]),
            np.dtype({"names": ["a", "b"], "formats": ["i4", "u1"], "offsets": [0, 1], "itemsize": 9}),
            np.dtype({"names": ["a"], "formats": ["i4"], "titles": ["a title"]}),
            np.dtype([("ü", "i4")]),
            np.dtype("i4", metadata={"unit": "m"}),
            np.dtype("i4"),
            np.dtype([("a", np.dtype("i4", metadata={"unit": "m"}))]),
            np.dtype([("a", np.dtype("i4"))]),
            np.dtype([]),
        ]
    )
)


def _filled(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array of any bytes that are values of its dtype."""
    out = np.zeros(shape, dtype)
    _fill(out, np.random.default_rng(seed))
    return out


def _fill(x: np.ndarray, rng: np.random.Generator) -> None:
    if x.dtype.names is not None:
        for name in x.dtype.names:
            _fill(x[name], rng)
    elif x.nbytes == 0:
        pass
    elif x.dtype.kind in "?bU" or x.dtype.char in "gG":
        x[...] = rng.integers(0, 2, x.shape) if x.dtype.kind in "?b" else rng.integers(0, 9, x.shape).astype(x.dtype)
    else:
        x[...] = np.frombuffer(rng.bytes(x.nbytes), x.dtype).reshape(x.shape)


def _tiled(x: np.ndarray) -> np.ndarray:
    """Large enough to lie apart."""
    return np.concatenate([x.reshape(-1)] * 40).reshape(4, -1) if 0 < x.size < 200 else x


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy(order="K")
    x.flags.writeable = False
    return x


def _unaligned(x: np.ndarray) -> np.ndarray:
    if x.dtype.hasobject or x.dtype.itemsize == 0:
        return x
    raw = np.empty(x.nbytes + 1, np.uint8)
    out = raw[1:].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


#: What is done to an array before it is sent; each keeps it one.
LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "as it is": lambda x: x,
    "large": _tiled,
    "transposed": lambda x: x.T,
    "Fortran's": np.asfortranarray,
    "axes exchanged": lambda x: np.moveaxis(x, 0, -1) if x.ndim > 2 else x,
    "every other": lambda x: x[::2] if x.ndim else x,
    "backwards": lambda x: x[..., ::-1] if x.ndim else x,
    "expanded": lambda x: np.broadcast_to(x, (3, *x.shape)),
    "0-d": lambda x: x.reshape(-1)[:1].reshape(()) if x.size else x,
    "an axis of one": lambda x: x[None, ..., None],
    "empty": lambda x: x.reshape(-1)[:0].reshape(0, 3),
    "read only": _read_only,
    "unaligned": _unaligned,
}
DRAWN_LAYOUTS = some.lists(some.sampled_from(sorted(LAYOUTS)), max_size=3)


def _laid_out(x: np.ndarray, layouts: list[str]) -> np.ndarray:
    for layout in layouts:
        x = np.asanyarray(LAYOUTS[layout](x))
    return x


#: Arrays of ndarray itself.
ARRAYS: Any = some.builds(
    _laid_out,
    some.builds(_filled, DTYPES, some.lists(some.integers(0, 4), max_size=3).map(tuple), some.integers(0, 9)),
    DRAWN_LAYOUTS,
)


def _masked(x: np.ndarray, mask: list[bool], hard: bool, with_fill: bool) -> Any:
    out = np.ma.MaskedArray(x, np.resize(mask, x.shape), hard_mask=hard)
    if with_fill and x.dtype.kind in "iuf":
        out.fill_value = 7
    return out


def _calibrated(x: np.ndarray, gain: Any) -> Any:
    out = x.view(Calibrated)
    out.gain = gain
    return out


_SIMPLE = some.builds(
    _filled,
    some.sampled_from([np.dtype(code) for code in ("i4", "f8", "?", "U3")]),
    some.lists(some.integers(0, 3), max_size=2).map(tuple),
    some.integers(0, 9),
)
SUBCLASSES: Any = (
    some.builds(_masked, _SIMPLE, some.lists(some.booleans(), min_size=1, max_size=4), some.booleans(), some.booleans())
    | some.builds(_calibrated, _SIMPLE.map(_tiled), some.integers() | some.text(max_size=3))
    | _SIMPLE.map(lambda x: x.view(Unit))
    | some.sampled_from([1, 3]).map(lambda n: np.asmatrix(np.eye(n)))
    | some.sampled_from([1, 300]).map(lambda n: np.rec.fromarrays([np.arange(n), np.ones(n)], names="a,b"))
    | some.sampled_from([2, 90]).map(lambda n: np.char.array(["text"] * n))
)
SCALARS: Any = some.builds(lambda dtype, seed: _filled(dtype, (1,), seed)[0], DTYPES, some.integers(0, 9)) | (
    some.sampled_from([np.str_("ü"), np.bytes_(b"a"), np.float16("nan"), np.float64("nan"), np.datetime64("NaT", "s")])
)
if hasattr(np, "dtypes") and hasattr(np.dtypes, "StringDType"):  # numpy 2
    ARRAYS |= some.builds(
        lambda texts, layouts: _laid_out(np.array(texts, np.dtypes.StringDType()), layouts),  # type: ignore[call-overload]
        some.lists(some.sampled_from(["", "short", "long " * 20]), max_size=4),
        some.lists(some.sampled_from(["large", "every other", "backwards", "0-d"]), max_size=2),
    )

# ---- tensors ---------------------------------------------------------------------------------------------------------


def _tensor(dtype: str, shape: list[int], layout: str, grad: bool) -> Any:
    size = int(np.prod(shape))
    kind = getattr(torch, dtype)
    x = torch.arange(size).remainder(100).to(kind) if dtype != "complex64" else torch.randn(size, dtype=kind)
    x = x.reshape(shape)
    if layout == "transposed":
        x = x.transpose(0, -1) if shape else x
    elif layout == "every other":
        x = x[::2] if shape else x
    elif layout == "expanded":
        x = x[None].expand(3, *shape)
    elif layout == "channels last" and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sparse":
        x = x.to_sparse() if shape and dtype in ("float32", "int64") else x
    elif layout == "csr" and len(shape) == 2 and dtype == "float32" and size:
        x = x.to_sparse_csr()
    if layout == "parameter":
        return torch.nn.Parameter(x, requires_grad=grad and x.is_floating_point())
    if grad and x.layout is torch.strided and (x.is_floating_point() or x.is_complex()):
        x = x.detach().requires_grad_()
    return x


_TENSOR_DTYPES = ["float32", "float64", "float16", "bfloat16", "float8_e5m2"]
_TENSOR_DTYPES += ["complex64", "int64", "int16", "uint8", "bool"]
TENSORS: Any = some.nothing()
if torch is not None:
    TENSORS = some.builds(
        _tensor,
        some.sampled_from(_TENSOR_DTYPES),
        some.sampled_from([[], [0], [3], [2, 3], [30, 40], [2, 3, 4], [1, 2, 5, 5], [2, 0, 3]]),
        some.sampled_from(
            ["plain", "transposed", "every other", "expanded", "channels last", "sparse", "csr", "parameter"]
        ),
        some.booleans(),
    ) | some.sampled_from([torch.float32, torch.Size([2, 3]), torch.device("cpu"), torch.strided])

# ---- graphs ----------------------------------------------------------------------------------------------------------

LEAVES: Any = (
    some.none()
    | some.booleans()
    | NUMBERS
    | TEXTS
    | TIMES
    | OTHERS
    | MUTABLE
    | HASHABLE
    | ARRAYS
    | SUBCLASSES
    | SCALARS
)


def _object_array(parts: list[Any], shape: tuple[int, ...], order: str) -> np.ndarray:
    out = np.empty(shape, object, order)  # type: ignore[call-overload]
    for i in np.ndindex(shape):
        out[i] = parts[sum(i) % len(parts)] if parts else None
    return out


def _record_with_objects(parts: list[Any]) -> np.ndarray:
    out = np.zeros(len(parts), [("n", "i4"), ("what", object)])
    for i, part in enumerate(parts):
        out["n"][i], out["what"][i] = i, part
    return out


def _masked_objects(parts: list[Any]) -> Any:
    return np.ma.MaskedArray(_object_array(parts, (len(parts),), "C"), mask=[i % 2 == 1 for i in range(len(parts))])


def _with_attributes(x: Any, parts: list[Any]) -> Any:
    x.parts = parts
    return x


def _error(kind: Any, parts: list[Any]) -> Any:
    error = kind(*parts)
    error.__cause__ = ValueError("a cause")  # which pickle leaves out
    error.beside = parts[:1]
    return error


def _reduced(parts: list[Any], keys: list[Any]) -> Any:
    out = Reduced(*parts[:1])
    out.items += parts[1:3]
    out.pairs.update(zip(keys, parts[3:]))  # noqa: B905 - as many as there are
    out.state = parts[:1] or None
    return out


def _two(parts: list[Any]) -> tuple[Any, Any]:
    return (*parts, None, None)[:2]


#: Containers: name -> what makes one of its parts, and of some keys.
MAKERS: dict[str, Callable[[list[Any], list[Any]], Any]] = {
    "list": lambda parts, keys: list(parts),
    "tuple": lambda parts, keys: tuple(parts),
    "dict of texts": lambda parts, keys: {f"key {i}": part for i, part in enumerate(parts)},
    "dict": lambda parts, keys: dict(zip(keys, parts)),  # noqa: B905
    "dict of NaN": lambda parts, keys: {float("nan"): parts, float("inf"): keys, -0.0: 1},
    "set": lambda parts, keys: set(keys),
    "frozenset": lambda parts, keys: frozenset(keys),
    "named tuple": lambda parts, keys: Pair(*_two(parts)),
    "typed": lambda parts, keys: Typed(*_two(parts)),
    "counting": lambda parts, keys: _with_attributes(Counting(*_two(parts)), parts),
    "plain": lambda parts, keys: Plain(*_two(parts)),
    "derived": lambda parts, keys: Derived(*_two(parts)),
    "with more": lambda parts, keys: _with_attributes(Plain(1), parts),
    "frozen": lambda parts, keys: Frozen(parts),
    "slotted": lambda parts, keys: Slotted(*_two(parts)),
    "frozen, slotted": lambda parts, keys: FrozenSlotted(tuple(parts)),
    "checked": lambda parts, keys: Checked(*_two(parts)),
    "own state": lambda parts, keys: OwnState(parts),
    "generic": lambda parts, keys: OfAnyKind(parts),
    "bare": lambda parts, keys: Bare(*parts),
    "slots": lambda parts, keys: Slots(parts),
    "reduced": _reduced,
    "new args": lambda parts, keys: NewArgs(parts, b=keys[:1]),
    "own list": lambda parts, keys: _with_attributes(OwnList(parts), keys),
    "own dict": lambda parts, keys: _with_attributes(OwnDict(zip(keys, parts)), parts),  # noqa: B905
    "own tuple": lambda parts, keys: _with_attributes(OwnTuple(parts), parts),
    "registered": lambda parts, keys: Registered(parts),
    "registered there": lambda parts, keys: OfMultiprocessing(parts),
    "registered dataclass": lambda parts, keys: RegisteredPlain(parts),
    "ordered": lambda parts, keys: collections.OrderedDict(zip(keys, parts)),  # noqa: B905
    "default": lambda parts, keys: collections.defaultdict(list, {"parts": parts}),
    "counter": lambda parts, keys: collections.Counter(keys),
    "chain": lambda parts, keys: collections.ChainMap({"a": parts}, {"b": parts}),
    "deque": lambda parts, keys: collections.deque(parts, 3),
    "namespace": lambda parts, keys: types.SimpleNamespace(parts=parts),
    "partial": lambda parts, keys: functools.partial(Bare, *parts, last=keys),
    "iterator": lambda parts, keys: iter(list(parts)),
    "error": lambda parts, keys: _error(ValueError, parts),
    "own error": lambda parts, keys: _error(Refused, parts),
    "object array": lambda parts, keys: _object_array(parts, (len(parts),), "C"),
    "object arrays": lambda parts, keys: _object_array(parts, (2, 3), "F"),
    "0-d object": lambda parts, keys: _object_array(parts, (), "C"),
    "strided objects": lambda parts, keys: _object_array(parts, (5, 2), "C")[::2],
    "object field": lambda parts, keys: _record_with_objects(parts),
    "masked objects": lambda parts, keys: _masked_objects(parts),
}
#: Which can be changed later: those get the edges back.
_CHANGED: dict[Any, Callable[[Any, Any], object]] = {
    list: lambda x, part: x.append(part),
    OwnList: lambda x, part: x.append(part),
    dict: lambda x, part: x.update(itself=part),
    collections.deque: lambda x, part: x.append(part),
    Plain: lambda x, part: setattr(x, "b", part),
    Slotted: lambda x, part: setattr(x, "b", part),
    Bare: lambda x, part: setattr(x, "later", part),
    types.SimpleNamespace: lambda x, part: setattr(x, "later", part),
    np.ndarray: lambda x, part: x.dtype == object and x.ndim == 1 and x.size and x.__setitem__(0, part),
}


_ALL = sorted(MAKERS)


@some.composite
def graphs(draw: Callable[[Any], Any], leaves: Any = LEAVES, most: int = 7, makers: Any = _ALL) -> Any:
    """An object, of which some parts may be shared, or contain it."""
    nodes = draw(some.lists(leaves, min_size=1, max_size=4))
    which = some.integers(0, 2 * most).map(lambda i: nodes[-1 - i % len(nodes)])  # the newest are the likeliest
    for _ in range(draw(some.integers(0, most))):
        make = MAKERS[draw(some.sampled_from(makers))]
        nodes.append(make(draw(some.lists(which, max_size=5)), draw(some.lists(HASHABLE, max_size=3))))
    if draw(some.integers(0, 3)) == 0:
        for node in draw(some.lists(which, min_size=1, max_size=2)):
            if type(node) in _CHANGED:
                _CHANGED[type(node)](node, draw(which))
    return nodes[-1] if draw(some.booleans()) else nodes


#: Those that travel without pickle, as long as no part needs it.
_FAST = ["list", "tuple", "dict of texts", "named tuple", "typed", "plain", "derived", "with more", "frozen", "checked"]
_FAST_LEAVES: Any = (
    some.none()
    | some.booleans()
    | some.integers(-(2**70), 2**70)
    | some.floats()
    | some.complex_numbers()
    | some.text(max_size=5)
    | some.sampled_from(["x" * 1023, "x" * 1024, b"y" * 1024, b"", b"bytes"])
    | ARRAYS
    | SCALARS
)
GRAPHS: Any = graphs()
FAST_GRAPHS: Any = graphs(_FAST_LEAVES, makers=_FAST)

#: What pickle refuses, or what fails when it is read.
BAD: dict[str, Callable[[], Any]] = {
    "lambda": lambda: local("lambda"),
    "local class": lambda: local("class"),
    "object of a local class": lambda: local("object"),
    "local dataclass": lambda: local("dataclass"),
    "local named tuple": lambda: local("named tuple"),
    "generator": lambda: (i for i in range(3)),
    "lock": threading.Lock,
    "thread": threading.current_thread,
    "module": lambda: sys,
    "file": lambda: open(__file__),  # noqa: SIM115
    "memoryview": lambda: memoryview(b"abc"),
    "mapping proxy": lambda: types.MappingProxyType({1: 2}),
    "frame": sys._getframe,
    "raises when sent": RaisesWhenSent,
    "raises TypeError when sent": lambda: RaisesWhenSent(TypeError),
    "raises KeyError when sent": lambda: RaisesWhenSent(KeyError),
    "reduced badly": ReducedBadly,
    "nothing to call": NotCallable,
    "raises when read": RaisesWhenRead,
    "raises EOFError when read": lambda: RaisesWhenRead(EOFError),
    "raises TypeError when read": lambda: RaisesWhenRead(TypeError),
    "error with another signature": lambda: NeedsTwo(1, 2),
}


class NeedsTwo(Exception):
    """Its arguments are not what made it: it cannot be made again."""

    def __init__(self, a: Any, b: Any) -> None:
        super().__init__(a)
        self.b = b


#: Objects some part of which cannot be sent, or read.
PARTS: Any = some.builds(
    lambda make, graph, where: [graph, make(), graph] if where else {"graph": graph, "bad": (make(),)},
    some.sampled_from(sorted(BAD)).map(BAD.__getitem__),
    graphs(most=3),
    some.booleans(),
)
