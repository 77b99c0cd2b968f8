"""ProcessPoolExecutor: concurrent.futures' interface, side by side with it; and what a killed worker costs.

CPython's own cases run in `cpython_cases.py`, where the interpreter has them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import pickle
import random
import signal
import sys
import threading
import time
import weakref
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import pytest
from support import START_METHODS, cpython_cases, is_running, leaves_nothing, python, wait_until

import shmtensor as st

SECONDS = 60.0


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    with leaves_nothing(of_others=False):
        yield
        gc.collect()


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize(
    "case",
    [
        "AsCompletedTests",
        "ExecutorDeadlockTest",
        "FailingInitializerMixin",
        "InitializerMixin",
        "ProcessPoolExecutorTest",
        "ProcessPoolShutdownTest",
        "WaitTests",
    ],
)
def test_cpythons_own_cases(case: str, method: str) -> None:
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_concurrent_futures") is None:
        pytest.skip("this interpreter comes without its own tests of concurrent.futures")
    cpython_cases(case, method)


def executor(method: str = "fork", workers: int = 2, **options: Any) -> st.ProcessPoolExecutor:
    return st.ProcessPoolExecutor(workers, mp_context=st.get_context(method), **options)


# ---- what crosses ----------------------------------------------------------------------------------------------------


def double(x: Any) -> Any:
    return x * 2


def is_shared(x: np.ndarray[Any, Any]) -> bool:
    return not x.flags.owndata


@pytest.mark.parametrize("method", START_METHODS)
def test_arrays_there_and_back(method: str) -> None:
    arrays = [np.full((i + 1, 500), i, "float32") for i in range(20)]
    with executor(method) as pool:
        for chunksize in (1, 3, 100):
            for i, y in enumerate(pool.map(double, arrays, chunksize=chunksize)):
                np.testing.assert_array_equal(y, arrays[i] * 2)
        assert pool.submit(is_shared, arrays[5]).result(SECONDS)
        assert pool.submit(double, x="ab").result(SECONDS) == "abab"
        assert list(pool.map(max, (1, 4), (2, 3))) == [2, 4]


def test_results_are_views_until_too_many_are_kept() -> None:
    with executor(slots=6) as pool:
        kept = list(pool.map(double, [np.full(5000, i) for i in range(100)]))
        assert [int(x[0]) for x in kept] == list(range(0, 200, 2))
        stats = pool.stats()
        assert stats["reading"] == 3 and stats["copied"] == 97 and stats["tasks"] == stats["waiting"] == 0
        del kept
        assert pool.stats()["reading"] == 0
    with executor(copy=True) as pool:
        assert not is_shared(pool.submit(double, np.ones(5000)).result())


def test_results_outlive_the_executor() -> None:
    with executor() as pool:
        x = pool.submit(double, np.ones(5000)).result()
    assert x.sum() == 10000


kept_by_worker: list[Any] = []


def keep(x: Any) -> int:
    kept_by_worker.append(x)
    return len(kept_by_worker)


def still_whole() -> bool:
    return all((x == i).all() for i, x in enumerate(kept_by_worker))


def test_a_worker_that_keeps_its_arguments_stops_nobody() -> None:
    with executor(workers=1) as pool:
        assert list(pool.map(keep, [np.full(5000, i) for i in range(50)])) == list(range(1, 51))
        assert pool.submit(still_whole).result()


def test_tensors() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with executor() as pool:
        x = torch.arange(6000.0).reshape(60, 100)
        assert torch.equal(pool.submit(double, x.t()).result(), x.t() * 2)
        assert pool.submit(torch.get_num_threads).result() == 1


# ---- as there --------------------------------------------------------------------------------------------------------


def outcome(what: Any) -> Any:
    """What a call returns or raises, as far as the two executors should agree."""
    try:
        return what()
    except BaseException as e:
        return type(e), str(e), type(e.__cause__)


def nested(depth: int) -> list[Any]:
    x: list[Any] = []
    for _ in range(depth):
        x = [x]
    return x


def raise_it(error: BaseException) -> None:
    raise error


def yields() -> Any:
    return (i for i in range(3))


class NeedsTwo(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)


CALLS = {
    "value": (pow, 2, 10),
    "keyword": (dict, [], "bad"),
    "error": (divmod, 1, 0),
    "exit": (sys.exit, 3),
    "interrupt": (raise_it, KeyboardInterrupt()),
    "generator": (list, (i for i in range(3))),
    "generator back": (yields,),
    "lock": (id, threading.Lock()),
    "deep": (len, nested(100_000)),
    "cycle": (len, (lambda x: (x.append(x), x)[1])([])),
    "huge int": (double, 10**5000),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_future_says_what_the_standard_one_says(name: str) -> None:
    said = []
    for cls in (futures.ProcessPoolExecutor, st.ProcessPoolExecutor):
        with cls(1) as pool:
            said.append(outcome(lambda pool=pool: pool.submit(*CALLS[name]).result(SECONDS)))
            assert pool.submit(double, 3).result(SECONDS) == 6
    theirs, ours = said
    if isinstance(theirs, tuple) and name in {"generator", "generator back", "lock", "deep"}:
        assert ours[0] == theirs[0] and ours[2] == theirs[2]  # who says it, and so how, differs
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_workers": 0},
        {"max_workers": -1},
        {"max_workers": 1, "initializer": 3},
        {"max_workers": 1, "initargs": 3},
        {"max_workers": 1, "max_tasks_per_child": 0},
        {"max_workers": 1, "max_tasks_per_child": "1"},
    ],
)
def test_bad_arguments_as_there(arguments: dict[str, Any]) -> None:
    def make(cls: Any) -> Any:
        with cls(**arguments) as pool:
            return pool.submit(pow, 2, 3).result()

    if sys.version_info < (3, 11) and "max_tasks_per_child" in arguments:
        pytest.skip("max_tasks_per_child= is not there in this version")
    if "initargs" in arguments:
        with pytest.raises(TypeError):  # there it breaks the pool: every worker dies of it
            make(st.ProcessPoolExecutor)
        return
    assert outcome(lambda: make(st.ProcessPoolExecutor)) == outcome(lambda: make(futures.ProcessPoolExecutor))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"retries": -1}, ValueError),
        ({"slots": 0}, ValueError),
        ({"max_slot_nbytes": "1"}, TypeError),
        ({"max_workers": 1001}, ValueError),
        ({"max_workers": 1.5}, TypeError),
    ],
)
def test_bad_arguments_of_our_own(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        st.ProcessPoolExecutor(**arguments)


def test_map_is_theirs() -> None:
    with executor() as pool:
        with pytest.raises(ValueError, match="chunksize must be >= 1"):
            pool.map(pow, [1], [2], chunksize=0)
        results = pool.map(time.sleep, [0, 1], timeout=0.2)
        assert next(results) is None
        with pytest.raises(futures.TimeoutError):
            next(results)


def test_cancellation() -> None:
    with executor(workers=1) as pool:
        asked = [pool.submit(time.sleep, 0.02) for _ in range(50)]
        assert asked[-1].cancel() and not asked[0].cancel()
        assert futures.wait(asked, SECONDS).not_done == set()  # also whoever waits for one that was cancelled
        assert [f.cancelled() for f in asked] == [False] * 49 + [True]
    pool = executor(workers=1)
    asked = [pool.submit(time.sleep, 0.05) for _ in range(30)]
    pool.shutdown(cancel_futures=True)
    assert all(f.done() for f in asked) and 20 < sum(f.cancelled() for f in asked) < 30
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(double, 1)


def test_submit_from_callbacks() -> None:
    done = threading.Event()
    with executor() as pool:

        def again(f: Any) -> None:
            if f.result() == 1 << 50:
                done.set()
            else:
                pool.submit(double, f.result()).add_done_callback(again)

        pool.submit(double, 1).add_done_callback(again)
        assert done.wait(SECONDS)


def test_a_future_that_somebody_else_settles_harms_nobody() -> None:
    with executor() as pool:
        for f in [pool.submit(time.sleep, 0.1) for _ in range(20)]:  # running, and waiting
            f.set_result(3)
        pool.submit(double, 1).add_done_callback(lambda f: sys.exit())
        assert pool.submit(double, 1).result(SECONDS) == 2


def remember(value: int) -> None:
    global initialised
    initialised = value


def recall(_: int) -> tuple[int, int]:
    return initialised, os.getpid()


def test_initializer_and_tasks_per_child() -> None:
    with executor("forkserver", initializer=remember, initargs=(17,), max_tasks_per_child=3) as pool:
        found = list(pool.map(recall, range(12)))
    assert {value for value, _ in found} == {17} and len({pid for _, pid in found}) >= 4


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("method", START_METHODS)
def test_an_initializer_that_raises_breaks_the_pool(method: str, retries: int) -> None:
    with executor(method, initializer=divmod, initargs=(1, 0), retries=retries) as pool:
        with pytest.raises(BrokenProcessPool) as e:
            pool.submit(double, 1).result(SECONDS)
        assert "ZeroDivisionError" in str(e.value.__cause__)
        with pytest.raises(BrokenProcessPool, match="not usable anymore"):
            pool.submit(double, 1)


def executor_of_my_own(x: int) -> list[int]:
    with st.ProcessPoolExecutor(2) as pool:
        return list(pool.map(double, range(x)))


@pytest.mark.parametrize("method", START_METHODS)
def test_executors_in_workers(method: str) -> None:
    with executor(method) as pool:
        assert list(pool.map(executor_of_my_own, [3, 4])) == [[0, 2, 4], [0, 2, 4, 6]]


def test_processes_that_fork_while_it_runs() -> None:
    with executor() as pool:
        asked = [pool.submit(time.sleep, 0.01) for _ in range(50)]
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    pool.submit(double, 1)
                except RuntimeError:
                    pool.shutdown()
                    del pool
                    gc.collect()
                    status = 0
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert futures.wait(asked, SECONDS).not_done == set()
        assert pool.submit(double, 1).result(SECONDS) == 2


def test_arguments_go_when_the_task_is_done() -> None:
    with executor() as pool:
        x = {1, 2}
        error = NeedsTwo(1, 2)
        refs = [weakref.ref(x := frozenset({i, "x"})) for i in range(3)] if hasattr(x, "__weakref__") else []
        refs.append(weakref.ref(error))
        f = pool.submit(len, [error])
        del error, x
        assert isinstance(f.exception(SECONDS), TypeError)  # it cannot be read in the worker
        del f
        assert wait_until(lambda: [r() for r in refs] == [None] * len(refs))


# ---- deaths ----------------------------------------------------------------------------------------------------------


def end_if(x: int, y: int, how: str) -> int:
    if x == y:
        if how == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    return x


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("how", ["SIGKILL", "_exit"])
def test_without_retries_a_death_breaks_the_pool(method: str, how: str) -> None:
    with executor(method, workers=1) as pool:
        pool.submit(time.sleep, 0.5)  # until all of these are submitted
        asked = [pool.submit(end_if, x, 7, how) for x in range(50)]
        found = [outcome(f.result) for f in asked]
        assert found[:7] == list(range(7))  # what was sent before counts
        assert set(found[7:]) == {found[7]} and found[7][0] is BrokenProcessPool
        assert "exit code" in str(asked[7].exception().__cause__)
        with pytest.raises(BrokenProcessPool):
            pool.submit(double, 1)


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("how", ["SIGKILL", "_exit"])
def test_with_retries_a_death_costs_its_task_only(method: str, how: str) -> None:
    with executor(method, retries=1) as pool:
        asked = [pool.submit(end_if, x, 7, how) for x in range(20)]
        with pytest.raises(st.WorkerDied, match="as did 1 before it"):
            asked[7].result(SECONDS)
        assert [f.result(SECONDS) for f in asked if f is not asked[7]] == [x for x in range(20) if x != 7]
        assert pool.submit(double, 3).result(SECONDS) == 6


def square_slowly(x: int) -> int:
    time.sleep(0.004)
    return x * x


def kill_at_random(pool: st.ProcessPoolExecutor, rng: random.Random, stop: threading.Event, killed: list[int]) -> None:
    while not stop.wait(rng.random() * 0.06):
        worker = rng.choice(list((pool._processes or {}).values()) or [None])
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
                killed.append(worker.pid)


@pytest.mark.parametrize(("seed", "chunksize"), [(0, 1), (1, 1), (2, 5)])
def test_random_kills(seed: int, chunksize: int) -> None:
    """Some 30 kills a second among 3 workers; every result is right, and each task is settled once."""
    stop, killed, settled = threading.Event(), [], []
    with executor(workers=3, retries=50) as pool:
        killer = threading.Thread(target=kill_at_random, args=(pool, random.Random(seed), stop, killed))
        killer.start()
        try:
            if chunksize == 1:
                asked = [pool.submit(square_slowly, x) for x in range(500)]
                for f in asked:
                    f.add_done_callback(lambda f: settled.append(f.result()))
                assert [f.result(SECONDS) for f in asked] == [x * x for x in range(500)]
                assert wait_until(lambda: len(settled) == 500)
            else:
                found = list(pool.map(square_slowly, range(500), chunksize=chunksize, timeout=SECONDS))
                assert found == [x * x for x in range(500)]
        finally:
            stop.set()
            killer.join()
    assert len(killed) > 5 and (chunksize > 1 or sorted(settled) == [x * x for x in range(500)])


@pytest.mark.parametrize("retries", [0, 50])
@pytest.mark.parametrize("seed", range(3))
def test_kills_during_shutdown(seed: int, retries: int) -> None:
    stop, killed = threading.Event(), []
    pool = executor(workers=3, retries=retries)
    killer = threading.Thread(target=kill_at_random, args=(pool, random.Random(seed), stop, killed))
    asked = [pool.submit(square_slowly, x) for x in range(100)]
    processes = pool._processes
    assert processes is not None
    killer.start()
    pool.shutdown(wait=False)
    pool._processes = processes  # for the killer
    found = [outcome(lambda f=f: f.result(SECONDS)) for f in asked]
    assert wait_until(lambda: not any(p.is_alive() for p in list(processes.values())))
    stop.set()
    killer.join()
    assert all(y == x * x or (retries == 0 and y[0] is BrokenProcessPool) for x, y in enumerate(found))


def stubborn() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_workers_that_are_ended(how: str, retries: int) -> None:
    pool = executor(retries=retries)
    asked = [pool.submit(time.sleep, SECONDS) for _ in range(20)]
    assert wait_until(lambda: pool.stats()["tasks"] == 5)
    manager = pool._executor_manager_thread
    assert manager is not None
    getattr(pool, how)()
    manager.join(SECONDS)
    assert not manager.is_alive()
    assert [type(outcome(f.result)[0]) is type and f.done() for f in asked] == [True] * 20
    assert isinstance(asked[0].exception(), BrokenProcessPool) and asked[-1].cancelled()


def test_idle_workers_that_are_killed_are_replaced() -> None:
    with executor(retries=1) as pool:
        for _ in range(3):
            assert pool.submit(double, 1).result(SECONDS) == 2
            for process in list(pool._office.processes.values()):
                os.kill(process.pid, signal.SIGKILL)
    with executor() as pool:
        assert pool.submit(double, 1).result(SECONDS) == 2
        os.kill(next(iter(pool._office.processes)), signal.SIGKILL)
        assert wait_until(lambda: pool._broken)


def die_at_once() -> None:
    os._exit(3)


def test_workers_that_never_get_so_far_are_not_replaced_for_ever() -> None:
    with executor(retries=2, initializer=die_at_once) as pool:
        with pytest.raises(BrokenProcessPool) as e:
            pool.submit(double, 1).result(SECONDS)
        assert "none of them had a task" in str(e.value.__cause__)


# ---- what cannot cross -----------------------------------------------------------------------------------------------


class RefusesToBeRead:
    def __reduce__(self) -> Any:
        return cannot_be_read, ()


def cannot_be_read() -> None:
    raise ValueError("not by you")


class ExitsWhenRead:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def make(cls: Any) -> Any:
    return cls()


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise ValueError("not me")


def raise_unpicklable() -> None:
    raise Unpicklable


@pytest.mark.parametrize("method", START_METHODS)
def test_what_cannot_be_sent_or_read_is_the_futures_own_error(method: str) -> None:
    with executor(method) as pool:
        with pytest.raises((AttributeError, pickle.PicklingError), match=r"pickle|local"):
            pool.submit(lambda: 0).result(SECONDS)
        for call, error in [
            ((double, RefusesToBeRead()), ValueError),
            ((make, RefusesToBeRead), ValueError),
            ((double, ExitsWhenRead()), SystemExit),
            ((make, ExitsWhenRead), SystemExit),
            ((raise_unpicklable,), ValueError),
            ((make, threading.Lock), TypeError),
            ((raise_it, NeedsTwo(1, 2)), TypeError),
        ]:
            with pytest.raises(error):
                pool.submit(*call).result(SECONDS)
        assert pool.submit(double, 3).result(SECONDS) == 6


def test_what_is_larger_than_a_slot_is_the_futures_own_error() -> None:
    with executor(workers=1, max_slot_nbytes=1 << 20) as pool:
        with pytest.raises(ValueError, match="max_slot_nbytes"):
            pool.submit(double, np.zeros(1 << 18)).result(SECONDS)
        with pytest.raises(ValueError, match="max_slot_nbytes"):
            pool.submit(np.zeros, 1 << 18).result(SECONDS)
        assert pool.submit(double, 3).result(SECONDS) == 6


# ---- ends ------------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
import shmtensor as st
def late(x):
    time.sleep(0.3)
    os.write(1, b"%d " % x)  # in one piece
if __name__ == "__main__":
    pool = st.ProcessPoolExecutor(2, retries=int(sys.argv[1]))
    for i in range(4):
        pool.submit(late, i)
    exec(sys.argv[2])
"""


@pytest.mark.parametrize("end", ["", "pool.shutdown(wait=False)", "del pool", "raise SystemExit(0)"])
def test_the_interpreter_finishes_what_was_submitted(end: str) -> None:
    assert sorted(python(PROGRAM, "0", end).split()) == ["0", "1", "2", "3"]


def test_nothing_can_be_submitted_at_exit() -> None:
    said = python(
        "import atexit\n"
        "@atexit.register\n"
        "def late():\n"
        "    try:\n"
        "        pool.submit(id, 1)\n"
        "    except RuntimeError as e:\n"
        "        print(e)\n"
        "import shmtensor as st\n"
        "pool = st.ProcessPoolExecutor(1)\n"
        "pool.submit(id, 1).result()\n"
    )
    assert said.startswith("cannot schedule new futures after")


@pytest.mark.parametrize("method", START_METHODS)
def test_workers_end_when_their_parent_is_killed(method: str, tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, time\n"
        "import shmtensor as st\n"
        "if __name__ == '__main__':\n"
        f"    pool = st.ProcessPoolExecutor(2, mp_context=st.get_context({method!r}))\n"
        "    futures = [pool.submit(time.sleep, 0.1) for _ in range(2)]\n"
        "    futures[0].result()\n"
        "    print(*pool._processes, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = python(
        "import subprocess, sys\n"
        "done = subprocess.run([sys.executable, sys.argv[1]], stdout=subprocess.PIPE, text=True, timeout=60)\n"
        "print(done.stdout)\n",
        str(program),
    )
    pids = [int(pid) for pid in found.split()]
    assert pids and wait_until(lambda: not any(is_running(pid) for pid in pids), 15)


def test_one_that_is_dropped_finishes_and_ends() -> None:
    pool = executor()
    asked = [pool.submit(square_slowly, x) for x in range(30)]
    manager, processes = pool._executor_manager_thread, dict(pool._processes or {})
    assert manager is not None
    del pool
    gc.collect()
    manager.join(SECONDS)
    assert not manager.is_alive() and not any(p.is_alive() for p in processes.values())
    assert [f.result(0) for f in asked] == [x * x for x in range(30)]


@pytest.mark.parametrize("method", START_METHODS)
def test_workers_are_started_when_they_are_wanted(method: str) -> None:
    with executor(method, workers=5) as pool:
        processes = pool._processes
        assert processes == {}
        for _ in range(3):
            pool.submit(time.sleep, 1)
        assert len(processes) == (5 if method == "fork" else 3)  # forked before there is a thread, as there
    assert not any(p.is_alive() for p in processes.values())


def test_one_that_was_never_used() -> None:
    pool = executor()
    pool.shutdown()
    pool.shutdown()
    del pool
    assert executor().stats()["tasks"] == 0


def switches(pids: list[int]) -> int:
    """How often the threads of these processes have given up their processor by themselves."""
    total = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("voluntary"))
    return total


def test_an_idle_executor_sleeps() -> None:
    """Ten wake-ups a second for the manager and for each worker, and some for what a look costs."""
    with executor(workers=2) as pool:
        assert pool.submit(double, 1).result(SECONDS) == 2
        time.sleep(0.3)
        for pids, most in ([*(pool._processes or [])], 2 * 25), ([os.getpid()], 60):
            before = switches(pids)
            time.sleep(1)
            assert switches(pids) - before < most
