"""The examples of README.md and docs/ run as they are printed, each in a fresh interpreter.

Blocks that follow each other and begin with the name of a script, ``# camera.py``, are one example: each is started
once the one before has created what it names. Names of segments get a suffix, lest two runs meet.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import path_of, wait_until

import shmtensor

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"# (\w+\.py)\b")
NAME = re.compile(r"""(?<=name=")([\w.-]+)(?=")|(?<=attach\(")([\w.-]+)(?=")""")
SECONDS = 100.0


def examples() -> list[object]:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text, scripts = path.read_text(), False
        for block in BLOCK.finditer(text):
            if scripts and SCRIPT.match(block[1]):
                found[-1][1].append(block[1])
            else:
                found.append((f"{path.name}:{text[: block.start()].count(chr(10)) + 2}", [block[1]]))
            scripts = SCRIPT.match(block[1]) is not None
    return [pytest.param(codes, id=where) for where, codes in found]


def test_there_are_examples() -> None:
    assert len(examples()) >= 4


def start(code: str, number: int, folder: Path) -> subprocess.Popen[str]:
    script = folder / (match[1] if (match := SCRIPT.match(code)) else f"example{number}.py")
    script.write_text(code)  # a file, so that spawned processes can import it
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(shmtensor.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("codes", examples())
def test_example_runs(codes: list[str], tmp_path: Path) -> None:
    if re.search(r"^import torch$", "\n".join(codes), re.MULTILINE) and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    codes = [NAME.sub(lambda name: f"{name[0]}-{os.getpid()}", code) for code in codes]
    files = {path_of(name[0]) for code in codes for name in NAME.finditer(code)}
    running: list[subprocess.Popen[str]] = []

    def ready() -> bool:
        return all(file.exists() for file in files) or running[-1].poll() is not None

    try:
        for number, code in enumerate(codes):
            if running:
                assert wait_until(ready, SECONDS)
            running.append(start(code, number, tmp_path))
        end = time.monotonic() + SECONDS
        for process in running:
            output, errors = process.communicate(timeout=max(0.1, end - time.monotonic()))
            assert (process.returncode, errors) == (0, ""), f"{process.args}\n{output}{errors}"
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert [file for file in files if file.exists()] == []
