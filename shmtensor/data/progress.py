"""A progress bar over the batches of an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmtensor.data.loader import DataLoader

__all__ = ["Progress"]


class Progress:
    """An iterator of a loader, with tqdm's bar: batches, their rate, and how much of the time went in waiting for them.

    It is no generator, which would keep a batch alive while the next one is made.
    """

    def __init__(self, loader: DataLoader[Any], batches: Any) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise ImportError("progress=True draws its bar with tqdm, which is missing: pip install tqdm") from None
        self._batches = batches
        self._counts = loader._counts
        self._before = loader._counts.waited_s, loader._counts.elapsed_s
        try:
            total: int | None = len(loader)
        except TypeError:  # an iterable dataset without a length
            total = None
        self._bar = tqdm(total=total, unit="batch", dynamic_ncols=True)

    def __iter__(self) -> Progress:
        return self

    def __len__(self) -> int:
        return len(self._batches)

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except BaseException:
            self._bar.close()
            raise
        if self._bar.update():  # it was drawn
            waited, elapsed = self._counts.waited_s - self._before[0], self._counts.elapsed_s - self._before[1]
            if elapsed:
                self._bar.set_postfix_str(f"{waited / elapsed:.0%} waiting", refresh=False)
        return batch
