"""Processes that are forked, killed, stopped and reaped; none is left behind, however the run ends."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arena import PAUSED, PHASE, WORDS, Arena

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class SoakFailed(Exception):
    """A law was broken, or something hung."""


class SoakSkipped(Exception):
    """It cannot be tried here."""


def adopt_orphans() -> None:
    """Grandchildren whose parent is killed become this process's children, so that they can be reaped and ended."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def children() -> list[int]:
    """Pids of this process's children, adopted ones included."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Player:
    """One process and the seat on which it sits."""

    pid: int
    seat: int
    instance: int
    role: str
    status: int | None = None  #: as waitpid() says; None: not reaped
    phase: int = 0  #: where it was when it ended
    killed_ns: int = 0  #: just before the signal; 0: not killed by the runner


class Crowd:
    """The processes of one run. ``failures`` lists what any of them, grandchildren too, died of unasked."""

    def __init__(self, arena: Arena, folder: Path | None = None) -> None:
        self.arena = arena
        self.players: dict[int, Player] = {}
        self.ended: list[Player] = []
        self.instances = 0
        self._pulse = 0
        self._temporary = tempfile.TemporaryDirectory(prefix="soak-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else folder
        assert self.folder is not None
        self._failed = self.folder / "failed"
        self._failed.mkdir()
        self.errors = self.folder / "stderr"  #: of executed programs
        adopt_orphans()
        gc.collect()
        gc.freeze()  # what a fork shares stays shared

    # ---- starting

    def start(self, seat: int, role: str, function: Callable[[int], Any]) -> Player:
        """Forks; the child runs ``function(instance)`` and leaves by _exit: 0, or 1 if it raised."""
        self.instances += 1
        words, base = self.arena.words, self.arena.seat(seat)
        for i in range(WORDS):
            words[base + i] = 0
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.run_and_exit(f"{role} {self.instances}", function, self.instances)
        player = Player(pid, seat, self.instances, role)
        self.players[pid] = player
        return player

    def run_and_exit(self, who: str, function: Callable[..., Any], *args: Any) -> None:
        """Never returns. Also for grandchildren: a failure is written where the runner finds it."""
        status = 1
        try:
            function(*args)
            status = 0
        except BaseException:
            path = self.folder / f"failing-{os.getpid()}"
            path.write_text(f"{who} (pid {os.getpid()}):\n{traceback.format_exc()}")
            path.rename(self._failed / str(os.getpid()))  # whole, or not there
        finally:
            os._exit(status)

    def pulse(self) -> None:
        """Starts a process that only sleeps and adds up by how much it overslept: for so long nobody had a turn.

        An overloaded or suspended machine is nobody's stall.
        """
        words = self.arena.words

        def beat(_: int) -> None:
            while True:
                before = time.monotonic_ns()
                time.sleep(0.02)
                late = (time.monotonic_ns() - before) // 1000 - 20_000
                if late > 50_000:
                    words[PAUSED] += late

        self._pulse = os.fork()
        if self._pulse == 0:
            die_with_parent()
            self.run_and_exit("the pulse", beat, 0)

    # ---- ending

    def left(self) -> list[int]:
        """Pids of the players, and of what players that are gone have forked: some are members of their own."""
        return [pid for pid in children() if pid != self._pulse]

    def kill(self, *players: Player) -> None:
        """SIGKILL, at once as far as that can be said of two cores."""
        now = time.monotonic_ns()
        for p in players:
            p.killed_ns = now
        for p in players:
            os.kill(p.pid, signal.SIGKILL)  # not reaped: its pid is nobody else's

    def reap(self, pid: int = -1, *, wait: bool = False) -> list[Player]:
        """Takes note of who ended. One that was not killed and did not exit with 0 fails the run."""
        found = []
        while True:
            try:
                gone, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
            except ChildProcessError:
                break
            if gone == 0:
                break
            player = self.players.pop(gone, None)  # None: an orphan
            if player:
                player.status = status
                player.phase = self.arena.words[self.arena.seat(player.seat) + PHASE]
                self.ended.append(player)
                found.append(player)
                if status not in (0, signal.SIGKILL):
                    self.check()
                    raise SoakFailed(f"{player.role} {player.instance} ended with wait status {status:#x}")
            if pid != -1:
                break
        return found

    def check(self) -> None:
        """Raises with what the children wrote of their failures."""
        texts = [p.read_text() for p in sorted(self._failed.iterdir())]
        if self.errors.exists():
            texts += self.errors.read_text().splitlines()
        if texts:
            raise SoakFailed("\n".join(texts[:3]))

    def wait_all(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.players:
            self.reap()
            self.check()
            if time.monotonic() > end:
                where = [f"{p.role} {p.instance} at {self.phase_of(p)}" for p in self.players.values()]
                raise SoakFailed(f"these do not end within {seconds} s: {', '.join(where)}")
            time.sleep(0.0005)
        self.check()

    def phase_of(self, player: Player) -> int:
        return int(self.arena.words[self.arena.seat(player.seat) + PHASE])

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exc: object) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end and (left := children()):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.001)
        self.players.clear()
        self.arena.close()
        gc.unfreeze()
        if self._temporary:
            self._temporary.cleanup()
