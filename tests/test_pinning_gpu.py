"""The same on a GPU, where there is one: what the fake of tests/test_pinning.py takes CUDA to do."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

import loader_support as ls  # noqa: E402
from support import same  # noqa: E402

import shmtensor as st  # noqa: E402
import shmtensor.data  # noqa: E402
from shmtensor.data import cuda  # noqa: E402
from shmtensor.data.flight import in_flight  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    torch.cuda.synchronize()
    gc.collect()
    in_flight.poll()
    assert len(in_flight) == 0


def loader(make: Any, n: int, **options: Any) -> Any:
    return st.DataLoader(ls.Numbers(n, make), batch_size=2, num_workers=2, **options)


def large(i: int) -> Any:
    return torch.full((1 << 20,), float(i))


def growing(i: int) -> Any:
    return torch.full((1000 * (1 + i),), float(i))


def test_batches_are_pinned_where_they_lie() -> None:
    for x in loader(large, 40, pin_memory="in_place"):
        assert x.is_pinned() and ls.lies_in_a_slot(x)


def test_slots_that_grow() -> None:
    of = st.DataLoader(ls.Numbers(80, growing), batch_size=None, num_workers=2, pin_memory="in_place", device="cuda")
    for i, x in enumerate(of):
        assert x.is_cuda and bool((x == i).all())


def test_all_kinds_on_the_device() -> None:
    theirs = list(torch.utils.data.DataLoader(ls.Numbers(80, ls.all_kinds), batch_size=2))
    on_the_device = loader(ls.all_kinds, 80, pin_memory="in_place", device="cuda")

    def back(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            assert x.is_cuda
            return x.cpu()
        if isinstance(x, dict):
            return {k: back(v) for k, v in x.items()}
        if isinstance(x, ls.Pair):
            return ls.Pair(*map(back, x))
        return list(map(back, x)) if isinstance(x, list) else x

    for x, y in zip(on_the_device, theirs, strict=True):
        assert same(back(x)["tensor"], y["tensor"]) and same(back(x)["nested"], y["nested"])


def test_a_device_that_is_behind() -> None:
    """Copies are issued behind work that takes a while, and slots go round meanwhile."""
    stream, busy = torch.cuda.Stream(), torch.rand(4000, 4000, device="cuda")
    out = []
    for x in loader(large, 60, pin_memory="in_place"):
        with torch.cuda.stream(stream):
            for _ in range(5):
                busy @ busy
            out.append(x.to("cuda", non_blocking=True))
        shmtensor.data.record_stream(x, stream)
    torch.cuda.synchronize()
    assert all(bool((x[0] == 2 * i).all() and (x[1] == 2 * i + 1).all()) for i, x in enumerate(out))


def test_a_failed_registration_leaves_no_error_behind() -> None:
    x = torch.ones(1 << 16).pin_memory()
    with pytest.raises(RuntimeError, match="failed with error"):
        cuda.runtime.register(x.data_ptr(), x.nbytes)  # a second time
    assert torch.ones(3, device="cuda").sum().item() == 3
