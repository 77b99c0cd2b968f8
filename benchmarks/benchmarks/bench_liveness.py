"""What does it cost to ask who is dead?"""

import os

import shmtensor as st


class Reclaim:
    """One reclaim() where all the other members live: each of their lock bytes is tried. 50 us for 64 is the bar."""

    params = [2, 16, 64, 256]
    param_names = ["members"]

    def setup(self, members):
        name = f"asv-liveness-{os.getpid()}"
        # Each attachment is a member of its own, with a lock of its own, as a process would be.
        self.buffer = st.TensorBuffer.create(((8,), "int64"), slots=64, members=members, name=name)
        self.others = [st.TensorBuffer.attach(name) for _ in range(members - 1)]
        assert self.buffer.stats()["members"] == members

    def teardown(self, members):
        for buffer in (*self.others, self.buffer):
            buffer.close()

    def time_reclaim(self, members):
        self.buffer.reclaim()

    def time_stats(self, members):
        self.buffer.stats()
