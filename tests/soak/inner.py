"""What runs inside a pid namespace of its own: a leader, process 1 there, and its workers, with two threads each.

The runner talks to the leader by lines of JSON, the leader to its workers by pipes.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import shmtensor as st
from shmtensor._core import sweep

from .items import key_of, read, stamp

PATIENCE = 20.0


class Worker:
    """A process with a stream to take part in and slots to hold; each in two threads."""

    def __init__(self, stream: st.TensorBuffer, held: st.TensorBuffer, number: int) -> None:
        self.stream, self.buffer, self.number = stream, held, number
        self.reader: Any = None
        self.writer: Any = None
        self.view: Any = None
        self.key = 0

    def serve(self, pipe: Connection) -> None:
        pipe.send(os.getpid())
        while True:
            try:
                what, *args = pipe.recv()
            except EOFError:  # the leader was killed, and so are we
                os._exit(1)
            if what == "exit":
                self.stream.close()
                self.buffer.close()
                return
            try:
                pipe.send(getattr(self, what)(*args))
            except Exception as e:
                pipe.send(f"{type(e).__name__}: {e}")

    def flow(self, count: int) -> list[int]:
        """One thread puts, the other gets to the end of the stream; the keys that came."""
        got: list[int] = []

        def put() -> None:
            for i in range(count):
                with self.stream.claim(PATIENCE) as slot:
                    stamp(slot.numpy(), key_of(self.number, i))

        def get() -> None:
            while True:
                try:
                    with self.stream.acquire(PATIENCE) as slot:
                        got.append(-1 if slot.redelivered else read(slot.numpy()))
                except st.ShutDown:
                    return

        in_threads(put, get)
        return got

    def hold(self) -> dict[str, int]:
        """One thread acquires an item, the other claims a slot: both stay held."""

        def acquire() -> None:
            self.reader = self.buffer.acquire(PATIENCE)
            self.view = self.reader.numpy()
            self.key = read(self.view)

        def claim() -> None:
            self.writer = self.buffer.claim(PATIENCE)
            stamp(self.writer.numpy(), key_of(self.number, 1 << 20))

        in_threads(acquire, claim)
        return {"key": self.key, "reads": self.reader.index, "writes": self.writer.index, "member": self.buffer._member}

    def fork(self) -> int:
        """A child that has the same pid as others elsewhere lets go of its copies: nobody's slots are to move."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self.buffer.reclaim()
                self.reader.release()
                self.view = None
                try:
                    self.writer.publish()
                except st.LeaseLost:
                    status = 0
                gc.collect()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def finish(self) -> str:
        """Everything that was held is still its own: unchanged, and can be ended in order."""
        if read(self.view) != self.key:
            return "the item changed while it was held"
        if read(self.writer.numpy()) != key_of(self.number, 1 << 20):
            return "the claimed slot changed"
        self.view = None
        self.reader.release()
        self.writer.publish()
        self.reader = self.writer = None
        return "fine"


def in_threads(*functions: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        raise failed[0]


def work(pipe: Connection, stream: st.TensorBuffer, held: st.TensorBuffer, number: int) -> None:
    Worker(stream, held, number).serve(pipe)


class Leader:
    def __init__(self, method: str, stream: str, held: str, number: int) -> None:
        self.stream, self.buffer = st.TensorBuffer.attach(stream), st.TensorBuffer.attach(held)
        context = multiprocessing.get_context(method)
        self.pipes, self.processes = [], []
        for i in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, self.stream, self.buffer, number + i))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self.pids = [self.hear(pipe) for pipe in self.pipes]

    def hear(self, pipe: Connection) -> Any:
        if not pipe.poll(2 * PATIENCE):
            raise TimeoutError("a worker says nothing")
        return pipe.recv()

    def ask(self, workers: list[int], what: str, *args: Any) -> list[Any]:
        for i in workers:
            self.pipes[i].send((what, *args))
        return [self.hear(self.pipes[i]) for i in workers]

    def kill(self, worker: int) -> int:
        os.kill(self.pids[worker], signal.SIGKILL)
        self.processes[worker].join()
        return self.pids[worker]

    def reclaim(self) -> int:
        return self.buffer.reclaim()

    def sweep(self) -> dict[str, bool]:
        return dict(sweep())

    def close(self) -> str:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if process.is_alive():
                pipe.send(("exit",))
            process.join(PATIENCE)
        self.stream.close()
        self.buffer.close()
        return "closed"


def lead(method: str, stream: str, held: str, number: str) -> None:
    """Answers each line [what, *args] with one line."""
    leader = Leader(method, stream, held, int(number))
    print(json.dumps({"pid": os.getpid(), "workers": leader.pids}), flush=True)
    for line in sys.stdin:
        what, *args = json.loads(line)
        print(json.dumps(getattr(leader, what)(*args)), flush=True)


def make_and_wait(name: str) -> None:
    """Creates a named buffer and holds it until killed."""
    buffer = st.TensorBuffer.create(((8,), "int64"), slots=2, name=name)
    print(json.dumps(buffer.name), flush=True)
    sys.stdin.read()


def sweep_once() -> None:
    print(json.dumps(dict(sweep())), flush=True)
