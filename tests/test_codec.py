"""Any object to bytes and back: what comes out is what pickle would give, and lies where it should."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import enum
import inspect
import pickle
import re
import sys
import threading
import typing
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import same

import shmtensor
from shmtensor._codec import Encoder, decode_from_array, encode_to_array

TREE, PICKLED = 1, 2

Pair = collections.namedtuple("Pair", "first second")


class Typed(typing.NamedTuple):
    x: Any
    y: Any = 3


class Counting(collections.namedtuple("Counting", "a b")):
    made = 0

    def __new__(cls, a: Any, b: Any) -> Counting:
        Counting.made += 1
        return super().__new__(cls, a, b)


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.b, str) and self.b == "refuse":
            raise AssertionError("__post_init__ ran")


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    a: Any


@dataclasses.dataclass
class OwnState:
    a: Any

    def __getstate__(self) -> dict[str, Any]:
        return {"a": ("by its own state", self.a)}


class Colour(enum.Enum):
    RED = 1


class Other:
    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return type(other) is Other and same(self.x, other.x)

    __hash__ = None  # type: ignore[assignment]


def round_trip(x: Any, *, copy: bool = False) -> Any:
    return decode_from_array(encode_to_array(x), copy=copy)


def mode(x: Any) -> int:
    return int(encode_to_array(x)[0])


# ---- what hypothesis makes of it -------------------------------------------------------------------------------------

ARRAYS = hnp.arrays(
    hnp.boolean_dtypes()
    | hnp.integer_dtypes()
    | hnp.floating_dtypes()
    | hnp.complex_number_dtypes()
    | hnp.datetime64_dtypes()
    | hnp.timedelta64_dtypes()
    | hnp.byte_string_dtypes(max_len=5)
    | hnp.unicode_string_dtypes(max_len=5)
    | hnp.array_dtypes(st.sampled_from(["i4", "f8", "u1"]), max_size=3, allow_subarrays=True),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7),
)
SCALARS = hnp.from_dtype(np.dtype("f4")) | hnp.from_dtype(np.dtype("i8")) | hnp.from_dtype(np.dtype("M8[us]"))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(max_size=3000)
    | ARRAYS
    | SCALARS
    | st.sampled_from([Colour.RED, datetime.date(2026, 11, 23), range(3), Ellipsis, int, bytearray(b"xyz")])
)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=8), inner, max_size=5)
        | st.dictionaries(st.integers() | st.booleans() | st.tuples(st.text(max_size=3)), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Typed, inner, inner)
        | st.builds(Plain, inner, inner)
        | st.builds(Frozen, inner)
        | st.builds(Slotted, inner)
        | st.builds(Other, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(OBJECTS, st.booleans())
def test_any_object_comes_back(x: Any, copy: bool) -> None:
    assert same(round_trip(x, copy=copy), x if mode(x) == TREE else pickle.loads(pickle.dumps(x, 5)))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(OBJECTS)
def test_an_encoder_that_is_used_again_leaves_nothing_of_the_last_message(x: Any) -> None:
    encoder = Encoder()
    first = bytes(encode_to_array(x, encoder))
    encode_to_array([np.ones(5000), {"other": object}], encoder)
    again = encode_to_array(x, encoder)
    assert len(again) == len(first)
    assert same(decode_from_array(again), round_trip(x))


def cut(message: np.ndarray, n: int) -> np.ndarray:
    room = np.zeros(n + 64, np.uint8)
    out = room[-room.ctypes.data % 64 :][:n]
    out[:] = message[:n]
    return out


# Without classes: those are named by a pickle, which is trusted, as multiprocessing trusts it.
TREES = [
    {"a": np.arange(300), "b": [1, 2.5, "text", None, (True, b"bytes")], "c": np.float32(2)},
    [np.zeros((40, 50)).T, {"x": np.ones(3)}, [[[]]]],
]


@pytest.mark.parametrize("x", TREES, ids=["dict", "list"])
def test_a_message_that_was_cut_off_is_an_error(x: Any) -> None:
    message = encode_to_array(x)
    assert message[0] == TREE
    stream = 24 + int(message[8:16].view(np.uint64)[0])
    for n in [*range(stream), (len(message) + stream) // 2]:
        with pytest.raises((shmtensor.ShmLayoutError, UnicodeDecodeError)):
            decode_from_array(cut(message, n))


@pytest.mark.parametrize("x", TREES, ids=["dict", "list"])
def test_a_message_that_was_changed_is_an_error_or_another_object(x: Any) -> None:
    message = encode_to_array(x)
    stream = 24 + int(message[8:16].view(np.uint64)[0])
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(5000):
        changed = cut(message, len(message))
        where = rng.integers(1, stream, rng.integers(1, 4))
        changed[where] = rng.integers(0, 256, len(where))
        try:
            repr(decode_from_array(changed))
        except (shmtensor.ShmLayoutError, UnicodeDecodeError, ImportError, AttributeError):
            wrong += 1
    assert wrong > 1000


# ---- which way -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        None,
        1,
        -(2**63),
        2**63 - 1,
        1j,
        "ü",
        b"",
        [],
        (),
        {},
        np.zeros(3),
        np.float16(1),
        Pair(1, 2),
        Typed(1),
        Plain(1),
    ],
)
def test_exact_types_go_without_pickle(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    round_trip(x)  # classes are named once
    monkeypatch.setattr(pickle, "loads", None)
    message = encode_to_array(x)
    assert message[0] == TREE
    assert same(decode_from_array(message), x)


@pytest.mark.parametrize(
    "x",
    [
        2**63,
        "\ud800",
        {1: 2},
        Slotted(1),
        OwnState(1),
        Colour.RED,
        np.zeros(1, object),
        np.ma.array([1]),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        Other(1),
        {1, 2},
        True.__class__,
    ],
    ids=repr,
)
def test_others_go_by_pickle(x: Any) -> None:
    assert mode(x) == PICKLED
    back = round_trip(x)
    assert type(back) is type(x)
    assert same(back, pickle.loads(pickle.dumps(x)))


def test_nothing_of_a_class_runs_again() -> None:
    plain = Plain(1)
    plain.b = "refuse"
    assert round_trip(plain).b == "refuse"
    made = Counting.made
    assert round_trip(Counting(1, 2)) == (1, 2)
    assert Counting.made <= made + 2  # once here, and once by pickle, which calls __new__


def test_attributes_beside_the_fields_come_along() -> None:
    x = Plain(1)
    x.extra = [5]  # type: ignore[attr-defined]
    assert round_trip(x).extra == [5]


def test_classes_that_cannot_be_found() -> None:
    """What is raised is what pickle raises."""
    Local = collections.namedtuple("Local", "a")
    LocalData = dataclasses.make_dataclass("LocalData", ["a"])
    LocalData.__qualname__ = "f.<locals>.LocalData"
    Elsewhere = dataclasses.make_dataclass("Elsewhere", ["a"])
    Elsewhere.__module__ = "no_such_module"
    for x in (Local(1), LocalData(1), Elsewhere(1)):
        with pytest.raises((pickle.PicklingError, AttributeError)) as pickles:
            pickle.dumps(x)
        with pytest.raises(pickles.type, match=re.escape(str(pickles.value))):
            encode_to_array(x)
    Lost = collections.namedtuple("Lost", "a")
    Lost.__module__, Lost.__qualname__ = __name__, "Lost"
    globals()["Lost"] = Lost
    message = encode_to_array(Lost(1))
    del globals()["Lost"]
    with pytest.raises(AttributeError):
        decode_from_array(message)


# ---- identity --------------------------------------------------------------------------------------------------------


def test_what_is_shared_stays_shared() -> None:
    part, array = [1], np.arange(1000)
    a, b, (c, d), e = round_trip([part, part, (array, array), {"part": part}])
    assert a is b is e["part"]
    assert c is d
    assert a is not part


@pytest.mark.parametrize("size", [3, 1000])
def test_an_array_that_is_shared_is_written_once_and_without_pickle(size: int) -> None:
    array = np.arange(size)
    once, thrice = encode_to_array([array]), encode_to_array([array, {"again": array}, array])
    assert thrice[0] == TREE
    assert len(thrice) < len(once) + 100
    a, b, c = decode_from_array(thrice)
    assert a is b["again"] is c
    assert same(a, array)


@pytest.mark.parametrize("x", ["x" * 1024, "\u00fc" * 5000, b"y" * 1024])
def test_a_long_text_that_is_shared_is_written_once(x: Any) -> None:
    once, often = encode_to_array([x]), encode_to_array([x, {"again": x}, *[x] * 100, x[:1000]])
    assert often[0] == TREE
    assert len(often) < len(once) + 3000
    a, b, *rest, short = decode_from_array(often)
    assert all(y is a for y in [b["again"], *rest])
    assert (a, short) == (x, x[:1000])


@pytest.mark.parametrize("n", [3, 20, 300, 5000])
def test_of_many_things_each_is_found_again(n: int) -> None:
    parts = [[i] for i in range(n)]
    encoder = Encoder()
    alone = bytes(encode_to_array([parts[0], parts[1]], encoder))
    message = encode_to_array([parts, parts[::-1]], encoder)
    assert message[0] == TREE
    forth, back = decode_from_array(message)
    assert forth == parts
    assert all(a is b for a, b in zip(forth, reversed(back), strict=True))
    assert bytes(encode_to_array([parts[0], parts[1]], encoder)) == alone  # of those nothing is known any more


@pytest.mark.parametrize("n", [0, 20, 5000])
def test_a_cycle_around_many_things_is_found(n: int) -> None:
    x: list[Any] = [[i] for i in range(n)]
    x.append(x)
    message = encode_to_array(x)
    assert message[0] == PICKLED
    back = decode_from_array(message)
    assert back[n] is back
    assert back[:n] == x[:n]


def test_an_encoder_looks_at_each_array_s_own_dtype() -> None:
    encoder = Encoder()
    named = np.zeros(3, [("a", "i4"), ("b", "f8")])
    arrays = [named, np.ones(3), np.ones(3), np.ones(3, "f4"), named.copy(), np.ones(3, ">f8"), named[:2]]
    for _ in range(2):
        assert same(decode_from_array(encode_to_array(arrays, encoder)), arrays)
        assert all(same(decode_from_array(encode_to_array(x, encoder)), x) for x in arrays)
        named.dtype.names = ("c", "d")  # in place: the dtype is the same object


def test_what_is_equal_and_not_shared_stays_apart() -> None:
    a, b = round_trip([[1], [1]])
    assert a is not b


def test_cycles() -> None:
    x: list[Any] = [1]
    x.append({"self": x})
    back = round_trip(x)
    assert back[1]["self"] is back
    holder = Plain(None)
    holder.a = holder
    back = round_trip(holder)
    assert back.a is back


def test_depth_and_width() -> None:
    wide = {"leaf": [np.full(2, i) for i in range(10_000)], "n": list(range(10_000))}
    assert same(round_trip(wide), wide)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        encode_to_array(deep)
    assert round_trip([1]) == [1]


def from_deep_below(calls: int, what: Any) -> Any:
    """What is returned by what was called after as many calls."""
    return what() if calls == 0 else from_deep_below(calls - 1, what)


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: (x, 1), Plain])
def test_what_was_sent_can_be_read_by_whoever_is_deep_in_calls(wrap: Any) -> None:
    """As a pickle can: to read one takes no more calls for what is deeper."""
    deep: Any = np.zeros(2000)
    for _ in range(150):
        deep = wrap(deep)
    message = encode_to_array(deep)
    room = sys.getrecursionlimit() - len(inspect.stack(0)) - 150
    back = from_deep_below(room, lambda: decode_from_array(message))
    assert same(back, deep)


def test_generators_and_other_things_that_cannot_be_sent() -> None:
    with open(__file__) as file, pytest.raises(TypeError):
        encode_to_array(file)
    for x in ((i for i in range(3)), lambda: 1):
        with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
            encode_to_array([np.zeros(3), x])


def test_an_object_that_encodes_another_while_it_is_encoded() -> None:
    encoder = Encoder()

    class Nosy:
        def __reduce__(self) -> Any:
            return bytes, (bytes(encode_to_array(1, encoder)),)

    with pytest.raises(RuntimeError, match="in use"):
        encode_to_array(Nosy(), encoder)
    assert decode_from_array(encode_to_array(2, encoder)) == 2


def test_threads_with_one_encoder_are_told_and_do_no_harm() -> None:
    encoder = Encoder()
    arrays = [np.full(1 << 20, i, np.uint8) for i in range(4)]
    refused, wrong = [], []

    def work(array: np.ndarray) -> None:
        for _ in range(50):
            try:
                back = decode_from_array(encode_to_array([array], encoder))[0]
            except RuntimeError:
                refused.append(1)
            else:
                if not np.array_equal(back, array):
                    wrong.append(1)

    threads = [threading.Thread(target=work, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(refused) < 200


# ---- arrays ----------------------------------------------------------------------------------------------------------

GRID = np.arange(60 * 50 * 4, dtype=np.int32).reshape(60, 50, 4)


@pytest.mark.parametrize(
    "x",
    [GRID, GRID.T, GRID.transpose(1, 0, 2), GRID[::2], GRID[:, ::-1], GRID[:0], GRID[5, 5, 3], GRID[5, 5, 3, ...],
     np.broadcast_to(GRID[0], GRID.shape), np.asfortranarray(GRID), np.asfortranarray(GRID[:2, :2, 0])],
)  # fmt: skip
def test_layout(x: np.ndarray) -> None:
    for pickled in (False, True):
        back = round_trip([x, {1}] if pickled else [x])[0]
        assert same(back, x)
        if isinstance(x, np.ndarray):
            assert back.flags.f_contiguous == x.flags.f_contiguous
            assert back.flags.writeable


@pytest.mark.parametrize("x", [GRID, GRID.T, GRID[::2], GRID[:0], GRID[0, 0, 0, ...], GRID[:1, :1]])
def test_what_is_read_only_can_be_written_to_by_its_receiver(x: np.ndarray) -> None:
    x = x.view()
    x.flags.writeable = False
    for message in ([x], [x, {1}]):
        for copy in (False, True):
            back = round_trip(message, copy=copy)[0]
            assert same(back, x) and back.flags.writeable
            back[...] = -1
    assert not x.size or x.min() >= 0
    back = round_trip([x, {1}])[0]
    assert (back.flags.c_contiguous, back.flags.f_contiguous) == (
        x.flags.c_contiguous or not x.flags.forc,
        x.flags.f_contiguous,
    )


def test_large_arrays_are_views_and_small_ones_are_not() -> None:
    large, small = np.arange(1000), np.arange(3)
    message = encode_to_array({"large": large, "small": small})
    back = decode_from_array(message)
    assert np.shares_memory(back["large"], message)
    assert back["large"].ctypes.data % 64 == 0
    assert not np.shares_memory(back["small"], message)
    copied = decode_from_array(message, copy=True)
    assert not np.shares_memory(copied["large"], message)
    message = encode_to_array([{1}, large])  # by pickle
    assert np.shares_memory(decode_from_array(message)[1], message)
    assert not np.shares_memory(decode_from_array(message, copy=True)[1], message)


def test_the_message_lives_as_long_as_a_view_of_it() -> None:
    import weakref

    message = encode_to_array([np.arange(1000), np.arange(3)])
    back = decode_from_array(message)
    gone = weakref.ref(message)
    small, part = back[1], back[0][10:]
    del message, back
    assert gone() is not None
    assert part[0] == 10
    del part
    assert gone() is None
    assert small.tolist() == [0, 1, 2]


def test_only_the_view_is_copied_and_not_what_it_is_a_view_of() -> None:
    assert len(encode_to_array(np.zeros(10**6)[::1000])) < 20_000


@dataclasses.dataclass
class OnlyOne:
    """Its class hands out the same instance again, which pickle asks it for."""

    a: int = 0

    def __new__(cls, *args: Any) -> OnlyOne:
        if "it" not in cls.__dict__:
            cls.it = object.__new__(cls)  # type: ignore[attr-defined]
        return cls.it  # type: ignore[attr-defined,no-any-return]


def test_a_dataclass_with_its_own_new_is_asked_for_its_instance() -> None:
    one = OnlyOne(5)
    assert decode_from_array(encode_to_array(one)) is one


def test_a_class_that_was_defined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Plain
    decode_from_array(encode_to_array(old(1)))
    new = dataclasses.make_dataclass("Plain", ["a"], namespace={"__module__": __name__})
    new.__module__ = __name__
    monkeypatch.setitem(globals(), "Plain", new)
    assert type(decode_from_array(encode_to_array(new(1)))) is new
    with pytest.raises(pickle.PicklingError):
        encode_to_array(old(1))


def test_a_reduction_that_was_registered_later(monkeypatch: pytest.MonkeyPatch) -> None:
    decode_from_array(encode_to_array(Plain(1)))
    monkeypatch.setitem(copyreg.dispatch_table, Plain, lambda x: (str, (f"reduced {x.a}",)))
    assert decode_from_array(encode_to_array(Plain(1))) == "reduced 1"


def test_a_reduction_that_multiprocessing_was_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    decode_from_array(encode_to_array(Plain(1)))
    monkeypatch.setitem(ForkingPickler._extra_reducers, Plain, lambda x: (str, (f"reduced {x.a}",)))  # type: ignore[attr-defined]
    assert decode_from_array(encode_to_array(Plain(1))) == "reduced 1"


def test_metadata_of_a_dtype_is_not_lost_and_makes_no_other_array_slow() -> None:
    with_it = np.zeros(3, np.dtype("i2", metadata={"unit": "m"}))
    for _ in range(2):
        assert encode_to_array(np.zeros(3, "i2"))[0] == TREE
        assert decode_from_array(encode_to_array(with_it)).dtype.metadata == {"unit": "m"}


def test_an_empty_array_with_huge_dims() -> None:
    assert decode_from_array(encode_to_array(np.empty((0, 2**30, 2**20)))).shape == (0, 2**30, 2**20)


_RECORD: Any = [("a", "i1"), ("b", "f8", (2,))]
_SPREAD = np.dtype({"names": ["a", "b"], "formats": ["i1", ("f8", (2,))], "offsets": [0, 8], "itemsize": 24})


@pytest.mark.parametrize(
    ("more", "bare"),
    [
        (np.dtype(_RECORD, align=True), _SPREAD),
        (np.dtype((np.record, _RECORD)), np.dtype(_RECORD)),
        (np.dtype([("r", np.dtype(_RECORD, align=True), (2,))]), np.dtype([("r", _SPREAD, (2,))])),
        (np.dtype([("r", np.dtype((np.record, _RECORD)))]), np.dtype([("r", _RECORD)])),
        (np.dtype([("a", np.dtype("i2", metadata={"unit": "m"}))]), np.dtype([("a", "i2")])),
    ],
    ids=["aligned", "record", "aligned within", "record within", "metadata within"],
)
def test_what_a_dtype_says_beside_what_equal_ones_do_is_not_lost(more: np.dtype[Any], bare: np.dtype[Any]) -> None:
    assert more == bare
    for dtype in (bare, more, bare, more):
        back = round_trip(np.zeros(3, dtype)).dtype
        assert pickle.dumps(back) == pickle.dumps(pickle.loads(pickle.dumps(dtype)))
    assert mode(np.zeros(3, bare)) == TREE
