"""What TensorBuffer and SharedTensor share: opening with messages that help, pickling as a handle, ending at exit."""

from __future__ import annotations

import atexit
import errno
import hmac
import os
import re
import sys
import weakref
from multiprocessing import AuthenticationError, process, reduction, util
from typing import Any, Protocol

from shmtensor._core import Segment
from shmtensor.errors import ShmError, ShutDown, error_from
from shmtensor.limits import refused, shortage

#: The most that one segment can have, bytes: SHMT_NBYTES_MAX of csrc/layout.h.
NBYTES_MAX = 2**46
_NAME = re.compile(r"[A-Za-z0-9._-]+")

#: Every segment that this process has open.
_open: weakref.WeakSet[Segment] = weakref.WeakSet()


def _close_all() -> None:
    """At exit: no name stays behind, and a producer counts as having closed, or as dead if an exception ends it."""
    # In a child of multiprocessing the exception is on its way; in a main program it has been printed.
    last = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    failed = is_failure(sys.exc_info()[1] or last)
    for segment in list(_open):
        if failed:
            segment._fail()
        else:
            segment.close()


def is_failure(exception: BaseException | None) -> bool:
    """Whether a producer that ends by this exception has not done what it was to do."""
    if isinstance(exception, SystemExit):
        return exception.code not in (None, 0)
    return exception is not None and not isinstance(exception, (ShutDown, GeneratorExit))


def _in_child(_: object) -> None:
    """multiprocessing's children leave by os._exit(), which knows its own finalizers only. Spawned ones do not, but by
    the time of atexit the exception that ended them is forgotten."""
    util.Finalize(None, _close_all, exitpriority=-1)  # last of all


atexit.register(_close_all)
util.register_after_fork(_open, _in_child)
_in_child(None)  # a spawned child does not run these


def check_name(name: object) -> None:
    """Raises TypeError or ValueError unless ``name`` is None or may name a segment."""
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"name must be a str or None, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name {name!r} must consist of letters, digits, '.', '_' and '-': it becomes the file "
            "/dev/shm/shmtensor.<name>"
        )
    if len(name) > 200:
        raise ValueError(f"name has {len(name)} characters; at most 200 are possible")


def check_int(label: str, value: object, low: int, high: int) -> None:
    """Raises TypeError or ValueError unless ``value`` is an int in low..high."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{label} must be an int, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{label} must be {low}..{high}, not {value}")


def check_total(what: str, nbytes: int, knobs: str) -> None:
    """Raises ValueError if a payload of ``nbytes`` is more than any segment can have, whatever the machine."""
    if nbytes > NBYTES_MAX:
        raise ValueError(
            f"{what}: {nbytes:,} bytes in all; at most {NBYTES_MAX:,} (64 TiB) are possible in one segment: {knobs}"
        )


def created(
    segment: Segment,
    rc: int,
    what: str,
    name: str | None,
    nbytes: int,
    addresses: int | None = None,
    knobs: str = "",
    *,
    closes_at_exit: bool = True,
) -> None:
    """Raises for the -errno of a create, naming the limit that was in the way; ``nbytes`` of memory were wanted. The
    others as in shortage()."""
    if rc == 0:
        if closes_at_exit:
            _open.add(segment)
        return
    if rc == -errno.EEXIST:
        raise FileExistsError(errno.EEXIST, f"{what}: the name is in use; attach to it, or choose another")
    short = shortage(-rc, what, nbytes, name, addresses, knobs)
    raise short or refused(-rc, what, name) or error_from(-rc, what)


def attached(segment: Segment, rc: int, what: str, name: str | None = None, *, closes_at_exit: bool = True) -> None:
    """Raises for the -errno of an attach, saying what would help."""
    if rc == 0:
        if closes_at_exit:
            _open.add(segment)
        return
    if rc in (-errno.EPERM, -errno.EACCES) and name is not None:
        raise PermissionError(
            -rc,
            f"{what}: /dev/shm/shmtensor.{name} is no plain file of this user with mode 0600, so it is not trusted",
        )
    if rc == -errno.ENOENT and name is not None:
        raise FileNotFoundError(
            errno.ENOENT,
            f"{what}: there is no segment of this name; start the process that creates it first, or create() it here "
            "(a name goes when its last process has closed)",
        )
    raise shortage(-rc, what, 0, name) or error_from(-rc, what)


class _Attachable(Protocol):
    @classmethod
    def _from_fd(cls, fd: int) -> Any: ...


def handle_of(segment: Segment) -> tuple[Any, ...]:
    """A picklable handle: the name, or a descriptor in multiprocessing's own wrapping."""
    name = segment.name
    return ("name", name) if name is not None else ("fd", reduction.DupFd(segment._fd), _family())


def _family() -> str:
    """The same in processes that multiprocessing made of one another: it gives its key to its children."""
    return hmac.new(bytes(process.current_process().authkey), b"shmtensor", "sha256").hexdigest()


def from_handle(cls: type[_Attachable], kind: str, value: Any, family: str = "") -> Any:
    """Attaches to what handle_of() described, in the process where it was unpickled."""
    if kind == "name":
        return cls.attach(value)  # type: ignore[attr-defined]  # whoever has a name has this too
    # Asked beforehand: with a wrong key the process that pickled would print a traceback of its own.
    if family != _family():
        raise _not_sent(cls, "it was pickled by a process that multiprocessing did not make, nor was made by")
    try:
        fd = value.detach()
    except (OSError, EOFError, AuthenticationError) as e:
        raise _not_sent(cls, "the process that pickled it has ended, or it was unpickled once already") from e
    try:
        return cls._from_fd(fd)
    finally:
        os.close(fd)


def _not_sent(cls: type[Any], why: str) -> ShmError:
    return ShmError(
        f"this anonymous {cls.__name__} cannot be attached here: {why}. Anonymous ones pass to processes of "
        "multiprocessing, as arguments and once each through its queues and pipes; for any other process create it "
        f"with name= and use {cls.__name__}.attach(name)"
    )
