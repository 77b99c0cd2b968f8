"""One line of progress while a soak runs, its figures when it has ended."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable


class Progress:
    """Writes to stderr: over one line on a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        self.tty = sys.stderr.isatty()
        self.next = 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (0.2 if self.tty else 10.0)
        print(f"\r\x1b[K{text}" if self.tty else text, end="" if self.tty else "\n", file=sys.stderr, flush=True)

    def done(self) -> None:
        if self.tty:
            print(file=sys.stderr)


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p99 and the highest, to one place."""
    ordered = sorted(values)
    if not ordered:
        return {}
    at = {name: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for name, q in (("p50", 0.5), ("p99", 0.99))}
    return {name: round(value, 1) for name, value in {**at, "max": ordered[-1]}.items()}


def load() -> list[float]:
    return [round(x, 1) for x in os.getloadavg()]


def table(figures: dict[str, object]) -> str:
    width = max(map(len, figures))
    return "\n".join(f"  {name:<{width}}  {shown(value)}" for name, value in figures.items())


def shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def as_json(figures: dict[str, object]) -> str:
    return json.dumps(figures, separators=(", ", ": "))
