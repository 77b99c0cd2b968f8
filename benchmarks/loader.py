"""DataLoader beside torch's, in one interleaved run.

    python benchmarks/loader.py [--repeats N] [--seconds S] [--rows NAME,...] [--quick] [--grid] [--others]

The dataset costs next to nothing: a sample is a new tensor over memory that is there, so that what is measured is how
batches are made and handed over. Two workers. The candidates of a row follow each other directly, each in a process of
its own; printed are samples a second, medians over the repeats, from the third batch on. `x` is how many times faster
shmtensor was, within each repeat; `reach` what it is meant to be beside torch's with descriptors. `limit` is one copy
of each sample into warm memory in one process, times two.

--grid: how many times faster than torch's, by size of a sample, of a batch, and number of workers. --others:
photographs, with what they cost in CPU time, and the time to the first batch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("shmtensor") is None:
    sys.path.append(str(HERE.parent))  # built in place and not installed

import harness  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader, Dataset, default_collate  # noqa: E402

import shmtensor as st  # noqa: E402
import shmtensor.data  # noqa: E402
from shmtensor.cli import photos  # noqa: E402

OURS, TORCH, FILES, SPDL, NONE, LIMIT = "shmtensor", "torch", "torch fs", "SPDL arena", "no workers", "limit"


class Samples(Dataset[Any]):
    def __init__(self, n: int, shape: tuple[int, ...], dtype: str, in_place: bool, computed: bool = False) -> None:
        self.n, self.in_place, self.computed = n, in_place, computed
        self.x = np.ones(shape, dtype)
        self.shape, self.dtype = shape, torch.from_numpy(self.x).dtype

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> torch.Tensor:
        if self.in_place:  # as if it had been decoded there
            return shmtensor.data.empty(self.shape, self.dtype)
        return torch.from_numpy(self.x * np.float32(2) if self.computed else self.x)


def samples(kind: str, shape: tuple[int, ...], dtype: str, batch: int | None, in_place: bool, n: int) -> float:
    """Samples a second."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    per = batch or 1
    dataset = Samples(max(n, 12 * per), shape, dtype, in_place)
    if kind == LIMIT:
        room, began = [np.empty((per, *shape), dtype) for _ in range(2)], 0.0
        for i in range(len(dataset) // per):
            if i == 2:
                began = time.perf_counter()
            for row in room[i % 2]:
                row[...] = dataset.x
        return 2 * (len(dataset) // per - 2) * per / (time.perf_counter() - began)
    if kind == SPDL:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # it says much of the views that it was closed under
        return of_batches(spdl_batches(dataset, batch), per)
    if kind == FILES:
        torch.multiprocessing.set_sharing_strategy("file_system")
    loader = (st.DataLoader if kind == OURS else DataLoader)(dataset, batch, num_workers=0 if kind == NONE else 2)
    return of_batches(loader, per)


def of_batches(batches: Iterable[Any], per: int) -> float:
    began, got = 0.0, 0
    for i, _ in enumerate(batches):
        if i == 2:
            began, got = time.perf_counter(), 0
        got += per
    return (got - per) / (time.perf_counter() - began)


def spdl_batches(dataset: Samples, batch: int | None) -> Iterator[Any]:
    """SPDL's subprocesses, each with an arena of its own, since it takes one producer; asked by turns."""
    from spdl.pipeline import SharedMemorySegmentPool, iterate_in_subprocess

    per = batch or 1
    nbytes = max(dataset.x.nbytes * per + 65536, 1 << 20)
    each = [
        iter(
            iterate_in_subprocess(
                functools.partial(Half, dataset, batch, i),
                mp_context="fork",
                arena=SharedMemorySegmentPool(nbytes, 4),
                daemon=True,
            )
        )
        for i in range(2)
    ]
    for i in range(len(dataset) // per):
        yield next(each[i % 2])


class Half:
    """Every second batch."""

    def __init__(self, dataset: Samples, batch: int | None, which: int) -> None:
        self.dataset, self.batch, self.which = dataset, batch, which

    def __iter__(self) -> Iterator[Any]:
        torch.set_num_threads(1)
        per = self.batch or 1
        for i in range(self.which, len(self.dataset) // per, 2):
            if self.batch is None:
                yield self.dataset[i]
            else:
                yield default_collate([self.dataset[j] for j in range(i * per, i * per + per)])


#: what -> shape, dtype, batch, made in place, what to reach
ROWS: dict[str, tuple[tuple[int, ...], str, int | None, bool, float]] = {
    "4 MB, without batches": ((1000, 1000), "float32", None, False, 9.7),
    "4 MB, batches of 1": ((1000, 1000), "float32", 1, False, 10.4),
    "4 MB, batches of 8": ((1000, 1000), "float32", 8, False, 4.0),
    "u8 images, batches of 32": ((224, 224, 3), "uint8", 32, False, 9.5),
    "f32 images, batches of 32": ((224, 224, 3), "float32", 32, False, 4.4),
    "f32 images, batches of 64": ((224, 224, 3), "float32", 64, False, 4.1),
    "16 floats, batches of 256": ((16,), "float32", 256, False, 2.8),
    "empty(): 4 MB, without batches": ((1000, 1000), "float32", None, True, 20),
    "empty(): 4 MB, batches of 8": ((1000, 1000), "float32", 8, True, 12),
}


def row(what: str, options: Any) -> None:
    shape, dtype, batch, in_place, bar = ROWS[what]
    kinds = [OURS, TORCH, FILES, *([SPDL] if importlib.util.find_spec("spdl") and not in_place else []), NONE, LIMIT]
    cells: dict[str, Callable[[int], float]] = {
        k: lambda n, k=k: samples(k, shape, dtype, batch, in_place, n) for k in kinds
    }
    counts = {k: int(harness.isolated(cells[k], 1, timeout=120) * options.seconds) for k in kinds}
    figures, ratio = harness.interleaved(cells, counts, options.repeats, OURS)
    texts = [f"{OURS} {figures[OURS]:,.0f}/s"]
    texts += [f"{k} {figures[k]:,.0f} (x {ratio[k]:.2f})" for k in kinds[1:]]
    verdict = "ok" if ratio[TORCH] >= bar else "SHORT"
    print(f"{what:31} {'   '.join(texts)}   reach {bar}: {verdict}", flush=True)


class Photographs(Dataset[Any]):
    """Photographs that a package ships, decoded, cropped at random, 224 x 224."""

    def __init__(self, n: int) -> None:
        self.n, self.paths = n, photos.find(None)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> torch.Tensor:
        out = shmtensor.data.empty((3, photos.SIDE, photos.SIDE), torch.uint8)
        photos.sample_into(self.paths[i % len(self.paths)], np.random.default_rng(i), out.numpy())
        return out


def photographs(kind: str, n: int) -> tuple[float, float]:
    """Images a second, and CPU milliseconds that one takes in all processes, the start of the workers included."""
    torch.set_num_threads(1)
    loader = (st.DataLoader if kind == OURS else DataLoader)(Photographs(n), 32, num_workers=2)
    began, cpu_before = time.perf_counter(), cpu_seconds()
    for _ in loader:
        pass
    seconds = time.perf_counter() - began
    del loader
    return n / seconds, (cpu_seconds() - cpu_before) / n * 1e3


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def first_batch(kind: str, nbytes: int, batch: int, start: str, computed: bool, more: dict[str, Any]) -> Any:
    """Milliseconds from iter() to the first batch, and those that its samples take by themselves."""
    torch.set_num_threads(1)
    dataset = Samples(batch, (nbytes // 4,), "float32", False, computed)
    began = time.perf_counter()
    for i in range(batch):
        dataset[i]
    alone = time.perf_counter() - began
    loader_type: Any = st.DataLoader if kind == OURS else DataLoader
    loader = loader_type(dataset, batch, num_workers=2, multiprocessing_context=start, **(more if kind == OURS else {}))
    began = time.perf_counter()
    next(iter(loader))
    return (time.perf_counter() - began) * 1e3, alone * 1e3


def others(options: Any) -> None:
    n = int(640 * options.seconds)
    found: dict[str, list[tuple[float, float]]] = {OURS: [], TORCH: []}
    for _ in range(options.repeats):
        for kind, results in found.items():
            results.append(harness.isolated(photographs, kind, n, timeout=300))
    rates, cpu = ({k: statistics.median(x[i] for x in v) for k, v in found.items()} for i in (0, 1))
    print(f"photographs, batches of 32: {rates[OURS]:,.0f} images/s (x {rates[OURS] / rates[TORCH]:.2f}), "
          f"{cpu[OURS]:.2f} ms CPU an image (x {cpu[OURS] / cpu[TORCH]:.2f})")  # fmt: skip
    by_rows = {"granularity": "sample"}
    for what, nbytes, batch, start, computed, more in (
        ("8 of 150 KB, fork", 150_528, 8, "fork", False, {}),
        ("8 of 150 KB, spawn", 150_528, 8, "spawn", False, {}),
        ("8 of 16 MB, fork", 16 << 20, 8, "fork", False, {}),
        ('8 of 16 MB, fork, granularity="sample"', 16 << 20, 8, "fork", False, by_rows),
        ('8 of 16 MB, fork, granularity="sample", computed', 16 << 20, 8, "fork", True, by_rows),
    ):
        each: dict[str, list[tuple[float, float]]] = {OURS: [], TORCH: []}
        for _ in range(options.repeats):
            for kind, times in each.items():
                times.append(harness.isolated(first_batch, kind, nbytes, batch, start, computed, more, timeout=300))
        ours, theirs = (statistics.median(x[0] for x in each[kind]) for kind in (OURS, TORCH))
        alone = statistics.median(x[1] for x in each[OURS])
        print(f"first batch, {what}: {ours:,.1f} ms, torch {theirs:,.1f} (x {ours / theirs:.2f}); "
              f"its samples alone {alone:,.1f}", flush=True)  # fmt: skip


def rate(kind: str, nbytes: int, batch: int | None, workers: int, seconds: float) -> float:
    """Samples a second, of float32 samples, after the slots have grown."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dataset = Samples(1 << 40, (nbytes // 4,), "float32", False)
    loader = (st.DataLoader if kind == OURS else DataLoader)(dataset, batch, num_workers=workers)
    batches, count = iter(loader), 0
    for _ in range(2 * loader.prefetch_factor * workers + 2):
        next(batches)
    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        next(batches)
        count += batch or 1
    return count / (time.perf_counter() - began)


def grid(options: Any) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lowest = float("inf")
    for workers in (1, 2, 4):
        print(f"workers {workers}    batch " + "".join(f"{batch!s:>9}" for batch in BATCHES))
        for nbytes in SIZES:
            cells = []
            for batch in BATCHES:
                if nbytes * (batch or 1) * (3 * workers + 2) > memory // 2:
                    cells.append("memory")
                    continue
                ratios = []
                for _ in range(options.repeats):
                    ours, theirs = (
                        harness.isolated(rate, kind, nbytes, batch, workers, options.seconds, timeout=300)
                        for kind in (OURS, TORCH)
                    )
                    ratios.append(ours / theirs)
                cells.append(f"x {statistics.median(ratios):.2f}")
                lowest = min(lowest, statistics.median(ratios))
            print(f"{nbytes:>12,} B      " + "".join(f"{cell:>9}" for cell in cells), flush=True)
    print(f"lowest: x {lowest:.2f}")


SIZES = (64, 4096, 65536, 1 << 20, 16 << 20)
BATCHES = (None, 1, 8, 32, 256)


def main() -> None:
    options = harness.options_of(__doc__, seconds=0.5, more=("--grid", "--others"))
    if options.others:
        others(options)
        return
    if options.grid:
        grid(options)
        return
    for what in ROWS:
        if what.startswith(options.rows):
            row(what, options)


if __name__ == "__main__":
    main()
