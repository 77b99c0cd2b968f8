"""Pool: multiprocessing's interface, and a worker that dies costs its task and nothing else.

CPython's own cases run in `cpython_cases.py`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import signal
import sys
import threading
import time
from multiprocessing.pool import MaybeEncodingError
from typing import Any

import numpy as np
import pytest
from support import START_METHODS, cpython_cases, leaves_nothing, wait_until

import shmtensor as st
from shmtensor.objects import ObjectSlots
from shmtensor.tasks import Dead, Out, Results, Tasks

SECONDS = 60.0


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    with leaves_nothing(of_others=False):
        yield
        gc.collect()


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("case", ["TestPool", "TestPoolWorkerErrors", "TestPoolWorkerLifetime"])
def test_cpythons_own_cases(case: str, method: str) -> None:
    pytest.importorskip("test._test_multiprocessing", reason="this interpreter comes without its own tests")
    cpython_cases(case, method)


# ---- what crosses ----------------------------------------------------------------------------------------------------


def double(x: Any) -> Any:
    return x * 2


@pytest.mark.parametrize("method", START_METHODS)
def test_arrays_there_and_back(method: str) -> None:
    arrays = [np.full((i + 1, 500), i, "float32") for i in range(20)]
    with st.get_context(method).Pool(2) as pool:
        for how in (pool.map, pool.imap, lambda f, x: pool.map_async(f, x).get(SECONDS)):
            for i, y in enumerate(how(double, arrays)):
                np.testing.assert_array_equal(y, arrays[i] * 2)
        assert sorted(int(y[0, 0]) for y in pool.imap_unordered(double, arrays)) == list(range(0, 40, 2))
        assert pool.starmap(max, [(1, 2), (4, 3)]) == [2, 4]
        assert pool.apply(double, ("ab",)) == "abab"


def test_results_are_views_until_too_many_are_kept() -> None:
    with st.Pool(2, slots=6) as pool:
        kept = list(pool.imap(double, [np.full(5000, i) for i in range(100)]))
        assert [int(x[0]) for x in kept] == list(range(0, 200, 2))
        stats = pool.stats()
        assert stats["reading"] == 3 and stats["copied"] == 97 and stats["tasks"] == 0
        del kept
        assert pool.stats()["reading"] == 0


kept_by_worker: list[Any] = []


def keep(x: Any) -> int:
    kept_by_worker.append(x)
    return len(kept_by_worker)


def test_a_worker_that_keeps_its_arguments_stops_nobody() -> None:
    with st.Pool(1) as pool:
        assert pool.map(keep, [np.full(5000, i) for i in range(50)], chunksize=1) == list(range(1, 51))
        assert pool.apply(still_whole)


def still_whole() -> bool:
    return all((x == i).all() for i, x in enumerate(kept_by_worker))


def test_tensors() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with st.Pool(2) as pool:
        x = torch.arange(6000.0).reshape(60, 100)
        for y in pool.map(double, [x, x.t()]):
            assert torch.equal(y, x * 2) or torch.equal(y, x.t() * 2)
        assert pool.apply(threads_of_torch) == 1


def threads_of_torch() -> int:
    import torch

    return torch.get_num_threads()


# ---- deaths ----------------------------------------------------------------------------------------------------------


def kill_if(x: int, what: str) -> int:
    if x == 7:
        if what == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "_exit":
            os._exit(0)
        elif what == "exit":
            sys.exit(0)
    return x


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("what", ["SIGKILL", "_exit", "exit"])
def test_a_worker_that_ends_costs_its_task_only(method: str, what: str) -> None:
    with st.get_context(method).Pool(2) as pool:
        results = [pool.apply_async(kill_if, (x, what)) for x in range(20)]
        for x, result in enumerate(results):
            if x == 7:
                with pytest.raises(st.WorkerDied, match="died while it had this task"):
                    result.get(SECONDS)
            else:
                assert result.get(SECONDS) == x
        assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]


def die_always(x: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_all_is_given_up() -> None:
    with st.Pool(2, retries=3) as pool:
        with pytest.raises(st.WorkerDied, match="as did 3 before it"):
            pool.apply(die_always, (1,))
        assert pool.apply(double, (1,)) == 2


def square_slowly(x: int) -> tuple[int, int]:
    time.sleep(0.0005)
    return os.getpid(), x * x


@pytest.mark.parametrize("seed", range(3))
def test_random_kills_under_a_map(seed: int) -> None:
    """Some 30 kills a second among 3 workers; every result is right, and each task settled once."""
    rng = random.Random(seed)
    settled: list[int] = []
    killed = 0
    with st.Pool(3, retries=10) as pool:
        n = 3000
        results = [pool.apply_async(square_slowly, (x,), callback=lambda r: settled.append(r[1])) for x in range(n)]
        end = time.monotonic() + SECONDS
        while not results[-1].ready() and time.monotonic() < end:
            time.sleep(rng.random() * 0.06)
            worker = rng.choice(list(pool._pool) or [None])
            if worker is not None and worker.exitcode is None:
                with contextlib.suppress(ProcessLookupError):  # the pool has just buried it
                    os.kill(worker.pid, signal.SIGKILL)
                    killed += 1
        assert [r.get(SECONDS)[1] for r in results] == [x * x for x in range(n)]
        assert wait_until(lambda: len(settled) == n)
        pool.close()
        pool.join()
    assert sorted(settled) == [x * x for x in range(n)] and killed > 5


def hold_slot_and_wait(x: Any) -> int:
    time.sleep(SECONDS)
    return 0


def test_whoever_waits_hears_of_the_death_within_a_second() -> None:
    with st.Pool(1) as pool:
        result = pool.apply_async(hold_slot_and_wait, (np.zeros(5000),))
        assert wait_until(lambda: pool._inqueue.tasks.slots.stats()["reading"] == 1)
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(st.WorkerDied):
            result.get(SECONDS)
        assert time.monotonic() - began < 5  # a ceiling for a busy machine; two ticks of 0.1 s on an idle one


# ---- what cannot cross -----------------------------------------------------------------------------------------------


class RefusesToBeRead:
    def __reduce__(self) -> Any:
        return cannot_be_read, ()


def cannot_be_read() -> None:
    raise ValueError("not by you")


def make_unreadable() -> RefusesToBeRead:
    return RefusesToBeRead()


def make_lambda() -> Any:
    return lambda: 0


def raises(x: int) -> None:
    raise KeyError(x)


@pytest.mark.parametrize("method", START_METHODS)
def test_what_cannot_be_sent_or_read_is_the_tasks_own_error(method: str) -> None:
    with st.get_context(method).Pool(2) as pool:
        with pytest.raises((AttributeError, pickle.PicklingError), match=r"pickle|local"):
            pool.apply(lambda: 0)
        with pytest.raises(ValueError, match="not by you"):  # the worker cannot read it
            pool.apply(double, (RefusesToBeRead(),))
        with pytest.raises(ValueError, match="not by you"):  # we cannot
            pool.apply(make_unreadable)
        with pytest.raises(MaybeEncodingError):
            pool.apply(make_lambda)
        with pytest.raises(KeyError):
            pool.apply(raises, (3,))
        with pytest.raises(KeyError):
            pool.map(raises, [1, 2])
        assert pool.apply(double, (3,)) == 6


def test_what_is_larger_than_a_slot_is_the_tasks_own_error() -> None:
    with st.Pool(1, max_slot_nbytes=1 << 20) as pool:
        with pytest.raises(ValueError, match="max_slot_nbytes"):
            pool.apply(double, (np.zeros(1 << 18),))
        with pytest.raises(MaybeEncodingError, match="max_slot_nbytes"):
            pool.apply(np.zeros, (1 << 18,))
        assert pool.apply(double, (3,)) == 6


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"processes": 0}, ValueError),
        ({"processes": 1, "retries": -1}, ValueError),
        ({"processes": 1, "slots": 0}, ValueError),
        ({"processes": 1, "max_slot_nbytes": "1"}, TypeError),
        ({"processes": 1, "maxtasksperchild": 0}, ValueError),
        ({"processes": 1, "initializer": 3}, TypeError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        st.Pool(**arguments)


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_close_finishes_what_was_given() -> None:
    pool = st.Pool(2)
    results = [pool.apply_async(square_slowly, (x,)) for x in range(200)]
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(double, (1,))
    pool.join()
    assert [r.get(0)[1] for r in results] == [x * x for x in range(200)]


@pytest.mark.parametrize("method", START_METHODS)
def test_terminate_ends_at_once_whatever_goes_on(method: str) -> None:
    pool = st.get_context(method).Pool(2)
    pool.map_async(hold_slot_and_wait, [np.zeros(2000)] * 1000, chunksize=1)  # more than there are slots
    time.sleep(0.2)
    began = time.monotonic()
    pool.terminate()
    pool.join()
    assert time.monotonic() - began < SECONDS / 2


def remember(value: int) -> None:
    global initialised
    initialised = value


def recall(_: int) -> tuple[int, int]:
    return initialised, os.getpid()


def test_initializer_and_tasks_per_child() -> None:
    with st.Pool(2, remember, (17,), maxtasksperchild=3) as pool:
        found = pool.map(recall, range(30), chunksize=1)
    assert {value for value, _ in found} == {17} and len({pid for _, pid in found}) >= 10


def test_from_several_threads() -> None:
    with st.Pool(2) as pool:
        failed: list[int] = []

        def ask(k: int) -> None:
            for i in range(100):
                if pool.apply(double, (k * 1000 + i,)) != 2 * (k * 1000 + i):
                    failed.append(i)

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert failed == []


def test_it_leaves_no_files() -> None:
    before = set(os.listdir("/dev/shm"))
    with st.Pool(2) as pool:
        pool.map(double, [np.zeros(5000)] * 10)
        assert {n for n in set(os.listdir("/dev/shm")) - before if "shmtensor" in n} == set()


# ---- those who settle tasks ------------------------------------------------------------------------------------------


def tasks_and_results(retries: int) -> tuple[Tasks, Results]:
    tasks = Tasks(ObjectSlots.create(4), retries)
    return tasks, Results(ObjectSlots.create(4), tasks)


class CannotBePickledNow:
    def __reduce__(self) -> Any:
        raise SystemExit("not now")


def test_a_retry_that_fails_ends_no_thread() -> None:
    tasks, results = tasks_and_results(1)
    results._again += [Out("unpicklable", CannotBePickledNow(), 0), Out("fine", (1, 2), 0)]
    results.look_for_the_dead()
    settled = results.get(0)
    assert settled is not None and settled.key == "unpicklable" and isinstance(settled.value, SystemExit)
    assert tasks.slots.stats()["ready"] == 1 and not results.is_burying

    tasks.slots.shutdown()
    results._again.append(Out("late", (1, 2), 0))
    results.look_for_the_dead()
    settled = results.get(0)
    assert settled is not None and settled.key == "late" and isinstance(settled.value, st.WorkerDied)


def test_a_retry_waits_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, results = tasks_and_results(1)

    def no_memory(*args: Any) -> bool:
        raise st.ShmNoSpaceError(28, "no memory")

    with monkeypatch.context() as m:
        m.setattr(tasks, "try_again", no_memory)
        results._again.append(Out("key", (1, 2), 0))
        results.look_for_the_dead()
        assert results.is_burying
    results.look_for_the_dead()
    assert not results.is_burying and tasks.slots.stats()["ready"] == 1


def test_a_pid_that_is_used_again_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, results = tasks_and_results(0)
    members: dict[Any, list[tuple[int, int, bool]]] = {tasks.slots: [], results.slots: []}
    monkeypatch.setattr(
        ObjectSlots,
        "_members",
        lambda self: [{"pid": pid, "joined_ns": ns, "alive": alive} for pid, ns, alive in members[self]],
    )

    def settles(in_tasks: list[tuple[int, int, bool]], in_results: list[tuple[int, int, bool]]) -> bool:
        members[tasks.slots], members[results.slots] = in_tasks, in_results
        tasks.out[9] = Out("key", None, 0)
        results._dead = [Dead(77, 9)]
        results.look_for_the_dead()
        done = results.get(0) is not None if results._ready else False
        results._settling.clear()
        return done

    assert settles([], [])
    assert not settles([], [(77, 5, True)])  # its place here is not vacant yet: results may come
    assert not settles([(77, 8, True)], [(77, 5, True)])  # nor is it, though a namesake was born
    assert settles([(77, 8, True)], [(77, 9, True)])  # that is the namesake's
    assert not settles([(77, 8, True)], [(77, 5, True), (77, 9, True)])
    assert settles([(77, 2, False)], [(77, 5, False)])


def test_terminate_while_tasks_wait_to_be_tried_again() -> None:
    raised: list[Any] = []
    before, threading.excepthook = threading.excepthook, raised.append
    try:
        for _ in range(5):
            pool = st.Pool(2, retries=5)
            pool.map_async(hold_slot_and_wait, range(8), chunksize=1)
            time.sleep(0.05)
            for process in list(pool._pool):
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.08)
            pool.terminate()
            pool.join()
    finally:
        threading.excepthook = before
    assert raised == []


def exit_when_read() -> Any:
    return ExitsWhenRead()


class ExitsWhenRead:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_a_result_that_exits_when_it_is_read_ends_no_thread() -> None:
    with st.Pool(1) as pool:
        with pytest.raises(SystemExit):
            pool.apply_async(exit_when_read).get(SECONDS)
        assert pool.apply(double, (3,)) == 6
