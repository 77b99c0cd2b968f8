# _codec.pxd - what a transport sees of the codec: an object measured, then written to memory; and read from there.
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t

from shmtensor._views cimport Field, Owner, Source


cdef enum:
    APART_FROM = 1024  # bytes: from here on an array lies apart and comes back as a view; less lies in the stream


# An array or tensor on its way: where it comes from and, from the start of the message, where it goes.
ctypedef struct Part:
    Source source
    uint64_t offset
    uint64_t nbytes
    PyObject *field  # Field
    Part *next


# What a message has met: a list, dict, long text, array, ... that may come again.
ctypedef struct Met:
    PyObject *x    # NULL: nothing
    int64_t index  # its number, or ~number while we are in it


cdef class Encoder:
    cdef uint8_t *out         # the stream: everything but the payload of large arrays
    cdef size_t n, size       # its bytes: used, allocated
    cdef Part *first          # of this message
    cdef Part *last
    cdef Part *spare          # for the next one
    cdef list keep            # what the parts point into
    cdef Met *met             # a table of what was met, by address, at most half full
    cdef int64_t met_n, met_size
    cdef object dtype         # of the array before; None: known_dtype() is to be asked again
    cdef Field field          # what it said
    cdef bytes dtype_name
    cdef list buffers         # of a pickled message
    cdef uint64_t payload     # where the next part goes: bytes from where the payload begins
    cdef const uint8_t *base  # memory where arrays may lie already that need no copy, NULL: there is none
    cdef uint64_t based       # its bytes
    cdef int landed           # parts that lie there
    cdef uint8_t mode, flags
    cdef bint busy
    cdef int depth            # of the containers that we are in
    # Of the array that is being looked at: here and not on the stack, which has to hold many levels of nesting.
    cdef int64_t shape[64]
    cdef int64_t strides[64]
    cdef uint8_t order[64]

    cdef int room(self, size_t more) except -1
    cdef int byte(self, uint8_t value) except -1
    cdef int number(self, const void *value, size_t nbytes) except -1
    cdef int text(self, str value) except -1
    cdef int octets(self, bytes value) except -1
    cdef int name(self, bytes value) except -1
    cdef Part *new_part(self, Field f) except NULL
    cdef bint lies_there(self, const void *data, uint64_t nbytes, uint64_t itemsize) noexcept
    cdef int put_part(self, Part *part, uint64_t nbytes, bint packed)
    cdef int part(self, Field f, object x) except -1
    cdef int node(self, object x) except -1
    cdef int once(self, object x, bint holds) except -1
    cdef int leave(self, object x) except -1
    cdef Met *find_met(self, PyObject *x) noexcept
    cdef int grow_met(self) except -1
    cdef int know(self, object dtype) except -1
    cdef bint packed(self, list items) except -1
    cdef int sequence(self, uint8_t code, object items) except -1
    cdef int mapping(self, dict items) except -1
    cdef int descend(self) except -1
    cdef void ascend(self) noexcept
    cdef int other(self, object x) except -1
    cdef int array(self, object x) except -1
    cdef int tensor(self, object x) except -1
    cdef void forget(self) noexcept
    cdef void place_in(self, const uint8_t *base, uint64_t nbytes) noexcept
    cdef uint64_t measure(self, object x) except 0
    cdef void done(self) noexcept
    cdef uint64_t start(self)
    cdef int by_pickle(self, object x) except -1
    cdef int check_sources(self) except -1
    cdef int write(self, uint8_t *to) except -1


# (Field, name on the wire) of a numpy or torch dtype; (None, None) if arrays of it must be pickled.
cdef object known_dtype(object dtype)
# Whether something lies beside the stream, of which decode() would make views.
cdef bint is_apart(const uint8_t *data, uint64_t nbytes) noexcept
cdef object decode(uint8_t *data, uint64_t nbytes, void *thing, const Owner *owner, bint copy)
