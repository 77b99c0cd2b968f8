"""What does it cost to make, attach and import?"""

import os
from multiprocessing import shared_memory

import numpy as np

import shmtensor as st


class Create:
    """A buffer or an array of so many bytes, every page of it mapped; and SharedMemory, filled once."""

    params = [["TensorBuffer", "TensorBuffer named", "SharedTensor", "SharedMemory"], [4096, 1 << 20, 64 << 20]]
    param_names = ["what", "nbytes"]

    def setup(self, what, nbytes):
        self.time_create(what, nbytes)

    def time_create(self, what, nbytes):
        if what == "SharedTensor":
            st.SharedTensor.empty((nbytes,), "uint8").close()
        elif what == "SharedMemory":
            memory = shared_memory.SharedMemory(create=True, size=nbytes)
            np.frombuffer(memory.buf, np.uint8).fill(0)
            memory.close()
            memory.unlink()
        else:
            name = f"asv-create-{os.getpid()}" if "named" in what else None
            st.TensorBuffer.create(((nbytes // 4,), "uint8"), slots=4, name=name).close()


class Attach:
    """Joining by name what exists, every page of it mapped; so that SharedMemory does the same it is read once."""

    params = [["TensorBuffer", "SharedTensor", "SharedMemory"], [4096, 64 << 20]]
    param_names = ["what", "nbytes"]

    def setup(self, what, nbytes):
        name = f"asv-attach-{os.getpid()}"
        if what == "TensorBuffer":
            self.thing = st.TensorBuffer.create(((nbytes // 4,), "uint8"), slots=4, name=name)
        elif what == "SharedTensor":
            self.thing = st.SharedTensor.zeros((nbytes,), "uint8", name=name)
        else:
            self.thing = shared_memory.SharedMemory(create=True, size=nbytes)
            np.frombuffer(self.thing.buf, np.uint8).fill(0)
        self.name = self.thing.name
        self.time_attach(what, nbytes)

    def teardown(self, what, nbytes):
        self.thing.close()
        if what == "SharedMemory":
            self.thing.unlink()

    def time_attach(self, what, nbytes):
        if what == "TensorBuffer":
            st.TensorBuffer.attach(self.name).close()
        elif what == "SharedTensor":
            st.SharedTensor.attach(self.name).close()
        else:
            memory = shared_memory.SharedMemory(self.name)
            np.frombuffer(memory.buf, np.uint8)[::4096].max()
            memory.close()


class Import:
    """A fresh interpreter's import; numpy's is part of it."""

    def timeraw_import_shmtensor(self):
        return "import shmtensor"

    def timeraw_import_numpy(self):
        return "import numpy"
