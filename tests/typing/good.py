"""What a user writes; strict mypy has nothing to say about it. Never run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import assert_type

import shmtensor as st


def create() -> None:
    buffer = st.TensorBuffer.create({"image": ((3, 224, 224), "uint8"), "label": ((), np.int64)}, slots=8)
    assert_type(buffer, st.TensorBuffer)
    with buffer as same:
        assert_type(same, st.TensorBuffer)
    st.TensorBuffer.create(st.Field((None, 4), "float32", max_shape=(100, 4)), name="boxes", reserve="full")
    st.TensorBuffer.create({"obs": {"state": (7, "float32")}}, on_consumer_death="drop", producers=3)
    assert_type(st.TensorBuffer.attach("boxes").name, str | None)


def produce(buffer: st.TensorBuffer, array: NDArray[np.uint8], tensor: torch.Tensor) -> None:
    with buffer.claim(timeout=5) as slot:
        assert_type(slot, st.Slot)
        slot["image"][...] = array
        slot["label"] = 7
        slot.write("image", tensor)
        slot.write({"image": array, "label": 7})
        slot.tag = 3
        assert_type(slot.empty("boxes", (5, 4)), NDArray[Any])
    if (maybe := buffer.try_claim()) is not None:
        maybe.abort()
    buffer.put({"image": tensor, "label": 7}, timeout=0.5)
    buffer.put(array)
    assert_type(buffer.put_many([array, array]), int)
    with buffer.claim_many(16) as batch:
        assert_type(batch, st.Batch)
        batch["image"][0] = array
        batch.publish(len(batch) - 1)
    buffer.shutdown()


def consume(buffer: st.TensorBuffer) -> None:
    with buffer.acquire(timeout=5, strict=True) as slot:
        assert_type(slot.numpy("image"), NDArray[Any])
        assert_type(slot.torch("image"), torch.Tensor)
        assert_type((slot.index, slot.nbytes, slot.tag, slot.redelivered), tuple[int, int, int, int])
        for name, view in slot["obs"].items():
            print(name, view)
        np.asarray(slot)
        memoryview(slot)
    assert_type(buffer.try_acquire(), st.Slot | None)
    assert_type(buffer.acquire_many(16).torch("image").sum(), torch.Tensor)
    image = buffer.get(copy=True)["image"]
    tensors = buffer.get_many(4, 1.0, torch=True)
    assert_type(tensors, list[Any])
    for item in buffer:
        print(item, image)
    assert_type(buffer.stats(), dict[str, int])
    assert_type(buffer.reclaim() + len(buffer) + buffer.slots + buffer.slot_nbytes + buffer.nbytes, int)
    assert_type(buffer.spec, st.Spec)


def share(tensor: torch.Tensor) -> None:
    with st.SharedTensor.from_array(tensor, name="weights") as weights:
        assert_type(weights, st.SharedTensor)
        assert_type(weights.numpy(), NDArray[Any])
        assert_type(weights.torch(), torch.Tensor)
        assert_type((weights.shape, weights.dtype, weights.nbytes), tuple[tuple[int, ...], str, int])
        weights.write(np.zeros(3))
        np.asarray(weights)
        memoryview(weights)
    st.SharedTensor.full((2, 3), 1.5, "bfloat16", name="ones", prefault=False).close()
    assert_type(st.SharedTensor.zeros(3, "uint8", members=4, huge_pages=True), st.SharedTensor)
    st.SharedTensor.attach("weights").unlink()


def half(x: int, by: float = 2) -> float:
    return x / by


def execute() -> None:
    with st.ProcessPoolExecutor(2, retries=1, slots=8, copy=True) as pool:
        assert_type(pool.submit(half, 3, by=4).result(), float)
        assert_type(list(pool.map(half, [1, 2], chunksize=2, timeout=1.0)), list[float])
        assert_type(pool.stats(), dict[str, int])
        pool.kill_workers()


def fail(buffer: st.TensorBuffer) -> None:
    try:
        buffer.acquire(timeout=1)
    except (st.ShutDown, st.LeaseLost, st.ShmNoSpaceError) as error:
        assert_type(error, st.ShutDown | st.LeaseLost | st.ShmNoSpaceError)
