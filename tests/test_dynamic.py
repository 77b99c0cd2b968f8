"""Dynamic shapes: each item carries its own, bounded by max_shape or growing its slot; across processes as well."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from support import (
    SECONDS,
    START_METHODS,
    Crew,
    hear,
    leaves_nothing,
    not_permitted,
    path_of,
    python,
    unique_name,
)

import shmtensor as st

ANY = ((None,), "uint8")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing(of_others=False):
        yield


def some(*shape: int, dtype: str = "int32") -> np.ndarray:
    return (np.arange(int(np.prod(shape))) % 251).astype(dtype).reshape(shape)


# ---- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        st.Field((None, 4), "int32", max_shape=(10, 4)),
        st.Field((None, None), "int32", max_shape=(10, 4)),
        st.Field((None, 4), "int32"),
        st.Field((None, None), "int32"),
    ],
    ids=["bounded", "bounded twice", "unbounded", "unbounded twice"],
)
def test_each_item_has_its_own_shape(field: st.Field) -> None:
    with st.TensorBuffer.create(field, slots=3) as buffer:
        for n in (0, 1, 10, 3, 0, 7):
            x = some(n, 4) + n
            buffer.put(x)
            got = buffer.get()
            assert got.shape == (n, 4)
            assert np.array_equal(got, x)
            del got
            with buffer.claim() as slot:
                slot.empty(None, (n, 4))[...] = x
            with buffer.acquire() as slot:
                assert np.array_equal(slot.numpy(), x)
            with buffer.claim() as slot:
                slot.write(x)
                assert slot.numpy().shape == (n, 4)
            assert np.array_equal(buffer.get(copy=True), x)


def test_fields_of_all_kinds_in_one_item() -> None:
    spec = {
        "fixed": ((3,), "float64"),
        "bounded": st.Field((None, 2), "int32", max_shape=(5, 2)),
        "deep": {"any": ((None,), "uint8"), "planes": ((2, None, None), "int16")},
        "scalar": ((), "int64"),
    }
    with st.TensorBuffer.create(spec, slots=2) as buffer:
        for n in (0, 1, 5, 2):
            item = {
                "fixed": np.full(3, n, "float64"),
                "bounded": some(n, 2),
                "deep": {"any": some(1000 * n, dtype="uint8"), "planes": some(2, n + 1, n, dtype="int16")},
                "scalar": n,
            }
            buffer.put(item)
            got = buffer.get(copy=True)
            assert got["fixed"].tolist() == [n] * 3
            assert np.array_equal(got["bounded"], item["bounded"])
            for name in ("any", "planes"):
                assert got["deep"][name].shape == item["deep"][name].shape
                assert np.array_equal(got["deep"][name], item["deep"][name])
            assert got["scalar"] == n
            with buffer.claim() as slot:  # the unbounded ones in another order than the spec's
                slot.write("deep.planes", item["deep"]["planes"])
                slot["scalar"] = n
                slot.empty("deep.any", 1000 * n)[...] = item["deep"]["any"]
                slot["bounded"] = item["bounded"]
                slot["fixed"] = item["fixed"]
            with buffer.acquire() as slot:
                assert np.array_equal(slot["deep.any"], item["deep"]["any"])
                assert np.array_equal(slot["deep.planes"], item["deep"]["planes"])
                assert np.array_equal(slot["bounded"], item["bounded"])


def test_no_dimension_sticks_to_the_slot() -> None:
    with st.TensorBuffer.create(ANY, slots=1) as buffer:
        buffer.put(some(5, dtype="uint8"))
        buffer.get(copy=True)
        slot = buffer.claim()
        with pytest.raises(ValueError, match="not been written"):
            slot.numpy()
        with pytest.raises(ValueError, match="not been written"):
            slot.publish()
        slot.abort()
        with pytest.raises(ValueError, match="not been written"), buffer.claim():
            pass
        assert buffer.stats()["free"] == 1
        buffer.put(some(2, dtype="uint8"))
        assert buffer.get(copy=True).shape == (2,)


def test_torch_items() -> None:
    torch = pytest.importorskip("torch")
    spec = {"a": ((None, 3), torch.bfloat16), "b": st.Field((None,), "float32", max_shape=(8,))}
    with st.TensorBuffer.create(spec, slots=2) as buffer:
        for n in (0, 1, 8):
            a = torch.arange(3.0 * n).reshape(n, 3).to(torch.bfloat16)
            b = torch.arange(float(n))
            buffer.put({"a": a.t().contiguous().t(), "b": b})
            item = buffer.get(torch=True)
            assert torch.equal(item["a"], a)
            assert torch.equal(item["b"], b)
            del item


def test_a_field_written_twice_takes_its_room_once() -> None:
    with st.TensorBuffer.create(ANY, slots=1, max_slot_nbytes=1 << 16) as buffer:
        with buffer.claim() as slot:
            for n in (40_000, 50_000, 10, 60_000):
                slot.write(some(n, dtype="uint8"))
        assert np.array_equal(buffer.get(copy=True), some(60_000, dtype="uint8"))


def test_batches_need_one_shape() -> None:
    with st.TensorBuffer.create(ANY, slots=2) as buffer:
        for call in (buffer.claim_many, buffer.acquire_many):
            with pytest.raises(TypeError, match="dynamic"):
                call(2)
        buffer.put_many([some(1, dtype="uint8"), some(2, dtype="uint8")])
        assert [len(x) for x in buffer.get_many(5, copy=True)] == [1, 2]


# ---- wrong shapes ------------------------------------------------------------------------------------------

WRONG = [
    ((11, 4), ValueError),  # larger than the bound
    ((3, 5), ValueError),
    ((12,), ValueError),
    ((3, 4, 1), ValueError),
]


@pytest.mark.parametrize(("shape", "error"), WRONG)
def test_wrong_shapes(shape: tuple[int, ...], error: type[Exception]) -> None:
    with st.TensorBuffer.create({"x": st.Field((None, 4), "int32", max_shape=(10, 4))}, slots=1) as buffer:
        with pytest.raises(error, match="'x'"):
            buffer.put({"x": some(*shape)})
        slot = buffer.claim()
        with pytest.raises(error, match="'x'"):
            slot.empty("x", shape)
        slot.abort()
        assert buffer.stats()["free"] == 1
        buffer.put({"x": some(10, 4)})
        assert buffer.get(copy=True)["x"].shape == (10, 4)


@pytest.mark.parametrize("shape", [(-1,), (2**62,), (2**46 + 1,), ("3",), (1.5,), None, (None,), 2**70])
def test_impossible_shapes(shape: Any) -> None:
    with st.TensorBuffer.create(ANY, slots=1) as buffer:
        slot = buffer.claim()
        with pytest.raises((ValueError, TypeError, OverflowError, AttributeError)) as caught:
            slot.empty(None, shape)
        assert not isinstance(caught.value, AttributeError), "a typed error that says what is wrong"
        slot.abort()
        buffer.put(some(3, dtype="uint8"))
        assert buffer.get(copy=True).tolist() == [0, 1, 2]


def test_empty_is_for_dynamic_fields() -> None:
    with st.TensorBuffer.create({"x": ((3,), "int8"), "y": ANY}, slots=1) as buffer, buffer.claim() as slot:
        with pytest.raises(ValueError, match="fixed shape"):
            slot.empty("x", (3,))
        with pytest.raises(KeyError, match="did you mean 'y'"):
            slot.empty("yy", (3,))
        slot.abort()


def test_unbounded_fields_cannot_be_reserved_in_full() -> None:
    with pytest.raises(ValueError, match="reserve=") as caught:
        st.TensorBuffer.create(ANY, slots=1, reserve="full")
    assert "max_shape" in str(caught.value)
    with pytest.raises(ValueError, match="SharedTensor"):
        st.SharedTensor.empty((None, 3), "int8")


# ---- growth ------------------------------------------------------------------------------------------------


def test_slots_grow_and_stay_grown() -> None:
    with st.TensorBuffer.create(ANY, slots=2) as buffer:
        empty = buffer.stats()["reserved_nbytes"]
        assert empty < 1 << 20, "nothing but the fixed part is reserved at first"
        assert buffer.slot_nbytes >= 1 << 26, "how far a slot may grow"
        x = some(3_000_000, dtype="uint8")
        buffer.put(x)
        grown = buffer.stats()["reserved_nbytes"]
        assert 3_000_000 <= grown < 2 * 3_000_000 + (1 << 20)
        assert np.array_equal(buffer.get(copy=True), x)
        assert buffer.stats()["reserved_nbytes"] == grown, "it stays reserved"
        for _ in range(20):  # large items stay in few warm slots
            buffer.put(x)
            buffer.get(copy=True)
        assert buffer.stats()["reserved_nbytes"] == grown
        first, second = buffer.claim(), buffer.claim()
        for slot in (first, second):
            slot.write(x)
            slot.publish()
        assert buffer.stats()["reserved_nbytes"] <= 2 * grown


def test_growth_in_small_steps_is_not_paid_each_time() -> None:
    with st.TensorBuffer.create(ANY, slots=1) as buffer:
        sizes = set()
        for n in range(1000, 1_000_000, 1000):
            with buffer.claim() as slot:
                slot.empty(None, n)[-1] = 7
            sizes.add(buffer.stats()["reserved_nbytes"])
            assert buffer.get(copy=True)[-1] == 7
        assert len(sizes) < 40, f"1,000 sizes made {len(sizes)} reservations"


@pytest.mark.parametrize("limit", [1 << 16, 100_000, 1 << 20])
def test_max_slot_nbytes(limit: int) -> None:
    with st.TensorBuffer.create(ANY, slots=2, max_slot_nbytes=limit) as buffer:
        assert limit <= buffer.slot_nbytes < limit + 4096 + 1
        buffer.put(some(limit - 64, dtype="uint8"))
        assert len(buffer.get(copy=True)) == limit - 64
        with pytest.raises(ValueError, match="max_slot_nbytes"):
            buffer.put(some(limit + 5000, dtype="uint8"))
        slot = buffer.claim()
        with pytest.raises(ValueError, match="max_slot_nbytes"):
            slot.empty(None, limit + 5000)
        slot.write(some(10, dtype="uint8"))
        slot.publish()
        assert len(buffer.get(copy=True)) == 10
        assert buffer.stats()["free"] == 2


def test_max_slot_nbytes_below_the_fixed_part() -> None:
    with pytest.raises(ValueError, match="max_slot_nbytes"):
        st.TensorBuffer.create({"x": ((1000,), "int64"), "y": ANY}, max_slot_nbytes=4096)


def test_fixed_shapes_may_grow_too() -> None:
    """reserve="grow" for slots that may never be used."""
    with st.TensorBuffer.create(((1 << 20,), "uint8"), slots=64, reserve="grow") as buffer:
        x = some(1 << 20, dtype="uint8")
        for _ in range(5):
            buffer.put(x)
            assert np.array_equal(buffer.get(copy=True), x)
        batch = buffer.claim_many(3)
        batch.numpy()[...] = 1
        batch.publish()
        with buffer.acquire_many(3) as batch:
            assert batch.numpy().min() == 1
        with pytest.raises(ValueError):
            buffer.put(some((1 << 20) + 1, dtype="uint8"))


def test_more_than_there_is_memory() -> None:
    """An error at once, which says what is free; the slot goes back, and smaller items still fit."""
    with st.TensorBuffer.create(ANY, slots=1, max_slot_nbytes=1 << 45) as buffer:
        slot = buffer.claim()
        with pytest.raises(st.ShmNoSpaceError, match="bytes of memory are left"):
            slot.empty(None, 1 << 44)
        slot.write(some(100, dtype="uint8"))
        slot.publish()
        assert len(buffer.get(copy=True)) == 100
        assert buffer.stats()["reserved_nbytes"] < 1 << 20


# ---- across processes --------------------------------------------------------------------------------------


def check_items(connection: Connection, buffer: st.TensorBuffer) -> None:
    """The other side of test_shapes_cross_processes."""
    shapes = []
    for item in buffer:
        n = int(item["n"])
        assert item["any"].shape == (n, 3)
        assert np.array_equal(item["any"], some(n, 3) + n)
        assert item["bounded"].shape == (n % 9,)
        shapes.append(n)
        del item
    connection.send((shapes, buffer.stats()["reserved_nbytes"]))


@pytest.mark.parametrize("method", START_METHODS)
def test_shapes_cross_processes(method: str) -> None:
    """The reader maps what the writer's growth added."""
    spec = {
        "n": ((), "int64"),
        "any": ((None, 3), "int32"),
        "bounded": st.Field((None,), "float32", max_shape=(8,)),
    }
    sizes = [0, 1, 5000, 17, 200_000, 3, 400_000, 0]
    with st.TensorBuffer.create(spec, slots=3) as buffer, Crew(method) as crew:
        connection = crew.start(check_items, buffer)
        for n in sizes:
            item = {"n": n, "any": some(n, 3) + n, "bounded": np.zeros(n % 9, "float32")}
            buffer.put(item, timeout=SECONDS)
        buffer.shutdown()
        heard, reserved = hear(connection)
        assert heard == sizes
        assert reserved == buffer.stats()["reserved_nbytes"] >= 400_000 * 12


def test_both_sides_grow_the_same_slots() -> None:
    name = unique_name()
    with st.TensorBuffer.create(ANY, slots=1, name=name) as buffer, Crew() as crew:

        def child(connection: Connection) -> None:
            for n in range(0, 2_000_000, 100_000):
                x = buffer.get(timeout=SECONDS, copy=True)
                assert np.array_equal(x, some(n, dtype="uint8"))
                connection.send("read")
                connection.recv()
                buffer.put(some(n + 50_000, dtype="uint8"), timeout=SECONDS)
                connection.send("written")
                connection.recv()

        connection = crew.start(child)
        for n in range(0, 2_000_000, 100_000):
            buffer.put(some(n, dtype="uint8"), timeout=SECONDS)
            hear(connection)
            connection.send("go")
            hear(connection)
            assert np.array_equal(buffer.get(timeout=SECONDS), some(n + 50_000, dtype="uint8"))
            connection.send("go")


def test_a_grown_item_survives_its_writer() -> None:
    with st.TensorBuffer.create(ANY, slots=2) as buffer:
        crew = Crew()

        def child(connection: Connection) -> None:
            buffer.put(some(1_000_000, dtype="uint8"))
            slot = buffer.claim()
            slot.empty(None, 3_000_000)[...] = 1
            connection.send("grown")
            connection.recv()

        try:
            hear(crew.start(child))
            crew.processes[0].kill()
            crew.processes[0].join()
            assert buffer.reclaim() == 1
            assert np.array_equal(buffer.get(copy=True), some(1_000_000, dtype="uint8"))
            assert buffer.stats()["free"] == 2
            for _ in range(3):
                buffer.put(some(3_000_000, dtype="uint8"))
                assert np.array_equal(buffer.get(copy=True), some(3_000_000, dtype="uint8"))
        finally:
            crew.__exit__(KeyboardInterrupt)


SMALL_SHM = """
import os, subprocess, sys
import numpy as np
import shmtensor as st
subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=1M", "none", "/dev/shm"])
any = ((None,), "uint8")
with st.TensorBuffer.create(any, slots=2, name="small") as buffer:
    kept = []
    for n in (1000, 100_000, 600_000):
        buffer.put(np.full(n, 7, "uint8"))
        x = buffer.get(copy=True)
        assert x.shape == (n,) and x.min() == 7
    for _ in range(3):
        try:
            buffer.put(np.full(2_000_000, 7, "uint8"))
        except st.ShmNoSpaceError as e:
            assert "/dev/shm" in str(e) and "2,000," in str(e), e
        else:
            raise AssertionError("2 MB in 1 MiB")
        assert buffer.stats()["free"] == 2
    for n in (600_000, 5):  # smaller items go on
        buffer.put(np.full(n, 7, "uint8"))
        assert buffer.get(copy=True).min() == 7
assert os.listdir("/dev/shm") == []
with st.TensorBuffer.create(any, slots=2) as buffer:  # of no concern to an anonymous one
    buffer.put(np.full(8_000_000, 7, "uint8"))
    assert buffer.get(copy=True).min() == 7
print("done")
"""


def test_growth_in_a_small_dev_shm() -> None:
    """The slot that cannot grow is given back; nothing is touched unreserved, so nobody dies of SIGBUS."""
    wrapper = ("unshare", "--mount")
    if why := not_permitted(*wrapper, "mount", "-t", "tmpfs", "none", "/dev/shm"):
        pytest.skip(why)
    assert python(SMALL_SHM, wrapper=wrapper) == "done\n"
    assert not path_of("small").exists()
