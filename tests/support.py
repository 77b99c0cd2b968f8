"""What several test files share: processes that cannot hang a run, and what a test may not leave behind.

Workers live here and not in the test files, so that a spawned process need not import pytest.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

import shmtensor as st

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
START_METHODS = [m for m in ("fork", "spawn", "forkserver") if m in multiprocessing.get_all_start_methods()]
SECONDS = 60.0  #: no process here may take longer: a ceiling against hanging, not an expectation

_count = itertools.count()


def unique_name(what: str = "t") -> str:
    """A segment name that no other test, and no other run, uses."""
    return f"test-{what}-{os.getpid()}-{next(_count)}"


def path_of(name: str) -> Path:
    return Path("/dev/shm") / f"shmtensor.{name}"


def cores() -> int:
    return len(os.sched_getaffinity(0))


def wait_until(true: Callable[[], Any], seconds: float = 10.0) -> bool:
    """Polls; returns whether it became true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def is_running(pid: int) -> bool:
    """Not so a zombie, which in a container may never be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types throughout, NaN to NaN; tensors with the same strides."""
    if type(a) is not type(b):
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(a, torch.Tensor):
        if a.layout is not torch.strided:
            return a.layout == b.layout and torch.equal(a.to_dense(), b.to_dense())
        alike = a.dtype == b.dtype and a.stride() == b.stride() and a.requires_grad == b.requires_grad
        return alike and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and (a.tobytes() == b.tobytes() or bool((a == b).all()))
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes() or a == b
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


# ---- what must not stay behind ---------------------------------------------------------------------------------------


def segment_fds() -> list[str]:
    """What this process's descriptors of segments and of their lock files point to."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if "memfd:shmtensor" in target or target.startswith("/dev/shm/shmtensor."):
                found.append(target)
    return found


def segment_maps() -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "memfd:shmtensor" in line or "/dev/shm/shmtensor." in line]


def own_files() -> set[str]:
    """Files in /dev/shm that the tests of this process made."""
    return {n for n in os.listdir("/dev/shm") if n.startswith("shmtensor.test-") and f"-{os.getpid()}-" in n}


def what_is_open() -> dict[str, Any]:
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "of segments": len(segment_fds()),
        "mappings": len(segment_maps()),
        "files": own_files(),
    }


@contextlib.contextmanager
def leaves_nothing(*, of_others: bool = True) -> Iterator[None]:
    """No more descriptors, mappings and files of segments afterwards than before; ``of_others``: nor descriptors of
    any other kind (multiprocessing's servers and trackers keep theirs)."""
    before = what_is_open()
    yield
    counts = ["of segments", "mappings", *["descriptors"] * of_others]

    def more() -> list[str]:
        after = what_is_open()
        grown = [f"{what}: {before[what]} -> {after[what]}" for what in counts if after[what] > before[what]]
        return grown + sorted(after["files"] - before["files"])

    if more():
        gc.collect()  # not each time: it takes 0.2 s where torch is loaded
    # multiprocessing closes the descriptor that it has handed over in a thread of its own.
    assert wait_until(lambda: more() == [], 3.0), more()


@contextlib.contextmanager
def own_dev_shm() -> Iterator[bool]:
    """A /dev/shm for this thread and the processes that it starts, where the system permits that (yields whether).

    Other programs' creations sweep too, and would take away what a test has left there to be found.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    newns, private = 0x00020000, 1 << 14 | 1 << 18  # CLONE_NEWNS; MS_REC | MS_PRIVATE
    before, cwd = os.open("/proc/self/ns/mnt", os.O_RDONLY), os.getcwd()
    own = False
    try:
        if libc.unshare(newns) == 0:
            own = libc.mount(None, b"/", None, private, None) == 0
            own = own and libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64m") == 0
        yield own
    finally:
        if own:
            libc.unshare(0x00000200)  # CLONE_FS: threads begun since share it with us
            assert libc.setns(before, newns) == 0, os.strerror(ctypes.get_errno())
            os.chdir(cwd)
        os.close(before)


# ---- processes -------------------------------------------------------------------------------------------------------


def python(code: str, *args: str, wrapper: tuple[str, ...] = (), timeout: float = SECONDS, **options: Any) -> str:
    """Runs ``python -c code args`` and returns what it printed; an exit status other than 0 fails the test."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", code, *args],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def cpython_cases(case: str, method: str) -> None:
    """Runs one of the classes of cpython_cases.py, and prints what it leaves out and why."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "cpython_cases.py"), method, case],
        env=environment(),
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    print(*[line for line in done.stdout.splitlines() if line.startswith("skipped")], sep="\n")
    assert done.returncode == 0, done.stderr[-5000:]


def run_tool(*command: str, cwd: Path | None = None, timeout: float) -> subprocess.CompletedProcess[str]:
    """A program that is not Python's: its status, and all it wrote. Without the sanitizers of make asan, which are for
    the extension; without a terminal, for a run in the background would be stopped."""
    return subprocess.run(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
        text=True,
        timeout=timeout,
    )


@contextlib.contextmanager
def talking(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """The same, running, to be talked to by lines; killed at the end of the block if it is not gone by then."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def environment() -> dict[str, str]:
    path = [str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def not_permitted(*command: str) -> str | None:
    """None if the command works here, else why not: a reason to skip."""
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{command[0]} does not run here: {e}"
    if done.returncode != 0:
        return f"{' '.join(command)!r} is not permitted here: {done.stderr.strip()[-200:]}"
    return None


class Crew:
    """Processes of one start method that are joined, or killed, at the end of the block.

    Each worker gets a connection as its first argument, to say what it found.
    """

    def __init__(self, method: str = "fork") -> None:
        self.context: Any = multiprocessing.get_context(method)
        self.processes: list[BaseProcess] = []
        self.connections: list[Connection] = []

    def start(self, target: Callable[..., None], *args: Any) -> Connection:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=target, args=(theirs, *args))
        process.start()
        theirs.close()
        self.processes.append(process)
        self.connections.append(ours)
        return ours

    def join(self, seconds: float = SECONDS) -> list[int | None]:
        """Exit codes; None of a process that is still running."""
        end = time.monotonic() + seconds
        for p in self.processes:
            p.join(max(0.0, end - time.monotonic()))
        return [p.exitcode for p in self.processes]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                codes = self.join()
                assert set(codes) <= {0}, f"exit codes {codes}"
        finally:
            for p in self.processes:
                if p.is_alive():
                    p.kill()
                p.join()
                p.close()
            for c in self.connections:
                c.close()


def hear(connection: Connection, seconds: float = SECONDS) -> Any:
    """What a worker sent, or a failed test."""
    assert connection.poll(seconds), "a worker says nothing"
    try:
        return connection.recv()
    except EOFError:
        raise AssertionError("a worker ended without a word") from None


# ---- items that show when they are lost, doubled, torn or late -------------------------------------------------------

WORDS = 16
STREAM_SPEC = ((WORDS,), "int64")
_PATTERN = np.arange(1, WORDS + 1, dtype=np.int64) * 0x0101_0101


def stamp(out: np.ndarray, producer: int, number: int) -> None:
    """Every word of the payload depends on who wrote it, when, and where it lies."""
    np.add(_PATTERN, producer << 48 | number, out=out)


def read_stamp(item: np.ndarray) -> int:
    """producer << 48 | number; -1 if any word is not what stamp() wrote."""
    key = int(item[0]) - int(_PATTERN[0])
    return key if key >= 0 and (item - _PATTERN == key).all() else -1


def produce(connection: Connection, buffer: st.TensorBuffer, producer: int, count: int, batch: int = 0) -> None:
    """Publishes ``count`` stamped items, one by one or in batches, and closes."""
    done = 0
    while done < count:
        if batch:
            with buffer.claim_many(min(batch, count - done), timeout=SECONDS) as slots:
                view = slots.numpy()
                for i in range(len(slots)):
                    stamp(view[i], producer, done + i)
                done += len(slots)
        else:
            with buffer.claim(timeout=SECONDS) as slot:
                stamp(slot.numpy(), producer, done)
            done += 1
    buffer.close()
    connection.close()


def consume(connection: Connection, buffer: st.TensorBuffer, batch: int = 0) -> None:
    """Reads to the end of the stream and sends the stamps in the order in which they came."""
    keys: list[int] = []
    while True:
        try:
            if batch:
                with buffer.acquire_many(batch, timeout=SECONDS) as slots:
                    keys.extend(read_stamp(item) for item in slots.numpy())
            else:
                with buffer.acquire(timeout=SECONDS) as slot:
                    keys.append(read_stamp(slot.numpy()))
        except st.ShutDown:
            break
    buffer.close()
    connection.send_bytes(np.array(keys, np.int64).tobytes())
    connection.close()


def check_stream(heard: list[np.ndarray], producers: int, count: int) -> None:
    """None torn, none out of order per producer and consumer, none lost or doubled."""
    for keys in heard:
        assert (keys >= 0).all(), f"{(keys < 0).sum()} torn items"
        for producer in range(producers):
            mine = keys[keys >> 48 == producer]
            assert (np.diff(mine) > 0).all(), f"items of producer {producer} came out of order"
    got = np.sort(np.concatenate(heard))
    expected = np.concatenate([np.arange(count) + (p << 48) for p in range(producers)])
    assert len(got) == len(expected), f"{len(got)} items of {len(expected)}"
    assert np.array_equal(got, expected), "some items were lost and others doubled"


def echo(connection: Connection, requests: st.TensorBuffer, replies: st.TensorBuffer, torch: bool) -> None:
    """Sends back each item with 1 added, by views of numpy or of torch, until the requests end."""
    while True:
        try:
            slot = requests.acquire(timeout=SECONDS)
        except st.ShutDown:
            break
        with slot, replies.claim(timeout=SECONDS) as out:
            if torch:
                out.torch().copy_(slot.torch() + 1)
            else:
                out.numpy()[...] = slot.numpy() + 1
            out.tag = slot.tag
    requests.close()
    replies.close()
    connection.send(segment_fds())


def hear_keys(connection: Connection) -> np.ndarray:
    assert connection.poll(SECONDS), "a consumer says nothing"
    try:
        return np.frombuffer(connection.recv_bytes(), np.int64)
    except EOFError:
        raise AssertionError("a consumer ended without a word") from None
