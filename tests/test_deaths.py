"""A parent hears who died holding what, by deaths() and by on_death(); and an item that cannot be used is not lost."""

import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from support import SECONDS, START_METHODS, Crew, hear, wait_until

import shmtensor as st

SPEC = ((4,), "int64")


def hold(connection, buffer, claims, acquires):
    """Holds what it is told to hold until it is killed."""
    kept = [buffer.acquire(timeout=SECONDS) for _ in range(acquires)]
    kept += [buffer.claim(timeout=SECONDS) for _ in range(claims)]
    connection.send([slot.index for slot in kept])
    time.sleep(SECONDS)


def put_tagged(buffer, *tags):
    for tag in tags:
        with buffer.claim(timeout=SECONDS) as slot:
            slot.numpy()[:] = tag
            slot.tag = tag


def kill(crew, n=-1):
    process = crew.processes[n]
    os.kill(process.pid, signal.SIGKILL)
    process.join(SECONDS)
    return process.pid


@pytest.fixture
def buf():
    with st.TensorBuffer.create(SPEC, slots=8, producers=0) as buffer:
        yield buffer


@pytest.mark.parametrize("method", START_METHODS)
def test_who_died_and_what_it_held(buf, method):
    put_tagged(buf, 10, 11)
    with Crew(method) as crew:
        held = hear(crew.start(hold, buf, 1, 2))
        assert buf.deaths() == []
        pid = kill(crew)
        (death,) = buf.deaths()
        crew.processes.clear()
    assert death.pid == pid
    reading = {(s.slot, s.tag) for s in death.held if s.state == "reading"}
    assert reading == {(held[0], 10), (held[1], 11)}
    assert [(s.slot, s.tag) for s in death.held if s.state == "writing"] == [(held[2], None)]
    assert buf.deaths() == []


def test_how_often_an_item_has_killed(buf):
    put_tagged(buf, 7)
    for before in range(4):
        with Crew() as crew:
            hear(crew.start(hold, buf, 0, 1))
            kill(crew)
            crew.processes.clear()
        ((item,),) = [d.held for d in buf.deaths()]
        assert (item.tag, item.redelivered) == (7, before)
    assert buf.stats()["dropped"] == 1


def test_told_while_waiting(buf):
    told = []
    buf.on_death(told.append)
    put_tagged(buf, 5)
    with Crew() as crew:
        hear(crew.start(hold, buf, 0, 1))
        pid = kill(crew)
        with pytest.raises(TimeoutError), buf.acquire(timeout=SECONDS):
            assert buf.try_acquire() is None
            buf.acquire(timeout=0.3)
        crew.processes.clear()
    assert [(d.pid, d.held[0].tag) for d in told] == [(pid, 5)]


def test_told_when_another_process_found_the_dead(buf):
    with Crew() as crew:
        hear(crew.start(hold, buf, 1, 0))
        other = crew.start(reclaim_once, buf)
        hear(other)
        pid = kill(crew, 0)
        other.send("now")
        assert hear(other) == 1
        assert [d.pid for d in buf.deaths()] == [pid]
        del crew.processes[0]


def reclaim_once(connection, buffer):
    assert buffer.reclaim() == 0
    connection.send("ready")
    connection.recv()
    connection.send(buffer.reclaim())
    buffer.close()


def test_what_a_callback_raises_comes_out_and_nothing_is_taken(buf):
    @buf.on_death
    def complain(death):
        raise RuntimeError("one of us died")

    with Crew() as crew:
        hear(crew.start(hold, buf, 1, 0))
        kill(crew)
        crew.processes.clear()
    threading.Timer(0.5, put_tagged, (buf, 3)).start()
    with pytest.raises(RuntimeError, match="one of us died"):
        buf.get(timeout=SECONDS)
    assert buf.get(timeout=SECONDS).tolist() == [3] * 4


def test_closing_is_not_dying(buf):
    with Crew() as crew:
        crew.start(close_at_once, buf)
    assert buf.deaths() == []


def close_at_once(connection, buffer):
    put_tagged(buffer, 1)
    buffer.close()


def test_overwritten_records_are_said_to_be_missing():
    log = st.deaths.Watch()
    log.note([(1, 5, 100, 2, True, 0, 9, 42), (1, 5, 100, 2, True, 0, 9, 42), (1, 5, 100, None, False, 0, 0, 0)])
    log.note([(1, 5, 100, None, False, 0, 0, 0)])  # its first reclaimer died after it had told us
    assert log.take() == [st.Death(100, 1, (st.HeldSlot(2, "reading", 42, 0),))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log.note([], missed=3)
        log.note([], missed=3)
    assert len(caught) == 1
    assert "3 records" in str(caught[0].message)


class NoMemory:
    """numpy's allocator refuses anything large while this holds."""

    def __enter__(self):
        import resource

        size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), self.before[1]))

    def __exit__(self, *exc):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, self.before)


def test_an_item_that_cannot_be_copied_for_want_of_memory_is_not_lost():
    with st.TensorBuffer.create(((64 << 20,), "uint8"), slots=2) as buffer:
        for i in range(2):
            with buffer.claim() as slot:
                slot.tag = i
        with NoMemory(), pytest.raises(MemoryError):
            buffer.get(copy=True)
        assert buffer.stats()["ready"] == 2
        assert [buffer.acquire(timeout=1).tag for _ in range(2)] == [1, 0]
        assert wait_until(lambda: buffer.stats()["free"] == 2)


def test_get_many_returns_what_it_has():
    with st.TensorBuffer.create(st.Field((None,), "uint8", max_shape=(64 << 20,)), slots=3) as buffer:
        for n in (1, 2, 64 << 20):
            buffer.put(np.full(n, n % 251, np.uint8))
        with NoMemory():
            assert [len(a) for a in buffer.get_many(3, copy=True)] == [1, 2]
        assert len(buffer.get(copy=True)) == 64 << 20


def test_what_raises_keeps_no_death_from_being_told(buf):
    told, also = [], []

    @buf.on_death
    def complain(death):
        told.append(death.pid)
        if len(told) == 1:
            raise RuntimeError("the first")

    buf.on_death(lambda death: also.append(death.pid))
    with Crew() as crew:
        for _ in range(3):
            hear(crew.start(hold, buf, 1, 0))
        pids = [kill(crew, n) for n in range(3)]
        with pytest.raises(RuntimeError, match="the first"):
            buf.reclaim()
        buf.reclaim()
        crew.processes.clear()
    assert sorted(told) == sorted(also) == sorted(pids)


def test_a_forked_child_does_not_call_the_callbacks_of_its_parent(buf):
    read, write = os.pipe()
    buf.on_death(lambda death: os.write(write, b"%d;" % os.getpid()))
    with Crew("fork") as crew:
        hear(crew.start(hold, buf, 1, 0))
        child = crew.start(reclaim_once, buf)
        hear(child)
        kill(crew, 0)
        child.send("now")
        assert hear(child) == 1
        buf.reclaim()
        del crew.processes[0]
    assert os.read(read, 100) == b"%d;" % os.getpid()
    os.close(read)
    os.close(write)


def test_a_warning_that_is_an_error_comes_once():
    log = st.deaths.Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            log.note([], missed=3)
        log.note([], missed=3)


def test_a_tensor_that_cannot_be_copied_for_want_of_memory_is_not_lost():
    pytest.importorskip("torch")
    with st.TensorBuffer.create(((64 << 20,), "uint8"), slots=1) as buffer:
        buffer.put(np.ones(64 << 20, np.uint8))
        with NoMemory(), pytest.raises(MemoryError):
            buffer.get(copy=True, torch=True)
        assert len(buffer.get(timeout=SECONDS, copy=True, torch=True)) == 64 << 20
