"""Which limit stood in the way of memory, and how to raise it: the texts of ShmNoSpaceError and of refusals."""

from __future__ import annotations

import errno
import os
import resource

from shmtensor._core import memory_left
from shmtensor.errors import ShmNoSpaceError

_RESERVE = 64 << 20  # what memory.c leaves to the rest of the machine
_UNKNOWN = 1 << 62  # that much is left where nothing says how much

#: What create and growth say when something is used up.
_SHORT = (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)


#: Of these, what says that addresses are short, and not memory.
_NO_ADDRESSES = (errno.ENOMEM, errno.EFBIG)


def shortage(
    code: int, what: str, nbytes: int, name: str | None, addresses: int | None = None, knobs: str = ""
) -> ShmNoSpaceError | None:
    """The error for a create or a growth that failed for want of something; None for other reasons.

    Args:
        code: errno.
        what: was being done.
        nbytes: wanted; 0: unknown.
        name: of the segment, None if it is anonymous.
        addresses: wanted, bytes, if they are not as many as ``nbytes``.
        knobs: what helps, besides to raise a limit, if addresses are short.
    """
    if code not in _SHORT:
        return None
    if code in _NO_ADDRESSES and addresses is not None:
        nbytes = addresses
    wanted = f"{nbytes:,} bytes wanted" if nbytes else "more memory wanted"
    if code == errno.ENOSPC:
        why = _no_space(nbytes, name)
    elif code == errno.ENOMEM:
        why = _no_mapping(name)
    elif code == errno.EFBIG:
        why = _file_too_large()
    else:
        why = "this user's quota on /dev/shm is used up: raise it, or leave name= out"
    if code in _NO_ADDRESSES and knobs:
        why += f"; or {knobs}"
    return ShmNoSpaceError(code, f"{what}: {wanted}; {why}")


def _no_space(nbytes: int, name: str | None) -> str:
    left = memory_left()
    text = (
        f"{left:,} bytes of memory are left (64 MiB of them stay in reserve)" if left < _UNKNOWN else "memory is short"
    )
    if name is None or nbytes > left - _RESERVE:
        if name is not None:
            text += _in_dev_shm()
        return f"{text}. Make it smaller, or raise the memory limit of this container or control group"
    text += _in_dev_shm()
    if _no_inodes():
        return f"{text}, but no inode: remove files there, or mount it with a larger nr_inodes="
    return (
        f"{text}. Make it smaller, enlarge /dev/shm (docker: --shm-size), or leave name= out: anonymous segments are "
        "not limited by /dev/shm"
    )


def _in_dev_shm() -> str:
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:
        return ", and /dev/shm cannot be read"
    return f", {shm.f_bavail * shm.f_frsize:,} bytes in /dev/shm"


def _no_inodes() -> bool:
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:
        return False
    return shm.f_files > 0 and shm.f_favail == 0


def _no_mapping(name: str | None) -> str:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        return f"this process may use {limit:,} bytes of address space: raise `ulimit -v`"
    return f"no mapping or no heap was to be had: see vm.max_map_count; {_no_space(0, name)}"


def _file_too_large() -> str:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    allowed = "" if limit == resource.RLIM_INFINITY else f" of at most {limit:,} bytes"
    return f"shared memory counts as a file, and this process may make files{allowed}: raise `ulimit -f` (RLIMIT_FSIZE)"


def refused(code: int, what: str, name: str | None) -> OSError | None:
    """The error for a create that the system does not allow here; None for other reasons."""
    if code not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOSYS, errno.EOPNOTSUPP, errno.EISDIR):
        return None
    if name is None:
        return OSError(
            code,
            f"{what}: {os.strerror(code)}: a policy (seccomp, an LSM, vm.memfd_noexec) must allow memfd_create and "
            "/proc/self/fd",
        )
    return OSError(
        code,
        f"{what}: {os.strerror(code)}: /dev/shm must be a tmpfs that this user may write to; or leave name= out",
    )
