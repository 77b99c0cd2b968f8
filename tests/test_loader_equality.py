"""DataLoader yields what torch's yields: the same batches in the same order, and the same random state afterwards."""

from __future__ import annotations

import os
import random
import warnings
from itertools import chain
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import loader_support as ls  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as strats  # noqa: E402
from support import START_METHODS, leaves_nothing, same  # noqa: E402
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler, WeightedRandomSampler  # noqa: E402

import shmtensor as st  # noqa: E402


def run(loader_type: Any, dataset: Any, options: dict[str, Any], epochs: int = 2) -> Any:
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    options = {
        k: v() if callable(v) and k in ("generator", "sampler", "batch_sampler") else v for k, v in options.items()
    }
    loader = loader_type(dataset, **options)
    batches = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(epochs):
            batches.append([ls.own(batch) for batch in loader])
    states = [torch.get_rng_state(), np.random.get_state()[1], random.getstate()]
    if loader.generator is not None:
        states.append(loader.generator.get_state())
    del loader
    return batches, states


def check(dataset: Any, **options: Any) -> None:
    theirs, their_state = run(torch.utils.data.DataLoader, dataset, options)
    with leaves_nothing(of_others=False):
        ours, our_state = run(st.DataLoader, dataset, options)
    assert [len(epoch) for epoch in ours] == [len(epoch) for epoch in theirs]
    assert sum(map(len, ours)) > 0
    for a, b in zip(chain(*ours), chain(*theirs), strict=True):
        assert same(a, b), (a, b)
    assert same(our_state, their_state)


def seeded() -> Any:
    return torch.Generator().manual_seed(5)


PLAIN = ls.Numbers(23, ls.plain)
RANDOM = ls.Numbers(30, ls.random_kinds)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "batches of 1": (PLAIN, {}),
    "batches of 4": (PLAIN, {"batch_size": 4}),
    "one batch": (PLAIN, {"batch_size": 64}),
    "drop last": (PLAIN, {"batch_size": 4, "drop_last": True}),
    "without batches": (PLAIN, {"batch_size": None}),
    "without batches, all kinds": (ls.Numbers(9, ls.all_kinds), {"batch_size": None}),
    "shuffled": (PLAIN, {"batch_size": 3, "shuffle": True}),
    "shuffled by a generator": (PLAIN, {"batch_size": 3, "shuffle": True, "generator": seeded}),
    "random samples": (RANDOM, {"batch_size": 4}),
    "random samples, shuffled": (RANDOM, {"batch_size": 4, "shuffle": True, "generator": seeded}),
    "random samples, own seeds": (RANDOM, {"batch_size": 4, "worker_init_fn": ls.init_seeds}),
    "random samples, persistent": (RANDOM, {"batch_size": 4, "persistent_workers": True}),
    "persistent, shuffled": (PLAIN, {"batch_size": 4, "shuffle": True, "persistent_workers": True}),
    "prefetch 1": (PLAIN, {"batch_size": 2, "prefetch_factor": 1}),
    "prefetch 7": (PLAIN, {"batch_size": 2, "prefetch_factor": 7}),
    "weighted": (PLAIN, {"batch_size": 5, "sampler": lambda: WeightedRandomSampler(range(23), 40)}),
    "replacement": (PLAIN, {"batch_size": 5, "sampler": lambda: RandomSampler(range(23), True, 31)}),
    "indices": (PLAIN, {"batch_size": 5, "sampler": [3, 1, 4, 1, 5, 9, 2, 6]}),
    "batch sampler": (PLAIN, {"batch_sampler": lambda: BatchSampler(SequentialSampler(range(23)), 6, False)}),
    "batches of indices": (PLAIN, {"batch_sampler": [[1, 2], [3], [4, 5, 6]]}),
    "all kinds": (ls.Numbers(20, ls.all_kinds), {"batch_size": 4}),
    "all kinds in a spawned worker": (
        ls.Numbers(6, ls.all_kinds),
        {"batch_size": 2, "multiprocessing_context": "spawn", "num_workers": 1},
    ),
    "numbers": (ls.Numbers(20, ls.scalar), {"batch_size": 4}),
    "small tensors": (ls.Numbers(200, ls.small), {"batch_size": 64}),
    "transposed": (ls.Numbers(10, ls.transposed), {"batch_size": None}),
    "transposed, stacked": (ls.Numbers(10, ls.transposed), {"batch_size": 3}),
    "channels last, small, stacked": (ls.Numbers(10, ls.small_clip), {"batch_size": 3}),
    "with grad": (ls.Numbers(10, ls.with_grad), {"batch_size": None}),
    "made in place": (ls.Numbers(23, ls.in_place), {"batch_size": 4}),
    "made in place, two fields": (ls.Numbers(23, ls.in_place_twice), {"batch_size": 4, "shuffle": True}),
    "made in place, without batches": (ls.Numbers(23, ls.in_place), {"batch_size": None}),
    "__getitems__": (ls.AllAtOnce(20, ls.plain), {"batch_size": 6}),
    "collate: a list": (ls.Numbers(20, ls.of_any_length), {"batch_size": 4, "collate_fn": ls.as_they_are}),
    "collate: padded": (ls.Numbers(20, ls.of_any_length), {"batch_size": 4, "collate_fn": ls.padded}),
    "collate: packed": (ls.Numbers(20, ls.of_any_length), {"batch_size": 4, "collate_fn": ls.packed}),
    "collate: sparse": (PLAIN, {"batch_size": 4, "collate_fn": ls.sparse}),
    "collate: a dataclass": (PLAIN, {"batch_size": 4, "collate_fn": ls.records}),
    "collate: the default inside": (PLAIN, {"batch_size": 4, "collate_fn": ls.default_inside}),
    "collate: aliases": (PLAIN, {"batch_size": 4, "collate_fn": ls.twice_the_same}),
    "collate: an own map": (PLAIN, {"batch_size": 4, "collate_fn": ls.own_map_entry}),
    "a stream": (ls.Stream(40), {"batch_size": 3}),
    "a stream, drop last": (ls.Stream(40), {"batch_size": 3, "drop_last": True}),
    "a stream, without batches": (ls.Stream(40), {"batch_size": None}),
    "a stream, persistent": (ls.Stream(40), {"batch_size": 3, "persistent_workers": True}),
    "a stream of random samples": (ls.Stream(40, ls.random_kinds), {"batch_size": 3}),
    "a stream that lies about its length": (ls.SizedStream(40), {"batch_size": 3}),
}


#: Each case with 1, 2 and 4 workers; else each with one of these, by turns.
FULL = os.environ.get("SHMTENSOR_LOADER") == "full"
RUNS = [(case, n) for i, case in enumerate(CASES) for n in ((1, 2, 4) if FULL else [(1, 2, 4, 2)[i % 4]])]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("case", "workers"), RUNS)
def test_same_as_torchs(case: str, workers: int) -> None:
    dataset, options = CASES[case]
    check(dataset, **{"num_workers": workers, **options})


@pytest.mark.parametrize("method", START_METHODS)
def test_each_start_method(method: str) -> None:
    """torch's workers are forked, for it takes seconds to start one otherwise: the batches are the same."""
    for context, workers in (method, 2), (st.get_context(method), 1):
        options = {"batch_size": 4, "num_workers": workers}
        theirs = run(torch.utils.data.DataLoader, RANDOM, options, epochs=1)
        assert same(run(st.DataLoader, RANDOM, {**options, "multiprocessing_context": context}, epochs=1), theirs)


def test_without_order() -> None:
    if torch.__version__ < "2.6":
        pytest.skip("in_order came with torch 2.6")
    check(PLAIN, batch_size=2, num_workers=1, in_order=False)
    options = {"batch_size": 2, "num_workers": 3, "in_order": False}
    (ours,), _ = run(st.DataLoader, PLAIN, options, epochs=1)
    assert sorted(int(x[0, 0, 0]) for x in ours) == list(range(0, 23, 2))


def test_datapipes() -> None:
    pipes = pytest.importorskip("torch.utils.data.datapipes.iter", reason="this torch has no datapipes")

    def pipe() -> Any:
        return pipes.IterableWrapper(range(60)).shuffle().sharding_filter().map(ls.plain)

    torch.manual_seed(3)
    theirs = [ls.own(x) for x in torch.utils.data.DataLoader(pipe(), batch_size=4, num_workers=2, shuffle=True)]
    torch.manual_seed(3)
    ours = [ls.own(x) for x in st.DataLoader(pipe(), batch_size=4, num_workers=2, shuffle=True)]
    assert len(ours) > 10
    assert same(ours, theirs)


def test_without_workers_it_is_torchs_own() -> None:
    check(RANDOM, batch_size=4, shuffle=True)
    assert type(iter(st.DataLoader(PLAIN))) is type(iter(torch.utils.data.DataLoader(PLAIN)))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(strats.data())
def test_drawn_combinations(data: Any) -> None:
    draw = data.draw
    make = draw(
        strats.sampled_from([ls.plain, ls.small, ls.random_kinds, ls.all_kinds, ls.in_place, ls.in_place_twice])
    )
    options: dict[str, Any] = {
        "num_workers": draw(strats.integers(1, 4)),
        "batch_size": draw(strats.sampled_from([None, 1, 2, 5, 16])),
        "prefetch_factor": draw(strats.integers(1, 4)),
        "persistent_workers": draw(strats.booleans()),
    }
    if draw(strats.booleans()):
        dataset: Any = ls.Stream(draw(strats.integers(1, 40)), make)
    else:
        dataset = ls.Numbers(draw(strats.integers(1, 40)), make)
        options["shuffle"] = draw(strats.booleans())
        if draw(strats.booleans()):
            options["generator"] = seeded
    if options["batch_size"] is not None:
        options["drop_last"] = draw(strats.booleans())
    theirs, their_state = run(torch.utils.data.DataLoader, dataset, options)
    ours, our_state = run(st.DataLoader, dataset, options)
    assert same(ours, theirs)
    assert same(our_state, their_state)
