"""A progress bar on a terminal: tqdm's, or a line per step where it is not installed; else nothing."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import Any

STEPS = 16  # items between two updates: an update must not cost the fast answers anything


class Progress:
    """Silent: for output that goes to a file or a pipe."""

    def begin(self, title: str, total: int) -> None:
        """A new count of `total` items (0: unknown)."""

    def name(self, title: str) -> None:
        """What is being done now."""

    def step(self) -> None:
        """One item more."""

    def end(self) -> None:
        """Take the bar away."""


class Lines(Progress):
    def name(self, title: str) -> None:
        print(title, file=sys.stderr)


class Bar(Progress):
    def __init__(self) -> None:
        self._tqdm: Any = importlib.import_module("tqdm").tqdm
        self._tqdm.monitor_interval = 0  # its thread would be alive at every fork
        self._bar: Any = None
        self._pending = 0

    def begin(self, title: str, total: int) -> None:
        self.end()
        self._bar = self._tqdm(desc=title, total=total or None, unit=" items", leave=False)

    def name(self, title: str) -> None:
        self._bar.set_description(title)

    def step(self) -> None:
        self._pending += 1
        if self._pending == STEPS:
            self._bar.update(self._pending)
            self._pending = 0

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar, self._pending = None, 0


def progress() -> Progress:
    if not sys.stderr.isatty():
        return Progress()
    return Bar() if find_spec("tqdm") else Lines()
