"""What several benchmarks use."""

import os
import statistics

import harness
import peers

SHMTENSOR = {
    "shmtensor": peers.TensorBuffer,
    "shmtensor plain": peers.Plain,
    "shmtensor with": peers.With,
}
STANDARD = {"ring": peers.Ring, "mp.Pipe": peers.Pipe, "mp.Queue": peers.Queue}


def needs_torch():
    """Leaves a benchmark out where torch is missing."""
    try:
        import torch
    except ImportError:
        raise NotImplementedError("torch is not installed") from None
    return torch


def median(measure, *args, repeats=5, **kwargs):
    """The median of some measurements, each in processes of its own."""
    return statistics.median(harness.isolated(measure, *args, **kwargs) for _ in range(repeats))


class TwoProcesses:
    """For benchmarks with another process that lives as long as one set of parameters."""

    def start(self, peers, run):
        self.peers = peers
        self.cores = os.sched_getaffinity(0)

        def other():
            for peer in peers:
                peer.join()
            harness.pin(1)
            run()

        self.child = harness.Child(other)
        harness.pin(0)

    def teardown(self, *params):
        if not hasattr(self, "child"):
            return
        self.child.process.kill()
        self.child.process.join()
        os.sched_setaffinity(0, self.cores)
        for peer in self.peers:
            peer.close()
