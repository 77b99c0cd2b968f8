"""``gc``: the named segments of this user, and the removal of those whose last member is dead."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

OK, FAILED = 0, 1
_DIR, _PREFIX = "/dev/shm", "shmtensor."

DESCRIPTION = """\
Lists the named segments of this user in /dev/shm and removes those whose last member is dead. One that is in
use is never touched, whichever pid namespace its members live in; nor is a file that is no segment. Every
creation of a named segment does the same; anonymous segments leave nothing behind in the first place."""


def add_to(subcommands: Any) -> None:
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "gc", help="remove the named segments that the dead left behind", description=DESCRIPTION
    )
    parser.add_argument("--dry-run", action="store_true", help="only say which are stale")
    parser.add_argument("--json", action="store_true", help="print a JSON list: name, state, nbytes (null: unknown)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from shmtensor._core import sweep

    try:
        sizes = _sizes()
        found = sweep(options.dry_run)
    except OSError as why:
        print(f"shmtensor gc: {why}", file=sys.stderr)
        return FAILED
    gone = "stale" if options.dry_run else "removed"
    rows = [(gone if stale else "in use", sizes.get(name), name) for name, stale in sorted(found)]
    if options.json:
        print(json.dumps([{"name": name, "state": state, "nbytes": nbytes} for state, nbytes, name in rows], indent=2))
        return OK
    for state, nbytes, name in rows:
        print(f"{state:8}{'?' if nbytes is None else format(nbytes, ','):>18}  {name}")
    count = sum(state == gone for state, _, _ in rows)
    freed = sum(nbytes or 0 for state, nbytes, _ in rows if state == gone)
    print(f"{count} of {len(rows)} segments {gone}, {freed:,} bytes")
    return OK


def _sizes() -> dict[str, int]:
    """Bytes that each file of our kind of name takes now, before any is removed."""
    sizes = {}
    with os.scandir(_DIR) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                try:
                    sizes[entry.name.removeprefix(_PREFIX)] = entry.stat(follow_symlinks=False).st_blocks * 512
                except FileNotFoundError:  # removed since
                    continue
    return sizes
