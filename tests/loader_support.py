"""Datasets and collate functions of the loader tests.

Here and not in the test files, so that a spawned worker need not import pytest.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import os
import platform
import random
import resource
import signal
import time
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

import shmtensor.data

Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    name: str


def own(x: Any) -> Any:
    """A copy: the batch itself may be used again."""
    if isinstance(x, torch.Tensor):
        return x.detach().clone().requires_grad_(x.requires_grad)  # the clone alone would keep a leaf
    if isinstance(x, np.ndarray):
        return x.copy()
    if isinstance(x, dict):
        out = copy.copy(x)  # of its kind
        out.update({k: own(v) for k, v in x.items()})
        return out
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(own, x))
    if type(x) in (list, tuple):
        return type(x)(map(own, x))
    if dataclasses.is_dataclass(x):
        return type(x)(**own(vars(x)))
    return x


# ---- map-style datasets ----------------------------------------------------------------------------------------------


class Numbers(Dataset[Any]):
    """Sample i is made by ``make(i)``."""

    def __init__(self, n: int, make: Any) -> None:
        self.n, self.make = n, make

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


def plain(i: int) -> torch.Tensor:
    return torch.full((50, 20), float(i))


def small(i: int) -> torch.Tensor:
    return torch.tensor([i, -i])


def scalar(i: int) -> int:
    return i


def all_kinds(i: int) -> dict[str, Any]:
    return {
        "tensor": torch.full((3, 100, 4), i, dtype=torch.uint8),
        "half": torch.full((600,), i, dtype=torch.bfloat16),
        "array": np.full((40, 40), i, dtype=np.float64),
        "int": i,
        "float": i / 7,
        "np": np.float32(i),
        "text": f"sample {i}",
        "bytes": bytes([i % 256]),
        "nested": [(torch.arange(i, i + 500), {"deep": i}), Pair(i, torch.ones(300) * i)],
    }


def random_kinds(i: int) -> Any:
    """Tells which random state its worker has."""
    return torch.rand(300), np.random.rand(300), random.random(), torch.randint(1 << 40, (1,))


def transposed(i: int) -> torch.Tensor:
    return torch.full((40, 60), float(i)).t()


def small_clip(i: int) -> torch.Tensor:
    """Channels last; a batch of it is too small for a slot, so that it is stacked in ordinary memory."""
    return torch.arange(i, i + 24.0).reshape(2, 2, 2, 3).permute(0, 3, 1, 2)


def of_any_length(i: int) -> torch.Tensor:
    return torch.full((100 + 7 * i,), float(i))


def big(i: int) -> Any:
    """1 MiB, and how many page faults this process has had so far."""
    return torch.from_numpy(_BIG), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


_BIG = np.ones(1 << 20, np.uint8)


def who_made_it(i: int) -> Any:
    time.sleep(0.05)
    return torch.full((300,), i), os.getpid()


def ordered_by_turns(i: int) -> Any:
    """Alike, but for the order of the keys."""
    x = {"a": torch.full((100,), i), "b": torch.full((100,), -i)}
    return x if i % 3 else dict(reversed(x.items()))


def with_more_kinds(i: int) -> Any:
    """What default_collate goes through, and what does not lie in the slot."""
    return OrderedDict(
        a=all_kinds(i),
        view=torch.arange(24.0).reshape(4, 6).t()[::2] + i,
        read_only=np.frombuffer(bytes([i % 256] * 6), np.uint8),
        big_endian=np.full(4, i, ">i4").astype("<i4"),
        empty=torch.empty(0, 3),
        scalar=torch.tensor(i),
        channels_last=small_clip(i),
        mapping=defaultdict(int, x=small_clip(i), y=i),
        record=Entry(torch.full((9,), i), {"z": [np.full(3, i)]}),
        derived=Derived(torch.full((2,), i), i),
    )


class Entry(NamedTuple):
    x: torch.Tensor
    y: Any


class Derived(Entry):
    """A class made of a namedtuple, which may look at what it is given."""

    def __new__(cls, x: torch.Tensor, y: Any) -> Derived:
        assert isinstance(x, torch.Tensor)
        return super().__new__(cls, x, y)


def with_grad(i: int) -> dict[str, Any]:
    return {"x": torch.full((900,), float(i)).requires_grad_()}


def in_place(i: int) -> torch.Tensor:
    return shmtensor.data.empty((60, 30), torch.float32).fill_(i)


def in_place_twice(i: int) -> dict[str, Any]:
    image = shmtensor.data.empty((30, 31, 3), torch.uint8).fill_(i % 256)
    mask = shmtensor.data.empty((30, 31), torch.int64).fill_(i)
    return {"image": image, "mask": mask, "i": i}


def fails_at_7(i: int) -> Any:
    if i == 7:
        raise KeyError("no sample 7")
    return plain(i)


def killed_at_7(i: int) -> Any:
    if i == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(i)


def unsendable_at_7(i: int) -> Any:
    return {"x": plain(i), "y": lambda: i} if i == 7 else {"x": plain(i), "y": i}


def slow_at_7(i: int) -> Any:
    if i == 7:
        time.sleep(30)
    return plain(i)


def slowly(i: int) -> Any:
    time.sleep(0.02)
    return plain(i)


def collated_here(i: int) -> Any:
    """A dataset that calls default_collate itself, and keeps what it gets."""
    out = default_collate([plain(i), plain(i)])
    kept.append(out)
    return out, lies_in_a_slot(out), all((x == x[0, 0, 0]).all().item() for x in kept)


kept: list[Any] = []


class Keeps(Dataset[Any]):
    """Keeps every sample that it made in a slot, and says whether they are all still what they were."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.made: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        x = shmtensor.data.empty((500,), torch.int64)
        x.fill_(i)
        self.made[i] = x
        return x, all((y == k).all().item() for k, y in self.made.items())


class AllAtOnce(Numbers):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self.make(i) for i in reversed(indices)]


# ---- iterable datasets -----------------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    """Each worker has its share, and the last ones have less."""

    def __init__(self, n: int, make: Any = plain) -> None:
        self.n, self.make = n, make

    def __iter__(self) -> Any:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return map(self.make, range(first, self.n - first * 5, step))


class SizedStream(Stream):
    def __len__(self) -> int:
        return self.n // 2


class Named(Stream):
    """Made in a slot by a generator, which has a name for each sample until it is asked for the next one."""

    def __iter__(self) -> Any:
        last = None
        for i in range(self.n):
            x = shmtensor.data.empty((500,), torch.int64).fill_(i)
            yield x, lies_in_a_slot(x), last is None or bool((last == i - 1).all())
            last = x


# ---- collate functions -----------------------------------------------------------------------------------------------


def as_they_are(samples: list[Any]) -> list[Any]:
    return samples


def padded(samples: list[Any]) -> Any:
    lengths = torch.tensor([len(x) for x in samples])
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True), lengths


def packed(samples: list[Any]) -> Any:
    return torch.nn.utils.rnn.pack_sequence(samples, enforce_sorted=False)


def sparse(samples: list[Any]) -> Any:
    return torch.stack(samples).to_sparse(), torch.stack(samples)


def records(samples: list[Any]) -> Any:
    return Record(torch.stack(samples), f"{len(samples)} of them")


def default_inside(samples: list[Any]) -> Any:
    return {"batch": default_collate(samples), "n": len(samples)}


def twice_the_same(samples: list[Any]) -> Any:
    x = torch.stack(samples)
    return {"a": x, "b": x, "part": x[1:]}


def cannot_be_sent(samples: list[Any]) -> Any:
    return lambda: samples


def where_it_lies(samples: list[Any]) -> Any:
    out = default_collate(samples)
    first = out["image"] if isinstance(out, dict) else out
    sample = samples[0]["image"] if isinstance(samples[0], dict) else samples[0]
    return out, lies_in_a_slot(first), first.data_ptr() == sample.data_ptr()


def lies_in_a_slot(x: torch.Tensor) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, _, end = line.split()[0].partition("-")
        if int(begin, 16) <= x.data_ptr() < int(end, 16):
            return "memfd:shmtensor" in line
    return False


def init_seeds(worker_id: int) -> None:
    random.seed(worker_id)
    np.random.seed(worker_id + 3)


def ignore_sigterm(worker_id: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def made_by_empty(samples: list[Any]) -> Any:
    out = shmtensor.data.empty((len(samples), *samples[0].shape))
    for row, sample in zip(out, samples, strict=True):
        row.copy_(sample)
    return out, lies_in_a_slot(out)


def own_map_entry(samples: list[Any]) -> Any:
    from torch.utils.data._utils.collate import collate, collate_tensor_fn

    return collate(samples, collate_fn_map={torch.Tensor: collate_tensor_fn})


def dies_once(i: int) -> Any:
    """Kills its worker at some samples, the first time that they are asked for. DEATHS is a folder to remember by."""
    mark = Path(os.environ["DEATHS"]) / str(i)
    out = random_kinds(i)
    if i in (0, 9, 10, 33) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return out


def counts_calls(i: int) -> torch.Tensor:
    """How often sample i was made, in any process. DEATHS as above."""
    with (Path(os.environ["DEATHS"]) / str(i)).open("a") as f:
        f.write("x")
        f.flush()
        return torch.tensor([i, f.tell()])


def dies_before_its_child(i: int) -> torch.Tensor:
    """Kills its worker at sample 5, the first time; a child, which nobody has told that it is one, has all of the
    worker's descriptors for a while. DEATHS as above."""
    mark = Path(os.environ["DEATHS"]) / str(i)
    if i == 5 and not mark.exists():
        mark.touch()
        clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
        if ctypes.PyDLL(None).syscall(clone, int(signal.SIGCHLD), 0, 0, 0, 0) == 0:
            time.sleep(1.5)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(i)


def waits_for_3(i: int) -> Any:
    """Sample 0 is not made before sample 3 is. DEATHS as above."""
    marks = Path(os.environ["DEATHS"])
    end = time.monotonic() + 60
    while i == 0 and not (marks / "3").exists() and time.monotonic() < end:
        time.sleep(0.01)
    (marks / str(i)).touch()
    return torch.tensor([i, os.getpid(), time.monotonic() < end])
