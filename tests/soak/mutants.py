"""The soak against cores with one mistake each, which it must find: a test of the tests.

Each mutant is a copy of the package whose _core is linked with a mutated csrc; the soak runs from that copy's folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from .crowd import SoakFailed
from .report import Progress

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "soak"


@dataclass(frozen=True)
class Mutant:
    """A mistake: in whichever file of csrc has `was`, exactly once, it becomes `becomes`."""

    name: str
    was: str
    becomes: str
    found_by: tuple[str, ...]  #: command lines, each of which must fail


_TRY_LOCK = (
    "int shmt_member_try_lock(const shmt_segment *seg, uint32_t id) { "
    "return lock_byte(seg->lock_fd, id, F_WRLCK) == 0; }"
)

MUTANTS = [
    Mutant(
        "what the dead had published and not pushed is not rolled forward",
        "            rc = shmt_order_push(seg, i, gens[i]);\n",
        "            rc = 0;\n",
        ("storm --kills 4000",),
    ),
    Mutant(
        "what comes again is not flagged",
        "shmt_word(SHMT_READY | (tries + 1), shmt_me(seg), gen + 1)) == 0) {",
        "shmt_word(SHMT_READY | tries, shmt_me(seg), gen + 1)) == 0) {",
        ("kills --kills 1500", "storm --kills 1500"),
    ),
    Mutant(
        "a release does not look at the fork generation",
        "const uint64_t *words, uint32_t n) {\n    if (first->generation != shmt_fork_generation) {\n"
        "        return -ESTALE;\n    }\n    int rc = 0;\n    uint32_t done = 0;\n"
        "    for (uint32_t i = 0; i < n; i++) {\n        uint64_t word",
        "const uint64_t *words, uint32_t n) {\n    int rc = 0;\n    uint32_t done = 0;\n"
        "    for (uint32_t i = 0; i < n; i++) {\n        uint64_t word",
        ("kills --kills 2500", "namespaces --meetings 1"),
    ),
    Mutant(
        "who has a pid lives",
        _TRY_LOCK,
        "#include <signal.h>\n"
        "int shmt_member_try_lock(const shmt_segment *seg, uint32_t id) {\n"
        "    pid_t pid = (pid_t)shmt_load_relaxed(&seg->records[id].pid);\n"
        "    return pid != 0 && kill(pid, 0) != 0 && errno == ESRCH;\n"
        "}",
        ("recovery --episodes 20", "namespaces --meetings 1"),
    ),
    Mutant(
        "who stands still is dead",
        _TRY_LOCK,
        "int shmt_member_try_lock(const shmt_segment *seg, uint32_t id) {\n"
        "    char path[32], state = 0;\n"
        '    snprintf(path, sizeof path, "/proc/%u/stat", shmt_load_relaxed(&seg->records[id].pid));\n'
        '    FILE *f = fopen(path, "r");\n'
        "    if (f) {\n"
        '        if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1) {\n            state = 0;\n        }\n'
        "        fclose(f);\n"
        "    }\n"
        "    return state == 'T' || lock_byte(seg->lock_fd, id, F_WRLCK) == 0;\n"
        "}",
        ("stops --stops 300",),
    ),
    Mutant(
        "a forked child keeps its parent's lock",
        "            close(seg->lock_fd);\n            seg->lock_fd = -1;\n        }\n        shmt_store_relaxed(",
        "            seg->lock_fd = -1;\n        }\n        shmt_store_relaxed(",
        ("recovery --episodes 20",),
    ),
    Mutant(
        "what the dead were reading stays theirs",
        "            freed |= settle_reading(seg, i, word, &rc);\n",
        "            (void)settle_reading;\n",
        ("kills --kills 500", "recovery --episodes 20", "storm --kills 500"),
    ),
    Mutant(
        "an item is taken without comparing",
        "        if (shmt_cas_acq_rel(word, &seen, mine)) {\n",
        "        shmt_store_relaxed(word, mine);\n        if (true) {\n",
        ("long --handoffs 3000000", "storm --kills 1000"),
    ),
    Mutant(
        "the lease of a batch is never freed",
        "        free(lease);\n    } else {\n        shmt_store_relaxed(&lease->refs, 0);",
        "    } else {\n        shmt_store_relaxed(&lease->refs, 0);",
        ("long --handoffs 3000000",),
    ),
    Mutant(
        "a sweep asks nobody",
        "        } else if (lock_bytes(fd, F_WRLCK, 0, SHMT_MEMBERS_MAX + 1) == 0) {\n"
        "            rc = remove_locked(path, fd) == 0;\n",
        "        } else {\n            rc = remove_locked(path, fd) == 0;\n",
        ("massacre --massacres 40", "namespaces --meetings 1"),
    ),
    Mutant(
        "a sweep believes everybody alive",
        "            rc = remove_locked(path, fd) == 0;\n",
        "            (void)remove_locked;\n            rc = 0;\n",
        ("massacre --massacres 40", "namespaces --meetings 1"),
    ),
]


def call(command: list[str | Path], cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """124: it did not end in time."""
    words = [str(c) for c in command]
    try:
        return subprocess.run(
            words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as e:
        return subprocess.CompletedProcess(words, 124, stdout=f"did not end within {seconds} s; {e.stdout!r}")


def built(command: list[str | Path]) -> None:
    done = call(command, ROOT, 600)
    if done.returncode != 0:
        raise SoakFailed(f"{command}: {done.stdout[-3000:]}")


def binding() -> Path:
    """_core without the core: the object file of the binding."""
    temp = BUILD / "temp"
    built([sys.executable, "setup.py", "-q", "build_ext", "--build-temp", temp, "--build-lib", BUILD / "lib"])
    return next(temp.rglob("_core.o"))


def make(mutant: Mutant, number: int, core: Path) -> Path:
    """The folder of a package with this mistake."""
    folder = BUILD / f"mutant{number}"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("csrc", "shmtensor"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "_core*.so"))
    (folder / "tests").mkdir()
    (folder / "tests" / "soak").symlink_to(ROOT / "tests" / "soak")
    texts = {path: path.read_text() for path in sorted((folder / "csrc").glob("*.c"))}
    places = [path for path, text in texts.items() for _ in range(text.count(mutant.was))]
    if len(places) != 1:
        raise SoakFailed(f"{mutant.name}: its place is found {len(places)} times in csrc; the list needs care")
    places[0].write_text(texts[places[0]].replace(mutant.was, mutant.becomes))
    cc = os.environ.get("CC", "cc")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built([cc, "-std=c11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-fvisibility=hidden", f"-I{folder}/csrc", "-c",
           f"{folder}/csrc/unity.c", "-o", f"{folder}/unity.o"])  # fmt: skip
    built([cc, "-shared", "-pthread", core, f"{folder}/unity.o", "-o", f"{folder}/shmtensor/_core{suffix}"])
    return folder


def run(*, mutants: int, seconds: float, seed: int, progress: Progress) -> dict[str, object]:
    """Cores with one mistake each: the soak must find them."""
    core = binding()
    until = time.monotonic() + seconds
    figures: dict[str, object] = {}
    missed = []
    for number, mutant in enumerate(MUTANTS[:mutants]):
        folder = make(mutant, number, core)
        for line in mutant.found_by:
            if time.monotonic() > until:
                break
            progress(f"{mutant.name}: {line}")
            began = time.monotonic()
            options = ["--seed", str(seed), "--seconds", "120"]
            done = call([sys.executable, "-m", "tests.soak", *line.split(), *options], folder, 300)
            took = time.monotonic() - began
            words = next((t for t in done.stdout.splitlines() if t.startswith("FAILED")), f"status {done.returncode}")
            figures[f"{mutant.name} | {line}"] = f"{took:.0f} s: {words[:160]}"
            if done.returncode == 0 or "FAILED" not in done.stdout:
                missed.append(f"{mutant.name} ({line}): {done.stdout[-500:]}")
        shutil.rmtree(folder)
    if missed:
        raise SoakFailed("not found: " + "\n".join([*missed, *map(str, figures.items())]))
    return figures
