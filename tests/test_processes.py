"""TensorBuffer across processes: every way to start one, streams that lose nothing, forks at bad moments, deaths."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_sharer
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from support import (
    SECONDS,
    START_METHODS,
    STREAM_SPEC,
    Crew,
    check_stream,
    consume,
    echo,
    environment,
    hear,
    hear_keys,
    leaves_nothing,
    not_permitted,
    path_of,
    produce,
    python,
    read_stamp,
    stamp,
    talking,
    unique_name,
    wait_until,
)

import shmtensor as st

NUMBER = ((), "int64")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing(of_others=False):
        yield


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


@pytest.fixture
def buffer() -> Iterator[st.TensorBuffer]:
    with st.TensorBuffer.create(NUMBER, slots=4) as buffer:
        yield buffer


def states(buffer: st.TensorBuffer) -> tuple[int, ...]:
    s = buffer.stats()
    assert s["free"] + s["writing"] + s["ready"] + s["reading"] == buffer.slots
    return s["writing"], s["ready"], s["reading"]


# ---- every way to start a process --------------------------------------------------------------------------


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize(
    ("named", "payload"),
    [(False, "numpy"), (False, "torch"), (True, "numpy")],  # how it travels does not depend on the payload
    ids=["anonymous-numpy", "anonymous-torch", "named-numpy"],
)
def test_start_methods(method: str, payload: str, named: bool) -> None:
    torch = pytest.importorskip("torch") if payload == "torch" else None
    names = [unique_name() if named else None for _ in range(2)]
    spec = ((3, 5), "float32")
    with (
        st.TensorBuffer.create(spec, slots=2, name=names[0]) as requests,
        st.TensorBuffer.create(spec, slots=3, name=names[1]) as replies,
        Crew(method) as crew,
    ):
        connection = crew.start(echo, requests, replies, torch is not None)
        for i in range(50):
            x = np.arange(15, dtype="float32").reshape(3, 5) * i
            with requests.claim(timeout=SECONDS) as slot:
                slot.write(torch.from_numpy(x) if torch else x)
                slot.tag = i
            with replies.acquire(timeout=SECONDS) as slot:
                assert np.array_equal(slot.numpy(), x + 1)
                assert slot.tag == i
        requests.shutdown()
        assert hear(connection) == [], "the child let go of everything"
    gc.collect()


@pytest.mark.parametrize("method", START_METHODS)
def test_a_shared_tensor_is_passed_along(method: str) -> None:
    with st.SharedTensor.zeros((4, 4), "int32") as tensor, Crew(method) as crew:
        hear(crew.start(_fill, tensor, 7))
        assert (tensor.numpy() == 7).all()


def _fill(connection: Connection, tensor: st.SharedTensor, value: int) -> None:
    tensor.numpy()[...] = value
    connection.send("done")


def test_a_buffer_can_be_sent_to_a_running_process(crew: Crew, buffer: st.TensorBuffer) -> None:
    def work(connection: Connection) -> None:
        received = connection.recv()
        received.put(5)
        connection.send(received.stats()["members"])

    connection = crew.start(work)
    connection.send(buffer)
    assert hear(connection) == 2
    assert buffer.get(timeout=SECONDS, copy=True) == 5
    resource_sharer.stop(timeout=10)


# ---- streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "batch_in", "batch_out", "each"),
    [(64, 0, 0, 33_334), (16, 8, 0, 10_000), (64, 16, 16, 33_334), (2, 0, 0, 4_000), (1, 0, 0, 1_000)],
)
def test_three_producers_and_three_consumers(crew: Crew, slots: int, batch_in: int, batch_out: int, each: int) -> None:
    """100,000 items: none lost, doubled, torn, or out of order per producer and consumer."""
    with st.TensorBuffer.create(STREAM_SPEC, slots=slots, producers=3) as buffer:
        ends = [crew.start(consume, buffer, batch_out) for _ in range(3)]
        for producer in range(3):
            crew.start(produce, buffer, producer, each, batch_in)
        heard = [hear_keys(end) for end in ends]
        check_stream(heard, 3, each)
        assert buffer.stats()["publishes"] == 3 * each
        assert states(buffer) == (0, 0, 0)
        assert buffer.stats()["redelivered"] == 0


@pytest.mark.parametrize("method", [m for m in START_METHODS if m != "fork"])
def test_streams_of_spawned_processes(method: str) -> None:
    with st.TensorBuffer.create(STREAM_SPEC, slots=8, producers=2) as buffer, Crew(method) as crew:
        ends = [crew.start(consume, buffer) for _ in range(2)]
        for producer in range(2):
            crew.start(produce, buffer, producer, 5_000)
        check_stream([hear_keys(end) for end in ends], 2, 5_000)


def test_threads_in_processes(crew: Crew) -> None:
    """Two processes of two writing threads, two of two reading threads; each process has one handle."""
    each = 4_000
    with st.TensorBuffer.create(STREAM_SPEC, slots=8, producers=2) as buffer:

        def writers(connection: Connection, process: int) -> None:
            def write(producer: int) -> None:
                for i in range(each):
                    with buffer.claim(timeout=SECONDS) as slot:
                        stamp(slot.numpy(), producer, i)

            run_threads(write, [2 * process, 2 * process + 1])
            buffer.close()

        def readers(connection: Connection) -> None:
            heard: list[list[int]] = [[], []]

            def read(k: int) -> None:
                for item in buffer:
                    heard[k].append(read_stamp(item))
                    del item

            run_threads(read, [0, 1])
            for keys in heard:
                connection.send_bytes(np.array(keys, np.int64).tobytes())

        ends = [crew.start(readers) for _ in range(2)]
        for process in range(2):
            crew.start(writers, process)
        check_stream([hear_keys(end) for end in ends for _ in range(2)], 4, each)
        assert states(buffer) == (0, 0, 0)


def run_threads(function: Any, arguments: list[int]) -> None:
    threads = [threading.Thread(target=function, args=(a,)) for a in arguments]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def test_large_items_are_whole(crew: Crew) -> None:
    """4 MB each: every word checked, in slots that are used over and over."""
    words, count = 1 << 19, 60
    with st.TensorBuffer.create(((words,), "int64"), slots=3, producers=2) as buffer:

        def write(connection: Connection, producer: int) -> None:
            base = np.arange(words)
            for i in range(count):
                if i % 2:
                    buffer.put(base + (producer << 40 | i), timeout=SECONDS)
                else:
                    with buffer.claim(timeout=SECONDS) as slot:
                        np.add(base, producer << 40 | i, out=slot.numpy())
            buffer.close()

        for producer in range(2):
            crew.start(write, producer)
        base, seen = np.arange(words), []
        for item in buffer:
            key = int(item[0])
            assert np.array_equal(item - key, base), "torn"
            seen.append(key)
            del item
        for producer in range(2):
            assert [k for k in seen if k >> 40 == producer] == [producer << 40 | i for i in range(count)]


# ---- fork --------------------------------------------------------------------------------------------------


def test_a_forked_child_uses_what_it_inherited(crew: Crew, buffer: st.TensorBuffer) -> None:
    def child(connection: Connection) -> None:
        buffer.put(1)
        connection.send(buffer.stats()["members"])
        connection.recv()
        assert buffer.get(timeout=SECONDS, copy=True) == 2

    connection = crew.start(child)
    assert hear(connection) == 2, "parent and child are two members"
    assert buffer.get(timeout=SECONDS, copy=True) == 1
    buffer.put(2)
    connection.send("go")
    assert crew.join() == [0]
    assert states(buffer) == (0, 0, 0)


def test_grandchildren(crew: Crew, buffer: st.TensorBuffer) -> None:
    def child(connection: Connection) -> None:
        buffer.put(1)
        with Crew() as inner:
            hear(inner.start(grandchild))
        connection.send("done")

    def grandchild(connection: Connection) -> None:
        assert buffer.get(timeout=SECONDS, copy=True) == 1
        buffer.put(2)
        connection.send("done")

    hear(crew.start(child))
    assert buffer.get(timeout=SECONDS, copy=True) == 2


def test_slots_claimed_before_a_fork_stay_the_parents(crew: Crew, buffer: st.TensorBuffer) -> None:
    written, aborted, batch, given_up = buffer.claim(), buffer.claim(), buffer.claim_many(1), buffer.claim_many(1)
    written.write(7)
    batch.numpy()[...] = 8

    def child(connection: Connection) -> None:
        for call in (written.publish, aborted.abort, batch.publish, given_up.abort):
            try:
                call()
            except st.LeaseLost as e:
                assert "fork" in str(e)
            else:
                raise AssertionError("the parent's slot was given away")
        connection.send(states(buffer))

    assert hear(crew.start(child)) == (4, 0, 0)
    crew.join()
    assert states(buffer) == (4, 0, 0)
    written.publish()
    aborted.abort()
    batch.publish()
    given_up.abort()
    assert sorted(int(x) for x in buffer.get_many(9, copy=True)) == [7, 8]


def test_a_slot_that_was_not_written_yet_stays_the_parents_too(crew: Crew) -> None:
    """The child hears that the slot is lost to it, and not what is missing in it."""
    with st.TensorBuffer.create(((None,), "int64"), slots=1) as buffer:
        slot = buffer.claim()

        def child(connection: Connection) -> None:
            with pytest.raises(st.LeaseLost, match="fork"):
                slot.publish()
            connection.send("lost")

        assert hear(crew.start(child)) == "lost"
        with pytest.raises(ValueError, match="not been written"):
            slot.publish()
        slot.abort()


def leave_by_exit(connection: Connection) -> None:
    os._exit(0)


def leave_by_system_exit(connection: Connection) -> None:
    sys.exit(0)


def leave_normally(connection: Connection) -> None:
    pass


def leave_collecting(connection: Connection) -> None:
    gc.collect()


@pytest.mark.parametrize("leave", [leave_by_exit, leave_by_system_exit, leave_normally, leave_collecting])
@pytest.mark.parametrize("joined", [False, True])
def test_a_childs_exit_leaves_the_parents_slots_alone(crew: Crew, leave: Any, joined: bool) -> None:
    name = unique_name()
    with st.TensorBuffer.create(NUMBER, slots=6, name=name) as buffer:
        buffer.put_many(range(3))
        held: dict[str, Any] = {"reader": buffer.acquire(), "view": buffer.get(), "batch": buffer.acquire_many(1)}
        held["writer"] = buffer.claim()

        def child(connection: Connection) -> None:
            if joined:
                assert buffer.stats()["members"] == 2
                buffer.put(9)
            assert held["reader"].numpy() == 0
            if leave is not leave_by_exit:
                held["reader"].release()  # only this process's copy
                held.clear()
                gc.collect()
            assert states(buffer) == (1, int(joined), 3)
            if leave is leave_collecting:
                buffer.close()
            leave(connection)

        crew.start(child)
        assert crew.join() == [0]
        assert states(buffer) == (1, int(joined), 3)
        assert path_of(name).exists()
        assert held["reader"].numpy() == 0
        assert held["view"] == 1
        held["writer"].write(4)
        held["writer"].publish()
        held["reader"].release()
        held["batch"].release()
        held.clear()
        assert states(buffer) == (0, 1 + int(joined), 0)
        assert [int(x) for x in buffer.get_many(9, copy=True)] == [9, 4][1 - joined :]


def test_a_child_may_release_what_it_acquired_where_the_parent_holds_views(crew: Crew, buffer: st.TensorBuffer) -> None:
    """The parent's table of leases is copied by the fork: the slots in it may become the child's later."""
    buffer.put_many(range(4))
    views = [buffer.get() for _ in range(4)]

    def child(connection: Connection) -> None:
        connection.recv()
        for i in range(20):
            buffer.put(i, timeout=SECONDS)
            view = buffer.get(timeout=SECONDS)
            assert view == i
            assert states(buffer) == (0, 0, 1)
            del view
            assert states(buffer) == (0, 0, 0)
        del views[:]
        connection.send(states(buffer))

    connection = crew.start(child)
    views.clear()
    connection.send("go")
    assert hear(connection) == (0, 0, 0)


def test_fork_while_threads_hold_slots_and_wait(crew: Crew) -> None:
    with st.TensorBuffer.create(NUMBER, slots=4) as buffer:
        holding, go = threading.Barrier(3), threading.Event()
        outcome: list[Any] = []

        def writer() -> None:
            with buffer.claim() as slot:
                slot.write(1)
                holding.wait()
                go.wait()

        def reader() -> None:
            with buffer.acquire(timeout=SECONDS) as slot:
                holding.wait()
                go.wait()
                outcome.append(int(slot.numpy()))

        buffer.put(0)
        threads = [threading.Thread(target=f) for f in (writer, reader)]
        for t in threads:
            t.start()
        holding.wait()
        waiting = threading.Thread(target=lambda: outcome.append(int(buffer.get(timeout=SECONDS, copy=True))))
        waiting.start()
        assert wait_until(lambda: buffer.stats()["sleeps"] > 0)

        def child(connection: Connection) -> None:
            assert states(buffer) == (1, 0, 1)
            buffer.put(5)
            connection.send("done")

        hear(crew.start(child))
        waiting.join(SECONDS)
        assert outcome == [5]
        crew.join()
        assert states(buffer) == (1, 0, 1)
        go.set()
        for t in threads:
            t.join(SECONDS)
        assert outcome == [5, 0]
        assert buffer.get(timeout=0, copy=True) == 1
        assert states(buffer) == (0, 0, 0)


def test_fork_storm_while_threads_hand_over(buffer: st.TensorBuffer) -> None:
    """Forks at arbitrary moments of another thread's verbs: no lock is inherited locked, nothing is released twice."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            i = 0
            while not stop.is_set():
                buffer.put(i, timeout=SECONDS)
                assert buffer.get(timeout=SECONDS, copy=True) == i
                with st.TensorBuffer.create(NUMBER, slots=1) as other:  # the registry's lock, too
                    other.put(i)
                i += 1
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    pids = []
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            try:
                with st.TensorBuffer.create(NUMBER, slots=1) as own:
                    own.put(1)
                    assert own.get(timeout=SECONDS, copy=True) == 1
                assert buffer.stats()["members"] >= 2
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
        time.sleep(0.002)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    stop.set()
    thread.join(SECONDS)
    assert not failed, failed
    assert set(codes) == {0}
    assert states(buffer) == (0, 0, 0)


def test_a_child_outlives_its_parents_handle(crew: Crew) -> None:
    """It has the mapping; that nobody else is left, or that the name is gone, does not concern it."""
    for name in (None, unique_name()):
        buffer = st.TensorBuffer.create(NUMBER, slots=4, name=name)
        buffer.put(1)

        def child(connection: Connection, buffer: st.TensorBuffer = buffer) -> None:
            connection.recv()
            assert buffer.get(timeout=SECONDS, copy=True) == 1
            buffer.put(2)
            connection.send(int(buffer.get(timeout=SECONDS, copy=True)))

        connection = crew.start(child)
        buffer.close()
        connection.send("go")
        assert hear(connection) == 2


def test_a_child_joins_while_its_parents_last_views_live(crew: Crew) -> None:
    """The parent closed the named buffer as its last member, and a view keeps its mapping and its membership."""
    buffer = st.TensorBuffer.create(NUMBER, slots=4, name=unique_name())
    buffer.put_many([1, 2])
    view = buffer.get()

    def child(connection: Connection) -> None:
        connection.recv()
        connection.send(int(buffer.get(timeout=SECONDS, copy=True)))

    connection = crew.start(child)
    buffer.close()
    connection.send("go")
    assert hear(connection) == 2
    assert view == 1


# ---- deaths ------------------------------------------------------------------------------------------------


def hold_and_die(connection: Connection, buffer: st.TensorBuffer, what: str) -> None:
    held = {
        "claim": buffer.claim,
        "claim_many": lambda: buffer.claim_many(2),
        "acquire": buffer.acquire,
        "get": buffer.get,
        "acquire_many": lambda: buffer.acquire_many(2),
    }[what]()
    connection.send(len(held) if what.endswith("many") else 1)
    time.sleep(SECONDS)
    print(held)


def kill(crew: Crew, number: int = -1) -> None:
    crew.processes[number].kill()
    crew.processes[number].join()


@pytest.mark.parametrize("what", ["claim", "claim_many"])
def test_a_killed_producers_slots_come_back(what: str) -> None:
    with st.TensorBuffer.create(NUMBER, slots=2) as buffer:
        crew = Crew()
        try:
            n = hear(crew.start(hold_and_die, buffer, what))
            held = [buffer.claim(timeout=0) for _ in range(2 - n)]
            with pytest.raises(TimeoutError):
                buffer.put(5, timeout=0)
            kill(crew)
            begin = time.monotonic()
            buffer.put(5, timeout=SECONDS)
            assert time.monotonic() - begin < 5, "slots come back within a wait slice of 100 ms, not in seconds"
            for slot in held:
                slot.abort()
            assert buffer.get(timeout=0, copy=True) == 5
            assert states(buffer) == (0, 0, 0)
            assert buffer.stats()["reclaimed"] == 1
        finally:
            crew.__exit__(KeyboardInterrupt)


@pytest.mark.parametrize("what", ["acquire", "get", "acquire_many"])
@pytest.mark.parametrize("policy", ["redeliver", "drop"])
def test_a_killed_consumers_items(what: str, policy: str) -> None:
    with st.TensorBuffer.create(NUMBER, slots=4, on_consumer_death=policy) as buffer:
        buffer.put_many([1, 2, 3])
        crew = Crew()
        try:
            n = hear(crew.start(hold_and_die, buffer, what))
            assert states(buffer) == (0, 3 - n, n)
            kill(crew)
            assert buffer.reclaim() == 1
            assert buffer.reclaim() == 0
            s = buffer.stats()
            assert (s["redelivered"], s["dropped"]) == ((n, 0) if policy == "redeliver" else (0, n))
            heard = []
            while (slot := buffer.try_acquire()) is not None:
                heard.append((int(slot.numpy()), slot.redelivered))
                slot.release()
            again = [(i, 1) for i in range(1, n + 1)] if policy == "redeliver" else []
            assert sorted(heard) == sorted(again + [(i, 0) for i in range(n + 1, 4)])
            assert states(buffer) == (0, 0, 0)
        finally:
            crew.__exit__(KeyboardInterrupt)


def test_a_batch_says_which_of_its_items_come_again() -> None:
    with st.TensorBuffer.create(NUMBER, slots=4) as buffer:
        buffer.put_many([1, 2, 3])
        with buffer.acquire() as slot:
            assert slot.redelivered == 0
        crew = Crew()
        try:
            assert hear(crew.start(hold_and_die, buffer, "acquire")) == 1  # 2
            kill(crew)
        finally:
            crew.__exit__(KeyboardInterrupt)
        buffer.put(4)
        assert buffer.reclaim() == 1
        heard = []
        while buffer.stats()["ready"]:
            with buffer.acquire_many(4) as batch:
                assert len(batch.redelivered) == len(batch)
                heard += zip(batch.numpy().tolist(), batch.redelivered, strict=True)
        assert sorted(heard) == [(2, 1), (3, 0), (4, 0)]
        with buffer.claim_many(2) as batch:
            assert batch.redelivered == (0,) * len(batch)


def test_an_item_that_kills_its_consumers_is_given_up() -> None:
    """Redelivered three times, then dropped and counted."""
    with st.TensorBuffer.create(NUMBER, slots=2) as buffer:
        buffer.put(13)
        tries = 0
        while len(buffer):
            crew = Crew()
            try:
                hear(crew.start(hold_and_die, buffer, "acquire"))
                kill(crew)
            finally:
                crew.__exit__(KeyboardInterrupt)
            assert buffer.reclaim() == 1
            tries += 1
            assert tries < 10
        assert tries == 4
        s = buffer.stats()
        assert (s["redelivered"], s["dropped"], s["free"]) == (3, 1, 2)


def test_a_waiting_consumer_gets_what_a_killed_one_held() -> None:
    with st.TensorBuffer.create(NUMBER, slots=2) as buffer:
        buffer.put(13)
        crew = Crew()
        try:
            hear(crew.start(hold_and_die, buffer, "acquire"))
            heard: list[int] = []
            waiter = threading.Thread(target=lambda: heard.append(int(buffer.get(timeout=SECONDS, copy=True))))
            waiter.start()
            assert wait_until(lambda: buffer.stats()["sleeps"] > 0)
            kill(crew)
            begin = time.monotonic()
            waiter.join(SECONDS)
            assert time.monotonic() - begin < 5
            assert heard == [13]
        finally:
            crew.__exit__(KeyboardInterrupt)


def test_kills_in_mid_stream_hang_nobody() -> None:
    """Producers and consumers are killed at arbitrary moments; those who live go on, and no slot is lost."""
    each = 3_000
    with st.TensorBuffer.create(STREAM_SPEC, slots=8, producers=0) as buffer:
        victims, living = Crew(), Crew()
        try:
            for producer in (1, 2):
                victims.start(produce, buffer, producer, 10**9)
            victims.start(consume, buffer)
            end = living.start(consume, buffer)
            living.start(produce, buffer, 0, each)
            for number in range(3):
                time.sleep(0.1)
                kill(victims, number)
            assert wait_until(lambda: living.processes[1].exitcode == 0, SECONDS), "the living producer hangs"
            buffer.reclaim()
            buffer.shutdown()
            keys = hear_keys(end)
            assert (keys >= 0).all(), "torn"
            keys = keys[keys >> 48 == 0]
            assert len(keys) > 0
            assert len(set(keys.tolist())) == len(keys) or buffer.stats()["redelivered"] > 0
            assert wait_until(lambda: buffer.reclaim() == 0 and states(buffer) == (0, 0, 0)), buffer
        finally:
            victims.__exit__(KeyboardInterrupt)
            living.__exit__(KeyboardInterrupt)


def test_a_stopped_process_is_not_dead(buffer: st.TensorBuffer) -> None:
    crew = Crew()

    def child(connection: Connection) -> None:
        slot = buffer.claim()
        slot.write(3)
        connection.send("claimed")
        connection.recv()
        slot.publish()
        connection.send("published")

    try:
        connection = crew.start(child)
        hear(connection)
        os.kill(crew.processes[0].pid or 0, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            buffer.get(timeout=0.25)
        assert buffer.reclaim() == 0
        assert states(buffer) == (1, 0, 0)
        os.kill(crew.processes[0].pid or 0, signal.SIGCONT)
        connection.send("go")
        assert hear(connection) == "published"
        assert buffer.get(timeout=SECONDS, copy=True) == 3
    finally:
        crew.__exit__(KeyboardInterrupt)


@pytest.mark.parametrize("proc", [["--mount-proc"], []], ids=["own /proc", "outer /proc"])
def test_another_pid_namespace(proc: list[str]) -> None:
    """A pid says nothing there; the lock does. With the outer /proc mounted, /proc/self is not there either."""
    wrapper = ("unshare", "--pid", "--fork", "--kill-child", *proc)
    if why := not_permitted(*wrapper, "true"):
        pytest.skip(why)
    code = """
import os, sys, time
import shmtensor as st
buffer = st.TensorBuffer.attach(sys.argv[1])
slot = buffer.claim()
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    name = unique_name()
    with st.TensorBuffer.create(NUMBER, slots=1, name=name) as buffer:
        inner = subprocess.Popen(
            [*wrapper, sys.executable, "-c", code, name],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert inner.stdout is not None
            assert int(inner.stdout.readline()) < 10, "its pid is another process's here"
            with pytest.raises(TimeoutError):
                buffer.put(1, timeout=0.25)
            assert buffer.reclaim() == 0
            inner.kill()
            inner.communicate()
            buffer.put(1, timeout=SECONDS)
            assert buffer.stats()["reclaimed"] == 1
        finally:
            inner.kill()
            inner.communicate()


# ---- names -------------------------------------------------------------------------------------------------

AT_EXIT = """
import sys
import numpy as np
import shmtensor as st
name, how = sys.argv[1:]
buffer = st.TensorBuffer.create(((4,), "int64"), slots=4, name=name)
other = buffer if how == "thread" else st.TensorBuffer.attach(name)
tensor = st.SharedTensor.from_array(np.arange(4), name=name + "-t")
buffer.put_many([[1] * 4] * 3)
views = buffer.get(), other.acquire().numpy()[1:], tensor.numpy()
slot = buffer.claim()
alias = views[0].view()
keep = [views]
keep.append(keep)
sys.modules["kept"] = keep
print(*(__import__("os").path.exists(f"/dev/shm/shmtensor.{n}") for n in (name, name + "-t")))
if how == "exit":
    sys.exit(0)
if how == "raise":
    try:
        raise ValueError
    finally:
        sys.stderr = open("/dev/null", "w")
        __import__("os").dup2(sys.stderr.fileno(), 2)
if how == "thread":
    import threading
    threading.Thread(target=buffer.acquire, daemon=True).start()
    threading.Thread(target=lambda: buffer.get_many(9), daemon=True).start()
"""


@pytest.mark.parametrize("how", ["end", "exit", "raise", "thread"])
def test_names_go_at_exit_though_views_are_alive(how: str) -> None:
    name = unique_name()
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, name, how], env=environment(), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.stdout == "True True\n", done.stderr
    assert done.returncode == (1 if how == "raise" else 0)
    assert "Exception ignored" not in done.stderr
    assert not path_of(name).exists()
    assert not path_of(name + "-t").exists()


def test_names_go_with_the_last_process_not_the_first() -> None:
    code = """
import sys
import shmtensor as st
if sys.argv[2] == "create":
    buffer = st.TensorBuffer.create(((), "int64"), slots=4, name=sys.argv[1])
    buffer.put(5)
else:
    buffer = st.TensorBuffer.attach(sys.argv[1])
print("in", flush=True)
sys.stdin.readline()
if sys.argv[2] == "attach":
    print(int(buffer.get(timeout=0)), buffer.stats()["members"], flush=True)
    sys.stdin.readline()
"""
    name = unique_name()
    with talking(code, name, "create") as first:
        assert first.stdout and first.stdin
        first.stdout.readline()
        with talking(code, name, "attach") as second:
            assert second.stdout and second.stdin
            second.stdout.readline()
            first.communicate("\n")
            assert first.returncode == 0
            assert path_of(name).exists()
            second.stdin.write("\n")
            second.stdin.flush()
            assert second.stdout.readline() == "5 1\n"
            second.communicate("\n")
            assert second.returncode == 0
            assert not path_of(name).exists()


def killed_owner(name: str, what: str) -> None:
    """Leaves a name behind, as a process does that is killed."""
    code = f"""
import os, sys, signal
import shmtensor as st
thing = {what}
os.kill(os.getpid(), signal.SIGKILL)
"""
    with talking(code, name) as process:
        process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGKILL
    assert path_of(name).exists()


BUFFER = 'st.TensorBuffer.create(((), "int64"), slots=2, name=sys.argv[1])'
TENSOR = 'st.SharedTensor.zeros(3, "int32", name=sys.argv[1])'


@pytest.mark.parametrize("what", [BUFFER, TENSOR], ids=["buffer", "tensor"])
@pytest.mark.parametrize("same", [True, False])
def test_the_names_of_the_dead_are_swept_at_the_next_create(what: str, same: bool) -> None:
    name = unique_name()
    killed_owner(name, what)
    with st.TensorBuffer.create(NUMBER, slots=1, name=name if same else unique_name()) as buffer:
        assert path_of(name).exists() == same
        buffer.put(1)
    assert not path_of(name).exists()


def test_anonymous_segments_sweep_nothing_and_need_not() -> None:
    name = unique_name()
    killed_owner(name, BUFFER)
    st.TensorBuffer.create(NUMBER, slots=1).close()
    assert path_of(name).exists()
    st.SharedTensor.zeros(1, "u1", name=unique_name()).close()
    assert not path_of(name).exists()


def test_a_sweep_leaves_the_living_alone(crew: Crew) -> None:
    name = unique_name()
    with st.TensorBuffer.create(NUMBER, slots=1, name=name) as buffer:

        def child(connection: Connection) -> None:
            for _ in range(20):
                st.TensorBuffer.create(NUMBER, slots=1, name=unique_name(str(os.getpid()))).close()
            connection.send("done")

        hear(crew.start(child))
        assert path_of(name).exists()
        with st.TensorBuffer.attach(name) as other:
            other.put(1)
        assert buffer.get(copy=True) == 1


def test_a_segment_of_the_dead_can_be_attached_until_it_is_swept() -> None:
    """What was published survives its publisher; what was being written does not."""
    name = unique_name()
    code = 'st.TensorBuffer.create(((), "int64"), slots=3, name=sys.argv[1]); thing.put(5); s = thing.claim()'
    killed_owner(name, code)
    with st.TensorBuffer.attach(name) as buffer:
        assert buffer.get(timeout=SECONDS, copy=True) == 5
        buffer.reclaim()
        assert states(buffer) == (0, 0, 0)
    assert not path_of(name).exists()


def test_many_processes_create_one_name(crew: Crew) -> None:
    """One wins, the others are told; nobody's sweep takes a segment in the making."""
    name = unique_name()

    def child(connection: Connection) -> None:
        connection.recv()
        created = 0
        for _ in range(30):
            try:
                buffer = st.TensorBuffer.create(NUMBER, slots=1, name=name)
            except FileExistsError:
                try:
                    buffer = st.TensorBuffer.attach(name)
                except FileNotFoundError:  # its owner has just closed it
                    continue
            else:
                created += 1
            with contextlib.suppress(TimeoutError):  # another put one there and is gone
                buffer.put(1, timeout=0)
            buffer.close()
        connection.send(created)

    ends = [crew.start(child) for _ in range(4)]
    for end in ends:
        end.send("go")
    assert sum(hear(end) for end in ends) >= 1
    assert not path_of(name).exists()


def test_the_multiprocessing_resource_tracker_knows_nothing_of_us() -> None:
    """It would unlink a name at the exit of whoever attached first."""
    code = """
import sys
import shmtensor as st
with st.TensorBuffer.attach(sys.argv[1]) as buffer:
    pass
tracker = sys.modules.get("multiprocessing.resource_tracker")
print(tracker and tracker._resource_tracker._pid)
"""
    name = unique_name()
    with st.TensorBuffer.create(NUMBER, slots=1, name=name):
        assert python(code, name).strip() == "None"
        assert path_of(name).exists()
