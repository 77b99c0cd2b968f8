"""The examples of README.md and docs/ run as they are printed, each in a fresh interpreter."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmtensor

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[object]:
    return [
        pytest.param(block[1], id=f"{path.name}:{text[: block.start()].count(chr(10)) + 2}")
        for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for text in [path.read_text()]
        for block in BLOCK.finditer(text)
    ]


def test_there_are_examples() -> None:
    assert len(blocks()) >= 4


@pytest.mark.parametrize("code", blocks())
def test_example_runs(code: str, tmp_path: Path) -> None:
    if re.search(r"^import torch$", code, re.MULTILINE) and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    script = tmp_path / "example.py"  # a file, so that spawned processes can import it
    script.write_text(code)
    before = set(os.listdir("/dev/shm"))
    result = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(shmtensor.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    left = {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("shmtensor.")}
    assert left == set()
