"""examples/: each runs by itself, as its docstring says, and prints what it should."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import shmtensor  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SECONDS = 150.0  #: a ceiling against hanging, also where everything is checked and slow
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def run(name: str, folder: Path, *options: str, by: tuple[str, ...] = ()) -> str:
    """What the example prints, started from another folder with the package as it is tested."""
    where = str(Path(shmtensor.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, *by, str(EXAMPLES / f"{name}.py"), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # its workers and ranks as well
            raise
    assert process.returncode == 0, output + errors
    assert re.search("Traceback|RuntimeWarning", errors) is None, errors  # from a worker, say, or about keep=
    return output


def found(pattern: str, output: str) -> list[tuple[str, ...]]:
    """The groups of each line, all of which must match."""
    matches = [re.fullmatch(pattern, line) for line in output.splitlines()]
    assert matches and all(matches), output
    return [match.groups() for match in matches if match]


def test_image_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for i, name in enumerate(["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.effect_noise((90, 60 + i), 50).convert("RGB").save(tmp_path / name)
    title, rest = run("image_folder", tmp_path, "--images", ".", "--crops", "20", "--epochs", "1").split("\n", 1)
    assert title == "3 photographs, classes: cat dog"
    lines = found(r"(\S.*?) +([\d.]+) images/s   checksum ([0-9a-f]{8})", rest)
    assert [name for name, _, _ in lines] == ["torch", "shmtensor", "shmtensor, in place"]
    assert all(float(rate) > 0 for _, rate, _ in lines)
    assert len({checksum for _, _, checksum in lines} - {"00000000"}) == 1


def test_text_batches(tmp_path: Path) -> None:
    lengths = [1 + i * 7 % 12 for i in range(50)]
    text = tmp_path / "text"
    text.write_text("\n\n".join(" ".join(f"word{k}" for k in range(n)) for n in lengths))
    lines = found(
        r"(\w+): (\d+) lines, (\d+) words, (\d+)% padding; as torch's",
        run("text_batches", tmp_path, "--text", str(text)),
    )
    assert [line[:3] for line in lines] == [(how, "50", str(sum(lengths))) for how in ("padded", "packed")]
    least = 1 - sum(lengths) / (50 * max(lengths))
    assert 0 < int(lines[0][3]) <= 100 * least + 1 and lines[1][3] == "0"


@pytest.mark.parametrize(
    ("workers", "first"), [(0, [0, 32, 64, 96]), (2, [0, 50, 32, 82]), (3, [0, 33, 66, 32, 65, 98])]
)
def test_stream(tmp_path: Path, workers: int, first: list[int]) -> None:
    output = run("stream", tmp_path, "--records", "100", "--workers", str(workers))
    assert output == f"100 records, each once; first in their batches: {first}; as torch's\n"


def test_train(tmp_path: Path) -> None:
    *epochs, verdict = run("train", tmp_path).splitlines()
    pattern = r"epoch (\d): loss ([\d.]+) with torch, ([\d.]+) with shmtensor; (\d+)% right"
    lines = found(pattern, "\n".join(epochs))
    assert [line[0] for line in lines] == ["0", "1", "2"]
    assert [theirs for _, theirs, _, _ in lines] == [ours for _, _, ours, _ in lines]
    assert float(lines[2][2]) < 0.5 * float(lines[0][2])
    assert int(lines[2][3]) >= 90
    assert re.match("(worker|consumer)-bound: ", verdict)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_torchrun_gloo(tmp_path: Path) -> None:
    output = run("torchrun_gloo", tmp_path, "--samples", "101", by=TORCHRUN)
    lines = found(r"epoch (\d): loss ([\d.]+); 100 samples, each seen once, 50 of them by each rank", output)
    losses = [float(loss) for _, loss in lines]
    assert [epoch for epoch, _ in lines] == ["0", "1", "2"]
    assert losses == sorted(losses, reverse=True) and losses[2] < 0.5 * losses[0]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_example_is_short_says_how_to_run_it_and_is_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 90
    command = rf"^    (python|torchrun --standalone --nproc_per_node=2) examples/{path.name}\b"
    assert re.search(command, ast.get_docstring(ast.parse(text), clean=False) or "", re.MULTILINE)
    assert f"test_{path.stem}" in globals()
    assert re.search(rf"\b{path.stem}\b", (ROOT / "Makefile").read_text())
    assert path.name in (ROOT / "docs" / "coming-from-torch.md").read_text()


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.py"))) >= 5
