"""What do views and writes cost?"""

import numpy as np

import shmtensor as st

from .common import needs_torch

IMAGE = (3, 224, 224)


class View:
    """A view of an acquired image, without a copy; ``np.ndarray`` and ``torch.from_numpy`` are what they are built by
    elsewhere."""

    params = [["numpy", "torch", "asarray", "memoryview", "dlpack", "np.ndarray", "torch.from_numpy"]]
    param_names = ["view"]

    def setup(self, view):
        torch = needs_torch() if "torch" in view else None
        self.buf = st.TensorBuffer.create((IMAGE, "uint8"), slots=2)
        self.buf.put(np.zeros(IMAGE, np.uint8))
        self.slot = slot = self.buf.acquire()
        memory = np.zeros(IMAGE, np.uint8)
        self.make = {
            "numpy": slot.numpy,
            "torch": slot.torch,
            "asarray": lambda: np.asarray(slot),
            "memoryview": lambda: memoryview(slot),
            "dlpack": lambda: np.from_dlpack(slot),
            "np.ndarray": lambda: np.ndarray(IMAGE, np.uint8, memory.data),
            "torch.from_numpy": lambda: torch.from_numpy(memory),
        }[view]
        self.make()

    def teardown(self, view):
        if hasattr(self, "buf"):
            del self.make
            self.slot.release()
            self.buf.close()

    def time_view(self, view):
        self.make()


class Fields:
    """put() and get() of an item with so many named fields of 64 B."""

    params = [[1, 10, 100]]
    param_names = ["fields"]

    def setup(self, fields):
        self.buf = st.TensorBuffer.create({f"f{i}": ((64,), "uint8") for i in range(fields)}, slots=2)
        self.item = {f"f{i}": np.zeros(64, np.uint8) for i in range(fields)}
        self.time_put_get(fields)

    def teardown(self, fields):
        self.buf.close()

    def time_put_get(self, fields):
        self.buf.put(self.item)
        self.buf.get()


class Write:
    """Copying into a claimed slot: write() of numpy and torch, assignment through the view, and plain np.copyto."""

    params = [["write", "write torch", "assign", "write strided", "np.copyto"], [64, 65_536, 4 << 20, 64 << 20]]
    param_names = ["how", "nbytes"]

    def setup(self, how, nbytes):
        source = np.ones(nbytes, np.uint8)
        self.buf = st.TensorBuffer.create(((nbytes,), "uint8"), slots=1)
        self.slot = slot = self.buf.claim()
        self.view = view = slot.numpy()
        self.source = source
        if how == "write strided":
            self.source = np.ones(2 * nbytes, np.uint8)[::2]
        if how == "write torch":
            self.source = needs_torch().from_numpy(source)
        self.to = np.zeros(nbytes, np.uint8)
        self.write = {
            "assign": lambda x: view.__setitem__(..., x),
            "np.copyto": lambda x: np.copyto(self.to, x),
        }.get(how, slot.write)
        self.write(self.source)

    def teardown(self, how, nbytes):
        if hasattr(self, "write"):
            del self.write, self.view
            self.slot.abort()
            self.buf.close()

    def time_write(self, how, nbytes):
        self.write(self.source)
