"""schedule="dynamic": whoever is idle makes the next batch, and nobody can tell from the batches who it was."""

from __future__ import annotations

import gc
import os
import random
import signal
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import loader_support as ls  # noqa: E402
from support import leaves_nothing, same  # noqa: E402

import shmtensor as st  # noqa: E402
from shmtensor.data.loader import has_in_order  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    with leaves_nothing(of_others=False):
        yield
        gc.collect()


def loader(num_workers: int, make: Any = ls.random_kinds, n: int = 41, **options: Any) -> Any:
    options = {"batch_size": 4, "schedule": "dynamic", "shuffle": True, **options}
    return st.DataLoader(ls.Numbers(n, make), num_workers=num_workers, **options)


def epochs(of: Any, n: int = 3) -> Any:
    torch.manual_seed(3)
    np.random.seed(4)
    random.seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = [[ls.own(x) for x in of] for _ in range(n)]
    return batches, torch.get_rng_state(), np.random.get_state()[1], random.getstate()


class Eager:
    """A sampler that draws as soon as it is begun."""

    def __iter__(self) -> Any:
        return iter(torch.randperm(41).tolist())

    def __len__(self) -> int:
        return 41


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"generator": torch.Generator()},
        {"batch_size": None},
        {"batch_size": None, "shuffle": None, "sampler": Eager()},
        {"shuffle": None, "sampler": Eager()},
    ],
    ids=["shuffled", "generator", "without batches", "eager, without batches", "eager"],
)
def test_the_batches_do_not_depend_on_the_workers(options: dict[str, Any]) -> None:
    def run(num_workers: int, **more: Any) -> Any:
        if "generator" in options:
            options["generator"].manual_seed(8)
        return epochs(loader(num_workers, **options, **more))

    expected = run(0)
    assert not same(expected[0][0], expected[0][1])
    for num_workers in (1, 2, 3):
        assert same(run(num_workers), expected)
    assert same(run(2, persistent_workers=True), expected)
    assert same(run(2, prefetch_factor=5), expected)


def test_in_spawned_workers() -> None:
    assert same(epochs(loader(2, multiprocessing_context="spawn"), 1), epochs(loader(0), 1))


def test_whoever_is_idle_makes_the_next(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEATHS", str(tmp_path))
    batches = [x.tolist() for x in loader(2, ls.waits_for_3, 8, batch_size=None, shuffle=False)]
    assert [i for i, _, _ in batches] == list(range(8))
    assert batches[0][2] and batches[1][1] == batches[2][1] == batches[3][1] != batches[0][1]


@pytest.mark.skipif(not has_in_order, reason="this torch has no in_order=False")
def test_as_they_come(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEATHS", str(tmp_path))
    batches = [x.tolist() for x in loader(2, ls.waits_for_3, 8, batch_size=None, shuffle=False, in_order=False)]
    assert sorted(i for i, _, _ in batches) == list(range(8))
    assert [i for i, _, _ in batches].index(0) >= 3


@pytest.mark.parametrize("persistent", [False, True])
def test_ended_early(persistent: bool) -> None:
    """What an epoch has left does not turn up in the next one."""
    of = loader(2, persistent_workers=persistent, prefetch_factor=4)
    torch.manual_seed(6)
    ours = []
    for stop in (0, 2, 5, 1, 10):
        for i, x in enumerate(of):
            ours.append(ls.own(x))
            if i == stop:
                break
    torch.manual_seed(6)
    expected, none = [], loader(0)
    for stop in (0, 2, 5, 1, 10):
        for i, x in enumerate(none):
            expected.append(ls.own(x))
            if i == stop:
                break
    assert same(ours, expected)


@pytest.mark.parametrize("persistent", [False, True])
def test_deaths_change_nothing(persistent: bool, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEATHS", str(tmp_path))
    ours = epochs(loader(2, ls.dies_once, retries=4, persistent_workers=persistent))
    assert len(list(tmp_path.iterdir())) == 4
    assert same(ours, epochs(loader(0)))


def test_random_kills_with_retries() -> None:
    choose = random.Random(2)
    torch.manual_seed(7)
    expected = [ls.own(x) for x in loader(0, n=300, batch_size=2)]
    torch.manual_seed(7)
    it = iter(loader(3, n=300, batch_size=2, retries=60))
    kills = 0
    for i, x in enumerate(it):
        assert same(x, expected[i])
        if choose.random() < 0.15:
            os.kill(choose.choice(it._workers).pid, signal.SIGKILL)
            kills += 1
    assert i == 149 and kills > 10
    del it


def test_who_dies_of_a_batch_is_not_replaced_for_ever() -> None:
    it = iter(loader(2, ls.killed_at_7, retries=2, shuffle=False))
    next(it)
    for _ in range(2):  # nor does whoever asks again wait for ever
        with pytest.raises(RuntimeError, match="exited unexpectedly; a batch was tried 3 times: see retries="):
            next(it)
    del it


def test_refused() -> None:
    with pytest.raises(ValueError, match="map-style"):
        st.DataLoader(ls.Stream(10), schedule="dynamic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.data.datapipes.map import SequenceWrapper
    with pytest.raises(ValueError, match="datapipe"):
        st.DataLoader(SequenceWrapper(range(10)), schedule="dynamic")
    with pytest.raises(ValueError, match="'static' or 'dynamic'"):
        loader(2, schedule="guided")


def test_progress(capsys: Any) -> None:
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    for num_workers in (0, 2):
        assert len(list(loader(num_workers, progress=True))) == 11
        assert "11/11" in capsys.readouterr().err
    it = iter(st.DataLoader(ls.Stream(40), 4, num_workers=2, progress=True))
    assert sum(len(x) for x in it) > 30
    assert "batch" in capsys.readouterr().err
    of = loader(2, ls.plain, progress=True, schedule="static", batch_size=2)
    for _ in of:
        pass
    assert of.stats()["copied"] == 0
