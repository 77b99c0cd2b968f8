"""TensorBuffer within one process, and from a process that knows nothing but its name: every verb and how waits end."""

from __future__ import annotations

import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import SECONDS, environment, leaves_nothing, path_of, python, unique_name, wait_until

import shmtensor as st

SPEC = {"image": ((2, 3), "uint8"), "label": ((), "int64")}
STATS = {
    "claims",
    "publishes",
    "free",
    "writing",
    "ready",
    "reading",
    "claim_waits",
    "acquire_waits",
    "spins",
    "sleeps",
    "wakes",
    "ready_high",
    "redelivered",
    "dropped",
    "reclaimed",
    "reserved_nbytes",
    "members",
    "shut",
}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    with leaves_nothing():
        yield


@pytest.fixture
def numbers() -> Iterator[st.TensorBuffer]:
    with st.TensorBuffer.create(((), "int64"), slots=4) as buffer:
        yield buffer


@pytest.fixture
def images() -> Iterator[st.TensorBuffer]:
    with st.TensorBuffer.create(SPEC, slots=4) as buffer:
        yield buffer


def states(buffer: st.TensorBuffer) -> tuple[int, ...]:
    s = buffer.stats()
    assert s["free"] + s["writing"] + s["ready"] + s["reading"] == buffer.slots
    return s["writing"], s["ready"], s["reading"]


class Thread(threading.Thread):
    """A daemon that keeps what its function returned or raised; join() hands it on."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self.job = (function, args)
        self.start()

    def run(self) -> None:
        function, args = self.job
        self.outcome: Any = None
        self.error: BaseException | None = None
        try:
            self.outcome = function(*args)
        except BaseException as e:
            self.error = e

    def result(self) -> Any:
        self.join(SECONDS)
        assert not self.is_alive(), "the thread hangs"
        if self.error is not None:
            raise self.error
        return self.outcome


# ---- the cycle ---------------------------------------------------------------------------------------------


def test_plain_calls(images: st.TensorBuffer) -> None:
    slot = images.claim()
    assert states(images) == (1, 0, 0)
    slot["image"][...] = [[1, 2, 3], [4, 5, 6]]
    slot["label"][...] = 7
    slot.publish()
    assert states(images) == (0, 1, 0)

    got = images.acquire()
    assert states(images) == (0, 0, 1)
    assert got["image"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert got["label"] == 7
    assert got.index == slot.index
    assert got.nbytes >= 6 + 8
    assert got.redelivered == 0
    got.release()
    assert states(images) == (0, 0, 0)


def test_with_blocks(images: st.TensorBuffer) -> None:
    with images.claim() as slot:
        slot["label"] = 7
        slot["image"] = np.ones((2, 3), "uint8")
        assert states(images) == (1, 0, 0)
    assert states(images) == (0, 1, 0)
    with images.acquire() as slot:
        assert slot["label"] == 7
        assert slot["image"].sum() == 6
        assert states(images) == (0, 0, 1)
    assert states(images) == (0, 0, 0)


def test_an_exception_in_the_block_aborts(images: st.TensorBuffer) -> None:
    with pytest.raises(ZeroDivisionError), images.claim() as slot:
        slot["label"] = 1 // 0
    assert states(images) == (0, 0, 0)
    assert images.stats()["publishes"] == 0
    with pytest.raises(ZeroDivisionError), images.claim_many(3) as batch:
        batch["label"][...] = 1 // 0
    assert states(images) == (0, 0, 0)
    assert images.stats()["publishes"] == 0


def test_an_exception_in_the_block_releases(numbers: st.TensorBuffer) -> None:
    numbers.put_many(range(3))
    with pytest.raises(ZeroDivisionError), numbers.acquire() as slot:
        1 // int(slot.numpy())
    with pytest.raises(ZeroDivisionError), numbers.acquire_many(2) as batch:
        1 // int(batch.numpy()[0] - 1)
    assert states(numbers) == (0, 0, 0)


def test_what_the_block_already_did_is_not_done_again(numbers: st.TensorBuffer) -> None:
    with numbers.claim() as slot:
        slot.write(1)
        slot.publish()
    with numbers.claim() as slot:
        slot.abort()
    with numbers.claim_many(2) as batch:
        batch.abort()
    assert states(numbers) == (0, 1, 0)
    with numbers.acquire() as slot:
        slot.release()
    assert states(numbers) == (0, 0, 0)


def test_a_forgotten_slot_is_given_back(numbers: st.TensorBuffer) -> None:
    slots = [numbers.claim() for _ in range(4)]
    assert numbers.try_claim() is None
    slots.clear()
    assert states(numbers) == (0, 0, 0)
    numbers.put_many(range(4))
    batch = numbers.acquire_many(4)
    assert states(numbers) == (0, 0, 4)
    del batch
    assert states(numbers) == (0, 0, 0)
    batch = numbers.claim_many(4)
    assert states(numbers) == (4, 0, 0)
    del batch
    assert states(numbers) == (0, 0, 0)


def test_first_in_first_out_whatever_the_order_of_release(numbers: st.TensorBuffer) -> None:
    rng = random.Random(1)
    held: list[Any] = []
    sent = seen = 0
    for _ in range(2000):
        if rng.random() < 0.5 and (slot := numbers.try_claim()) is not None:
            slot.write(sent)
            slot.publish()
            sent += 1
        elif (slot := numbers.try_acquire()) is not None:
            assert slot.numpy() == seen
            seen += 1
            held.append(slot)
        if held and rng.random() < 0.5:
            held.pop(rng.randrange(len(held))).release()
    assert seen > 300


def test_order_is_that_of_publication_not_of_claims(numbers: st.TensorBuffer) -> None:
    slots = [numbers.claim() for _ in range(4)]
    for number in (2, 0, 3, 1):
        slots[number].write(number)
        slots[number].publish()
    assert [int(numbers.get(copy=True)) for _ in range(4)] == [2, 0, 3, 1]


def test_one_slow_reader_starves_nobody(numbers: st.TensorBuffer) -> None:
    numbers.put(-1)
    kept = numbers.acquire()
    for i in range(1000):
        numbers.put(i, timeout=0)
        assert numbers.get(timeout=0, copy=True) == i
    assert kept.numpy() == -1
    kept.release()


def test_random_walk_against_a_model() -> None:
    """Two handles of one buffer do what comes to mind; a queue and three sets say what must come of it."""
    rng = random.Random(7)
    name = unique_name("walk")
    with st.TensorBuffer.create(((3,), "int32"), slots=5, name=name) as a, st.TensorBuffer.attach(name) as b:
        queue: deque[int] = deque()
        writing: list[Any] = []
        reading: list[tuple[Any, int]] = []
        number = 0
        for _ in range(5000):
            buffer = rng.choice((a, b))
            free = 5 - len(queue) - len(writing) - len(reading)
            verb = rng.choice(("claim", "claim", "publish", "abort", "acquire", "acquire", "release", "put", "get"))
            if verb == "claim":
                slot = buffer.try_claim()
                assert (slot is None) == (free == 0)
                if slot is not None:
                    writing.append(slot)
            elif verb == "put":
                try:
                    buffer.put([number] * 3, timeout=0)
                except TimeoutError:
                    assert free == 0
                else:
                    assert free > 0
                    queue.append(number)
                    number += 1
            elif verb == "get":
                try:
                    item = buffer.get(timeout=0, copy=True)
                except TimeoutError:
                    assert not queue
                else:
                    assert item.tolist() == [queue.popleft()] * 3
            elif verb == "acquire":
                slot = buffer.try_acquire()
                assert (slot is None) == (not queue)
                if slot is not None:
                    reading.append((slot, queue.popleft()))
            elif verb in ("publish", "abort") and writing:
                slot = writing.pop(rng.randrange(len(writing)))
                if verb == "publish":
                    slot.write([number] * 3)
                    slot.publish()
                    queue.append(number)
                    number += 1
                else:
                    slot.abort()
            elif verb == "release" and reading:
                slot, expected = reading.pop(rng.randrange(len(reading)))
                assert slot.numpy().tolist() == [expected] * 3
                slot.release()
            assert states(a) == (len(writing), len(queue), len(reading))
            assert len(b) == len(queue)
        assert number > 500
        writing.clear()
        reading.clear()
        slot = None


# ---- put and get -------------------------------------------------------------------------------------------


def test_put_and_get(images: st.TensorBuffer) -> None:
    images.put({"image": np.full((2, 3), 9, "uint8"), "label": 3})
    item = images.get()
    assert set(item) == {"image", "label"}
    assert item["image"].tolist() == [[9] * 3] * 2
    assert item["label"].shape == ()
    assert item["label"] == 3
    assert states(images) == (0, 0, 1)
    alias = item["image"][0]
    del item
    assert states(images) == (0, 0, 1), "a slice of one field keeps the item"
    del alias
    assert states(images) == (0, 0, 0)


def test_get_a_copy(images: st.TensorBuffer) -> None:
    images.put({"image": np.full((2, 3), 9, "uint8"), "label": 3})
    item = images.get(copy=True)
    assert states(images) == (0, 0, 0)
    for _ in range(8):  # every slot is written over
        images.put({"image": np.zeros((2, 3), "uint8"), "label": 0})
        images.get(copy=True)
    assert item["image"].tolist() == [[9] * 3] * 2
    assert item["label"] == 3


def test_nested_items() -> None:
    spec = {"obs": {"state": ((2,), "float32"), "id": ((), "int32")}, "reward": ((), "float64")}
    item = {"obs": {"state": np.array([1, 2], "float32"), "id": 5}, "reward": 0.5}
    with st.TensorBuffer.create(spec, slots=2) as buffer:
        buffer.put(item)
        got = buffer.get(copy=True)
        assert got["obs"]["state"].tolist() == [1, 2]
        assert got["obs"]["id"] == 5
        assert got["reward"] == 0.5
        with buffer.claim() as slot:
            slot.write("obs", {"state": np.array([3, 4], "float32"), "id": 6})
            slot["reward"] = 1.5
        with buffer.acquire() as slot:
            assert slot["obs.state"].tolist() == [3, 4]
            assert slot["obs"]["id"] == 6
            assert slot["reward"] == 1.5


def test_torch_items() -> None:
    torch = pytest.importorskip("torch")
    spec = {"x": ((3,), "bfloat16"), "y": ((), torch.int64)}
    with st.TensorBuffer.create(spec, slots=2) as buffer:
        x = torch.tensor([1.5, 2.5, -3], dtype=torch.bfloat16)
        buffer.put({"x": x, "y": torch.tensor(4)})
        item = buffer.get(torch=True)
        assert torch.equal(item["x"], x)
        assert item["y"].item() == 4
        assert states(buffer) == (0, 0, 1)
        del item
        assert states(buffer) == (0, 0, 0)
        buffer.put({"x": x, "y": 4})
        item = buffer.get(torch=True, copy=True)
        assert states(buffer) == (0, 0, 0)
        assert torch.equal(item["x"], x)
        with buffer.claim() as slot:
            slot.torch("x").copy_(x * 2)
            slot.torch("y").fill_(1)
        with buffer.acquire() as slot:
            assert torch.equal(slot.torch("x"), x * 2)


def test_put_many_takes_an_iterator_and_waits_for_each(numbers: st.TensorBuffer) -> None:
    reader = Thread(lambda: [int(numbers.get(timeout=SECONDS, copy=True)) for _ in range(100)])
    assert numbers.put_many((i for i in range(100)), timeout=SECONDS) == 100
    assert reader.result() == list(range(100))
    assert numbers.put_many([]) == 0


def test_put_many_keeps_what_came_before_an_error(numbers: st.TensorBuffer) -> None:
    with pytest.raises(TypeError):
        numbers.put_many([1, 2, "three", 4])
    assert states(numbers) == (0, 2, 0)
    numbers.put_many([3, 4])
    with pytest.raises(TimeoutError):
        numbers.put_many([5], timeout=0)
    assert [int(x) for x in numbers.get_many(9, copy=True)] == [1, 2, 3, 4]


def test_get_many_takes_what_there_is(numbers: st.TensorBuffer) -> None:
    numbers.put_many(range(3))
    assert [int(x) for x in numbers.get_many(2)] == [0, 1]
    assert [int(x) for x in numbers.get_many(2)] == [2]
    with pytest.raises(TimeoutError):
        numbers.get_many(2, timeout=0)
    numbers.put(7)
    kept = numbers.get_many(5)
    assert states(numbers) == (0, 0, 1)
    del kept
    assert states(numbers) == (0, 0, 0)


# ---- batches -----------------------------------------------------------------------------------------------


def test_batches() -> None:
    with st.TensorBuffer.create({"x": ((2,), "int32"), "y": ((), "uint8")}, slots=8) as buffer:
        with buffer.claim_many(5) as batch:
            assert 1 <= len(batch) <= 5
            n = len(batch)
            assert batch["x"].shape == (n, 2)
            batch["x"][...] = np.arange(2 * n, dtype="int32").reshape(n, 2)
            batch.write("y", np.arange(n, dtype="uint8"))
            assert states(buffer) == (n, 0, 0)
        assert states(buffer) == (0, n, 0)
        with buffer.acquire_many(8) as batch:
            assert len(batch) == n, "all of a batch lies in consecutive slots"
            assert batch["x"].tolist() == np.arange(2 * n).reshape(n, 2).tolist()
            assert batch.numpy("y").tolist() == list(range(n))
            assert states(buffer) == (0, 0, n)
        assert states(buffer) == (0, 0, 0)
        with buffer.claim_many(3) as batch:
            n = len(batch)
            batch.write({"x": np.ones((n, 2), "int32"), "y": np.full(n, 9, "uint8")})
        item = buffer.get(copy=True)
        assert item["x"].tolist() == [1, 1]
        assert item["y"] == 9


@pytest.mark.parametrize("count", [0, 1, 3, None])
def test_publish_the_front_of_a_batch(numbers: st.TensorBuffer, count: int | None) -> None:
    batch = numbers.claim_many(4)
    assert len(batch) == 4
    batch.numpy()[...] = [10, 11, 12, 13]
    batch.publish(count)
    n = 4 if count is None else count
    assert states(numbers) == (0, n, 0)
    assert [int(numbers.get(timeout=0, copy=True)) for _ in range(n)] == [10, 11, 12, 13][:n]


def test_abort_and_release_a_batch(numbers: st.TensorBuffer) -> None:
    batch = numbers.claim_many(4)
    batch.abort()
    assert states(numbers) == (0, 0, 0)
    numbers.put_many(range(4))
    batch = numbers.acquire_many(4)
    view = batch.numpy()[1:]
    batch.release()
    assert states(numbers) == (0, 0, 4), "the view keeps all of them"
    assert view.tolist() == [1, 2, 3]
    del view
    assert states(numbers) == (0, 0, 0)


def test_a_batch_waits_only_for_its_first_slot(numbers: st.TensorBuffer) -> None:
    held = [numbers.claim() for _ in range(3)]
    batch = numbers.claim_many(4, timeout=0)
    assert len(batch) == 1
    with pytest.raises(TimeoutError):
        numbers.claim_many(4, timeout=0.01)
    batch.numpy()[...] = 5
    batch.publish()
    got = numbers.acquire_many(4, timeout=0)
    assert len(got) == 1
    assert got.numpy().tolist() == [5]
    for slot in held:
        slot.abort()


def test_batches_hold_at_most_64() -> None:
    with st.TensorBuffer.create(((), "int32"), slots=200) as buffer:
        total = 0
        while (batch := buffer.claim_many(1000)) is not None:
            assert 1 <= len(batch) <= 64
            batch.numpy()[...] = np.arange(total, total + len(batch))
            total += len(batch)
            batch.publish()
            if total == 200:
                break
        seen: list[int] = []
        while len(seen) < 200:
            with buffer.acquire_many(1000, timeout=0) as batch:
                assert 1 <= len(batch) <= 64
                seen += batch.numpy().tolist()
        assert seen == list(range(200))
        batch = None


def test_an_acquired_batch_survives_close() -> None:
    buffer = st.TensorBuffer.create({"x": ((2,), "int32")}, slots=4)
    buffer.put_many({"x": [i, i]} for i in range(3))
    batch = buffer.acquire_many(3)
    buffer.close()
    view = batch["x"]
    assert view.tolist() == [[0, 0], [1, 1], [2, 2]]
    batch.release()
    assert view.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_slots_survive_close() -> None:
    buffer = st.TensorBuffer.create({"x": ((2,), "int32")}, slots=4)
    buffer.put({"x": [1, 2]})
    reader, writer = buffer.acquire(), buffer.claim()
    buffer.close()
    assert reader["x"].tolist() == [1, 2]
    assert "acquired" in repr(reader)
    reader.release()
    writer["x"] = [3, 4]
    writer.publish()


# ---- what a slot says --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [0, 1, 2**63, 2**64 - 1])
def test_tag(numbers: st.TensorBuffer, tag: int) -> None:
    with numbers.claim() as slot:
        assert slot.tag == 0
        slot.tag = tag
        assert slot.tag == tag
    with numbers.acquire() as slot:
        assert slot.tag == tag
        with pytest.raises(ValueError, match="acquired"):
            slot.tag = 1
    numbers.put(1)
    with numbers.acquire() as slot:
        assert slot.tag == 0, "the last item's tag does not stick to the slot"


@pytest.mark.parametrize("tag", [-1, 2**64, "x", None, 1.5])
def test_bad_tag(numbers: st.TensorBuffer, tag: Any) -> None:
    with numbers.claim() as slot:
        with pytest.raises((OverflowError, TypeError)):
            slot.tag = tag
        slot.abort()


def test_repr_of_slots(numbers: st.TensorBuffer) -> None:
    slot = numbers.claim()
    assert repr(slot) == f"<Slot {slot.index} claimed>"
    slot.write(1)
    slot.publish()
    assert "published" in repr(slot)
    slot = numbers.acquire()
    assert "acquired" in repr(slot)
    slot.release()
    assert "released" in repr(slot)
    batch = numbers.claim_many(2)
    assert "2 slots" in repr(batch)
    assert "claimed" in repr(batch)
    batch.abort()
    assert "aborted" in repr(batch)


def test_strict_slots_refuse_to_leave_views_behind(numbers: st.TensorBuffer) -> None:
    numbers.put(5)
    with pytest.raises(BufferError, match="strict"), numbers.acquire(strict=True) as slot:
        view = slot.numpy()
    assert states(numbers) == (0, 0, 1), "it stays held"
    del view
    slot.release()
    assert states(numbers) == (0, 0, 0)
    numbers.put(6)
    with numbers.acquire(strict=True) as slot:
        assert slot.numpy() == 6
    assert states(numbers) == (0, 0, 0)


def test_published_arrays_are_read_only(images: st.TensorBuffer) -> None:
    slot = images.claim()
    image, label = slot["image"], slot["label"]
    slot.publish()
    for view in (image, label):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 1


# ---- the buffer's own figures ------------------------------------------------------------------------------


def test_length_truth_and_properties(images: st.TensorBuffer) -> None:
    assert len(images) == 0
    assert images, "an empty buffer is still a buffer"
    item = {"image": np.zeros((2, 3), "uint8"), "label": 0}
    images.put_many([item, item])
    assert len(images) == 2
    slot = images.acquire()
    assert len(images) == 1
    slot.release()
    assert images.name is None
    assert images.slots == 4
    assert images.slot_nbytes == images.spec.nbytes >= 14
    assert images.nbytes >= 4 * images.slot_nbytes
    assert images.spec == st.Spec(SPEC)
    assert not images.closed


def test_repr_is_for_people(images: st.TensorBuffer) -> None:
    images.put({"image": np.zeros((2, 3), "uint8"), "label": 0})
    slot = images.claim()
    text = repr(images)
    for part in (
        "1 member>",
        "image: uint8[2,3]",
        "label: int64",
        "slots=4",
        "2 free",
        "1 writing",
        "1 ready",
        "0 reading",
    ):
        assert part in text
    slot.abort()
    name = unique_name()
    named = st.TensorBuffer.create(SPEC, slots=1, name=name)
    assert name in repr(named)
    named.close()
    assert repr(named) == "<TensorBuffer closed>"


def test_stats(numbers: st.TensorBuffer) -> None:
    before = numbers.stats()
    assert set(before) == STATS
    assert all(type(v) is int and v >= 0 for v in before.values())
    assert before["free"] == 4
    assert before["members"] == 1
    for i in range(200):
        numbers.put(i)
        numbers.get(copy=True)
    numbers.claim().abort()
    with pytest.raises(TimeoutError):
        numbers.get(timeout=0.001)
    s = numbers.stats()
    assert s["claims"] == 201
    assert s["publishes"] == 200
    assert s["acquire_waits"] == 1
    assert s["claim_waits"] == 0
    assert s["sleeps"] >= 1
    assert s["reserved_nbytes"] >= 4 * 8
    assert s["shut"] == 0
    held = [numbers.claim() for _ in range(4)]
    with pytest.raises(TimeoutError):
        numbers.put(0, timeout=0.001)
    assert numbers.stats()["claim_waits"] == 1
    held.clear()
    numbers.shutdown()
    assert numbers.stats()["shut"] == 1


def test_high_water_mark() -> None:
    with st.TensorBuffer.create(((), "int64"), slots=64) as buffer:
        for _ in range(100):
            buffer.put_many(range(50))
            buffer.get_many(50, copy=True)
        assert 1 <= buffer.stats()["ready_high"] <= 50


def test_counters_may_start_next_to_wrap_around() -> None:
    """Sequence numbers, laps and generations: 2**24, 2**40, 2**48 and 2**64 pass in mid-stream."""
    for first in (2**24 - 20, 2**40 - 20, 2**48 - 20, 2**64 - 20, (2**24) * 8 - 20, (2**24) * 16 - 20):
        with st.TensorBuffer.create(((), "int64"), slots=3, _seq_first=first) as buffer:
            for i in range(0, 300, 3):
                buffer.put_many([i, i + 1, i + 2], timeout=0)
                assert [int(x) for x in buffer.get_many(3, timeout=0, copy=True)] == [i, i + 1, i + 2]
            s = buffer.stats()
            assert (s["publishes"], s["claims"], s["free"]) == (300, 300, 3)


# ---- time-outs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.0, 0.02, 1e-9])
def test_time_outs(numbers: st.TensorBuffer, timeout: float) -> None:
    begin = time.monotonic()
    for verb in (numbers.acquire, numbers.get):
        with pytest.raises(TimeoutError, match="published"):
            verb(timeout=timeout)
    with pytest.raises(TimeoutError, match="published"):
        numbers.acquire_many(2, timeout=timeout)
    numbers.put_many(range(4))
    for call in (
        lambda: numbers.claim(timeout=timeout),
        lambda: numbers.put(1, timeout=timeout),
        lambda: numbers.claim_many(2, timeout=timeout),
        lambda: numbers.put_many([1], timeout=timeout),
    ):
        with pytest.raises(TimeoutError, match="4 published"):
            call()
    took = time.monotonic() - begin
    assert 7 * timeout * 0.95 <= took < 7 * timeout + 5, f"seven time-outs of {timeout} s took {took} s"
    assert states(numbers) == (0, 4, 0)


def test_try_verbs_never_wait(numbers: st.TensorBuffer) -> None:
    assert numbers.try_acquire() is None
    slots = [numbers.try_claim() for _ in range(4)]
    assert numbers.try_claim() is None
    for i, slot in enumerate(slots):
        assert slot is not None
        slot.write(i)
        slot.publish()
    with numbers.try_acquire() as slot:
        assert slot.numpy() == 0


@pytest.mark.parametrize("timeout", [None, SECONDS, float("inf"), 10**30])
def test_a_wait_ends_when_there_is_something(numbers: st.TensorBuffer, timeout: float | None) -> None:
    waiter = Thread(lambda: int(numbers.get(timeout, copy=True)))
    wait_until(lambda: numbers.stats()["sleeps"] > 0)
    numbers.put(42)
    assert waiter.result() == 42

    numbers.put_many(range(4))
    waiter = Thread(lambda: numbers.put(9, timeout))
    sleeps = numbers.stats()["sleeps"]
    wait_until(lambda: numbers.stats()["sleeps"] > sleeps)
    assert numbers.get(copy=True) == 0
    waiter.result()
    assert [int(x) for x in numbers.get_many(9, copy=True)] == [1, 2, 3, 9]


def test_the_gil_is_free_while_waiting(numbers: st.TensorBuffer) -> None:
    waiter = Thread(numbers.acquire, SECONDS)
    begin = time.monotonic()
    turns = 0
    while time.monotonic() - begin < 0.05:
        turns += 1
    assert turns > 100
    numbers.put(1)
    waiter.result().release()


# ---- the end of the stream ---------------------------------------------------------------------------------


def test_iteration_ends_when_the_producer_closes() -> None:
    name = unique_name()
    with st.TensorBuffer.create(((), "int64"), slots=4, name=name) as consumer:
        producer = st.TensorBuffer.attach(name)
        seen = Thread(lambda: [int(x) for x in consumer])
        producer.put_many(range(50), timeout=SECONDS)
        producer.close()
        assert seen.result() == list(range(50))
        with pytest.raises(st.ShutDown):
            consumer.get(timeout=SECONDS)
        with pytest.raises(st.ShutDown):
            consumer.try_acquire()
        assert list(consumer) == []


def test_iteration_keeps_no_item_while_it_waits() -> None:
    with st.TensorBuffer.create(((), "int64"), slots=1) as buffer:
        items = iter(buffer)
        for i in range(10):
            buffer.put(i, timeout=1)
            assert next(items) == i


def test_iteration_waits_for_all_producers() -> None:
    name = unique_name()
    with st.TensorBuffer.create(((), "int64"), slots=8, name=name, producers=3) as consumer:
        producers = [st.TensorBuffer.attach(name) for _ in range(3)]
        seen = Thread(lambda: sorted(int(x) for x in consumer))
        for i in (0, 1):
            producers[i].put(i)
            producers[i].close()
        time.sleep(0.25)
        assert seen.is_alive(), "two of three producers have closed"
        producers[2].put(2)
        producers[2].close()
        assert seen.result() == [0, 1, 2]


def test_iteration_waits_for_a_producer_more_than_expected() -> None:
    name = unique_name()
    with st.TensorBuffer.create(((), "int64"), slots=8, name=name, producers=1) as consumer:
        first, second = st.TensorBuffer.attach(name), st.TensorBuffer.attach(name)
        second.put(1)
        first.put(0)
        first.close()
        seen = Thread(lambda: [int(x) for x in consumer])
        time.sleep(0.25)
        assert seen.is_alive(), "somebody who has published has not closed"
        second.put(2)
        second.close()
        assert seen.result() == [1, 0, 2]


def test_zero_producers_means_only_by_shutdown() -> None:
    name = unique_name()
    with st.TensorBuffer.create(((), "int64"), slots=8, name=name, producers=0) as consumer:
        producer = st.TensorBuffer.attach(name)
        producer.put(1)
        producer.close()
        assert consumer.get(copy=True) == 1
        with pytest.raises(TimeoutError):
            consumer.get(timeout=0.02)
        consumer.shutdown()
        assert list(consumer) == []


def test_a_consumer_that_closes_ends_nothing() -> None:
    name = unique_name()
    with st.TensorBuffer.create(((), "int64"), slots=8, name=name) as buffer:
        other = st.TensorBuffer.attach(name)
        buffer.put(1)
        assert other.get(copy=True) == 1
        other.close()
        buffer.put(2)
        with pytest.raises(TimeoutError):
            buffer.get_many(1, timeout=0)
            buffer.get(timeout=0)


def test_a_late_producer_is_told() -> None:
    name = unique_name()
    with st.TensorBuffer.create(((), "int64"), slots=4, name=name) as consumer:
        early, late = st.TensorBuffer.attach(name), st.TensorBuffer.attach(name)
        early.put(1)
        early.close()
        assert [int(x) for x in consumer] == [1]
        for call in (
            late.claim,
            late.try_claim,
            lambda: late.put(1),
            lambda: late.claim_many(2),
            lambda: late.put_many([1]),
        ):
            with pytest.raises(st.ShutDown, match="producers="):
                call()
        assert states(consumer) == (0, 0, 0)
        late.close()


def test_shutdown_drains() -> None:
    with st.TensorBuffer.create(((), "int64"), slots=4) as buffer:
        buffer.put_many(range(3))
        writer = buffer.claim()
        buffer.shutdown()
        with pytest.raises(st.ShutDown, match="shutdown"):
            buffer.put(9)
        assert [int(x) for x in buffer.get_many(3, copy=True)] == [0, 1, 2]
        with pytest.raises(TimeoutError):
            buffer.get(timeout=0.01)  # an item is still being written
        writer.write(3)
        writer.publish()
        assert [int(x) for x in buffer] == [3]
        buffer.shutdown()  # twice is fine
        assert list(buffer) == []


def test_shutdown_wakes_everybody() -> None:
    with st.TensorBuffer.create(((), "int64"), slots=2) as buffer:
        readers = [Thread(buffer.acquire) for _ in range(3)]
        wait_until(lambda: buffer.stats()["sleeps"] >= 3)
        buffer.shutdown()
        for reader in readers:
            with pytest.raises(st.ShutDown):
                reader.result()
    with st.TensorBuffer.create(((), "int64"), slots=1) as buffer:
        slot = buffer.claim()
        writers = [Thread(buffer.claim) for _ in range(3)]
        wait_until(lambda: buffer.stats()["sleeps"] >= 3)
        buffer.shutdown()
        for writer in writers:
            with pytest.raises(st.ShutDown):
                writer.result()
        slot.abort()


def test_shutdown_is_what_the_standard_library_calls_it() -> None:
    import queue

    if sys.version_info >= (3, 13):
        assert issubclass(st.ShutDown, queue.ShutDown)
    assert issubclass(st.ShutDown, st.ShmError)


# ---- threads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["acquire", "claim", "get", "put", "acquire_many", "claim_many", "iterate"])
def test_close_ends_the_wait_of_another_thread(verb: str) -> None:
    buffer = st.TensorBuffer.create(((), "int64"), slots=1)
    slot = buffer.claim() if verb in ("claim", "put", "claim_many") else None
    call = {
        "acquire": buffer.acquire,
        "claim": buffer.claim,
        "get": buffer.get,
        "put": lambda: buffer.put(1),
        "acquire_many": lambda: buffer.acquire_many(2),
        "claim_many": lambda: buffer.claim_many(2),
        "iterate": lambda: list(buffer),
    }[verb]
    waiters = [Thread(call) for _ in range(2)]
    assert wait_until(lambda: buffer.stats()["sleeps"] >= 2)
    buffer.close()
    for waiter in waiters:
        with pytest.raises(st.ClosedError):
            waiter.result()
    if slot is not None:
        slot.abort()


def test_closing_twice_and_from_many_threads() -> None:
    for _ in range(20):
        buffer = st.TensorBuffer.create(((), "int64"), slots=2)
        buffer.put(1)
        item = buffer.get()
        for t in [Thread(buffer.close) for _ in range(4)]:
            t.result()
        buffer.close()
        assert buffer.closed
        assert item == 1


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_threads_share_a_handle(slots: int) -> None:
    """Three writers, three readers, one handle; each number arrives once, in its writer's order, whole."""
    count, writers, readers = 1500, 3, 3
    with st.TensorBuffer.create(((8,), "int64"), slots=slots, spin_us=5) as buffer:

        def write(who: int) -> None:
            for i in range(count):
                if i % 3 == 0:
                    buffer.put(np.full(8, who << 32 | i), timeout=SECONDS)
                elif i % 3 == 1:
                    with buffer.claim(timeout=SECONDS) as slot:
                        slot.numpy()[...] = who << 32 | i
                else:
                    batch = buffer.claim_many(1, timeout=SECONDS)
                    batch.numpy()[...] = who << 32 | i
                    batch.publish()

        def read() -> list[int]:
            seen = []
            while True:
                try:
                    if len(seen) % 2:
                        item = buffer.get(timeout=SECONDS)
                    else:
                        with buffer.acquire(timeout=SECONDS) as slot:
                            item = slot.numpy()
                except st.ShutDown:
                    return seen
                assert (item == item[0]).all(), "torn"
                seen.append(int(item[0]))
                del item

        threads = [Thread(write, who) for who in range(writers)]
        ends = [Thread(read) for _ in range(readers)]
        for t in threads:
            t.result()
        buffer.shutdown()
        heard = [t.result() for t in ends]
        for seen in heard:
            for who in range(writers):
                mine = [x for x in seen if x >> 32 == who]
                assert mine == sorted(mine)
        assert sorted(x for seen in heard for x in seen) == [w << 32 | i for w in range(writers) for i in range(count)]
        assert states(buffer) == (0, 0, 0)
        assert buffer.stats()["publishes"] == writers * count


def test_views_may_die_in_another_thread(numbers: st.TensorBuffer) -> None:
    for i in range(200):
        numbers.put(i, timeout=SECONDS)
        box = [numbers.get()]
        t = Thread(box.clear)
        del box
        t.result()
        del t
    assert states(numbers) == (0, 0, 0)


# ---- Ctrl-C ------------------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys, threading, time
import shmtensor as st
signal.signal(signal.SIGINT, signal.default_int_handler)
buffer = st.TensorBuffer.create(((), "int64"), slots=2, spin_us=int(sys.argv[2]))
full = sys.argv[1] in ("claim", "put")
if full:
    buffer.put_many([10, 11])
exec(sys.argv[3])
print("ready", flush=True)
try:
    {"claim": buffer.claim, "put": lambda: buffer.put(12), "acquire": buffer.acquire, "get": buffer.get,
     "iterate": lambda: list(buffer), "batch": lambda: buffer.acquire_many(2)}[sys.argv[1]]()
except KeyboardInterrupt:
    print("interrupted", flush=True)
if not full:
    buffer.put_many([10, 11], timeout=5)
print([int(x) for x in buffer.get_many(9, timeout=5, copy=True)], buffer.stats()["free"])
"""


def interrupt(verb: str, spin_us: int = 50, before: str = "", send: bool = True) -> list[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, verb, str(spin_us), before],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if send:
            time.sleep(0.2)  # it sleeps by now; if it does not yet, Ctrl-C must work all the same
            process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=5)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    return out.splitlines()


@pytest.mark.parametrize("verb", ["claim", "put", "acquire", "get", "iterate", "batch"])
def test_ctrl_c_ends_a_wait_and_loses_nothing(verb: str) -> None:
    assert interrupt(verb) == ["interrupted", "[10, 11] 2"]


def test_ctrl_c_while_spinning() -> None:
    """The signal comes before the futex does: nothing interrupts the sleep that follows."""
    assert interrupt("acquire", spin_us=700_000) == ["interrupted", "[10, 11] 2"]


def test_ctrl_c_that_another_thread_takes() -> None:
    """The kernel may hand a signal to any thread; Python's handler still has to run in the one that waits."""
    before = "threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, 0)).start()\n"
    before += "t = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)); t.start()"
    assert interrupt("acquire", before=before, send=False) == ["interrupted", "[10, 11] 2"]


def test_a_signal_handler_runs_and_the_wait_goes_on(numbers: st.TensorBuffer) -> None:
    rang: list[int] = []

    def ring(*_: object) -> None:
        rang.append(1)
        if len(rang) == 3:
            numbers.put(7)

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        assert numbers.get(timeout=SECONDS, copy=True) == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(rang) >= 3


# ---- by name -----------------------------------------------------------------------------------------------


def test_an_unrelated_process_attaches_by_name() -> None:
    name = unique_name()
    code = """
import sys
import shmtensor as st
with st.TensorBuffer.attach(sys.argv[1]) as buffer:
    assert buffer.spec == st.Spec({"image": ((2, 3), "uint8"), "label": ((), "int64")})
    item = buffer.get(timeout=30)
    with buffer.claim(timeout=30) as slot:
        slot["image"] = item["image"] + 1
        slot["label"] = -item["label"]
        slot.tag = 5
    print(buffer.name, buffer.slots, buffer.stats()["members"])
"""
    with st.TensorBuffer.create(SPEC, slots=4, name=name) as buffer:
        assert path_of(name).exists()
        assert path_of(name).stat().st_mode & 0o777 == 0o600
        assert buffer.name == name
        buffer.put({"image": np.full((2, 3), 8, "uint8"), "label": 3})
        assert python(code, name).split() == [name, "4", "2"]
        with buffer.acquire(timeout=0) as slot:
            assert slot["image"].tolist() == [[9] * 3] * 2
            assert slot["label"] == -3
            assert slot.tag == 5
    assert not path_of(name).exists(), "the last one out takes the name along"


def test_figures_can_be_read_from_outside() -> None:
    name = unique_name()
    code = """
import sys, json
import shmtensor as st
with st.TensorBuffer.attach(sys.argv[1]) as buffer:
    print(json.dumps(buffer.stats()))
"""
    import json

    with st.TensorBuffer.create(((), "int64"), slots=4, name=name) as buffer:
        for i in range(10):
            buffer.put(i)
            buffer.get(copy=True)
        buffer.put(1)
        held = buffer.claim()
        s = json.loads(python(code, name))
        assert set(s) == STATS
        assert (s["publishes"], s["claims"], s["ready"], s["writing"], s["free"]) == (11, 12, 1, 1, 2)
        assert s["members"] == 2
        held.abort()
        with pytest.raises(TimeoutError):
            buffer.put(1), buffer.get(copy=True), buffer.get(copy=True), buffer.get(timeout=0)
        assert buffer.stats()["members"] == 1, "a reader of figures comes and goes"


def test_unlink_leaves_those_inside_alone() -> None:
    name = unique_name()
    with st.TensorBuffer.create(((), "int64"), slots=4, name=name) as a, st.TensorBuffer.attach(name) as b:
        a.unlink()
        assert not path_of(name).exists()
        with pytest.raises(FileNotFoundError):
            a.unlink()
        with pytest.raises(FileNotFoundError, match=name):
            st.TensorBuffer.attach(name)
        a.put(5)
        assert b.get(copy=True) == 5
        with st.TensorBuffer.create(((), "int64"), slots=1, name=name) as c:  # the name is free again
            b.close()
            a.close()
            assert path_of(name).exists(), "closing the old one leaves the new one's name"
            c.put(1)


def test_anonymous_buffers_have_no_name_to_unlink(numbers: st.TensorBuffer) -> None:
    with pytest.raises(ValueError):
        numbers.unlink()


def test_the_name_stays_while_anybody_is_inside() -> None:
    name = unique_name()
    a = st.TensorBuffer.create(((), "int64"), slots=4, name=name)
    b = st.TensorBuffer.attach(name)
    a.close()
    assert path_of(name).exists()
    c = st.TensorBuffer.attach(name)
    b.close()
    assert path_of(name).exists()
    c.close()
    assert not path_of(name).exists()


def test_a_name_can_be_used_again_and_again() -> None:
    name = unique_name()
    for i in range(20):
        with st.TensorBuffer.create(((), "int64"), slots=1 + i % 3, name=name) as buffer:
            buffer.put(i)
            with st.TensorBuffer.attach(name) as other:
                assert other.get(copy=True) == i


def test_pickling_is_for_processes_of_multiprocessing(numbers: st.TensorBuffer) -> None:
    """A descriptor cannot go into a file; a name can."""
    name = unique_name()
    with st.TensorBuffer.create(((), "int64"), slots=2, name=name) as named:
        other = pickle.loads(pickle.dumps(named))
        other.put(3)
        assert named.get(copy=True) == 3
        other.close()


def test_importing_it_does_not_import_torch() -> None:
    assert python("import sys, shmtensor; print('torch' in sys.modules)").strip() == "False"
