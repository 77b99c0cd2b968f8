"""The types that users see: examples under strict mypy; the stubs against the built extension modules."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import shmtensor._codec
import shmtensor._core
import shmtensor._views

pytest.importorskip("mypy")
pytestmark = pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="types are the same there")

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "tests" / "typing"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def found(name: str) -> set[tuple[int, str]]:
    """(line, code) of each error that strict mypy reports in an example."""
    result = run("mypy", "--config-file", str(EXAMPLES / "mypy.ini"), "--no-pretty", str(EXAMPLES / name))
    errors = set()
    for line in result.stdout.splitlines():
        if match := re.match(r"(.+?):(\d+): error: .*\[([a-z-]+)\]$", line):
            assert match[1].endswith(name), result.stdout
            errors.add((int(match[2]), match[3]))
    assert result.returncode == bool(errors), result.stdout + result.stderr
    return errors


def test_correct_code_has_no_errors() -> None:
    assert found("good.py") == set()


def test_each_mistake_is_reported() -> None:
    lines = (EXAMPLES / "bad.py").read_text().splitlines()
    marked = {(n, line.split("# E: ")[1]) for n, line in enumerate(lines, 1) if "# E: " in line}
    assert len(marked) > 10
    assert found("bad.py") == marked


def test_stubs_and_annotations_list_what_the_modules_have() -> None:
    result = run(
        "mypy.stubtest",
        "shmtensor",
        "--mypy-config-file=pyproject.toml",
        "--allowlist=tests/typing/stubtest-allowlist.txt",
    )
    assert result.returncode == 0, result.stdout + result.stderr


# stubtest cannot see the parameters of Cython's methods, but their docstrings begin with them.


def parameters(arguments: ast.arguments) -> list[tuple[str, bool, bool]]:
    """(name, keyword only, has a default) of each parameter."""
    positional = arguments.posonlyargs + arguments.args
    first_default = len(positional) - len(arguments.defaults)
    out = [(a.arg, False, i >= first_default) for i, a in enumerate(positional)]
    return out + [
        (a.arg, True, d is not None) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]


def embedded(doc: str) -> list[tuple[str, bool, bool]] | None:
    """The same from a docstring's first line, ``Slot.tag(self, int n, *, bool strict=False)``."""
    match = re.match(r"[\w.]+\((.*)\)", doc)
    if match is None or "*args" in match[1]:
        return None
    text = re.sub(r"\b\w+ (?=\w+\b)", "", match[1])  # C and Python types
    function = ast.parse(f"def f({text}): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    return parameters(function.args)


def functions(module: ModuleType) -> Iterator[tuple[object, ast.FunctionDef]]:
    """Each function and method of a stub, with the runtime object that it describes."""
    assert module.__file__ is not None
    stub = ast.parse((ROOT / "shmtensor" / f"{module.__name__.rpartition('.')[2]}.pyi").read_text())
    for node in stub.body:
        for owner, child in (
            [(getattr(module, node.name), c) for c in node.body] if isinstance(node, ast.ClassDef) else [(module, node)]
        ):
            # An overload has fewer parameters than what it stands for.
            if isinstance(child, ast.FunctionDef) and not any(
                isinstance(d, ast.Name) and d.id == "overload" for d in child.decorator_list
            ):
                yield inspect.getattr_static(owner, child.name), child


@pytest.mark.parametrize("module", [shmtensor._core, shmtensor._views, shmtensor._codec], ids=lambda m: m.__name__)
def test_stubs_have_the_modules_parameters(module: ModuleType) -> None:
    compared = 0
    for thing, stub in functions(module):
        expected = embedded(getattr(thing, "__doc__", None) or "")
        if expected is not None and not inspect.isgetsetdescriptor(thing):
            assert parameters(stub.args) == expected, stub.name
            compared += 1
    assert compared >= (30 if module is shmtensor._core else 1)
