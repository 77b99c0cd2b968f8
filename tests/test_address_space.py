"""Where address space is short, segments that can grow leave room for others: as many as one needs can be made, and
what else a process does goes on. The programs run by themselves, as their limits cannot be raised again."""

from __future__ import annotations

import pytest
from support import python

PRELUDE = """
import mmap, resource, sys
from pathlib import Path
import numpy as np
import shmtensor as st

def used():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

def limit(nbytes):
    '''So much is left from now on.'''
    resource.setrlimit(resource.RLIMIT_AS, (used() + nbytes, resource.RLIM_INFINITY))

def refusal(what, error):
    try:
        what()
    except error as e:
        return str(e)
    raise AssertionError("it was not refused")

GIB, MIB = 1 << 30, 1 << 20
"""

EIGHTHS = """
from contextlib import ExitStack
makes = {
    "queue": lambda: st.Queue(),
    "bounded": lambda: st.JoinableQueue(8),
    "simple": lambda: st.SimpleQueue(),
    "buffer": lambda: st.TensorBuffer.create(((None,), "uint8")),
    "fixed": lambda: st.TensorBuffer.create(((1000,), "uint8"), reserve="grow"),
}
make = makes[sys.argv[1]]
limit(2 * GIB)
end = used() + 2 * GIB
kept = []
for _ in range(6):
    before = used()
    kept.append(make())
    assert (used() - before) <= (end - before) // 8 + MIB, "an eighth of what was left"
assert end - used() >= 2 * GIB * 4 // 10
for x in kept:
    x.put(np.full(1000, 7, "uint8"))
    assert x.get().sum() == 7000
print("done")
"""


@pytest.mark.parametrize("kind", ["queue", "bounded", "simple", "buffer", "fixed"])
def test_each_takes_an_eighth_of_what_is_left(kind: str) -> None:
    assert python(PRELUDE + EIGHTHS, kind) == "done\n"


POOLS = """
if __name__ == "__main__":
    limit(2 * GIB)
    pools = [st.Pool(2) for _ in range(3)]
    executors = [st.ProcessPoolExecutor(2) for _ in range(3)]
    for x in (*pools, *executors):
        assert list(x.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    for pool in pools:
        pool.terminate()
        pool.join()
    for executor in executors:
        executor.shutdown()
    print("done")
"""


def test_pools_and_executors() -> None:
    assert python(PRELUDE + POOLS) == "done\n"


ASKED_FOR = """
loose = ((None,), "uint8")
free = st.Queue(4)._slots._info["slot_stride"]
limit(2 * GIB)
makes = (
    lambda nbytes: st.Queue(4, max_slot_nbytes=nbytes)._slots,
    lambda nbytes: st.TensorBuffer.create(loose, slots=4, max_slot_nbytes=nbytes),
)
for make in makes:
    one = make(300 * MIB)  # more than an eighth
    assert one._info["slot_stride"] == 300 * MIB and not one._info["shrunk"]
    one.close()
    del one
    said = refusal(lambda: make(600 * MIB), st.ShmNoSpaceError)
    for part in (f"{2400 * MIB:,} bytes wanted", "raise `ulimit -v`; or lower max_slot_nbytes= or slots="):
        assert part in said, said
    said = refusal(lambda: make(1 << 45), ValueError)
    assert said.endswith("(64 TiB) are possible in one segment: lower max_slot_nbytes= or slots="), said
# What is too large for one that was not asked for anything: the limit is named, and what can be done.
small = st.Queue(4)
size = small._slots._info["slot_stride"]
assert 50 * MIB < size < min(64 * MIB, free), size
said = refusal(lambda: small.put(bytes(70 * MIB)), ValueError)
assert f"slots can grow to {size:,}" in said and "(`ulimit -v`)" in said and "or set max_slot_nbytes=" in said, said
feeds = st.Queue(slots=4)
for i in range(5):
    feeds.put(i)  # the last one waits for a slot
assert "(`ulimit -v`)" in refusal(lambda: feeds.put(bytes(70 * MIB)), ValueError)
assert [feeds.get() for _ in range(5)] == [0, 1, 2, 3, 4]
# The fixed part of an item has to fit, whatever an eighth is.
with st.TensorBuffer.create({"a": ((100 * MIB,), "uint8"), "b": loose}, slots=4) as large:
    assert large.slot_nbytes >= 100 * MIB
print("done")
"""


def test_what_is_asked_for_is_had_or_refused() -> None:
    assert python(PRELUDE + ASKED_FOR) == "done\n"


LOADERS = """
import threading
import torch
import loader_support as ls
method = sys.argv[1]
if __name__ == "__main__":
    limit(3 * GIB)
    options = {"num_workers": 2, "multiprocessing_context": method, "persistent_workers": True}
    loaders = [st.DataLoader(ls.Numbers(24, ls.plain), 2, **options) for _ in range(3)]
    its = [iter(loader) for loader in loaders]
    first = [next(it) for it in its]  # all at once
    thread = threading.Thread(target=mmap.mmap, args=(-1, 500 * MIB))
    thread.start()
    thread.join()
    memory = mmap.mmap(-1, 500 * MIB)
    for loader, it, x in zip(loaders, its, first):
        assert [int(y[0, 0, 0]) for y in (x, *it)] == list(range(0, 24, 2))
        assert [int(y[0, 0, 0]) for y in loader] == list(range(0, 24, 2))
    # Tasks are sent through queues that no setting of the loader enlarges.
    tasks = its[0]._index_queues[0]
    size = tasks._slots._info["slot_stride"]
    assert 512 << 10 < size < 2 * MIB, size
    said = refusal(lambda: tasks.put(bytes(2 * MIB)), ValueError)
    assert "(`ulimit -v`)" in said and "max_slot_nbytes" not in said, said
    large = st.DataLoader(ls.Numbers(4, lambda i: torch.zeros(300 * MIB, dtype=torch.uint8)), 1, num_workers=1)
    if method == "fork":
        said = refusal(lambda: next(iter(large)), ValueError)
        assert "(`ulimit -v`)" in said and "or set max_slot_nbytes=" in said, said
    print("done")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_three_loaders_at_once(method: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    assert python(PRELUDE + LOADERS, method) == "done\n"


LESS = """
import multiprocessing
def child(connection):
    limit(200 * MIB)
    connection.send("limited")
    try:
        connection.recv()
    except st.ShmNoSpaceError as e:
        connection.send(str(e))
if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    assert here.recv() == "limited"
    buffer = st.TensorBuffer.create(((None,), "uint8"), slots=4, max_slot_nbytes=100 * MIB)
    here.send(buffer)
    said = here.recv()
    assert "attaching to a buffer" in said and "raise `ulimit -v`" in said, said
    process.join()
    print("done")
"""


def test_a_process_that_has_less_says_so() -> None:
    assert python(PRELUDE + LESS) == "done\n"
