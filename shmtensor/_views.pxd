# _views.pxd - what _core sees of _views: a place in memory, who owns it, and the views that can be made of it.
from libc.stdint cimport int64_t, uint8_t, uint64_t
cimport numpy as cnp

from shmtensor._dlpack cimport DLManagedTensor, DLManagedTensorVersioned

cdef enum:
    MAX_NDIM = 32


# How to take and give back one reference on whatever keeps the memory; callable from any thread, without the GIL.
ctypedef struct Owner:
    void (*hold)(void *thing) noexcept nogil
    void (*drop)(void *thing) noexcept nogil


cdef class Hold:
    cdef void *thing
    cdef const Owner *owner
    cdef object __weakref__


# Where one array lies: filled by Field.place() from constants, or from the bounds-checked words of a shape table.
ctypedef struct Place:
    uint8_t *data
    int ndim
    int64_t shape[MAX_NDIM + 1]    # a batch has one dimension more
    int64_t strides[MAX_NDIM + 1]  # in bytes
    bint packed                    # C order: strides follow from the shape


# What both generations of DLPack tensor point to: freed, and its owner dropped, by the deleter, in any thread.
ctypedef struct Managed:
    void *thing
    const Owner *owner
    int64_t shape[MAX_NDIM + 1]
    int64_t strides[MAX_NDIM + 1]
    DLManagedTensorVersioned versioned
    DLManagedTensor plain


# An array or tensor to copy from.
ctypedef struct Source:
    void *data
    int ndim
    int64_t *shape
    int64_t *strides        # in bytes
    bint packed
    int64_t own_shape[64]   # of a tensor, whose strides are in elements
    int64_t own_strides[64]


cdef class Field:
    cdef readonly str path
    cdef object dtype              # spec.DType
    cdef object descr              # numpy dtype or None
    cdef readonly object torch     # name of the torch dtype or None
    cdef uint8_t code, bits        # DLPack; bits 0: DLPack has no such type
    cdef uint64_t itemsize
    cdef int ndim
    cdef bint dynamic
    cdef int64_t shape[MAX_NDIM]   # -1: dynamic
    cdef int64_t bound[MAX_NDIM]   # -1: unbounded
    cdef int64_t offset, nbytes, table

    cdef int place(self, uint8_t *slot, uint64_t slot_nbytes, Place *out) except -1
    cdef int place_many(self, uint8_t *slot, uint64_t stride, int64_t n, Place *out) except -1
    cdef uint64_t size_of(self, object shape, int64_t *dims) except? 0xffffffffffffffff
    cdef int forget(self, uint8_t *slot) noexcept
    cdef int write_table(self, uint8_t *slot, uint64_t offset, const int64_t *dims) noexcept
    cdef int check_seen_by(self, bint torch) except -1
    cdef object numpy_dtype(self)
    cdef object array(self, const Place *at, object base, bint writeable)
    cdef bint is_array(self, cnp.ndarray array, const Place *at) noexcept
    cdef object array_copy(self, const Place *at)
    cdef Managed *manage(self, const Place *at, void *thing, const Owner *owner) except NULL
    cdef object tensor(self, const Place *at, void *thing, const Owner *owner)
    cdef object capsule(self, const Place *at, void *thing, const Owner *owner, bint versioned, bint as_bytes=*)
    cdef object shape_of(self, object x)
    cdef object source(self, object x, Source *out)
    cdef object converted(self, object given, object x, object descr)
    cdef object tensor_source(self, object x, Source *out)
    cdef object tensor_source_slowly(self, object x, Source *out)
    cdef int move(self, void *to, const Source *source) except -1
    cdef int scatter(self, const Place *at, object keep) except -1
    cdef int check_source(self, const Source *source, object x) except -1
    cdef int copy_in(self, const Place *at, object x) except -1


cdef bint is_packed(int ndim, const int64_t *shape, const int64_t *strides, int64_t itemsize) noexcept
cdef int find_torch(bint wanted) except -1
cdef Hold hold_new(void *thing, const Owner *owner)
