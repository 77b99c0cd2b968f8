"""Counts, not times: system calls, page faults, allocations, descriptors, wake-ups. Noise changes none of them much."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import (
    SECONDS,
    START_METHODS,
    TESTS,
    Crew,
    cores,
    echo,
    environment,
    hear,
    leaves_nothing,
    not_permitted,
    segment_fds,
    unique_name,
    wait_until,
)

import shmtensor as st

ITEMS = 100_000
NUMBER = ((), "int64")
needs_two_cores = pytest.mark.skipif(cores() < 2, reason="one usable core: whoever spins keeps the other from working")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing(of_others=False):
        yield


# ---- system calls ------------------------------------------------------------------------------------------

# Calls between the marks count, in each process. access() of what does not exist is a mark that strace shows.
MARKED = """
import os, sys
import numpy as np
import shmtensor as st
ITEMS = int(sys.argv[1])
def mark(what):
    os.access("/shmtensor-" + what, os.F_OK)
"""

ONE_PROCESS = (
    MARKED
    + """
buffer = st.TensorBuffer.create(((8,), "int64"), slots=8)
x = np.arange(8)
def cycle(i):
    if i % 4 == 0:
        buffer.put(x)
        assert buffer.get()[7] == 7
    elif i % 4 == 1:
        with buffer.claim() as slot:
            slot.numpy()[...] = x
        with buffer.acquire() as slot:
            assert slot.numpy()[7] == 7
    elif i % 4 == 2:
        with buffer.claim_many(4) as batch:
            batch.numpy()[...] = x
            n = len(batch)
        with buffer.acquire_many(n) as batch:
            assert batch.numpy()[n - 1, 7] == 7
    else:
        slot = buffer.try_claim()
        slot.write(x)
        slot.publish()
        buffer.try_acquire().release()
for i in range(1000):
    cycle(i)
mark("begin")
for i in range(ITEMS):
    cycle(i)
mark("end")
"""
)

# A wait of each side spins for up to 1000 s, so neither sleeps, whatever else the machine does.
TWO_PROCESSES = (
    MARKED
    + """
def attached():
    return st.TensorBuffer.attach(sys.argv[2], spin_us=10**9)
buffer = st.TensorBuffer.create(((8,), "int64"), slots=16, name=sys.argv[2], spin_us=10**9)
pid = os.fork()
buffer = attached() if pid == 0 else buffer
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[pid == 0]})
x = np.arange(8)
if pid:
    for i in range(1000 + ITEMS):
        if i == 1000:
            mark("begin")
        buffer.put(x)
    mark("end")
    assert os.waitpid(pid, 0)[1] == 0
    print(buffer.stats()["sleeps"])
else:
    for i in range(1000 + ITEMS):
        if i == 1000:
            mark("begin")
        assert buffer.get()[7] == 7
    mark("end")
    buffer.close()
    os._exit(0)
"""
)


def calls_between_marks(code: str, processes: int, tmp_path: Path) -> tuple[list[str], str]:
    """The lines that strace logged between the two marks of each process, and what the program printed."""
    log = tmp_path / "calls"
    if why := not_permitted("strace", "-f", "-o", str(log), "true"):
        pytest.skip(why)
    done = subprocess.run(
        ["strace", "-f", "-o", str(log), sys.executable, "-c", code, str(ITEMS), unique_name()],
        env={**environment(), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = []
    inside: set[str] = set()
    marks = 0
    for line in log.read_text().splitlines():
        pid = line.split()[0]
        if "shmtensor-begin" in line:
            inside.add(pid)
            marks += 1
        elif "shmtensor-end" in line:
            inside.discard(pid)
            marks += 1
        elif pid in inside:
            found.append(line)
    assert marks == 2 * processes
    return found, done.stdout


def test_hand_offs_make_no_system_calls(tmp_path: Path) -> None:
    found, _ = calls_between_marks(ONE_PROCESS, 1, tmp_path)
    assert len(found) < 100, found[:20]


QUESTIONS = (
    MARKED
    + """
queue, buffer = st.Queue(8), st.TensorBuffer.create(((8,), "int64"), slots=8)
queue.put(1)
def ask():
    return queue.qsize(), queue.empty(), queue.full(), len(buffer)
ask()
mark("begin")
for i in range(ITEMS // 100):
    assert ask() == (1, False, False, 0)
mark("end")
"""
)


def test_how_much_there_is_costs_no_system_call(tmp_path: Path) -> None:
    found, _ = calls_between_marks(QUESTIONS, 1, tmp_path)
    assert len(found) < 100, found[:20]


@needs_two_cores
def test_hand_offs_between_processes_make_no_system_calls(tmp_path: Path) -> None:
    found, out = calls_between_marks(TWO_PROCESSES, 2, tmp_path)
    assert out == "0\n", "somebody slept"
    assert len(found) < 100, found[:20]


# A consumer that takes 3 ms for each batch, without a system call of its own: batches are there when it comes.
LOADER = (
    MARKED
    + """
import time
import loader_support as ls
N = 200
it = iter(st.DataLoader(ls.Numbers(10**6, ls.plain), batch_size=4, num_workers=1))
def step(i):
    assert int(next(it)[3, 0, 0]) == 4 * i + 3
    end = time.perf_counter() + 0.003
    while time.perf_counter() < end:
        pass
for i in range(50):
    step(i)
mark("begin")
for i in range(50, 50 + N):
    step(i)
mark("end")
os._exit(0)
"""
)


def test_system_calls_for_a_batch_of_a_loader(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    found, _ = calls_between_marks(f"import sys; sys.path.insert(0, {str(TESTS)!r})" + LOADER, 1, tmp_path)
    # One wakes the worker, which slept until the next task came; a batch that is late costs a second.
    assert len(found) < 2 * 200, Counter(line.split("(")[0].split()[-1] for line in found)


def test_batches_of_tensors_are_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    import loader_support as ls

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("pickled")

    loader = st.DataLoader(ls.Numbers(40, ls.all_kinds), batch_size=4, num_workers=2, multiprocessing_context="fork")
    with monkeypatch.context() as patched:  # also in the workers, which are forked
        patched.setattr("pickle.loads", refuse)
        patched.setattr("pickle.dumps", refuse)
        patched.setattr("shmtensor._codec.Pickler", refuse)
        assert sum(len(batch["text"]) for batch in loader) == 40


def test_page_faults_of_a_loader() -> None:
    """In the main process and the worker, once all slots are warm."""
    pytest.importorskip("torch", reason="torch is not installed")
    import loader_support as ls

    def faults(loader_type: Any) -> int:
        loader = loader_type(ls.Numbers(150, ls.big), batch_size=None, num_workers=1, persistent_workers=True)
        totals = []
        for _ in range(3):
            of_worker = 0
            for x, of_worker in loader:  # noqa: B007 (the last one counts)
                assert x.nbytes == 1 << 20
            totals.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt + int(of_worker))
        return totals[2] - totals[1]

    # Fresh memory for each batch would be 150 * 256 pages, at least on one side, as torch has it.
    assert faults(st.DataLoader) < 0.05 * 150 * 256


# ---- page faults and allocations ---------------------------------------------------------------------------


def cycle(buffer: st.TensorBuffer, x: Any, times: int) -> None:
    """All slots and all ways; leaves the buffer empty."""
    for i in range(times):
        if i % 2:
            buffer.put(x)
            buffer.get()
        else:
            with buffer.claim() as slot:
                slot.numpy()[...] = x
            with buffer.acquire() as slot:
                slot.numpy()


@pytest.mark.parametrize("huge", [False, True])
def test_no_page_faults_after_warm_up(huge: bool) -> None:
    with st.TensorBuffer.create(((4096,), "int64"), slots=16, huge_pages=huge) as buffer:
        x = np.arange(4096)
        cycle(buffer, x, 1000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        cycle(buffer, x, ITEMS)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 100


def faults_of_first_touch(buffer: st.TensorBuffer) -> int:
    slots = [buffer.claim() for _ in range(buffer.slots)]  # kept: a view of a slot that was dropped is read-only
    views = [slot.numpy() for slot in slots]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for view in views:
        view[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_prefault_maps_the_memory_at_once() -> None:
    """16 MiB at create, and in a second mapping at attach; without it the first touch pays for each page."""
    for prefault in (True, False):
        name = unique_name()
        make = {"slots": 16, "name": name, "prefault": prefault}
        with st.TensorBuffer.create(((1 << 20,), "uint8"), **make) as buffer:
            found = [faults_of_first_touch(buffer)]
            with st.TensorBuffer.attach(name) as other:
                found.append(faults_of_first_touch(other))
        if prefault:
            assert max(found) < 500, found
        else:
            assert min(found) > 100, found  # far fewer than 4,096 where the kernel maps around a fault


def test_a_joining_process_maps_the_memory_at_once(crew: Crew) -> None:
    """16 MiB in a forked child: 4,096 faults, were the pages not mapped when it joins."""
    with st.TensorBuffer.create(((1 << 20,), "uint8"), slots=16) as buffer:

        def child(connection: Connection) -> None:
            buffer.stats()
            connection.send(faults_of_first_touch(buffer))

        assert hear(crew.start(child)) < 500


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


@needs_two_cores
def test_no_page_faults_between_processes(crew: Crew) -> None:
    with (
        st.TensorBuffer.create(((512,), "int64"), slots=8) as requests,
        st.TensorBuffer.create(((512,), "int64"), slots=8) as replies,
    ):

        def child(connection: Connection) -> None:
            for i in range(2_000 + 20_000):
                if i == 2_000:
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                replies.put(requests.get(timeout=SECONDS), timeout=SECONDS)
            connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

        connection = crew.start(child)
        x = np.arange(512)
        for i in range(2_000 + 20_000):
            if i == 2_000:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            requests.put(x, timeout=SECONDS)
            replies.get(timeout=SECONDS)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert faults + hear(connection) < 100


def test_no_allocations_grow() -> None:
    spec = {"x": ((8,), "int64"), "y": {"z": ((), "float32")}}
    with st.TensorBuffer.create(spec, slots=8) as buffer, st.TensorBuffer.create(NUMBER, slots=4) as numbers:
        item = {"x": np.arange(8), "y": {"z": np.float32(1)}}

        def work(times: int) -> None:
            for _ in range(times):
                buffer.put(item)
                with buffer.acquire() as slot:
                    slot["x"], slot["y.z"]
                with numbers.claim_many(4) as batch:
                    batch.numpy()
                with numbers.acquire_many(4) as batch:
                    batch.numpy()
                with contextlib.suppress(TypeError):
                    numbers.put("no")
                numbers.try_acquire()
                slot = batch = None
            gc.collect()

        work(500)
        before = sys.getallocatedblocks()
        work(5_000)
        grown = sys.getallocatedblocks() - before
        assert grown < 200, f"{grown} blocks more after 5,000 rounds"

        tracemalloc.start()
        try:
            work(200)
            before = tracemalloc.get_traced_memory()[0]
            work(1_000)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 20_000, f"{grown} bytes more after 1,000 rounds"


def test_no_blocks_grow_over_100_000_hand_offs() -> None:
    with st.TensorBuffer.create(((8,), "int64"), slots=8) as buffer:
        x = np.arange(8)
        cycle(buffer, x, 1000)
        before = sys.getallocatedblocks()
        cycle(buffer, x, ITEMS)
        assert sys.getallocatedblocks() - before < 100


def test_memory_does_not_grow() -> None:
    """The C side's, too: what malloc gave out and nobody gave back would show in the resident set."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def work(times: int) -> None:
        for _ in range(times):
            with st.TensorBuffer.create(NUMBER, slots=64) as buffer:
                buffer.put_many(range(5))
                batch = buffer.acquire_many(5)
                views = batch.numpy(), buffer.spec
                batch.release()
                del batch, views
            st.SharedTensor.zeros(100, "u1").close()

    work(200)
    before = resident()
    work(2_000)
    assert resident() - before < 8 << 20


# ---- descriptors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
def test_two_descriptors_per_buffer(named: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    buffers = [st.TensorBuffer.create(NUMBER, slots=4, name=unique_name() if named else None) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) - before <= 10
    assert len(segment_fds()) <= 10
    for buffer in buffers:
        for i in range(200):
            buffer.put(i)
            buffer.get()
        buffer.stats()
        buffer.reclaim()
    held = [b.claim() for b in buffers]
    assert len(os.listdir("/proc/self/fd")) - before <= 10
    held.clear()
    for buffer in buffers:
        buffer.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("named", [False, True], ids=["anonymous", "named"])
def test_two_descriptors_per_buffer_in_a_child(method: str, named: bool) -> None:
    name = unique_name() if named else None
    with st.TensorBuffer.create(NUMBER, slots=4, name=name) as buffer, Crew(method) as crew:
        connection = crew.start(count_descriptors, buffer)
        counts = hear(connection)
        assert max(counts) <= 2, counts
        assert counts[-1] == 0
        assert len(segment_fds()) <= 2


def count_descriptors(connection: Connection, buffer: st.TensorBuffer) -> None:
    counts = [len(segment_fds())]
    buffer.stats()
    counts.append(len(segment_fds()))
    for i in range(100):
        buffer.put(i)
        buffer.get()
    counts.append(len(segment_fds()))
    buffer.close()
    connection.send([*counts, len(segment_fds())])


def test_descriptors_are_not_inherited_by_other_programs() -> None:
    with st.TensorBuffer.create(NUMBER, slots=4, name=unique_name()), st.TensorBuffer.create(NUMBER, slots=4):
        out = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
        ).stdout
        assert "shmtensor" not in out


def test_hand_offs_work_with_few_descriptors() -> None:
    """One buffer for each item would need thousands."""
    code = """
import resource
import numpy as np
import shmtensor as st
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with st.TensorBuffer.create(((8,), "int64"), slots=8) as buffer:
    for i in range(100_000):
        buffer.put(np.arange(8))
        assert buffer.get()[3] == 3
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.stdout == "done\n", done.stderr


# ---- sleeping and waking -----------------------------------------------------------------------------------


def switches(pid: int) -> int:
    """How often the process's main thread gave its core up by itself: once for each sleep."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise AssertionError


def ticks(pid: int) -> int:
    """User and system time, in units of SC_CLK_TCK."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("verb", ["acquire", "claim"])
def test_an_idle_waiter_sleeps(crew: Crew, verb: str) -> None:
    """At most ten wake-ups a second, and next to no processor time."""
    with st.TensorBuffer.create(NUMBER, slots=1) as buffer:
        slot = buffer.claim() if verb == "claim" else None

        def child(connection: Connection) -> None:
            connection.send("waiting")
            with contextlib.suppress(st.ShutDown):
                buffer.claim() if verb == "claim" else buffer.acquire()

        hear(crew.start(child))
        assert wait_until(lambda: buffer.stats()["sleeps"] >= 1)
        pid = crew.processes[0].pid or 0
        sleeps, switched, used, begin = buffer.stats()["sleeps"], switches(pid), ticks(pid), time.monotonic()
        time.sleep(1.5)
        sleeps = buffer.stats()["sleeps"] - sleeps
        switched, used = switches(pid) - switched, ticks(pid) - used
        took = time.monotonic() - begin
        buffer.shutdown()
        if slot is not None:
            slot.abort()
    assert 1 <= sleeps <= 10 * took + 1
    assert switched <= 2 * (10 * took + 1)
    assert used / os.sysconf("SC_CLK_TCK") < 0.05 * took


def test_a_publish_wakes_one_sleeper(crew: Crew) -> None:
    """Of four consumers that sleep, each item wakes one: a herd would wake four times as often."""
    count, consumers = 60, 4
    with st.TensorBuffer.create(NUMBER, slots=count, spin_us=0) as buffer:

        def child(connection: Connection) -> None:
            for item in buffer:
                del item

        for _ in range(consumers):
            crew.start(child)
        assert wait_until(lambda: buffer.stats()["sleeps"] >= consumers)
        pids = [p.pid or 0 for p in crew.processes]
        before, wakes, begin = sum(map(switches, pids)), buffer.stats()["wakes"], time.monotonic()
        for i in range(count):
            buffer.put(i, timeout=SECONDS)
            time.sleep(0.003)  # so that all are asleep again
        slices = consumers * (10 * (time.monotonic() - begin) + 1)
        switched = sum(map(switches, pids)) - before
        wakes = buffer.stats()["wakes"] - wakes
        assert count // 2 <= wakes <= count + 2 * consumers + slices, (
            "an item that wakes nobody waits for a slice to end"
        )
        buffer.shutdown()
    assert switched < slices + 2 * count, f"{switched} sleeps for {count} items"


def test_nobody_is_woken_where_nobody_sleeps() -> None:
    with st.TensorBuffer.create(NUMBER, slots=4) as buffer:
        for i in range(1000):
            buffer.put(i)
            buffer.get()
        s = buffer.stats()
        assert (s["wakes"], s["sleeps"], s["spins"]) == (0, 0, 0)
        with pytest.raises(TimeoutError):
            buffer.get(timeout=0.001)  # leaves the mark that somebody may be asleep
        for i in range(1000):
            buffer.put(i)
            buffer.get()
        assert buffer.stats()["wakes"] <= 1, "the mark is taken away by the first who wakes nobody"


def test_a_batch_is_one_wake_up() -> None:
    with st.TensorBuffer.create(NUMBER, slots=8, spin_us=0) as buffer:
        threads = [threading.Thread(target=lambda: buffer.get(timeout=SECONDS, copy=True)) for _ in range(4)]
        for t in threads:
            t.start()
        assert wait_until(lambda: buffer.stats()["sleeps"] >= 4)
        time.sleep(0.01)
        batch = buffer.claim_many(4)
        assert len(batch) == 4
        batch.numpy()[...] = 1
        wakes = buffer.stats()["wakes"]
        batch.publish()
        for t in threads:
            t.join(SECONDS)
            assert not t.is_alive()
        # One for the publish; what the readers wake when they release is theirs.
        assert 1 <= buffer.stats()["wakes"] - wakes <= 2


def test_spinning_ends_short_waits_without_sleep() -> None:
    with st.TensorBuffer.create(NUMBER, slots=1, spin_us=10**8) as buffer:
        waiter = threading.Thread(target=lambda: buffer.get(timeout=SECONDS, copy=True))
        waiter.start()
        time.sleep(0.05)
        buffer.put(1)
        waiter.join(SECONDS)
        s = buffer.stats()
        assert (s["sleeps"], s["spins"], s["acquire_waits"]) == (0, 1, 1)


def test_echo_sleeps_when_told_not_to_spin(crew: Crew) -> None:
    """spin_us=0 is what it says, here and in those who inherit the handle."""
    spec = ((2,), "float32")
    with (
        st.TensorBuffer.create(spec, slots=1, spin_us=0) as requests,
        st.TensorBuffer.create(spec, slots=1, spin_us=0) as replies,
    ):
        crew.start(echo, requests, replies, False)
        for i in range(50):
            requests.put(np.full(2, i, "float32"), timeout=SECONDS)
            assert replies.get(timeout=SECONDS, copy=True)[0] == i + 1
        s = requests.stats()
        assert s["spins"] == 0
        requests.shutdown()
