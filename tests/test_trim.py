"""trim(): memory that was grown goes back, in every class that has slots which grow, and nothing else changes."""

from __future__ import annotations

import os
import textwrap
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from support import SECONDS, Crew, hear, leaves_nothing, python

import shmtensor as st

LARGE = np.arange(250_000)  # 2 MB


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing(of_others=False):
        yield


def taken(segment: Any) -> int:
    """Bytes of memory that the segment's file has."""
    return os.fstat(segment._fd).st_blocks * 512


@pytest.mark.parametrize("cls", [st.Queue, st.JoinableQueue, st.SimpleQueue])
def test_a_queue_gives_its_memory_back(cls: Any) -> None:
    q = cls()
    fresh = taken(q._slots)
    assert q.trim() == 0
    for _ in range(3):
        for _ in range(3):
            q.put(LARGE)
        kept = q.get()
        del kept
        kept = q.get()
        grown = taken(q._slots)
        assert grown >= fresh + 3 * LARGE.nbytes
        assert LARGE.nbytes <= q.trim() < 2 * LARGE.nbytes, "one of three is free"
        assert np.array_equal(kept, LARGE) and np.array_equal(q.get(), LARGE)
        before = taken(q._slots)
        del kept
        given = q.trim()
        assert given == before - taken(q._slots) and taken(q._slots) == fresh
    q.close()
    with pytest.raises(ValueError, match="closed"):
        q.trim()


def test_a_buffer_gives_its_memory_back() -> None:
    with st.TensorBuffer.create({"x": ((None,), "int64"), "n": ((), "int32")}, slots=4) as buffer:
        figure = buffer.stats()["reserved_nbytes"]
        for n in (LARGE.size, 3, LARGE.size // 2):
            buffer.put({"x": LARGE[:n], "n": n})
            got = buffer.get()
            assert np.array_equal(got["x"], LARGE[:n]) and got["n"] == n
            del got
            assert buffer.trim() > 0
            assert buffer.stats()["reserved_nbytes"] == figure
    with st.TensorBuffer.create(((1000,), "int64"), slots=4) as buffer:
        assert buffer.trim() == 0, "this one has all of its memory from the start"
    with pytest.raises(ValueError, match="closed"):
        buffer.trim()


def test_a_pool_gives_its_memory_back() -> None:
    with st.Pool(1) as pool:
        assert sum(int(x[0]) for x in pool.imap(np.negative, [LARGE] * 4)) == 0
        assert pool.trim() >= 2 * LARGE.nbytes
        assert np.array_equal(pool.apply(np.negative, (LARGE,)), -LARGE)


def take_and_put(connection: Connection, q: Any, r: Any) -> None:
    while (x := q.get(timeout=SECONDS)) is not None:
        r.put(x, timeout=SECONDS)
    connection.send("done")


def test_processes_that_knew_the_memory() -> None:
    """Each of the two has written to and read from the slots that the other gives back."""
    with Crew() as crew:
        q, r = st.Queue(2), st.Queue(2)
        connection = crew.start(take_and_put, q, r)
        for i in range(60):
            sent = LARGE[: 250_000 >> i % 12] + i
            q.put(sent, timeout=SECONDS)
            assert np.array_equal(r.get(timeout=SECONDS), sent)
            if i % 3 == 0:
                q.trim()
                r.trim()
        q.put(None)
        assert hear(connection) == "done"
        assert q.stats()["free"] == r.stats()["free"] == 2


def test_trims_while_others_are_at_work() -> None:
    """A slot that is being trimmed is taken for a moment: whoever waits gets it after that."""
    q: Any = st.Queue(1)
    stop = threading.Event()
    given = []

    def trim() -> None:
        while not stop.is_set():
            given.append(q.trim())

    threads = [threading.Thread(target=trim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(300):
        q.put(np.full(20_000 + 100 * i, i), timeout=SECONDS)
        got = q.get(timeout=SECONDS)
        assert len(got) == 20_000 + 100 * i and (got == i).all()
        del got
    stop.set()
    for thread in threads:
        thread.join()
    assert sum(given) > 0
    assert q.stats()["free"] == 1


def test_in_debug_mode() -> None:
    """A slot that is given up is filled with a pattern: not where its memory was."""
    code = """
        import numpy as np, os, shmtensor as st
        q = st.Queue(slots=4)
        for i in range(3):
            q.put(np.arange(500_000))
            assert q.get()[-1] == 499_999
            before = os.fstat(q._slots._fd).st_blocks
            assert q.trim() >= 4_000_000
            assert os.fstat(q._slots._fd).st_blocks < before - 4_000_000 // 512
        print("done")
    """
    assert python("import os; os.environ['SHMTENSOR_DEBUG'] = '1'\n" + textwrap.dedent(code)) == "done\n"
