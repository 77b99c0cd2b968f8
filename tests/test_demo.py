"""The demonstration: it runs, its table says what it should, and its checks notice what they are for."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from shmtensor.cli import answers, demo, jobs, main, photos
from shmtensor.cli.answers import OURS, Crew
from shmtensor.cli.progress import Progress
from shmtensor.cli.race import Checker, Course, Plan, race

TINY = ["--items", "16", "--workers", "2", "--rounds", "1"]
SECONDS = 60.0  # no run here may take longer

needs_pillow = pytest.mark.skipif(find_spec("PIL") is None, reason="needs Pillow")
with_workers = pytest.mark.parametrize("name", [name for name in answers.available() if name[0] in "(s"])


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shmtensor", "demo", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


def crew() -> Crew:
    return Crew(2, multiprocessing.get_context())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs, one of them with a suffix in capitals and a folder down."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for name, size in (("wide.jpg", (60, 90, 3)), ("more/grey.JPEG", (80, 50))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / name, format="JPEG")
    return tmp_path


# --- whole runs ------------------------------------------------------------------------------------


@needs_pillow
def test_one_table_with_every_answer(folder: Path) -> None:
    done = run(*TINY, "--images", str(folder), "--json", str(folder / "numbers.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(answers.available())
    assert len({row.count("|") for row in rows}) == 1
    assert all(any(row.startswith(f"| {name} ") for row in rows) for name in answers.available())
    assert "did not run" not in done.stdout
    assert "Machine: " in done.stdout.splitlines()[-1]
    assert "%|" not in done.stderr  # no progress bar where there is no terminal
    numbers = json.loads((folder / "numbers.json").read_text())
    assert set(numbers["jobs"]) == {"photographs", "4 MB tensors"}
    for job in numbers["jobs"].values():
        assert set(job["answers"]) == set(answers.available())
        for answer in job["answers"].values():
            assert (len(answer["rates"]), answer["failures"], answer["items_checked"]) == (1, 0, 64)


@needs_pillow
def test_a_spoilt_item_is_noticed_whoever_brings_it(folder: Path) -> None:
    done = run(*TINY, "--images", str(folder), "--spoil", "21")
    assert done.returncode == demo.WRONG
    for name in answers.available():
        for title in ("photographs", "4 MB tensors"):
            assert f"WRONG: {name}, {title}: item 21 is damaged" in done.stdout


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(method: str) -> None:
    result = race(
        {OURS: answers.shmtensor_buffer, "by hand": answers.by_hand},
        jobs.Tensors(0),
        Crew(2, multiprocessing.get_context(method)),
        Course(1, 1.0, 16),
        Progress(),
    )
    for one in result.values():
        assert (one.error, one.failures, len(one.rates)) == ("", 0, 1)


ONLY_ONE_ANSWER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children ignore it
from shmtensor.cli import answers, main, photos
answer = answers.available()[sys.argv[1]]
answers.available = lambda: {sys.argv[1]: answer}
photos.find_spec = lambda name: None
print("begin", flush=True)
sys.exit(main(["demo", "--items", "1000000"]))
"""


@with_workers
def test_ctrl_c_leaves_nothing_behind(name: str) -> None:
    command = [sys.executable, "-c", ONLY_ONE_ANSWER, name]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True) as process:
        assert process.stdout and process.stdout.readline() == "begin\n"
        time.sleep(2.5 if "torch" in name else 0.8)  # torch takes a while to import; then they are at work
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers as well
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "leaked" not in errors  # what multiprocessing's tracker says of segments that nobody unlinked
    assert _ends(process.pid), "a worker outlived the demonstration"


def _ends(group: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while _alive(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not _alive(group)


def _alive(group: int) -> list[int]:
    """The processes of that group; not the zombies, which in a container may never be reaped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


# --- the checks ------------------------------------------------------------------------------------


class Torn(jobs.Tensors):
    """The last page of item 20 is that of another item, as after a slot was overwritten too early."""

    def make(self, index: int, out: jobs.Array) -> int:
        checksum = super().make(index, out)
        if index == 20:
            out.reshape(-1).view(np.int64)[:: self.STAMP_EVERY][-1] = 22
        return checksum


class Mixed(jobs.Tensors):
    """Item 20 is whole, but it is item 19."""

    def make(self, index: int, out: jobs.Array) -> int:
        return super().make(19 if index == 20 else index, out)


class Deadly(jobs.Tensors):
    """The worker that makes item 20 dies of it."""

    def make(self, index: int, out: jobs.Array) -> int:
        if index == 20:
            os._exit(3)
        return super().make(index, out)


def race_one(name: str, job: jobs.Job) -> tuple[str, list[str]]:
    result = race({name: answers.available()[name]}, job, crew(), Course(1, 1.0, 16), Progress())[name]
    return result.error, result.complaints


@with_workers
def test_a_torn_item_is_noticed(name: str) -> None:
    assert race_one(name, Torn(0)) == ("", ["item 20 is damaged: its bytes do not have its checksum"])


@pytest.mark.parametrize("name", ["(c) SharedMemory by hand", OURS])
def test_a_dead_worker_is_noticed(name: str) -> None:
    error, complaints = race_one(name, Deadly(0))
    assert error or any("never arrived" in complaint for complaint in complaints)


def test_another_item_than_the_other_answers_brought_is_noticed() -> None:
    known: dict[int, int] = {}
    plan = Plan(1, 30, 1)
    for job in (jobs.Tensors(0), Mixed(0)):
        checker = Checker(job, plan, known, Progress())
        answers.one_process(job, plan.total, crew(), checker.deliver)
        checker.finish()
    assert checker.complaints == ["item 20 is another one than the other answers brought"]


def test_lost_doubled_and_unknown_items_are_noticed() -> None:
    job = jobs.Tensors(0)
    checker = Checker(job, Plan(1, 3, 0), {}, Progress())
    for index in (0, 1, 1, 7):
        checker.deliver(*job.made(index))
    checker.finish()
    assert checker.complaints == [
        "item 1 arrived twice",
        "item 7 was never asked for",
        "2 of 4 items never arrived",
    ]
    assert checker.failures == 4


def test_samples_depend_on_seed_and_index_only() -> None:
    for index in (0, 3, 2**40):
        _, checksum, data = jobs.Tensors(5).made(index)
        assert jobs.Tensors(5).checksum(data) == checksum
    checksums = {jobs.Tensors(seed).made(index)[1] for seed in (0, 1) for index in range(3)}
    assert len(checksums) == 6


# --- photographs -----------------------------------------------------------------------------------


@needs_pillow
def test_photographs_are_cropped_the_same_way_every_time(folder: Path) -> None:
    paths = photos.find(folder)
    assert sorted(path.name for path in paths) == ["grey.JPEG", "wide.jpg"]
    first, again = (jobs.Photographs(1, None, paths) for _ in range(2))
    for index in range(4):
        _, checksum, data = first.made(index)
        assert data.shape == (3, 224, 224)
        assert again.made(index)[1] == checksum == first.checksum(data)
    assert len({first.made(index)[1] for index in range(4)}) == 4


@needs_pillow
def test_shipped_photographs_are_found_without_importing_who_ships_them() -> None:
    if not any(find_spec(package) for package, _ in photos.SHIPPED):
        pytest.skip("no package that ships photographs")
    code = (
        "import sys; from shmtensor.cli import photos; assert photos.find(None);"
        "assert not {'skimage', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS)


@needs_pillow
def test_a_large_folder_is_thinned_evenly() -> None:
    paths = [Path(str(i)) for i in range(1000)]
    some = photos._evenly(paths, 64)
    assert len(set(some)) == 64
    assert (some[0], some[-1]) == (Path("0"), Path("984"))


@needs_pillow
def test_bad_folders_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--images", str(tmp_path / "none")]) == demo.USAGE
    assert "no such folder" in capfd.readouterr().err
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more than a beginning")
    assert main(["demo", "--images", str(tmp_path)]) == demo.USAGE
    assert "no readable JPEG" in capfd.readouterr().err
    assert main(["demo", "--json", str(tmp_path / "none" / "numbers.json")]) == demo.USAGE
    assert "--json" in capfd.readouterr().err


@pytest.mark.parametrize("bad", [["--workers", "0"], ["--items", "x"], ["--seconds", "nan"], ["--spoil", "-1"]])
def test_bad_options_are_refused(bad: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["demo", *bad])
    assert end.value.code == demo.USAGE
    assert bad[0] in capfd.readouterr().err


# --- what may be missing ---------------------------------------------------------------------------


def test_without_pillow_or_photographs_the_tensors_still_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    assert main(["demo", *TINY]) == 0
    said = capfd.readouterr()
    assert "pip install pillow" in said.err
    assert "tensors/s" in said.out
    assert "images/s" not in said.out


def test_without_torch_its_loader_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    monkeypatch.setattr(answers, "find_spec", lambda name: None)
    assert main(["demo", *TINY]) == 0
    said = capfd.readouterr().out
    assert "| (d) torch DataLoader" not in said
    assert "(d) torch DataLoader is left out" in said


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "PIL", "tqdm"}
    code = f"import sys, shmtensor.cli; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS)
