"""A stream: records of a file, read by several workers, each of which takes a part of the file.

    python examples/stream.py [--records N] [--workers N]

An IterableDataset runs as a whole in every worker. It has to ask get_worker_info() which part is its own, or each
record would come as often as there are workers. The records are read straight into the batch's memory.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

import shmtensor.data

LENGTH = 4096  # numbers in a record


class Records(IterableDataset[torch.Tensor]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[torch.Tensor]:
        total = self.path.stat().st_size // (4 * LENGTH)
        worker = get_worker_info()  # None where there are no workers
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        begin, end = total * part // parts, total * (part + 1) // parts
        with self.path.open("rb", buffering=0) as file:  # a buffer of its own would only be one copy more
            file.seek(begin * 4 * LENGTH)
            for _ in range(begin, end):
                yield read(file)  # without a name here, which would keep the last record of a batch: it would be copied


def read(file: RawIOBase) -> torch.Tensor:
    record = shmtensor.data.empty(LENGTH, torch.float32)
    if file.readinto(record.numpy()) != record.nbytes:
        raise EOFError("the file has become shorter")
    return record


def write(path: Path, count: int) -> None:
    """Record i: i, and then noise."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for i in range(count):
            record = rng.random(LENGTH, np.float32)
            record[0] = i
            record.tofile(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", metavar="N", type=int, default=1000, help="in the file (default: 1000)")
    parser.add_argument("--workers", metavar="N", type=int, default=2, help="default: 2")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records"
        write(path, options.records)
        arguments: dict[str, Any] = {"batch_size": 32, "num_workers": options.workers}
        ours: Any = shmtensor.data.DataLoader(Records(path), **arguments)
        theirs = torch.utils.data.DataLoader(Records(path), **arguments)
        seen: list[int] = []
        firsts: list[int] = []
        for batch, other in zip(ours, theirs, strict=True):
            assert torch.equal(batch, other), "not the batch that torch's DataLoader yields"
            seen += batch[:, 0].int().tolist()
            firsts.append(int(batch[0, 0]))
        assert sorted(seen) == list(range(options.records)), "not every record once"
    print(f"{len(seen)} records, each once; first in their batches: {firsts[:6]}; as torch's")


if __name__ == "__main__":
    main()
