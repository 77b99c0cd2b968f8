"""state_dict() and load_state_dict(): another loader goes on where one was, as if nothing had happened."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import random
import signal
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import loader_support as ls  # noqa: E402
from support import leaves_nothing, same  # noqa: E402
from torch.utils.data import RandomSampler, WeightedRandomSampler  # noqa: E402

import shmtensor as st  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    with leaves_nothing(of_others=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def seeded() -> Any:
    return torch.Generator().manual_seed(5)


def loader(dataset: Any = None, **options: Any) -> Any:
    dataset = ls.Numbers(41, ls.random_kinds) if dataset is None else dataset
    options = {k: v() if callable(v) else v for k, v in options.items()}
    return st.DataLoader(dataset, **{"batch_size": 4, "num_workers": 2, "stateful": True, **options})


def record(of: Any, epochs: int, at: tuple[int, int]) -> tuple[list[list[Any]], Any]:
    """The batches, and the state after batch ``at[1]`` of epoch ``at[0]``."""
    torch.manual_seed(3)
    batches: list[list[Any]] = []
    state = None
    for epoch in range(epochs):
        batches.append([])
        for i, x in enumerate(of):
            batches[-1].append(ls.own(x))
            if (epoch, i) == at:
                state = through_a_file(of.state_dict())
    return batches, state


MAP = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "shuffled by a generator": {"shuffle": True, "generator": seeded},
    "1 worker": {"shuffle": True, "num_workers": 1},
    "3 workers, much ahead": {"shuffle": True, "num_workers": 3, "prefetch_factor": 4},
    "without batches": {"batch_size": None},
    "weighted": {"sampler": lambda: WeightedRandomSampler(range(41), 50, generator=torch.Generator().manual_seed(1))},
    "replacement": {"sampler": lambda: RandomSampler(range(41), True, 45)},
    "persistent": {"shuffle": True, "persistent_workers": True},
    "own seeds": {"worker_init_fn": lambda: ls.init_seeds},
    "retries": {"shuffle": True, "retries": 2},
    "dynamic": {"shuffle": True, "schedule": "dynamic", "stateful": False},
    "dynamic without workers": {"shuffle": True, "schedule": "dynamic", "stateful": False, "num_workers": 0},
}


@pytest.mark.parametrize("at", [(0, 0), (1, 6)])
@pytest.mark.parametrize("options", MAP.values(), ids=MAP)
def test_goes_on(options: dict[str, Any], at: tuple[int, int]) -> None:
    epoch, last = at
    expected, state = record(loader(**options), 2, at)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    of = loader(**options)
    of.load_state_dict(state)
    assert same(of.state_dict(), state)
    assert same([ls.own(x) for x in of], expected[epoch][last + 1 :])
    assert same(torch.get_rng_state(), before)  # this process's own is left alone


def test_the_loaders_generator_goes_on_into_the_next_epoch() -> None:
    options = {"shuffle": True, "generator": seeded, "schedule": "dynamic"}
    expected, state = record(loader(**options), 3, (1, 4))
    of = loader(**{**options, "num_workers": 3})
    of.load_state_dict(state)
    assert same([[ls.own(x) for x in of] for _ in range(2)], [expected[1][5:], expected[2]])


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("at", [(0, 0), (0, 4), (1, 2)])
def test_an_iterable_dataset_is_read_again(at: tuple[int, int], persistent: bool) -> None:
    epoch, last = at
    options = {"dataset": ls.Stream(60, ls.random_kinds), "persistent_workers": persistent}
    expected, state = record(loader(**options), 2, at)
    of = loader(**options)
    of.load_state_dict(state)
    assert same([ls.own(x) for x in of], expected[epoch][last + 1 :])


@pytest.mark.parametrize("dataset", [ls.Numbers(41, ls.random_kinds), ls.Stream(60, ls.random_kinds)])
def test_without_workers_the_random_state_is_the_callers(dataset: Any) -> None:
    of = loader(dataset, num_workers=0)
    torch.manual_seed(3)
    it = iter(of)
    for _ in range(5):
        next(it)
    state, random_state = of.state_dict(), torch.get_rng_state()
    expected = [[x[0].clone(), x[3].clone()] for x in it]
    of = loader(dataset, num_workers=0)
    of.load_state_dict(state)
    torch.set_rng_state(random_state)
    assert same([[x[0].clone(), x[3].clone()] for x in of], expected)


def test_again_and_again() -> None:
    """Each loader makes one batch, and hands over."""
    expected, state = record(loader(shuffle=True), 1, (0, 0))
    ours = [expected[0][0]]
    for _ in range(10):
        of = loader(shuffle=True)
        of.load_state_dict(state)
        for x in of:
            ours.append(ls.own(x))
            break
        state = pickle.loads(pickle.dumps(of.state_dict()))
    assert same(ours, expected[0])


def test_the_same_loader_goes_back() -> None:
    for persistent in (False, True):
        of = loader(shuffle=True, persistent_workers=persistent)
        expected, state = record(of, 2, (0, 5))
        of.load_state_dict(state)
        assert same([ls.own(x) for x in of], expected[0][6:])


def test_with_other_workers() -> None:
    """Under the dynamic schedule it does not matter how many there are."""
    for first, then in ((2, 0), (0, 3), (3, 1)):
        options = {"shuffle": True, "schedule": "dynamic"}
        expected, state = record(loader(num_workers=first, **options), 1, (0, 5))
        of = loader(num_workers=then, **options)
        of.load_state_dict(state)
        assert same([ls.own(x) for x in of], expected[0][6:])


def test_between_epochs() -> None:
    def run(of: Any) -> Any:
        return [ls.own(x) for x in of]

    options = {"shuffle": True, "generator": seeded, "schedule": "dynamic"}
    of = loader(**options)
    new = loader(**options)
    new.load_state_dict(of.state_dict())  # nothing was begun
    assert same(run(of), run(new))
    newer = loader(**options)
    newer.load_state_dict(through_a_file(of.state_dict()))  # an epoch is over
    assert same(run(of), run(newer))


def test_deaths_after_going_on() -> None:
    expected, state = record(loader(shuffle=True), 1, (0, 2))
    of = loader(shuffle=True, retries=5)
    of.load_state_dict(state)
    it = iter(of)
    for worker in it._workers:
        os.kill(worker.pid, signal.SIGKILL)
    assert same([ls.own(x) for x in it], expected[0][3:])
    del it


def test_two_iterators_at_once() -> None:
    """The state is of the one that was begun last."""
    of = loader(ls.Numbers(41, ls.plain))
    one = iter(of)
    next(one)
    two = iter(of)
    for _ in range(3):
        next(two)
    for _ in range(4):
        next(one)
    assert of.state_dict()["yielded"] == 3
    del one, two


def test_copies_have_their_own_position() -> None:
    of = loader(ls.Numbers(41, ls.plain))
    it = iter(of)
    next(it)
    for other in (copy.copy(of), pickle.loads(pickle.dumps(of))):
        assert other.state_dict()["yielded"] == 0
    del it


def test_errors() -> None:
    with pytest.raises(RuntimeError, match="stateful=True"):
        loader(stateful=False).state_dict()
    with pytest.raises(RuntimeError, match="stateful=True"):
        loader(stateful=False, num_workers=0).load_state_dict({})
    with pytest.raises(ValueError, match="in_order"):
        loader(in_order=False)
    state = loader().state_dict()
    with pytest.raises(ValueError, match="num_workers=2, not 3"):
        loader(num_workers=3).load_state_dict(state)
    with pytest.raises(ValueError, match="schedule='static', not 'dynamic'"):
        loader(schedule="dynamic").load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size=4, not 5"):
        loader(batch_size=5).load_state_dict(state)
    with pytest.raises(ValueError, match="0 generators; this loader and its samplers have 1"):
        loader(generator=seeded).load_state_dict(state)
    with pytest.raises(ValueError, match="its version is None"):
        loader().load_state_dict({"_snapshot": {}})
    for foreign in (None, [state]):
        with pytest.raises(ValueError, match="its version is None"):
            loader().load_state_dict(foreign)
    it = iter(of := loader())
    next(it)
    state = of.state_dict()
    for name in set(state) - {"version"}:
        with pytest.raises(ValueError, match=f"not whole: KeyError\\('{name}'\\)"):
            loader().load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match="not whole"):
        loader().load_state_dict({**state, "begin": None})


def words(n: int, i: int = 0, value: int = 1) -> torch.Tensor:
    out = torch.ones(n, dtype=torch.int64)
    out[i] = value
    return out


DAMAGES: dict[str, list[Any]] = {
    "base_seed": [None, "7", 7.0, True, -1, 2**63, torch.tensor(7)],
    "yielded": [None, "1", 1.0, False, -1, 2**63, torch.tensor(1)],
    "is_over": [None, "False", 0, 1, torch.tensor(False)],
    "batch_size": [None, torch.tensor([4, 4])],
    "workers": [None, [], [None], [None] * 3, "ab", [1, 2], [None, {}], [None, b"abc"]],
    "generators": [None, 3, [torch.zeros(5056, dtype=torch.uint8)], [torch.zeros(7, dtype=torch.uint8)], ["x"], [None]],
    "begin": [None, {}, b"abc", []],
    "begin.torch": [
        None,
        b"",
        torch.zeros(7, dtype=torch.uint8),
        torch.zeros(5056),
        torch.zeros(5056, dtype=torch.uint8),
    ],
    "begin.numpy": [None, [], [words(624)], [words(624), 3, 0], [words(624), 3, 0, 0.0, 1]],
    "begin.numpy.0": [None, words(623), words(625), words(624).float(), words(624, 5, -1), words(624, 5, 2**32)],
    "begin.numpy.1": [None, -1, 625, 2**70, 3.0, "3"],
    "begin.numpy.2": [None, 2, -1, "0"],
    "begin.numpy.3": [None, "0", 3 + 0j],
    "begin.random": [None, [], [3, words(625)], [3, words(625), None, 0]],
    "begin.random.0": [None, 1, "3"],
    "begin.random.1": [
        None,
        words(624),
        words(626),
        words(625, 624, 625),
        words(625, 0, -1),
        words(625, 0, 2**32),
        words(625).float(),
    ],
    "begin.random.2": ["0", 3 + 0j, torch.tensor(0.0)],
}


def damaged(state: Any, path: str, value: Any) -> Any:
    """A copy of the state, in which something else stands there."""
    key, _, rest = path.partition(".")
    key = int(key) if isinstance(state, list) else key
    out = copy.copy(state)
    out[key] = damaged(state[key], rest, value) if rest else value
    return out


@pytest.mark.parametrize("path", DAMAGES)
def test_damaged_values(path: str) -> None:
    """Nothing is changed then."""
    of = loader(shuffle=True, generator=seeded)
    it = iter(of)
    for _ in range(3):
        next(it)
    state = through_a_file(of.state_dict())
    it2 = iter(other := loader(shuffle=True, generator=seeded))
    next(it2)
    before = copy.deepcopy(other.state_dict())
    mine, numpys, randoms = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cases = [(path, x) for x in DAMAGES[path]]
    if path.startswith("begin."):  # those of the workers are looked at, too
        worker = "workers.1" + path.removeprefix("begin")
        state["workers"][1] = state["begin"]
        cases += [(worker, x) for x in DAMAGES[path]]
    for where, value in cases:
        with pytest.raises(ValueError):
            other.load_state_dict(damaged(state, where, value))
        assert same(other.state_dict(), before)
    assert torch.equal(mine, torch.get_rng_state()) and random.getstate() == randoms
    assert all(np.array_equal(a, b) for a, b in zip(numpys, np.random.get_state(), strict=True))
    assert len(list(it2)) == 10
    other.load_state_dict(state)
    assert len(list(other)) == 8


def test_damaged_values_between_epochs() -> None:
    list(of := loader(shuffle=True, generator=seeded))
    state = through_a_file(of.state_dict())
    assert state["is_over"]
    other = loader(shuffle=True, generator=seeded)
    before = other.generator.get_state()
    for path in ("yielded", "is_over", "generators"):
        for value in DAMAGES[path]:
            with pytest.raises(ValueError):
                other.load_state_dict(damaged(state, path, value))
            assert torch.equal(other.generator.get_state(), before)
    other.load_state_dict(state)
    assert torch.equal(other.generator.get_state(), of.generator.get_state())


def test_damaged_values_of_the_dynamic_schedule() -> None:
    it = iter(of := loader(schedule="dynamic"))
    next(it)
    state = through_a_file(of.state_dict())
    with pytest.raises(ValueError, match="each batch is to have its own"):
        loader(schedule="dynamic").load_state_dict({**state, "workers": [None, state["begin"]]})
    other = loader(schedule="dynamic", num_workers=3)
    other.load_state_dict(state)
    assert len(list(other)) == 10


@pytest.mark.parametrize("options", [{}, {"num_workers": 0}, {"schedule": "dynamic"}])
def test_a_state_of_a_longer_dataset(options: dict[str, Any]) -> None:
    it = iter(of := loader(**options))
    for _ in range(5):
        next(it)
    shorter = loader(ls.Numbers(12, ls.plain), **options)
    shorter.load_state_dict(of.state_dict())
    with pytest.raises(ValueError, match="after batch 5, and this epoch has 3"):
        iter(shorter)
    assert len(list(shorter)) == 3
