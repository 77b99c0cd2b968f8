"""The memory orders of csrc, checked by GenMC in every execution that a memory model allows: `model/weak/*.c`.

Each program includes files of csrc and must hold as they are, under RC11 and IMM. Then csrc is copied and one edge of
docs/protocol.md made weaker, which one of the programs must notice. docs/memory-order.md says for each edge what that
shows; where a weaker order is enough, and why, is tried here too. GenMC is found in $GENMC or on the PATH: `make weak`.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, run_tool

PROGRAMS = ROOT / "model" / "weak"
BUILD = ROOT / "build" / "weak"
SECONDS = 55
TURNS = 8  # of each loop: more bring no new executions, as test_no_loop_is_cut_short makes sure

pytestmark = pytest.mark.skipif(not PROGRAMS.is_dir(), reason="the models are not here (an installed package)")


@dataclass(frozen=True)
class Program:
    file: str
    macros: str = ""


@dataclass(frozen=True)
class Change:
    was: str
    becomes: str
    times: int = 1


@dataclass(frozen=True)
class Weaker:
    """An edge made weaker by changes of csrc, and the program that is about it."""

    edge: str
    what: str
    program: Program
    changes: tuple[Change, ...]


def order(was: str, order: str, times: int = 1) -> Change:
    """`was` with another memory order in its one atomic call; in C11's words where atomic.h has none."""
    call = re.search(r"shmt_(load|store|cas|or|sub|exchange)_(seq_cst|acq_rel|acquire|release)\(", was)
    assert call, was
    if call[1] in {"load", "store", "cas"}:
        return Change(was, was.replace(call[0], f"shmt_{call[1]}_{order}("), times)
    c11 = call[1] if call[1] == "exchange" else f"fetch_{call[1]}"
    return Change(
        was, re.sub(re.escape(call[0]) + r"([^,]+, \w+)\)", rf"atomic_{c11}_explicit(\1, memory_order_{order})", was)
    )


PAYLOAD, FIRST, REUSE = Program("payload.c"), Program("payload.c", "FIRST"), Program("payload.c", "REUSE")
RING = Program("ring.c")
PUSH_LAP = Program("ring.c", "LAP PUSHERS=2 TAKERS=0")
TAKE_LAP = Program("ring.c", "LAP PUSHERS=1 TAKERS=1")
READY, FREE = Program("event.c"), Program("event.c", "FREE")
SHUTDOWN, DIE, CONSUMER = (Program("end.c", macro) for macro in ("SHUTDOWN", "DIE", "CONSUMER"))
JOIN, CLOSE, RECLAIM, LAST = (Program("join.c", macro) for macro in ("JOIN", "CLOSE", "RECLAIM", "LAST"))
DEATH, LOCKED = Program("join.c", "DEATH"), Program("join.c", "DEATH LOCKED")
VIEWS, NEXT, UNMAP = (Program("views.c", macro) for macro in ("VIEWS", "NEXT", "UNMAP"))
LOG, TWO_LOGGERS = Program("log.c"), Program("log.c", "WRITERS=2")
SOUND = [
    PAYLOAD,
    FIRST,
    REUSE,
    RING,
    Program("ring.c", "TAKERS=1"),
    Program("ring.c", "PUSHERS=2 TAKERS=1"),
    PUSH_LAP,
    TAKE_LAP,
    READY,
    FREE,
    Program("event.c", "WAITERS=2"),
    Program("event.c", "WAITERS=2 FREE"),
    SHUTDOWN,
    Program("end.c", "CLOSE"),
    DIE,
    CONSUMER,
    JOIN,
    CLOSE,
    RECLAIM,
    LAST,
    Program("join.c", "ROLL"),
    Program("join.c", "ROLL UNPUSHED"),
    Program("join.c", "ROLL READING"),
    DEATH,
    LOCKED,
    VIEWS,
    NEXT,
    UNMAP,
    LOG,
    Program("log.c", "FOLLOW"),
    TWO_LOGGERS,
]

CHANGE = "return shmt_cas_seq_cst(&seg->slots[index].word, &from, to) ? 0 : -ESTALE;"
LOOK = "uint64_t seen = shmt_load_acquire(word);"
TAKE = "if (shmt_cas_acq_rel(word, &seen, mine)) {"
PROBE = "uint64_t word = shmt_load_seq_cst(&seg->slots[at].word);"
CLAIM = "if (shmt_cas_seq_cst(&seg->slots[at].word, &word, mine)) {"
PUSH = "if (shmt_cas_seq_cst(cell, &seen, shmt_cell(lap, gen, index))) {"
CELL = "uint64_t seen = shmt_load_seq_cst(&seg->cells[r & (ring - 1)]);"
WRITE_SEQ = "uint64_t p = shmt_load_seq_cst(&header->write_seq);"
WRITE_SEQ_ON = "shmt_cas_seq_cst(&header->write_seq, &p, p + 1);"
READ_SEQ = "uint64_t r = shmt_load_seq_cst(&header->read_seq);              /* O3"
SET_W = "shmt_or_seq_cst(&event->word, SHMT_EVENT_W)"
SEE_W = "uint32_t seen = shmt_load_seq_cst(&event->word);"
SEQ = "if (!shmt_cas_seq_cst(&event->word, &seen, seen + SHMT_EVENT_STEP)) {"
CLEAR_W = "if (shmt_cas_seq_cst(&event->word, &seen, (seen + SHMT_EVENT_STEP) & ~SHMT_EVENT_W)) {"
SHUT = "return shmt_load_seq_cst(&seg->header->shut) != 0;"
SET_SHUT = "shmt_or_seq_cst(&seg->header->shut, 1);"
SEARCH = (
    "/* N3 seq_cst: pairs with C3 in the claim. */\n        uint64_t word = shmt_load_seq_cst(&seg->slots[i].word);"
)
LOST = "uint32_t lost = shmt_load_seq_cst(&seg->header->producers_lost);"
SEEN = "uint32_t seen = shmt_load_seq_cst(&seg->header->consumers_seen);"
COUNT = Change(
    "shmt_add_seq_cst(&seg->header->consumers_seen, 1);", "shmt_add_relaxed(&seg->header->consumers_seen, 1);"
)
IDLE = Change("mask |= idle ? SHMT_IDLE : roles;", "mask |= idle ? 0 : roles;")
JOINED = "shmt_store_release(&seg->generation, shmt_fork_generation);"
ENTER = "if (SHMT_LIKELY(shmt_load_acquire(&seg->generation) == shmt_fork_generation)) {"
ONE_CLOSER = "if (shmt_exchange_acq_rel(&seg->closed, 1) != 0) {"
CLOSED = "shmt_store_release(&seg->generation, 0);"
BUSY = "if (shmt_exchange_acquire(&seg->reclaiming, 1) != 0) {"
NOT_BUSY = "shmt_store_release(&seg->reclaiming, 0); /* G1 */\n    if (taken"
CLOSE_BUSY = "if (shmt_exchange_acquire(&seg->reclaiming, 1) == 0) {"
CLOSE_NOT_BUSY = "        shmt_store_release(&seg->reclaiming, 0); /* G1 */\n    }"
LAST_VIEW = "if (shmt_load_acquire(&lease->refs) != 1 && shmt_sub_acq_rel(&lease->refs, 1) != 1) {"
UNUSED = "        shmt_store_relaxed(&lease->refs, 0); /* L2: before R2 in the release */\n"
RELEASE = (
    "        (void)shmt_slot_release(seg, &slot); /* lost, or a parent's seen from its child: not ours to release */\n"
)
FOUND = "uint64_t word = shmt_load_seq_cst(&seg->slots[i].word); /* A1: the compare-and-swap decides */"
RECORDED = "shmt_store_release(&cell->seq, p + 1);"
RECORD = "if (shmt_load_acquire(&cell->seq) != p + 1) {"
UNFINISHED = Change("    shmt_store_relaxed(&cell->seq, 0); ", "    ")
STILL = Change("bool whole = shmt_load_relaxed(&cell->seq) == p + 1 &&", "bool whole =")
NO_SUM = Change("sum == mix(mix(mix(mix(mix(p, who), word), tag), joined), found) && ", "")
WORDS = ("who", "word", "tag", "joined", "found")
WRITE = {word: order(f"shmt_store_release(&cell->{word}, {word});", "relaxed") for word in WORDS}
READ = {word: order(f"uint64_t {word} = shmt_load_acquire(&cell->{word});", "relaxed") for word in WORDS}
LAST_USER = "if (shmt_sub_acq_rel(&seg->refs, 1) == 1) {"


def one_view(load: str, sub: str) -> Change:
    become = LAST_VIEW.replace("load_acquire", f"load_{load}").replace(
        "shmt_sub_acq_rel(&lease->refs, 1)", f"atomic_fetch_sub_explicit(&lease->refs, 1, memory_order_{sub})"
    )
    return Change(LAST_VIEW, become)


WEAKER = [
    Weaker("P2", "neither publish nor push releases", FIRST, (order(CHANGE, "acquire"), order(PUSH, "acquire"))),
    Weaker("A2", "nothing acquires", FIRST, (order(TAKE, "release"), order(LOOK, "relaxed"), order(CELL, "relaxed"))),
    Weaker("A1", "a reclaimer does not acquire, and the kernel's lock neither", DEATH, (order(FOUND, "relaxed"),)),
    Weaker("R2", "release does not release", REUSE, (order(CHANGE, "acquire"),)),
    Weaker("R2", "release is not before the look at W", FREE, (order(CHANGE, "acq_rel"),)),
    Weaker("C1", "the second try is not after W", FREE, (order(PROBE, "acquire"),)),
    Weaker("C2", "nothing acquires", REUSE, (order(PROBE, "relaxed"), order(CLAIM, "release"))),
    Weaker("C3", "the claim is not before the look at shut", SHUTDOWN, (order(CLAIM, "acq_rel"),)),
    Weaker("C3", "the look at shut is not after the claim", SHUTDOWN, (order(SHUT, "acquire"),)),
    Weaker("N3", "shut is not before the search", SHUTDOWN, (order(SET_SHUT, "acq_rel"),)),
    Weaker("N3", "the search is not after shut", SHUTDOWN, (order(SEARCH, "acquire"),)),
    Weaker("O1", "the push does not release", RING, (order(PUSH, "acquire"),)),
    Weaker("O1", "the take does not acquire", RING, (order(CELL, "relaxed"),)),
    Weaker("O1", "the push is not before the look at W", READY, (order(PUSH, "acq_rel"),)),
    Weaker("O1", "the second try is not after W", READY, (order(CELL, "acquire"),)),
    Weaker("O2", "write_seq does not acquire", PUSH_LAP, (order(WRITE_SEQ, "relaxed"),)),
    Weaker("O2", "write_seq does not release", PUSH_LAP, (order(WRITE_SEQ_ON, "acquire", 3),)),
    Weaker("O3", "read_seq does not acquire", TAKE_LAP, (order(READ_SEQ, "relaxed"),)),
    Weaker("E1", "W is not before the second try", READY, (order(SET_W, "acq_rel"),)),
    Weaker("E1", "W is not before the second try, on the other side", FREE, (order(SET_W, "acq_rel"),)),
    Weaker("E2", "the look at W is not after the push", READY, (order(SEE_W, "acquire"),)),
    Weaker("E2", "the look at W is not after the release", FREE, (order(SEE_W, "acquire"),)),
    Weaker("M1", "joining does not release", JOIN, (order(JOINED, "relaxed"),)),
    Weaker("M1", "entering does not acquire", JOIN, (order(ENTER, "relaxed"),)),
    Weaker(
        "M2", "two closers, and both find it joined", CLOSE, (Change(ONE_CLOSER, "if (false) {"), Change(CLOSED, ""))
    ),
    Weaker("G1", "reclaiming does not acquire", RECLAIM, (order(BUSY, "relaxed"),)),
    Weaker("G1", "reclaiming does not release", RECLAIM, (order(NOT_BUSY, "relaxed"),)),
    Weaker("G1", "a closer does not acquire", LAST, (order(CLOSE_BUSY, "relaxed"),)),
    Weaker("G1", "a closer does not release", LAST, (order(CLOSE_NOT_BUSY, "relaxed"),)),
    Weaker("L1", "the last one does not acquire, alone", VIEWS, (one_view("relaxed", "acq_rel"),)),
    Weaker("L1", "the last one does not acquire, counted", VIEWS, (one_view("acquire", "release"),)),
    Weaker("L1", "the others do not release", VIEWS, (one_view("acquire", "acquire"),)),
    Weaker("L2", "the count goes after the slot", NEXT, (Change(UNUSED + RELEASE, RELEASE + UNUSED),)),
    Weaker("H1", "the last one does not acquire", UNMAP, (order(LAST_USER, "release"),)),
    Weaker("H1", "the others do not release", UNMAP, (order(LAST_USER, "acquire"),)),
    Weaker("N1", "the count of the lost does not acquire", DIE, (order(LOST, "relaxed"),)),
    Weaker("N4", "the count does not release, and idle members do not count", CONSUMER, (COUNT, IDLE)),
    Weaker("N4", "the count does not acquire, and idle members do not count", CONSUMER, (order(SEEN, "relaxed"), IDLE)),
    Weaker("D1", "a record does not release, and there is no sum", LOG, (order(RECORDED, "relaxed"), NO_SUM)),
    Weaker("D1", "its reader does not acquire, and there is no sum", LOG, (order(RECORD, "relaxed"), NO_SUM)),
    *(Weaker("D2", f"{word} does not release, and there is no sum", LOG, (WRITE[word], NO_SUM)) for word in WORDS),
    *(Weaker("D2", f"{word} does not acquire, and there is no sum", LOG, (READ[word], NO_SUM)) for word in WORDS),
    Weaker("D2", "seq stays while words change, and there is no sum", LOG, (UNFINISHED, NO_SUM)),
    Weaker("D2", "no second look at seq, and no sum", LOG, (STILL, NO_SUM)),
    Weaker("D2", "two writers in one cell, and no sum", TWO_LOGGERS, (NO_SUM,)),
]
#: Orders that nothing here depends on, since something else carries the same.
ENOUGH = [
    Weaker("P2", "the push releases as well", FIRST, (order(CHANGE, "acquire"),)),
    Weaker("A2", "the first look or the cell acquires as well", PAYLOAD, (order(TAKE, "release"),)),
    Weaker("A1", "the cell and the compare-and-swap acquire as well", PAYLOAD, (order(LOOK, "relaxed"),)),
    Weaker("A1", "the kernel's lock acquires as well", LOCKED, (order(FOUND, "relaxed"),)),
    Weaker("C2", "the first look acquires as well", PAYLOAD, (order(CLAIM, "release"),)),
    Weaker("E3", "the kernel's lock orders", READY, (order(SEQ, "relaxed"), order(CLEAR_W, "relaxed"))),
    Weaker("M2", "the registry's lock keeps the second closer out", CLOSE, (Change(ONE_CLOSER, "if (false) {"),)),
    Weaker("N4", "an idle member counts as one who may come", CONSUMER, (COUNT,)),
    Weaker("D1", "the sum tells", LOG, (order(RECORDED, "relaxed"), order(RECORD, "relaxed"))),
    Weaker("D2", "the sum tells", LOG, (*WRITE.values(), *READ.values(), UNFINISHED, STILL)),
    Weaker(
        "D2",
        "the sum tells, without D1 too",
        LOG,
        (*WRITE.values(), *READ.values(), order(RECORDED, "relaxed"), order(RECORD, "relaxed")),
    ),
    Weaker("D2", "one writer at a time needs no sum", LOG, (NO_SUM,)),
]


@pytest.fixture(scope="module")
def genmc() -> str:
    path = os.environ.get("GENMC") or shutil.which("genmc")
    if not path:
        pytest.skip("GenMC is not here: set GENMC to its path (https://github.com/MPI-SWS/genmc, v0.10; needs LLVM)")
    assert shutil.which(path), f"GENMC={path} is no program"
    return path


@dataclass(frozen=True)
class Result:
    code: int
    output: str

    @property
    def complete(self) -> int:
        found = re.search(r"complete executions explored: (\d+)", self.output)
        return int(found[1]) if found else 0


def check(genmc: str, program: Program, csrc: Path, model: str = "rc11", turns: int = TURNS) -> Result:
    command = [genmc, f"--{model}", "--disable-mm-detector", "--disable-estimation", f"--unroll={turns}", "--"]
    command += [f"-I{csrc}", f"-I{PROGRAMS}", "-D_GNU_SOURCE", *[f"-D{m}" for m in program.macros.split()]]
    command += [str(PROGRAMS / program.file)]
    done = run_tool(*command, timeout=SECONDS)
    return Result(done.returncode, done.stdout)


def places(change: Change, texts: dict[Path, str]) -> None:
    found = sum(text.count(change.was) for text in texts.values())
    assert found == change.times, f"{change.was} is found {found} times in csrc; the list needs care"


def weaken(weaker: Weaker) -> Path:
    """A copy of csrc with the changes."""
    folder = BUILD / re.sub(r"\W+", "-", f"{weaker.edge} {weaker.what}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", folder)
    for change in weaker.changes:
        texts = {path: path.read_text() for path in sorted(folder.glob("*.[ch]"))}
        places(change, texts)
        for path, text in texts.items():
            path.write_text(text.replace(change.was, change.becomes))
    return folder


def title(case: Program | Weaker) -> str:
    if isinstance(case, Weaker):
        return f"{case.edge}-{case.what.replace(' ', '-')}"
    return f"{case.file}-{case.macros.replace(' ', '-')}"


@pytest.mark.parametrize("program", SOUND, ids=title)
@pytest.mark.parametrize("model", ["rc11", "imm"])
def test_every_execution_is_sound(genmc: str, program: Program, model: str) -> None:
    result = check(genmc, program, ROOT / "csrc", model)
    print(f"{title(program)}: {result.complete} executions")
    assert result.code == 0 and "No errors were detected." in result.output, result.output
    assert result.complete > 1


@pytest.mark.parametrize("program", SOUND, ids=title)
def test_no_loop_is_cut_short(genmc: str, program: Program) -> None:
    few, many = (check(genmc, program, ROOT / "csrc", turns=turns).complete for turns in (TURNS, TURNS + 3))
    assert few == many > 1


@pytest.mark.parametrize("weaker", WEAKER, ids=title)
def test_a_weaker_edge_is_noticed(genmc: str, weaker: Weaker) -> None:
    result = check(genmc, weaker.program, weaken(weaker))
    assert result.code == 42, result.output  # GenMC's exit status for an error of the program
    assert re.search(r"^Error: (Non-atomic race|Safety violation)!", result.output, re.MULTILINE), result.output


@pytest.mark.parametrize("weaker", ENOUGH, ids=title)
def test_what_else_carries_it(genmc: str, weaker: Weaker) -> None:
    result = check(genmc, weaker.program, weaken(weaker))
    assert result.code == 0 and "No errors were detected." in result.output, result.output


def test_the_changes_fit_the_source() -> None:
    """Without GenMC as well, so that the lists do not fall behind csrc."""
    texts = {path: path.read_text() for path in sorted((ROOT / "csrc").glob("*.[ch]"))}
    for weaker in WEAKER + ENOUGH:
        assert weaker.program in SOUND
        for change in weaker.changes:
            places(change, texts)
