"""One named buffer, processes in pid namespaces of their own in which their pids are the same: who lives, who is dead?

Under each start method, with threads. In each namespace one process is killed; what it held is taken back by a process
of another namespace, and nothing else is. Sweeps from anywhere leave what is in use and remove what is not.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shmtensor as st
from shmtensor._core import sweep

from .crowd import SoakFailed, SoakSkipped
from .items import key_of, read, stamp
from .report import Progress
from .workers import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
SLOTS = 12
FREE, WRITING, READY, READING = range(4)


class Inside:
    """A Python process that is process 1 of a namespace; JSON lines in, JSON lines out."""

    def __init__(self, call: str, *args: str, apart: bool = True) -> None:
        code = f"import sys; from tests.soak import inner; inner.{call}(*sys.argv[1:])"
        self.process = subprocess.Popen(
            [*(UNSHARE if apart else []), sys.executable, "-c", code, *args],
            cwd=os.getcwd(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> Any:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], 3 * PATIENCE)[0]:
            raise SoakFailed("a namespace says nothing")
        line = self.process.stdout.readline()
        if not line:
            raise SoakFailed(f"a namespace ended, exit status {self.process.wait()}")
        return json.loads(line)

    def tell(self, what: str, *args: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([what, *args]) + "\n")
        self.process.stdin.flush()

    def ask(self, what: str, *args: Any) -> Any:
        self.tell(what, *args)
        return self.hear()

    def end(self) -> None:
        """Kills it, and with process 1 everything in the namespace; returns when the last one is gone.

        Its input is closed last: an end of input would let it end in order.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.stdout.read()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


@contextlib.contextmanager
def inside(call: str, *args: str, apart: bool = True) -> Iterator[Inside]:
    it = Inside(call, *args, apart=apart)
    try:
        yield it
    finally:
        if it.process.returncode is None:
            it.end()


def expect(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise SoakFailed(f"{what}: {got} instead of {wanted}")


class Meeting:
    """Two namespaces, A and B, two workers in each, and the runner outside."""

    def __init__(self, method: str, figures: Counter[str]) -> None:
        self.method, self.figures = method, figures

    def run(self) -> None:
        names = [f"soak-{os.getpid()}-{self.method}-{what}" for what in ("stream", "held")]
        spec = ((8,), "int64")
        with (
            st.TensorBuffer.create(spec, slots=4, name=names[0], producers=0) as self.stream,
            st.TensorBuffer.create(spec, slots=SLOTS, name=names[1], producers=0) as self.buffer,
            inside("lead", self.method, *names, "1") as a,
            inside("lead", self.method, *names, "3") as b,
        ):
            self.a, self.b = a, b
            pids = [a.hear(), b.hear()]
            expect(pids[0], pids[1], "the pids of the two namespaces were to be the same")
            expect(pids[0]["pid"], 1, "the leader's pid")
            self.flow()
            self.hold()
            self.forks()
            self.deaths()
            self.endings(names)

    def flow(self, count: int = 500) -> None:
        """All of them put and get at once: each item comes once."""
        for leader in (self.a, self.b):
            leader.tell("ask", [0, 1], "flow", count)
        until(lambda: self.stream.stats()["publishes"] == 4 * count, "everything is published")
        until(lambda: self.stream.stats()["free"] == 4, "everything is taken")
        self.stream.shutdown()
        heard = [keys for leader in (self.a, self.b) for keys in leader.hear()]
        expect([type(keys) for keys in heard], [list] * 4, f"a worker failed: {heard}")
        expected = sorted(key_of(worker, i) for worker in range(1, 5) for i in range(count))
        expect(sorted(k for keys in heard for k in keys) == expected, True, "each item once, unflagged")
        for keys in heard:
            for worker in range(1, 5):
                mine = [k for k in keys if k >> 32 == worker]
                expect(mine == sorted(mine), True, "the order of a producer")
        self.figures["items between namespaces"] += 4 * count

    def hold(self) -> None:
        """Each of the four holds one item and one claimed slot."""
        for i in range(4):
            with self.buffer.claim(PATIENCE) as slot:
                stamp(slot.numpy(), key_of(9, i))
        self.held = [self.a.ask("ask", [0, 1], "hold"), self.b.ask("ask", [0, 1], "hold")]
        self.check_states(dead=[])

    def check_states(self, dead: list[tuple[int, int]]) -> None:
        """What the living hold they hold, slot by slot; what the dead held is free, or waits to be read again."""
        wanted: list[tuple[int, int]] = [(FREE, 0)] * SLOTS
        states = [(state, owner) for state, owner, _ in self.buffer._slot_states()]
        for side in range(2):
            for worker in range(2):
                held = self.held[side][worker]
                if (side, worker) not in dead:
                    wanted[held["reads"]] = (READING, held["member"])
                    wanted[held["writes"]] = (WRITING, held["member"])
                else:
                    expect(states[held["reads"]][0], READY, "the state of what a dead process was reading")
                    wanted[held["reads"]] = states[held["reads"]]  # owned by whoever reclaimed
        expect(states, wanted, f"(state, owner) of each slot after the death of {dead}")

    def forks(self) -> None:
        """Forked children let go of copies of what their parents hold, in both namespaces under the same pids."""
        for leader in (self.a, self.b):
            leader.tell("ask", [0, 1], "fork")
        expect([leader.hear() for leader in (self.a, self.b)], [[0, 0], [0, 0]], "the forked children's exit statuses")
        expect(self.buffer.reclaim() <= 4, True, "nobody but the forked died")
        self.check_states(dead=[])
        self.figures["forks with slots in hand"] += 4

    def deaths(self) -> None:
        """In each namespace one is killed; whoever reclaims sits in another one."""
        expect(
            [self.a.ask("reclaim"), self.b.ask("reclaim"), self.buffer.reclaim()], [0, 0, 0], "found dead by anybody"
        )
        pid = self.a.ask("kill", 0)
        expect(self.b.ask("reclaim"), 1, "found dead by B after a death in A")
        self.check_states(dead=[(0, 0)])
        expect(self.a.ask("reclaim"), 0, "found dead by A once more")
        expect(self.b.ask("kill", 0), pid, "the pid of the one in B")
        expect(self.buffer.reclaim(), 1, "found dead from outside after a death in B")
        self.check_states(dead=[(0, 0), (1, 0)])
        again = []
        for _ in range(2):
            with self.buffer.acquire(PATIENCE) as slot:
                again.append((read(slot.numpy()), slot.redelivered))
        expect(sorted(again), sorted((self.held[side][0]["key"], 1) for side in range(2)), "what comes again, flagged")
        for leader in (self.a, self.b):
            expect(leader.ask("ask", [1], "finish"), ["fine"], "the living worker beside a dead one")
        self.figures["deaths"] += 2
        expect(self.buffer.stats()["redelivered"], 2, "redelivered")

    def endings(self, names: list[str]) -> None:
        """A sweep from each side leaves the buffers alone; B dies as a whole; A closes; the last one out is outside."""
        for found in (self.a.ask("sweep"), self.b.ask("sweep"), dict(sweep())):
            expect([found.get(name) for name in names], [False, False], "a sweep, of what is in use")
        self.b.end()
        until(lambda: self.buffer.reclaim() == 0 and self.buffer.stats()["members"] == 3, "B is gone: A's two and we")
        expect(self.a.ask("close"), "closed", "A")
        until(lambda: self.buffer.stats()["members"] == 1, "A is gone")
        left = []
        while (slot := self.buffer.try_acquire()) is not None:
            left.append(read(slot.numpy()))
            slot.release()
        expect(sorted(left), [key_of(2, 1 << 20), key_of(4, 1 << 20)], "published by the two that lived")
        expect(self.buffer.stats()["free"], SLOTS, "free slots at the end")


def sweeps(figures: Counter[str]) -> None:
    """Made inside and swept from outside, made outside and swept inside, made in one namespace and swept in another."""
    for maker_apart, sweeper_apart in ((True, False), (False, True), (True, True)):
        for _ in range(5):
            if swept_once(maker_apart, sweeper_apart):
                break
        else:
            raise SoakFailed("others on this machine sweep all the time: each time what the dead left was gone already")
        figures["sweeps across namespaces"] += 2


def swept_once(maker_apart: bool, sweeper_apart: bool) -> bool:
    """Whether it was this sweep that removed what the dead maker left; False: somebody else's came before it."""
    name = f"soak-{os.getpid()}-sweep"
    path = Path("/dev/shm") / f"shmtensor.{name}"
    with inside("make_and_wait", name, apart=maker_apart) as maker:
        expect(maker.hear(), name, "the name of what was made")
        expect(sweep_from(sweeper_apart).get(name), False, "swept although its maker lives")
        expect(path.exists(), True, "whether the name is there")
        maker.end()
        found = sweep_from(sweeper_apart).get(name)
        expect(found in (True, None), True, "swept although its maker is dead")
        expect(path.exists(), False, "whether the name is there")
    return found is True


def sweep_from(apart: bool) -> dict[str, bool]:
    if not apart:
        return dict(sweep())
    with inside("sweep_once") as sweeper:
        return dict(sweeper.hear())


def until(true: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise SoakFailed(f"not within {PATIENCE} s: {what}")
        time.sleep(0.002)


def run(*, meetings: int, seconds: float, seed: int, progress: Progress) -> dict[str, object]:
    """Pid namespaces in which pids are the same, sharing one named buffer."""
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SoakSkipped(f"{' '.join(UNSHARE)} is not permitted here: {done.stderr.strip()[-200:]}")
    figures: Counter[str] = Counter()
    until = time.monotonic() + seconds
    for _ in range(meetings):
        for method in multiprocessing.get_all_start_methods():
            Meeting(method, figures).run()
            figures[f"meetings of {method}ed processes"] += 1
            progress(f"{method}: {dict(figures)}")
        sweeps(figures)
        if time.monotonic() > until:
            break
    return {**dict(figures), "released by the wrong process": 0}
