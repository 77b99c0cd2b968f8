"""SHMTENSOR_DEBUG=1 through the Python layer: what faults, what it says, and that everything else goes on as ever."""

import os
import re
import signal
import subprocess
import sys

import pytest
from support import ROOT, environment, python

DEBUG = {**environment(), "SHMTENSOR_DEBUG": "1"}
START = "import shmtensor as st; buf = st.TensorBuffer.create(((4,), 'int64'), slots=2)\n"

MISTAKES = {
    "a slice kept over publish": """
with buf.claim() as slot:
    kept = slot.numpy()[1:]
kept[0] = 1
""",
    "a torch view kept over publish": """
import torch
with buf.claim() as slot:
    kept = slot.torch()
kept[0] = 1
""",
    "an address kept over release": """
import ctypes
buf.put([1, 2, 3, 4])
with buf.acquire() as slot:
    address = slot.numpy().ctypes.data
ctypes.c_int64.from_address(address).value
""",
    "a read of what was published": """
with buf.claim() as slot:
    kept = slot.numpy()
int(kept[0])
""",
}


def run(code: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", START + code], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_faults_at_once_and_only_in_debug_mode(mistake: str) -> None:
    if "torch" in MISTAKES[mistake]:
        pytest.importorskip("torch", reason="torch is not installed")
    assert run(MISTAKES[mistake], DEBUG).returncode == -signal.SIGSEGV
    assert run(MISTAKES[mistake], {**environment(), "SHMTENSOR_DEBUG": "0"}).returncode == 0


def test_a_view_that_lives_keeps_its_slot_open() -> None:
    code = """
buf.put([1, 2, 3, 4])
kept = buf.get()[1:]
buf.put([5, 6, 7, 8])
assert kept.tolist() == [2, 3, 4]
del kept
assert buf.get().tolist() == [5, 6, 7, 8]
"""
    assert run(code, DEBUG).returncode == 0


def test_a_broken_rule_is_named() -> None:
    code = """
import mmap, os
buf.put([1, 2, 3, 4])
with mmap.mmap(buf._fd, 4096) as bytes_:
    bytes_[:8] = b"nonsense"
try:
    buf.get(timeout=1)
except st.ShmLayoutError as e:
    print(e)
"""
    assert "the header was overwritten" in run(code, DEBUG).stdout


# What runs under it: of each file everything, but for what counts mappings, which a closed slot splits.
FILES = ("test_buffer.py", "test_dynamic.py", "test_deaths.py", "test_writer_views.py")


@pytest.mark.skipif("SHMTENSOR_DEBUG" in os.environ, reason="this is that run")
def test_everything_else_goes_on_as_ever() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not close_lets_go"]
    done = subprocess.run(
        [*command, *(str(ROOT / "tests" / name) for name in FILES)],
        env=DEBUG,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 120


def test_it_is_asked_for_when_a_buffer_is_opened() -> None:
    code = """
import os, sys
import shmtensor as st
os.environ["SHMTENSOR_DEBUG"] = sys.argv[1]
with st.TensorBuffer.create(((4,), "int64"), slots=2) as buf:
    print(buf._info["slot_stride"])
"""
    assert [python(code, value).strip() for value in ("", "0", "1")] == ["128", "128", "4096"]
