"""The command line: one file per subcommand, each with ``add_to(subcommands)``.

Nothing heavy is imported here: ``--help`` answers at once, and worker processes that import this package pay
for nothing they do not use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from shmtensor._version import __version__

from . import demo, gc

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shmtensor", description="Tensors between processes.")
    parser.add_argument("--version", action="version", version=f"shmtensor {__version__}")
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    demo.add_to(subcommands)
    gc.add_to(subcommands)
    options = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
