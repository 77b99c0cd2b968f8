"""shmtensor.TensorBuffer, once for each way of writing the same program."""

from contextlib import suppress

import shmtensor as st

from .base import Peer


class TensorBuffer(Peer):
    """put(array), and get() for a leased view: two calls per item. The slot is released when the view is deleted."""

    name = "shmtensor"

    def __init__(self, nbytes, slots, *, polling=False, spin_us=50):
        self.nbytes = nbytes
        # Polling: a spin so long that nobody falls asleep.
        self.buf = st.TensorBuffer.create(
            self.spec(), slots=slots, spin_us=10_000_000 if polling else spin_us, producers=0
        )
        self.put = self.buf.put
        self.get = self.buf.get

    def spec(self):
        return ((self.nbytes,), "uint8")

    def join(self):
        # A process becomes a member, and counts its cores, at its first verb.
        self.buf.reclaim()

    def idle(self, seconds):
        with suppress(TimeoutError):
            self.buf.get(seconds)

    def close(self):
        self.buf.close()


class Plain(TensorBuffer):
    """claim, write, publish; acquire, numpy view, release: the steps as plain calls."""

    name = "shmtensor plain calls"

    def send(self, source, n):
        claim = self.buf.claim
        for _ in range(n):
            slot = claim()
            slot.write(source)
            slot.publish()

    def recv(self, n, read=None):
        acquire = self.buf.acquire
        for _ in range(n):
            slot = acquire()
            view = slot.numpy()
            if read is not None:
                read(view)
            del view
            slot.release()

    def cycle(self, source, n):
        claim, acquire = self.buf.claim, self.buf.acquire
        for _ in range(n):
            slot = claim()
            slot.write(source)
            slot.publish()
            slot = acquire()
            view = slot.numpy()
            slot.release()
            del view


class With(TensorBuffer):
    """The same steps in ``with`` blocks."""

    name = "shmtensor with"

    def send(self, source, n):
        claim = self.buf.claim
        for _ in range(n):
            with claim() as slot:
                slot.write(source)

    def recv(self, n, read=None):
        acquire = self.buf.acquire
        for _ in range(n):
            with acquire() as slot:
                view = slot.numpy()
                if read is not None:
                    read(view)
                del view

    def cycle(self, source, n):
        claim, acquire = self.buf.claim, self.buf.acquire
        for _ in range(n):
            with claim() as slot:
                slot.write(source)
            with acquire() as slot:
                view = slot.numpy()
            del view


class PlainByName(TensorBuffer):
    """Plain calls on a field with a name: slot["x"][...] = array, and slot["x"] on the other side."""

    name = 'shmtensor slot["x"]'

    def spec(self):
        return {"x": ((self.nbytes,), "uint8")}

    def send(self, source, n):
        claim = self.buf.claim
        for _ in range(n):
            slot = claim()
            slot["x"][...] = source
            slot.publish()

    def recv(self, n, read=None):
        acquire = self.buf.acquire
        for _ in range(n):
            slot = acquire()
            view = slot["x"]
            if read is not None:
                read(view)
            del view
            slot.release()

    def cycle(self, source, n):
        claim, acquire = self.buf.claim, self.buf.acquire
        for _ in range(n):
            slot = claim()
            slot["x"][...] = source
            slot.publish()
            slot = acquire()
            view = slot["x"]
            slot.release()
            del view


class WithByName(PlainByName):
    """The same in ``with`` blocks."""

    name = 'shmtensor slot["x"], with'

    def cycle(self, source, n):
        claim, acquire = self.buf.claim, self.buf.acquire
        for _ in range(n):
            with claim() as slot:
                slot["x"][...] = source
            with acquire() as slot:
                view = slot["x"]
            del view


class PlainTorch(TensorBuffer):
    """Plain calls; the consumer takes a torch view."""

    name = "shmtensor torch view"

    def __init__(self, nbytes, slots, *, polling=False, spin_us=50):
        super().__init__(nbytes, slots, polling=polling, spin_us=spin_us)
        import torch  # noqa: F401 - the first torch view would import it

    def cycle(self, source, n):
        claim, acquire = self.buf.claim, self.buf.acquire
        for _ in range(n):
            slot = claim()
            slot.write(source)
            slot.publish()
            slot = acquire()
            view = slot.torch()
            slot.release()
            del view


class WithTorch(PlainTorch):
    """The same in ``with`` blocks."""

    name = "shmtensor torch view, with"

    def cycle(self, source, n):
        claim, acquire = self.buf.claim, self.buf.acquire
        for _ in range(n):
            with claim() as slot:
                slot.write(source)
            with acquire() as slot:
                view = slot.torch()
            del view


class Batches(TensorBuffer):
    """claim_many and acquire_many, up to 16 items at a time, one view per batch on either side."""

    name = "shmtensor batches of 16"
    most = 16

    def send(self, source, n):
        claim_many, most = self.buf.claim_many, self.most
        sources = source.reshape(1, -1).repeat(most, 0)
        while n > 0:
            batch = claim_many(n if n < most else most)
            k = len(batch)
            batch.numpy()[...] = sources if k == most else sources[:k]
            batch.publish()
            n -= k

    def recv(self, n, read=None):
        acquire_many, most = self.buf.acquire_many, self.most
        while n > 0:
            batch = acquire_many(n if n < most else most)
            view = batch.numpy()
            n -= len(batch)
            if read is not None:
                for row in view:
                    read(row)
                del row
            del view
            batch.release()


class BatchesWritten(Batches):
    """The same; the producer's batch is filled by batch.write()."""

    name = "shmtensor batches of 16, write()"

    def send(self, source, n):
        claim_many, most = self.buf.claim_many, self.most
        sources = source.reshape(1, -1).repeat(most, 0)
        while n > 0:
            batch = claim_many(n if n < most else most)
            k = len(batch)
            batch.write(sources if k == most else sources[:k])
            batch.publish()
            n -= k


class Assign(Plain):
    """Plain calls; the producer assigns through the numpy view: numpy's own copy, which is never non-temporal."""

    name = "shmtensor by assignment"

    def send(self, source, n):
        claim = self.buf.claim
        for _ in range(n):
            slot = claim()
            slot.numpy()[...] = source
            slot.publish()
