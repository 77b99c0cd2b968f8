"""How fast do items of a size flow from one process to another?"""

import harness
import limit
import peers

from .common import STANDARD, TwoProcesses, median

SIZES = {"64 B": 64, "64 KiB": 65_536, "602,112 B": 602_112, "19 MB": 19_267_584, "77 MB": 77_070_336}
ITEMS = {64: 5_000, 65_536: 1_000, 602_112: 200, 19_267_584: 8, 77_070_336: 3}
SLOTS = {64: 64, 65_536: 8, 602_112: 4, 19_267_584: 4, 77_070_336: 2}
PEERS = {"shmtensor": peers.TensorBuffer, "shmtensor assigned": peers.Assign, "memcpy": peers.Memcpy, **STANDARD}
STYLES = {
    "put, get": peers.TensorBuffer,
    "plain calls": peers.Plain,
    "with": peers.With,
    "batches of 16": peers.Batches,
    "batches of 16, write": peers.BatchesWritten,
    "ring": peers.Ring,
}


class _Stream(TwoProcesses):
    def begin(self, kind, nbytes, read):
        slots = SLOTS[nbytes]
        if kind is peers.Ring and nbytes >= 4 << 20:
            slots = 2  # it takes its slots in turn, so fewer are warmer
        self.source, self.n = harness.source_of(nbytes), ITEMS[nbytes]
        self.peer = peer = kind(nbytes, slots)
        self.taken = taken = harness.context.Semaphore(0)
        n = self.n

        def consume():
            while True:
                peer.recv(n, read)
                taken.release()

        self.start([peer], consume)
        self.pass_on()

    def pass_on(self):
        self.peer.send(self.source, self.n)
        self.taken.acquire()


class Stream(_Stream):
    """The producer copies a warm array in, the consumer reads every byte (64 B: takes the view). ``memcpy`` is the same
    copy and read in one thread, in turn. The number of items differs by size: 5000, 1000, 200, 8, 3."""

    params = [list(PEERS), list(SIZES)]
    param_names = ["peer", "size"]
    timeout = 120

    def setup(self, name, size):
        nbytes = SIZES[size]
        read = limit.reader() if nbytes > 64 else None
        if name != "memcpy":
            self.begin(PEERS[name], nbytes, read)
            return
        self.source, self.n, self.read = harness.source_of(nbytes), ITEMS[nbytes], read
        self.memcpy = peers.Memcpy(nbytes, 1)
        self.pass_on_alone()

    def pass_on_alone(self):
        put, get, read = self.memcpy.put, self.memcpy.get, self.read or len
        for _ in range(self.n):
            put(self.source)
            read(get())

    def time_items(self, name, size):
        if name == "memcpy":
            self.pass_on_alone()
        else:
            self.pass_on()


class SmallItems(_Stream):
    """64 B, by the way the program is written: 5000 items."""

    params = [list(STYLES)]
    param_names = ["how"]

    def setup(self, how):
        self.begin(STYLES[how], 64, None)

    def time_items(self, how):
        self.pass_on()


class Limit:
    """A double buffer in C, seconds per item; ``nt`` copies past the caches."""

    params = [list(SIZES), ["memcpy", "nt"]]
    param_names = ["size", "copy"]
    unit = "seconds"

    def track_item(self, size, copy):
        nbytes = SIZES[size]
        n = max(3, 20 * ITEMS[nbytes] if nbytes < 1 << 20 else 2 * ITEMS[nbytes])
        slots = SLOTS[nbytes] if nbytes == 64 else 2
        return 1 / median(harness.limit_stream, nbytes, slots, n, copy)
