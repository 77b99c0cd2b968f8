"""errno -> exception, one table: what the C core reports as -errno becomes the exception that users know."""

from __future__ import annotations

import errno
import os
import queue

__all__ = [
    "ClosedError",
    "LeaseLost",
    "PeersGone",
    "ShmError",
    "ShmLayoutError",
    "ShmNoSpaceError",
    "ShutDown",
    "WorkerDied",
    "error_from",
]


class ShmError(Exception):
    """The base of every exception that is this package's own."""


class ShmNoSpaceError(ShmError, OSError):
    """Memory could not be reserved; nothing was touched and nothing is left behind."""


class ShmLayoutError(ShmError, OSError):
    """Not a segment of ours, one of an incompatible version, or one whose contents are corrupt."""


class LeaseLost(ShmError):
    """A slot was taken away from its holder: it was reclaimed, or it belongs to the process that forked."""


class PeersGone(ShmError):
    """Nobody is left alive who could end this wait."""


class WorkerDied(ShmError):
    """A worker process died while it had this task."""


class ClosedError(ShmError, ValueError):
    """This handle was closed."""


# queue.ShutDown exists since Python 3.13; code that catches it there catches ours.
_ShutDownBase: type[Exception] = getattr(queue, "ShutDown", Exception)


class ShutDown(ShmError, _ShutDownBase):  # type: ignore[misc,valid-type]
    """The stream has ended: nothing more can be claimed, and everything published has been acquired."""


#: errno -> (exception, hint that names what to do). Where there is no entry, OSError picks the standard class
#: (FileExistsError, FileNotFoundError, PermissionError, ...).
_TABLE: dict[int, tuple[type[Exception], str]] = {
    errno.EBADF: (ClosedError, "it is closed in this process"),
    errno.ESTALE: (
        LeaseLost,
        "the slot is not this process's any more: it was reclaimed, or taken before a fork",
    ),
    errno.ESHUTDOWN: (
        ShutDown,
        "the stream has ended: by shutdown(), or because as many producers have closed as producers= says",
    ),
    errno.EOWNERDEAD: (PeersGone, "nobody is left who could end this wait; start the peers again"),
    errno.ETIMEDOUT: (TimeoutError, "the time-out passed"),
    errno.EUCLEAN: (ShmLayoutError, "its contents in shared memory are corrupt"),
    errno.EBADMSG: (ShmLayoutError, "it is not a shmtensor segment"),
    errno.EPROTONOSUPPORT: (ShmLayoutError, "it was made by an incompatible version of shmtensor"),
    errno.ENOSPC: (
        ShmNoSpaceError,
        "memory could not be had: raise the memory limit of this container or control group; if it has a name, enlarge "
        "/dev/shm",
    ),
    errno.ENOMEM: (ShmNoSpaceError, "no address space or heap is left: see `ulimit -v` and vm.max_map_count"),
    errno.EMSGSIZE: (ValueError, "it does not fit into a slot: raise max_slot_nbytes="),
    errno.EUSERS: (ShmError, "every member's place is taken: raise members="),
    errno.EBUSY: (OSError, "a process that was stopped is removing the name: let it go on, or end it"),
    errno.EMFILE: (OSError, "this process has no descriptor left: raise `ulimit -n`"),
    errno.ENFILE: (OSError, "the machine has no descriptor left: raise fs.file-max"),
    errno.ENOLCK: (OSError, "the kernel has no file lock left"),
    errno.EAGAIN: (OSError, "too much memory is locked: raise `ulimit -l`, or do without mlockall()"),
    errno.EINTR: (OSError, "a signal interrupted it: try again"),
    errno.ENXIO: (
        ShmError,
        "/proc is not mounted: creating a segment needs it, and so does joining an anonymous one; mount it",
    ),
    errno.EINVAL: (ValueError, "an argument is out of range"),
    errno.EOVERFLOW: (
        ValueError,
        "with what describes its slots it is larger than 2**46 bytes (64 TiB), the most there can be: lower slots= or "
        "max_slot_nbytes=",
    ),
    errno.ENAMETOOLONG: (ValueError, "the name is longer than 200 characters"),
}

#: What PeersGone says, by the verb that it ended.
_GONE = {
    "claiming a slot": "no consumer is left: they died or closed, and no slot is free; start a consumer and "
    "claim again",
    "acquiring an item": "no producer is left: at least one died or raised before it could close(), and everything "
    "published was acquired; start a producer and acquire again, or take it as the end of the stream",
}


def error_from(code: int, what: str) -> Exception:
    """The exception for errno ``code``, saying ``what`` failed."""
    cls, hint = _TABLE.get(code, (OSError, os.strerror(code)))
    if code == errno.EOWNERDEAD:
        hint = _GONE.get(what, hint)
    message = f"{what}: {hint}"
    return cls(code, message) if issubclass(cls, OSError) and cls is not TimeoutError else cls(message)
