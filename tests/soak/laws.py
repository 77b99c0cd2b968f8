"""What must hold of a round's records, whoever died where: nothing is lost, torn, late or doubled unflagged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arena import UNRECORDED
from .crowd import Player
from .journal import ABORTED, CHANGED, INTENT, LETTING, LOST_LEASE, PUBLISHED, RELEASED, STALLED, TAKEN, TORN

TRIES_MAX = 3  #: an item whose consumers died so often is dropped with the next


@dataclass
class Verdict:
    figures: dict[str, int]
    broken: list[str] = field(default_factory=list)

    def require(self, true: bool, law: str) -> None:
        if not true:
            self.broken.append(law)


def judge(
    records: np.ndarray, writers: np.ndarray, ended: list[Player], stats: dict[str, int], policy: str, batch: int
) -> Verdict:
    """Args:
    writers: the instance that wrote each record; by now all of them have ended.
    ended: who they were, and where each was when it ended.
    stats: the buffer's own figures at the end.
    """
    key, kind, tries, time = records["key"], records["kind"], records["tries"].astype(np.int64), records["time"]

    def of(*kinds: int) -> np.ndarray:
        return key[np.isin(kind, kinds)]

    sure, begun, taken = of(PUBLISHED), of(INTENT), of(TAKEN)
    dead = {p.instance for p in ended if p.status != 0}
    # Taken by somebody who died before that was on record: what the core took back less what is known to have been
    # held, and no more than were killed in that place.
    held = len(of(TAKEN)) - len(of(LETTING))
    back = stats["redelivered"] + stats["dropped"]
    unrecorded = min(back - held, sum(p.phase in UNRECORDED and p.instance in dead for p in ended) * max(1, batch))
    v = Verdict(
        {
            "published": len(sure),
            "begun": len(begun),
            "taken": len(taken),
            "flagged": int((tries[kind == TAKEN] > 0).sum()),
            "torn": len(of(TORN)) + len(of(CHANGED)),
            "leases lost": len(of(LOST_LEASE)),
            "held at death": held,
            "unrecorded": unrecorded,
        }
    )
    v.require(back >= held, f"the dead held {held} items, of which {back} were taken back")

    v.require(len(of(TORN)) == 0, f"{len(of(TORN))} items were torn")
    v.require(len(of(CHANGED)) == 0, f"{len(of(CHANGED))} items changed under their readers")
    v.require(len(of(LOST_LEASE)) == 0, f"{len(of(LOST_LEASE))} living producers lost what they had claimed")
    v.require(len(np.unique(begun)) == len(begun), "the record itself is wrong: a key was used twice")

    strange = np.setdiff1d(taken, begun)
    aborted = np.intersect1d(taken, of(ABORTED))
    v.require(len(strange) == 0, f"{len(strange)} items were taken that nobody published ({len(aborted)} were aborted)")

    _check_deliveries(v, key, kind, tries, time, writers)
    _check_lost(v, key, kind, tries, sure, policy, unrecorded, stats["dropped"])
    _check_order(v, key, kind, tries, writers)
    _look_at_stalls(v, records)
    return v


def _look_at_stalls(v: Verdict, records: np.ndarray) -> None:
    """Figures, no law: how fast a loaded machine is says nothing. Of the waits of more than a second some were so long
    because the whole machine stood still, in some whoever waited was merely passed over, and in a standstill nobody got
    what was waited for."""
    key, kind, tries, time = (records[name] for name in ("key", "kind", "tries", "time"))
    names = ("waits over 1 s", "waits over 1 s of a paused machine", "standstills")
    v.figures.update(dict.fromkeys(names, 0))
    for which, progress in ((0, (INTENT, ABORTED)), (1, (TAKEN,))):
        when = np.sort(time[np.isin(kind, progress)].astype(np.int64))
        for i in np.flatnonzero((kind == STALLED) & (tries == which)).tolist():
            lasted, end = int(key[i]), int(time[i]) - 100_000  # it is put on record 0.1 s after it
            if lasted - 1000 * int(records["more"][i]) <= 1_000_000:
                v.figures[names[1]] += 1
                continue
            passed = np.searchsorted(when, end - 1000) - np.searchsorted(when, end - lasted)
            v.figures[names[0]] += 1
            v.figures[names[2]] += int(passed == 0)


def _check_deliveries(v: Verdict, key: Any, kind: Any, tries: Any, time: Any, writers: Any) -> None:
    """Each delivery of an item has a number of its own and comes after the death of whoever had the one before."""
    at = np.flatnonzero(kind == TAKEN)
    at = at[np.lexsort((tries[at], key[at]))]
    same = key[at][1:] == key[at][:-1]
    unflagged = int((same & (tries[at][1:] == tries[at][:-1])).sum())
    v.figures["unflagged"] = unflagged
    v.require(unflagged == 0, f"{unflagged} items were delivered twice without a flag")

    done = kind == RELEASED
    first_end = -highest_of(key[at], key[done], -tries[done], -TRIES_MAX)
    late = int((tries[at] > first_end).sum())
    v.figures["late"] = late
    v.require(late == 0, f"{late} items were delivered again after their release")

    ends = np.flatnonzero(
        np.diff(writers, append=-1)
    )  # the last record of each writer: they come one writer after another
    last_word = dict(zip(writers[ends].tolist(), time[ends].tolist(), strict=True))
    living = [
        (hex(key[a]), int(tries[a]), int(writers[b]), int(writers[a]))
        for b, a in zip(at[:-1][same].tolist(), at[1:][same].tolist(), strict=True)
        if last_word[int(writers[b])] > int(time[a])
    ]
    v.figures["from the living"] = len(living)
    v.require(not living, f"{len(living)} items were delivered again while their first reader lived: {living[:4]}")


def highest_of(wanted: np.ndarray, key: np.ndarray, tries: np.ndarray, otherwise: int) -> np.ndarray:
    """For each wanted key the highest of its tries."""
    order = np.lexsort((tries, key))
    key, tries = key[order], tries[order]
    at = np.searchsorted(key, wanted, side="right") - 1
    found = (at >= 0) & (key[at] == wanted) if len(key) else np.zeros(len(wanted), bool)
    return np.where(found, tries[at] if len(key) else 0, otherwise)


def _check_lost(
    v: Verdict, key: Any, kind: Any, tries: Any, sure: Any, policy: str, unrecorded: int, dropped: int
) -> None:
    """What was surely published was delivered, and its last delivery came to a release, or to the last permitted death,
    and then the core has counted it as dropped.

    Missing deliveries can only be those of consumers that died between taking an item and recording it.
    """
    taken, let_go = kind == TAKEN, kind == LETTING
    if policy == "drop":
        missing = np.setdiff1d(sure, key[taken])
        v.figures["lost"] = max(0, len(missing) - unrecorded)
        v.figures["dropped unseen"] = len(missing)
        v.require(not (tries[taken] > 0).any(), "an item was redelivered although it was to be dropped")
        twice = len(key[taken]) - len(np.unique(key[taken]))
        v.require(twice == 0, f"{twice} items were delivered twice although they were to be dropped")
        v.require(
            len(missing) <= unrecorded, f"{len(missing)} published items missing, {unrecorded} readers unrecorded"
        )
        return
    keys = np.union1d(sure, key[taken])
    highest = highest_of(keys, key[taken], tries[taken], -1)
    ended = highest_of(keys, key[let_go], tries[let_go], -2) == highest
    given_up = int((~ended).sum())
    v.require(given_up <= dropped, f"{given_up} items came to no end; the core has dropped {dropped}")
    unended = (~ended) & (highest < TRIES_MAX)
    needed = int((TRIES_MAX - highest[unended]).sum())
    v.figures["lost"] = max(0, given_up - dropped)
    v.figures["dropped unseen"] = int((highest[unended] < 0).sum())
    v.require(
        needed <= unrecorded,
        f"{int(unended.sum())} items came to no end, which takes {needed} unrecorded deaths of consumers; "
        f"there were {unrecorded}: {[hex(k) for k in keys[unended][:5]]}",
    )


def _check_order(v: Verdict, key: Any, kind: Any, tries: Any, writers: Any) -> None:
    """Of one producer's items each consumer sees those that come for the first time in their order."""
    at = np.flatnonzero((kind == TAKEN) & (tries == 0))
    stream = writers[at] << 32 | (key[at] >> 32).astype(np.int64)
    order = np.argsort(stream, kind="stable")
    stream, number = stream[order], (key[at] & 0xFFFF_FFFF).astype(np.int64)[order]
    reordered = int(((np.diff(stream) == 0) & (np.diff(number) <= 0)).sum())
    v.figures["reordered"] = reordered
    v.require(reordered == 0, f"{reordered} items came out of order")
