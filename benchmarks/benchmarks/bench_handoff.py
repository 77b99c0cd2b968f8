"""How long does one hand-off of 64 bytes take?"""

import harness
import peers

from .common import SHMTENSOR, STANDARD, TwoProcesses, median, needs_torch

ONE_THREAD = {
    **SHMTENSOR,
    "shmtensor slot[x]": peers.PlainByName,
    "shmtensor slot[x] with": peers.WithByName,
    "shmtensor torch": peers.PlainTorch,
    "shmtensor torch with": peers.WithTorch,
    **STANDARD,
}
TWO_PROCESSES = {"shmtensor": peers.TensorBuffer, **STANDARD}


class OneThread:
    """The calls alone: both ends in one thread, so nobody waits."""

    params = [list(ONE_THREAD)]
    param_names = ["how"]

    def setup(self, how):
        if "torch" in how:
            needs_torch()
        self.source = harness.source_of(64)
        self.peer = ONE_THREAD[how](64, 8)
        self.peer.cycle(self.source, 100)

    def teardown(self, how):
        if hasattr(self, "peer"):
            self.peer.close()

    def time_100_items(self, how):
        self.peer.cycle(self.source, 100)


class RoundTrip(TwoProcesses):
    """There and back between two processes; halve it for one way. Polling: nobody falls asleep. Else each waits as it
    does by default, which for shmtensor is a spin of 50 us and then a sleep."""

    params = [list(TWO_PROCESSES), [True, False]]
    param_names = ["peer", "polling"]

    def setup(self, name, polling):
        kind = TWO_PROCESSES[name]
        self.source = source = harness.source_of(64)
        self.there, self.back = there, back = kind(64, 8, polling=polling), kind(64, 8, polling=polling)
        self.start([there, back], lambda: there.pong(back, source, 2**62))
        there.ping(back, source, 10)

    def time_100_round_trips(self, name, polling):
        self.there.ping(self.back, self.source, 100)


class WakeUp:
    """One way when the consumer is asleep: from the producer's clock to the consumer's. ``futex`` is bare C."""

    params = [["futex", *TWO_PROCESSES]]
    param_names = ["peer"]
    unit = "seconds"

    def track_one_way(self, name):
        if name == "futex":
            return median(harness.limit_futex, 200)
        return median(harness.wake, TWO_PROCESSES[name], 200)


class Spin:
    """One way when both sides poll, in C with nothing but two words: what RoundTrip is to be compared with."""

    unit = "seconds"

    def track_limit_one_way(self):
        return median(harness.limit_spin, 100_000)
