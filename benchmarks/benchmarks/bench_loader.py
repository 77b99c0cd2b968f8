"""How fast do tensors come out of a Dataset? The rows of loader.py, which has the peers side by side."""

import harness

from .common import needs_torch

SAMPLES = {
    "4 MB": ((1000, 1000), "float32"),
    "u8 image": ((224, 224, 3), "uint8"),
    "16 floats": ((16,), "float32"),
}


def of_loader():
    needs_torch()
    import loader

    return loader


class Loader:
    """Samples a second, two workers, a dataset that costs next to nothing."""

    params = [["shmtensor", "torch"], list(SAMPLES), [None, 8, 64]]
    param_names = ["loader", "sample", "batch"]
    unit = "samples/s"
    timeout = 120

    def track_samples(self, kind, sample, batch):
        loader = of_loader()
        shape, dtype = SAMPLES[sample]
        n = int(harness.isolated(loader.samples, kind, shape, dtype, batch, False, 1) * 0.5)
        return harness.isolated(loader.samples, kind, shape, dtype, batch, False, n)


class FirstBatch:
    """Milliseconds from iter() to the first batch of eight samples, two forked workers."""

    params = [["shmtensor", "torch"], [150_528, 16 << 20]]
    param_names = ["loader", "nbytes"]
    unit = "ms"

    def track_first_batch(self, kind, nbytes):
        return harness.isolated(of_loader().first_batch, kind, nbytes, 8, "fork", {}, timeout=60)
