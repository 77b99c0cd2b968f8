"""Queue, JoinableQueue, SimpleQueue and get_context(): multiprocessing's interfaces, with more promised.

CPython's own cases run in `cpython_cases.py`; here is what they do not ask for: that what was put survives its
producer, that views keep no queue from going on, that one without bound keeps its order, and every kind of end.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import START_METHODS, cpython_cases, leaves_nothing, python, wait_until

import shmtensor as st

SECONDS = 30.0


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    with leaves_nothing(of_others=False):
        yield
        gc.collect()


def ended(*processes: Any) -> None:
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode is not None, "it does not end"
        process.close()


# ---- the standard library's cases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("case", ["TestQueue", "TestSimpleQueue"])
def test_cpythons_own_cases(case: str, method: str) -> None:
    pytest.importorskip("test._test_multiprocessing", reason="this interpreter comes without its own tests")
    cpython_cases(case, method)


# ---- what crosses ----------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    x: float
    rest: list[int]


OBJECTS: list[Any] = [
    None,
    True,
    -(2**100),
    1.5,
    2j,
    "naïve 🙂",
    b"x" * 5000,
    [],
    (),
    {},
    {1, 2},
    {"a": [1, (2, {"b": None})], "c": ...},
    Point(1.0, [2]),
    ValueError("of another process"),
    Path("/tmp"),
    range(7),
    print,
]


@pytest.mark.parametrize("cls", [st.Queue, st.JoinableQueue, st.SimpleQueue])
def test_any_object(cls: Any) -> None:
    q = cls()
    for x in OBJECTS:
        q.put(x)
        y = q.get()
        assert repr(y) == repr(x) and type(y) is type(x)
    assert q.empty()
    q.close()


def echo(q: Any, r: Any) -> None:
    while (x := q.get()) is not None:
        r.put(x)


@pytest.mark.parametrize("method", START_METHODS)
def test_objects_and_arrays_through_processes(method: str) -> None:
    context = st.get_context(method)
    q, r = context.Queue(3), context.SimpleQueue()
    process = context.Process(target=echo, args=(q, r))
    process.start()
    for i in range(40):
        sent = {"i": i, "small": np.arange(i), "large": np.full((i, 300), i, "float32", order="F"), "s": str(i)}
        q.put(sent, timeout=SECONDS)
        got = r.get()
        assert got["i"] == i and got["s"] == str(i)
        for name in ("small", "large"):
            np.testing.assert_array_equal(got[name], sent[name])
            assert got[name].dtype == sent[name].dtype and got[name].flags.f_contiguous == sent[name].flags.f_contiguous
    q.put(None)
    ended(process)


def test_tensors() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q: Any = st.Queue()
    x = torch.arange(5000, dtype=torch.bfloat16).reshape(50, 100).t()
    q.put([x, {"again": x}])
    y, rest = q.get()
    assert torch.equal(y, x) and y.stride() == x.stride() and rest["again"] is y


def test_what_is_put_is_as_it_was_then() -> None:
    q: Any = st.Queue()
    x = np.zeros(3000)
    for i in range(200):  # more than there are slots
        x[:] = i
        q.put(x)
    x[:] = -1
    assert [int(q.get().max()) for _ in range(200)] == list(range(200))


def test_large_arrays_come_back_as_views_of_the_slot() -> None:
    q: Any = st.Queue(4)
    q.put(np.zeros(10_000))
    x = q.get()
    assert q.stats()["reading"] == 1
    part = x[5:7]
    del x
    assert q.stats()["reading"] == 1
    del part
    assert q.stats()["reading"] == 0
    q.put(b"bytes are copied" * 1000)
    kept = q.get()
    assert q.stats()["reading"] == 0 and len(kept) == 16_000


def test_copies_if_asked_for() -> None:
    q: Any = st.Queue(copy=True)
    q.put(np.ones(10_000))
    x = q.get()
    assert q.stats()["reading"] == 0 and x.sum() == 10_000 and x.flags.writeable


# ---- kept results never deadlock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("maxsize", [1, 2, 3, 8])
def test_whoever_keeps_everything_gets_copies_in_time(maxsize: int) -> None:
    q: Any = st.Queue(maxsize)
    kept = []
    for i in range(50):
        q.put(np.full(1000, i), timeout=1)
        kept.append(q.get())
    assert [int(x[0]) for x in kept] == list(range(50))
    assert q.stats()["reading"] == maxsize // 2
    assert q.stats()["copied"] == 50 - maxsize // 2
    kept.clear()
    assert q.stats()["reading"] == 0


def test_reserve_says_how_many_views_may_be_kept() -> None:
    q: Any = st.Queue(4, reserve=1)
    kept = []
    for i in range(5):
        q.put(np.full(1000, i))
        kept.append(q.get())
    assert q.stats()["reading"] == 3
    del kept


# ---- how long to wait ------------------------------------------------------------------------------------------------


def test_full_and_empty() -> None:
    q: Any = st.Queue(2)
    for call in (lambda: q.get(False), q.get_nowait, lambda: q.get(timeout=0), lambda: q.get(timeout=-3)):
        with pytest.raises(queue.Empty):
            call()
    q.put(1)
    assert not q.full() and q.qsize() == 1
    q.put(2)
    assert q.full() and q.qsize() == 2
    waits: tuple[tuple[Any, ...], ...] = ((False,), (True, 0), (True, -1), (True, 0.01))
    for how in waits:
        with pytest.raises(queue.Full):
            q.put(3, *how)
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    assert q.get_many(5) == [1, 2] and q.empty()
    began = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.25)
    assert time.monotonic() - began >= 0.25


@pytest.mark.parametrize(
    ("timeout", "error"), [("1", TypeError), ([], TypeError), (1j, TypeError), (float("nan"), ValueError)]
)
def test_a_timeout_that_is_no_number(timeout: Any, error: type[Exception]) -> None:
    q: Any = st.Queue(1)
    for call in (lambda: q.get(timeout=timeout), lambda: q.put(1, timeout=timeout)):
        with pytest.raises(error, match="timeout must be None or a number of seconds"):
            call()
    assert q.empty()


def test_a_getter_is_woken_by_a_put_and_a_putter_by_a_get() -> None:
    q: Any = st.Queue(1)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend([q.get(), q.get()]))
    thread.start()
    q.put(1)
    q.put(2, timeout=SECONDS)
    thread.join(SECONDS)
    assert got == [1, 2]


def test_ctrl_c_ends_a_wait() -> None:
    code = """
        import _thread, signal, threading, shmtensor as st
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what runs in the background
        threading.Timer(0.3, _thread.interrupt_main).start()
        q = st.Queue()
        try:
            q.get()
        except KeyboardInterrupt:
            print("interrupted")
    """
    assert python(textwrap.dedent(code)).strip() == "interrupted"


# ---- without a bound -------------------------------------------------------------------------------------------------


def test_a_queue_without_bound_never_blocks_and_keeps_the_order() -> None:
    q: Any = st.Queue(slots=4)
    assert q.put_many(range(1000)) == 1000
    assert q.qsize() == 1000 and not q.full()
    assert q.stats()["waiting"] >= 995
    out = [q.get(timeout=SECONDS)]
    q.put(1000)  # behind all that wait
    while len(out) < 1001:
        out += q.get_many(7, timeout=SECONDS)
    assert out == list(range(1001))
    assert wait_until(lambda: q.stats()["waiting"] == 0)
    q.close()
    q.join_thread()


def put_and_leave(q: Any, n: int, cancel: bool) -> None:
    if cancel:
        q.cancel_join_thread()
    for i in range(n):
        q.put(i)


@pytest.mark.parametrize("method", START_METHODS)
def test_a_process_ends_when_what_it_put_has_its_slots(method: str) -> None:
    context = st.get_context(method)
    q = context.Queue()
    process = context.Process(target=put_and_leave, args=(q, 300, False))
    process.start()
    process.join(0.5)
    assert [q.get(timeout=SECONDS) for _ in range(300)] == list(range(300))
    ended(process)


@pytest.mark.parametrize("method", START_METHODS)
def test_and_does_not_wait_for_it_if_told_so(method: str) -> None:
    context = st.get_context(method)
    q: Any = st.Queue(slots=4)
    process = context.Process(target=put_and_leave, args=(q, 300, True))
    process.start()
    ended(process)
    got = q.get_many(400, timeout=SECONDS)
    assert got == list(range(len(got))) and len(got) >= 4


def test_a_main_program_sends_what_waits_before_it_ends() -> None:
    code = """
        import multiprocessing, shmtensor as st, time
        def take(q):
            time.sleep(0.3)
            print(sum(q.get() for _ in range(500)))
        if __name__ == "__main__":
            q = st.Queue()
            multiprocessing.get_context("fork").Process(target=take, args=(q,)).start()
            for i in range(500):
                q.put(i)
    """
    assert python(textwrap.dedent(code)).strip() == str(sum(range(500)))


def test_a_forked_child_sends_nothing_of_its_parents() -> None:
    context = multiprocessing.get_context("fork")
    q: Any = st.Queue(slots=2)
    q.put_many(range(20))
    process = context.Process(target=put_and_leave, args=(q, 0, False))
    process.start()
    ended(process)
    process = context.Process(target=q.put, args=("of the child",))
    process.start()
    got = [q.get(timeout=SECONDS) for _ in range(21)]
    ended(process)
    assert [x for x in got if x != "of the child"] == list(range(20)) and len(got) == 21


def test_a_forked_child_that_overflows_ends_although_its_parent_overflowed_first() -> None:
    """What the parent had registered for its own exit is not there in the child."""
    context = multiprocessing.get_context("fork")
    q: Any = st.Queue(slots=2)
    q.put_many(range(20))
    process = context.Process(target=put_and_leave, args=(q, 30, False))
    process.start()
    got = [q.get(timeout=SECONDS) for _ in range(50)]
    ended(process)
    assert sorted(got) == sorted([*range(20), *range(30)])


# ---- deaths ----------------------------------------------------------------------------------------------------------


def put_and_die(q: Any, n: int) -> None:
    for i in range(n):
        q.put({"i": i, "x": np.full(2000, i)})
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", START_METHODS)
def test_what_was_put_survives_its_producer(method: str) -> None:
    context = multiprocessing.get_context(method)
    q: Any = st.Queue(30)
    process = context.Process(target=put_and_die, args=(q, 30))
    process.start()
    ended(process)
    for i in range(30):
        got = q.get(timeout=SECONDS)
        assert got["i"] == i and (got["x"] == i).all()


def put_for_ever(q: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    number = 0
    while True:
        n = int(rng.integers(0, 4000))
        q.put((os.getpid(), number, np.full(n, number)))
        number += 1


def test_producers_killed_in_the_middle_hang_nobody_and_tear_nothing() -> None:
    context = multiprocessing.get_context("fork")
    q: Any = st.Queue(8)
    last: dict[int, int] = {}
    rng = np.random.default_rng(5)
    for round_ in range(40):
        process = context.Process(target=put_for_ever, args=(q, round_))
        process.start()
        for _ in range(int(rng.integers(1, 60))):
            pid, number, x = q.get(timeout=2)
            assert (x == number).all() and number == last.get(pid, -1) + 1
            last[pid] = number
        os.kill(process.pid or 0, signal.SIGKILL)
        ended(process)
    while True:
        try:
            pid, number, x = q.get(timeout=0.3)
        except queue.Empty:
            break
        assert (x == number).all() and number == last[pid] + 1
        last[pid] = number
    del x
    assert q.stats()["free"] == 8


def take_and_die(q: Any, r: Any) -> None:
    r.put(q.get()[0])
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_consumer_had_is_delivered_at_most_once() -> None:
    context = multiprocessing.get_context("fork")
    q: Any = st.Queue(4)
    r: Any = st.Queue()
    for i in range(3):
        q.put((i, np.zeros(5000)))
    process = context.Process(target=take_and_die, args=(q, r))
    process.start()
    ended(process)
    assert r.get(timeout=SECONDS) == 0
    assert [q.get(timeout=SECONDS)[0] for _ in range(2)] == [1, 2]
    with pytest.raises(queue.Empty):
        q.get(timeout=0.3)
    assert q.stats()["free"] == 4


def test_nobody_is_gone_for_a_queue() -> None:
    """Both sides may come later: no PeersGone, whoever has died."""
    context = multiprocessing.get_context("fork")
    q: Any = st.Queue(1)
    process = context.Process(target=put_and_die, args=(q, 1))
    process.start()
    ended(process)
    assert q.get(timeout=SECONDS)["i"] == 0
    with pytest.raises(queue.Empty):
        q.get(timeout=0.4)
    r: Any = st.Queue()
    process = context.Process(target=take_and_die, args=(q, r))
    process.start()
    q.put((1, None))
    assert r.get(timeout=SECONDS) == 1
    ended(process)
    q.put(0)
    with pytest.raises(queue.Full):
        q.put(1, timeout=0.4)


# ---- what cannot be sent ---------------------------------------------------------------------------------------------


class Refuses:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


class Unknown:
    """Cannot be found by the receiver."""


@pytest.mark.parametrize("maxsize", [0, 1])
def test_what_cannot_be_pickled_raises_in_put(maxsize: int) -> None:
    q: Any = st.Queue(maxsize)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="not me"):
            q.put([1, Refuses()])
        with pytest.raises((pickle.PicklingError, AttributeError)):
            q.put(lambda: 0)
    q.put(7)
    assert q.get(timeout=1) == 7 and q.empty()


def test_what_cannot_be_unpickled_raises_in_get_and_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    q: Any = st.Queue(2)
    q.put([Unknown(), np.zeros(5000)])
    q.put("next")
    monkeypatch.delattr(sys.modules[__name__], "Unknown")
    with pytest.raises(AttributeError):
        q.get()
    assert q.get() == "next" and q.stats()["free"] == 2


def test_an_object_larger_than_a_slot_can_be() -> None:
    for q in (st.Queue(2, max_slot_nbytes=1 << 20), st.Queue(max_slot_nbytes=1 << 20, slots=1)):
        with pytest.raises(ValueError, match="max_slot_nbytes="):
            q.put(np.zeros(1 << 18))
        q.put(1)
        if q._maxsize == 0:
            with pytest.raises(ValueError, match="max_slot_nbytes="):
                q.put(np.zeros(1 << 18))  # what waits is held to it too
        assert q.get() == 1


@pytest.mark.parametrize("cls", [st.Queue, st.JoinableQueue, st.SimpleQueue])
def test_no_object_is_too_large_without_a_word(cls: Any) -> None:
    """By default a slot may take a quarter of the memory: beyond that the setting is named, where there is one."""
    huge = np.broadcast_to(np.int8(1), 1 << 45)  # bytes, of which none is there
    q = cls()
    knob = "a quarter of the machine's memory" if cls is st.SimpleQueue else "raise max_slot_nbytes="
    with pytest.raises(ValueError, match=r"slots can grow to [\d,]+: " + knob):
        q.put(huge)
    q.put(1)
    assert q.get() == 1 and q.empty()


@pytest.mark.parametrize("maxsize", [0, 2])
def test_an_object_larger_than_what_is_left(maxsize: int) -> None:
    q: Any = st.Queue(maxsize, **({} if maxsize else {"slots": 2}), max_slot_nbytes=1 << 44)
    for _ in range(3):  # more often than there are slots
        with pytest.raises(st.ShmNoSpaceError, match=r"an object.*memory limit of this container or control group"):
            q.put(np.broadcast_to(np.int8(1), 1 << 42))
    assert q.stats()["free"] == 2
    q.put(1)
    assert q.get() == 1 and q.empty()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_an_array_that_is_resized_while_put_waits(kind: str) -> None:
    """Its memory is another's by then."""
    x: Any = np.ones(1 << 20)
    if kind == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        x = torch.ones(1 << 20)
    q: Any = st.Queue(1)
    q.put(1)
    raised: list[Exception] = []

    def put() -> None:
        try:
            q.put(["first", np.zeros(5000), x], timeout=SECONDS)
        except RuntimeError as e:
            raised.append(e)

    thread = threading.Thread(target=put)
    thread.start()
    assert wait_until(lambda: q.stats()["sleeps"] >= 1)
    if kind == "torch":
        x.resize_(1 << 22)
    else:
        x.resize(1 << 22, refcheck=False)
    assert q.get() == 1
    thread.join(SECONDS)
    assert len(raised) == 1 and "resized" in str(raised[0])
    assert q.stats()["free"] == 1
    q.put(2)
    assert q.get() == 2


def test_it_passes_by_inheritance_only() -> None:
    for q in (st.Queue(), st.SimpleQueue()):
        with pytest.raises(RuntimeError, match="inheritance"):
            pickle.dumps(q)
        q.close()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"maxsize": 70_000}, ValueError),
        ({"maxsize": 3, "slots": 4}, ValueError),
        ({"slots": 0}, ValueError),
        ({"slots": 2.0}, TypeError),
        ({"reserve": 65}, ValueError),
        ({"max_slot_nbytes": 0}, ValueError),
        ({"spin_us": -1}, ValueError),
        ({"maxsize": "3"}, TypeError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        st.Queue(**arguments)


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [st.Queue, st.JoinableQueue, st.SimpleQueue])
def test_closed(cls: Any) -> None:
    unused, q = cls(), cls()
    unused.close()
    if cls is not st.SimpleQueue:
        unused.join_thread()
        assert unused.empty()
    q.put(1)
    assert q.get() == 1
    q.close()
    q.close()
    with pytest.raises(ValueError, match="closed"):
        q.put(1)
    with pytest.raises(ValueError, match="closed"):
        q.get()
    with pytest.raises(OSError, match="is closed"):
        q.empty()


def test_views_outlive_the_queue() -> None:
    q: Any = st.Queue()
    q.put(np.arange(5000))
    x = q.get()
    q.close()
    del q
    gc.collect()
    assert int(x.sum()) == sum(range(5000))


def test_join_thread_before_close_is_an_error() -> None:
    q: Any = st.Queue()
    with pytest.raises(AssertionError):
        q.join_thread()


def test_shutdown() -> None:
    q: Any = st.Queue(3)
    q.put_many([1, 2])
    q.shutdown()
    with pytest.raises(st.ShutDown):
        q.put(3)
    assert [q.get(), q.get()] == [1, 2]
    with pytest.raises(st.ShutDown):
        q.get()
    with pytest.raises(st.ShutDown):
        q.get(False)


def test_shutdown_sends_what_waits_here_first() -> None:
    q: Any = st.Queue(slots=2)
    q.put_many(range(9))
    q.shutdown()
    with pytest.raises(st.ShutDown):  # not taken, to be lost behind the shutdown
        q.put(9)
    assert [q.get(timeout=SECONDS) for _ in range(9)] == list(range(9))
    with pytest.raises(st.ShutDown):
        q.get(timeout=SECONDS)


@pytest.mark.parametrize("cls", [st.Queue, st.JoinableQueue])
def test_immediate_shutdown_throws_away(cls: Any) -> None:
    q = cls(slots=2)
    q.put_many([np.zeros(3000)] * 5)
    q.shutdown(immediate=True)
    with pytest.raises(st.ShutDown):
        q.get(timeout=SECONDS)
    if cls is st.JoinableQueue:
        q.join()


def test_shutdown_wakes_all_who_wait() -> None:
    q: Any = st.Queue(1)
    q.put(1)
    raised: list[str] = []

    def waits(call: Callable[[], Any]) -> None:
        try:
            call()
        except st.ShutDown:
            raised.append("shut")

    putters = [threading.Thread(target=waits, args=(lambda: q.put(2),)) for _ in range(3)]
    for thread in putters:
        thread.start()
    time.sleep(0.1)
    q.shutdown()
    for thread in putters:
        thread.join(SECONDS)
    assert raised == ["shut"] * 3


# ---- how much is done ------------------------------------------------------------------------------------------------


def test_task_done_and_join() -> None:
    q: Any = st.JoinableQueue(slots=3)
    q.join()
    with pytest.raises(ValueError, match="too many"):
        q.task_done()
    q.put_many(range(10))
    done = []

    def work() -> None:
        for _ in range(10):
            done.append(q.get())
            time.sleep(0.01)
            q.task_done()

    thread = threading.Thread(target=work)
    thread.start()
    q.join()
    assert len(done) == 10
    thread.join()
    with pytest.raises(ValueError, match="too many"):
        q.task_done()


def work_until_none(q: Any) -> None:
    while (x := q.get()) is not None:
        del x
        q.task_done()
    q.task_done()


@pytest.mark.parametrize("method", START_METHODS)
def test_join_waits_for_all_workers(method: str) -> None:
    context = st.get_context(method)
    q = context.JoinableQueue()
    workers = [context.Process(target=work_until_none, args=(q,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    q.put_many(np.full(n, 1.0) for n in range(400))
    q.join()
    assert q.qsize() == 0
    q.put_many([None, None])
    ended(*workers)
    q.join()


def die_in_put(q: Any) -> None:
    class Dies:
        def __reduce__(self) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    q.put(1)
    q.put([np.zeros(5000), Dies()])


def test_a_producer_that_dies_in_put_leaves_nothing_unfinished() -> None:
    context = multiprocessing.get_context("fork")
    q: Any = st.JoinableQueue()
    process = context.Process(target=die_in_put, args=(q,))
    process.start()
    ended(process)
    assert q.get(timeout=SECONDS) == 1
    q.task_done()
    q.join()


# ---- the contexts ----------------------------------------------------------------------------------------------------


def test_contexts_are_those_of_multiprocessing_but_for_the_queues() -> None:
    for method in START_METHODS:
        context = st.get_context(method)
        assert isinstance(context, BaseContext) and context.get_start_method() == method
        assert isinstance(context.Lock(), type(multiprocessing.get_context(method).Lock()))
        assert context.get_context() is context and context.get_context("spawn") is st.get_context("spawn")
        assert context.Process is multiprocessing.get_context(method).Process
    assert st.get_context().get_start_method() == multiprocessing.get_start_method()
    with pytest.raises(ValueError, match="cannot find context"):
        st.get_context("thread")


def square(x: int) -> int:
    return x * x


def test_torchs_own_dataloader_runs_over_our_context() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    data = torch.utils.data.TensorDataset(torch.arange(40.0).reshape(20, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = torch.utils.data.DataLoader(
            data, batch_size=4, num_workers=2, multiprocessing_context=st.get_context("fork")
        )
        batches = [b for (b,) in loader]
    assert torch.equal(torch.cat(batches), torch.arange(40.0).reshape(20, 2))
