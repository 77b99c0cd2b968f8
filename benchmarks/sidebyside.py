"""The speed table: every row measured for every candidate in one interleaved run.

    python benchmarks/sidebyside.py [--repeats N] [--quick] [--rows NAME,...] [--seconds S] [--json FILE]

One repeat measures each cell once, in a process of its own, for about S seconds; the candidates of a row follow each
other directly, in turning order, and what is printed are medians over the repeats. A ratio is the median of the ratios
within each repeat. README.md says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("shmtensor") is None:
    sys.path.append(str(HERE.parent))  # built in place and not installed

import harness  # noqa: E402
import peers as p  # noqa: E402

US, RATE, SLOW, SHARE = "us", "k/s", "1/s", "% CPU"
OURS, LIMIT, RING, PIPE, QUEUE = "shmtensor", "limit C", "ring", "Pipe", "Queue"
COLUMNS = (OURS, LIMIT, RING, PIPE, QUEUE)


@dataclass
class Cell:
    """How to measure one candidate: ``measure(n)`` returns seconds or items/s; ``n`` is a first guess for 50 ms."""

    measure: Callable[[int], float]
    n: int
    per_item: float = 1.0  # of what is returned, how many make up one of n
    calibrated: bool = False

    def run(self, seconds: float, lower_is_better: bool) -> float:
        def timed(n: int) -> tuple[float, float]:
            result = harness.isolated(self.measure, n, timeout=30 + 20 * seconds)
            return result, (result * n if lower_is_better else n / result) * self.per_item

        if not self.calibrated:
            took = 0.0
            for _ in range(4):
                _, took = timed(self.n)
                if took > 0.02:
                    break
                self.n = int(self.n * min(20, 0.05 / max(took, 1e-4)))
            self.n = max(3, int(self.n * seconds / took))
            self.calibrated = True
        return timed(self.n)[0]


@dataclass
class Row:
    name: str
    label: str
    unit: str
    cells: dict[str, Cell]
    target: str
    met: Callable[[Table, str], bool | None]
    samples: dict[str, list[float | None]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class Table(dict[str, Row]):
    slowdown = 1.0  # absolute targets are judged for a machine that is so many times slower than theirs

    def median(self, row: str, column: str = OURS) -> float | None:
        values = [v for v in self[row].samples.get(column, []) if v is not None] if row in self else []
        return statistics.median(values) if values else None

    def ratio(self, row: str, column: str, of: str | None = None, of_column: str = OURS) -> float | None:
        """The median over repeats of (row or ``of``, ours) / (row, column)."""
        above = self[of or row].samples.get(of_column, []) if (of or row) in self else []
        below = self[row].samples.get(column, []) if row in self else []
        ratios = [a / b for a, b in zip(above, below, strict=False) if a is not None and b is not None]
        return statistics.median(ratios) if ratios else None


# ---- targets ----


def at_most(limit: float) -> Callable[[Table, str], bool | None]:
    def met(table: Table, row: str) -> bool | None:
        value = table.median(row)
        return None if value is None else value <= limit * table.slowdown

    return met


def at_least(limit: float) -> Callable[[Table, str], bool | None]:
    def met(table: Table, row: str) -> bool | None:
        value = table.median(row)
        return None if value is None else value >= limit / table.slowdown

    return met


def of(column: str, low: float = 0.0, high: float = math.inf) -> Callable[[Table, str], bool | None]:
    def met(table: Table, row: str) -> bool | None:
        value = table.ratio(row, column)
        return None if value is None else low <= value <= high

    return met


def both(*checks: Callable[[Table, str], bool | None]) -> Callable[[Table, str], bool | None]:
    def met(table: Table, row: str) -> bool | None:
        results = [check(table, row) for check in checks]
        return None if None in results else all(results)

    return met


def half_of_4x1(table: Table, row: str) -> bool | None:
    value = table.ratio("4x1", OURS, of=row)
    return None if value is None else value >= 0.5


# ---- yardsticks ----

# Absolute targets were set on a machine where these took so long (seconds): what other people's C code costs when it is
# called from Python. What they take here says how much slower this machine is, before anything of ours runs.
YARDSTICKS = {
    "tensor.copy_ of 64 B": (
        735e-9,
        "import torch; x = torch.zeros(16); y = torch.zeros(16)",
        "x.copy_(y)",
    ),
    "np.frombuffer().reshape()": (
        484e-9,
        "import numpy as np; b = bytearray(64)",
        "np.frombuffer(b, np.float32).reshape(4, 4)",
    ),
}


def yardstick(setup: str, statement: str) -> float:
    timer = timeit.Timer(statement, setup)
    return min(timer.repeat(5, 50_000)) / 50_000


def measure_yardsticks(samples: dict[str, list[float]]) -> None:
    for name, (reference, setup, statement) in YARDSTICKS.items():
        with contextlib.suppress(ImportError):  # no torch
            samples.setdefault(name, []).append(yardstick(setup, statement) / reference)


def slowdown(samples: dict[str, list[float]]) -> float:
    ratios = [statistics.median(values) for values in samples.values() if values]
    return max(1.0, min(ratios)) if ratios else 1.0


# ---- rows ----

LARGE = 4 << 20


def one_thread(kind: type[p.Peer], n: int = 80_000) -> Cell:
    return Cell(partial(harness.cycle, kind, 64), n)


def stream(kind: type[p.Peer], nbytes: int, slots: int, n: int) -> Cell:
    return Cell(partial(harness.stream, kind, nbytes, slots, read=nbytes > 64), n)


def limit_stream(nbytes: int, n: int, copy: str = "memcpy") -> Cell:
    # A double buffer; of small items a ring of as many slots as the others have.
    return Cell(partial(harness.limit_stream, nbytes, 64 if nbytes == 64 else 2, copy=copy), n)


def stream_row(
    name: str, kind: type[p.Peer], nbytes: int, slots: int, n: int, factor: float, copy: str = "memcpy"
) -> Row:
    label = f"{nbytes:,} B stream, {'assignment' if kind is p.Assign else 'put'}"
    few = 2 if nbytes >= LARGE else slots  # the best that the hand-written ring has: it takes its slots in turn
    cells = {
        OURS: stream(kind, nbytes, slots, n),
        LIMIT: limit_stream(nbytes, n, copy),
        RING: stream(p.Ring, nbytes, few, n),
        PIPE: stream(p.Pipe, nbytes, slots, max(n // 10, 3)),
        QUEUE: stream(p.Queue, nbytes, slots, max(n // 10, 3)),
    }
    if kind is p.Assign:
        cells = {OURS: cells[OURS], LIMIT: cells[LIMIT]}
    unit = SLOW if nbytes >= LARGE else RATE
    return Row(name, label, unit, cells, f"{factor} of C{' (nt)' if copy == 'nt' else ''}", of(LIMIT, low=factor))


def contention_row(producers: int, consumers: int, least: float) -> Row:
    name = f"{producers}x{consumers}"
    cells = {
        OURS: Cell(partial(harness.contention, p.TensorBuffer, producers, consumers), 100_000),
        RING: Cell(partial(harness.contention, p.LockedRing, producers, consumers), 5_000),
        QUEUE: Cell(partial(harness.contention, p.Queue, producers, consumers), 2_000),
    }
    target, met = f"{least / 1e3:,.0f}", at_least(least)
    if name == "8x1":
        target, met = f"{target}, 0.5 of 4x1", both(met, half_of_4x1)
    return Row(name, f"{name} of 64 B", RATE, cells, target, met)


def rows(waiting_seconds: float) -> list[Row]:
    def mine(name: str, label: str, kind: type[p.Peer], reach: float, peers: bool = False) -> Row:
        cells = {OURS: one_thread(kind)}
        if peers:
            cells |= {
                RING: one_thread(p.Ring, 30_000),
                PIPE: one_thread(p.Pipe, 10_000),
                QUEUE: one_thread(p.Queue, 1_000),
            }
        return Row(name, f"one thread, {label}", US, cells, f"{reach}", at_most(reach * 1e-6))

    def small(name: str, label: str, kind: type[p.Peer], target: str, met: Any, peers: bool = False) -> Row:
        cells = {OURS: stream(kind, 64, 64, 50_000)}
        if peers:
            cells |= {
                LIMIT: limit_stream(64, 300_000),
                RING: stream(p.Ring, 64, 64, 30_000),
                PIPE: stream(p.Pipe, 64, 64, 10_000),
                QUEUE: stream(p.Queue, 64, 64, 2_000),
            }
        else:
            cells |= {RING: stream(p.Ring, 64, 64, 30_000)}
        return Row(name, f"64 B stream, {label}", RATE, cells, target, met)

    def latency(kind: type[p.Peer], n: int) -> Cell:
        return Cell(partial(harness.latency, kind, polling=True), n, per_item=2)

    def wake(kind: type[p.Peer]) -> Cell:
        return Cell(partial(harness.wake, kind), 100, calibrated=True)

    def idle(kind: type[p.Peer]) -> Cell:
        return Cell(lambda n: harness.idle(kind, 4, waiting_seconds), 1, calibrated=True)

    return [
        mine("plain", "claim write publish acquire numpy release", p.Plain, 0.45, peers=True),
        mine("with", "the same in with blocks", p.With, 0.7),
        mine("assign", 'plain, slot["x"][...] =', p.PlainByName, 0.6),
        mine("assign-with", 'with, slot["x"][...] =', p.WithByName, 0.85),
        mine("put-get", "put + get", p.TensorBuffer, 0.35),
        mine("torch", "plain, torch view", p.PlainTorch, 0.85),
        mine("torch-with", "with, torch view", p.WithTorch, 1.25),
        Row(
            "spin",
            "64 B one way, nobody sleeps",
            US,
            {
                OURS: latency(p.TensorBuffer, 40_000),
                LIMIT: Cell(harness.limit_spin, 200_000, per_item=2),
                RING: latency(p.Ring, 10_000),
                PIPE: latency(p.Pipe, 2_000),
                QUEUE: latency(p.Queue, 300),
            },
            "0.7",
            at_most(0.7e-6),
        ),
        Row(
            "sleep",
            "64 B one way, the consumer sleeps",
            US,
            {
                OURS: wake(p.TensorBuffer),
                LIMIT: Cell(harness.limit_futex, 100, calibrated=True),
                RING: wake(p.Ring),
                PIPE: wake(p.Pipe),
                QUEUE: wake(p.Queue),
            },
            "1.2 x futex",
            of(LIMIT, high=1.2),
        ),
        small("single", "put / get", p.TensorBuffer, "3,500", at_least(3.5e6), peers=True),
        small("single-plain", "plain calls", p.Plain, "3,500", at_least(3.5e6)),
        small("single-with", "with blocks", p.With, "ahead of ring", of(RING, low=1.0)),
        small("batches", "batches of 16, view", p.Batches, "8,000", at_least(8e6)),
        small("batches-write", "batches of 16, write()", p.BatchesWritten, "8,000", at_least(8e6)),
        stream_row("64K", p.TensorBuffer, 65_536, 8, 5_000, 0.75),
        stream_row("602K", p.TensorBuffer, 602_112, 4, 600, 0.9),
        stream_row("19M", p.TensorBuffer, 19_267_584, 4, 10, 0.9),
        stream_row("77M", p.TensorBuffer, 77_070_336, 2, 4, 0.9, "nt"),
        stream_row("77M-assign", p.Assign, 77_070_336, 2, 4, 0.9),
        contention_row(4, 1, 1.7e6),
        contention_row(8, 1, 1.7e6),
        contention_row(4, 4, 1.3e6),
        Row(
            "idle",
            "4 idle waiters, the busiest",
            SHARE,
            {OURS: idle(p.TensorBuffer), RING: idle(p.Ring), PIPE: idle(p.Pipe), QUEUE: idle(p.Queue)},
            "under 1",
            at_most(0.01),
        ),
    ]


# ---- the run ----


def measure(
    table: Table, yardsticks: dict[str, list[float]], repeats: int, seconds: float, say: Callable[[str], None]
) -> None:
    for repeat in range(repeats):
        measure_yardsticks(yardsticks)
        for row in table.values():
            order = list(row.cells)
            turn = repeat % len(order)
            for column in order[turn:] + order[:turn]:
                say(f"repeat {repeat + 1} of {repeats}: {row.name}, {column}")
                value = None
                if column not in row.errors:
                    try:
                        value = row.cells[column].run(seconds, lower_is_better=row.unit in (US, SHARE))
                    except harness.Failed as e:
                        row.errors[column] = str(e)
                row.samples.setdefault(column, []).append(value)


def shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    value *= {US: 1e6, RATE: 1e-3, SLOW: 1, SHARE: 100}[unit]
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def best(row: Row) -> float | None:
    values = [v for v in row.samples.get(OURS, []) if v is not None]
    return (min if row.unit in (US, SHARE) else max)(values, default=None)


def spread(values: list[float | None]) -> str:
    have = sorted(v for v in values if v is not None)
    if len(have) < 3:
        return ""
    quarters = statistics.quantiles(have, n=4)
    return f"{50 * (quarters[2] - quarters[0]) / statistics.median(have):.0f} %"


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as f:
            model = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0))
    return f"{cores} x {model}, Linux {platform.release()}, Python {platform.python_version()}"


def verdict(table: Table, row: Row, slower: float) -> str:
    met = row.met(table, row.name)
    if met is None:
        return ""
    if not met and slower > 1:
        table.slowdown = slower
        scaled = row.met(table, row.name)
        table.slowdown = 1.0
        if scaled:
            return "ok scaled"
    return "ok" if met else "SHORT"


def report(table: Table, slower: float) -> str:
    header = ["", "unit", *COLUMNS, "best", "spread", "/ C", "/ ring", "reach", ""]
    lines = [header]
    for row in table.values():
        cells = [
            "failed" if column in row.errors else shown(table.median(row.name, column), row.unit) for column in COLUMNS
        ]
        ratios = [table.ratio(row.name, column) for column in (LIMIT, RING)]
        lines.append(
            [
                row.label,
                row.unit,
                *cells,
                shown(best(row), row.unit),
                spread(row.samples.get(OURS, [])),
                *("" if r is None else f"{r:.2f}" for r in ratios),
                row.target,
                verdict(table, row, slower),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = {0, 1, len(header) - 2, len(header) - 1}
    out = []
    for line in lines:
        parts = [t.ljust(w) if i in left else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))]
        out.append("  ".join(parts).rstrip())
    out.insert(1, "-" * max(map(len, out)))
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, help="how often each cell is measured (default 7)")
    parser.add_argument("--seconds", type=float, help="how long each takes, about (default 0.3)")
    parser.add_argument("--quick", action="store_true", help="2 repeats of 0.05 s: shows that it works, no more")
    parser.add_argument("--rows", default="", help="names of rows or their beginnings, separated by commas; see --list")
    parser.add_argument("--ours", action="store_true", help="only shmtensor and the limit, without the other peers")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and end")
    parser.add_argument("--json", metavar="FILE", help="write every sample to FILE as well")
    args = parser.parse_args()
    repeats = args.repeats or (2 if args.quick else 7)
    seconds = args.seconds or (0.05 if args.quick else 0.3)

    wanted = [name for name in args.rows.split(",") if name]
    everything = rows(1.0 if args.quick else 2.0)
    if args.list:
        print("\n".join(f"{row.name:14} {row.label}" for row in everything))
        return 0
    names = {row.name for row in everything}
    table = Table()
    for row in everything:
        if not wanted or any(row.name == w or (w not in names and row.name.startswith(w)) for w in wanted):
            table[row.name] = row
            if args.ours:
                row.cells = {c: cell for c, cell in row.cells.items() if c in (OURS, LIMIT)}
    if not table:
        parser.error(f"no row is named {args.rows!r}; see --list")

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    harness.limit.program()  # built before anything is timed
    harness.limit.reader()
    begin = time.monotonic()
    yardsticks: dict[str, list[float]] = {}
    try:
        measure(table, yardsticks, repeats, seconds, say)
    except KeyboardInterrupt:
        print("interrupted: medians of what there is", file=sys.stderr)
    say("")
    print(f"{machine()}; {repeats} repeats of {seconds:g} s, {time.monotonic() - begin:.0f} s in all\n")
    for name, ratios in yardsticks.items():
        print(f"{name} takes {statistics.median(ratios):.2f} times what it took where the targets were set")
    slower = slowdown(yardsticks)
    print(f'"ok scaled": within the target for a machine that is {slower:.2f} times slower\n')
    print(report(table, slower))
    for row in table.values():
        for column, error in row.errors.items():
            print(f"\n{row.name}, {column}: {error}")
    if args.json:
        out = {
            "machine": machine(),
            "shmtensor": p.tensorbuffer.st.__version__,
            "date": time.strftime("%Y-%m-%d"),
            "repeats": repeats,
            "seconds": seconds,
            "yardsticks": yardsticks,
            "rows": {
                row.name: {
                    "label": row.label,
                    "unit": {US: "s", SHARE: "CPU s/s"}.get(row.unit, "items/s"),
                    "reach": row.target,
                    "met": row.met(table, row.name),
                    "samples": row.samples,
                    "errors": row.errors,
                }
                for row in table.values()
            },
        }
        Path(args.json).write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
