"""The yardstick: limit.c as a program, and the full read of reader.c as a function; built when first needed.

They are compiled with the system's compiler (CC, else cc) into build/bench, under names that follow from the sources,
so that an edit rebuilds them and nothing else does.
"""

import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "bench"
FLAGS = ["-std=gnu11", "-O3", "-march=native", "-Wall", "-Wextra"]


def _built(source: str, suffix: str, flags: list[str]) -> Path:
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, *flags, str(HERE / source)]
    digest = hashlib.sha1(" ".join(command).encode())
    for part in (source, "read.h"):
        digest.update((HERE / part).read_bytes())
    out = BUILD / f"{Path(source).stem}-{digest.hexdigest()[:12]}{suffix}"
    if not out.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        scratch = out.with_name(f"{out.name}.{os.getpid()}")
        subprocess.run([*command, "-o", str(scratch)], check=True)
        scratch.replace(out)  # another process may be building the same
    return out


def program() -> str:
    """The path of the compiled limit.c."""
    return str(_built("limit.c", "", []))


def run(*args: object, timeout: float = 60) -> float:
    """Runs the yardstick with the arguments that limit.c names; returns the seconds that it printed."""
    command = [program(), *map(str, args)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout).stdout)


def reader():
    """``read(buffer)``: loads every byte of a buffer once, in C."""
    include = f"-I{sysconfig.get_paths()['include']}"
    path = _built("reader.c", f".{sys.implementation.cache_tag}.so", ["-shared", "-fPIC", include])
    loader = importlib.machinery.ExtensionFileLoader("reader", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("reader", loader))
    loader.exec_module(module)
    return module.read
