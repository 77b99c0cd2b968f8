"""The C programs of the soak, built with the core of the package that is imported: mutants have one of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import shmtensor as st

from .crowd import SoakFailed

ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = Path(st.__file__).resolve().parents[1]
HOME = _PACKAGE if (_PACKAGE / "csrc").is_dir() else ROOT  # a build elsewhere has no csrc beside it
BUILD = HOME / "build" / "soak"


def program(name: str) -> str:
    """Its path; built if it is not there or too old."""
    made = subprocess.run(
        ["make", "--no-print-directory", "-f", "tests/soak/Makefile", f"CSRC={HOME / 'csrc'}", f"BUILD={BUILD}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        raise SoakFailed(made.stdout + made.stderr)
    return str(BUILD / name)
