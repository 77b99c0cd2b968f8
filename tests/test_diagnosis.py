"""What a TimeoutError says: who holds which slots, whether they live, for how long at least, and the likely reason."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support import SECONDS, Crew, hear, leaves_nothing, wait_until

import shmtensor as st
from shmtensor.diagnosis import Look, _is_stopped, _runs

NUMBER = ((), "int64")
SHORT = 0.02  #: a time-out that passes
INSTANT = 1e-9  #: one that passes before the wait has slept, hence before it took back what the dead held


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing():
        yield


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


@pytest.fixture
def buffer() -> Iterator[st.TensorBuffer]:
    with st.TensorBuffer.create(NUMBER, slots=4) as buffer:
        yield buffer


def said(call: Callable[[], Any]) -> tuple[str, list[str], str]:
    """Of a call that must time out: the first line, the lines about members, the verdict."""
    with pytest.raises(TimeoutError) as caught:
        call()
    first, *members, verdict = str(caught.value).splitlines()
    assert verdict.startswith("Likely: ")
    assert all(re.match(r"  (member \d+, pid \d+|and \d+ more members)", line) for line in members), members
    return first, members, verdict.removeprefix("Likely: ")


def hold(connection: Connection, buffer: st.TensorBuffer, acquired: int, claimed: int) -> None:
    held = [buffer.acquire(timeout=SECONDS) for _ in range(acquired)]
    held += [buffer.claim(timeout=SECONDS) for _ in range(claimed)]
    connection.send([slot.index for slot in held])
    while connection.recv() == "next":
        for slot in held:
            slot.release()
        held = [buffer.acquire(timeout=SECONDS) for _ in range(acquired)]
        connection.send([slot.index for slot in held])
    for slot in held[acquired:]:
        slot.abort()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def killed(crew: Crew) -> int:
    process = crew.processes.pop()
    process.kill()
    process.join()
    assert process.pid is not None
    return process.pid


# ---- who and what ------------------------------------------------------------------------------------------


def test_a_consumer_that_keeps_leases(crew: Crew, buffer: st.TensorBuffer) -> None:
    buffer.put_many(range(3))
    connection = crew.start(hold, buffer, 3, 0)
    assert hear(connection) == [0, 1, 2]
    mine = buffer.claim()
    first, members, verdict = said(lambda: buffer.claim(timeout=SHORT))
    assert first == f"no slot became free within {SHORT} s (4 slots: 0 free, 1 claimed, 0 published, 3 acquired)"
    pid = crew.processes[0].pid
    assert re.fullmatch(rf"  member 2, pid {pid}, consumer, joined \d+\.\d s ago: acquired slots 0-2", members[0]), (
        members
    )
    assert re.fullmatch(
        rf"  member 1, pid {os.getpid()} \(this process\), producer, joined \d+\.\d s ago: claimed slot 3", members[1]
    ), members
    assert len(members) == 2
    assert verdict.startswith(f"leases are kept, most of them by member 2 (pid {pid}): release them")
    assert "slots=" in verdict
    mine.abort()
    connection.send("end")


def test_this_process_keeps_leases(buffer: st.TensorBuffer) -> None:
    buffer.put_many(range(4))
    kept = buffer.get_many(4)
    for call in (lambda: buffer.claim(timeout=SHORT), lambda: buffer.put(1, timeout=SHORT)):
        _, (line,), verdict = said(call)
        assert line.endswith("acquired slots 0-3") or re.search(r"acquired slots 0-3, at least \d+\.\d s ago$", line)
        assert "most of them by this process" in verdict
    _, _, verdict = said(lambda: buffer.get(timeout=SHORT))
    assert verdict.startswith("leases are kept on every slot, most of them by this process, so no producer can claim")
    del kept


def test_claimed_slots_that_nobody_publishes(buffer: st.TensorBuffer) -> None:
    held = [buffer.claim() for _ in range(4)]
    _, (line,), verdict = said(lambda: buffer.claim(timeout=SHORT))
    assert "(this process), producer" in line and "claimed slots 0-3" in line
    assert "publish or abort" in verdict
    _, _, verdict = said(lambda: buffer.acquire(timeout=SHORT))
    assert verdict == "producer-bound: a producer is in the middle of writing"
    for slot in held:
        slot.abort()


def test_nobody_is_there(buffer: st.TensorBuffer) -> None:
    first, members, verdict = said(lambda: buffer.get(timeout=SHORT))
    assert first.startswith(f"nothing was published within {SHORT} s (4 slots: 4 free,")
    assert (members, verdict) == ([], "no producer is there: start one")
    buffer.put_many(range(4))
    _, members, verdict = said(lambda: buffer.claim(timeout=SHORT))
    assert ["consumer" in line for line in members] == [True], "the wait for an item made this process a consumer"
    assert verdict == "consumer-bound: the only consumer is this process itself"
    with st.TensorBuffer.create(NUMBER, slots=1) as other:
        other.put(1)
        assert said(lambda: other.claim(timeout=SHORT))[1:] == ([], "no consumer is there: start one")


def test_the_others_are_merely_slow(crew: Crew, buffer: st.TensorBuffer) -> None:
    buffer.put(1)
    connection = crew.start(hold, buffer, 1, 0)
    hear(connection)
    buffer.put_many(range(3))
    _, members, verdict = said(lambda: buffer.claim(timeout=SHORT))
    assert len(members) == 1 and "consumer" in members[0] and "acquired slot 0" in members[0]
    assert verdict == "consumer-bound: consumers are slower than producers"
    connection.send("end")
    crew.join()
    del crew.processes[:], crew.connections[:]
    for _ in range(3):
        buffer.get(timeout=SECONDS)
    connection = crew.start(hold, buffer, 0, 1)
    hear(connection)
    assert said(lambda: buffer.get(timeout=SHORT))[2] == "producer-bound: a producer is in the middle of writing"
    connection.send("end")


def test_a_stopped_producer(crew: Crew, buffer: st.TensorBuffer) -> None:
    connection = crew.start(hold, buffer, 0, 1)
    (index,) = hear(connection)
    with stopped(crew.processes[0].pid):
        _, (line,), verdict = said(lambda: buffer.get(timeout=SHORT))
    assert re.search(rf"producer, joined .* ago: claimed slot {index}; it is stopped \(SIGSTOP, a debugger\)$", line)
    assert verdict == "producer-bound: every producer is stopped"
    connection.send("end")


def test_a_stopped_consumer(crew: Crew, buffer: st.TensorBuffer) -> None:
    buffer.put(1)
    connection = crew.start(hold, buffer, 1, 0)
    hear(connection)
    buffer.put_many(range(3))
    with stopped(crew.processes[0].pid):
        _, (line,), verdict = said(lambda: buffer.claim(timeout=SHORT))
    assert "consumer" in line and "it is stopped" in line
    assert verdict == "consumer-bound: every consumer is stopped"
    connection.send("end")


def test_only_a_process_that_has_the_segment_is_called_stopped(buffer: st.TensorBuffer) -> None:
    """The pid of a member of another pid namespace is somebody else's here."""
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with stopped(stranger.pid):
            assert not _is_stopped(stranger.pid, buffer._fd)
            assert not _is_stopped(1, buffer._fd)
            assert not _is_stopped(2**22 + 1, buffer._fd)
    finally:
        stranger.kill()
        stranger.communicate()


@pytest.mark.parametrize(("acquired", "claimed"), [(4, 0), (0, 4)])
def test_a_dead_member_whose_slots_nobody_has_taken_back(
    crew: Crew, buffer: st.TensorBuffer, acquired: int, claimed: int
) -> None:
    buffer.put_many(range(acquired))
    hear(crew.start(hold, buffer, acquired, claimed))
    pid = killed(crew)
    _, (line, *_), verdict = said(lambda: buffer.claim(timeout=INSTANT))
    what = "acquired" if acquired else "claimed"
    assert re.search(rf"pid {pid}, .*: {what} slots 0-3; it is dead: whoever waits next takes this back", line)
    assert verdict.startswith("those who held the slots have died")
    assert buffer.reclaim() == 1


def test_a_consumer_that_closed_and_looks_on(crew: Crew, buffer: st.TensorBuffer) -> None:
    def look_on(connection: Connection, buffer: st.TensorBuffer) -> None:
        kept = buffer.get_many(4, timeout=SECONDS)
        buffer.close()
        connection.send(len(kept))
        connection.recv()

    buffer.put_many(range(4))
    connection = crew.start(look_on, buffer)
    assert hear(connection) == 4
    with pytest.raises(st.PeersGone):  # told once
        buffer.claim(timeout=SECONDS)
    _, (line,), _ = said(lambda: buffer.claim(timeout=SHORT))
    assert "closed, but views of its slots are alive" in line and "acquired slots 0-3" in line
    connection.send("end")


def test_of_many_members_those_who_hold_most_are_named(crew: Crew) -> None:
    with st.TensorBuffer.create(NUMBER, slots=13) as buffer:
        for k in range(11):
            hear(crew.start(hold, buffer, 0, 3 if k == 7 else 1))
        _, members, _ = said(lambda: buffer.claim(timeout=SHORT))
        assert len(members) == 9
        assert f"pid {crew.processes[7].pid}," in members[0] and "claimed slots" in members[0]
        assert members[-1] == "  and 3 more members"
        for connection in crew.connections:
            connection.send("end")


# ---- for how long ------------------------------------------------------------------------------------------


def test_what_has_not_moved_since_the_last_time_out(crew: Crew, buffer: st.TensorBuffer) -> None:
    buffer.put_many(range(4))
    connection = crew.start(hold, buffer, 4, 0)
    hear(connection)
    begin = time.monotonic()
    _, (line,), _ = said(lambda: buffer.claim(timeout=SHORT))
    assert "at least" not in line, "there is nothing to compare with yet"
    time.sleep(0.25)
    _, (line,), _ = said(lambda: buffer.claim(timeout=SHORT))
    match = re.search(r"acquired slots 0-3, at least (\d+\.\d) s ago$", line)
    assert match and 0.2 <= float(match[1]) <= time.monotonic() - begin + 0.1
    # The same member, the same slots, but other items: that is no old hold.
    connection.send("next")
    buffer.put_many(range(4), timeout=SECONDS)
    assert sorted(hear(connection)) == [0, 1, 2, 3]
    _, (line,), _ = said(lambda: buffer.claim(timeout=SHORT))
    assert line.endswith("acquired slots 0-3")
    connection.send("end")


def test_what_has_not_moved_since_this_wait_began(buffer: st.TensorBuffer) -> None:
    held = [buffer.claim() for _ in range(4)]
    _, (line,), _ = said(lambda: buffer.claim(timeout=0.4))
    match = re.search(r"claimed slots 0-3, at least (\d\.\d) s ago$", line)
    assert match and float(match[1]) >= 0.2, line
    for slot in held:
        slot.abort()


def test_a_slot_that_moved_is_not_old(buffer: st.TensorBuffer) -> None:
    held = [buffer.claim() for _ in range(4)]
    before = Look.at(buffer)
    held[1].abort()
    held[1] = buffer.claim()
    assert "claimed slots 0-3, 0, 2-3 at least 0.0 s ago" in str(buffer._timed_out("claim", 0.1, before))
    for slot in held:
        slot.abort()


# ---- form --------------------------------------------------------------------------------------------------


def test_a_poll_says_little(buffer: st.TensorBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in loops, and asking the kernel about every member costs a system call each."""
    monkeypatch.setattr("shmtensor.buffer.explain", None)
    with pytest.raises(TimeoutError, match=r"^nothing is published \(4 slots: 4 free, .*timeout above 0"):
        buffer.get(timeout=0)
    held = [buffer.claim() for _ in range(4)]
    with pytest.raises(TimeoutError, match=r"^no slot is free \(4 slots: 0 free, 4 claimed"):
        buffer.claim(timeout=0)
    for slot in held:
        slot.abort()


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([0], "0"),
        ([0, 1], "0-1"),
        ([0, 2], "0, 2"),
        ([3, 4, 5, 9], "3-5, 9"),
        ([0, 2, 4, 6, 8, 10], "0, 2, 4, 6, 8, 10"),
        ([0, 2, 4, 6, 8, 10, 12], "0, 2, 4, 6, 8, 10, ..."),
    ],
)
def test_runs_of_slots(numbers: list[int], text: str) -> None:
    assert _runs(numbers) == text
