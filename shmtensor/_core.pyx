"""The C core as extension types: convert, one call, raise.

    Segment  one mapping of one segment             _segment.pxi
    Array    a segment that is one array            (SharedTensor)
    Buffer   a segment with slots and fields        _buffer.pxi (TensorBuffer)
    Slot     a claimed or acquired slot             _slot.pxi
    Batch    up to 64 of them that follow each other
    Objects  a segment with slots and any objects   _objects.pxi (Queue)
    Landing  tensors that are made in their slot    _landing.pxi (DataLoader)
    Watcher  what a thread does for fileno()        _watch.pxi

One module and not several, because the C core's state - which handles live in this process - must be there once.

Policy - defaults, messages about a whole buffer, pickling - lives in buffer.py and tensor.py.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.dict cimport PyDict_GetItem
from cpython.list cimport PyList_GET_ITEM
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
cimport cython
cimport numpy as cnp

from _thread import start_new_thread

from shmtensor.errors import ClosedError, LeaseLost, error_from
from shmtensor.watch import run as run_watcher

from shmtensor._codec cimport APART_FROM, Encoder, decode, is_apart, known_dtype
from shmtensor._cshmt cimport *
from shmtensor._views cimport MAX_NDIM, Field, Hold, Owner, Place, find_torch, hold_new

cnp.import_array()

cdef extern from "Python.h":
    int Py_REFCNT(PyObject *)  # not (object): that would count Cython's own temporary
    int get_buffer "PyObject_GetBuffer"(object exporter, Py_buffer *view, int flags) except -1

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArrayObject_fields:
        PyObject *weakreflist

cdef extern from "errno.h":
    int EAGAIN, EBUSY, EINTR, EMSGSIZE, EOWNERDEAD, ERANGE, ETIMEDOUT, EINVAL, EUCLEAN

cdef int _EAGAIN = EAGAIN, _EBUSY = EBUSY, _EINTR = EINTR, _ETIMEDOUT = ETIMEDOUT, _EUCLEAN = EUCLEAN
cdef int _EOWNERDEAD = EOWNERDEAD, _ERANGE = ERANGE, _EMSGSIZE = EMSGSIZE

cdef int64_t STEP_NS = 100_000_000  # how long Ctrl-C may have to wait at most

cdef enum Verb:
    CLAIM
    ACQUIRE

cdef enum State:
    WRITING = 1
    READING
    PUBLISHED
    ABORTED
    RELEASED

cdef object _NOTHING = object()
cdef object _ENDED = {0: "ended", PUBLISHED: "published", ABORTED: "aborted", RELEASED: "released"}


cdef void _lease_hold(void *thing) noexcept nogil:
    shmt_lease_hold(<shmt_lease *>thing)


cdef void _lease_drop(void *thing) noexcept nogil:
    shmt_lease_drop(<shmt_lease *>thing)


cdef void _segment_hold(void *thing) noexcept nogil:
    shmt_segment_hold(<shmt_segment *>thing)


cdef void _segment_drop(void *thing) noexcept nogil:
    shmt_segment_drop(<shmt_segment *>thing)


# A reader's views keep its slot; a writer's, and a SharedTensor's, keep the mapping.
cdef Owner LEASE
LEASE.hold = _lease_hold
LEASE.drop = _lease_drop
cdef Owner MAPPING
MAPPING.hold = _segment_hold
MAPPING.drop = _segment_drop


cdef int check(int rc, object what) except -1:
    if rc < 0:
        raise error_from(-rc, what)
    return rc


cdef int64_t _deadline(object timeout) except? -1:
    """Seconds from now -> CLOCK_MONOTONIC nanoseconds."""
    cdef double seconds
    if timeout is None:
        return SHMT_FOREVER
    try:
        seconds = timeout
    except TypeError:
        raise TypeError(f"timeout must be None or a number of seconds >= 0, not {timeout!r:.80}") from None
    if not seconds >= 0:  # NaN too
        raise ValueError(f"timeout must be None or a number of seconds >= 0, not {timeout!r}")
    if seconds > 4e9:
        return SHMT_FOREVER
    return shmt_now_ns() + <int64_t>(seconds * 1e9)


def memory_left():
    """Bytes that could still be reserved: the machine's available memory or the control groups' limits, if less."""
    return shmt_memory_left()


cdef void _seen(void *arg, const char *name, int stale) noexcept with gil:
    (<list>arg).append((name.decode(), bool(stale)))


def sweep(bint dry_run=False):
    """Removes the named segments of this user whose last member is dead.

    Returns a list of (name, stale); with ``dry_run`` nothing is removed.
    """
    found = []
    check(shmt_sweep(dry_run, _seen, <void *>found), "sweeping named segments")
    return found


include "_segment.pxi"
include "_watch.pxi"
include "_buffer.pxi"
include "_slot.pxi"
include "_objects.pxi"
include "_landing.pxi"
