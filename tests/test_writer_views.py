"""A writer's arrays: made once for a slot and used again, but never while somebody else still has them."""

import gc
import os
import weakref

import numpy as np
import pytest

import shmtensor as st

SPEC = {"a": ((4,), "int64"), "b": ((2, 3), "float32")}


@pytest.fixture
def buf():
    with st.TensorBuffer.create(SPEC, slots=1) as buffer:
        yield buffer


def consume(buffer):
    buffer.acquire(timeout=5).release()


def test_an_array_that_was_dropped_is_used_again(buf):
    seen = []
    for _ in range(3):
        with buf.claim() as slot:
            seen.append((id(slot["a"]), id(slot["b"])))
        consume(buf)
    assert seen[0] == seen[1] == seen[2]


def test_one_that_was_kept_turns_read_only_and_is_not_used_again(buf):
    with buf.claim() as slot:
        kept = slot["a"]
        kept[:] = 1
    assert not kept.flags.writeable
    consume(buf)
    with buf.claim() as slot:
        other = slot["a"]
        assert other is not kept
        assert other.flags.writeable
        other[:] = 2
        with pytest.raises(ValueError):
            kept[:] = 3
    assert buf.get()["a"].tolist() == [2] * 4


@pytest.mark.parametrize("keep", [lambda a: a[1:], lambda a: memoryview(a), lambda a: a.reshape(2, 2)])
def test_what_was_made_of_it_may_live_on(buf, keep):
    with buf.claim() as slot:
        kept = keep(slot["a"])
    consume(buf)
    with buf.claim() as slot:
        slot["a"][:] = 5
        assert slot["a"].shape == (4,)
    del kept
    assert buf.get()["a"].tolist() == [5] * 4


def change_shape(a):
    a.shape = (2, 2)


def change_dtype(a):
    a.dtype = np.uint64


def change_flags(a):
    a.flags.writeable = False


@pytest.mark.parametrize("change", [change_shape, change_dtype, change_flags])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's own, of such changes in place
def test_one_that_was_changed_in_place_is_not_used_again(buf, change):
    with buf.claim() as slot:
        change(slot["a"])
    consume(buf)
    with buf.claim() as slot:
        again = slot["a"]
        assert (again.shape, again.dtype, again.flags.writeable) == ((4,), np.dtype("int64"), True)


def test_a_field_asked_for_twice_gives_two_arrays_of_the_same_bytes(buf):
    for _ in range(2):
        with buf.claim() as slot:
            first, second = slot["a"], slot["a"]
            first[:] = 7
            assert second.tolist() == [7] * 4
            del first, second
        consume(buf)


def test_the_order_of_the_fields_may_change(buf):
    for order in (("a", "b"), ("b", "a"), ("b",), ("a", "b", "a")):
        with buf.claim() as slot:
            for name in order:
                assert slot[name].shape == SPEC[name][0]
                assert slot[name].dtype == SPEC[name][1]
        consume(buf)


def test_dynamic_shapes_are_looked_at_anew():
    with st.TensorBuffer.create(st.Field((None,), "int64", max_shape=(8,)), slots=1) as buffer:
        for n in (3, 8, 3, 0, 1):
            with buffer.claim() as slot:
                assert slot.empty(None, (n,)).shape == (n,)
                slot.numpy()[:] = n
            assert buffer.get().tolist() == [n] * n


def test_an_aborted_claim_leaves_nothing_to_write_with(buf):
    slot = buf.claim()
    kept = slot["a"]
    slot.abort()
    assert not kept.flags.writeable


def mappings():
    with open("/proc/self/maps") as maps:
        return sum("memfd:shmtensor" in line for line in maps)


def test_close_lets_go_of_them():
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), mappings()
    buffer = st.TensorBuffer.create(SPEC, slots=5)
    for _ in range(4):
        with buffer.claim() as slot:
            slot["a"][:] = 1
    slot = buffer.claim()
    gone = weakref.ref(slot.numpy("b"))
    assert mappings() == before[1] + 1
    buffer.close()
    del slot
    assert gone() is None
    assert (len(os.listdir("/proc/self/fd")), mappings()) == before


def test_batches_have_theirs():
    with st.TensorBuffer.create(((4,), "int64"), slots=8) as buffer:
        for k in (8, 4, 8, 2):
            with buffer.claim_many(k) as batch:
                batch.numpy()[:] = k
                shape = batch.numpy().shape
                n = len(batch)
            assert shape == (n, 4)
            with buffer.acquire_many(n) as batch:
                assert (batch.numpy() == k).all()


def test_one_that_can_be_reached_by_a_weak_reference_is_not_kept(buf):
    with buf.claim() as slot:
        single = weakref.ref(slot["a"])
    assert single() is None
    consume(buf)
    with buf.claim() as slot:
        several = weakref.ref(slot["a"]), weakref.ref(slot["b"])
    assert [r() for r in several] == [None, None]


def test_a_slot_that_is_dropped_leaves_nothing_to_write_with(buf):
    slot = buf.claim()
    kept = slot["a"]
    del slot
    assert buf.stats()["free"] == 1
    assert not kept.flags.writeable
