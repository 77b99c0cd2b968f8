"""How many slots a loader with workers needs, of which there can only be so many."""

from __future__ import annotations

__all__ = ["check_prefetch", "slots_for_batches", "slots_for_rows", "slots_for_tasks"]

_MOST = 65535  #: slots of one segment: SHMT_SLOTS_MAX of csrc/layout.h


def slots_for_batches(prefetch: int, workers: int, keep: int) -> int:
    """What is outstanding; what the user keeps; and two for each worker, whose dataset may keep what it sends, or who
    may still write a row of an epoch that is over."""
    return prefetch * workers + keep + 2 * workers


def slots_for_tasks(prefetch: int, workers: int) -> int:
    """``workers``: how many have one queue."""
    return (2 * prefetch + 4) * workers


def slots_for_rows(prefetch: int, workers: int, batch_size: int | None) -> int:
    """Of tasks, and of answers, if batches are made by rows; what is more than that waits in the main process.
    ``batch_size``: None if it is not known."""
    return min(prefetch * workers * (batch_size or 32), 1024) + workers


def check_prefetch(prefetch: int, workers: int, keep: int, *, shares: bool) -> None:
    """Raises ValueError if that takes more slots than there can be. ``shares``: whether all workers have one queue of
    tasks."""

    def fits(prefetch: int) -> bool:
        tasks = slots_for_tasks(prefetch, workers if shares else 1)
        return max(slots_for_batches(prefetch, workers, keep), tasks) <= _MOST

    if workers == 0 or fits(prefetch):
        return
    most, beyond = 0, prefetch
    while beyond - most > 1:
        middle = (most + beyond) // 2
        most, beyond = (middle, beyond) if fits(middle) else (most, middle)
    can_be = f"prefetch_factor can be at most {most:,}" if most else "lower num_workers"
    raise ValueError(
        f"prefetch_factor={prefetch} with num_workers={workers} and keep={keep} takes more slots than there can be "
        f"({_MOST:,}): {can_be}"
    )
