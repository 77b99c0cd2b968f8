"""What the standard library offers: multiprocessing.Queue, Pipe, and SharedMemory with semaphores, written by hand."""

import multiprocessing
import os
from contextlib import suppress
from multiprocessing import shared_memory
from queue import Empty

import numpy as np

from .base import Peer

context = multiprocessing.get_context("fork")


class Queue(Peer):
    """multiprocessing.Queue of numpy arrays: pickled by a feeder thread, sent through a pipe, unpickled."""

    name = "mp.Queue"

    def __init__(self, nbytes, slots, *, polling=False):
        self.queue = context.Queue(maxsize=slots)
        self.put = self.queue.put
        self.get = self.poll if polling else self.queue.get

    def poll(self):
        while True:
            try:
                return self.queue.get_nowait()
            except Empty:
                pass

    def idle(self, seconds):
        with suppress(Empty):
            self.queue.get(timeout=seconds)

    def close(self):
        self.queue.cancel_join_thread()
        self.queue.close()


class Pipe(Peer):
    """multiprocessing.Pipe, one way, raw bytes: send_bytes of the array, recv_bytes_into one that is reused.

    A pipe buffers bytes and not items, so ``slots`` has no meaning here. One producer, one consumer.
    """

    name = "mp.Pipe"

    def __init__(self, nbytes, slots, *, polling=False):
        self.reader, self.writer = context.Pipe(duplex=False)
        self.into = np.empty(nbytes, np.uint8)
        self.put = self.writer.send_bytes
        self.polling = polling
        # As bytes, a small message saves the call that knows its size.
        self.get = self.receive if nbytes > 4096 or polling else self.reader.recv_bytes

    def receive(self):
        reader = self.reader
        while self.polling and not reader.poll(0):
            pass
        reader.recv_bytes_into(self.into)
        return self.into

    def cycle(self, source, n):
        # With both ends in one thread, more than the pipe's buffer would wait for itself.
        assert source.nbytes <= 4096
        super().cycle(source, n)

    def idle(self, seconds):
        self.reader.poll(seconds)

    def close(self):
        self.reader.close()
        self.writer.close()


class Ring(Peer):
    """What people write by hand: slots in one SharedMemory, a semaphore that counts the free ones and one that counts
    the ready ones. ``put`` copies into the next slot; ``get`` returns a view of the next one, and gives it back at the
    next ``get``. One producer, one consumer; nothing survives a crash of either.
    """

    name = "SharedMemory + Semaphore"

    def __init__(self, nbytes, slots, *, polling=False):
        space = os.statvfs("/dev/shm")
        if space.f_bavail * space.f_frsize < nbytes * slots:
            raise OSError(f"/dev/shm has no room for {slots} slots of {nbytes:,} bytes")
        self.memory = shared_memory.SharedMemory(create=True, size=nbytes * slots)
        self.views = [np.ndarray(nbytes, np.uint8, self.memory.buf, i * nbytes) for i in range(slots)]
        for view in self.views:
            view.fill(0)
        self.free = context.Semaphore(slots)
        self.ready = context.Semaphore(0)
        self.slots = slots
        self.at = 0
        self.held = False
        self.polling = polling

    def put(self, source):
        self.take(self.free)
        self.views[self.at][...] = source
        self.at = (self.at + 1) % self.slots
        self.ready.release()

    def get(self):
        if self.held:
            self.free.release()
        self.take(self.ready)
        self.held = True
        view = self.views[self.at]
        self.at = (self.at + 1) % self.slots
        return view

    def take(self, semaphore):
        if not self.polling:
            semaphore.acquire()
            return
        while not semaphore.acquire(False):
            pass

    def cycle(self, source, n):
        # One object plays both ends here: the same steps, with the position shared.
        free, ready, views, slots, at = self.free, self.ready, self.views, self.slots, self.at
        for _ in range(n):
            free.acquire()
            views[at][...] = source
            ready.release()
            ready.acquire()
            view = views[at]
            del view
            free.release()
            at = (at + 1) % slots
        self.at = at

    def idle(self, seconds):
        self.ready.acquire(timeout=seconds)

    def close(self):
        self.views.clear()
        self.memory.close()
        self.memory.unlink()


class LockedRing(Ring):
    """The same for many producers and consumers: a lock at each end guards the position, and the copy out of or into
    the slot happens under it. ``get`` returns a copy."""

    def __init__(self, nbytes, slots, *, polling=False):
        super().__init__(nbytes, slots, polling=polling)
        self.writing = context.Value("Q", 0)
        self.reading = context.Value("Q", 0)

    def put(self, source):
        self.take(self.free)
        with self.writing.get_lock():
            self.views[self.writing.value % self.slots][...] = source
            self.writing.value += 1
        self.ready.release()

    def get(self):
        self.take(self.ready)
        with self.reading.get_lock():
            item = self.views[self.reading.value % self.slots].copy()
            self.reading.value += 1
        self.free.release()
        return item

    cycle = Peer.cycle
