"""What each call of a hand-off costs, one by one, in one thread.

    python benchmarks/steps.py [--rounds N] [--nbytes 64] [--json FILE]

Each step is done to 32 slots in a row and timed as a whole, so that the clock costs little; from what it took the empty
loop is taken off. Medians over the rounds, in nanoseconds. The steps of a column add up to one item's cycle, less what
the loop and the names around them cost in a real program, which ``whole`` shows.
"""

import argparse
import gc
import importlib.util
import json
import statistics
import sys
import time
from itertools import repeat
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("shmtensor") is None:
    sys.path.append(str(HERE.parent))

import peers  # noqa: E402

import shmtensor as st  # noqa: E402

K = 32  # slots in a row: fewer than the extension types keep in their free lists
clock = time.perf_counter_ns


class Steps:
    def __init__(self):
        self.samples = {}

    def timed(self, name, begin):
        self.samples.setdefault(name, []).append((clock() - begin) / K)

    def medians(self):
        out = {name: statistics.median(values) for name, values in self.samples.items()}
        empty, one = out.pop("empty loop"), out.pop("empty append")
        listed = ("claim", "acquire", "view:", "get")  # these built a list
        return {name: value - (one if name.startswith(listed) else empty) for name, value in out.items()}


def measure(rounds, nbytes):
    """All columns interleaved: {column: {step: ns}}."""
    single = st.TensorBuffer.create(((nbytes,), "uint8"), slots=K)
    named = st.TensorBuffer.create({"x": ((nbytes,), "uint8")}, slots=K)
    source = np.arange(nbytes, dtype=np.uint8)
    try:
        import torch

        tensor = torch.from_numpy(source)
    except ImportError:
        tensor = None

    def empties(steps):
        xs = list(range(K))
        t = clock()
        for _ in xs:
            pass
        steps.timed("empty loop", t)
        t = clock()
        xs = [None for _ in repeat(None, K)]
        steps.timed("empty append", t)

    def plain(steps, buf, write, view):
        claim, acquire = buf.claim, buf.acquire
        t = clock()
        slots = [claim() for _ in repeat(None, K)]
        steps.timed("claim", t)
        write(steps, slots)
        t = clock()
        for s in slots:
            s.publish()
        steps.timed("publish", t)
        t = clock()
        slots.clear()
        steps.timed("slot object dies (writer)", t)
        t = clock()
        slots = [acquire() for _ in repeat(None, K)]
        steps.timed("acquire", t)
        views = view(steps, slots)
        t = clock()
        for s in slots:
            s.release()
        steps.timed("release (views alive)" if views else "release", t)
        t = clock()
        slots.clear()
        steps.timed("slot object dies (reader)", t)
        if views:
            t = clock()
            views.clear()
            steps.timed("view dies, slot freed", t)

    def write_numpy(steps, slots):
        t = clock()
        for s in slots:
            s.write(source)
        steps.timed("write: slot.write(array)", t)

    def write_torch(steps, slots):
        t = clock()
        for s in slots:
            s.write(tensor)
        steps.timed("write: slot.write(tensor)", t)

    def assign(steps, slots):
        t = clock()
        for s in slots:
            s["x"]
        steps.timed('write: slot["x"]', t)
        xs = [s["x"] for s in slots]
        t = clock()
        for x in xs:
            x[...] = source
        steps.timed("write: [...] =", t)

    def view_numpy(steps, slots):
        t = clock()
        views = [s.numpy() for s in slots]
        steps.timed("view: slot.numpy()", t)
        t = clock()
        for s in slots:
            s.numpy()
        steps.timed("a second view, which dies at once", t)
        return views

    def view_name(steps, slots):
        t = clock()
        views = [s["x"] for s in slots]
        steps.timed('view: slot["x"]', t)
        return views

    def view_torch(steps, slots):
        t = clock()
        views = [s.torch() for s in slots]
        steps.timed("view: slot.torch()", t)
        t = clock()
        for s in slots:
            s.torch()
        steps.timed("a second view, which dies at once", t)
        return views

    def no_view(steps, slots):
        return []

    def with_blocks(steps):
        claim, acquire = single.claim, single.acquire
        t = clock()
        for _ in repeat(None, K):
            with claim():
                pass
        steps.timed("with claim(): pass", t)
        t = clock()
        for _ in repeat(None, K):
            with acquire():
                pass
        steps.timed("with acquire(): pass", t)
        t = clock()
        for _ in repeat(None, K):
            claim().publish()
        steps.timed("  claim().publish()", t)
        t = clock()
        for _ in repeat(None, K):
            acquire().release()
        steps.timed("  acquire().release()", t)
        t = clock()
        for _ in repeat(None, K):
            claim().abort()
        steps.timed("  claim().abort()", t)
        t = clock()
        for _ in repeat(None, K):
            single.try_acquire()
        steps.timed("try_acquire() of an empty buffer", t)

    def one_call(steps):
        put, get = single.put, single.get
        t = clock()
        for _ in repeat(None, K):
            put(source)
        steps.timed("put", t)
        t = clock()
        views = [get() for _ in repeat(None, K)]
        steps.timed("get", t)
        t = clock()
        views.clear()
        steps.timed("view dies, slot freed", t)

    def batches(steps):
        sources = source.reshape(1, -1).repeat(16, 0)
        for _ in repeat(None, K):
            t = clock()
            batch = single.claim_many(16)
            steps.timed("claim_many(16)", t)
            t = clock()
            view = batch.numpy()
            steps.timed("batch.numpy()", t)
            t = clock()
            view[...] = sources
            steps.timed("[...] = of 16", t)
            t = clock()
            batch.write(sources)
            steps.timed("batch.write() of 16", t)
            t = clock()
            batch.publish()
            steps.timed("batch.publish()", t)
            t = clock()
            batch = single.acquire_many(16)
            steps.timed("acquire_many(16)", t)
            t = clock()
            view = batch.numpy()
            steps.timed("batch.numpy(), reader", t)
            del view
            t = clock()
            batch.release()
            steps.timed("batch.release()", t)

    kinds = {
        "plain, numpy view": lambda s: plain(s, single, write_numpy, view_numpy),
        "by name": lambda s: plain(s, named, assign, view_name),
        "no view": lambda s: plain(s, single, write_numpy, no_view),
        "put and get": one_call,
        "with blocks": with_blocks,
        "batches": batches,
    }
    if tensor is not None:
        kinds["torch"] = lambda s: plain(s, single, write_torch, view_torch)
    columns = {name: Steps() for name in kinds}
    for _ in range(rounds):
        for name, run in kinds.items():
            empties(columns[name])
            run(columns[name])
    clock_ns = min(-(clock() - clock()) for _ in range(1000))
    result = {}
    for name, steps in columns.items():
        medians = steps.medians()
        if name == "batches":  # one batch was timed each time, and not K of something: no loop to take off
            medians = {step: statistics.median(steps.samples[step]) * K - clock_ns for step in medians}
        result[name] = medians
    single.close()
    named.close()
    return result


def whole(rounds, nbytes):
    """The cycles of peers.tensorbuffer, ns per item."""
    kinds = [peers.Plain, peers.With, peers.PlainByName, peers.WithByName, peers.TensorBuffer]
    if importlib.util.find_spec("torch"):
        kinds += [peers.PlainTorch, peers.WithTorch]
    made = [kind(nbytes, 8) for kind in kinds]
    source = np.arange(nbytes, dtype=np.uint8)
    samples = {kind.name: [] for kind in kinds}
    for _ in range(max(rounds // 100, 5)):
        for peer in made:
            t = clock()
            peer.cycle(source, 1000)
            samples[peer.name].append((clock() - t) / 1000)
    for peer in made:
        peer.close()
    return {name: statistics.median(values) for name, values in samples.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--nbytes", type=int, default=64)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    gc.disable()
    measure(20, args.nbytes)
    result = measure(args.rounds, args.nbytes)
    result["whole"] = whole(args.rounds, args.nbytes)
    for name, steps in result.items():
        print(f"{name}")
        for step, ns in steps.items():
            print(f"    {step:36} {ns:8.0f} ns")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
