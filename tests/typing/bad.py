"""Mistakes that types catch: strict mypy must report, at each marked line, the error named. Never run."""

from __future__ import annotations

import shmtensor as st


def mistakes(buffer: st.TensorBuffer, weights: st.SharedTensor) -> None:
    buffer.claim("5")  # E: arg-type
    buffer.acquire(5, True)  # E: call-arg
    buffer.try_claim().publish()  # E: union-attr
    buffer.get(copy="yes")  # E: arg-type
    buffer.put(print)  # E: arg-type
    buffer.slots = 9  # E: misc
    st.TensorBuffer.create((3, "uint8"), 8)  # E: call-arg
    st.TensorBuffer.create((3, "uint8"), reserve=True)  # E: arg-type
    st.TensorBuffer.create((3, "uint8"), reserve="all")  # E: arg-type
    st.TensorBuffer.create((3, "uint8"), on_consumer_death="retry")  # E: arg-type
    st.TensorBuffer.create((3, "uint8"), slot_count=3)  # E: call-arg
    st.TensorBuffer.attach("x", slots=3)  # E: call-arg
    st.SharedTensor.empty(3, "uint8", nam="x")  # E: call-arg
    st.SharedTensor.zeros(3, "uint8", nam="x")  # E: call-arg
    st.SharedTensor.full(3, 0, "uint8", nam="x")  # E: call-arg
    st.SharedTensor.from_array([1], nam="x")  # E: call-arg
    st.SharedTensor.from_array([1], name=3)  # E: arg-type
    with buffer.claim() as slot:
        slot[0]  # E: index
        slot.write("image", "x", "y")  # E: call-overload
        slot.tag = "x"  # E: assignment
        slot.index = 1  # E: misc
        slot.commit()  # E: attr-defined
    with buffer.acquire_many("all") as batch:  # E: arg-type
        batch["x"].release()  # E: attr-defined
    weights.numpy("x")  # E: call-arg
    st.Tensorbuffer.attach("x")  # E: attr-defined
