"""All processes of a buffer are killed at once, while it is created, used or closed: what remains, and for how long?

Of an anonymous buffer nothing, of a named one its name until the next sweep, which is also part of the next creation.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import shmtensor as st
from shmtensor._core import sweep

from .arena import PHASE, Arena, At
from .crowd import Crowd, SoakFailed, children, descriptors
from .items import key_of, stamp
from .report import Progress
from .workers import PATIENCE

SHM = Path("/dev/shm")
LIVES = 4  #: processes of each buffer, its creator included


def names_left() -> set[str]:
    """Of this run: others may be at work on this machine."""
    return {p.name.removeprefix("shmtensor.") for p in SHM.glob(f"shmtensor.soak-{os.getpid()}-*")}


def still_somewhere(inode: int, device: int) -> list[str]:
    """Names, descriptors and mappings, in any process that may be looked at, of a file that should be gone."""
    found = []
    for path in SHM.iterdir():
        with contextlib.suppress(OSError):
            if (s := path.stat()).st_ino == inode and s.st_dev == device:
                found.append(str(path))
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for fd in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if (s := fd.stat()).st_ino == inode and s.st_dev == device:
                        found.append(str(fd))
        with contextlib.suppress(OSError):
            for line in (folder / "maps").read_text().splitlines():
                if "shmtensor" in line and int(line.split()[4]) == inode:
                    found.append(f"{folder}: {line}")
    return found


def shared_kib() -> int:
    """Shared memory of the whole machine, KiB."""
    text = Path("/proc/meminfo").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("Shmem:")).split()[1])


class Massacre:
    """One buffer, its processes and their end."""

    def __init__(self, rng: random.Random, name: str | None, nbytes: int) -> None:
        self.rng, self.name, self.nbytes = rng, name, nbytes
        self.arena = Arena()
        self.words = self.arena.words

    def live(self, instance: int) -> None:
        """The creator: a group of its own, a buffer, children that use it."""
        os.setpgid(0, 0)
        words = self.words
        words[0] = os.getpid()
        words[self.arena.seat(0) + PHASE] = At.JOINING
        buffer = st.TensorBuffer.create(((self.nbytes // 8,), "int64"), slots=4, name=self.name, producers=0)
        stat = os.fstat(buffer._fd)
        words[1], words[2] = stat.st_ino, stat.st_dev
        for seat in range(1, LIVES):
            if os.fork() == 0:
                self.use(buffer, seat)
        self.use(buffer, 0)

    def use(self, buffer: st.TensorBuffer, seat: int) -> None:
        """Some attach by name and close again and again, so that they may die in that too."""
        rng = random.Random(self.rng.random() + seat)
        mine = buffer
        number = 0
        while True:
            self.words[self.arena.seat(seat) + PHASE] = At.BETWEEN
            if self.name is not None and seat % 2 and rng.random() < 0.2:
                mine.close()
                mine = st.TensorBuffer.attach(self.name)
            with contextlib.suppress(TimeoutError, st.PeersGone):
                if rng.random() < 0.5:
                    with mine.claim(0.1) as slot:
                        stamp(slot.numpy()[:8], key_of(seat + 1, number))
                    number += 1
                else:
                    with mine.acquire(0.1) as slot:
                        slot.numpy()[0]

    def end(self, crowd: Crowd) -> None:
        """Everybody dies in one instant, as far as one signal to all of them is that."""
        lag = self.rng.choice([0.0, 0.003, 0.02]) * self.rng.random()
        if self.rng.random() < 0.8:
            deadline = time.monotonic() + PATIENCE
            busy = [self.arena.seat(s) + PHASE for s in range(LIVES)]
            while not all(self.words[b] == At.BETWEEN for b in busy):
                crowd.check()
                if time.monotonic() > deadline:
                    raise SoakFailed("they do not come to life")
                time.sleep(0.0002)
        else:  # in the middle of its creation
            while not self.words[0]:
                time.sleep(0.0001)
        time.sleep(lag)
        os.killpg(self.words[0], signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while crowd.players or children():
            crowd.reap()
            if time.monotonic() > deadline:
                raise SoakFailed(f"the killed do not die: {children()}")
            time.sleep(0.0002)


def run(*, massacres: int, seconds: float, seed: int, progress: Progress) -> dict[str, object]:
    """All processes killed at once."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    figures: Counter[str] = Counter()
    shared, fds = shared_kib(), descriptors()
    names = [f"soak-{os.getpid()}-{i}" for i in range(3)]  # few: each is created again and again
    while figures["massacres"] < massacres and time.monotonic() < until:
        name = rng.choice(names) if rng.random() < 0.5 else None
        one = Massacre(rng, name, rng.choice([4096, 1 << 20]))
        with Crowd(one.arena) as crowd:
            crowd.start(0, "creator", one.live)
            one.end(crowd)
            inode, device = one.words[1], one.words[2]
        figures["massacres"] += 1
        figures["named" if name else "anonymous"] += 1
        figures["before the segment was there"] += inode == 0
        left = names_left()
        if left - {name}:
            raise SoakFailed(f"left behind under other names: {left - {name}}")
        if name is not None:
            check_named(name, bool(left), rng, figures)
        if found := still_somewhere(inode, device):
            raise SoakFailed(f"after the death of all its processes a segment is still there: {found}")
        progress(f"{figures['massacres']:,} of {massacres:,} massacres")
    if descriptors() > fds:
        raise SoakFailed(f"descriptors: {fds} before, {descriptors()} after")
    return {**dict(figures), "files left": 0, "descriptors more": 0, "shared memory more, KiB": shared_kib() - shared}


def check_named(name: str, left: bool, rng: random.Random, figures: Counter[str]) -> None:
    """Half the time the sweep is asked for, otherwise the next creation of the same name has to do it."""
    figures["names left until the sweep"] += left
    if rng.random() < 0.5:
        would = dict(sweep(dry_run=True))
        swept = dict(sweep())
        if left and not (would.get(name) and swept.get(name)):
            raise SoakFailed(f"the sweep leaves what only the dead had: {would}, {swept}")
        if (SHM / f"shmtensor.{name}").exists():
            raise SoakFailed("the sweep says that it removed what is still there")
    with st.TensorBuffer.create(((8,), "int64"), slots=2, name=name) as again:
        again.put(range(8))
        if dict(sweep()).get(name):
            raise SoakFailed("a sweep removed the name of a living buffer")
        with st.TensorBuffer.attach(name) as other:
            if other.get(timeout=PATIENCE, copy=True).tolist() != list(range(8)):
                raise SoakFailed("the buffer made again is not a new one")
    if (SHM / f"shmtensor.{name}").exists():
        raise SoakFailed("the last one to close left the name behind")
