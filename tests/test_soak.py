"""A short share of each soak, and its laws held against records that break them. The long runs: ``make soak``.

Each part runs in a process of its own, because it forks thousands of times and this one has torch loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from soak.arena import At
from soak.crowd import Player
from soak.journal import (
    ABORTED,
    CHANGED,
    INTENT,
    LETTING,
    LOST_LEASE,
    PUBLISHED,
    RECORD,
    RELEASED,
    STALLED,
    TAKEN,
    TORN,
)
from soak.laws import Verdict, judge
from support import environment


def soak(part: str, *args: str, **minimum: int) -> dict[str, Any]:
    """Runs it; its figures. ``minimum``: below this much it would have shown nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", part, *args],
        env=environment(),
        cwd=os.getcwd(),
        capture_output=True,
        text=True,
        timeout=115,
    )
    print(done.stdout)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for name, amount in minimum.items():
        assert figures[name] >= amount
    return figures


def test_kills() -> None:
    figures = soak("kills", "--kills", "10000", "--seconds", "30", kills=50, published=1000)
    assert figures["lost"] == figures["unflagged"] == figures["torn"] == figures["leaked"] == figures["reordered"] == 0


def test_kills_in_the_middle_of_verbs() -> None:
    figures = soak("storm", "--kills", "10000", "--seconds", "14", kills=20, published=10_000)
    assert figures["lost"] == figures["unflagged"] == figures["torn"] == figures["leaked"] == figures["reordered"] == 0


def test_recovery() -> None:
    """Whoever needs what a dead process held has it after at most ten slices of a wait, however slow the machine is."""
    figures = soak("recovery", "--episodes", "1000", "--seconds", "9")
    assert figures["deaths with everything in hand"] >= 10
    assert max(map(int, figures["slices slept"])) <= 10


def test_stops() -> None:
    figures = soak("stops", "--stops", "10000", "--seconds", "4", stops=20)
    assert figures["false reclaims"] == figures["lost"] == figures["unflagged"] == 0
    assert figures["published"] == figures["taken"] > 0


def test_massacres() -> None:
    figures = soak("massacre", "--massacres", "1000", "--seconds", "3", massacres=10)
    assert figures["files left"] == 0


def test_a_long_stream() -> None:
    soak("long", "--handoffs", "2000000", handoffs=2_000_000)


def test_namespaces() -> None:
    figures = soak("namespaces", "--meetings", "1")
    assert figures["deaths"] == 2 * (figures["forks with slots in hand"] // 4)


# ---- the laws -------------------------------------------------------------------------------------------------------

#: An item that goes as it should: made by 1, read by 2, who died; read again by 3.
ONCE = [(1, INTENT, 0, 1), (1, PUBLISHED, 0, 3), (2, TAKEN, 0, 4)]
AGAIN = [(3, TAKEN, 1, 9), (3, LETTING, 1, 10), (3, RELEASED, 1, 11)]
KEY = 1 << 32


def verdict_of(
    rows: list[tuple[int, int, int, int]],
    *,
    policy: str = "redeliver",
    back: int = 1,
    dropped: int = 0,
    unrecorded: int = 0,
    keys: tuple[int, ...] = (),
    more: int = 0,
) -> Verdict:
    """``rows``: (writer, kind, tries, time) of one item, or of those in ``keys``; ``back``: what the core took back,
    ``dropped`` of it being given up."""
    named = [*keys, *[KEY] * (len(rows) - len(keys))]
    table = sorted(zip(rows, named, strict=True), key=lambda r: r[0][0])
    records = np.array([(key, time, kind, tries, more) for (_, kind, tries, time), key in table], RECORD)
    writers = np.array([row[0] for row, _ in table])
    ended = [Player(0, 0, 2, "taker", status=9, phase=At.HOLDING)]
    ended += [Player(0, 0, 90 + i, "taker", status=9, phase=At.ACQUIRED) for i in range(unrecorded)]
    return judge(records, writers, ended, {"redelivered": back - dropped, "dropped": dropped}, policy, 0)


def test_what_is_right_is_no_breach() -> None:
    assert verdict_of(ONCE + AGAIN).broken == []
    assert verdict_of([*ONCE, (2, LETTING, 0, 5), (2, RELEASED, 0, 6)], back=0).broken == []
    assert verdict_of([(1, INTENT, 0, 1)], back=0).broken == [], "killed before it could publish"
    assert verdict_of(ONCE, policy="drop").broken == []
    assert verdict_of(ONCE[:2], policy="drop", unrecorded=1).broken == [], "its reader died first"
    assert verdict_of(ONCE, back=4, dropped=1, unrecorded=3).broken == [], "dropped after three more"


@pytest.mark.parametrize(
    ("rows", "law"),
    [
        (ONCE[:2], "came to no end"),
        (ONCE, "came to no end"),
        ([*ONCE, *[(w, k, 0, t) for w, k, _, t in AGAIN]], "without a flag"),
        ([*ONCE, (2, LETTING, 0, 5), (2, RELEASED, 0, 6), *AGAIN], "after their release"),
        ([*ONCE, (2, LETTING, 0, 12), *AGAIN], "while their first reader lived"),
        ([*ONCE, *AGAIN, (3, TORN, 0, 12)], "torn"),
        ([*ONCE, *AGAIN, (3, CHANGED, 0, 12)], "changed under"),
        ([*ONCE, *AGAIN, (3, LOST_LEASE, 0, 12)], "lost what they had claimed"),
        ([(2, TAKEN, 0, 4), *AGAIN], "nobody published"),
        ([(1, ABORTED, 0, 1), (2, TAKEN, 0, 4), *AGAIN], "1 were aborted"),
        ([ONCE[0], *ONCE, *AGAIN], "the record itself"),
    ],
)
def test_a_breach_is_found(rows: list[tuple[int, int, int, int]], law: str) -> None:
    assert [b for b in verdict_of(rows).broken if law in b], verdict_of(rows).broken


def test_a_breach_of_drop_is_found() -> None:
    for rows, law in ((ONCE + AGAIN, "redelivered although"), (ONCE[:2], "missing")):
        broken = verdict_of(rows, policy="drop").broken
        assert [b for b in broken if law in b], broken


def test_what_the_dead_held_and_nobody_took_back_is_found() -> None:
    broken = verdict_of(ONCE + AGAIN, back=0).broken
    assert [b for b in broken if "taken back" in b], broken


def test_standstills_are_told_from_waits() -> None:
    """Of three seconds: nobody published; others did; the machine was not there for two and a half of them."""
    rows = [(1, INTENT, 0, 500_000), (1, PUBLISHED, 0, 500_001), (2, TAKEN, 0, 500_002), (2, LETTING, 0, 500_003)]
    stall = (4, STALLED, 0, 4_000_000)
    passed = (5, INTENT, 0, 2_000_000)
    for also, more, expected in (([], 0, (1, 1)), ([passed], 0, (1, 0)), ([], 2500, (0, 0))):
        v = verdict_of([stall, *also, *rows], back=0, keys=(3_000_000, *[KEY + 1 for _ in also]), more=more)
        assert v.broken == []
        assert (v.figures["waits over 1 s"], v.figures["standstills"]) == expected
        assert v.figures["waits over 1 s of a paused machine"] == (more > 0)


def test_disorder_is_found() -> None:
    rows = [
        (1, INTENT, 0, 1),
        (1, INTENT, 0, 1),
        (3, TAKEN, 0, 5),
        (3, LETTING, 0, 6),
        (3, TAKEN, 0, 7),
        (3, LETTING, 0, 8),
    ]
    in_order = verdict_of(rows, back=0, keys=(KEY, KEY + 1, KEY, KEY, KEY + 1, KEY + 1))
    assert in_order.broken == []
    disorder = verdict_of(rows, back=0, keys=(KEY, KEY + 1, KEY + 1, KEY + 1, KEY, KEY))
    assert [b for b in disorder.broken if "out of order" in b], disorder.broken
