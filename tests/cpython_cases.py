"""CPython's own cases for the classes of multiprocessing and for ProcessPoolExecutor, with ours in their place.

    python tests/cpython_cases.py fork TestQueue
    python tests/cpython_cases.py fork ProcessPoolShutdownTest

A process of its own, because it sets the start method and puts our classes where multiprocessing's are.
"""

from __future__ import annotations

import importlib
import multiprocessing
import subprocess
import sys
import unittest
from concurrent import futures
from types import SimpleNamespace
from typing import Any

from test import _test_multiprocessing as theirs

import shmtensor as st

CLASSES: dict[str, Any] = {
    "Queue": st.Queue,
    "JoinableQueue": st.JoinableQueue,
    "SimpleQueue": st.SimpleQueue,
    "Pool": st.Pool,
}

#: Where ours does something else, and why.
DEVIATIONS = {
    "test_queue_feeder_donot_stop_onexc": "what cannot be pickled raises in put(), where it can be dealt with",
    "test_queue_feeder_on_queue_feeder_error": "the same: there is no feeder that meets it",
    "TestSimpleQueue.test_closed": "it looks at the ends of a pipe; test_queue.py has the same without",
}


class OurClasses(theirs.ProcessesMixin):
    Queue = staticmethod(st.Queue)
    JoinableQueue = staticmethod(st.JoinableQueue)
    Pool = staticmethod(st.Pool)

    def setUp(self) -> None:
        super().setUp()
        name = self._testMethodName
        reason = DEVIATIONS.get(name) or DEVIATIONS.get(f"{type(self).__name__}.{name}")
        if reason is not None:
            raise unittest.SkipTest(reason)


class TestQueue(theirs._TestQueue, OurClasses, unittest.TestCase):  # type: ignore[misc]
    pass


class TestSimpleQueue(OurClasses, theirs.TestSimpleQueue):  # type: ignore[misc]
    pass


class TestPool(theirs._TestPool, OurClasses, unittest.TestCase):  # type: ignore[misc]
    pass


class TestPoolWorkerErrors(theirs._TestPoolWorkerErrors, OurClasses, unittest.TestCase):  # type: ignore[misc]
    pass


class TestPoolWorkerLifetime(theirs._TestPoolWorkerLifetime, OurClasses, unittest.TestCase):  # type: ignore[misc]
    pass


# ---- concurrent.futures ----------------------------------------------------------------------------------------------

#: Class -> the module of test.test_concurrent_futures that has it since Python 3.12; before, that was one module.
EXECUTOR_CASES = {
    "AsCompletedTests": "test_as_completed",
    "ExecutorDeadlockTest": "test_deadlock",
    "FailingInitializerMixin": "test_init",
    "InitializerMixin": "test_init",
    "ProcessPoolExecutorTest": "test_process_pool",
    "ProcessPoolShutdownTest": "test_shutdown",
    "WaitTests": "test_wait",
}

_OWN = "what cannot be read is that task's own error, and the pool goes on; there it breaks"
EXECUTOR_DEVIATIONS = {
    "test_error_at_task_unpickle": _OWN,
    "test_exit_at_task_unpickle": _OWN,
    "test_error_during_result_unpickle_in_result_handler": _OWN,
    "test_exit_during_result_unpickle_in_result_handler": _OWN,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "it replaces parts of their thread; ours has no pipe",
    "test_python_finalization_error": "it lets the second thread fail to start; there is one only",
}

#: The same, where processes are not forked.
UNFORKED_DEVIATIONS = {
    "test_processes_terminate": "its tasks cannot be pickled, and may be settled before another worker is wanted; "
    "test_executor.py has the same with tasks that can",
}


class OurExecutor(st.ProcessPoolExecutor):
    """What the cases look at beside the interface."""

    _call_queue = SimpleNamespace(join_thread=lambda: None)  # there is no thread


class OurExecutorMixin:
    """Comes first among the bases of each case."""

    executor_type = OurExecutor

    def setUp(self) -> None:
        name: str = self._testMethodName  # type: ignore[attr-defined]
        forks = self.ctx == "fork"  # type: ignore[attr-defined]
        reason = EXECUTOR_DEVIATIONS.get(name) or (None if forks else UNFORKED_DEVIATIONS.get(name))
        if reason is not None:
            raise unittest.SkipTest(reason)
        super().setUp()  # type: ignore[misc]


def run_with_ours(*args: str) -> tuple[int, bytes, bytes]:
    """Their assert_python_ok(), for programs that import the executor."""
    ours = "from shmtensor import ProcessPoolExecutor as OurExecutor"
    code = args[-1].replace("from concurrent.futures import OurExecutor", ours)
    assert code != args[-1]
    done = subprocess.run([sys.executable, *args[:-1], code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.returncode, done.stdout, done.stderr


def executor_cases(case: str, method: str) -> type[unittest.TestCase]:
    package = "test.test_concurrent_futures"
    module: Any = importlib.import_module(package)
    base = module if hasattr(module, "ProcessPoolForkMixin") else importlib.import_module(f"{package}.util")
    if base is not module:
        module = importlib.import_module(f"{package}.{EXECUTOR_CASES[case]}")
    if hasattr(module, "assert_python_ok"):
        module.assert_python_ok = run_with_ours
    mixin = getattr(base, f"ProcessPool{method.capitalize()}Mixin")
    bases = (OurExecutorMixin, getattr(module, case), mixin, base.BaseTestCase)
    return type(f"{method}_{case}", bases, {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """The cases of the executor, made when they are asked for: a spawned worker asks by name."""
    method, _, case = name.partition("_")
    if case not in EXECUTOR_CASES:
        raise AttributeError(name)
    globals()[name] = made = executor_cases(case, method)
    return made


def main(method: str, case: str) -> None:
    theirs.multiprocessing.set_forkserver_preload(theirs.PRELOAD)
    multiprocessing.set_start_method(method, force=True)  # importing theirs has set it
    for name, cls in CLASSES.items():
        setattr(multiprocessing, name, cls)
    if case in EXECUTOR_CASES:
        futures.ProcessPoolExecutor = OurExecutor  # type: ignore[misc]  # some do not ask their executor_type
        loaded = unittest.defaultTestLoader.loadTestsFromTestCase(__getattr__(f"{method}_{case}"))
    else:
        loaded = unittest.defaultTestLoader.loadTestsFromName(f"cpython_cases.{case}")
    result = unittest.TextTestRunner(verbosity=2).run(loaded)
    for test, reason in result.skipped:
        print(f"skipped: {test}: {reason}")
    sys.exit(not result.wasSuccessful() or result.testsRun == 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
