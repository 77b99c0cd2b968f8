"""What is left when many share one buffer?"""

import harness
import peers

from .common import median

KINDS = {"shmtensor": (peers.TensorBuffer, 50_000), "ring": (peers.LockedRing, 5_000), "mp.Queue": (peers.Queue, 5_000)}


class Contention:
    """Producers x consumers of 64 B; seconds per item, wall clock."""

    params = [list(KINDS), ["1x1", "2x1", "4x1", "8x1", "1x4", "4x4"]]
    param_names = ["peer", "P x C"]
    unit = "seconds"
    timeout = 120

    def track_item(self, name, shape):
        kind, n = KINDS[name]
        producers, consumers = map(int, shape.split("x"))
        return 1 / median(harness.contention, kind, producers, consumers, n, repeats=3)
