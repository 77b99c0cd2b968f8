"""What an adapter offers, and the loops that drive one. The loops hold the callables in locals, so that no adapter pays
for a layer that its users would not have."""

from itertools import repeat
from typing import Any


class Peer:
    """One way of handing fixed-size arrays from process to process.

    Made in the parent before it forks; ``put`` and ``get`` are attributes, in the fastest form that the peer documents:
    the library's own bound method where there is one. ``get`` returns something with a buffer, valid until the next
    ``get`` or until it is deleted, and the loops delete it.
    """

    name: str
    put: Any  # put(array): hands over one array, 1-d uint8 of ``nbytes``
    get: Any  # get() -> buffer: waits for the next one

    def __init__(self, nbytes: int, slots: int, *, polling: bool = False) -> None:
        """``polling``: wait by trying again and again, where the peer does not do that by itself."""
        raise NotImplementedError

    def close(self) -> None:
        """Undoes what __init__ did; called in the parent."""

    def join(self) -> None:
        """Called in a forked child before its cores are chosen."""

    def idle(self, seconds: float) -> None:
        """Waits as a consumer for an item that does not come."""
        raise NotImplementedError

    def send(self, source: Any, n: int) -> None:
        put = self.put
        for _ in repeat(None, n):
            put(source)

    def recv(self, n: int, read: Any = None) -> None:
        get = self.get
        if read is None:
            for _ in repeat(None, n):
                get()
            return
        for _ in repeat(None, n):
            item = get()
            read(item)
            del item

    def cycle(self, source: Any, n: int) -> None:
        """Both ends in one thread."""
        put, get = self.put, self.get
        for _ in repeat(None, n):
            put(source)
            get()

    def ping(self, back: "Peer", source: Any, n: int) -> None:
        put, get = self.put, back.get
        for _ in repeat(None, n):
            put(source)
            get()

    def pong(self, back: "Peer", source: Any, n: int) -> None:
        get, put = self.get, back.put
        for _ in repeat(None, n):
            get()
            put(source)
