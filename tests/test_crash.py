"""Nobody's death, at any instruction, loses, doubles or tears an item or leaks a slot: `tests/crash` tries them all.

`step_kill` kills one process after each of its machine instructions, `pairs` stops two at every point of each. They are
built and run here, and then again and again with one mistake in the core, which they must find: a test of the tests.

SHMTENSOR_CRASH=full runs every instruction in every mode and all pairs (add ``-o faulthandler_timeout=0``; also
``make -f tests/crash/Makefile long``).
"""

from __future__ import annotations

import os
import platform
import queue
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, cores

BUILD = ROOT / "build" / "crash"
FULL = os.environ.get("SHMTENSOR_CRASH") == "full"
SECONDS = 100_000 if FULL else 110

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux",
    reason="single steps and breakpoints here are those of Linux on x86-64",
)


@dataclass(frozen=True)
class Result:
    code: int
    output: str

    @property
    def points(self) -> int:
        return sum(map(int, re.findall(r"(\d+) points", re.sub(r"(?m)^TOTAL.*", "", self.output))))

    @property
    def failures(self) -> int:
        return sum(map(int, re.findall(r"(\d+) failures", re.sub(r"(?m)^TOTAL.*", "", self.output))))


@dataclass(frozen=True)
class Mutant:
    """A mistake: in whichever file of csrc has `was`, exactly once, it becomes `becomes`."""

    name: str
    was: str
    becomes: str
    only: str  #: the scenarios that are to find it
    program: str = "step_kill"


MUTANTS = [
    Mutant(
        "what was published and not pushed is not rolled forward",
        "            rc = shmt_order_push(seg, i, gens[i]);\n",
        "            rc = 0;\n",
        "produce,produce_many,reclaim,join_dead",
    ),
    Mutant(
        "published in the ring before the slot is ready",
        "    int rc = shmt_slots_change(seg, index, word, shmt_word(SHMT_READY, shmt_word_owner(word), gen));\n"
        "    if (rc == 0) {\n        rc = shmt_order_push(seg, index, gen);\n",
        "    int rc = shmt_order_push(seg, index, gen);\n"
        "    if (rc == 0) {\n"
        "        rc = shmt_slots_change(seg, index, word, shmt_word(SHMT_READY, shmt_word_owner(word), gen));\n",
        "produce,produce_many",
    ),
    Mutant(
        "a ticket is drawn first, the cell filled after it",
        "            if (shmt_cas_seq_cst(cell, &seen, shmt_cell(lap, gen, index))) {\n"
        "                shmt_cas_seq_cst(&header->write_seq, &p, p + 1);",
        "            if (shmt_cas_seq_cst(&header->write_seq, &p, p + 1)) {\n"
        "                shmt_cas_seq_cst(cell, &seen, shmt_cell(lap, gen, index));",
        "produce,produce_many,reclaim",
    ),
    Mutant(
        "pushers do not help one that stopped half way",
        " if (shmt_cell_lap(seen) == lap) {\n            shmt_cas_seq_cst(&header->write_seq, &p, p + 1);",
        " if (shmt_cell_lap(seen) == lap) {\n            return -EUCLEAN;",
        "produce,reclaim",
    ),
    Mutant(
        "a reader moves on before it takes",
        "        int took = shmt_slots_take(seg, index, shmt_cell_gen(seen), &words[got]);\n",
        "        shmt_cas_seq_cst(&header->read_seq, &r, r + 1);\n"
        "        int took = shmt_slots_take(seg, index, shmt_cell_gen(seen), &words[got]);\n",
        "consume,consume_many,lease",
    ),
    Mutant(
        "readers stay before a cell that is stale",
        "        shmt_cas_seq_cst(&header->read_seq, &r, r + 1);\n        if (took) {\n",
        "        if (!took) {\n            return got > 0 ? (int)got : -EAGAIN;\n        }\n"
        "        shmt_cas_seq_cst(&header->read_seq, &r, r + 1);\n        if (took) {\n",
        "consume,consume_many",
    ),
    Mutant(
        "a slot is given back without comparing",
        "        int one = shmt_slots_change(seg, first->index + i, word, "
        "shmt_word(SHMT_FREE, 0, shmt_word_gen(word)));\n",
        "        int one = 0;\n"
        "        shmt_store_relaxed(&seg->slots[first->index + i].word, "
        "shmt_word(SHMT_FREE, 0, shmt_word_gen(word)));\n",
        "late_abort,late_release,late_drop",
    ),
    Mutant(
        "a redelivered item keeps its generation",
        "shmt_word(SHMT_READY | (tries + 1), shmt_me(seg), gen + 1)) == 0) {",
        "shmt_word(SHMT_READY | (tries + 1), shmt_me(seg), gen++)) == 0 && gen--) {",
        "consume,reclaim",
    ),
    Mutant(
        "a redelivered item is nobody's until it is pushed",
        "shmt_word(SHMT_READY | (tries + 1), shmt_me(seg), gen + 1)) == 0) {",
        "shmt_word(SHMT_READY | (tries + 1), 0, gen + 1)) == 0) {",
        "reclaim,acquire_ended,join_dead",
    ),
    Mutant(
        "what the dead were reading stays theirs",
        "            freed |= settle_reading(seg, i, word, &rc);\n",
        "            (void)settle_reading;\n",
        "consume,lease,reclaim,reclaim_drop",
    ),
    Mutant(
        "an item that kills its readers is redelivered for ever",
        "(seg->geo.flags & SHMT_DROP) || tries == SHMT_TRIES_MAX",
        "(seg->geo.flags & SHMT_DROP)",
        "reclaim_worn",
    ),
    Mutant(
        "a rolled forward item is nobody's before it is pushed",
        "        if (!in_ring[i]) {\n            rc = shmt_order_push(seg, i, gens[i]);\n",
        "        shmt_slots_change(seg, i, word, shmt_word(shmt_word_state(word), 0, gens[i]));\n"
        "        if (!in_ring[i]) {\n            rc = shmt_order_push(seg, i, gens[i]);\n",
        "reclaim,join_dead",
    ),
    Mutant(
        "a joiner leaves what the last holder of its byte left",
        "            int died = bury(seg, id);",
        "            int died = 0;\n            (void)bury;",
        "join_dead",
    ),
    Mutant(
        "a joiner does not count whose byte it takes",
        "            int died = bury(seg, id);",
        "            int died = reclaim_member(seg, id);\n            (void)bury;",
        "join_dead",
    ),
    Mutant(
        "dead producers are not counted",
        "        shmt_add_seq_cst(&seg->header->producers_lost, 1);",
        "",
        "produce,close_producer",
    ),
    Mutant(
        "a closing producer takes its role back before it is counted",
        "            bool failed = ",
        "            shmt_store_relaxed(&shmt_member_mine(seg)->roles, 0);\n            bool failed = ",
        "close_producer",
    ),
    Mutant(
        "a slot is claimed without comparing",
        "            if (shmt_cas_seq_cst(&seg->slots[at].word, &word, mine)) {\n",
        "            if ((shmt_exchange_acq_rel(&seg->slots[at].word, mine), true)) {\n",
        "produce_many/produce_many,produce/produce",
        program="pairs",
    ),
    Mutant(
        "memory is taken from slots that somebody has",
        "            if (shmt_slots_claim_at(seg, i, &slot.word)) {\n                rc = trim(",
        "            (void)shmt_slots_claim_at(seg, i, &slot.word);\n            {\n                rc = trim(",
        "trim,trim_dead",
    ),
    Mutant(
        "memory is taken and nobody told to look again",
        "    shmt_store_relaxed(&header->trims, shmt_load_relaxed(&header->trims) + 1); ",
        "    ",
        "trim",
    ),
    Mutant(
        "memory is taken before that is counted",
        "    shmt_store_relaxed(&header->trims, shmt_load_relaxed(&header->trims) + 1); "
        "/* ours until R2; and before the hole */\n"
        "    uint64_t offset = seg->geo.data_offset + index * seg->geo.slot_stride;\n"
        "    int rc = shmt_memory_punch(seg->fd, offset + keep, seg->geo.slot_stride - keep);\n",
        "    uint64_t offset = seg->geo.data_offset + index * seg->geo.slot_stride;\n"
        "    int rc = shmt_memory_punch(seg->fd, offset + keep, seg->geo.slot_stride - keep);\n"
        "    shmt_store_relaxed(&header->trims, shmt_load_relaxed(&header->trims) + 1);\n",
        "trim",
    ),
    Mutant(
        "a slot that was trimmed is not given back",
        "                (void)shmt_slot_abort(seg, &slot); /* it was never",
        "                /* it was never",
        "trim",
    ),
    Mutant(
        "a slot that was lately written here is taken without comparing",
        " != SHMT_FREE || !shmt_cas_seq_cst(&seg->slots[index].word, &word, mine)) {\n",
        " != SHMT_FREE || (shmt_exchange_acq_rel(&seg->slots[index].word, mine), false)) {\n",
        "trim/produce,produce/trim,trim/trim,trim/consume",
        program="pairs",
    ),
    Mutant(
        "a segment has its name before it has a member",
        "    rc = join(seg); /* before it has its name: a sweep must find it in use */\n"
        "    if (rc == 0 && config->name) {\n        rc = shmt_name_link(seg->fd, path);\n    }\n",
        "    if (config->name) {\n        rc = shmt_name_link(seg->fd, path);\n    }\n"
        "    if (rc == 0) {\n        rc = join(seg);\n    }\n",
        "create_named",
    ),
]


# ---- building and running, as many at a time as there are cores ------------------------------------------------------


def call(*command: str | Path, seconds: float = SECONDS) -> Result:
    try:
        done = subprocess.run(
            [str(c) for c in command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as e:
        partial = e.stdout or b""
        text = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
        return Result(124, f"{text}\n{command[0]} did not end within {seconds} s")
    return Result(done.returncode, done.stdout)


def build(folder: Path, programs: list[str], *variables: str) -> None:
    to = folder.relative_to(ROOT)
    targets = [f"{to}/{p}" for p in programs]
    done = call("make", "--no-print-directory", "-f", "tests/crash/Makefile", f"BUILD={to}", *variables, *targets)
    assert done.code == 0, done.output


def mutate(mutant: Mutant, folder: Path) -> None:
    """A copy of csrc in `folder` with the mistake in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    texts = {path: path.read_text() for path in sorted((folder / "csrc").glob("*.c"))}
    places = [path for path, text in texts.items() for _ in range(text.count(mutant.was))]
    assert len(places) == 1, f"{mutant.name}: its place is found {len(places)} times in csrc; the list needs care"
    places[0].write_text(texts[places[0]].replace(mutant.was, mutant.becomes))


class Runner:
    def __init__(self) -> None:
        self.cpus: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.workers = cores()
        for cpu in range(self.workers):
            self.cpus.put(cpu)
        self.pool = ThreadPoolExecutor(self.workers)
        build(BUILD, ["step_kill", "pairs"])
        self.parts = {
            name: [self.pool.submit(self.run, BUILD / name, f"--part={k}/{self.workers}") for k in range(self.workers)]
            for name in ("step_kill", "pairs")
        }
        self.mutants: dict[str, Future[Result]] = {
            m.name: self.pool.submit(self.run_mutant, number, m) for number, m in enumerate(MUTANTS)
        }

    def run(self, program: Path, *args: str) -> Result:
        cpu = self.cpus.get()
        try:
            return call(program, f"--cpu={cpu}", *args, *["--full"] * FULL)
        finally:
            self.cpus.put(cpu)

    def run_mutant(self, number: int, mutant: Mutant) -> Result:
        cpu = self.cpus.get()
        try:
            folder = BUILD / f"mutant{number}"
            mutate(mutant, folder)
            build(folder, [mutant.program], f"CSRC={folder.relative_to(ROOT)}/csrc", "OPT=-O0")
            args = ["--sparse", "--wraps=1"] if mutant.program == "step_kill" else []
            return call(folder / mutant.program, f"--cpu={cpu}", *args, f"--only={mutant.only}", seconds=60)
        finally:
            self.cpus.put(cpu)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    for tool in ("make", os.environ.get("CC", "cc")):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    it = Runner()
    yield it
    it.pool.shutdown(cancel_futures=True)


def finish(parts: list[Future[Result]]) -> None:
    results = [part.result() for part in parts]
    for result in results:
        if result.code == 77:
            pytest.skip(result.output.strip().splitlines()[-1])
    print("\n".join(r.output for r in results))
    print(f"{sum(r.points for r in results)} points, {sum(r.failures for r in results)} failures")
    assert [r.code for r in results] == [0] * len(results), "\n".join(r.output[-4000:] for r in results if r.code)
    assert sum(r.points for r in results) > 1000


def test_a_death_after_every_instruction(runner: Runner) -> None:
    finish(runner.parts["step_kill"])


def test_two_processes_at_every_point(runner: Runner) -> None:
    finish(runner.parts["pairs"])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_mistake_is_found(runner: Runner, mutant: Mutant) -> None:
    result = runner.mutants[mutant.name].result()
    if result.code == 77:
        pytest.skip(result.output.strip().splitlines()[-1])
    hung = " and hung" if result.code == 2 else ""
    print(f"{mutant.name}: {result.failures} of {result.points} points failed{hung}")
    print(result.output)
    assert result.code in (1, 2), f"exit status {result.code}\n{result.output[-4000:]}"
    assert result.failures > 0 or result.code == 2
