"""The standard library's interfaces side by side: Queue, Pool and codec, with any objects, in one interleaved run.

    python benchmarks/objects.py [--repeats N] [--seconds S] [--rows NAME,...] [--quick]

One producer process puts the same object again and again, and this one gets it; a Pool's workers make
arrays. The candidates of a row follow each other directly, each in a process of its own; printed are medians over the
repeats. `x` is how many times faster shmtensor was, within each repeat; `reach` what it is meant to be.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("shmtensor") is None:
    sys.path.append(str(HERE.parent))  # built in place and not installed

import harness  # noqa: E402
import numpy as np  # noqa: E402

import shmtensor as st  # noqa: E402

fork = multiprocessing.get_context("fork")
has_torch = importlib.util.find_spec("torch") is not None
OURS, STANDARD, TORCH, FIFO = "shmtensor", "multiprocessing", "torch", "faster-fifo"


# ---- queues ----------------------------------------------------------------------------------------------------------


def torch_queue() -> Any:
    import torch.multiprocessing as torch_mp

    return torch_mp.get_context("fork").Queue()


def fifo() -> Any:
    import faster_fifo

    return faster_fifo.Queue(max_size_bytes=64 << 20)


QUEUES: dict[str, Callable[[], Any]] = {OURS: lambda: st.Queue(maxsize=64), STANDARD: lambda: fork.Queue(64)}
if has_torch:
    QUEUES[TORCH] = torch_queue
if importlib.util.find_spec("faster_fifo"):
    QUEUES[FIFO] = fifo


def put_all(queue: Any, x: Any, n: int, ready: Any, done: Any) -> None:
    ready.wait()
    for _ in range(n):
        queue.put(x)
    done.wait()  # torch's descriptors live as long as their sender


def stream(kind: str, make: Callable[[], Any], n: int, producers: int = 1) -> float:
    """Objects a second from producers to us."""
    queue, x, ready, done = QUEUES[kind](), make(), fork.Event(), fork.Event()
    each = n // producers
    processes = [fork.Process(target=put_all, args=(queue, x, each + 1, ready, done)) for _ in range(producers)]
    for process in processes:
        process.start()
    ready.set()
    for _ in range(producers):
        queue.get()
    began = time.perf_counter()
    for _ in range(each * producers):
        queue.get()
    took = time.perf_counter() - began
    done.set()
    for process in processes:
        process.join()
    return each * producers / took


def four_small() -> Any:
    return {name: np.arange(16.0) for name in "abcd"}


OBJECTS: dict[str, tuple[Callable[[], Any], int, int, str]] = {
    #  what: how it is made, objects at first, producers, the bar
    "None": (lambda: None, 20_000, 1, "1"),
    "int": (lambda: 12345, 20_000, 1, "1"),
    "64 bytes": (lambda: b"x" * 64, 20_000, 1, "8, faster-fifo x 3"),
    "64 bytes, 4 producers": (lambda: b"x" * 64, 20_000, 4, "8"),
    "small dict": (lambda: {"id": 7, "name": "seven", "ok": True}, 20_000, 1, "1"),
    "text of 1 KB": (lambda: "x" * 1024, 20_000, 1, "1"),
    "nested config": (
        lambda: {f"k{i}": {"lr": 0.1, "layers": [1, 2, 3], "name": "x"} for i in range(20)},
        5000,
        1,
        "1",
    ),
    "list of 1,000 ints": (lambda: list(range(1000)), 5000, 1, "1"),
    "dict of 4 small arrays": (four_small, 10_000, 1, "6"),
    "array of 64 B": (lambda: np.zeros(64, "u1"), 20_000, 1, "1"),
    "array of 602,112 B": (lambda: np.zeros((3, 224, 224), "f4"), 1000, 1, "20, torch x 25"),
    "array of 19 MB": (lambda: np.zeros(19_267_584, "u1"), 60, 1, "1"),
    "array of 77 MB": (lambda: np.zeros(77_070_336, "u1"), 20, 1, "1"),
}


# ---- pools -----------------------------------------------------------------------------------------------------------


def made(task: tuple[int, tuple[int, ...], bool]) -> Any:
    """What a dataset does: a new array, from a number."""
    number, shape, tensor = task
    if tensor:
        import torch

        return torch.full(shape, float(number))
    return np.full(shape, number, "float32")


def pool_of(kind: str) -> Any:
    if kind == OURS:
        return st.Pool(2)
    if kind == TORCH:
        import torch.multiprocessing as torch_mp

        return torch_mp.Pool(2)
    return fork.Pool(2)


def mapped(kind: str, count: int, shape: tuple[int, ...], tensors: bool, n: int) -> float:
    """Arrays a second, made by two workers."""
    if tensors:
        import torch

        torch.set_num_threads(1)
    tasks = [(i, shape, tensors) for i in range(count)]
    with pool_of(kind) as pool:
        pool.map(made, tasks, 1)
        began = time.perf_counter()
        for _ in range(n):
            pool.map(made, tasks, 1)
        return n * count / (time.perf_counter() - began)


POOLS: dict[str, tuple[int, tuple[int, ...], bool, str]] = {
    #  what: items, shape, tensors, the bar
    "Pool.map, arrays of 4 MB": (10, (1000, 1000), False, "8"),
    "Pool.map, arrays of 40 MB": (10, (10_000, 1000), False, "8"),
    **({"Pool.map, tensors of 4 MB": (10, (1000, 1000), True, "torch x 4")} if has_torch else {}),
    **({"Pool.map, tensors of 40 MB": (10, (10_000, 1000), True, "torch x 4")} if has_torch else {}),
}


# ---- codec -----------------------------------------------------------------------------------------------------------


def codec() -> None:
    """Microseconds to encode and to decode, without transport."""
    from shmtensor._codec import Encoder, decode_from_array, encode_to_array

    encoder = Encoder()
    for what, x in (("4 small arrays", four_small()), ("64 bytes", b"x" * 64), ("4 arrays of 4 KB", four_large())):
        message = encode_to_array(x, encoder)
        times = []
        for call in (lambda x=x: encode_to_array(x, encoder), lambda message=message: decode_from_array(message)):
            times.append(min(timeit.repeat(call, number=2000, repeat=9)) / 2000 * 1e6)
        print(f"codec, {what:24} encode {times[0]:6.2f} us   decode {times[1]:6.2f} us   (3 and 5 are the bars)")


def four_large() -> Any:
    return {name: np.arange(512.0) for name in "abcd"}


# ---- the table -------------------------------------------------------------------------------------------------------


def row(what: str, unit: str, bar: str, cells: dict[str, Callable[[int], float]], n: int, options: Any) -> None:
    counts = {}
    for kind, measure in cells.items():
        rate = harness.isolated(measure, n, timeout=120)
        counts[kind] = max(4, int(rate * options.seconds) // (10 if "Pool" in what else 1))
    figures, ratio = harness.interleaved(cells, counts, options.repeats, OURS)
    del ratio[OURS]
    bars = dict(part.split(" x ") if " x " in part else (STANDARD, part) for part in bar.split(", "))
    short = [kind for kind, least in bars.items() if kind in ratio and ratio[kind] < float(least)]
    parts = [
        f"{kind} {figures[kind]:,.4g} {unit}" + (f" (x {ratio[kind]:.1f})" if kind in ratio else "") for kind in cells
    ]
    print(f"{what:30} {'   '.join(parts)}   reach {bar}: {'ok' if not short else f'SHORT of {short}'}", flush=True)


def main() -> None:
    options = harness.options_of(__doc__, seconds=0.3)
    codec()
    for what, (make, n, producers, bar) in OBJECTS.items():
        if what.startswith(options.rows):
            cells = {k: lambda n, k=k, m=make, p=producers: stream(k, m, n, p) for k in QUEUES}
            row(what, "/s", bar, cells, n, options)
    for what, (count, shape, tensors, bar) in POOLS.items():
        if what.startswith(options.rows):
            kinds = [OURS, STANDARD, *[TORCH] * tensors]
            cells = {k: lambda n, k=k, c=count, s=shape, t=tensors: mapped(k, c, s, t, n) for k in kinds}
            row(what, "/s", bar, cells, 4, options)


if __name__ == "__main__":
    main()
