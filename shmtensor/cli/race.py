"""Running the answers against each other: the same items, all of them checked, those in the middle timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .answers import Answer, Crew
from .jobs import Array, Job
from .progress import Progress

MOST_ITEMS = 20_000  # per run, however fast the answer
COMPLAINTS = 5  # kept per run: one broken hand-off would fill the screen


@dataclass(frozen=True)
class Plan:
    """How many items a run makes: those timed, and some on both sides of them.

    The clock starts and stops in mid-stream, so that neither the start of processes nor items that were made
    before the clock started, nor the last worker finishing alone, counts for or against anybody.
    """

    before: int
    items: int
    after: int

    @property
    def total(self) -> int:
        return self.before + self.items + self.after


class Checker:
    """Receives every item in the main process; the same work whoever brings it."""

    def __init__(self, job: Job, plan: Plan, known: dict[int, int], progress: Progress) -> None:
        self.complaints: list[str] = []
        self.failures = 0
        self._job, self._plan, self._known, self._progress = job, plan, known, progress
        self._seen = bytearray(plan.total)
        self._count = 0
        self._started = self._stopped = math.nan

    def deliver(self, index: int, checksum: int, data: Array) -> None:
        if not 0 <= index < self._plan.total:
            self._complain(f"item {index} was never asked for")
            return
        if self._seen[index]:
            self._complain(f"item {index} arrived twice")
        self._seen[index] = 1
        if self._job.checksum(data) != checksum:
            self._complain(f"item {index} is damaged: its bytes do not have its checksum")
        # Every answer makes the same item from the same index: the first to bring it speaks for all.
        if self._known.setdefault(index, checksum) != checksum:
            self._complain(f"item {index} is another one than the other answers brought")
        self._tick()

    def finish(self) -> None:
        missing = self._plan.total - sum(self._seen)
        if missing:
            self._complain(f"{missing} of {self._plan.total} items never arrived", missing)

    @property
    def rate(self) -> float:
        """Items per second while the clock ran; nan if it did not get that far."""
        return self._plan.items / (self._stopped - self._started)

    def _tick(self) -> None:
        self._count += 1
        if self._count == self._plan.before:
            self._started = time.perf_counter()
        elif self._count == self._plan.before + self._plan.items:
            self._stopped = time.perf_counter()
        self._progress.step()

    def _complain(self, complaint: str, failures: int = 1) -> None:
        self.failures += failures
        if len(self.complaints) < COMPLAINTS:
            self.complaints.append(complaint)


@dataclass
class Result:
    """What one answer reached in one job, over all rounds."""

    rates: list[float] = field(default_factory=list)
    items: int = 0  # checked, timed or not
    failures: int = 0
    complaints: list[str] = field(default_factory=list)
    error: str = ""  # why it could not run to its end

    @property
    def median(self) -> float:
        return statistics.median(self.rates) if self.rates else math.nan


@dataclass(frozen=True)
class Course:
    """How long the race is."""

    rounds: int
    seconds: float
    items: int | None = None  # instead of seconds


def race(answers: dict[str, Answer], job: Job, crew: Crew, course: Course, progress: Progress) -> dict[str, Result]:
    """Every answer in turn, round after round, so that a slow minute of the machine hits all of them."""
    results = {name: Result() for name in answers}
    known: dict[int, int] = {}

    def run(name: str, plan: Plan, counts: bool) -> float:
        return _run(answers[name], job, crew, plan, known, progress, results[name], counts)

    progress.begin(f"{job.title}: trying", 0)
    plans = {name: _plan(crew, course, _try_out(crew, course, name, run)) for name in answers}
    progress.begin(job.title, course.rounds * sum(plan.total for plan in plans.values()))
    for number in range(course.rounds):
        for name in _rotated(list(answers), number):
            progress.name(f"{job.title}, round {number + 1} of {course.rounds}: {name}")
            if not results[name].error:
                run(name, plans[name], True)
    progress.end()
    return results


def _try_out(crew: Crew, course: Course, name: str, run: Callable[[str, Plan, bool], float]) -> float:
    """A short run that only shows how many items the others must have to last as long as wanted."""
    if course.items:
        return math.nan
    batch = crew.chunk * crew.workers
    return run(name, Plan(batch, batch, 0), False)


def _plan(crew: Crew, course: Course, rate: float) -> Plan:
    batch = crew.chunk * crew.workers  # whole chunks of every worker: a chunk arrives all at once
    if course.items:
        batches = math.ceil(course.items / batch)
    else:
        wanted = 0.0 if math.isnan(rate) else min(rate * course.seconds, MOST_ITEMS)
        batches = max(2, round(wanted / batch))
    # Two batches first: what torch's loader has a worker prefetch while another is still starting.
    return Plan(2 * batch, batches * batch, batch)


def _run(
    answer: Answer,
    job: Job,
    crew: Crew,
    plan: Plan,
    known: dict[int, int],
    progress: Progress,
    result: Result,
    counts: bool,
) -> float:
    checker = Checker(job, plan, known, progress)
    try:
        answer(job, plan.total, crew, checker.deliver)
        checker.finish()
    except Exception as error:  # one answer that cannot run here must not keep the others from running
        result.error = f"{type(error).__name__}: {error}".splitlines()[0]
    result.items += plan.total
    result.failures += checker.failures
    result.complaints += checker.complaints[: COMPLAINTS - len(result.complaints)]
    if counts and not math.isnan(checker.rate):
        result.rates.append(checker.rate)
    return checker.rate


def check_rate(job: Job, repeats: int = 50) -> float:
    """How many items per second the checks alone would allow."""
    data = np.empty(job.shape, job.dtype)
    job.checksum(data)  # touches every page
    started = time.perf_counter()
    for _ in range(repeats):
        job.checksum(data)
    return repeats / (time.perf_counter() - started)


def _rotated(names: list[str], by: int) -> list[str]:
    """So that nobody always runs after the same neighbour."""
    by %= len(names)
    return names[by:] + names[:by]
