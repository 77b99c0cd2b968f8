"""fileno(): a queue in select, poll, epoll, asyncio and multiprocessing.connection.wait().

csrc/watch.c by itself is tested in tests/c/test_watch.c; here is what a user does with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import queue
import re
import select
import selectors
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import SECONDS, START_METHODS, Crew, hear, leaves_nothing, python, talking, wait_until
from test_counts import MARKED, calls_between_marks

import shmtensor as st

NUMBER = ((), "int64")
THREAD = "shmt-watcher"  #: what the system calls it
WATCHES_PER_THREAD = 127


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing(of_others=False):
        yield
        gc.collect()
    assert wait_until(lambda: watchers() == []), "a thread that has nothing to watch"


def watchers() -> list[int]:
    """The threads of this process that watch."""
    found = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            if Path(f"/proc/self/task/{task}/comm").read_text().strip() == THREAD:
                found.append(int(task))
    return found


def eventfds() -> int:
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += "eventfd" in os.readlink(f"/proc/self/fd/{fd}")
    return found


def by_select(fds: list[Any], seconds: float) -> list[Any]:
    return select.select(fds, [], [], seconds)[0]


def by_poll(fds: list[Any], seconds: float) -> list[Any]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    numbers = {n for n, _ in poll.poll(seconds * 1000)}
    return [fd for fd in fds if fd.fileno() in numbers]


def by_epoll(fds: list[Any], seconds: float) -> list[Any]:
    with select.epoll() as epoll:
        for fd in fds:
            epoll.register(fd, select.EPOLLIN)
        numbers = {n for n, _ in epoll.poll(seconds)}
    return [fd for fd in fds if fd.fileno() in numbers]


def by_selectors(fds: list[Any], seconds: float) -> list[Any]:
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(seconds)]


def by_wait(fds: list[Any], seconds: float) -> list[Any]:
    return wait_for(fds, seconds)


WAYS = [by_select, by_poll, by_epoll, by_selectors, by_wait]


def is_readable(q: Any, seconds: float = 0.0) -> bool:
    return by_poll([q], seconds) != []


def becomes_readable(q: Any) -> bool:
    return is_readable(q, SECONDS)


def make(kind: str) -> Any:
    return st.TensorBuffer.create(NUMBER, slots=8) if kind == "TensorBuffer" else getattr(st, kind)()


KINDS = ["Queue", "JoinableQueue", "SimpleQueue", "TensorBuffer"]


# ---- a level ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_readable_while_there_is_something(kind: str, way: Callable[[list[Any], float], list[Any]]) -> None:
    with contextlib.closing(make(kind)) as q, contextlib.closing(make(kind)) as other:
        assert way([q, other], 0.01) == []
        assert q.fileno() == q.fileno() != other.fileno()
        for i in range(5):
            q.put(i)
            assert way([q, other], SECONDS) == [q]
            q.put(i + 10)
            assert int(q.get()) == i
            assert way([q, other], 0) == [q], "one is left"
            assert int(q.get()) == i + 10
            assert way([q, other], 0) == [], "nothing is left"
        other.put(1)
        assert way([q, other], SECONDS) == [other]
        q.put(1)
        assert wait_until(lambda: way([q, other], 0) == [q, other])


def take_one(q: Any, verb: str) -> None:
    """By each verb that takes."""
    {
        "get": lambda: q.get(timeout=SECONDS),
        "get_many": lambda: q.get_many(5),
        "acquire": lambda: q.acquire().release(),
        "try_acquire": lambda: q.try_acquire().release(),
        "acquire_many": lambda: q.acquire_many(5).release(),
        "next": lambda: next(iter(q)),
    }[verb]()


@pytest.mark.parametrize("verb", ["get", "get_many", "acquire", "try_acquire", "acquire_many", "next"])
def test_whoever_takes_the_last_one_sees_to_it(verb: str) -> None:
    with st.TensorBuffer.create(NUMBER, slots=8) as buffer:
        buffer.fileno()
        for _ in range(3):
            buffer.put_many([1, 2] if "many" in verb else [1])
            assert becomes_readable(buffer)
            take_one(buffer, verb)
            assert not is_readable(buffer)


def test_what_was_there_before() -> None:
    with contextlib.closing(st.Queue()) as q:
        q.put(1)
        assert becomes_readable(q)
        assert q.get_nowait() == 1
        with pytest.raises(queue.Empty):
            q.get_nowait()
        assert not is_readable(q)


def test_what_waits_for_a_slot_comes_too() -> None:
    """A queue without bound that has few slots: a thread sends the rest as they become free."""
    q = st.Queue(slots=2)
    q.fileno()
    for i in range(50):
        q.put(i)
    got = []
    while len(got) < 50:
        assert becomes_readable(q)
        with contextlib.suppress(queue.Empty):
            while True:
                got.append(q.get_nowait())
    assert got == list(range(50))
    q.close()
    q.join_thread()


def test_context_and_debug_mode() -> None:
    code = """
import select, shmtensor as st
q = st.get_context("spawn").Queue()
q.fileno()
q.put(1)
assert select.select([q], [], [], 60)[0] == [q]
assert q.get() == 1
assert select.select([q], [], [], 0)[0] == []
"""
    python(code)
    python("import os; os.environ['SHMTENSOR_DEBUG'] = '1'" + code)


# ---- event loops -----------------------------------------------------------------------------------------------------


def put_numbers(connection: Connection, q: st.Queue, first: int, count: int) -> None:
    for i in range(first, first + count):
        q.put(i)
        if i % 100 == 0:
            time.sleep(0.001)  # so that the queue is empty every now and then
    q.close()
    q.join_thread()
    connection.send("done")


@pytest.mark.parametrize("maxsize", [0, 4])
def test_asyncio_takes_everything(maxsize: int) -> None:
    count = 5_000
    q = st.Queue(maxsize)
    got: list[int] = []
    calls = 0

    async def consume() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def on_readable() -> None:
            nonlocal calls
            calls += 1
            with contextlib.suppress(queue.Empty):
                got.append(q.get_nowait())
            if len(got) == 2 * count and not done.done():
                done.set_result(None)

        loop.add_reader(q, on_readable)
        await asyncio.wait_for(done, SECONDS)
        await asyncio.sleep(0.01)
        assert not is_readable(q)
        loop.remove_reader(q)

    with Crew("spawn") as crew:
        for i in range(2):
            crew.start(put_numbers, q, i * count, count)
        asyncio.run(consume())
    assert sorted(got) == list(range(2 * count))
    for i in range(2):
        mine = [x for x in got if x // count == i]
        assert mine == sorted(mine)
    assert calls < 2 * count + count, "called although there was nothing"
    assert q.empty()
    q.close()


def test_wait_for_queues_and_processes() -> None:
    """One wait for what multiprocessing has, and for queues."""
    q = st.Queue()
    with Crew("fork") as crew:
        connection = crew.start(put_numbers, q, 0, 10)
        process = crew.processes[0]
        got: list[int] = []
        ended = False
        while not ended or len(got) < 10:
            waits: list[Any] = [q] if ended else [q, process.sentinel, connection]
            ready = wait_for(waits, SECONDS)
            assert ready
            ended |= process.sentinel in ready
            if q in ready:
                with contextlib.suppress(queue.Empty):
                    got.append(q.get_nowait())
        assert got == list(range(10))
    q.close()


# ---- what it costs ---------------------------------------------------------------------------------------------------


def test_many_queues_are_watched_by_one_thread() -> None:
    threads, fds = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    buffers = [st.TensorBuffer.create(NUMBER, slots=2, members=2) for _ in range(WATCHES_PER_THREAD)]
    assert len(os.listdir("/proc/self/task")) == threads, "there is no thread before it is needed"
    own = len(os.listdir("/proc/self/fd"))
    for buffer in buffers:
        buffer.fileno()
    assert len(os.listdir("/proc/self/task")) == threads + 1
    assert len(os.listdir("/proc/self/fd")) == own + len(buffers), "a descriptor for each"
    for buffer in buffers[::5]:
        buffer.put(1)
    assert all(becomes_readable(buffer) for buffer in buffers[::5])
    assert by_select(buffers, 0) == buffers[::5]
    extra = st.TensorBuffer.create(NUMBER, slots=2, members=2)
    extra.put(1)
    assert becomes_readable(extra)
    assert len(watchers()) == 2, "one more for one more than the system can wait for at once"
    extra.close()
    for buffer in buffers:
        buffer.close()
    del buffers, buffer, extra
    gc.collect()
    assert wait_until(lambda: len(os.listdir("/proc/self/task")) == threads)
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) == fds)


def sleeps_of(thread: int) -> int:
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)[0])


@pytest.mark.parametrize("filled", [False, True])
def test_an_idle_watcher_sleeps(filled: bool) -> None:
    """Ten wake-ups a second, however many are watched, and whether they are empty or nobody takes what is there."""
    queues = [st.Queue() for _ in range(20)]
    for q in queues:
        q.fileno()
        if filled:
            q.put(1)
            assert becomes_readable(q)
    time.sleep(0.05)
    [thread] = watchers()
    before, used, begin = sleeps_of(thread), time.process_time(), time.monotonic()
    time.sleep(1.5)
    slept, used, took = sleeps_of(thread) - before, time.process_time() - used, time.monotonic() - begin
    assert 1 <= slept <= 10 * took + 3
    assert used < 0.05 * took
    for q in queues:
        q.close()


# The watched queue is never empty between the marks, and the other one was never asked for its descriptor.
TWO_QUEUES = (
    MARKED
    + """
import select
plain, watched = st.Queue(), st.Queue()
watched.fileno()
watched.put(0)
assert select.select([watched], [], [], 60)[0]
def step(q, i):
    q.put(i)
    q.get()
for i in range(100):
    step(plain, i)
    step(watched, i)
mark("begin")
for i in range(ITEMS // 10):
    step(plain, i)
    step(watched, i)
mark("end")
"""
)


def test_no_system_calls_but_for_a_queue_that_becomes_empty(tmp_path: Path) -> None:
    found, _ = calls_between_marks(TWO_QUEUES, 1, tmp_path)
    assert len(found) < 100, Counter(line.split("(")[0].split()[-1] for line in found)


# Each step takes the one item that there is.
EMPTIED = (
    MARKED
    + """
import select
q = st.Queue()
def step(i):
    q.put(i)
    assert select.select([q], [], [], 60)[0]
    assert q.get() == i
q.fileno()
step(0)
mark("begin")
for i in range(ITEMS // 100):
    step(i)
mark("end")
"""
)


def test_system_calls_of_a_queue_that_becomes_empty(tmp_path: Path) -> None:
    """For each item: the wake-up, select, read, and the call to the watcher; and the lock, where that is at work."""
    found, _ = calls_between_marks(EMPTIED, 1, tmp_path)
    names = Counter(line.split("(")[0].split()[1] for line in found if "resumed>" not in line)
    assert 900 <= names["read"] <= 1100, "an item that was not followed by a look"
    assert sum(names.values()) <= 8 * 1000, names


# ---- other processes -------------------------------------------------------------------------------------------------


def watch_and_answer(connection: Connection, requests: st.Queue, answers: st.Queue, own: int) -> None:
    """Sends back what comes, plus 1, and at the end how many threads and eventfds that took."""
    assert requests.fileno() != own
    while True:
        assert becomes_readable(requests)
        try:
            answers.put(requests.get_nowait() + 1)
        except queue.Empty:
            continue
        except st.ShutDown:
            break
    connection.send((len(watchers()), eventfds()))


@pytest.mark.parametrize("method", START_METHODS)
def test_start_methods(method: str) -> None:
    requests, answers = st.Queue(), st.Queue()
    fd = requests.fileno()
    answers.fileno()
    with Crew(method) as crew:
        connection = crew.start(watch_and_answer, requests, answers, fd if method == "fork" else -1)
        for i in range(200):
            requests.put(i)
            assert becomes_readable(answers)
            assert answers.get_nowait() == i + 1
        assert not is_readable(answers)
        requests.shutdown()
        threads, descriptors = hear(connection)
    assert threads == 1
    # What a forked child inherited of `answers` it leaves alone; that of `requests` it has closed.
    assert descriptors == (2 if method == "fork" else 1)
    assert requests.fileno() == fd
    assert becomes_readable(requests), "the end"
    requests.close()
    answers.close()


def take_in_a_child(connection: Connection, q: st.Queue, fd: int) -> None:
    """What the parent watches is here, too; and here nobody asks for a descriptor."""
    connection.send(q.get_nowait())
    assert select.select([fd], [], [], 0)[0], "the parent's was touched"
    assert watchers() == []
    q.close()
    del q
    gc.collect()


def test_a_forked_child_leaves_its_parents_descriptor_alone() -> None:
    q = st.Queue()
    fd = q.fileno()
    q.put(1)
    assert becomes_readable(q)
    with Crew("fork") as crew:
        assert hear(crew.start(take_in_a_child, q, fd)) == 1
    assert wait_until(lambda: not is_readable(q)), "another process took it: noticed at the end of a slice"
    q.put(2)
    assert becomes_readable(q)
    assert (q.get(), q.fileno()) == (2, fd)
    q.close()


def get_all(connection: Connection, q: st.Queue) -> None:
    """A consumer that waits in get(), with nothing but the futex to wake it."""
    got = 0
    with contextlib.suppress(st.ShutDown):
        while True:
            q.get()
            got += 1
    connection.send(got)


def test_one_process_waits_in_get_while_another_watches() -> None:
    """Each item wakes the watchers first, and is then for whoever is quicker; nobody misses one."""
    count = 2_000
    q = st.Queue(spin_us=0)
    q.fileno()
    with Crew("fork") as crew:
        connection = crew.start(get_all, q)
        mine = 0
        for i in range(count):
            q.put(i)
            if i % 10 == 0:
                time.sleep(0.001)
            if i % 7 == 0 and is_readable(q):
                with contextlib.suppress(queue.Empty):
                    q.get_nowait()
                    mine += 1
        q.shutdown()
        theirs = hear(connection)
        while True:
            assert becomes_readable(q)
            try:
                q.get_nowait()
                mine += 1
            except st.ShutDown:
                break
    assert mine + theirs == count
    assert theirs > 0
    q.close()


def take(connection: Connection, q: st.Queue) -> None:
    while connection.recv():
        q.get()
        connection.send("taken")


def test_whoever_comes_too_late_sees_to_it() -> None:
    """The descriptor is readable in vain; to find that out is to put it right, at once."""
    q = st.Queue()
    q.fileno()
    with Crew("fork") as crew:
        connection = crew.start(take, q)
        for _ in range(20):
            q.put(1)
            assert becomes_readable(q)
            connection.send(True)
            hear(connection)
            with pytest.raises(queue.Empty):
                q.get_nowait()
            assert not is_readable(q)
        connection.send(False)
    q.close()


def put_for_ever(connection: Connection, q: st.Queue) -> None:
    connection.send("begun")
    x = np.zeros(1000)
    while True:
        q.put(x)


def test_a_killed_producer_changes_nothing() -> None:
    q = st.Queue(4)
    q.fileno()
    got = 0
    for _ in range(5):
        with Crew("fork") as crew:
            hear(crew.start(put_for_ever, q))
            for _ in range(50):
                assert becomes_readable(q)
                got += q.get().size == 1000
            os.kill(crew.processes[0].pid or 0, signal.SIGKILL)
            crew.processes[0].join()
            with pytest.raises(AssertionError, match="exit codes"):
                crew.__exit__(None)
            crew.processes.clear()
            crew.connections.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                got += q.get(timeout=0.3).size == 1000  # what it had put, and what reclaiming it brings
        assert not is_readable(q, 0.15), "its death is no news to a queue"
        q.put(np.zeros(1000))
        assert becomes_readable(q)
        assert q.get().size == 1000
        assert not is_readable(q)
    assert got >= 250
    q.close()


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("immediate", [False, True])
def test_a_shut_down_queue_is_readable_for_ever(immediate: bool) -> None:
    q = st.Queue()
    q.fileno()
    q.put(1)
    q.shutdown(immediate)
    assert becomes_readable(q)
    if not immediate:
        assert q.get_nowait() == 1
    for _ in range(3):
        assert is_readable(q, SECONDS)
        with pytest.raises(st.ShutDown):
            q.get_nowait()
    q.close()


def test_another_processes_shutdown_is_heard() -> None:
    q = st.Queue()
    q.fileno()
    with Crew("fork") as crew:
        crew.start(lambda connection: q.shutdown())
        assert becomes_readable(q)
        with pytest.raises(st.ShutDown):
            q.get_nowait()
    q.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filled", [False, True])
def test_a_closed_one_is_readable_for_ever(kind: str, filled: bool) -> None:
    q = make(kind)
    fd = q.fileno()
    if filled:
        q.put(1)
    q.close()
    assert is_readable(q)
    time.sleep(0.15)
    assert is_readable(q)
    assert q.fileno() == fd, "remove_reader() asks for it"
    with pytest.raises((ValueError, st.ClosedError)):
        q.get()
    assert is_readable(q)
    q.close()
    before = eventfds()
    del q
    gc.collect()
    assert eventfds() == before - 1


def test_closed_while_something_waits_to_be_sent() -> None:
    """close() returns at once, and get() raises: so the descriptor says so, too."""
    q = st.Queue(slots=2, reserve=0)
    q.fileno()
    for _ in range(2):
        q.put(np.zeros(1000))
    kept = [q.get(), q.get()]
    q.put(3)
    assert (q.stats()["waiting"], is_readable(q)) == (1, False)
    q.close()
    assert is_readable(q)
    kept.clear()
    q.join_thread()
    assert is_readable(q)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_one_has_no_descriptor_to_give(kind: str) -> None:
    q = make(kind)
    q.close()
    with pytest.raises((ValueError, st.ClosedError), match="closed"):
        q.fileno()


def test_the_end_of_the_producers() -> None:
    """Of a buffer: iteration would end, so it is readable; and so is the news that a producer died."""
    buffer = st.TensorBuffer.create(NUMBER, slots=4, producers=1)

    def produce(connection: Connection, well: bool) -> None:
        buffer.put(1)
        connection.send("put")
        if well:
            buffer.close()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    context = multiprocessing.get_context("fork")
    for well, error in ((False, st.PeersGone), (True, st.ShutDown)):
        assert not is_readable(buffer)
        ours, theirs = context.Pipe()
        process = context.Process(target=produce, args=(theirs, well))
        process.start()
        assert becomes_readable(buffer)
        assert int(buffer.get(copy=True)) == 1
        process.join()
        assert becomes_readable(buffer)
        with pytest.raises(error):
            while buffer.try_acquire() is None:
                pass
        ours.close()
        theirs.close()
        process.close()
    assert is_readable(buffer, SECONDS)
    buffer.close()


def test_one_that_nobody_has_any_more() -> None:
    """The thread keeps nothing alive, whether it sleeps or not."""
    before = eventfds()
    for filled in (False, True):
        keeps = st.Queue()
        keeps.fileno()
        q = st.Queue()
        q.fileno()
        if filled:
            q.put(1)
            assert becomes_readable(q)
        time.sleep(0.01)
        with leaves_nothing(of_others=False):
            pass
        fd = q.fileno()
        del q
        gc.collect()
        with pytest.raises(OSError):
            os.fstat(fd)
        assert eventfds() == before + 1
        assert len(watchers()) == 1
        del keeps
        gc.collect()
        assert wait_until(lambda: watchers() == [])
    assert eventfds() == before


def test_epoll_forgets_one_that_nobody_has() -> None:
    with select.epoll() as epoll:
        q = st.Queue()
        epoll.register(q, select.EPOLLIN)
        q.put(1)
        assert epoll.poll(SECONDS)
        del q
        gc.collect()
        assert epoll.poll(0) == []


def test_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import shmtensor._core as core

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    q = st.Queue()
    before = eventfds()
    with monkeypatch.context() as patched:
        patched.setattr(core, "start_new_thread", refuse)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="thread"):
                q.fileno()
    assert eventfds() == before
    q.put(1)
    assert becomes_readable(q)
    q.close()


def test_no_descriptor_is_to_be_had() -> None:
    code = """
import resource, shmtensor as st
q = st.Queue()
was = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, was[1]))
try:
    q.fileno()
except OSError as e:
    print(e.errno)
resource.setrlimit(resource.RLIMIT_NOFILE, was)
q.put(1)
import select
print(select.select([q], [], [], 60)[0] == [q])
"""
    import errno

    assert python(code).split() == [str(errno.EMFILE), "True"]


# ---- threads, signals, exit ------------------------------------------------------------------------------------------


def test_signals_are_not_for_the_watcher() -> None:
    """Else somebody who waits for one by sigwait() or signalfd could wait for ever."""
    q = st.Queue()
    q.fileno()
    assert wait_until(lambda: len(watchers()) == 1)
    [thread] = watchers()

    def blocked() -> int:
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        return int(re.findall(r"^SigBlk:\s+(\w+)", status, re.M)[0], 16)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM):
        assert blocked() >> (number - 1) & 1
    assert not blocked() >> (signal.SIGSEGV - 1) & 1
    q.close()


def test_several_threads_ask_take_and_put() -> None:
    q = st.Queue(4)
    fds: set[int] = set()
    got: list[int] = []
    count = 3_000

    def consume() -> None:
        fds.add(q.fileno())
        while True:
            assert becomes_readable(q)
            try:
                got.append(q.get_nowait())
            except queue.Empty:
                continue
            except st.ShutDown:
                return

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for t in threads:
        t.start()
    for i in range(count):
        q.put(i)
    q.shutdown()
    for t in threads:
        t.join(SECONDS)
        assert not t.is_alive()
    assert sorted(got) == list(range(count))
    assert len(fds) == 1
    assert len(watchers()) <= 1
    q.close()


EXIT = """
import select, sys, threading, time
import shmtensor as st
q, full, closed = st.Queue(), st.Queue(), st.Queue()
for x in (q, full, closed):
    x.fileno()
full.put(1)
assert select.select([full], [], [], 60)[0]
closed.close()
if sys.argv[1] == "blocked":
    threading.Thread(target=q.get, daemon=True).start()
    time.sleep(0.05)
elif sys.argv[1] == "cycle":
    q.itself = q
elif sys.argv[1] == "error":
    sys.exit(3)
elif sys.argv[1] == "watching":
    threading.Thread(target=select.select, args=([q], [], []), daemon=True).start()
    time.sleep(0.05)
print("end", flush=True)
"""


@pytest.mark.parametrize("how", ["plain", "blocked", "cycle", "error", "watching"])
def test_the_interpreter_ends_while_watching(how: str) -> None:
    for _ in range(3):
        with talking(EXIT, how) as process:
            out, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == (3 if how == "error" else 0)
            assert out == ("" if how == "error" else "end\n")


def test_a_child_that_leaves_while_watching() -> None:
    """multiprocessing's children leave in another way."""
    q = st.Queue()
    for method in START_METHODS:
        with Crew(method) as crew:
            assert hear(crew.start(leave_watching, q)) is True
    q.close()


def leave_watching(connection: Connection, q: st.Queue) -> None:
    q.put(1)
    readable = becomes_readable(q)
    q.get()
    connection.send(readable)
