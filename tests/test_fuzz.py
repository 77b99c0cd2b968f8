"""No byte in shared memory can hurt: `tests/fuzz` feeds the C core with hostile ones, here for some seconds.

The same inputs each time, under ASan and UBSan: by libFuzzer where clang has it, else by a program of our own with any
compiler. ``make fuzz`` goes on for longer and keeps what it finds. The mutants are mistakes that must be found: a test
of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT

BUILD = ROOT / "build" / "fuzz-test"
SECONDS = 200  #: a ceiling against hanging, not an expectation
RUNS = {"attach": 40_000, "words": 40_000}

MUTANTS = {
    "the index in a ring cell is believed": (
        "words",
        "        if (index >= seg->geo.slots) {\n",
        "        if (index > 0xffff) {\n",
    ),
    "the size of an item is believed": (
        "words",
        "    if (SHMT_LIKELY(out->nbytes <= shmt_touchable(seg, index))) {\n",
        "    if (SHMT_LIKELY(out->nbytes < UINT64_MAX)) {\n",
    ),
    "the offsets in the header are believed": (
        "attach",
        "shmt_geometry_place(&again) != 0 || memcmp(&again, geo, sizeof again) != 0 ||\n",
        "shmt_geometry_place(&again) != 0 ||\n",
    ),
}


def run(*command: str | Path, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    options = {
        "ASAN_OPTIONS": "abort_on_error=1:allocator_may_return_null=1:quarantine_size_mb=4",
        "UBSAN_OPTIONS": "abort_on_error=1",
    }
    return subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        env={**os.environ, **options},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=seconds,
    )


def build(program: str, folder: Path, *variables: str) -> Path:
    to = folder.relative_to(ROOT)
    made = run(
        "make", "--no-print-directory", "-f", "tests/fuzz/Makefile", f"BUILD={to}", *variables, f"{to}/{program}"
    )
    assert made.returncode == 0, made.stdout
    return folder / program


@pytest.fixture(scope="module")
def engine() -> str:
    """Which of the two can be had here."""
    for tool in ("make", os.environ.get("CC", "cc")):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    to = BUILD.relative_to(ROOT)
    return run(
        "make", "--no-print-directory", "-s", "-f", "tests/fuzz/Makefile", f"BUILD={to}", "engine"
    ).stdout.strip()


@pytest.mark.parametrize("target", list(RUNS))
def test_hostile_bytes(engine: str, target: str, tmp_path: Path) -> None:
    program = build(f"{target}-{engine}", BUILD)
    runs = RUNS[target]
    if engine == "libfuzzer":
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        assert run(program, f"--seeds={corpus}").returncode == 0
        options = [f"-artifact_prefix={BUILD}/", "-max_len=512", "-timeout=20", "-reload=0"]
        done = run(program, f"-runs={runs}", "-seed=1", *options, corpus)
        count = re.search(r"^Done (\d+) runs", done.stdout, re.MULTILINE)
        edges = re.findall(r"cov: (\d+)", done.stdout)[-1:]
    else:
        assert engine == "standalone"
        done = run(program, f"--runs={runs}", "--seed=1", f"--last={BUILD}/{target}-last")
        count, edges = re.search(r"^Done (\d+) runs", done.stdout, re.MULTILINE), []
    assert done.returncode == 0, done.stdout[-6000:]
    assert count
    print(f"{target}: {count[1]} runs by {engine}{''.join(f', {e} edges' for e in edges)}")
    assert int(count[1]) >= runs


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_mistake_is_found(engine: str, mutant: str, tmp_path: Path) -> None:
    """By the program that needs no libFuzzer."""
    target, was, becomes = MUTANTS[mutant]
    folder = BUILD / f"mutant{list(MUTANTS).index(mutant)}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    texts = {path: path.read_text() for path in sorted((folder / "csrc").glob("*.c"))}
    places = [path for path, text in texts.items() for _ in range(text.count(was))]
    assert len(places) == 1, f"its place is found {len(places)} times in csrc; the list needs care"
    places[0].write_text(texts[places[0]].replace(was, becomes))
    csrc = f"CSRC={(folder / 'csrc').relative_to(ROOT)}"
    program = build(f"{target}-standalone", folder, csrc, "ENGINE=standalone")
    done = run(program, "--runs=200000", "--seed=1", f"--last={tmp_path}/last")
    print(mutant, done.returncode, done.stdout[:1500])
    assert "Done" not in done.stdout, "not found in 200,000 inputs"
    assert done.returncode in (-6, 1), f"exit status {done.returncode}\n{done.stdout[-3000:]}"
