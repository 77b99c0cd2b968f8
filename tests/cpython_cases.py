"""CPython's own cases for the classes of multiprocessing, with ours in their place.

    python tests/cpython_cases.py fork TestQueue

A process of its own, because it sets the start method and puts our classes where multiprocessing's are.
"""

from __future__ import annotations

import multiprocessing
import sys
import unittest
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


def main(method: str, case: str) -> None:
    theirs.multiprocessing.set_forkserver_preload(theirs.PRELOAD)
    multiprocessing.set_start_method(method, force=True)  # importing theirs has set it
    for name, cls in CLASSES.items():
        setattr(multiprocessing, name, cls)
    loaded = unittest.defaultTestLoader.loadTestsFromName(f"cpython_cases.{case}")
    result = unittest.TextTestRunner(verbosity=2).run(loaded)
    for test, reason in result.skipped:
        print(f"skipped: {test}: {reason}")
    sys.exit(not result.wasSuccessful() or result.testsRun == 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
