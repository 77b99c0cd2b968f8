"""TensorBuffer: claim and publish, acquire and release, with numpy and torch views of the slots.

The verbs themselves are Buffer's, in the extension; here are creation, the defaults, the messages about a whole buffer,
pickling and iteration.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from shmtensor._core import Buffer
from shmtensor.deaths import Death, Watch
from shmtensor.diagnosis import Look, explain, poll
from shmtensor.errors import ShmLayoutError, ShutDown
from shmtensor.growth import KNOBS, no_room, reach
from shmtensor.segments import (
    attached,
    check_int,
    check_name,
    check_total,
    created,
    from_handle,
    handle_of,
    is_failure,
)
from shmtensor.spec import Spec, _did_you_mean, _enumerate

__all__ = ["TensorBuffer"]


class TensorBuffer(Buffer):
    """A fixed number of slots in shared memory through which producers hand items to consumers, in any process.

    An item is what the spec says: one array, or a dict of them. A producer claims a slot, fills it and publishes it; a
    consumer acquires the oldest published item, uses it in place and releases it. Nothing is copied but what the
    producer writes, and while neither side has to sleep no system call is made.

    Order is first in, first out by publication. Every item goes to one consumer. Slots may be released in any order.
    """

    __slots__ = ("_last",)
    _last: Look

    def __init__(self, *args: object, **options: object) -> None:
        raise TypeError(
            f"{type(self).__name__}() opens nothing: use {type(self).__name__}.create(spec, slots=8) for a new buffer, "
            "or .attach(name) for one that another process created"
        )

    @classmethod
    def create(
        cls,
        spec: Any,
        *,
        slots: int = 8,
        name: str | None = None,
        reserve: Literal["full", "grow"] | None = None,
        max_slot_nbytes: int | None = None,
        members: int = 256,
        producers: int = 1,
        prefault: bool = True,
        huge_pages: bool = False,
        spin_us: int = 50,
        on_consumer_death: Literal["redeliver", "drop"] = "redeliver",
        _seq_first: int = 0,
    ) -> TensorBuffer:
        """Creates a buffer and joins it.

        Args:
            spec: ``(shape, dtype)``, or a (nested) dict of name -> ``(shape, dtype)``, or a Spec. A dimension may be
                None: then it may differ from item to item, up to ``Field(shape, dtype, max_shape)`` or without bound.
            slots: how many items there can be at once, those being written and read included; 1..65535.
            name: under which unrelated processes of this user may attach; None (default): anonymous, for children and
                whoever is sent the buffer.
            reserve: "full": all memory now. "grow": a slot's memory when it is first needed, then kept. None: "full",
                or "grow" if a field is unbounded.
            max_slot_nbytes: bytes to which a slot may grow (address space, not memory); None: a quarter of the
                machine's memory, but all slots together no more than an eighth of the address space that is left.
            members: how many processes may take part at once; 1..4095.
            producers: iteration ends by itself once this many producers have closed and none is left. 0: only by
                shutdown().
            prefault: map all reserved memory now, here and wherever the buffer is attached; False: at first touch.
            huge_pages: advise huge pages; /proc/self/smaps, ShmemPmdMapped, shows whether the system gave them.
            spin_us: microseconds that a wait spins before it sleeps; 0 sleeps at once.
            on_consumer_death: "redeliver" what a dead consumer held (at least once), or "drop" it (at most once).

        Raises:
            TypeError, ValueError: an argument is wrong.
            FileExistsError: the name is in use.
            ShmNoSpaceError: memory is short; nothing was touched and nothing is left behind.
        """
        parsed = Spec.parse(spec)
        check_name(name)
        for label, value, low, high in (
            ("slots", slots, 1, 65535),
            ("members", members, 1, 4095),
            ("producers", producers, 0, 2**32 - 1),
            ("spin_us", spin_us, 0, 10**9),
        ):
            check_int(label, value, low, high)
        if max_slot_nbytes is not None:
            check_int("max_slot_nbytes", max_slot_nbytes, 1, 2**46)
        if reserve not in (None, "full", "grow"):
            raise ValueError(f'reserve must be "full", "grow" or None, not {reserve!r}')
        if on_consumer_death not in ("redeliver", "drop"):
            raise ValueError(f'on_consumer_death must be "redeliver" or "drop", not {on_consumer_death!r}')
        if reserve == "full" and parsed.growable:
            raise ValueError(
                'reserve="full" needs bounds: give the unbounded fields a max_shape, or use reserve="grow"'
            )
        grow = reserve == "grow" or (reserve is None and parsed.growable)
        if max_slot_nbytes is not None and max_slot_nbytes < parsed.nbytes:
            raise ValueError(
                f"max_slot_nbytes is {max_slot_nbytes:,}, but the fixed part of an item takes {parsed.nbytes:,} bytes"
            )
        what = f"creating a buffer of {slots} slots of {parsed.nbytes:,} bytes" + (f" named {name!r}" if name else "")
        check_total(what, parsed.nbytes * slots, "lower slots=, or make the fields smaller")
        stride, least, share = reach(what, slots, max_slot_nbytes, parsed.nbytes) if grow else (0, 0, 0)

        self = cls.__new__(cls)
        rc = self._create(
            name=name,
            slot_nbytes=0 if grow else parsed.nbytes,
            slot_stride=stride,
            slot_least=least,
            share=share,
            slots=slots,
            members=members,
            producers=producers,
            grow=grow,
            prefault=prefault,
            huge_pages=huge_pages,
            drop=on_consumer_death == "drop",
            seq_first=_seq_first,
            meta=parsed.dumps(),
        )
        was_set = grow and max_slot_nbytes is not None
        addresses = (stride if was_set else parsed.nbytes) * slots
        created(self, rc, what, name, 0 if grow else addresses, addresses, KNOBS if was_set else "")
        self._set_spec(parsed, spin_us)
        return self

    @classmethod
    def attach(cls, name: str, *, spin_us: int = 50) -> TensorBuffer:
        """Joins the named buffer that another process of this user created.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: it is not this user's, or open to others.
            ShmLayoutError: it is no TensorBuffer, of an incompatible version, or corrupt.
        """
        if name is None:
            raise TypeError("name must be a str: an anonymous buffer is passed to a process, not attached by name")
        check_name(name)
        check_int("spin_us", spin_us, 0, 10**9)
        self = cls.__new__(cls)
        attached(self, self._attach(name), f"attaching to buffer {name!r}", name)
        return self._attached(spin_us)

    @classmethod
    def _from_fd(cls, fd: int) -> TensorBuffer:
        self = cls.__new__(cls)
        attached(self, self._attach_fd(fd), "attaching to a buffer by descriptor")
        return self._attached(50)

    def _attached(self, spin_us: int) -> TensorBuffer:
        try:
            info = self._info
            if info["slots"] == 0:
                raise ShmLayoutError(errno.EBADMSG, "this segment is a SharedTensor: use SharedTensor.attach()")
            self._set_spec(Spec.loads(self._meta, info["slot_stride"]), spin_us)
        except BaseException:
            self.close()
            raise
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return from_handle, (type(self), *handle_of(self))

    # ---- items

    def put_many(self, items: Iterable[Any], timeout: float | None = None) -> int:
        """Puts each of ``items`` and returns how many that were; ``timeout`` (seconds) holds for each wait.

        Raises as put(). What was put before the error stays published.
        """
        count = 0
        for item in items:
            self.put(item, timeout)
            count += 1
        return count

    def __iter__(self) -> Iterator[Any]:
        """Items as get() returns them, until the stream has ended (see ``producers`` and shutdown())."""
        while True:
            try:
                yield self.get()  # never bound here: a name would keep the slot after the loop's body let go of it
            except ShutDown:
                return

    def __len__(self) -> int:
        """How many items are published and not yet acquired."""
        return self._count()[0]

    def __bool__(self) -> bool:
        return True  # an empty buffer is still a buffer

    # ---- the dead

    def deaths(self) -> list[Death]:
        """Who died since the last call, and what they held; looks for the dead first (see reclaim()). Never waits.

        What died before this process created, attached or received the buffer is not told.
        """
        self.reclaim()
        return self._listen().take()

    def on_death(self, callback: Callable[[Death], Any]) -> Callable[[Death], Any]:
        """Has ``callback(death)`` called in this process for each member that dies from now on, whoever finds it dead.

        It is called from within this process's own calls: while it waits in claim(), acquire(), put() or get(), at
        latest 0.1 seconds after the death could be known, and in reclaim() and deaths(). What it raises comes out of
        that call, which has then taken nothing; what is still to be told comes with the next call. Not called in
        processes that are forked afterwards. Returns ``callback``, so that it can decorate.
        """
        self._listen().add(callback)
        return callback

    def _listen(self) -> Watch:
        if self._watch is None:
            self._watch = Watch()
        self._watch.tell(self)
        return self._watch

    def reclaim(self) -> int:
        """Takes back what dead members held; returns how many members this call found dead. Never waits."""
        found = super().reclaim()
        if self._watch is not None:
            self._listen()
        return found

    # ---- what it is

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return int(self._info["slots"])

    @property
    def slot_nbytes(self) -> int:
        """Bytes to which the item of one slot can grow; of fixed-shape specs, its size."""
        info = self._info
        return int(info["slot_stride"] if self.spec.growable else self.spec.nbytes)

    def __repr__(self) -> str:
        if self.closed:
            return "<TensorBuffer closed>"
        s = self.stats()
        members = f"{s['members']} member{'s' * (s['members'] != 1)}"
        name = f" {self.name!r}" if self.name is not None else ""
        spec = repr(self.spec).removeprefix("Spec")
        return (
            f"<TensorBuffer{name} {spec} slots={self.slots}: {s['free']} free, {s['writing']} writing, "
            f"{s['ready']} ready, {s['reading']} reading; {s['publishes']} published, {members}>"
        )

    def __enter__(self) -> TensorBuffer:
        self._info  # noqa: B018 - raises ClosedError if closed
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: object) -> None:
        if is_failure(value):
            self._fail()
        else:
            self.close()

    # ---- what the extension asks of us

    def _look(self) -> Look:
        """What the extension asks for once a wait has gone on for a while."""
        return Look.at(self, members=False)

    def _timed_out(self, verb: str, timeout: float, before: Look | None = None) -> TimeoutError:
        """``before``: what the slots were doing early in this wait, if that was looked at."""
        if timeout == 0:
            return TimeoutError(poll(self, verb))
        last = getattr(self, "_last", None)  # the look of the last time-out: loops that retry see what does not move
        self._last = now = Look.at(self)
        return TimeoutError(explain(self, verb, timeout, now, [look for look in (last, before) if look is not None]))

    def _no_room(self, code: int, what: str, nbytes: int) -> Exception:
        return no_room(self, code, what, nbytes)

    def _unknown(self, key: object) -> KeyError:
        known = [f.path for f in self.spec.fields]
        if self.spec.single:
            return KeyError(f"this buffer's items are single arrays without names; got field {key!r}")
        return KeyError(f"unknown field {key!r}{_did_you_mean(key, known)}; {_enumerate(known)}")

    def _tree_at(self, key: object) -> dict[str, Any]:
        node: Any = self.spec.tree
        if isinstance(key, str):
            for part in key.split("."):
                node = node.get(part) if isinstance(node, dict) else None
            if isinstance(node, dict):
                return node
        raise self._unknown(key)

    def _subtree(self, key: object, view: Callable[[str], Any]) -> dict[str, Any]:
        """The (nested) dict of views under a name that is no field but holds some."""

        def walk(node: dict[str, Any]) -> dict[str, Any]:
            return {k: walk(v) if isinstance(v, dict) else view(v) for k, v in node.items()}

        return walk(self._tree_at(key))

    def _parts(self, key: object, item: Any) -> list[tuple[str, Any]]:
        """(path, array) of each field under a name, for a write of a nested dict."""
        node = self._tree_at(key)
        if not isinstance(item, dict) or item.keys() != node.keys():
            raise KeyError(f"writing {key!r} takes a dict with exactly {', '.join(map(repr, node))}")
        return [(f"{key}.{name}", item[name]) for name in node]
