"""SharedTensor: one array in shared memory, attached by name or passed to a process as a handle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from shmtensor._core import Array, Segment
from shmtensor.errors import ShmLayoutError, error_from
from shmtensor.segments import attached, check_int, check_name, check_total, created, from_handle, handle_of
from shmtensor.spec import Field, Spec, resolve_dtype

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SharedTensor"]

#: From this size on, bytes, mapping the pages is split among threads: it is the kernel that zeroes them.
_PARALLEL_FROM = 64 << 20


class _Options(TypedDict, total=False):
    """The keywords of empty(), for those that pass them on."""

    name: str | None
    prefault: bool
    huge_pages: bool
    members: int


class SharedTensor(Array):
    """One array of fixed shape and dtype that processes share, seen without copies by numpy and torch.

    It pickles as a handle: passed to a process, or sent through a queue, it attaches on arrival. There is no
    synchronisation in it; TensorBuffer hands arrays over.
    """

    __slots__ = ("_spec",)
    _spec: Spec

    # ---- making one

    def __init__(self, *args: object, **options: object) -> None:
        name = type(self).__name__
        raise TypeError(
            f"{name}() opens nothing: use {name}.from_array(x), .zeros(shape, dtype), .full() or .empty() for a new "
            "one, or .attach(name) for one that another process created"
        )

    @classmethod
    def empty(
        cls,
        shape: int | tuple[int, ...],
        dtype: Any,
        *,
        name: str | None = None,
        prefault: bool = True,
        huge_pages: bool = False,
        members: int = 256,
    ) -> SharedTensor:
        """A new array; its memory is fresh from the kernel, hence zero.

        Args:
            shape: ints >= 0, at most 32 of them.
            dtype: of numpy or torch, or its name.
            name: under which unrelated processes of this user may attach; None: anonymous.
            prefault: map all of its memory now; False: at first touch.
            huge_pages: advise huge pages; /proc/self/smaps, ShmemPmdMapped, shows whether the system gave them.
            members: how many processes may attach at once; 1..4095.

        Raises:
            TypeError, ValueError: an argument is wrong.
            FileExistsError: the name is in use.
            ShmNoSpaceError: memory is short; nothing was touched and nothing is left behind.
        """
        spec = Spec(Field(shape, dtype))
        if spec.dynamic:
            raise ValueError(f"the shape of a SharedTensor has no None: {shape}")
        check_name(name)
        check_int("members", members, 1, 4095)
        nbytes = spec.nbytes
        what = f"creating a SharedTensor of {nbytes:,} bytes" + (f" named {name!r}" if name else "")
        check_total(what, nbytes, "make it smaller")
        self = cls.__new__(cls)
        parallel = prefault and nbytes >= _PARALLEL_FROM
        rc = self._create(
            name=name,
            slot_nbytes=nbytes,
            members=members,
            prefault=prefault,
            apart=parallel,
            huge_pages=huge_pages,
            meta=spec.dumps(),
        )
        created(self, rc, what, name, nbytes)
        self._set_spec(spec)
        if parallel:
            _prefault(self, nbytes)
        return self

    @classmethod
    def zeros(cls, shape: int | tuple[int, ...], dtype: Any, **options: Unpack[_Options]) -> SharedTensor:
        """As empty(), which is zero already; it says what is meant."""
        return cls.empty(shape, dtype, **options)

    @classmethod
    def full(cls, shape: int | tuple[int, ...], value: Any, dtype: Any, **options: Unpack[_Options]) -> SharedTensor:
        """As empty(), every element ``value``; options as empty()."""
        self = cls.empty(shape, dtype, **options)
        try:
            if resolve_dtype(dtype).numpy is not None:
                self.numpy()[...] = value
            else:
                self.torch().fill_(value)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def from_array(cls, array: Any, **options: Unpack[_Options]) -> SharedTensor:
        """A copy of a numpy array or CPU torch tensor of any strides; options as empty()."""
        if isinstance(array, SharedTensor):
            array = array.numpy() if resolve_dtype(array.dtype).numpy is not None else array.torch()
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            array = np.asarray(array)
        self = cls.empty(tuple(array.shape), array.dtype, **options)
        try:
            self.write(array)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def attach(cls, name: str) -> SharedTensor:
        """The named array that another process of this user created.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: it is not this user's, or open to others.
            ShmLayoutError: it is no SharedTensor, of an incompatible version, or corrupt.
        """
        if name is None:
            raise TypeError("name must be a str: an anonymous array is passed to a process, not attached by name")
        check_name(name)
        self = cls.__new__(cls)
        attached(self, self._attach(name), f"attaching to SharedTensor {name!r}", name)
        return self._attached()

    @classmethod
    def _from_fd(cls, fd: int) -> SharedTensor:
        self = cls.__new__(cls)
        attached(self, self._attach_fd(fd), "attaching to a SharedTensor by descriptor")
        return self._attached()

    def _attached(self) -> SharedTensor:
        try:
            info = self._info
            if info["slots"] != 0:
                raise ShmLayoutError(errno.EBADMSG, "this segment is a TensorBuffer: use TensorBuffer.attach()")
            spec = Spec.loads(self._meta, info["slot_nbytes"])
            if not spec.single or spec.dynamic:
                raise error_from(errno.EUCLEAN, "this SharedTensor")
            self._set_spec(spec)
            if info["apart"]:
                _prefault(self, spec.nbytes)
        except BaseException:
            self.close()
            raise
        return self

    def _set_spec(self, spec: Spec) -> None:
        self._spec = spec
        self._set_field(spec.fields[0])

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return from_handle, (type(self), *handle_of(self))

    # ---- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self._spec.fields[0].shape

    @property
    def dtype(self) -> str:
        """The name of the dtype, as numpy or torch has it."""
        return self._spec.fields[0].dtype.name

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self._spec.fields[0].nbytes

    def __repr__(self) -> str:
        if self.closed:
            return "<SharedTensor closed>"
        name = f" {self.name!r}" if self.name is not None else ""
        return f"<SharedTensor{name} {self.dtype}{list(self.shape)}>"

    def __enter__(self) -> SharedTensor:
        self._info  # noqa: B018 - raises ClosedError if closed
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _prefault(segment: Segment, nbytes: int) -> None:
    """Maps a large payload with as many threads as there are usable cores, at most 8."""
    threads = min(8, len(os.sched_getaffinity(0)))
    chunk = -(-nbytes // threads // 4096) * 4096
    with ThreadPoolExecutor(threads) as pool:
        parts = [(at, min(chunk, nbytes - at)) for at in range(0, nbytes, chunk)]
        list(pool.map(lambda part: segment._prefault(*part), parts))
