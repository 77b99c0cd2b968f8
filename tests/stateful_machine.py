"""A buffer under random sequences of its verbs, beside a plain model of what each slot must be doing: a state machine
for hypothesis, run by test_stateful.py in processes of its own.

The model knows three things: what is in each slot (None, or a Held), the queue of published items, and for each name
that is alive what its bytes must be. A view's *twin* is a numpy array of ours to which the same was done, so that a
slice of a slice of a torch view still knows its bytes. A Held of a reader has its slots as long as one name is left.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import itertools
import json
import os
import pickle
import random
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import reduction
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from stateful_views import ALIASES, VIEWS, fill, raw
from support import leaves_nothing, unique_name

import shmtensor as st
import shmtensor.segments

SPECS: dict[str, Any] = {
    "single": ((6,), "int64"),
    "named": {"a": ((4, 3), "int32"), "b": ((), "float64")},
    "dynamic": {"x": st.Field((None,), "int64", max_shape=8), "y": ((None, 2), "uint8")},
}
FREE, WRITING, READY, READING = range(4)
TRIES_MAX = 3
seen: Counter[str] = Counter()  #: what this process did, to show that a run did something

Actions = list[tuple[int, Callable[["Machine"], Any], Callable[..., None], dict[str, Any]]]
ACTIONS: Actions = []  #: weight, whether it can be done now, how, bounds of its arguments

WHICH = 1000  #: of what there is, taken modulo its number
SIZES = [(x, y) for x in range(9) for y in (0, 1, 5, 40)]  #: of the fields of a dynamic item


def action(weight: int, can: Callable[[Machine], Any], **bounds: Any) -> Callable[[Any], Any]:
    """Each argument is one of a list, or an int below its bound. Not hypothesis's own rules: those it leaves out at
    random, and what is left of a life of a slot is mostly claims."""

    def add(method: Any) -> Any:
        ACTIONS.append((weight, can, method, bounds))
        return method

    return add


def always(m: Machine) -> bool:
    return True


def has(*kinds: str, state: int | None = None) -> Callable[[Machine], bool]:
    return lambda m: m.pick(0, *kinds, state=state) is not None


def can_claim(m: Machine) -> Any:  # and at times where it cannot be
    return m.count % 8 == 0 or (m.free() and not m.shut)


def can_acquire(m: Machine) -> Any:
    return m.count % 8 == 0 or m.queue or not m.names


@dataclass
class Item:
    """One published item, in the queue or handed out."""

    index: int
    arrays: dict[str, np.ndarray]
    tag: int = 0
    tries: int = 0


@dataclass(eq=False)
class Held:
    """Slots that are ours, by a claim or by an acquire."""

    indices: list[int]
    owner: int
    state: int
    arrays: dict[str, np.ndarray]  #: what they must contain; of a batch with one dimension more; of a claim {} at first
    names: set[int] = field(default_factory=set)
    handed_out: list[np.ndarray] = field(default_factory=list)  #: a writer's arrays, kept by its user


@dataclass(eq=False)
class Name:
    """Something that a user's program keeps in a variable."""

    thing: Any
    kind: str  #: slot, numpy, torch, memory, opaque
    held: Held | None  #: None: nothing, any more
    twin: np.ndarray | None = None
    single: bool = True  #: of slots: not a batch
    strict: bool = False
    tag: int = 0


def item_of(kind: str, number: int, sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays in which each word says which item it belongs to."""
    if kind == "single":
        return {"": np.arange(6) + number * 1000}
    if kind == "named":
        return {"a": (np.arange(12) + number * 100).astype("i4").reshape(4, 3), "b": np.array(number + 0.5)}
    x, y = sizes
    return {"x": np.arange(x) + number * 1000, "y": (np.arange(2 * y) * 7 + number * 13).astype("u1").reshape(y, 2)}


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, Name] = {}
        self.cycles: list[Name] = []  # of dropped names that only a collection frees
        self.stale: list[Any] = []  # a writer's views, kept after the end
        self.queue: list[Item] = []
        self.buffers: list[st.TensorBuffer] = []
        self.numbers = itertools.count(1)
        self.keys = itertools.count()
        self.shut = False
        self.count = 0
        self.forked = 0
        self.guard = leaves_nothing(of_others=False)
        self.guard.__enter__()
        gc.disable()

    @initialize(
        kind=some.sampled_from(list(SPECS)),
        slots=some.integers(1, 5),
        drop=some.sampled_from([False, False, True]),
        named=some.booleans(),
    )
    def create(self, kind: str, slots: int, drop: bool, named: bool) -> None:
        self.kind, self.drop_policy = kind, drop
        self.buffers = [
            st.TensorBuffer.create(
                SPECS[kind],
                slots=slots,
                name=unique_name() if named else None,
                members=16,
                producers=1000,  # more than there will be: the stream ends by shutdown() only
                spin_us=0,
                max_slot_nbytes=1 << 16 if kind == "dynamic" else None,
                on_consumer_death="drop" if drop else "redeliver",
            )
        ]
        self.slots: list[Held | None] = [None] * slots

    @rule(seed=some.integers(0, 2**64 - 1))
    def step(self, seed: int) -> None:
        numbers = random.Random(seed)  # hypothesis's own are mostly small, and often the last ones again
        ready = [a for a in ACTIONS if a[1](self)]
        ((_, _, method, bounds),) = numbers.choices(ready, [a[0] for a in ready])
        arguments = {
            name: numbers.randrange(bound) if isinstance(bound, int) else numbers.choice(bound)
            for name, bound in bounds.items()
        }
        note(f"    {method.__name__}(**{arguments})")
        seen[method.__name__] += 1
        method(self, **arguments)

    # ---- the model

    def buffer(self, i: int) -> st.TensorBuffer:
        return self.buffers[i % len(self.buffers)]

    def free(self) -> int:
        ready = {item.index for item in self.queue}
        return sum(held is None and i not in ready for i, held in enumerate(self.slots))

    def expected(self) -> list[tuple[int, int | None]]:
        """(state, owner) of each slot; None: any owner."""
        ready = {item.index for item in self.queue}
        return [
            (held.state, held.owner) if held is not None else (READY, None) if i in ready else (FREE, 0)
            for i, held in enumerate(self.slots)
        ]

    def keep(self, name: Name) -> Name:
        key = next(self.keys)
        self.names[key] = name
        if name.held is not None:
            name.held.names.add(key)
        return name

    def forget(self, key: int) -> None:
        """The name is gone, and with the last of them the slots."""
        held = self.names.pop(key).held
        if held is not None:
            self.let_go(held, key)

    def let_go(self, held: Held, key: int) -> None:
        held.names.discard(key)
        if not held.names:
            for i in held.indices:
                self.slots[i] = None

    def pick(self, i: int, *kinds: str, state: int | None = None) -> int | None:
        keys = [
            k
            for k, n in self.names.items()
            if n.kind in kinds and (state is None or (n.held is not None and n.held.state == state))
        ]
        return keys[i % len(keys)] if keys else None

    def at(self, i: int, *kinds: str, state: int | None = None) -> Name:
        key = self.pick(i, *kinds, state=state)
        assert key is not None
        return self.names[key]

    def take(self, indices: list[int], owner: int, state: int, arrays: dict[str, np.ndarray]) -> Held:
        held = Held(indices, owner, state, arrays)
        for i in indices:
            assert self.expected()[i] == (FREE, 0), f"slot {i} was not free"
            self.slots[i] = held
        return held

    # ---- producer

    def could_not_claim(self, error: Exception | None) -> None:
        if self.shut:
            assert isinstance(error, st.ShutDown), error
        else:
            assert error is None or isinstance(error, (TimeoutError, st.PeersGone)), error
            assert self.free() == 0, "a claim found nothing, and there is a free slot"

    @action(6, can_claim, b=WHICH, wait=2, n=4, sizes=[None, *SIZES])
    def claim(self, b: int, wait: bool, n: int, sizes: tuple[int, int] | None) -> None:
        buffer = self.buffer(b)
        error = slot = None
        try:
            if n and self.kind != "dynamic":
                slot = buffer.claim_many(n, timeout=0)
            else:
                slot = buffer.claim(timeout=0) if wait else buffer.try_claim()
        except (TimeoutError, st.ShmError) as e:
            error = e
        if slot is None:
            return self.could_not_claim(error)
        single = isinstance(slot, st.Slot)
        count = 1 if single else len(slot)
        assert 1 <= count <= max(n, 1)
        first = slot.index if single else int(repr(slot).split("from ")[1].split()[0])
        held = self.take(list(range(first, first + count)), buffer._member, WRITING, {})
        name = self.keep(Name(slot, "slot", held, single=single))
        if sizes is not None:
            self.fill(name, b, sizes, False)

    @action(3, has("slot", state=WRITING), i=WHICH, how=WHICH, sizes=SIZES, keep=2)
    def write(self, i: int, how: int, sizes: tuple[int, int], keep: bool) -> None:
        self.fill(self.at(i, "slot", state=WRITING), how, sizes, keep)

    def fill(self, name: Name, how: int, sizes: tuple[int, int], keep: bool) -> None:
        assert name.held is not None
        slot, held = name.thing, name.held
        items = [item_of(self.kind, next(self.numbers), sizes) for _ in held.indices]
        arrays = items[0] if name.single else {p: np.stack([it[p] for it in items]) for p in items[0]}
        if how % 3 == 0 or (self.kind == "dynamic" and how % 3 == 1):
            slot.write(arrays[""] if self.kind == "single" else arrays)
        else:
            for path, array in arrays.items():
                if self.kind == "dynamic":
                    view = slot.empty(path, array.shape)
                else:
                    view = slot.numpy(path or None) if name.single or path else slot.numpy()
                view[...] = array
                if keep:
                    held.handed_out.append(view)
        held.arrays = {p: a.copy() for p, a in arrays.items()}
        if name.single:
            name.tag = slot.tag = next(self.numbers)

    @action(6, has("slot", state=WRITING), i=WHICH, count=4)
    def publish(self, i: int, count: int) -> None:
        name = self.at(i, "slot", state=WRITING)
        held = name.held
        assert held is not None
        if not held.arrays:
            if self.kind == "dynamic":
                try:
                    name.thing.publish()
                except ValueError:
                    return
                raise AssertionError("an item without a shape was published")
            return self.abort(i)
        published = len(held.indices) if name.single else min(count, len(held.indices))
        name.thing.publish() if name.single else name.thing.publish(published)
        for k, index in enumerate(held.indices):
            self.slots[index] = None
            if k < published:
                arrays = {p: a if name.single else np.array(a[k]) for p, a in held.arrays.items()}
                self.queue.append(Item(index, arrays, name.tag))
                seen["published"] += 1
        self.ended(name)

    def ended(self, name: Name) -> None:
        """A slot that is over, and the name bound to it."""
        held, name.held = name.held, None
        assert held is not None
        held.names.clear()
        assert not any(view.flags.writeable for view in held.handed_out), (
            "a writer's array can be written after the end"
        )
        self.stale += held.handed_out

    @action(1, has("slot", state=WRITING), i=WHICH)
    def abort(self, i: int) -> None:
        name = self.at(i, "slot", state=WRITING)
        assert name.held is not None
        name.thing.abort()
        for index in name.held.indices:
            self.slots[index] = None
        self.ended(name)

    @action(
        1,
        lambda m: any(n.kind == "slot" and n.held is None for n in m.names.values()),
        i=WHICH,
        verb=["publish", "abort", "release", "write"],
    )
    def too_late(self, i: int, verb: str) -> None:
        """Nothing can be done with a slot that is over."""
        over = [n for n in self.names.values() if n.kind == "slot" and n.held is None]
        slot = over[i % len(over)].thing
        try:
            slot.write(0) if verb == "write" else getattr(slot, verb)()
        except ValueError:
            return
        raise AssertionError(f"{verb} of a slot that was over")

    @action(4, can_claim, b=WHICH, n=[*range(1, 4)], sizes=SIZES)
    def put(self, b: int, n: int, sizes: tuple[int, int]) -> None:
        for _ in range(n):
            arrays = item_of(self.kind, next(self.numbers), sizes)
            before = self.states()
            try:
                self.buffer(b).put(arrays[""] if self.kind == "single" else arrays, timeout=0)
            except (TimeoutError, st.ShmError) as e:
                return self.could_not_claim(e)
            self.queue.append(Item(self.became(before, READY), arrays))

    def states(self) -> list[int]:
        return [s for s, *_ in self.buffers[0]._slot_states()]

    def became(self, before: list[int], state: int) -> int:
        (index,) = [i for i, (was, now) in enumerate(zip(before, self.states(), strict=True)) if was != now]
        assert before[index] == FREE and self.states()[index] == state
        return index

    # ---- consumer

    def could_not_acquire(self, error: Exception | None) -> None:
        assert not self.queue, "an acquire found nothing, and there is an item"
        if self.shut and not any(h is not None and h.state == WRITING for h in self.slots):
            assert isinstance(error, st.ShutDown), error
        else:
            assert error is None or isinstance(error, TimeoutError), error

    def oldest(self, n: int, owner: int, *, batch: bool = False) -> Held:
        items, self.queue[:n] = self.queue[:n], []
        indices = [item.index for item in items]
        assert indices == list(range(indices[0], indices[0] + n))
        paths = items[0].arrays
        arrays = {p: np.stack([it.arrays[p] for it in items]) for p in paths} if batch else items[0].arrays
        seen["acquired"] += n
        return self.take(indices, owner, READING, {p: a.copy() for p, a in arrays.items()})

    @action(8, can_acquire, b=WHICH, wait=2, strict=2, n=4)
    def acquire(self, b: int, wait: bool, strict: bool, n: int) -> None:
        buffer = self.buffer(b)
        error = slot = None
        batch = n > 0 and self.kind != "dynamic"
        try:
            if batch:
                slot = buffer.acquire_many(n, timeout=0)
            else:
                slot = buffer.acquire(timeout=0, strict=strict) if wait else buffer.try_acquire(strict=strict)
        except (TimeoutError, st.ShmError) as e:
            error = e
        if slot is None:
            return self.could_not_acquire(error)
        if not batch:
            oldest = self.queue[0]
            assert (slot.index, slot.tag, slot.redelivered) == (oldest.index, oldest.tag, oldest.tries)
        count = len(slot) if batch else 1
        assert 1 <= count <= max(n, 1)
        held = self.oldest(count, buffer._member, batch=batch)
        self.keep(Name(slot, "slot", held, single=not batch, strict=strict and not batch))

    @action(5, can_acquire, b=WHICH, copy=2, torch=2, n=4)
    def get(self, b: int, copy: bool, torch: bool, n: int) -> None:
        buffer = self.buffer(b)
        torch = torch and "torch view" in VIEWS
        try:
            if n:
                got = buffer.get_many(n, timeout=0, copy=copy, torch=torch)
                assert 1 <= len(got) <= n
            else:
                got = [buffer.get(timeout=0, copy=copy, torch=torch)]
        except (TimeoutError, st.ShmError) as e:
            return self.could_not_acquire(e)
        for item in got:
            held = self.oldest(1, buffer._member)
            views = {"": item} if self.kind == "single" else item
            for path, view in views.items():
                twin = held.arrays[path]
                assert raw(view) == raw(twin) and tuple(view.shape) == twin.shape
                if not copy:
                    self.keep(Name(view, "torch" if torch else "numpy", held, twin))
            if copy:
                self.slots[held.indices[0]] = None

    @action(6, has("slot", state=READING), i=WHICH, how=WHICH, p=WHICH)
    def view(self, i: int, how: int, p: int) -> None:
        name = self.at(i, "slot", state=READING)
        assert name.held is not None
        paths = list(name.held.arrays)
        path = paths[p % len(paths)]
        ways = [way for way in VIEWS.values() if not way[2] or (self.kind == "single" and name.single)]
        if self.kind == "single" and not name.single:
            ways = ways[:1]
        kind, make, _ = ways[how % len(ways)]
        view = make(name.thing, path) if path else make(name.thing)
        self.keep(Name(view, kind, name.held, name.held.arrays[path] if kind != "opaque" else None))

    @action(10, has("numpy", "torch", "memory"), i=WHICH, how=WHICH, a=5, s=[*range(1, 4)])
    def alias(self, i: int, how: int, a: int, s: int) -> None:
        name = self.at(i, "numpy", "torch", "memory")
        ways = [way for way in ALIASES.values() if way[0] == name.kind]
        _, kind, make, twin_of = ways[how % len(ways)]
        try:
            view = make(name.thing, a, s)
            twin = twin_of(name.twin, a, s) if twin_of is not None else None
        except (NotImplementedError, RuntimeError, ValueError, TypeError, BufferError):
            return  # numpy or torch does not make such an alias of such a view
        seen["aliases"] += 1
        self.keep(Name(view, kind, name.held, twin))

    @action(2, has("numpy", "torch", state=READING), i=WHICH, value=256)
    def scribble(self, i: int, value: int) -> None:
        """An acquired slot is exclusive: what one view writes, the others show."""
        name = self.at(i, "numpy", "torch", state=READING)
        fill(name.thing, value)
        assert name.twin is not None
        name.twin[...] = value

    @action(4, has("slot", state=READING), i=WHICH, block=2)
    def release(self, i: int, block: bool) -> None:
        key = self.pick(i, "slot", state=READING)
        assert key is not None
        name = self.names[key]
        held = name.held
        assert held is not None
        try:
            if block:
                with name.thing:
                    pass
            else:
                name.thing.release()
        except BufferError:
            assert name.strict and held.names != {key}
            return
        assert not name.strict or held.names == {key}
        name.held = None
        self.let_go(held, key)

    # ---- names

    @action(5, lambda m: m.names, i=WHICH, n=[*range(1, 5)])
    def drop(self, i: int, n: int) -> None:
        for _ in range(min(n, len(self.names))):
            key = list(self.names)[i % len(self.names)]
            held = self.names[key].held
            if held is not None and held.state == WRITING:  # a claimed slot that is forgotten is aborted
                for index in held.indices:
                    self.slots[index] = None
            self.forget(key)

    @action(2, has("numpy", "torch", "memory", "opaque", state=READING), i=WHICH)
    def drop_in_a_cycle(self, i: int) -> None:
        key = self.pick(i, "numpy", "torch", "memory", "opaque", state=READING)
        assert key is not None
        name = self.names.pop(key)
        cycle: list[Any] = [name.thing]
        cycle.append(cycle)
        self.cycles.append(Name(key, "", name.held))

    @action(1, lambda m: m.cycles)
    def collect(self) -> None:
        gc.collect()
        for name in self.cycles:
            assert name.held is not None
            seen["cycles"] += 1
            self.let_go(name.held, name.thing)
        self.cycles.clear()

    @action(1, lambda m: m.stale, n=[*range(1, 9)])
    def forget_stale_views(self, n: int) -> None:
        del self.stale[:n]

    # ---- handles, processes

    @action(1, lambda m: len(m.buffers) < 3 and m.count % 4 == 0, b=WHICH, how=2)
    def open(self, b: int, how: bool) -> None:
        """Another handle of this segment: another member."""
        buffer = self.buffer(b)
        if buffer.name is not None and how:
            other = st.TensorBuffer.attach(buffer.name, spin_us=0)
        else:
            other = pickle.loads(reduction.ForkingPickler.dumps(buffer))
        self.buffers.append(other)

    @action(1, lambda m: len(m.buffers) > 1, b=WHICH, forget=2)
    def close(self, b: int, forget: bool) -> None:
        """What its slots and views hold stays held, and can be used and ended."""
        buffer = self.buffers.pop(b % len(self.buffers))
        seen["closed with leases"] += any(held is not None and held.owner == buffer._member for held in self.slots)
        if not forget:
            buffer.close()
            try:
                buffer.try_acquire()
            except st.ClosedError:
                return
            raise AssertionError("a closed handle acquires")

    @action(1, lambda m: not m.shut and m.count > 30)
    def shutdown(self) -> None:
        self.buffers[0].shutdown()
        self.shut = True

    @action(
        3,
        lambda m: m.count >= m.forked + 12 and (m.queue or m.count % 8 == 0),
        b=WHICH,
        acquires=[1, 2, 3, 0],
        releases=[0, 0, 0, 1, 2],
        puts=3,
        claims=2,
        touch=["look", "drop", "end"],
        leave=["_exit"] * 12 + ["close"] * 4 + ["finalize"],
    )
    def fork(self, b: int, acquires: int, releases: int, puts: int, claims: int, touch: str, leave: str) -> None:
        """A child does something to what it inherited, hands over items of its own, and ends in one way or another."""
        self.forked = self.count
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                signal.alarm(30)  # one that hangs is killed, and so a failure
                report, kept = self.child(b, acquires, releases, puts, claims, touch)
                os.write(theirs, pickle.dumps(report))
                os.close(theirs)
                self.stale.append(kept)
                if leave == "close":
                    shmtensor.segments._close_all()
                elif leave == "finalize":
                    ctypes.pythonapi.Py_Exit(0)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(theirs)
        with open(ours, "rb") as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0 and said, f"the child ended with {status}"
        acquired, published = pickle.loads(said)
        self.buffer(b).reclaim()
        items, self.queue[:acquired] = self.queue[:acquired], []
        self.queue += [Item(index, item_of(self.kind, number, (3, 5))) for index, number in published]
        for item in sorted(items[releases:], key=lambda item: item.index):
            if not self.drop_policy and item.tries < TRIES_MAX:
                self.queue.append(Item(item.index, item.arrays, item.tag, item.tries + 1))
                seen["redelivered"] += 1
        seen[f"forks, {leave}"] += 1

    def child(self, b: int, acquires: int, releases: int, puts: int, claims: int, touch: str) -> tuple[Any, Any]:
        self.check_views()
        before = self.buffers[0]._slot_states()
        if touch == "end":
            for name in self.names.values():
                if name.kind == "slot" and name.held is not None and name.held.state == WRITING:
                    for verb in (name.thing.publish, name.thing.abort):
                        try:
                            verb()
                        except (st.LeaseLost, ValueError):  # ValueError: it was ended, by the first of them
                            continue
                        raise AssertionError("a child ended its parent's claim")
                elif name.kind == "slot" and name.held is not None and not name.strict:
                    name.thing.release()
        if touch in ("drop", "end"):
            self.names.clear()
            self.stale.clear()
            gc.collect()
        assert self.buffers[0]._slot_states() == before, "a child changed its parent's slots"
        buffer = self.buffer(b)
        kept: list[Any] = []
        for item in self.queue[:acquires]:
            slot = buffer.try_acquire()
            assert slot is not None and (slot.index, slot.redelivered) == (item.index, item.tries)
            for path, array in item.arrays.items():
                assert slot.numpy(path or None).tobytes() == array.tobytes()
            kept.append(slot)
        acquired = len(kept)
        for slot in kept[:releases]:
            slot.release()
        published: list[tuple[int, int]] = []
        for _ in range(0 if self.shut else puts):
            slot = buffer.try_claim()
            if slot is not None:
                number = next(self.numbers)
                arrays = item_of(self.kind, number, (3, 5))
                slot.write(arrays[""] if self.kind == "single" else arrays)
                slot.publish()
                published.append((slot.index, number))
        if claims and not self.shut:
            kept.append(buffer.try_claim())
        return (acquired, published), kept

    # ---- after each step

    def check_views(self) -> None:
        for name in self.names.values():
            if name.twin is not None:
                assert raw(name.thing) == raw(name.twin), f"{name.kind}: {name.thing!r}, not {name.twin!r}"

    @invariant()
    def agrees(self) -> None:
        if not self.buffers:
            return
        seen["steps"] += 1
        self.count += 1
        found = self.buffers[0]._slot_states()
        for i, ((state, owner, _), (want, whose)) in enumerate(zip(found, self.expected(), strict=True)):
            assert (state, owner if whose is not None else None) == (want, whose), f"slot {i}: {found}"
        self.check_views()

    def teardown(self) -> None:
        try:
            if self.buffers:
                for key in list(self.names):
                    if key in self.names:
                        self.drop(0, 1)
                self.collect()
                self.stale.clear()
                self.agrees()
                self.drain()
                assert self.states() == [FREE] * len(self.slots)
        finally:
            self.names.clear()
            self.stale.clear()
            for buffer in self.buffers:
                buffer.close()
            self.buffers.clear()
            gc.enable()
        self.guard.__exit__(None, None, None)

    def drain(self) -> None:
        while self.queue:
            self.get(0, True, False, 0)


def main(examples: int) -> None:
    """Prints what was done, as JSON; what fails is hypothesis's to tell."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    gc.collect()
    gc.freeze()  # torch's many objects need not be looked at in each collection
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            phases=[
                Phase.generate,
                *[Phase.shrink] * ("SHMTENSOR_STATEFUL_SHRINK" in os.environ),
            ],  # that takes minutes
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]))
