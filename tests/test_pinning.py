"""Batches that are pinned in place, and on a device: what CUDA is asked for and when; not what it makes of it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import os
import pickle
import random
import signal
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import loader_support as ls  # noqa: E402
from pinning_support import Fake, Stream, is_mapped  # noqa: E402
from support import leaves_nothing, same  # noqa: E402

import shmtensor as st  # noqa: E402
import shmtensor.data  # noqa: E402
from shmtensor.data import cuda, pinning, placement  # noqa: E402
from shmtensor.data.flight import InFlight, in_flight  # noqa: E402
from shmtensor.data.iterator import Iterator as Iterator_  # noqa: E402
from shmtensor.data.structure import leaves, rebuilt  # noqa: E402
from shmtensor.objects import ObjectSlots  # noqa: E402

TORCHS_WARNING = "'pin_memory' argument is set as true but no accelerator is found"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """In place of CUDA. Whatever a test does: nothing was asked for that CUDA refuses, and in the end nothing is
    registered and nothing kept."""
    with leaves_nothing(of_others=False):
        it = Fake()
        monkeypatch.setattr(cuda, "runtime", it)
        yield it
        gc.collect()
        it.run()
        in_flight.poll()
        assert len(in_flight) == 0
        gc.collect()
        assert it.errors == []
        assert it.ranges == {}


def loader(make: Any = ls.plain, n: int = 24, **options: Any) -> Any:
    return st.DataLoader(ls.Numbers(n, make), **{"batch_size": 2, "num_workers": 2, **options})


def in_place(*args: Any, **options: Any) -> Any:
    return loader(*args, pin_memory="in_place", **options)


def numbers(batches: Any) -> list[int]:
    return [int(x.flatten()[0]) for x in batches]


EVEN = list(range(0, 24, 2))


def slots_of(of: Any) -> ObjectSlots:
    """The segment that an epoch has left."""
    ((_, slots),) = of._shelf.spare
    return slots  # type: ignore[no-any-return]


def grown(i: int) -> Any:
    return torch.full((1000 * (1 + i % 7) * (1 + i // 7),), float(i))


def shrinking(i: int) -> Any:
    return torch.full((100_000 if i < 4 else 2000,), float(i))


# ---- what is registered ----------------------------------------------------------------------------------------------


def test_each_slot_is_registered_once(fake: Fake) -> None:
    dl = in_place(n=200)
    for epoch in range(3):
        for i, x in enumerate(dl):
            assert int(x[0, 0, 0]) == 2 * i and fake.covers(x)
        assert fake.count("register") == len(fake.ranges) <= slots_of(dl)._info["slots"], epoch
    assert fake.count("unregister") == 0 and fake.pinned_batches == 300


def test_with_the_dynamic_schedule_and_a_state(fake: Fake) -> None:
    options: Any = {"schedule": "dynamic", "device": "cuda", "n": 40}
    dl, other = in_place(**options), in_place(**options)
    for x in (it := iter(dl)):
        fake.run()
        if int(x[0, 0, 0]) == 18:
            break
    other.load_state_dict(dl.state_dict())
    assert numbers(map(finished(fake), it)) == numbers(map(finished(fake), other)) == list(range(20, 40, 2))


def test_the_range_is_what_has_grown(fake: Fake) -> None:
    dl = in_place(n=2)
    (x,) = dl
    ((_, nbytes),) = fake.ranges.items()
    assert x.nbytes < nbytes < x.nbytes + 3 * 4096


def test_a_slot_that_has_grown_is_registered_anew(fake: Fake) -> None:
    """And never in two pieces: the fake refuses what overlaps, and a batch lies in one of its ranges."""
    dl = in_place(grown, n=60, batch_size=None)
    for i, x in enumerate(dl):
        assert int(x[0]) == i and fake.covers(x)
    assert fake.count("unregister") > 10
    assert fake.count("register") == fake.count("unregister") + len(fake.ranges)


def test_a_smaller_batch_changes_nothing(fake: Fake) -> None:
    dl = in_place(shrinking, n=60, batch_size=None, num_workers=1)
    for x in dl:
        assert fake.covers(x)
    once = {address for _, address in fake.log}
    assert fake.log == [("register", address) for _, address in fake.log] and len(once) == len(fake.log)


def test_other_ways_to_pin_register_nothing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers(loader()) == EVEN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch itself finds no accelerator
        assert numbers(loader(pin_memory=True)) == EVEN
    assert fake.log == [] and fake.pinned_batches == 0


def test_torch_pins_nothing_besides(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = getattr(torch, "accelerator", torch.cuda)
    monkeypatch.setattr(accelerator, "is_available", lambda: True)
    it = iter(in_place())
    assert not it._pin_memory and not it._results.opens and not hasattr(it, "_pin_memory_thread")
    assert numbers(it) == EVEN and fake.count("register") > 0


def test_copies_of_batches_are_left_to_torch(fake: Fake) -> None:
    with pytest.warns(RuntimeWarning, match="keep=2"):
        dl = in_place()
        kept = list(dl)
    assert numbers(kept) == EVEN and fake.pinned_batches == 12
    assert sum(map(fake.covers, kept)) == 2 == fake.count("register")


def test_small_batches_are_left_to_torch(fake: Fake) -> None:
    assert [x.tolist() for x in in_place(ls.small, n=4)] == [[[0, 0], [1, -1]], [[2, -2], [3, -3]]]
    assert fake.log == [] and fake.pinned_batches == 2


# ---- when it is not registered any more ------------------------------------------------------------------------------


def test_unregistered_before_the_mapping_goes(fake: Fake) -> None:
    """The fake looks whether the memory is mapped."""
    dl = in_place()
    x = next(it := iter(dl))
    assert fake.covers(x)
    del it, dl
    gc.collect()
    assert fake.ranges == {} and fake.count("unregister") >= 1
    assert is_mapped(x.data_ptr()) and int(x[0, 0, 0]) == 0


def test_unregistered_before_it_is_trimmed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    dl = in_place(n=60, keep=3)
    kept = [x for i, x in enumerate(dl) if i == 8]
    slots = slots_of(dl)
    fd = slots._fd
    memory = os.fstat(fd).st_blocks
    then: list[int] = []
    unregister = fake.unregister
    monkeypatch.setattr(fake, "unregister", lambda a: (unregister(a), then.append(os.fstat(fd).st_blocks)))
    registered = len(fake.ranges)
    assert slots.trim() > 0
    assert then == [memory] * (registered - 1) and os.fstat(fd).st_blocks < memory
    assert all(map(fake.covers, kept)) and len(fake.ranges) == 1
    assert numbers(kept) == [16]
    del kept
    assert all(map(fake.covers, dl))


def test_trimmed_behind_our_back(fake: Fake) -> None:
    """The pages that are locked are not those that the slots have afterwards."""
    dl = in_place(n=60)
    for x in dl:
        del x
    slots = slots_of(dl)
    before = dict(fake.ranges)
    other = ObjectSlots._from_fd(slots._fd)
    assert other.trim() > 0
    other.close()
    assert fake.ranges == before and fake.count("unregister") == 0
    for x in dl:
        assert fake.covers(x)
        del x
    again = {address for name, address in fake.log if name == "unregister"}
    assert again and again <= set(before)
    assert [name for name, address in fake.log if address == min(again)] == ["register", "unregister", "register"]


def test_a_forked_child_unregisters_nothing(fake: Fake) -> None:
    fake.stalls = True
    dl = in_place()
    for x in dl:
        assert fake.covers(x)
    slots = slots_of(dl)
    fake.current.issued.append(None)
    shmtensor.data.record_stream(x, fake.current)
    before, looks = len(fake.log), fake.looks
    pid = os.fork()
    if pid == 0:
        status = 9
        with contextlib.suppress(BaseException):
            in_flight.poll()
            ranges = dl._placement._ranges[slots]
            ranges.before_trim(slots)
            ranges.close()
            del dl, x, slots
            gc.collect()
            status = 0 if len(fake.log) == before and fake.looks == looks and len(in_flight) == 0 else 1
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(fake.log) == before and fake.covers(x) and len(in_flight) == 1
    slots.trim()
    assert len(fake.log) > before, "what the child left alone"
    fake.run()


def test_copies_of_a_loader_have_registrations_of_their_own(fake: Fake) -> None:
    dl = in_place()
    assert numbers(dl) == EVEN
    for other in (copy.copy(dl), pickle.loads(pickle.dumps(dl))):
        assert other._placement is not dl._placement and not other._placement._ranges
        assert numbers(other) == EVEN


# ---- when it cannot be registered ------------------------------------------------------------------------------------


def test_refused_from_the_start(fake: Fake) -> None:
    fake.room = 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        dl = in_place()
        assert numbers(dl) == EVEN and numbers(dl) == EVEN
    (one,) = said
    assert "cannot be page-locked" in str(one.message) and "error 2" in str(one.message)
    assert one.filename == __file__
    assert fake.log[0][0] == "failed" and len(fake.log) == 1 and fake.pinned_batches == 0


def test_refused_later(fake: Fake) -> None:
    """Of no batch a part is registered and a part is not: CUDA does not copy that."""
    fake.room = 150_000
    whole = 0
    with pytest.warns(RuntimeWarning, match="cannot be page-locked") as said:
        dl = in_place(grown, n=60, batch_size=None)
        for _ in range(2):
            for i, x in enumerate(dl):
                assert int(x[0]) == i
                assert fake.covers(x) or not fake.touches(x)
                whole += fake.covers(x)
    assert len(said) == 1 and fake.count("failed") == 1
    assert whole > 5 and sum(fake.ranges.values()) <= fake.room


# ---- copies that somebody else issues --------------------------------------------------------------------------------


def test_a_recorded_batch_keeps_its_slot(fake: Fake) -> None:
    fake.stalls = True
    dl = in_place(n=60)
    it = iter(dl)
    x = next(it)
    alive, at, stream = weakref.ref(x), x.data_ptr(), Stream(fake.HERE)
    stream.issued.append(None)
    shmtensor.data.record_stream({"x": [x]}, stream)
    del x
    for _ in range(10):
        assert next(it).data_ptr() != at
        assert len(in_flight) == 1
    assert fake.looks == 10, "one for each batch"
    stream.run()
    assert alive() is not None and len(in_flight) == 1, "nobody has looked yet"
    next(it)
    assert alive() is None and len(in_flight) == 0


def test_it_is_looked_at_when_an_epoch_ends(fake: Fake) -> None:
    fake.stalls = True
    dl = in_place()
    it = iter(dl)
    x = next(it)
    stream = Stream(fake.HERE)
    stream.issued.append(None)
    shmtensor.data.record_stream(x, stream)
    del x
    stream.run()
    del it
    assert len(in_flight) == 0 and slots_of(dl).stats()["reading"] == 0


def test_what_was_recorded_survives_changes_of_the_batch(fake: Fake) -> None:
    fake.stalls = True
    fake.current.issued.append(None)
    batch = {"x": torch.ones(3), "n": 4}
    alive = weakref.ref(batch["x"])
    shmtensor.data.record_stream(batch, fake.current)
    batch.clear()
    assert alive() is not None
    fake.run()
    in_flight.poll()
    assert alive() is None


def test_recording_what_is_on_a_device_already(fake: Fake) -> None:
    with pytest.raises(ValueError, match="as it came from the loader"):
        shmtensor.data.record_stream([torch.ones(3, device="meta")], fake.current)
    shmtensor.data.record_stream([torch.ones(3, device="meta"), torch.ones(3)], fake.current)
    shmtensor.data.record_stream("text", fake.current)


def test_recording_no_stream(fake: Fake) -> None:
    none: Any = None
    with pytest.raises(TypeError, match=r"must be a torch.cuda.Stream, as torch.cuda.current_stream\(\) returns it"):
        shmtensor.data.record_stream([torch.ones(3)], none)
    assert len(in_flight) == 0


def test_the_end_waits_for_copies_and_not_for_ever(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "_PATIENCE", 0.05)
    fake.stalls = True
    lost = InFlight()
    monkeypatch.setattr(pinning, "in_flight", lost)
    dl = in_place()
    x = next(it := iter(dl))
    stream = Stream(fake.HERE)
    stream.issued.append(None)
    lost.keep([fake.record(stream)], [x])
    at = x.data_ptr()
    del x, it, dl
    gc.collect()
    assert fake.ranges and fake.looks > 1 and fake.count("unregister") == 0
    assert is_mapped(at) and len(lost) == 0, "kept, and not asked for any more"
    assert len(lost._for_ever) == 1
    fake.ranges.clear()
    lost._for_ever.clear()

    monkeypatch.setattr(pinning, "_PATIENCE", 60)
    dl = in_place()
    x = next(it := iter(dl))
    lost.keep([fake.record(stream)], [x])
    del x, it
    timer = threading.Timer(0.2, stream.run)
    timer.start()
    del dl
    gc.collect()
    timer.join()
    assert fake.ranges == {} and len(lost) == 0 and stream.done == 1


def test_a_wait_does_not_spin(fake: Fake) -> None:
    fake.stalls = True
    fake.current.issued.append(None)
    here = InFlight()
    here.keep([fake.record(fake.current)], [])
    began = time.monotonic()
    assert not here.wait(0.3)
    took = time.monotonic() - began
    assert 5 < fake.looks < 10 + took / 0.005
    # Enough is enough, and what comes later is not waited for.
    assert here.wait(60, lambda: True)
    fake.run()
    assert here.wait(60) and not here.wait(60, lambda: False)


# ---- device= ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pin_memory", [False, "in_place"])
def test_batches_come_on_the_device(fake: Fake, pin_memory: Any) -> None:
    """The copies are done late, from where the batch lay: a slot that was used again would show."""
    dl = loader(n=400, pin_memory=pin_memory, device="cuda")
    fakes = []
    for x in dl:
        assert not ls.lies_in_a_slot(x)
        fakes.append(x)
    fake.run()
    for i, x in enumerate(fakes):
        assert (x[0] == 2 * i).all() and (x[1] == 2 * i + 1).all()
    assert dl.stats()["copied"] == 0
    assert len(fake.streams) == 1 and len(fake.handed_over) == 200
    assert all(n == 1 and event.stream is fake.streams[0] for n, event, _ in fake.handed_over)
    assert all(stream is fake.current for _, _, stream in fake.handed_over)
    numbers(dl)
    assert len(fake.streams) == 1, "torch has memory for each stream"


def test_copies_that_take_longer_than_batches(fake: Fake) -> None:
    """Then a batch waits for the device; it is not copied on the host."""
    fake.lag = 5
    dl = loader(n=200, device="cuda")
    out = list(dl)
    assert dl.stats()["copied"] == 0 and fake.looks > 300
    fake.run()
    assert numbers(out) == list(range(0, 200, 2))


def test_a_slot_is_kept_until_it_is_copied(fake: Fake) -> None:
    fake.stalls = True
    dl = loader(n=60, device="cuda:0", keep=4)
    it = iter(dl)
    slots = it._results.slots
    out = [next(it) for _ in range(3)]
    assert len(in_flight) == 3 and slots.reading >= 3
    assert all((x == 77).all() for x in out)
    fake.run()
    assert numbers(out) == [0, 2, 4]
    out.append(next(it))
    assert len(in_flight) == 1
    for _ in range(3):
        out.append(next(it))
    fake.run()
    assert numbers(out) == [0, 2, 4, 6, 8, 10, 12]


def test_a_batch_waits_for_copies_and_not_for_ever(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_PATIENCE", 0.05)
    fake.stalls = True
    dl = loader(n=12, device="cuda")
    with pytest.warns(RuntimeWarning, match="keep=2"):
        out = list(dl)
    assert dl.stats()["copied"] == 4
    fake.run()
    assert numbers(out) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("options", [{}, {"stateful": True}, {"schedule": "dynamic"}, {"progress": True}])
def test_without_workers(fake: Fake, options: Any) -> None:
    fake.stalls = True
    batches = iter(dl := loader(num_workers=0, device="cuda", **options))
    assert options.get("progress") or len(batches) == len(dl) == 12
    out = list(batches)
    assert all((x == 77).all() for x in out) and len(in_flight) == 12
    fake.run()
    assert numbers(out) == EVEN


def test_everything_in_a_batch(fake: Fake) -> None:
    dl = loader(ls.all_kinds, device="cuda", pin_memory="in_place")
    theirs = list(torch.utils.data.DataLoader(dl.dataset, batch_size=2))
    ours = [ls.own(x) for x in map(finished(fake), dl)]
    assert same(ours, theirs)


def finished(fake: Fake) -> Any:
    def run(x: Any) -> Any:
        fake.run()
        return x

    return run


@pytest.mark.parametrize("collate", [ls.padded, ls.packed, ls.records, ls.default_inside])
def test_structures(fake: Fake, collate: Any) -> None:
    make = ls.of_any_length if collate in (ls.padded, ls.packed) else ls.plain
    dl = loader(make, device="cuda", pin_memory="in_place", collate_fn=collate)
    theirs = torch.utils.data.DataLoader(dl.dataset, batch_size=2, collate_fn=collate)
    for x, y in zip(map(finished(fake), dl), theirs, strict=True):
        assert type(x) is type(y)
        if isinstance(y, ls.Record):
            assert x.name == y.name and torch.equal(x.x, y.x)
        elif collate is ls.packed:
            assert all(torch.equal(a, b) for a, b in zip(x, y, strict=True))
        else:
            assert same(x, y)
    tensors = {ls.padded: 2, ls.packed: 3, ls.records: 1, ls.default_inside: 1}[collate]  # not batch_sizes
    assert {n for n, _, _ in fake.handed_over} == {tensors}


class Frozen:
    """With a way of its own."""

    def __init__(self, x: Any) -> None:
        self.x = x
        self.asked: list[Any] = []

    def to(self, device: Any) -> Any:
        self.asked.append(device)
        return self


class Willing(Frozen):
    def to(self, device: Any, non_blocking: bool = False) -> Any:  # type: ignore[override]
        self.asked.append((device, non_blocking))
        return self


class AnyWay(Frozen):
    def to(self, *args: Any, **options: Any) -> Any:
        self.asked.append((args, options))
        return self


def test_what_moves_by_itself(fake: Fake) -> None:
    """On the current stream, on which an event is recorded for it."""
    fake.stalls = True
    move = placement.Placement(False, "cuda").moved
    frozen, willing, any_way = batch = (Frozen(0), Willing(1), AnyWay(2))
    assert move(batch) == batch
    assert frozen.asked == [fake.HERE] and willing.asked == [(fake.HERE, True)]
    assert any_way.asked == [((fake.HERE,), {"non_blocking": True})]
    (entry,) = in_flight._kept
    assert [event.stream for event in entry.events] == [fake.current] and entry.things == [*batch]

    sparse = torch.eye(4).to_sparse()
    fake.current.issued.append(None)
    move([torch.ones(3), sparse])
    assert [event.stream for event in in_flight._kept[-1].events] == [fake.streams[0], fake.current]
    fake.current.run()
    in_flight.poll()
    assert len(in_flight) == 1, "one of its two events has passed"
    fake.run()


def test_what_is_under_way_when_a_batch_fails(fake: Fake) -> None:
    class Fails(Frozen):
        def to(self, device: Any) -> Any:
            raise KeyError("cannot be moved")

    fake.stalls = True
    x = torch.ones(5)
    alive = weakref.ref(x)
    with pytest.raises(KeyError):
        placement.Placement(False, "cuda").moved([x, Fails(0)])
    del x
    gc.collect()
    assert alive() is not None and len(in_flight) == 1
    fake.run()
    in_flight.poll()
    assert alive() is None


def test_a_batch_that_is_nothing_to_a_device(fake: Fake) -> None:
    batch = {"a": [1, "text", b"bytes", bytearray(b"x")], "b": (None, 2.5), "c": np.ones(3)}
    assert same(placement.Placement(False, "cuda").moved(batch), batch)
    assert len(in_flight) == 0 and fake.handed_over == []


# ---- structures ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sealed:
    x: int
    y: list[int] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", [5])


class Strict(tuple):  # type: ignore[type-arg]
    __slots__ = ()

    def __new__(cls, a: int, b: int) -> Strict:
        return super().__new__(cls, (a, b))


def test_rebuilt() -> None:
    class Dict(dict):  # type: ignore[type-arg]
        pass

    own = Dict(a=1)
    own.more = 3  # type: ignore[attr-defined]
    twice = rebuilt(own, lambda n: 2 * n)
    assert type(twice) is Dict and twice == {"a": 2} and twice.more == 3 and own == {"a": 1}
    for x, y in [
        (OrderedDict(a=[1, (2, 3)]), OrderedDict(a=[2, (4, 6)])),
        (ls.Pair(1, [2]), ls.Pair(2, [4])),
        (range(3), [0, 2, 4]),
        (Strict(1, 2), [2, 4]),
        ([], []),
        ("ab", "abab"),
    ]:
        out = rebuilt(x, lambda n: 2 * n)
        assert out == y and type(out) is type(y)
    sealed = Sealed(1)
    out = rebuilt(sealed, lambda n: 2 * n)
    assert (out.x, out.y) == (2, [10]) and (sealed.x, sealed.y) == (1, [5])
    assert leaves({"a": [1, (2,)], "b": sealed, "c": "text"}) == [1, 2, 1, 5, "text"]
    assert leaves(int) == [int] and leaves(Sealed) == [Sealed]


# ---- retries= --------------------------------------------------------------------------------------------------------


def test_retries(fake: Fake) -> None:
    with pytest.raises(ValueError, match="in_place"):
        loader(retries=1, pin_memory=True)
    options = {"batch_size": 2, "num_workers": 2}
    torch.manual_seed(8)
    theirs = [ls.own(x) for x in torch.utils.data.DataLoader(ls.Numbers(120, ls.random_kinds), **options)]
    torch.manual_seed(8)
    choose = random.Random(2)
    it = iter(st.DataLoader(ls.Numbers(120, ls.random_kinds), retries=50, pin_memory="in_place", **options))
    kills = 0
    for i, x in enumerate(it):
        assert same(x, theirs[i])
        if choose.random() < 0.3:
            os.kill(choose.choice(it._workers).pid, signal.SIGKILL)
            kills += 1
    assert i == 59 and kills > 3 and fake.count("register") > 0


# ---- without CUDA, and arguments -------------------------------------------------------------------------------------


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "runtime", cuda.Cuda())
    if cuda.runtime.is_available():
        pytest.skip("there is CUDA here")


@pytest.mark.parametrize("workers", [0, 2])
def test_without_cuda_it_warns_as_torch_does(no_cuda: None, workers: int) -> None:
    with pytest.warns(UserWarning, match=TORCHS_WARNING):
        assert numbers(in_place(num_workers=workers)) == EVEN


def test_without_cuda_there_is_no_device(no_cuda: None) -> None:
    for device in ("cuda", "cuda:1", torch.device("cuda"), 0):
        with pytest.raises(RuntimeError, match="torch finds no CUDA device"):
            loader(device=device)


def test_without_cuda_there_is_no_stream(no_cuda: None) -> None:
    stream: Any
    for stream in (None, "cuda"):
        with pytest.raises(RuntimeError, match=r"record_stream\(\): torch finds no CUDA device"):
            shmtensor.data.record_stream([torch.ones(3)], stream)


def test_bad_arguments() -> None:
    for bad in ("inplace", ""):
        with pytest.raises(ValueError, match='pin_memory must be True, False or "in_place"'):
            loader(pin_memory=bad)
    for device in ("cpu", "meta", torch.device("cpu")):
        with pytest.raises(ValueError, match="device must be a CUDA device"):
            loader(device=device)


# ---- torch's thread that pins ----------------------------------------------------------------------------------------


class Raises:
    """A sampler."""

    def __iter__(self) -> Any:
        yield 0
        raise KeyError("no second index")


@pytest.mark.parametrize("persistent", [False, True])
def test_an_iter_that_fails_leaves_no_thread(
    fake: Fake, persistent: bool, monkeypatch: pytest.MonkeyPatch, recwarn: Any
) -> None:
    """The thread and what it waits for are real; the accelerator is none."""
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda i: None)
    monkeypatch.setattr(torch.utils.data._utils.pin_memory, "pin_memory", lambda batch, device=None: batch)
    before = threading.active_count()
    options = {"pin_memory": True, "persistent_workers": persistent}
    assert sorted(numbers(loader(**options))) == EVEN, "the thread does its work"
    gc.collect()
    assert threading.active_count() == before
    for _ in range(3):
        with pytest.raises(KeyError, match="no second index"):
            iter(loader(sampler=Raises(), **options))
        assert threading.active_count() == before
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is Iterator_]


# ---- the seam itself, as far as it is ours ---------------------------------------------------------------------------


class Runtime:
    """What torch.cuda.cudart() returns."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.calls: list[tuple[int, ...]] = []

    def cudaHostRegister(self, *args: int) -> int:
        self.calls.append(args)
        return self.code

    def cudaHostUnregister(self, *args: int) -> int:
        self.calls.append(args)
        return self.code


@pytest.mark.parametrize("code", [0, 2])
def test_what_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    runtime, cleared = Runtime(code), []
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    seam = cuda.Cuda()
    monkeypatch.setattr(seam, "_forget_error", lambda: cleared.append(1))
    with pytest.raises(RuntimeError, match="error 2") if code else contextlib.nullcontext():
        seam.register(4096, 8192)
    seam.unregister(4096)
    assert runtime.calls == [(4096, 8192, 1), (4096,)] and len(cleared) == (2 if code else 0)
