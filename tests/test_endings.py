"""How a process ends, and what those who wait for it are told: by close(), by an exception, by a kill."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
from support import SECONDS, START_METHODS, Crew, environment, hear, leaves_nothing, unique_name

import shmtensor as st

NUMBER = ((), "int64")
WAITS: dict[str, Callable[[st.TensorBuffer], Any]] = {
    "claim": lambda b: b.claim(timeout=SECONDS),
    "put": lambda b: b.put(1, timeout=SECONDS),
    "claim_many": lambda b: b.claim_many(2, timeout=SECONDS),
    "acquire": lambda b: b.acquire(timeout=SECONDS),
    "get": lambda b: b.get(timeout=SECONDS),
    "acquire_many": lambda b: b.acquire_many(2, timeout=SECONDS),
    "iterate": lambda b: list(b),
}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing(of_others=False):
        yield


def killed(crew: Crew, connection: Connection) -> None:
    hear(connection)
    crew.processes[-1].kill()
    crew.processes[-1].join()
    crew.processes.pop()


def put_and_stay(connection: Connection, buffer: st.TensorBuffer) -> None:
    buffer.put(7)
    connection.send("put")
    connection.recv()


def get_and_stay(connection: Connection, buffer: st.TensorBuffer) -> None:
    buffer.get(timeout=SECONDS, copy=True)
    connection.send("got")
    connection.recv()


def put_and_exit(connection: Connection, buffer: st.TensorBuffer) -> None:
    buffer.put(7)
    sys.exit(0)


def put_until_the_end(connection: Connection, buffer: st.TensorBuffer) -> None:
    """By ShutDown, which is how a producer learns that it may stop."""
    with contextlib.suppress(st.ShutDown), buffer:
        buffer.put(7)
        connection.send("put")
        hear(connection)
        buffer.put(8)


def put_and_return(connection: Connection, buffer: st.TensorBuffer) -> None:
    buffer.put(7)


def put_and_raise(connection: Connection, buffer: st.TensorBuffer) -> None:
    sys.stderr = io.StringIO()  # its traceback is no news here
    buffer.put(7)
    raise ZeroDivisionError


def put_and_raise_within(connection: Connection, buffer: st.TensorBuffer) -> None:
    with contextlib.suppress(ZeroDivisionError), buffer:
        put_and_raise(connection, buffer)


def put_and_exit_with_an_error(connection: Connection, buffer: st.TensorBuffer) -> None:
    buffer.put(7)
    sys.exit(3)


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("work", [put_and_return, put_and_exit])
def test_a_child_that_returns_has_closed(method: str, work: Any) -> None:
    with st.TensorBuffer.create(NUMBER, slots=2) as buffer, Crew(method) as crew:
        crew.start(work, buffer)
        assert [int(item) for item in buffer] == [7]


def test_a_producer_that_was_told_to_stop_has_closed() -> None:
    with st.TensorBuffer.create(NUMBER, slots=2) as buffer, Crew() as crew:
        connection = crew.start(put_until_the_end, buffer)
        hear(connection)
        buffer.shutdown()
        connection.send("go on")
        assert [int(item) for item in buffer] == [7]


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("work", [put_and_raise, put_and_raise_within, put_and_exit_with_an_error])
def test_a_child_that_raises_has_not(method: str, work: Any) -> None:
    """Its items are not all that was to come: whoever iterates is told, and not left to think that it has them all."""
    with st.TensorBuffer.create(NUMBER, slots=2) as buffer, Crew(method) as crew:
        crew.start(work, buffer)
        came = []
        with pytest.raises(st.PeersGone, match="no producer is left"):
            for item in buffer:
                came.append(int(item))
        assert came == [7]
        crew.join()
        del crew.processes[:]


@pytest.mark.parametrize("raises", [True, False])
def test_a_script_that_raises_has_not_closed_either(raises: bool) -> None:
    code = "import sys, shmtensor as st; b = st.TensorBuffer.attach(sys.argv[1]); b.put(7); 1 / int(sys.argv[2])"
    with st.TensorBuffer.create(NUMBER, slots=2, name=unique_name()) as buffer:
        command = [sys.executable, "-c", code, buffer.name, str(int(not raises))]
        subprocess.run(command, env=environment(), stderr=subprocess.DEVNULL, timeout=SECONDS)
        assert buffer.get(timeout=0, copy=True) == 7
        with pytest.raises(st.PeersGone if raises else st.ShutDown):
            buffer.get(timeout=SECONDS)


@pytest.mark.parametrize("verb", ["acquire", "get", "acquire_many", "iterate"])
def test_a_killed_producer_is_no_end_but_an_error_that_says_so(verb: str) -> None:
    with st.TensorBuffer.create(NUMBER, slots=2) as buffer, Crew() as crew:
        killed(crew, crew.start(put_and_stay, buffer))
        assert buffer.get(timeout=SECONDS, copy=True) == 7  # what it published is not lost
        with pytest.raises(st.PeersGone, match=r"acquiring an item: no producer is left: .*start a producer"):
            WAITS[verb](buffer)


@pytest.mark.parametrize("verb", ["claim", "put", "claim_many"])
def test_killed_consumers_are_an_error_that_says_so(verb: str) -> None:
    with st.TensorBuffer.create(NUMBER, slots=2) as buffer, Crew() as crew:
        buffer.put(1)
        killed(crew, crew.start(get_and_stay, buffer))
        buffer.reclaim()
        while buffer.stats()["free"]:
            buffer.put(2)
        with pytest.raises(st.PeersGone, match=r"claiming a slot: no consumer is left: .*start a consumer"):
            WAITS[verb](buffer)
