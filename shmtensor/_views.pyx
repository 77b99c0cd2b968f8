"""Memory and its owner, seen as numpy arrays and torch tensors; and arrays and tensors copied into memory.

Knows nothing of slots, processes or segments: an owner is a pointer with a way to hold and to drop it. Every view keeps
its owner, and whatever aliases a view keeps the view, so the owner is dropped when the last alias dies.
"""

from cpython.buffer cimport PyObject_CheckBuffer
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyTypeObject
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy
cimport cython
cimport numpy as cnp

import sys
from operator import index

import numpy as np

from shmtensor._cshmt cimport shmt_copy, shmt_copy_strided
from shmtensor._dlpack cimport (
    DLManagedTensor,
    DLManagedTensorVersioned,
    DLPackExchangeAPI,
    DLTensor,
    kDLCPU,
)

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    cnp.ndarray PyArray_NewFromDescr(PyTypeObject *subtype, cnp.PyArray_Descr *descr, int nd, cnp.npy_intp *dims,
                                     cnp.npy_intp *strides, void *data, int flags, PyObject *obj)
    int PyArray_SetBaseObject(cnp.ndarray arr, object base) except -1  # steals a reference to base
    int PyArray_EquivTypes(cnp.PyArray_Descr *a, cnp.PyArray_Descr *b) noexcept

cdef uint64_t NBYTES_MAX = 1 << 46  # bytes: more than any machine maps, and small enough to calculate with

cdef enum:
    NOGIL_FROM = 65536  # bytes: copying more than this is worth giving the GIL up for


# ---- who keeps the memory ------------------------------------------------------------------------


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Hold:
    """The base of numpy views: one reference on the owner of their memory, dropped when the last view dies.

    Views are counted by the lifetime of this object and not by exported buffers, because torch.frombuffer gives its
    buffer back at once and keeps only the object.
    """

    def __dealloc__(self):
        if self.thing != NULL:
            self.owner.drop(self.thing)


cdef Hold hold_new(void *thing, const Owner *owner):
    """Takes over one reference that the caller has on `thing`."""
    cdef Hold hold = Hold.__new__(Hold)
    hold.thing = thing
    hold.owner = owner
    return hold


# ---- torch, if and when the program uses it ------------------------------------------------------

cdef object _tensor_type = None       # torch.Tensor, once torch is imported
cdef object _from_dlpack = None       # torch's own importer, for versions without the exchange API
cdef DLPackExchangeAPI *_exchange = NULL
cdef bint _force_fallback = False


cdef int find_torch(bint wanted) except -1:
    """Looks for torch; imports it only if `wanted`. Returns whether it is there."""
    global _tensor_type, _from_dlpack, _exchange
    if _tensor_type is not None:
        return 1
    torch = sys.modules.get("torch")
    if torch is None and wanted:
        try:
            import torch
        except ImportError as e:
            raise ImportError("torch views need torch: pip install 'shmtensor[torch]'") from e
    tensor_type = getattr(torch, "Tensor", None)  # absent while torch itself is being imported
    if tensor_type is None:
        if wanted:
            raise ImportError("torch views need torch: pip install 'shmtensor[torch]'")
        return 0
    from torch.utils.dlpack import from_dlpack
    api = getattr(tensor_type, "__dlpack_c_exchange_api__", None)
    if api is not None and PyCapsule_IsValid(api, b"dlpack_exchange_api"):
        _exchange = <DLPackExchangeAPI *>PyCapsule_GetPointer(api, b"dlpack_exchange_api")
        if _exchange.version.major != 1 or _exchange.dltensor_from_py_object_no_sync == NULL:
            _exchange = NULL
    _from_dlpack = from_dlpack
    _tensor_type = tensor_type
    return 1


def _use_exchange_api(bint on):
    """For tests: off makes views and copies take the paths of a torch without the C exchange API."""
    global _force_fallback
    _force_fallback = not on


cdef inline bint _is_tensor(object x):
    return find_torch(False) and isinstance(x, _tensor_type)


# ---- DLPack --------------------------------------------------------------------------------------

cdef void _managed_free(Managed *block) noexcept nogil:
    block.owner.drop(block.thing)
    PyMem_RawFree(block)


cdef void _versioned_deleter(DLManagedTensorVersioned *self) noexcept nogil:
    _managed_free(<Managed *>self.manager_ctx)


cdef void _plain_deleter(DLManagedTensor *self) noexcept nogil:
    _managed_free(<Managed *>self.manager_ctx)


cdef void _capsule_free(object capsule) noexcept:
    """A capsule that nobody consumed still owns its tensor; a consumer renames it."""
    cdef void *pointer
    if PyCapsule_IsValid(capsule, b"dltensor_versioned"):
        pointer = PyCapsule_GetPointer(capsule, b"dltensor_versioned")
        (<DLManagedTensorVersioned *>pointer).deleter(<DLManagedTensorVersioned *>pointer)
    elif PyCapsule_IsValid(capsule, b"dltensor"):
        pointer = PyCapsule_GetPointer(capsule, b"dltensor")
        (<DLManagedTensor *>pointer).deleter(<DLManagedTensor *>pointer)


# ---- sources -------------------------------------------------------------------------------------

cdef bint is_packed(int ndim, const int64_t *shape, const int64_t *strides, int64_t itemsize) noexcept:
    cdef int d
    cdef int64_t expected = itemsize
    for d in range(ndim - 1, -1, -1):
        if shape[d] == 0:
            return True
        if shape[d] != 1 and strides[d] != expected:
            return False
        expected *= shape[d]
    return True


@cython.final
cdef class Field:
    """One array of an item as the extension uses it: spec.Placed, unpacked into C."""

    def __init__(self, placed):
        cdef int d
        self.path = placed.path
        self.dtype = placed.dtype
        self.descr = placed.dtype.numpy
        self.torch = placed.dtype.torch
        if placed.dtype.dlpack is not None:
            self.code, self.bits = placed.dtype.dlpack
        self.itemsize = placed.dtype.itemsize
        self.ndim = len(placed.shape)
        self.offset = placed.offset
        self.nbytes = placed.nbytes
        self.table = placed.table
        self.dynamic = placed.table >= 0
        for d in range(self.ndim):
            self.shape[d] = placed.shape[d]
            self.bound[d] = placed.max_shape[d] if placed.max_shape is not None else placed.shape[d]

    def __repr__(self):
        return f"Field({self.path!r}, {self.dtype.name}, {tuple(self.shape[d] for d in range(self.ndim))})"

    @property
    def label(self):
        return f"field {self.path!r}" if self.path else "the item"

    # ---- where it lies

    cdef int place(self, uint8_t *slot, uint64_t slot_nbytes, Place *out) except -1:
        """Finds the array in a slot of which `slot_nbytes` may be touched. What the shape table says is copied and then
        checked against what the spec allows and the slot holds: it is shared memory."""
        cdef int d
        cdef int64_t entry[MAX_NDIM + 1]
        cdef int64_t step = self.itemsize, nbytes = self.itemsize
        cdef uint64_t limit = slot_nbytes
        out.ndim = self.ndim
        out.packed = True
        if not self.dynamic:
            for d in range(self.ndim - 1, -1, -1):
                out.shape[d] = self.shape[d]
                out.strides[d] = step
                step *= self.shape[d]
            out.data = slot + self.offset
            return 0
        memcpy(entry, slot + self.table, sizeof(int64_t) * (1 + self.ndim))
        if entry[0] == 0:
            raise ValueError(f"{self.label} has not been written yet: use write() or empty(field, shape)")
        for d in range(self.ndim):
            out.shape[d] = entry[1 + d]
            if out.shape[d] < 0 or (self.bound[d] >= 0 and out.shape[d] > self.bound[d]) \
                    or (self.shape[d] >= 0 and out.shape[d] != self.shape[d]):
                raise _corrupt(self)
            if out.shape[d] == 0:
                limit = NBYTES_MAX  # an empty array has no bytes, and strides that need only be representable
        for d in range(self.ndim - 1, -1, -1):
            out.strides[d] = step
            if out.shape[d] > 0 and step > <int64_t>(limit // <uint64_t>out.shape[d]):
                raise _corrupt(self)
            nbytes *= out.shape[d]
            step *= max(out.shape[d], 1)
        if entry[0] < 0 or <uint64_t>entry[0] > slot_nbytes or <uint64_t>nbytes > slot_nbytes - <uint64_t>entry[0] \
                or entry[0] % 64 != 0:
            raise _corrupt(self)
        out.data = slot + entry[0]
        return 0

    cdef int place_many(self, uint8_t *slot, uint64_t stride, int64_t n, Place *out) except -1:
        """The same array in n slots that follow each other, as one array of shape (n, *shape)."""
        cdef int d
        cdef int64_t step = self.itemsize
        if self.dynamic:
            raise TypeError(f"{self.label} has a dynamic shape: items of a batch must all have the same")
        out.ndim = self.ndim + 1
        out.packed = False
        out.shape[0] = n
        out.strides[0] = stride
        for d in range(self.ndim - 1, -1, -1):
            out.shape[1 + d] = self.shape[d]
            out.strides[1 + d] = step
            step *= self.shape[d]
        out.data = slot + self.offset
        return 0

    cdef uint64_t size_of(self, object shape, int64_t *dims) except? 0xffffffffffffffff:
        """Checks an actual shape of a dynamic field, unpacks it, and returns its size in bytes."""
        cdef int d
        cdef object nbytes = self.itemsize
        cdef object n
        shape = tuple(shape) if hasattr(shape, "__iter__") else (shape,)
        if len(shape) != self.ndim:
            raise ValueError(f"{self.label} has {self.ndim} dimensions, got shape {shape}")
        for d in range(self.ndim):
            try:
                n = index(shape[d])
            except TypeError as e:
                raise TypeError(f"{self.label} takes shape {self.describe()}, got {shape}") from e
            if n < 0 or (self.shape[d] >= 0 and n != self.shape[d]) or (self.bound[d] >= 0 and n > self.bound[d]):
                raise ValueError(f"{self.label} takes shape {self.describe()}, got {shape}")
            nbytes *= max(n, 1)
            if nbytes > NBYTES_MAX:
                raise ValueError(f"{self.label} of shape {shape} is larger than 2**46 bytes")
            dims[d] = n
        for d in range(self.ndim):
            if dims[d] == 0:
                return 0
        return nbytes

    def describe(self):
        """The shape that the field takes, for messages."""
        dims = [
            str(self.shape[d]) if self.shape[d] >= 0 else "any" if self.bound[d] < 0 else f"<={self.bound[d]}"
            for d in range(self.ndim)
        ]
        return f"({', '.join(dims)}{',' if self.ndim == 1 else ''})"

    cdef int forget(self, uint8_t *slot) noexcept:
        """As if a dynamic field had not been written."""
        cdef int64_t nowhere = 0
        memcpy(slot + self.table, &nowhere, sizeof(int64_t))
        return 0

    cdef int write_table(self, uint8_t *slot, uint64_t offset, const int64_t *dims) noexcept:
        cdef int64_t where = offset
        memcpy(slot + self.table, &where, sizeof(int64_t))
        if self.ndim:
            memcpy(slot + self.table + sizeof(int64_t), dims, sizeof(int64_t) * self.ndim)
        return 0

    # ---- out: views and copies

    cdef int check_seen_by(self, bint torch) except -1:
        """Raises TypeError (or ImportError) if numpy, or torch, cannot show this field."""
        if torch:
            find_torch(True)
            if self.torch is None:
                raise TypeError(f"{self.label} is {self.dtype.name}, which torch does not have: use numpy")
        elif self.descr is None and self.dtype.numpy is None:
            raise TypeError(f"{self.label} is {self.dtype.name}, which numpy does not have: use .torch(), "
                            "torch=True, or import ml_dtypes first")
        return 0

    cdef object numpy_dtype(self):
        if self.descr is not None:
            return self.descr
        descr = self.dtype.numpy  # bfloat16 and float8 have one once ml_dtypes is imported
        if descr is None:
            raise TypeError(f"{self.label} is {self.dtype.name}, which numpy does not have: use .torch(), or "
                            "import ml_dtypes first")
        return descr

    cdef object array(self, const Place *at, object base, bint writeable):
        """A numpy view whose base is `base` (70 ns; np.frombuffer with reshape takes 484)."""
        cdef cnp.ndarray out
        cdef object descr = self.descr if self.descr is not None else self.numpy_dtype()
        cdef int flags = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED
        if writeable:
            flags |= cnp.NPY_ARRAY_WRITEABLE
        Py_INCREF(descr)  # stolen
        out = PyArray_NewFromDescr(<PyTypeObject *>cnp.ndarray, <cnp.PyArray_Descr *>descr, at.ndim,
                                   <cnp.npy_intp *>at.shape, NULL if at.packed else
                                   <cnp.npy_intp *>at.strides, at.data, flags, NULL)
        Py_INCREF(base)  # stolen
        PyArray_SetBaseObject(out, base)
        return out

    cdef bint is_array(self, cnp.ndarray array, const Place *at) noexcept:
        """Whether array() would return one like this: its user may have changed its shape, dtype or flags in place."""
        cdef int d
        if cnp.PyArray_DATA(array) != at.data or cnp.PyArray_NDIM(array) != at.ndim \
                or <PyObject *>cnp.PyArray_DESCR(array) != <PyObject *>self.descr \
                or not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_WRITEABLE | cnp.NPY_ARRAY_ALIGNED):
            return False
        for d in range(at.ndim):
            if cnp.PyArray_DIMS(array)[d] != at.shape[d] or cnp.PyArray_STRIDES(array)[d] != at.strides[d]:
                return False
        return True

    cdef object array_copy(self, const Place *at):
        """An array of its own memory."""
        cdef object descr = self.numpy_dtype()
        Py_INCREF(descr)  # stolen
        cdef cnp.ndarray out = PyArray_NewFromDescr(<PyTypeObject *>cnp.ndarray, <cnp.PyArray_Descr *>descr, at.ndim,
                                                    <cnp.npy_intp *>at.shape, NULL, NULL, 0, NULL)
        cdef void *to = cnp.PyArray_DATA(out)
        cdef Source source
        source.data = at.data
        source.ndim = at.ndim
        source.shape = <int64_t *>at.shape
        source.strides = <int64_t *>at.strides
        source.packed = at.packed
        self.move(to, &source)
        return out

    cdef Managed *manage(self, const Place *at, void *thing, const Owner *owner) except NULL:
        """A DLPack tensor that takes a reference of its own on `thing`."""
        cdef int d
        cdef int64_t elements = 1
        cdef Managed *block = <Managed *>PyMem_RawMalloc(sizeof(Managed))
        if block == NULL:
            raise MemoryError
        for d in range(at.ndim):
            block.shape[d] = at.shape[d]
            block.strides[d] = at.strides[d] // <int64_t>self.itemsize
            elements *= at.shape[d]
        cdef DLTensor tensor
        tensor.data = at.data if elements > 0 else NULL
        tensor.device.device_type = kDLCPU
        tensor.device.device_id = 0
        tensor.ndim = at.ndim
        tensor.dtype.code = self.code if self.bits else 1
        tensor.dtype.bits = self.bits if self.bits else 8
        tensor.dtype.lanes = 1
        tensor.shape = block.shape
        tensor.strides = block.strides
        tensor.byte_offset = 0
        owner.hold(thing)
        block.thing = thing
        block.owner = owner
        block.versioned.version.major = 1
        block.versioned.version.minor = 1
        block.versioned.manager_ctx = block
        block.versioned.deleter = _versioned_deleter
        block.versioned.flags = 0
        block.versioned.dl_tensor = tensor
        block.plain.manager_ctx = block
        block.plain.deleter = _plain_deleter
        block.plain.dl_tensor = tensor
        return block

    cdef object tensor(self, const Place *at, void *thing, const Owner *owner):
        """A torch view, through the C exchange API where torch has it (about 450 ns; torch.from_dlpack takes 1400)."""
        cdef Managed *block
        cdef void *out = NULL
        find_torch(True)
        if self.torch is None:
            raise TypeError(f"{self.label} is {self.dtype.name}, which torch does not have: use numpy")
        # Types that DLPack lacks, or that older importers lack, come as bytes and are viewed.
        cdef bint as_bytes = self.bits == 0
        if _exchange != NULL and not _force_fallback:
            block = self.manage(at, thing, owner)
            if _exchange.managed_tensor_to_py_object_no_sync(&block.versioned, &out) < 0:
                _managed_free(block)
                _propagate()
            result = <object>out
            Py_DECREF(result)  # `out` was a new reference
        else:
            as_bytes = as_bytes or (self.code > 6 and self.bits == 8)
            result = _from_dlpack(self.capsule(at, thing, owner, False, as_bytes))
        if as_bytes:
            import torch
            result = result.view(getattr(torch, self.torch))
        return result

    cdef object capsule(self, const Place *at, void *thing, const Owner *owner, bint versioned, bint as_bytes=False):
        """What __dlpack__ returns."""
        if self.bits == 0 and not as_bytes:
            raise BufferError(f"{self.label} is {self.dtype.name}, which DLPack does not have")
        cdef Managed *block = self.manage(at, thing, owner)
        if as_bytes:
            block.plain.dl_tensor.dtype.code = 1
        try:
            if versioned:
                return PyCapsule_New(&block.versioned, b"dltensor_versioned", _capsule_free)
            return PyCapsule_New(&block.plain, b"dltensor", _capsule_free)
        except BaseException:
            _managed_free(block)
            raise

    # ---- in: one copy

    cdef object shape_of(self, object x):
        """The shape that writing `x` would give a dynamic field."""
        shape = getattr(x, "shape", None)
        return tuple(shape) if shape is not None else np.shape(x)

    cdef object source(self, object x, Source *out):
        """Describes `x` for a copy; returns what keeps its memory. The dtype must be the field's: nothing is converted
        in silence, except Python numbers and lists, which have no dtype."""
        cdef cnp.ndarray array
        if not cnp.PyArray_Check(x):
            if _is_tensor(x):
                return self.tensor_source(x, out)
            if self.descr is None and self.dtype.numpy is None:
                raise TypeError(f"{self.label} is {self.dtype.name}, which numpy does not have: write a torch tensor")
            descr = self.descr if self.descr is not None else self.dtype.numpy
            given = np.asarray(x)
            if given.dtype.hasobject:
                raise TypeError(f"{self.label} takes {self.dtype.name} of shape {self.describe()}, not "
                                f"{type(x).__name__}")
            # Of numbers without a dtype only the kind must fit: 7 may go into uint8, 7.5 may not, 300 raises.
            exact = (hasattr(x, "dtype") or hasattr(x, "__array_interface__") or hasattr(x, "__array__")
                     or (PyObject_CheckBuffer(x) and not isinstance(x, bytes)))
            if exact and given.dtype != descr:
                raise _wrong_dtype(self, given.dtype)
            number = given.dtype.kind in "iub" and descr.kind in "iubfc"
            if not number and not np.can_cast(given.dtype, descr, "same_kind"):
                raise _wrong_dtype(self, type(x).__name__)
            x = self.converted(given, x, descr)
        array = <cnp.ndarray>x
        if <PyObject *>cnp.PyArray_DESCR(array) != <PyObject *>self.descr:
            descr = self.descr if self.descr is not None else self.dtype.numpy
            if descr is None or not PyArray_EquivTypes(<cnp.PyArray_Descr *>array.dtype, <cnp.PyArray_Descr *>descr):
                raise _wrong_dtype(self, array.dtype)
        out.data = cnp.PyArray_DATA(array)
        out.ndim = cnp.PyArray_NDIM(array)
        out.shape = <int64_t *>cnp.PyArray_DIMS(array)
        out.strides = <int64_t *>cnp.PyArray_STRIDES(array)
        out.packed = cnp.PyArray_IS_C_CONTIGUOUS(array)
        return x

    cdef object converted(self, object given, object x, object descr):
        """A Python value as an array of the field's dtype; what does not fit is refused, not wrapped or cut off."""
        try:
            out = np.array(x, dtype=descr, order="C")
        except OverflowError as e:
            raise ValueError(f"{self.label} takes dtype {self.dtype.name}: {e}") from e
        if given.dtype.kind in "SUV":
            fits = given.dtype.itemsize <= out.dtype.itemsize
        else:
            fits = out.dtype.kind not in "iu" or np.array_equal(out, given)  # numpy 1 wraps around
        if not fits:
            raise ValueError(f"{self.label} takes dtype {self.dtype.name}: the value does not fit")
        return out

    cdef object tensor_source(self, object x, Source *out):
        cdef DLTensor t
        cdef int d
        if self.torch is None:
            raise _wrong_dtype(self, x.dtype)
        # Only floating and complex tensors can be negated or conjugated lazily: asking costs more than a small copy.
        if self.code not in (0, 1, 6) and (x.is_neg() or (self.code == 5 and x.is_conj())):
            x = x.resolve_conj().resolve_neg()  # lazily negated or conjugated: memory is not the values
        if self.bits == 0:
            import torch
            if x.dtype is not getattr(torch, self.torch):
                raise _wrong_dtype(self, x.dtype)
            x = x.view(torch.uint8)
        if _exchange == NULL or _force_fallback:
            return self.tensor_source_slowly(x, out)
        try:
            _exchange.dltensor_from_py_object_no_sync(<void *>x, &t)
        except (RuntimeError, BufferError, TypeError) as e:
            raise _not_copied(self, e) from e
        if t.device.device_type != kDLCPU:
            raise TypeError(f"{self.label}: the tensor is on {x.device}: move it to the CPU first")
        if self.bits and (t.dtype.code != self.code or t.dtype.bits != self.bits):
            raise _wrong_dtype(self, x.dtype)
        out.data = <uint8_t *>t.data + t.byte_offset
        out.ndim = t.ndim
        self.check_source(out, x)
        for d in range(t.ndim):
            out.own_shape[d] = t.shape[d]
            out.own_strides[d] = t.strides[d] * <int64_t>self.itemsize
        out.shape = out.own_shape
        out.strides = out.own_strides
        out.packed = is_packed(t.ndim, out.shape, out.strides, self.itemsize)
        return x

    cdef object tensor_source_slowly(self, object x, Source *out):
        """The same by attributes, for a torch without the exchange API."""
        cdef int d
        if x.device.type != "cpu":
            raise TypeError(f"{self.label}: the tensor is on {x.device}: move it to the CPU first")
        if self.bits and str(x.dtype) != "torch." + self.torch:
            raise _wrong_dtype(self, x.dtype)
        try:
            out.data = <void *><size_t>x.data_ptr()
            shape, strides = x.shape, x.stride()
        except RuntimeError as e:
            raise _not_copied(self, e) from e
        out.ndim = len(shape)
        self.check_source(out, x)
        for d in range(out.ndim):
            out.own_shape[d] = shape[d]
            out.own_strides[d] = strides[d] * <int64_t>self.itemsize
        out.shape = out.own_shape
        out.strides = out.own_strides
        out.packed = is_packed(out.ndim, out.shape, out.strides, self.itemsize)
        return x

    cdef int check_source(self, const Source *source, object x) except -1:
        """Refuses tensors that say they are on the CPU and have no memory: fake ones, wrappers, zeros that autograd
        made, and those whose storage was freed. Their address is no more than their offset."""
        cdef size_t address = <size_t>source.data
        if source.ndim > 64:
            raise ValueError(f"{self.label} takes shape {self.describe()}, got {source.ndim} dimensions")
        if address < <size_t>1 << 40 and address == x.storage_offset() * self.itemsize and x.numel() > 0:
            raise TypeError(f"{self.label}: this {type(x).__name__} has no memory to copy from")
        return 0

    cdef int copy_in(self, const Place *at, object x) except -1:
        """Copies `x` to its place: memcpy where both lie in C order, else one strided gather."""
        cdef Source source
        cdef int d
        cdef bint same
        keep = self.source(x, &source)
        same = source.ndim == at.ndim
        if same:
            for d in range(at.ndim):
                same = same and source.shape[d] == at.shape[d]
        if not same:
            takes = self.describe() if at.ndim == self.ndim else tuple([at.shape[d] for d in range(at.ndim)])
            got = tuple([source.shape[d] for d in range(min(source.ndim, 64))])
            fill = ""
            if source.ndim == 0:
                fill = f"; slot[{self.path!r}][...] = value fills it with one" if self.path else \
                    "; slot.numpy()[...] = value fills it with one"
            raise ValueError(f"{self.label} takes shape {takes}, got {got}{fill}")
        if at.packed:
            self.move(at.data, &source)
        else:
            self.scatter(at, keep)
        return 0

    cdef int move(self, void *to, const Source *source) except -1:
        """Packs a source into C order."""
        cdef int d
        cdef uint64_t nbytes = self.itemsize
        for d in range(source.ndim):
            nbytes *= <uint64_t>source.shape[d]
        if nbytes == 0:
            return 0
        if source.packed:
            if nbytes <= NOGIL_FROM:
                memcpy(to, source.data, nbytes)
            else:
                with nogil:
                    shmt_copy(to, source.data, nbytes)
        elif nbytes <= NOGIL_FROM:
            shmt_copy_strided(to, source.data, source.ndim, source.shape, source.strides, self.itemsize)
        else:
            with nogil:
                shmt_copy_strided(to, source.data, source.ndim, source.shape, source.strides, self.itemsize)
        return 0

    cdef int scatter(self, const Place *at, object keep) except -1:
        """Into a batch: one packed row per slot."""
        cdef Source source
        cdef int64_t i
        cdef uint8_t *row
        self.source(keep, &source)
        cdef uint8_t *data = <uint8_t *>source.data
        cdef int64_t step = source.strides[0]
        source.ndim -= 1
        source.shape += 1
        source.strides += 1
        if not source.packed:
            source.packed = is_packed(source.ndim, source.shape, source.strides, self.itemsize)
        for i in range(at.shape[0]):
            row = at.data + i * at.strides[0]
            source.data = data + i * step
            self.move(row, &source)
        return 0


cdef int _propagate() except -1:
    """Raises the exception that a C function of another package has set."""
    return -1


cdef object _corrupt(Field field):
    from shmtensor.errors import error_from
    import errno
    return error_from(errno.EUCLEAN, f"{field.label}: shape table")


cdef object _not_copied(Field field, object e):
    return TypeError(f"{field.label}: cannot copy this tensor: {str(e).partition(chr(10))[0]}")  # and not its stack


cdef object _wrong_dtype(Field field, object got):
    how = "convert it first"
    if isinstance(got, np.dtype) and field.descr is not None:
        how = f'convert with .astype("{field.dtype.name}")'
    elif field.torch is not None and str(got).startswith("torch."):
        how = f"convert with .to(torch.{field.torch})"
    return TypeError(f"{field.label} takes dtype {field.dtype.name}, got {got}: {how}")
