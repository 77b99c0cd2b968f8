"""granularity="sample": all workers make each batch together, and nobody can tell from the batches."""

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
from support import leaves_nothing, python, same  # noqa: E402

import shmtensor as st  # noqa: E402
from shmtensor.data.loader import has_in_order  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    with leaves_nothing(of_others=False):
        yield
        gc.collect()


def loader(num_workers: int, make: Any = ls.random_kinds, n: int = 41, **options: Any) -> Any:
    options = {"batch_size": 4, "granularity": "sample", "shuffle": True, **options}
    return st.DataLoader(ls.Numbers(n, make), num_workers=num_workers, **options)


def torchs(make: Any, n: int = 41, **options: Any) -> Any:
    return torch.utils.data.DataLoader(ls.Numbers(n, make), **{"batch_size": 4, "num_workers": 2, **options})


def epochs(of: Any, n: int = 3) -> Any:
    torch.manual_seed(3)
    np.random.seed(4)
    random.seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = [[ls.own(x) for x in of] for _ in range(n)]
    return batches, torch.get_rng_state(), np.random.get_state()[1], random.getstate()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "dynamic"},
        {"batch_size": 1},
        {"batch_size": 41},
        {"drop_last": True},
        {"batch_size": 1, "shuffle": None, "batch_sampler": [[3], [1, 2, 5, 1], range(7), (40, 0)]},
        {"keep": 0},
    ],
    ids=["shuffled", "dynamic", "1", "all", "drop_last", "batch_sampler", "keep 0"],
)
def test_the_batches_do_not_depend_on_the_workers(options: dict[str, Any]) -> None:
    expected = epochs(loader(0, **options))
    assert not same(expected[0][0], expected[0][1])
    for num_workers in (1, 2, 3):
        assert same(epochs(loader(num_workers, **options)), expected)
    assert same(epochs(loader(2, persistent_workers=True, **options)), expected)
    assert same(epochs(loader(2, prefetch_factor=5, **options)), expected)


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_other_start_methods(start: str) -> None:
    assert same(epochs(loader(2, multiprocessing_context=start), 2), epochs(loader(0), 2))


@pytest.mark.parametrize("make", [ls.plain, ls.small, ls.scalar, ls.all_kinds, ls.transposed, ls.with_more_kinds])
def test_the_batches_are_torchs(make: Any) -> None:
    expected = list(torchs(make))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # none is made twice
        assert same([ls.own(x) for x in loader(2, make, shuffle=False)], expected)


def test_all_make_one_batch() -> None:
    (batch, made_by) = next(iter(loader(3, ls.who_made_it, batch_size=41, shuffle=False)))
    assert batch[:, 0].tolist() == list(range(41))
    assert len(set(made_by.tolist())) == 3 and os.getpid() not in made_by


def test_whoever_is_idle_makes_the_next(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEATHS", str(tmp_path))
    (batch,) = (x.tolist() for x in loader(2, ls.waits_for_3, 8, batch_size=8, shuffle=False))
    assert [i for i, _, _ in batch] == list(range(8))
    assert batch[0][2] and batch[1][1] == batch[2][1] == batch[3][1] != batch[0][1]


@pytest.mark.skipif(not has_in_order, reason="this torch has no in_order=False")
def test_as_they_come(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEATHS", str(tmp_path))
    options = {"batch_size": 1, "shuffle": False, "in_order": False}
    batches = [x.tolist()[0] for x in loader(2, ls.waits_for_3, 8, **options)]
    assert sorted(i for i, _, _ in batches) == list(range(8))
    assert [i for i, _, _ in batches].index(0) >= 3
    ours, none = (
        sorted(x[3].item() for x in loader(n, batch_size=1, in_order=False, generator=torch.Generator().manual_seed(1)))
        for n in (2, 0)
    )
    assert ours == none


def test_more_rows_than_go_to_the_workers_at_once() -> None:
    """They wait in the main process, and with them what is behind."""
    batches = [x[:, 0].tolist() for x in loader(2, ls.small, 9000, batch_size=3000, shuffle=False, prefetch_factor=3)]
    assert batches == [list(range(i, i + 3000)) for i in (0, 3000, 6000)]


# ---- what does not go by rows ----------------------------------------------------------------------------------------


def test_it_says_when_it_cannot(monkeypatch: Any) -> None:
    def reason(dataset: Any, **options: Any) -> str:
        with pytest.warns(UserWarning, match="granularity='sample' is not possible, as ") as found:
            of = st.DataLoader(dataset, granularity="sample", num_workers=2, **options)
        expected = list(torch.utils.data.DataLoader(dataset, num_workers=2, **options))
        assert same([ls.own(x) for x in of], expected) and len(expected) > 1
        return str(found[0].message)

    assert "not map-style" in reason(ls.Stream(10))
    assert "no batches" in reason(ls.Numbers(9, ls.plain), batch_size=None)
    assert "collate_fn" in reason(ls.Numbers(9, ls.plain), collate_fn=list)
    assert "__getitems__" in reason(ls.AllAtOnce(9, ls.plain), batch_size=2)
    assert "__getitems__" in reason(torch.utils.data.Subset(ls.AllAtOnce(9, ls.plain), range(5)), batch_size=2)
    from torch.utils.data._utils import collate

    monkeypatch.setitem(collate.default_collate_fn_map, torch.Tensor, lambda x, collate_fn_map=None: len(x))
    assert "default_collate" in reason(ls.Numbers(9, ls.plain), batch_size=2)
    with pytest.raises(ValueError, match="'batch' or 'sample'"):
        st.DataLoader(ls.Numbers(9, ls.plain), granularity="row")


def test_subsets(recwarn: Any) -> None:
    dataset = torch.utils.data.Subset(torch.utils.data.Subset(ls.Numbers(41, ls.random_kinds), range(3, 30)), range(20))
    both = [st.DataLoader(dataset, 3, num_workers=n, granularity="sample") for n in (0, 2)]
    assert same(epochs(both[1]), epochs(both[0]))
    assert not [w for w in recwarn if "granularity" in str(w.message)]


def test_samples_that_are_not_alike_are_made_by_one_worker() -> None:
    expected = list(torchs(ls.ordered_by_turns))
    with pytest.warns(RuntimeWarning, match="structures differ"):
        assert same([ls.own(x) for x in loader(2, ls.ordered_by_turns, shuffle=False)], expected)


@pytest.mark.parametrize("make", [ls.of_any_length, ls.fails_at_7, ls.unsendable_at_7])
def test_errors_are_torchs(make: Any) -> None:
    """And the epoch goes on."""

    def run(of: Any) -> list[Any]:
        out: list[Any] = []
        it = iter(of)
        while True:
            try:
                out.append(ls.own(next(it)))
            except StopIteration:
                return out
            except Exception as e:
                text = str(e).split("\n")
                out.append((type(e), text[-2]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = run(loader(2, make, shuffle=False))
        assert same(ours, run(torchs(make)))
    assert any(type(x) is tuple for x in ours)


# ---- deaths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True])
def test_deaths_change_nothing(persistent: bool, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("DEATHS", str(tmp_path))
    ours = epochs(loader(2, ls.dies_once, retries=4, persistent_workers=persistent))
    assert len(list(tmp_path.iterdir())) == 4
    assert same(ours, epochs(loader(0)))


def test_random_kills_with_retries() -> None:
    choose = random.Random(2)
    torch.manual_seed(7)
    expected = [ls.own(x) for x in loader(0, n=300, batch_size=5)]
    torch.manual_seed(7)
    it = iter(loader(3, n=300, batch_size=5, retries=60))
    kills = 0
    for i, x in enumerate(it):
        assert same(x, expected[i])
        if choose.random() < 0.5:
            os.kill(choose.choice(it._workers).pid, signal.SIGKILL)
            kills += 1
    assert i == 59 and kills > 10
    del it


def test_who_dies_of_a_row_is_not_replaced_for_ever() -> None:
    it = iter(loader(2, ls.killed_at_7, retries=2, shuffle=False))
    next(it)
    for _ in range(2):  # nor does whoever asks again wait for ever
        with pytest.raises(RuntimeError, match="exited unexpectedly; a batch was tried 3 times: see retries="):
            next(it)
    del it


def test_without_retries_a_death_is_torchs_error() -> None:
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(?s?\)? ?\d+\) (exited unexpectedly|is killed)"):
        list(loader(2, ls.killed_at_7))


def test_an_answer_that_outlives_its_worker_counts(tmp_path: Any, monkeypatch: Any) -> None:
    """It is not made again: who made it twice might still write while the batch is looked at."""
    monkeypatch.setenv("DEATHS", str(tmp_path))
    of = loader(1, ls.counts_calls, 12, batch_size=3, shuffle=False, retries=5, prefetch_factor=4)
    it = iter(of)
    first = next(it)
    while it._results._answers._count()[0] < 9:  # all rows are answered, and none was received
        pass
    os.kill(it._workers[0].pid, signal.SIGKILL)
    it._workers[0].join()
    assert [x.tolist() for x in (first, *it)] == [[[i, 1] for i in range(k, k + 3)] for k in (0, 3, 6, 9)]


def test_a_worker_whose_places_outlive_it(tmp_path: Any, monkeypatch: Any) -> None:
    """What it had in hand is made again when they are free: it is noticed although nobody else dies."""
    monkeypatch.setenv("DEATHS", str(tmp_path))
    batches = [x[:, 0, 0].tolist() for x in loader(2, ls.dies_before_its_child, 12, shuffle=False, retries=2)]
    assert batches == [[float(i) for i in range(k, k + 4)] for k in (0, 4, 8)]
    assert (tmp_path / "5").exists()


# ---- slots -----------------------------------------------------------------------------------------------------------


def slots_of(it: Any) -> dict[str, int]:
    figures = it._results.slots.stats()
    return {k: figures[k] for k in ("free", "writing", "ready", "reading")}


@pytest.mark.parametrize("persistent", [False, True])
def test_ended_early(persistent: bool) -> None:
    """What an epoch has left does not turn up in the next one, and its slots are free."""
    of = loader(2, persistent_workers=persistent, prefetch_factor=4)
    torch.manual_seed(6)
    ours = []
    for stop in (0, 2, 5, 1, 10):
        for i, x in enumerate(of):
            ours.append(ls.own(x))
            if i == stop:
                break
    del x
    torch.manual_seed(6)
    expected, none = [], loader(0)
    for stop in (0, 2, 5, 1, 10):
        for i, x in enumerate(none):
            expected.append(ls.own(x))
            if i == stop:
                break
    assert same(ours, expected)
    if persistent:
        for _ in of:
            pass
        del _
        figures = slots_of(of._iterator)
        assert figures == {"free": sum(figures.values()), "writing": 0, "ready": 0, "reading": 0}


def test_kept_batches_are_copied() -> None:
    of = loader(2, ls.plain, keep=2)
    with pytest.warns(RuntimeWarning, match="more than keep=2"):
        batches = list(of)
    assert of.stats()["copied"] == 9
    assert sorted(x[0, 0].item() for batch in batches for x in batch) == list(range(41))


def test_what_is_written_is_seen_by_nobody_else() -> None:
    """Views that are kept stay what they are, while slots are used again and again."""
    kept: list[tuple[Any, int]] = []
    choose = random.Random(4)
    for epoch in range(3):
        for batch in loader(2, ls.plain, 80, keep=6, persistent_workers=False, batch_size=2):
            value = int(batch[0, 0, 0]) * 1000 + int(batch[1, 0, 0])
            kept.append((batch, value))
            for x, was in kept:
                assert int(x[0, 5, 5]) * 1000 + int(x[1, 49, 19]) == was, epoch
            while len(kept) > choose.randrange(6):
                kept.pop(choose.randrange(len(kept)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_states(num_workers: int) -> None:
    def of() -> Any:
        return loader(num_workers, generator=torch.Generator().manual_seed(5))

    expected = epochs(of(), 2)[0]
    torch.manual_seed(3)
    one, ours = of(), []
    for i, x in enumerate(one):
        ours.append(ls.own(x))
        if i == 4:
            break
    state = one.state_dict()
    other = loader(2 - num_workers, generator=torch.Generator())  # any number of workers
    other.load_state_dict(state)
    assert same([*ours, *(ls.own(x) for x in other)], expected[0])
    with pytest.raises(ValueError, match="granularity='sample', not 'batch'"):
        loader(num_workers, granularity="batch", stateful=True).load_state_dict(state)


def test_many_epochs_with_everything_at_once() -> None:
    """Batches that are kept, epochs that are broken off and workers that are killed leave nothing behind."""
    choose = random.Random(1)
    of = loader(2, ls.all_kinds, 60, batch_size=3, persistent_workers=True, retries=10**6, keep=3)
    kept: list[Any] = []
    count, most = 0, int(os.environ.get("SHMTENSOR_LOADER_BATCHES", "300"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while count < most:
            it = iter(of)
            for batch in it:
                count += 1
                assert all((row == row[0, 0, 0]).all() for row in batch["tensor"])
                if choose.random() < 0.2:
                    kept.append(batch)
                if choose.random() < 0.2:
                    kept.clear()
                if choose.random() < 0.03:
                    os.kill(choose.choice(it._workers).pid, signal.SIGKILL)
                if choose.random() < 0.02:
                    break
        del batch
        kept.clear()
        for _ in of:
            pass
        del _
    figures = slots_of(it)
    assert figures == {"free": sum(figures.values()), "writing": 0, "ready": 0, "reading": 0}


def test_in_debug_mode(monkeypatch: Any) -> None:
    """Where a slot that nobody has cannot be touched."""
    monkeypatch.setenv("SHMTENSOR_DEBUG", "1")
    script = (
        "import loader_support as ls, shmtensor as st\n"
        "of = st.DataLoader(ls.Numbers(20, ls.all_kinds), 4, num_workers=2, granularity='sample')\n"
        "for _ in range(3):\n"
        "    assert [x['int'].tolist() for x in of] == [[*range(i, i + 4)] for i in range(0, 20, 4)]\n"
    )
    python(script)
