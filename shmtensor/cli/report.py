"""The table, what to know when reading it, and the machine it came from; all of it to paste into a README."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from .answers import OURS
from .jobs import Job
from .race import Result

Column = tuple[Job, dict[str, Result]]


def table(columns: list[Column]) -> str:
    """One Markdown table: a row per answer; for each job its rate, what that is in bytes, and our lead."""
    head = ["answer"]
    for job, _ in columns:
        head += [f"{job.title}: {job.unit}", "GB/s", f"{OURS} is"]
    names = columns[0][1]
    cells = {name: [_cells(name, job, results) for job, results in columns] for name in names}
    return _markdown([head, *([name, *chain(*cells[name])] for name in names)])


def _cells(name: str, job: Job, results: dict[str, Result]) -> list[str]:
    result, ours = results[name], results[OURS].median
    if not result.rates:
        return ["did not run", "", ""]
    low, high = min(result.rates), max(result.rates)
    rate = _number(result.median) + (f" ({_number(low)} to {_number(high)})" if len(result.rates) > 1 else "")
    lead = "" if name == OURS or math.isnan(ours) else f"{ours / result.median:.2f} x"
    return [rate, f"{result.median * job.nbytes / 1e9:.3f}", lead]


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *padded[1:]]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def failures(columns: list[Column]) -> Iterator[str]:
    for job, results in columns:
        for name, result in results.items():
            for complaint in result.complaints:
                yield f"WRONG: {name}, {job.title}: {complaint}"
            if result.failures > len(result.complaints):
                yield f"WRONG: {name}, {job.title}: {result.failures} failures in all"
            if result.error:
                yield f"FAILED: {name}, {job.title}: {result.error}"


def machine() -> dict[str, str]:
    versions = {name: _version(name) for name in ("shmtensor", "numpy", "torch", "pillow")}
    return {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
    }


def machine_line() -> str:
    of = machine()
    versions = [f"{name} {of[name]}" for name in of if name not in ("cpu", "cores", "kernel")]
    return f"Machine: {of['cpu']}, {of['cores']} cores, {of['kernel']}, {', '.join(versions)}."


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def as_json(columns: list[Column], options: dict[str, Any]) -> dict[str, Any]:
    """The same for a program: every round's rate, not only their median."""
    return {
        "machine": machine(),
        "options": options,
        "jobs": {
            job.title: {
                "unit": job.unit,
                "shape": list(job.shape),
                "dtype": job.dtype,
                "nbytes": job.nbytes,
                "answers": {name: _as_json(job, result) for name, result in results.items()},
            }
            for job, results in columns
        },
    }


def _as_json(job: Job, result: Result) -> dict[str, Any]:
    ran = bool(result.rates)
    return {
        "rates": result.rates,
        "median": result.median if ran else None,
        "gb_per_s": result.median * job.nbytes / 1e9 if ran else None,
        "items_checked": result.items,
        "failures": result.failures,
        "complaints": result.complaints,
        "error": result.error or None,
    }
