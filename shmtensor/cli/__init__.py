"""The command line: one file per subcommand, each with ``add_to(subcommands)``.

Nothing heavy is imported here: ``--help`` answers at once, and worker processes that import this package pay
for nothing they do not use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from shmtensor._version import __version__

from . import demo, gc

USAGE = 2  # as argparse, for a command that cannot be understood
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    called = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog="shmtensor" if called == "shmtensor" else "python -m shmtensor",
        description="Tensors between processes through slots in shared memory: no copy, no system call per item.",
    )
    parser.add_argument("--version", action="version", version=f"shmtensor {__version__}")
    subcommands = parser.add_subparsers(metavar="COMMAND")
    demo.add_to(subcommands)
    gc.add_to(subcommands)
    options = parser.parse_args(argv)
    if not hasattr(options, "run"):
        parser.print_help(sys.stderr)
        return USAGE
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
