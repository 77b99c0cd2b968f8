"""DataLoader beside torch's, in one interleaved run.

    python benchmarks/loader.py [--repeats N] [--seconds S] [--rows NAME,...] [--quick]

The dataset costs next to nothing: a sample is a new tensor over memory that is there, so that what is measured is how
batches are made and handed over. Two workers. The candidates of a row follow each other directly, each in a process of
its own; printed are samples a second, medians over the repeats, from the third batch on. `x` is how many times faster
shmtensor was, within each repeat; `reach` what it is meant to be beside torch's with descriptors. `limit` is one copy
of each sample into warm memory in one process, times two.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("shmtensor") is None:
    sys.path.append(str(HERE.parent))  # built in place and not installed

import harness  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import shmtensor as st  # noqa: E402
import shmtensor.data  # noqa: E402

OURS, TORCH, FILES, NONE, LIMIT = "shmtensor", "torch", "torch fs", "no workers", "limit"


class Samples(Dataset[Any]):
    def __init__(self, n: int, shape: tuple[int, ...], dtype: str, in_place: bool) -> None:
        self.n, self.in_place = n, in_place
        self.x = np.ones(shape, dtype)
        self.shape, self.dtype = shape, torch.from_numpy(self.x).dtype

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> torch.Tensor:
        if self.in_place:  # as if it had been decoded there
            return shmtensor.data.empty(self.shape, self.dtype)
        return torch.from_numpy(self.x)


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
    if kind == FILES:
        torch.multiprocessing.set_sharing_strategy("file_system")
    loader = (st.DataLoader if kind == OURS else DataLoader)(dataset, batch, num_workers=0 if kind == NONE else 2)
    began, got = 0.0, 0
    for i, _ in enumerate(loader):
        if i == 2:
            began, got = time.perf_counter(), 0
        got += per
    return (got - per) / (time.perf_counter() - began)


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
    kinds = [OURS, TORCH, FILES, NONE, LIMIT]
    cells: dict[str, Callable[[int], float]] = {
        k: lambda n, k=k: samples(k, shape, dtype, batch, in_place, n) for k in kinds
    }
    counts = {k: int(harness.isolated(cells[k], 1, timeout=120) * options.seconds) for k in kinds}
    figures, ratio = harness.interleaved(cells, counts, options.repeats, OURS)
    texts = [f"{OURS} {figures[OURS]:,.0f}/s"]
    texts += [f"{k} {figures[k]:,.0f} (x {ratio[k]:.2f})" for k in kinds[1:]]
    verdict = "ok" if ratio[TORCH] >= bar else "SHORT"
    print(f"{what:31} {'   '.join(texts)}   reach {bar}: {verdict}", flush=True)


def main() -> None:
    options = harness.options_of(__doc__, seconds=0.5)
    for what in ROWS:
        if what.startswith(options.rows):
            row(what, options)


if __name__ == "__main__":
    main()
