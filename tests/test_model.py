"""The protocol as Promela models, `model/*.pml`, searched exhaustively by Spin.

Each configuration of SOUND must show no error in a search that was complete; each of MUTANTS, one mistake in a model,
and each of LIMITS, something known not to hold, must show one. SHMTENSOR_MODEL=full (`make model`) adds what takes
minutes.
"""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, cores, run_tool

MODELS = ROOT / "model"
BUILD = ROOT / "build" / "model"
FULL = os.environ.get("SHMTENSOR_MODEL") == "full"
SECONDS = 3600 if FULL else 600  #: for one program; a ceiling against hanging
MEGABYTES = 8000 if FULL else 2000
DEPTH = 100_000  # of the search; reaching it is an error

pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason="the models are not here (an installed package)")


@dataclass(frozen=True)
class Run:
    model: str
    name: str
    macros: str  #: "A B=2": -DA -DB=2
    many: bool = False  #: enough states that optimising the search pays


SOUND = [
    # The largest first, so that the cores finish together.
    Run("event", "two and two, nobody dies", "", many=True),
    Run("event", "two waiters taking two at once, impatient", "NP=1 NC=3 K=2 TAKE=2 CRASHES=1 IMPATIENT", many=True),
    Run("end", "two producers, two deaths", "K=2 CRASHES=2", many=True),
    Run("handoff", "two consumers, two deaths", "NC=2 CRASHES=2", many=True),
    Run("handoff", "a reclaimer that dies, two consumers", "NP=1 NC=2 NR=1 K=2 TRIES_MAX=1 CRASHES=3", many=True),
    Run("handoff", "two reclaimers that die", "NP=1 NC=2 NR=2 CRASHES=3", many=True),
    Run("handoff", "somebody joins under the id of the dead", "NP=1 NC=2 NJ=1 K=2 CRASHES=2", many=True),
    Run("handoff", "batches of two", "NP=1 NC=2 K=4 BATCH=2", many=True),
    Run("handoff", "batches of three", "NP=1 NC=2 K=3 SLOTS=3 BATCH=3"),
    Run("handoff", "two producers of batches", "K=2 BATCH=2 CRASHES=2"),
    Run("handoff", "two rounds", "K=2 CRASHES=2"),
    Run("handoff", "an item that kills two consumers is given up", "NP=1 NC=3 TRIES_MAX=1 CRASHES=3"),
    Run("handoff", "on_consumer_death=drop", "NP=1 NC=2 K=2 CRASHES=2 DROP"),
    Run("handoff", "aborts, leaving, stale handles", "NP=1 NC=2 K=2 ABORTS=1 LEAVE TWICE"),
    Run("handoff", "a pusher sleeps while the laps come round", "K=5 K1=1 LAPS=2 GENS=64 CRASHES=0"),
    Run("event", "two and two, impatient, a death", "ROUNDS=1 CRASHES=1 IMPATIENT"),
    Run("event", "wake-ups for two, two deaths", "ROUNDS=1 K=2 CRASHES=2 IMPATIENT"),
    Run("event", "a wake-up for three, two deaths", "NP=1 NC=3 ROUNDS=1 K=3 CRASHES=2"),
    Run("event", "the end comes early", "NP=1 ROUNDS=2 CRASHES=1 EARLY"),
    Run("event", "a watcher beside a waiter, a death", "NP=1 NC=1 NW=1 CRASHES=1"),
    Run("event", "a watcher's user takes what is left, a death", "NP=1 NC=1 NW=1 CRASHES=1 TAKER"),
    Run("end", "two consumers, two deaths", "NP=1 NC=2 CRASHES=2"),
    Run("end", "shutdown() at any moment", "NP=1 NC=2 K=2 CRASHES=1 SHUTDOWN SPARE=0"),
    Run("end", "one producer more than expected", "EXPECTED=1 CRASHES=1"),
    Run("end", "producers=0, ended by shutdown()", "EXPECTED=0 CRASHES=1 SHUTDOWN"),
    Run("end", "producers=0, ended by deaths", "EXPECTED=0 CRASHES=2"),
    Run("end", "two consumers come and die, the producer is told", "SURVIVOR=1 NP=1 NC=2 K=2 SLOTS=1 CRASHES=2"),
]
LARGER = [
    Run("handoff", "a reclaimer that dies, three deaths", "NR=1 K=2 CRASHES=3", many=True),
    Run("handoff", "two consumers, a reclaimer that dies, two deaths", "NC=2 NR=1 CRASHES=2", many=True),
    Run("handoff", "two consumers, two rounds, a death", "NC=2 K=2 CRASHES=1", many=True),
    Run("handoff", "two producers of batches, two consumers", "NC=2 K=2 BATCH=2 CRASHES=1", many=True),
    Run("handoff", "a joiner, two producers, two consumers", "NC=2 NJ=1 CRASHES=1", many=True),
    Run("event", "two and two, a death", "CRASHES=1", many=True),
    Run("event", "three consumers, impatient, a death", "NC=3 ROUNDS=1 CRASHES=1 IMPATIENT", many=True),
    Run("event", "two watchers beside a waiter, a death", "NP=1 NC=1 NW=2 ROUNDS=1 CRASHES=1", many=True),
    Run("event", "two producers, a watcher's user, a death", "NC=1 NW=1 ROUNDS=1 CRASHES=1 TAKER", many=True),
    Run("event", "wake-ups for two, two watchers", "NP=1 NC=1 NW=2 ROUNDS=1 K=2 TAKER", many=True),
    Run("end", "two and two, a death", "NC=2 CRASHES=1 SPARE=0", many=True),
    Run("end", "two consumers, one producer more than expected", "NC=2 EXPECTED=1 CRASHES=1 SPARE=0", many=True),
    Run("end", "looks in vain", "K=2 SPARE=2 CRASHES=1", many=True),
]
MUTANTS = [
    Run("handoff", "NO_ROLL_FORWARD", ""),
    Run("handoff", "TICKET_FIRST", ""),
    Run("handoff", "PUSH_BEFORE_PUBLISH", "CRASHES=0"),
    Run("handoff", "NO_RECHECK", "K=5 K1=1 LAPS=2 GENS=64 CRASHES=0"),
    Run("handoff", "SEQ_FIRST", "NP=1 NC=2"),
    Run("handoff", "RELEASE_ANY", "NP=1 K=2 TWICE CRASHES=0"),
    Run("handoff", "CLAIM_SAME_GEN", "NP=1 K=2 SLOTS=1 TWICE CRASHES=0"),
    Run("handoff", "REDELIVER_SAME_GEN", "NP=1 NC=2 NR=2 CRASHES=2"),
    Run("handoff", "REDELIVER_TO_NOBODY", "NP=1 NC=2 NR=1 CRASHES=2"),
    Run("handoff", "REDELIVER_ALL", "NP=1 NC=2 DROP"),
    Run("handoff", "NOT_FLAGGED", "NP=1 NC=2"),
    Run("handoff", "FOR_EVER", "NP=1 NC=3 TRIES_MAX=1 CRASHES=2"),
    Run("handoff", "NOBODY_FIRST", "NP=1 NR=1 CRASHES=2"),
    Run("handoff", "DISOWN_ANY", "NC=2"),
    Run("handoff", "NO_LOCK", "NP=1 NR=1 NJ=1"),
    Run("handoff", "NO_JOIN_RECLAIM", "NJ=1"),
    Run("event", "CLEAR_FIRST", "ROUNDS=1"),
    Run("event", "WAKE_ONE", "NP=1 ROUNDS=1 K=2"),
    Run("event", "NO_WAKE_ALL", "ROUNDS=1"),
    Run("event", "SAME_SEQ", "ROUNDS=1"),
    Run("event", "WAKE_FIRST", "NP=1 NC=1 ROUNDS=1"),
    Run("event", "W_AFTER_TRY", "NP=1 NC=1 ROUNDS=1"),
    Run("event", "NO_SECOND_TRY", "NP=1 NC=1 ROUNDS=1"),
    Run("event", "NO_LAST_TRY", "NP=1 ROUNDS=1 IMPATIENT"),
    Run("event", "NO_SLICE", "ROUNDS=1 CRASHES=1"),
    Run("event", "QUIET_END", "NP=1 NC=1 ROUNDS=1"),
    Run("event", "NO_PASS_ON", "NP=1 NC=1 NW=1 ROUNDS=1"),
    Run("event", "LOOK_FIRST", "NP=1 NC=1 NW=1 ROUNDS=1 TAKER"),
    Run("end", "LOOK_THEN_CLAIM", "EXPECTED=1"),
    Run("end", "SEARCH_THEN_SHUT", "EXPECTED=1"),
    Run("end", "ANY_READY", "EXPECTED=1"),
    Run("end", "LEFT_THEN_COUNT", "NP=1 CRASHES=1"),
    Run("end", "ROLE_GOES_FIRST", "NP=1 NC=2 CRASHES=2"),
    Run("end", "NO_LAST_TAKE", "NP=1 NC=2 CRASHES=1"),
    Run("end", "NO_LAST_RECLAIM", "NP=1 NC=2 CRASHES=1"),
    Run("end", "NO_IDLE", "SURVIVOR=1 NP=1 NC=2 SLOTS=1 K=2 CRASHES=1"),
]
#: What docs/protocol.md says does not hold, under "The models".
LIMITS = [
    Run("handoff", "without generations in the cells items are lost", "NP=1 NC=2 NR=2 CRASHES=2 GENS=1 DISORDER"),
    Run("handoff", "laps and generations that come round together", "K=5 K1=1 LAPS=2 GENS=1 CRASHES=0 DISORDER"),
    Run("end", "an item is being redelivered while the end is seen", "NP=1 NC=2 K=2 CRASHES=1 SHUTDOWN SPARE=0 STRICT"),
]


@dataclass(frozen=True)
class Result:
    errors: int
    states: int
    complete: bool
    output: str

    def __str__(self) -> str:
        return f"{self.states:,} states, {self.errors} errors"


def search(run: Run, mutant: bool) -> Result:
    macros = run.macros.split() + [f"MUTANT_{run.name}"] * mutant
    folder = BUILD / "-".join([run.model, *macros])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(MODELS / f"{run.model}.pml", folder)
    made = run_tool("spin", "-a", *[f"-D{m}" for m in macros], f"{run.model}.pml", cwd=folder, timeout=SECONDS)
    assert made.returncode == 0 and (folder / "pan.c").exists(), made.stdout
    optimise = "-O1" if run.many else "-O0"
    options = (optimise, "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEGABYTES}")
    built = run_tool("gcc", *options, "-o", "pan", "pan.c", cwd=folder, timeout=SECONDS)
    assert built.returncode == 0, built.stdout
    # In handoff and end, whoever has nothing more to do blocks, and a monitor looks at what is left when all do. In
    # event that is the deadlock to be found.
    blocked = [] if run.model == "event" else ["-E"]
    found = run_tool("./pan", *blocked, f"-m{DEPTH}", "-w24" if run.many else "-w20", cwd=folder, timeout=SECONDS)
    out = found.stdout
    errors, states = re.search(r"errors: (\d+)", out), re.search(r"(\d+) states, stored", out)
    assert errors and states, f"exit status {found.returncode}\n{out}"
    truncated = re.search(r"Search not completed|max search depth too small|out of memory|error:", out)
    full = "Full statespace search" in out and found.returncode == 0 and not truncated
    return Result(int(errors[1]), int(states[1]), full, out)


class Runner:
    def __init__(self, wanted: list[tuple[Run, bool]]) -> None:
        self.pool = ThreadPoolExecutor(cores())
        self.futures: dict[Run, Future[Result]] = {run: self.pool.submit(search, run, mutant) for run, mutant in wanted}

    def result(self, run: Run) -> Result:
        faulthandler.cancel_dump_traceback_later()  # a busy machine is not a hung one, and each search has its ceiling
        return self.futures[run].result()


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    for tool in ("spin", "gcc"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed (it is Debian's package {tool})")
    params = [getattr(item, "callspec", None) for item in request.session.items if item.module is request.module]
    wanted = [c.params["run"] for c in params if c and "run" in c.params]
    it = Runner([(run, run in MUTANTS) for run in wanted])
    yield it
    it.pool.shutdown(cancel_futures=True)


def title(run: Run) -> str:
    return f"{run.model}-{run.name.replace(' ', '-')}"


def tell(capsys: pytest.CaptureFixture[str], run: Run, result: Result) -> None:
    with capsys.disabled():
        print(f"\n  model/{run.model}.pml, {run.name}: {result}", end="")


@pytest.mark.parametrize("run", SOUND + LARGER * FULL, ids=title)
def test_every_state_is_sound(runner: Runner, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = runner.result(run)
    tell(capsys, run, result)
    assert result.errors == 0, result.output
    assert result.complete, result.output
    assert result.states > 10_000


@pytest.mark.parametrize("run", MUTANTS, ids=title)
def test_a_mistake_is_found(runner: Runner, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = runner.result(run)
    tell(capsys, run, result)
    assert result.errors >= 1, result.output


@pytest.mark.parametrize("run", LIMITS, ids=title)
def test_a_known_limit_is_one(runner: Runner, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = runner.result(run)
    tell(capsys, run, result)
    assert result.errors >= 1, result.output


@pytest.mark.parametrize("model", sorted(MODELS.glob("*.pml")), ids=lambda path: path.name)
def test_each_mutant_of_a_model_is_tried(model: Path) -> None:
    there = set(re.findall(r"\bMUTANT_(\w+)", model.read_text()))
    assert there == {run.name for run in MUTANTS if run.model == model.stem}
    assert len(there) >= 6


def test_each_macro_is_one_of_its_model() -> None:
    for run in SOUND + LARGER + MUTANTS + LIMITS:
        text = (MODELS / f"{run.model}.pml").read_text()
        for macro in run.macros.split():
            assert re.search(rf"#(ifn?def|if|elif) .*\b{macro.partition('=')[0]}\b", text), (run, macro)
