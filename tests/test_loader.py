"""DataLoader: what its batches are, what happens when one is kept, when something dies, and when it ends early."""

from __future__ import annotations

import contextlib
import copy
import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import loader_support as ls  # noqa: E402
from support import environment, is_running, leaves_nothing, same, segment_fds, wait_until  # noqa: E402

import shmtensor as st  # noqa: E402
import shmtensor.data  # noqa: E402
from shmtensor.data.depth import slots_for_batches, slots_for_tasks  # noqa: E402
from shmtensor.objects import ObjectSlots  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    with leaves_nothing(of_others=False):
        yield
        gc.collect()


def loader(make: Any = ls.plain, n: int = 24, **options: Any) -> Any:
    return st.DataLoader(ls.Numbers(n, make), **{"batch_size": 2, "num_workers": 2, **options})


def numbers(batches: Any) -> list[int]:
    return [int(x.flatten()[0]) for x in batches]


EVEN = list(range(0, 24, 2))


def spare(of: Any) -> dict[str, int]:
    """How the slots stand that an epoch has left."""
    ((_, slots),) = of._shelf.spare
    return slots.stats()  # type: ignore[no-any-return]


# ---- what a batch is -------------------------------------------------------------------------------------------------


def test_batches_are_writable_views_of_slots() -> None:
    for x in loader(batch_size=3):
        assert ls.lies_in_a_slot(x) and not x.is_shared() and x.is_contiguous()
        x.add_(1)
        x.numpy()[0] = 5
        assert x[0, 0, 0] == 5


def test_the_slot_lives_as_long_as_its_last_alias() -> None:
    dl = loader(keep=12)
    kept = [x.view(-1)[::7].detach().numpy()[1:] for x in dl]
    assert [int(x[0]) for x in kept] == EVEN
    assert spare(dl)["reading"] == 12 and dl.stats()["copied"] == 0
    del kept
    assert spare(dl)["reading"] == 0


@pytest.mark.parametrize(("make", "rows"), [(ls.plain, False), (ls.in_place, True), (ls.in_place_twice, True)])
def test_collate_lands_in_the_slot(make: Any, rows: bool) -> None:
    for _, landed, was_there in loader(make, collate_fn=ls.where_it_lies):
        assert landed and was_there == rows


def test_a_whole_batch_made_by_empty_takes_no_more_room_than_it_has() -> None:
    one = 16 * 4000
    batches = list(loader(batch_size=16, n=64, collate_fn=ls.made_by_empty, keep=4, max_slot_nbytes=one + 2**16))
    assert all(landed for _, landed in batches)
    assert numbers(x for x, _ in batches) == [0, 16, 32, 48]


def test_only_the_loaders_own_collate_lands() -> None:
    for _, landed, whole in loader(ls.collated_here, batch_size=None):
        assert not landed and whole


def test_a_dataset_may_keep_what_it_made_in_a_slot() -> None:
    dl = st.DataLoader(ls.Keeps(60), batch_size=None, num_workers=2)
    for i, (x, whole) in enumerate(dl):
        assert (x == i).all() and whole
        x.fill_(-1)  # it is ours alone
    assert spare(dl)["writing"] == spare(dl)["ready"] == 0


def test_a_generator_that_names_its_samples_still_makes_them_in_slots() -> None:
    dl = st.DataLoader(ls.Named(24), batch_size=3, num_workers=1)
    first = 0
    for x, landed, whole in dl:
        assert landed.all() and whole.all() and x[:, 0].tolist() == [first, first + 1, first + 2]
        x.fill_(-1)
        first += 3
    assert first == 24 and spare(dl)["writing"] == spare(dl)["ready"] == 0


def test_empty_elsewhere() -> None:
    x = shmtensor.data.empty((3, 4), torch.int16)
    assert x.shape == (3, 4) and x.dtype == torch.int16 and not ls.lies_in_a_slot(x)
    assert shmtensor.data.empty(5).dtype == torch.get_default_dtype()


SHAPES = (600, (30, 40), [30, 40], torch.Size([600]), np.int64(600), (np.int8(60), torch.tensor(40)), (), 0, (0, 9))
NO_SHAPES = (-1, (3, -600), True, (600.0,), "600", None, range(600), torch.tensor([30, 40]), (1 << 40, 1 << 40))
DTYPES = (None, torch.float64, torch.bfloat16, torch.complex64, torch.bool, float, torch.qint8, torch.bits8)
NO_DTYPES = ("float32", np.float32, np.dtype("int8"), 3)


def made_by(empty: Any) -> list[Any]:
    """What comes of each shape and dtype; of an error its class and what it says."""
    out = []
    for shape in SHAPES + NO_SHAPES:
        for dtype in DTYPES + NO_DTYPES if type(shape) is int else (None, torch.int16):
            try:
                x = empty(shape, dtype=dtype)
                out.append(f"{shape!r} {dtype!r} {x.dtype} {x.shape} {x.device} {x.is_quantized}")
            except Exception as e:
                out.append(f"{shape!r} {dtype!r} {e!r}")
    return out


def made_here(i: int) -> Any:
    return made_by(shmtensor.data.empty), ls.lies_in_a_slot(shmtensor.data.empty(np.int64(600), float))


def test_empty_takes_what_torchs_does() -> None:
    theirs = made_by(torch.empty)
    assert sum("Error" in x for x in theirs) >= 20 and sum("Size" in x for x in theirs) >= 20
    assert made_by(shmtensor.data.empty) == theirs
    ((in_worker, landed),) = st.DataLoader(ls.Numbers(1, made_here), None, num_workers=1)
    assert in_worker == theirs and landed
    with torch.device("meta"):
        assert shmtensor.data.empty(3).device.type == "cpu"


def test_what_no_slot_can_hold() -> None:
    with pytest.raises(ValueError, match="max_slot_nbytes"):
        list(loader(max_slot_nbytes=4096))
    with pytest.raises(ValueError, match="max_slot_nbytes"):
        list(loader(ls.in_place, max_slot_nbytes=4096))


@pytest.mark.parametrize("bad", [-1, 1.5, "2", None])
def test_bad_arguments(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="keep"):
        loader(keep=bad)
    with pytest.raises(ValueError, match="num_workers"):
        loader(num_workers=-1)


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_as_many_slots_as_there_can_be(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted when a loader is made is what is asked for when it is iterated over."""

    class Enough(Exception):
        pass

    asked: list[int] = []

    def create(slots: int, **options: Any) -> Any:
        asked.append(slots)
        if len(asked) == 2:  # the batches', and the first that is for tasks
            raise Enough
        return real(slots if slots < 1000 else 10, **options)

    real = ObjectSlots.create
    monkeypatch.setattr(ObjectSlots, "create", create)
    for workers, keep in ((1, 2), (2, 0), (3, 5), (200, 2), (4000, 100)):
        options = {"num_workers": workers, "keep": keep, "schedule": schedule}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch, of so many workers
            with pytest.raises(ValueError, match="prefetch_factor") as said:
                loader(prefetch_factor=100_000, **options)
            assert f"num_workers={workers} and keep={keep}" in str(said.value) and "(65,535)" in str(said.value)
            most = int(str(said.value).rpartition(" ")[2].replace(",", ""))
            asked.clear()
            with pytest.raises(Enough):
                iter(loader(prefetch_factor=most, **options))
        shared = workers if schedule == "dynamic" else 1
        one_more = slots_for_batches(most + 1, workers, keep), slots_for_tasks(most + 1, shared)
        assert max(asked) <= 65535 < max(one_more)
        assert asked == [slots_for_batches(most, workers, keep), slots_for_tasks(most, shared)]
    with pytest.raises(ValueError, match="lower num_workers"):
        loader(num_workers=33000)
    loader(num_workers=0, prefetch_factor=None, keep=2**15)


# ---- batches that are kept -------------------------------------------------------------------------------------------


def test_a_warning_that_is_an_error_comes_once() -> None:
    kept: list[Any] = []
    it = iter(loader())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        kept += [next(it), next(it)]
        with pytest.raises(RuntimeWarning, match="keep=2"):
            next(it)
        kept += it
    assert numbers(kept) == [x for x in EVEN if x != 4]


def test_all_may_be_kept() -> None:
    dl = loader()
    with pytest.warns(RuntimeWarning, match="keep=2") as said:
        kept = list(dl)
        kept += list(dl)
    assert len(said) == 1
    assert numbers(kept) == EVEN * 2
    assert dl.stats()["copied"] == 22 and sum(map(ls.lies_in_a_slot, kept)) == 2


def test_every_third_may_be_kept() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dl = loader(n=100)
        kept = [x for i, x in enumerate(dl) if i % 3 == 0]
    assert numbers(kept) == list(range(0, 100, 6))


def test_the_usual_loop_copies_nothing() -> None:
    dl = loader(n=200)
    last = None
    for x in dl:
        assert last is None or int(x[0, 0, 0]) == int(last[0, 0, 0]) + 2
        last = x
    assert dl.stats()["copied"] == 0


def test_keep_0_copies_always() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dl = loader(keep=0)
        assert not any(ls.lies_in_a_slot(x) for x in dl)
    assert spare(dl)["reading"] == 0


# ---- epochs ----------------------------------------------------------------------------------------------------------


def test_an_epoch_leaves_its_memory_to_the_next() -> None:
    dl = loader()
    assert numbers(dl) == EVEN
    slots = dl._shelf.spare[0][1]
    for _ in range(3):
        assert numbers(dl) == EVEN
        assert dl._shelf.spare[0][1] is slots
    with pytest.warns(RuntimeWarning):
        kept = list(dl)  # also over the next epochs
        assert numbers(dl) == numbers(dl) == numbers(kept) == EVEN


@pytest.mark.parametrize("persistent", [False, True])
def test_ended_early(persistent: bool) -> None:
    dl = loader(n=400, persistent_workers=persistent)
    for stop in (0, 1, 5, 30):
        begin = time.monotonic()
        for i, x in enumerate(dl):
            assert int(x[0, 0, 0]) == 2 * i
            if i == stop:
                break
        del x
        assert time.monotonic() - begin < 4  # torch waits 5 s for a worker that is blocked
    assert numbers(dl) == list(range(0, 400, 2))
    del dl


def test_neither_loader_nor_iterator_keeps_the_other() -> None:
    gc.collect()
    gc.disable()
    try:
        dl = loader(persistent_workers=True)
        assert numbers(dl) == EVEN
        workers = dl._iterator._workers
        del dl
        assert not any(w.is_alive() for w in workers)
        it = iter(loader())
        assert numbers(it) == EVEN
        del it
        assert segment_fds() == []
    finally:
        gc.enable()


def test_two_iterators_at_once() -> None:
    dl = loader()
    for a, b in zip(dl, dl, strict=True):
        assert torch.equal(a, b)
    assert len(dl._shelf.spare) == 2


def test_pickled_and_copied() -> None:
    dl = loader()
    assert numbers(dl) == EVEN
    for other in (pickle.loads(pickle.dumps(dl)), copy.copy(dl), copy.deepcopy(dl)):
        assert type(other) is st.DataLoader and other.keep == 2 and other._shelf.spare == []
        assert numbers(other) == EVEN


def test_attributes_are_guarded_as_torchs() -> None:
    dl = loader()
    for name in ("batch_size", "sampler", "drop_last", "dataset"):
        with pytest.raises(ValueError, match="should not be set after DataLoader is initialized"):
            setattr(dl, name, 1)
    assert len(dl) == 12


def test_in_a_thread() -> None:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(numbers(loader())))
    thread.start()
    thread.join(60)
    assert got == [EVEN]


# ---- what it says of itself ------------------------------------------------------------------------------------------


def test_verdicts() -> None:
    dl = loader(n=80)
    assert dl.stats()["verdict"] == "nothing was yielded yet"
    for _ in dl:
        time.sleep(0.05)
    stats = dl.stats()
    assert stats["batches"] == 40 and stats["ready"] > 20 and stats["copied"] == 0
    assert stats["verdict"].startswith("consumer-bound")
    assert 0 <= stats["waited_s"] < stats["elapsed_s"] and stats["elapsed_s"] > 0.3

    dl = loader(ls.slowly, n=40)
    numbers(dl)
    assert dl.stats()["verdict"].startswith("worker-bound")

    dl = loader(n=40, persistent_workers=True)
    with pytest.warns(RuntimeWarning):
        kept = [x for x in dl if time.sleep(0.05) is None]
    assert dl.stats()["verdict"].startswith("lease-bound") and len(kept) == 20
    numbers(dl)
    assert dl.stats()["batches"] == 40


def test_a_worker_that_cannot_be_started(monkeypatch: Any) -> None:
    """Those that were are ended, and the error is the only one."""
    from multiprocessing.process import BaseProcess

    started: list[Any] = []
    start = BaseProcess.start

    def second_fails(self: Any) -> None:
        if started:
            raise OSError("no more processes")
        start(self)
        started.append(self)

    monkeypatch.setattr(BaseProcess, "start", second_fails)
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(OSError, match="no more processes"):
        iter(loader())
    gc.collect()
    assert len(started) == 1 and not started[0].is_alive() and not unraisable


class RaisesAtTwo:
    """A sampler."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    def __iter__(self) -> Any:
        yield from (0, 1)
        time.sleep(self.seconds)
        raise KeyError("no third index")


def test_a_sampler_that_raises_at_once() -> None:
    """As torch's SIGCHLD handler looks at the workers that end then; and the next iterator may have the same id()."""
    for _ in range(6):
        with pytest.raises(KeyError, match="no third index"):
            iter(loader(sampler=RaisesAtTwo()))
        gc.collect()
    assert not multiprocessing.active_children()


def test_a_sampler_that_raises_while_workers_do_not_end(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    options = {"multiprocessing_context": "fork", "worker_init_fn": ls.ignore_sigterm}
    with pytest.raises(KeyError, match="no third index"):
        iter(loader(sampler=RaisesAtTwo(seconds=0.5), **options))
    assert not multiprocessing.active_children()


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_an_exception_comes_with_the_workers_traceback() -> None:
    it = iter(loader(ls.fails_at_7))
    assert numbers(next(it) for _ in range(3)) == [0, 2, 4]
    with pytest.raises(KeyError, match=r"(?s)Caught KeyError in DataLoader worker process 1\..*fails_at_7"):
        next(it)
    assert numbers(it) == EVEN[4:]


def test_what_cannot_be_sent_raises() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match="in DataLoader worker process 0"):
        next(iter(loader(collate_fn=ls.cannot_be_sent)))


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_a_killed_worker_is_noticed(where: str) -> None:
    raised: list[Any] = []

    def run() -> None:
        begin = time.monotonic()
        try:
            numbers(loader(ls.killed_at_7))
        except RuntimeError as e:
            raised.append((e, time.monotonic() - begin))

    if where == "main thread":
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)
    ((error, seconds),) = raised
    assert "exited unexpectedly" in str(error) or "is killed by signal: Killed" in str(error)
    assert seconds < 4
    raised.clear()


def test_time_out() -> None:
    with pytest.raises(RuntimeError, match="DataLoader timed out after 1 seconds"):
        numbers(loader(ls.slow_at_7, timeout=1))


# ---- the end of processes --------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time, torch
sys.path.insert(0, {tests!r})
import loader_support as ls
import shmtensor as st
dl = st.DataLoader(ls.Numbers(10000, ls.plain), batch_size=2, num_workers=2, persistent_workers={persistent})
it = iter(dl)
first = next(it)
print(*[w.pid for w in it._workers], flush=True)
{then}
"""


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("then", ["pass", "raise SystemExit(0)", "time.sleep(60)"])
def test_the_end_in_mid_epoch(then: str, persistent: bool) -> None:
    code = SCRIPT.format(tests=os.path.dirname(__file__), then=then, persistent=persistent)
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        if "sleep" in then:
            process.send_signal(signal.SIGKILL)
        else:
            assert process.wait(20) == 0, process.stderr.read()
            assert process.stderr.read() == ""

    assert wait_until(lambda: not any(map(is_running, pids)), 20)


#: How many batches test_random_keeping_breaking_and_killing has to come through, for each schedule.
BATCHES = int(os.environ.get("SHMTENSOR_LOADER_BATCHES", "1500"))


def used() -> tuple[int, int]:
    """Descriptors, and bytes of memory, shared memory included."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(os.listdir("/proc/self/fd")), resident


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_random_keeping_breaking_and_killing(schedule: Any) -> None:
    """Under the dynamic schedule with persistent workers."""
    choose = random.Random(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dl = loader(n=600, keep=3, schedule=schedule, persistent_workers=schedule == "dynamic")
        batches = turns = kills = 0
        before = (0, 0)
        while batches < BATCHES:
            kept = []
            stop = choose.randrange(400)
            kill = choose.random() < 0.3
            with contextlib.suppress(RuntimeError):
                it = iter(dl)
                for i, x in enumerate(it):
                    batches += 1
                    assert int(x[0, 0, 0]) == 2 * i and bool((x[1] == 2 * i + 1).all())
                    if choose.random() < 0.3:
                        kept.append((i, x))
                    if choose.random() < 0.2 and kept:
                        kept.pop(choose.randrange(len(kept)))
                    if i == stop:
                        if not kill:
                            break
                        kills += 1
                        os.kill(choose.choice(it._workers).pid, signal.SIGKILL)
            for i, x in kept:
                assert int(x[0, 0, 0]) == 2 * i and bool((x[1] == 2 * i + 1).all())
            if it._shutdown or kill:
                dl._iterator = None  # of persistent workers, one of which is dead
            it = x = kept = None
            gc.collect()
            turns += 1
            if turns == 4:
                before = used()
        if kills == 0 or turns < 5:
            pytest.fail(f"only {turns} turns with {kills} kills")
        dl._iterator = None
        gc.collect()
        descriptors, memory = used()
        assert spare(dl)["free"] == sum(spare(dl)[k] for k in ("free", "writing", "ready", "reading"))
        assert descriptors <= before[0] and memory < before[1] + (16 << 20), (before, used())
        assert numbers(dl) == list(range(0, 600, 2))


# ---- workers that die, and whose batches are computed again ----------------------------------------------------------


def collected(loader_type: Any, dataset: Any, epochs: int, **options: Any) -> Any:
    torch.manual_seed(8)
    of = loader_type(dataset, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [[ls.own(x) for x in of] for _ in range(epochs)]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", ["map", "iterable"])
def test_with_retries_nothing_is_different(kind: str, persistent: bool, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEATHS", str(tmp_path))
    options = {"batch_size": 3, "num_workers": 2, "persistent_workers": persistent}

    def dataset(make: Any) -> Any:
        return ls.Numbers(48, make) if kind == "map" else ls.Stream(48, make)

    ours = collected(st.DataLoader, dataset(ls.dies_once), 2, retries=4, replay=kind == "iterable", **options)
    assert len(list(tmp_path.iterdir())) == 4
    theirs = collected(torch.utils.data.DataLoader, dataset(ls.random_kinds), 2, **options)
    assert same(ours, theirs)


def test_random_kills_with_retries() -> None:
    choose = random.Random(2)
    options = {"batch_size": 2, "num_workers": 2, "prefetch_factor": 3}
    (theirs,) = collected(torch.utils.data.DataLoader, ls.Numbers(400, ls.random_kinds), 1, **options)
    torch.manual_seed(8)
    it = iter(st.DataLoader(ls.Numbers(400, ls.random_kinds), retries=50, **options))
    kills = 0
    for i, x in enumerate(it):
        assert same(x, theirs[i])
        if choose.random() < 0.15:
            os.kill(choose.choice(it._workers).pid, signal.SIGKILL)
            kills += 1
    assert i == 199 and kills > 15
    del it


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_a_worker_that_dies_between_epochs(schedule: Any) -> None:
    """It has not heard that there is a new one."""
    options = {"num_workers": 2, "persistent_workers": True, "retries": 2, "schedule": schedule}
    of = st.DataLoader(ls.Numbers(40, ls.random_kinds), 4, **options)
    epochs = []
    for kill in (0, 1, 1, 2):
        torch.manual_seed(8)
        if kill:
            for worker in of._iterator._workers[:kill]:
                worker.kill()
                worker.join()
        epochs.append([ls.own(x) for x in of])
    torch.manual_seed(8)
    undisturbed = st.DataLoader(ls.Numbers(40, ls.random_kinds), 4, **{**options, "retries": 0})
    for epoch in epochs:
        torch.manual_seed(8)
        assert same(epoch, [ls.own(x) for x in undisturbed])


class KillsAWorker:
    """A sampler: when it is begun, and that is when the tasks are sent, a worker dies."""

    def __iter__(self) -> Any:
        victim = multiprocessing.active_children()[0].pid
        os.kill(victim, signal.SIGKILL)
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)  # and leaves it for the handler to find
        yield from range(24)


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_a_worker_that_dies_while_the_epoch_begins(schedule: Any) -> None:
    """torch's handler of SIGCHLD would raise out of iter()."""
    assert numbers(loader(sampler=KillsAWorker(), retries=1, schedule=schedule)) == EVEN


def waits_for_the_gate(i: int) -> torch.Tensor:
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    return ls.plain(i)


def test_workers_that_die_faster_than_they_work(tmp_path: Any, monkeypatch: Any) -> None:
    """Under the dynamic schedule all that is outstanding is sent again after each death, and not piled up: later tasks
    would come behind hours of what nobody needs any more."""
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    it = iter(loader(waits_for_the_gate, retries=1000, schedule="dynamic"))
    tasks = it._context.shared
    for i in range(30):
        worker = it._workers[i % 2]
        worker.kill()
        worker.join()
        assert it._try_get_data(0.05) == (False, None)
        assert it._workers[i % 2] is not worker, "it was replaced"
        assert tasks.qsize() <= 4, "two for each worker"
    (tmp_path / "gate").touch()
    assert numbers(it) == EVEN


def test_retries_come_to_an_end() -> None:
    with pytest.raises(RuntimeError, match=r"exited unexpectedly; a batch was tried 3 times: see retries="):
        numbers(loader(ls.killed_at_7, retries=2))
    with pytest.raises(RuntimeError, match="see replay="):
        numbers(st.DataLoader(ls.Stream(20, ls.killed_at_7), num_workers=1, retries=2))
