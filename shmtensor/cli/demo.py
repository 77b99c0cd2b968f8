"""``demo``: real photographs decoded in worker processes, by this package and by the answers people know."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .jobs import Job
    from .report import Column

OK, WRONG, USAGE = 0, 1, 2

DESCRIPTION = """\
Decodes JPEG photographs in worker processes and hands them to the main process as 3x224x224 tensors, then
does the same with 4 MB tensors that cost next to nothing to make, so that the hand-off is all there is. Every
item's checksum is verified. Prints one table: what shmtensor and the usual ways reach on this machine."""


def add_to(subcommands: Any) -> None:
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "demo", help="photographs decoded in workers: ways to hand them over", description=DESCRIPTION
    )
    add = parser.add_argument
    add("--images", metavar="DIR", type=Path, help="a folder of JPEG files (default: find some)")
    add("--workers", metavar="N", type=_positive, default=2, help="worker processes (default: 2)")
    add("--rounds", metavar="N", type=_positive, default=3, help="their median counts (default: 3)")
    add("--seconds", metavar="S", type=_duration, default=0.7, help="per answer and round (default: 0.7)")
    add("--items", metavar="N", type=_positive, help="so many instead, rounded up to 8 per worker")
    add("--seed", metavar="N", type=_natural, default=0, help="of the random crops (default: 0)")
    add("--start-method", choices=("fork", "forkserver", "spawn"), help="default: the platform's")
    add("--json", metavar="FILE", type=Path, help="write every number there as well")
    add("--spoil", metavar="INDEX", type=_natural, help="damage this item: the check must notice")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        jobs = _jobs(options)
    except _Refused as why:
        print(f"shmtensor demo: {why}", file=sys.stderr)
        return USAGE
    columns = _race(jobs, options)
    _print_report(columns, options)
    return verdict(columns)


def verdict(columns: list[Column]) -> int:
    """The exit status: whether every item of every answer was right, and our own answer ran."""
    from .answers import OURS

    wrong = any(result.failures for _, results in columns for result in results.values())
    return WRONG if wrong or any(results[OURS].error for _, results in columns) else OK


class _Refused(Exception):
    """What was asked for cannot be done."""


def _jobs(options: argparse.Namespace) -> list[Job]:
    from . import jobs, photos

    if options.images and not options.images.is_dir():
        raise _Refused(f"--images: no such folder: {options.images}")
    if options.json and not options.json.parent.is_dir():  # better now than after a minute's work
        raise _Refused(f"--json: no such folder: {options.json.parent}")
    tensors = jobs.Tensors(options.seed, options.spoil)
    try:
        paths = photos.find(options.images)
    except photos.BadFolder as why:
        raise _Refused(f"--images: {why}") from None
    except photos.NoPhotos as why:
        print(f"Without photographs: {why}", file=sys.stderr)
        return [tensors]
    print(f"{len(paths)} photographs: {_some([path.name for path in paths])}", file=sys.stderr)
    return [jobs.Photographs(options.seed, options.spoil, paths), tensors]


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _race(jobs: list[Job], options: argparse.Namespace) -> list[Column]:
    from .answers import Crew, available
    from .progress import progress
    from .race import Course, race

    crew = Crew(options.workers, multiprocessing.get_context(options.start_method))
    course = Course(options.rounds, options.seconds, options.items)
    bar = progress()
    try:
        return [(job, race(available(), job, crew, course, bar)) for job in jobs]
    finally:
        bar.end()


def _print_report(columns: list[Column], options: argparse.Namespace) -> None:
    from . import report

    print(report.table(columns))
    print()
    for line in [*_notes(columns, options), *report.failures(columns), report.machine_line()]:
        print(line)
    if options.json:
        text = json.dumps(report.as_json(columns, _plain(options)), indent=2)
        options.json.write_text(text + "\n")


def _notes(columns: list[Column], options: argparse.Namespace) -> Iterator[str]:
    """What someone who reads the table must know."""
    from .answers import TORCH, available
    from .race import check_rate

    checked = sum(result.items for _, results in columns for result in results.values())
    method = multiprocessing.get_context(options.start_method).get_start_method()
    which = ", of which the median, and the lowest and highest in brackets" if options.rounds > 1 else ""
    yield f"Workers: {options.workers}, by {method}. Rounds: {options.rounds}{which}. Items checked: {checked:,}."
    for job, _ in columns:
        yield (
            f"The check of the {job.title}, in the main process and the same for every answer, "
            f"would alone allow {check_rate(job):,.0f} {job.unit}."
        )
    if not TORCH.keys() <= available().keys():
        yield "(d) torch DataLoader is left out: torch is not installed (pip install torch)."


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options as JSON can hold them."""
    named = {name: value for name, value in vars(options).items() if name != "run"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in named.items()}


def _natural(text: str, least: int = 0) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {number}")
    return number


def _positive(text: str) -> int:
    return _natural(text, least=1)


def _duration(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return seconds
