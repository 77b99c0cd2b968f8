"""One measurement each: it makes the peers, forks the other processes, warms up, times, and returns one number.

Every one runs in a process of its own (``isolated``), so that a peer that hangs or crashes is a result and not the
end of the run, and so that nothing is left of it. Whoever measures takes part itself, as the consumer: a process that
only watched would count as one more member.
"""

import argparse
import ctypes
import gc
import mmap
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import statistics
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing import resource_tracker

import limit
import numpy as np

context = multiprocessing.get_context("fork")
CORES = sorted(os.sched_getaffinity(0))
PINS = (CORES[0], CORES[1]) if len(CORES) > 1 else (-1, -1)  # of the producer and the consumer


_made = []


class Failed(Exception):
    """A measurement hung, crashed or raised: there is no number, and this is why."""


def make(kind, nbytes, slots, **options):
    """A peer that is closed when the measurement is over."""
    peer = kind(nbytes, slots, **options)
    _made.append(peer)
    return peer


def options_of(doc, seconds, more=()):
    """What a script of rows is told on its command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--rows", default="", help="beginnings of names, separated by commas")
    parser.add_argument("--quick", action="store_true", help="one short repeat: shows that it works, no more")
    for name in more:
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.seconds = 1, 0.05
    options.rows = tuple(options.rows.split(","))
    return options


def interleaved(cells, counts, repeats, ours):
    """Runs the cells of a row one after the other, ``repeats`` times and in turning order, each with its count. Returns
    the median of each, and by each the median of how many times faster ``ours`` was in the same repeat."""
    samples = {kind: [] for kind in cells}
    kinds = list(cells)
    for turn in range(repeats):
        for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
            samples[kind].append(isolated(cells[kind], counts[kind], timeout=120))
    figures = {kind: statistics.median(found) for kind, found in samples.items()}
    ratios = {
        kind: statistics.median(a / b for a, b in zip(samples[ours], samples[kind], strict=True)) for kind in kinds
    }
    return figures, ratios


def isolated(measure, *args, timeout=60.0, **kwargs):
    """Runs ``measure`` in a forked process group of its own and returns what it returns."""
    # Ours, and not one that is killed with the group: it removes what a killed measurement leaves in /dev/shm.
    resource_tracker.ensure_running()
    receiver, sender = context.Pipe(duplex=False)

    def run():
        os.setpgid(0, 0)
        try:
            gc.disable()
            outcome = (True, measure(*args, **kwargs))
        except BaseException:
            outcome = (False, traceback.format_exc(limit=-3))
        for peer in _made:
            peer.close()
        sender.send(outcome)  # last: this process may be killed from here on

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            raise Failed(f"no result within {timeout:g} s: it hangs")
        ok, result = receiver.recv()
    except EOFError:
        process.join()
        raise Failed(f"the measuring process died with exit code {process.exitcode}") from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it left running
        process.join()
        receiver.close()
    if not ok:
        raise Failed(result)
    return result


class Child:
    """A forked process that runs a function, and whose failure fails the measurement."""

    def __init__(self, run, *args):
        self.process = context.Process(target=self.main, args=(run, *args), daemon=True)
        self.process.start()

    @staticmethod
    def main(run, *args):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: do not outlive the parent
        gc.disable()
        run(*args)

    def join(self):
        self.process.join()
        if self.process.exitcode:
            raise RuntimeError(f"the other process failed with exit code {self.process.exitcode}")


def watch(children):
    """A thread that ends the measurement if a child fails: its parent waits for items that will not come."""
    running = {child.process.sentinel: child.process for child in children}

    def look():
        while running:
            for sentinel in multiprocessing.connection.wait(list(running)):
                process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    print(f"{process.name} failed with exit code {process.exitcode}", file=sys.stderr, flush=True)
                    os._exit(3)

    threading.Thread(target=look, daemon=True).start()


def pin(which):
    """Puts this process on the core of the producer (0) or the consumer (1), if there are two."""
    if PINS[which] >= 0:
        os.sched_setaffinity(0, {PINS[which]})


def source_of(nbytes):
    """What producers send."""
    return (np.arange(nbytes, dtype=np.uint64) % 251).astype(np.uint8)


def checked(nbytes):
    """A ``read`` that fails the measurement if an item is not what the producer sent."""
    expected = source_of(nbytes)

    def check(item):
        if not np.array_equal(np.frombuffer(item, np.uint8), expected):
            raise AssertionError("an item arrived with other bytes than were sent")

    return check


# ---- one process ----


def cycle(kind, nbytes, n, slots=8):
    """Seconds of one item, both ends in one thread."""
    peer = make(kind, nbytes, slots)
    pin(0)
    source = source_of(nbytes)
    peer.cycle(source, n // 5 + slots)
    begin = time.perf_counter()
    peer.cycle(source, n)
    return (time.perf_counter() - begin) / n


# ---- two processes ----


def stream(kind, nbytes, slots, n, read=True, **options):
    """Items per second, one way. The producer hands over a warm array; the consumer reads every byte with reader.c, or
    takes no more than the view (``read=False``)."""
    peer = make(kind, nbytes, slots, **options)
    warm = n // 10 + 2 * slots
    read = limit.reader() if read else None

    def produce():
        peer.join()
        pin(0)
        source = source_of(nbytes)
        peer.send(source, warm)
        peer.send(source, n)
        settle.wait()

    settle = context.Event()
    child = Child(produce)
    watch([child])
    pin(1)
    peer.recv(slots, checked(nbytes))  # and then on at full speed, so that the clock starts in the steady state
    peer.recv(warm - slots, read)
    begin = time.perf_counter()
    peer.recv(n, read)
    seconds = time.perf_counter() - begin
    settle.set()  # a process that leaves early would take what its feeder thread still holds with it
    child.join()
    return n / seconds


def latency(kind, n, *, polling, nbytes=64):
    """Seconds one way: half of a round trip through two of the peer, so that both sides are always waiting."""
    there, back = make(kind, nbytes, 8, polling=polling), make(kind, nbytes, 8, polling=polling)
    warm = n // 10 + 10
    source = source_of(nbytes)

    def answer():
        there.join()
        back.join()
        pin(0)
        there.pong(back, source, warm + n)
        settle.wait()

    settle = context.Event()
    child = Child(answer)
    watch([child])
    pin(1)
    there.ping(back, source, warm)
    begin = time.perf_counter()
    there.ping(back, source, n)
    seconds = time.perf_counter() - begin
    settle.set()
    child.join()
    return seconds / n / 2


def wake(kind, n, *, gap=300e-6, nbytes=64):
    """Seconds one way, median, when the consumer is asleep and the producer is not: the producer looks at the clock for
    ``gap`` seconds, puts the time into the item and hands it over; the consumer takes the difference."""
    peer = make(kind, nbytes, 8)
    ready = np.frombuffer(mmap.mmap(-1, 4096), np.int64)

    def produce():
        peer.join()
        pin(0)
        source = np.zeros(nbytes, np.uint8)
        stamp = source[:8].view(np.int64)
        clock = time.perf_counter
        for i in range(n):
            while ready[0] < i:
                os.sched_yield()
            until = clock() + gap
            while clock() < until:
                pass
            stamp[0] = time.perf_counter_ns()
            peer.put(source)
        settle.wait()

    settle = context.Event()
    child = Child(produce)
    watch([child])
    pin(1)
    took = []
    for i in range(n):
        ready[0] = i
        item = peer.get()
        now = time.perf_counter_ns()
        took.append(now - int(np.frombuffer(item, np.int64, 1)[0]))
        del item
    settle.set()
    child.join()
    return statistics.median(took) * 1e-9


def limit_stream(nbytes, slots, n, copy="memcpy"):
    return n / limit.run("stream", nbytes, slots, n, copy, *PINS)


def limit_spin(n):
    return limit.run("spin", n, *PINS)


def limit_futex(n, gap=300e-6):
    return limit.run("futex", n, round(gap * 1e6), *PINS)


# ---- many processes ----


def contention(kind, producers, consumers, n, *, nbytes=64, slots=64, **options):
    """Items per second through ``producers`` and ``consumers``, none of them pinned; the measuring process is one of
    the consumers. Each producer sends the same number and each consumer takes the same number."""
    peer = make(kind, nbytes, slots, **options)
    unit = producers * consumers
    warm, total = (n // 20 // unit + 1) * unit, (n // unit + 1) * unit
    source = source_of(nbytes)
    together = context.Barrier(producers + consumers)
    ends = context.RawArray("d", 2 * consumers)

    def produce():
        peer.join()
        for count in (warm, total):
            together.wait()
            peer.send(source, count // producers)
        together.wait()

    def consume(i):
        peer.join()
        together.wait()
        peer.recv(warm // consumers, checked(nbytes))
        together.wait()
        ends[2 * i] = time.perf_counter()
        peer.recv(total // consumers)
        ends[2 * i + 1] = time.perf_counter()
        together.wait()

    children = [Child(produce) for _ in range(producers)]
    children += [Child(consume, i) for i in range(1, consumers)]
    watch(children)
    consume(0)
    for child in children:
        child.join()
    return total / (max(ends[1::2]) - min(ends[0::2]))


def idle(kind, waiters, seconds):
    """CPU seconds per second of the busiest of ``waiters`` that wait for an item that does not come."""
    peer = make(kind, 64, 8)
    shares = context.RawArray("d", waiters)

    def wait(i):
        peer.join()
        time.sleep(0.1)
        used = resource.getrusage(resource.RUSAGE_SELF)
        begin = time.perf_counter()
        peer.idle(seconds)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        shares[i] = cpu / (time.perf_counter() - begin)

    children = [Child(wait, i) for i in range(waiters)]
    for child in children:
        child.join()
    return max(shares)
