"""Queues, pools and the executor beside the standard library's: the same objects through both, and the same comes out.

hypothesis draws the objects (drawn_objects.py) and alike.py compares what is received: values, types, which parts are
one and the same, and what is raised, with its text. What is different on purpose stands in docs/queues.md, and here
where it is allowed for. SIDE_BY_SIDE_EXAMPLES=20000 makes a long run of it, with other draws each time.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import drawn_objects as drawn
import numpy as np
import pytest
from alike import difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from support import SECONDS

import shmtensor as st

pytestmark = [
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
    pytest.mark.filterwarnings("ignore:the matrix subclass is not"),
]
EXAMPLES = int(os.environ.get("SIDE_BY_SIDE_EXAMPLES", "0"))
HERE = str(Path(__file__).parent)


def times(n: int) -> Any:
    """How often a test is drawn: ``n`` of the 1000 of an ordinary run."""
    return settings(
        max_examples=max(1, EXAMPLES * n // 1000) if EXAMPLES else n,
        deadline=None,
        database=None,
        derandomize=not EXAMPLES,
        suppress_health_check=list(HealthCheck),
    )


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """What became of it; of an exception what the two must have in common."""
    try:
        return "returned", call()
    except RecursionError:  # who notices, and says so, depends on who had how much left
        return "raised", (RecursionError,)
    except BaseException as e:
        state = {name: unnamed(x) for name, x in e.__dict__.items()}
        return "raised", (type(e), unnamed(str(e)), tuple(map(unnamed, e.args)), trace(e.__cause__), state)


def both(sides: tuple[Any, Any], call: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What became of it with ours, and with theirs."""
    return outcome(partial(call, sides[0])), outcome(partial(call, sides[1]))


def unnamed(x: Any) -> Any:
    """A text without addresses."""
    return re.sub(r"0x[0-9a-f]+", "0x...", x) if isinstance(x, str) else x


def trace(cause: BaseException | None) -> Any:
    """The text of a remote traceback, with the frames of this folder only: the others are the two libraries'."""
    lines, kept = [], True
    for line in str(cause).splitlines():
        rest = re.sub(r"^(?:  )*[|] ", "", line)  # of a group's
        if rest.startswith('  File "'):
            kept = rest.startswith(f'  File "{HERE}')
        elif not rest.startswith("    "):
            kept = True
        if kept:
            lines.append(line)
    return type(cause), unnamed("\n".join(lines))


def agree(ours: Any, theirs: Any) -> None:
    different = difference(ours, theirs)
    assert different is None, different


# ---- queues ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def queues() -> Iterator[tuple[Any, Any]]:
    ours, theirs = st.Queue(), multiprocessing.Queue()
    yield ours, theirs
    assert ours.empty()
    assert theirs.empty()
    for q in (ours, theirs):
        q.close()
        q.join_thread()


def through_both(queues: tuple[Any, Any], x: Any) -> None:
    ours, theirs = queues
    sent = outcome(lambda: ForkingPickler.dumps(x) and None)
    put = outcome(lambda: ours.put(x))
    agree(put, sent)  # there it is the feeder thread that meets it, and tells nobody
    if sent[0] == "returned":
        theirs.put(x)
        agree(outcome(lambda: ours.get(timeout=SECONDS)), outcome(lambda: theirs.get(timeout=SECONDS)))
    assert ours.empty() and ours.stats()["reading"] == 0


@times(200)
@given(drawn.GRAPHS)
def test_any_object(queues: tuple[Any, Any], x: Any) -> None:
    through_both(queues, x)


@times(200)
@given(drawn.FAST_GRAPHS)
def test_objects_that_need_no_pickle(queues: tuple[Any, Any], x: Any) -> None:
    through_both(queues, x)


@times(300)
@given(drawn.ARRAYS, some.booleans())
def test_arrays(queues: tuple[Any, Any], x: np.ndarray, pickled: bool) -> None:
    through_both(queues, [x, {1}] if pickled else x)
    queues[0].put(x)
    back = queues[0].get()
    assert back.flags.c_contiguous >= x.flags.c_contiguous
    assert back.dtype == x.dtype  # the order of bytes too, other than there


@pytest.mark.skipif(drawn.torch is None, reason="torch is not installed")
@pytest.mark.filterwarnings("ignore:Sparse")
@times(60)
@given(drawn.graphs(drawn.TENSORS | drawn.ARRAYS | some.integers(), most=4), some.booleans())
def test_tensors(queues: tuple[Any, Any], x: Any, reverse: bool) -> None:
    """Theirs moves what it sends to torch's shared memory: ours sends it before, or after."""
    ours, theirs = queues
    for q in (theirs, ours) if reverse else (ours, theirs):
        q.put(x)
    agree(ours.get(timeout=SECONDS), theirs.get(timeout=SECONDS))


@times(120)
@given(drawn.PARTS)
def test_what_cannot_be_sent_or_read(queues: tuple[Any, Any], x: Any) -> None:
    through_both(queues, x)


@pytest.mark.parametrize("bad", sorted(drawn.BAD))
def test_each_that_cannot_be_sent_or_read(queues: tuple[Any, Any], bad: str) -> None:
    through_both(queues, [np.zeros(2000), drawn.BAD[bad]()])


@pytest.mark.parametrize("kind", ["Queue", "Lock", "Event"])
def test_what_passes_by_inheritance_only(queues: tuple[Any, Any], kind: str) -> None:
    through_both(queues, [getattr(multiprocessing, kind)()])
    if kind == "Queue":
        ours = outcome(lambda: queues[0].put(queues[0]))
        agree(ours[1][0], outcome(lambda: ForkingPickler.dumps(queues[1]))[1][0])


LEAVES = 10_000


def tree(shape: str) -> Any:
    """Of 10,000 leaves, some of which are met more than once."""
    leaves = [[i, float(i), f"leaf {i}", np.full(2, i), (i,), drawn.Plain(i)][i % 6] for i in range(LEAVES)]
    if shape == "wide":
        return leaves
    if shape == "dict":
        return {f"key {i}": leaf for i, leaf in enumerate(leaves)}
    if shape == "binary":
        while len(leaves) > 1:
            leaves = [leaves[i : i + 2] for i in range(0, len(leaves), 2)]
        return leaves
    if shape == "shared":
        return [leaves, leaves[::2], {"again": leaves}, drawn.Pair(leaves[1], leaves)]
    if shape == "pickled":
        return [*leaves, {1}]
    if shape == "objects":
        return np.array(leaves, object)
    if shape == "in a circle":
        leaves.append(leaves)
        return leaves
    chain: Any = None
    for i, leaf in enumerate(leaves[:130]):
        chain = [leaf, chain] if i % 2 else drawn.Plain(chain, leaf)
    return chain


@pytest.mark.parametrize("shape", ["wide", "dict", "binary", "shared", "pickled", "objects", "in a circle", "deep"])
def test_trees_of_10_000_leaves(queues: tuple[Any, Any], shape: str) -> None:
    through_both(queues, tree(shape))


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: {1: x}, drawn.Plain, drawn.Slotted])
def test_what_is_too_deep(queues: tuple[Any, Any], wrap: Any) -> None:
    x: Any = 1
    for _ in range(100_000):
        x = wrap(x)
    through_both(queues, x)
    while type(x) is not int:  # taken to pieces: to drop it as a whole is deep as well
        x = next(iter(x.values())) if isinstance(x, dict) else x[0] if isinstance(x, list) else x.a


# ---- pools -----------------------------------------------------------------------------------------------------------


class Side:
    """Pool and executor of one of the two, of one worker each: so everything comes in one order."""

    def __init__(self, pool: Any, executor: Any) -> None:
        self.pool, self.executor = pool, executor

    def ways(self, f: Any, *args: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
        """All ways to have ``f(*args)`` called."""
        pool, executor = self.pool, self.executor
        yield "apply_async", lambda: pool.apply_async(f, args).get(SECONDS)
        yield "starmap_async", lambda: pool.starmap_async(f, [args] * 3, 2).get(SECONDS)
        yield "submit", lambda: executor.submit(f, *args).result(SECONDS)
        yield "executor's map", lambda: list(executor.map(f, *([a] * 3 for a in args), chunksize=2))
        if len(args) == 1:
            yield "map_async", lambda: pool.map_async(f, list(args) * 3).get(SECONDS)
            yield "imap", lambda: drained(pool.imap(f, args))
            yield "imap_unordered", lambda: drained(pool.imap_unordered(f, args * 2, 2))


def drained(results: Any, most: int = 1000) -> list[Any]:
    """What each next() of an iterator came to. One of a pool's goes on after an exception."""
    out: list[Any] = []
    step = getattr(results, "next", None)  # which may be given a time
    while len(out) < most:
        got = outcome(lambda: step(SECONDS) if step is not None else next(results))
        if got[0] == "raised" and got[1][0] is StopIteration:
            break
        out.append(got)
        if got[0] == "raised" and step is None:
            break
    return out


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Side, Side]]:
    """Ours and theirs."""
    fork = multiprocessing.get_context("fork")
    with (
        fork.Pool(1) as their_pool,
        st.Pool(1, context=fork) as our_pool,
        concurrent.futures.ProcessPoolExecutor(1, fork) as their_executor,
        st.ProcessPoolExecutor(1, fork) as our_executor,
    ):
        yield Side(our_pool, our_executor), Side(their_pool, their_executor)


def by_both(sides: tuple[Side, Side], f: Any, *args: Any) -> None:
    """Calls it in every way by both, and compares."""
    for (name, ours), (_, theirs) in zip(sides[0].ways(f, *args), sides[1].ways(f, *args), strict=True):
        different = difference(outcome(ours), outcome(theirs))
        assert different is None, f"{name}: {different}"


def echo(x: Any) -> Any:
    return x


def doubled(x: Any, y: Any) -> Any:
    return [x, y, {"again": x}]


def make(bad: str) -> Any:
    return [np.zeros(2000), drawn.BAD[bad]()]


def raise_it(kind: Any, args: Any, cause: Any, beside: Any) -> None:
    error = kind(*args)
    if beside is not None:
        error.beside = beside
    if cause == "from":
        raise error from KeyError("the cause")
    if cause == "while":
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            raise error  # noqa: B904
    if cause == "from None":
        raise error from None
    raise error


@times(50)
@given(drawn.GRAPHS | drawn.FAST_GRAPHS)
def test_functions_that_return_any_object(sides: tuple[Side, Side], x: Any) -> None:
    by_both(sides, echo, x)


@times(20)
@given(drawn.FAST_GRAPHS, drawn.GRAPHS)
def test_functions_of_two_objects(sides: tuple[Side, Side], x: Any, y: Any) -> None:
    by_both(sides, doubled, x, y)


class TwoArguments(Exception):
    def __init__(self, a: Any, b: Any = None) -> None:
        super().__init__(a, b)
        self.both = [a, b]


class OwnReduce(Exception):
    def __init__(self, *, reason: Any) -> None:
        super().__init__(f"because of {reason!r:.20}")
        self.reason = reason

    def __reduce__(self) -> Any:
        return make_own_reduce, (self.reason,)


def make_own_reduce(reason: Any) -> OwnReduce:
    return OwnReduce(reason=reason)


def own_reduce(*args: Any) -> OwnReduce:
    return OwnReduce(reason=args)


RAISED: Any = [ValueError, KeyError, OSError, StopIteration, drawn.Refused, TwoArguments, own_reduce]
RAISED += [pickle.PicklingError, st.WorkerDied, EOFError, TimeoutError]
if sys.version_info >= (3, 11):

    def group(*args: Any) -> Any:
        return ExceptionGroup("some", [ValueError(*args), drawn.Refused(*args)])  # noqa: F821

    RAISED.append(group)


@times(60)
@given(
    some.sampled_from(RAISED),
    some.lists(some.text(max_size=5) | drawn.ARRAYS | drawn.graphs(most=2), min_size=1, max_size=2),
    some.sampled_from([None, "from", "while", "from None"]),
    some.none() | drawn.graphs(most=2),
)
def test_functions_that_raise(sides: tuple[Side, Side], kind: Any, args: Any, cause: Any, beside: Any) -> None:
    by_both(sides, raise_it, kind, args, cause, beside)


#: What fails only where it is read. There, one ends the thread that receives results, and everybody waits.
READ = [bad for bad in drawn.BAD if "when read" in bad or "signature" in bad]


@pytest.mark.parametrize("bad", sorted(set(drawn.BAD) - set(READ)))
def test_results_that_cannot_be_pickled(sides: tuple[Side, Side], bad: str) -> None:
    """MaybeEncodingError of the pool, with the same words; of the executor, what pickle raised."""
    by_both(sides, make, bad)
    error = outcome(lambda: sides[0].pool.apply_async(make, (bad,)).get(SECONDS))
    assert error[1][0] is multiprocessing.pool.MaybeEncodingError


@pytest.mark.parametrize("bad", sorted(READ))
def test_results_that_cannot_be_read(sides: tuple[Side, Side], bad: str) -> None:
    """As listed: what reading raises is the error of that task."""
    expected = outcome(lambda: pickle.loads(pickle.dumps(drawn.BAD[bad]())))
    for name, way in sides[0].ways(make, bad):
        got = outcome(way)
        while name.startswith("imap") and got[0] == "returned":
            got = got[1][0]
        assert got[1][:2] == expected[1][:2], name
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, fork) as theirs, pytest.raises(BrokenProcessPool):
        theirs.submit(make, bad).result(SECONDS)


@pytest.mark.parametrize("bad", sorted(set(drawn.BAD) - set(READ)))
def test_arguments_that_cannot_be_pickled(sides: tuple[Side, Side], bad: str) -> None:
    by_both(sides, echo, drawn.BAD[bad]())


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exceptions_that_end_a_process(sides: tuple[Side, Side], kind: Any) -> None:
    """In an executor they are the future's; in a standard pool SystemExit ends the worker, and everybody waits."""
    ours, theirs = both(sides, lambda side: side.executor.submit(raise_it, kind, (3,), "from", [1]).result(SECONDS))
    agree(ours, theirs)
    assert ours[1][0] is kind


# ---- iterables -------------------------------------------------------------------------------------------------------


def check_not_13(x: Any) -> Any:
    if isinstance(x, int) and x % 100 == 13:
        raise drawn.Refused(x)
    return x, np.full(300, x)


class Broken(Exception):
    pass


def generator(n: int, fails: bool, taken: list[int]) -> Iterator[int]:
    for i in range(n):
        taken.append(i)
        yield i
    if fails:
        raise Broken("half-way", n)


WAYS: dict[str, Callable[[Side, Any, int], Any]] = {
    "map": lambda side, xs, size: side.pool.map_async(check_not_13, xs, size).get(SECONDS),
    "map, chunks by itself": lambda side, xs, size: side.pool.map_async(check_not_13, xs).get(SECONDS),
    "imap": lambda side, xs, size: drained(side.pool.imap(check_not_13, xs, size)),
    "imap_unordered": lambda side, xs, size: drained(side.pool.imap_unordered(check_not_13, xs, size)),
    "starmap": lambda side, xs, size: side.pool.starmap_async(check_not_13, ((x,) for x in xs), size).get(SECONDS),
    "executor's map": lambda side, xs, size: drained(side.executor.map(check_not_13, xs, chunksize=size)),
    "executor's submits": lambda side, xs, size: [
        outcome(partial(future.result, SECONDS)) for future in [side.executor.submit(check_not_13, x) for x in xs]
    ],
}


@times(60)
@given(
    some.sampled_from(sorted(WAYS)),
    some.integers(0, 40) | some.sampled_from([200]),
    some.booleans(),
    some.sampled_from([1, 1, 2, 3, 7, 50, 1000]),
)
def test_generators_that_raise_half_way(sides: tuple[Side, Side], way: str, n: int, fails: bool, size: int) -> None:
    taken: dict[Side, list[int]] = {side: [] for side in sides}
    agree(*both(sides, lambda side: WAYS[way](side, generator(n, fails, taken[side]), size)))
    ours, theirs = taken.values()
    if "imap" in way and size > 1:  # an error of one chunk ends the iterator, and the others may be on their way
        assert ours == list(range(len(ours)))
    else:
        assert ours == theirs == list(range(n))


@pytest.mark.parametrize("size", [0, -1, "three", 2.5, None, True])
@pytest.mark.parametrize("way", sorted(set(WAYS) - {"executor's submits", "map, chunks by itself"}))
def test_chunk_sizes_that_are_none(sides: tuple[Side, Side], way: str, size: Any) -> None:
    if way in ("map", "starmap") and size == 2.5:
        return  # both wait for ever: it is CPython's own code that counts the tasks
    agree(*both(sides, lambda side: WAYS[way](side, range(5), size)))


ITERABLES: list[Any] = [
    5,
    None,
    [[1], [2, 3]],
    "abc",
    {1: 2},
    range(0),
    np.arange(4),
    np.array(5),
    lambda: iter([1, 2]),
]


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("xs", ITERABLES, ids=repr)
def test_things_to_iterate_over(sides: tuple[Side, Side], xs: Any, way: str) -> None:
    agree(*both(sides, lambda side: WAYS[way](side, xs() if callable(xs) else xs, 1)))


def test_imap_is_consumed_lazily(sides: tuple[Side, Side]) -> None:
    """Results come while the iterable goes on, which need not end."""
    for side in sides:
        go, taken = threading.Event(), []

        def some_then_wait(go: threading.Event = go, taken: list[int] = taken) -> Iterator[int]:
            for i in itertools.count():
                taken.append(i)
                yield i
                if i == 4:
                    go.wait(SECONDS)
                if i == 9:
                    return

        results = side.pool.imap(check_not_13, some_then_wait())
        assert [results.next(SECONDS)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
        assert taken == [0, 1, 2, 3, 4]
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(0.05)
        go.set()
        assert [results.next(SECONDS)[0] for _ in range(5)] == [5, 6, 7, 8, 9]
        with pytest.raises(StopIteration):
            results.next(SECONDS)


def count(*args: Any, **kwargs: Any) -> Any:
    return len(args), args[:2], args[-1], sorted(kwargs)[:3], sum(a.nbytes for a in args if isinstance(a, np.ndarray))


@pytest.mark.parametrize("arguments", ["numbers", "arrays", "large", "text"])
def test_huge_argument_tuples(sides: tuple[Side, Side], arguments: str) -> None:
    args: Any = {
        "numbers": range(10_000),
        "arrays": [np.full(i % 300, i) for i in range(3000)],
        "large": [np.full(1 << 20, i, "u1") for i in range(20)],
        "text": ["x" * i for i in range(2000)],
    }[arguments]
    by_both(sides, count, *args)
    kwargs = {f"key {i}": a for i, a in enumerate(args)}
    agree(*both(sides, lambda side: side.pool.apply_async(count, (1,), kwargs).get(SECONDS)))
    agree(*both(sides, lambda side: side.executor.submit(count, 1, **kwargs).result(SECONDS)))


@times(15)
@given(drawn.FAST_GRAPHS | drawn.GRAPHS, some.booleans())
def test_callbacks(sides: tuple[Side, Side], x: Any, fails: bool) -> None:
    called: list[list[Any]] = []
    for side in sides:
        heard: list[Any] = []
        done = threading.Event()

        def hear(what: Any, heard: list[Any] = heard, done: threading.Event = done) -> None:
            heard.append(outcome(lambda: reraise(what)) if isinstance(what, BaseException) else what)
            done.set()

        args = (raise_it, (ValueError, (x,), None, None)) if fails else (echo, (x,))
        side.pool.apply_async(*args, callback=hear, error_callback=hear)
        assert done.wait(SECONDS)
        done.clear()
        future = side.executor.submit(args[0], *args[1])
        future.add_done_callback(lambda f: hear(f.exception() or f.result()))
        assert done.wait(SECONDS)
        called.append(heard)
    agree(*called)


def reraise(error: BaseException) -> None:
    raise error


def test_neither_passes_to_another_process(sides: tuple[Side, Side]) -> None:
    for kind in ("pool", "executor"):
        for side in sides:
            with pytest.raises((NotImplementedError, TypeError, RuntimeError)):
                pickle.dumps(getattr(side, kind))
