"""Buffers and tensors as pickles: related processes get them by any way, others an error that says what to do."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, resource_sharer
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from support import SECONDS, START_METHODS, Crew, environment, hear, leaves_nothing, unique_name

import shmtensor as st

NUMBERS = ((4,), "int64")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing(of_others=False):
        yield


@pytest.fixture
def sharer() -> Iterator[None]:
    """multiprocessing's thread that hands out descriptors keeps those that nobody fetched until it is stopped."""
    yield
    resource_sharer.stop()


class Wrapped:
    """Pickles what it holds into bytes of its own, as wrappers around cloudpickle do."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __getstate__(self) -> bytes:
        return pickle.dumps(self.held)

    def __setstate__(self, state: bytes) -> None:
        self.held = pickle.loads(state)


def add_up(buffer: st.TensorBuffer | Wrapped | bytes) -> int:
    if isinstance(buffer, bytes):
        buffer = pickle.loads(buffer)
    with buffer.held if isinstance(buffer, Wrapped) else buffer as buffer:
        return int(buffer.get(timeout=SECONDS, copy=True).sum())


def say_sum(connection: Connection, buffer: Any = None) -> None:
    connection.send(add_up(connection.recv() if buffer is None else buffer))


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("wrap", [lambda b: b, Wrapped], ids=["plain", "pickled within"])
def test_as_an_argument(method: str, wrap: Any) -> None:
    with st.TensorBuffer.create(NUMBERS, slots=2) as buffer, Crew(method) as crew:
        buffer.put([1, 2, 3, 4])
        assert hear(crew.start(say_sum, wrap(buffer))) == 10


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("wrap", [lambda b: b, Wrapped, pickle.dumps], ids=["plain", "pickled within", "bytes"])
def test_through_a_pipe(method: str, wrap: Any, sharer: None) -> None:
    with st.TensorBuffer.create(NUMBERS, slots=2) as buffer, Crew(method) as crew:
        buffer.put([1, 2, 3, 4])
        connection = crew.start(say_sum)
        connection.send(wrap(buffer))
        assert hear(connection) == 10


@pytest.mark.parametrize("method", START_METHODS)
def test_as_the_argument_of_a_pools_task(method: str, sharer: None) -> None:
    with (
        st.TensorBuffer.create(NUMBERS, slots=2) as buffer,
        ProcessPoolExecutor(1, mp_context=get_context(method)) as pool,
    ):
        buffer.put([1, 2, 3, 4])
        assert pool.submit(add_up, buffer).result(SECONDS) == 10


LOADS = """
import pickle, sys
import shmtensor as st
try:
    pickle.load(sys.stdin.buffer)
except st.ShmError as e:
    print(type(e).__name__, e)
"""


@pytest.mark.parametrize("make", ["buffer", "tensor"])
def test_an_unrelated_process_is_told_to_use_a_name(make: str, sharer: None, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        st.TensorBuffer.create(NUMBERS, slots=2) if make == "buffer" else st.SharedTensor.from_array(np.ones(3))
    ) as held:
        command = [sys.executable, "-c", LOADS]
        done = subprocess.run(
            command, input=pickle.dumps(held), env=environment(), capture_output=True, timeout=SECONDS
        )
    cls = type(held).__name__
    said = done.stdout.decode()
    assert said.startswith(f"ShmError this anonymous {cls} cannot be attached here: "), said + done.stderr.decode()
    assert f"create it with name= and use {cls}.attach(name)" in said
    assert done.stderr == b""
    assert capfd.readouterr().err == "", "the process that pickled prints nothing either"


def test_an_unrelated_process_attaches_to_a_pickled_name() -> None:
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).get(timeout=60, copy=True).sum())"
    with st.TensorBuffer.create(NUMBERS, slots=2, name=unique_name()) as buffer:
        buffer.put([1, 2, 3, 4])
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(buffer), env=environment(), capture_output=True, check=True
        )
    assert done.stdout == b"10\n"


def send_pickled_and_end(connection: Connection) -> None:
    with st.TensorBuffer.create(NUMBERS, slots=2) as buffer:
        connection.send_bytes(pickle.dumps(buffer))
        connection.recv()


def test_the_one_who_pickled_it_has_ended() -> None:
    with Crew() as crew:
        connection = crew.start(send_pickled_and_end)
        data = connection.recv_bytes()
        connection.send("end")
        crew.join()
        with pytest.raises(st.ShmError, match=r"has ended, or it was unpickled once already.*name="):
            pickle.loads(data)


def test_unpickled_a_second_time(sharer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)  # multiprocessing's thread prints its KeyError
    with st.TensorBuffer.create(NUMBERS, slots=2) as buffer:
        data = pickle.dumps(buffer)
        with pickle.loads(data) as other:
            other.put([1, 2, 3, 4])
        assert add_up(buffer) == 10
        with pytest.raises(st.ShmError, match="unpickled once already"):
            pickle.loads(data)
