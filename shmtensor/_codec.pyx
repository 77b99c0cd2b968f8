"""Any object to bytes and back, its arrays beside them: one pass to measure, one to write, one to read.

    0         mode 1 byte, flags 1, where the stream is 6, bytes of the stream 8, number of out-of-band buffers 8
    24        the stream
    aligned   the payload of each large array, aligned to 64 bytes, at the offset that the stream says

Where arrays were made in the slot itself, before there was a message (see _landing.pxi), the stream lies behind them,
and offsets count from the start.

Nothing is kept between messages, so any receiver can read any message, also after its sender has died. An idea that
was not followed: to send the structure once and then refer to it by number. That needs a table which all receivers have
seen.

The stream is a tree in prefix form: one byte says what follows. In pickle mode it is a list of buffers, then the
pickle.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_FromDouble
from cpython.list cimport PyList_GET_ITEM, PyList_New, PyList_SET_ITEM
from cpython.buffer cimport PyBUF_READ
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
cimport cython
cimport numpy as cnp

import copyreg
import io
import pickle

import numpy as np

from shmtensor.codec import (
    Pickler,
    class_name,
    field_of,
    find_class,
    is_bare,
    is_found,
    is_plain_dataclass,
    is_plain_namedtuple,
    resolve_dtype,
)
from shmtensor.errors import ShmLayoutError

from shmtensor._views cimport MAX_NDIM, Field, Hold, Owner, Place, Source, find_torch, hold_new, is_packed

cnp.import_array()

cdef int64_t MAX_NBYTES = 1 << 46

cdef extern from "stdlib.h":
    void *aligned_alloc(size_t alignment, size_t size) nogil
    void free(void *) noexcept nogil

cdef extern from "errno.h":
    int EUCLEAN

cdef extern from "Python.h":
    object PyMemoryView_FromMemory(char *memory, Py_ssize_t size, int flags)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    str PyUnicode_DecodeUTF8(const char *text, Py_ssize_t size, const char *errors)
    object PyLong_FromLongLong(long long number)
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    object PyComplex_FromDoubles(double real, double imag)
    double PyComplex_RealAsDouble(object number)
    double PyComplex_ImagAsDouble(object number)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int Py_EnterRecursiveCall(const char *where) noexcept  # not 0: RecursionError is set
    void Py_LeaveRecursiveCall()

cdef extern from "numpy/arrayobject.h":
    object PyArray_Scalar(void *data, cnp.dtype descr, object base)
    void PyArray_ScalarAsCtype(object scalar, void *out)

cdef enum:
    HEADER = 24
    TREE = 1           # modes
    PICKLED = 2
    SHARED = 1         # flag: some object turns up more than once
    MANY = 4           # items of a list, from where on it is worth while to see whether they are numbers alone
    KEYS = 256         # keys of dicts that a receiver remembers, each of at most KEY_MAX bytes
    KEY_MAX = 32
    DEEP = 64          # levels that a tree has at most: to read it takes a call for each, to read a pickle does not
    MET_FIRST = 32     # places of the table of what was met: a power of two
    MET_KEPT = 1024    # a larger one is not kept for the next message
    LONG = 1024        # text and bytes from here on are written once, however often they turn up


class _NeedsPickle(Exception):
    """What is being encoded has no form in the tree."""


cdef dict _simple = {}     # id of a dtype that has no fields -> (the dtype, what is in _by_dtype)
cdef dict _bare = {}       # id of a structured dtype -> (the dtype, whether it is bare)
cdef dict _by_dtype = {}   # numpy's or torch's dtype -> (Field, name on the wire); (None, None): by pickle
cdef dict _by_name = {}    # name on the wire -> Field
cdef dict _classes = {}    # class -> (code, name on the wire); None: by pickle
cdef dict _named = {}      # name on the wire -> class
cdef Field _bytes = field_of(resolve_dtype("uint8"))
cdef PyObject *_keys[KEYS]  # of dicts that were received, by a hash of their bytes: the same come again and again
cdef object _tensor_type = None
cdef object _strided = None


cdef bint _is_tensor_type(object cls) except -1:
    global _tensor_type, _strided
    if _tensor_type is None:
        if not find_torch(False):
            return False
        import torch
        _tensor_type, _strided = torch.Tensor, torch.strided
    return cls is _tensor_type


cdef bint _is_bare(object dtype) except -1:
    """See is_bare(). By identity: dtypes are equal that differ in this."""
    cdef PyObject *found
    key = <size_t><PyObject *>dtype
    found = PyDict_GetItem(_bare, key)
    if found == NULL:
        if len(_bare) > 1000:
            _bare.clear()
        _bare[key] = dtype, is_bare(dtype)
        found = PyDict_GetItem(_bare, key)
    return (<tuple>found)[1]


cdef object known_dtype(object dtype):
    """(Field, name on the wire) of a dtype; (None, None) if arrays of it must be pickled."""
    key = <size_t><PyObject *>dtype
    cdef PyObject *found = PyDict_GetItem(_simple, key)
    if found != NULL:
        return (<tuple>found)[1]
    if cnp.PyArray_DescrCheck(dtype):
        if not _is_bare(dtype):
            return None, None
        if dtype.fields is not None:  # whose names may be changed
            return _known_dtype(dtype)
    if len(_simple) > 1000:
        _simple.clear()
    how = _known_dtype(dtype)
    _simple[key] = dtype, how
    return how


cdef object _known_dtype(object dtype):
    cdef PyObject *found = PyDict_GetItem(_by_dtype, dtype)
    if found != NULL:
        return <object>found
    try:
        of = resolve_dtype(dtype)
        field = field_of(of)
        if isinstance(dtype, np.dtype) and of.numpy != dtype:
            field = None
    except (TypeError, ValueError):
        field = None
    if len(_by_dtype) > 1000:
        _by_dtype.clear()
    _by_dtype[dtype] = (field, None if field is None else of.name.encode())
    return _by_dtype[dtype]


cdef bint _is_here(object cls) except -1:
    """Whether what we know of a class still holds: it is what its name says, and nobody took its pickling over."""
    return "." not in cls.__qualname__ and is_found(cls.__module__, cls.__qualname__, cls) \
        and cls not in copyreg.dispatch_table


cdef object _class_of(object cls):
    """(code, name) of a class that travels as its items; None if its instances must be pickled."""
    cdef PyObject *found = PyDict_GetItem(_classes, cls)
    if found != NULL and (<object>found is None or _is_here(cls)):
        return <object>found
    if issubclass(cls, tuple):
        code = c"n" if is_plain_namedtuple(cls) else 0
    else:
        code = c"o" if is_plain_dataclass(cls) else 0
    if len(_classes) > 1000:
        _classes.clear()
    how = None
    if code:
        name = class_name(cls)
        if name is None:
            return None  # for now: it may be found later
        how = code, name
    _classes[cls] = how
    return how


cdef int deeper(const char *where) except -1:
    return -1 if Py_EnterRecursiveCall(where) != 0 else 0


# ---- encoding ------------------------------------------------------------------------------------


@cython.final
cdef class Encoder:
    """Measures one object after the other, and writes each to where its transport says. Not for two threads at once."""

    def __cinit__(self):
        self.keep = []
        self.buffers = []

    def __dealloc__(self):
        cdef Part *part
        self.forget()
        while self.spare != NULL:
            part = self.spare
            self.spare = part.next
            PyMem_Free(part)
        PyMem_Free(self.met)
        PyMem_Free(self.out)

    cdef void forget(self) noexcept:
        """What one message left; its memory is kept for the next."""
        if self.last != NULL:
            self.last.next = self.spare
            self.spare = self.first
            self.first = self.last = NULL
        self.n = 0
        self.payload = self.based
        self.flags = 0
        if self.keep is not None:
            self.keep.clear()
            self.buffers.clear()
        if self.met_size > MET_KEPT:
            PyMem_Free(self.met)
            self.met = NULL
            self.met_size = 0
        elif self.met_n > 0:
            memset(self.met, 0, self.met_size * sizeof(Met))
        self.met_n = 0

    # ---- the stream

    cdef int room(self, size_t more) except -1:
        cdef size_t size
        cdef uint8_t *out
        if self.n + more > self.size:
            size = max(self.size * 2, self.n + more, <size_t>4096)
            out = <uint8_t *>PyMem_Realloc(self.out, size)
            if out == NULL:
                raise MemoryError
            self.out = out
            self.size = size
        return 0

    cdef int byte(self, uint8_t value) except -1:
        self.room(1)
        self.out[self.n] = value
        self.n += 1
        return 0

    cdef int number(self, const void *value, size_t nbytes) except -1:
        self.room(nbytes)
        memcpy(self.out + self.n, value, nbytes)
        self.n += nbytes
        return 0

    cdef int text(self, str value) except -1:
        cdef Py_ssize_t size
        cdef const char *utf8
        try:
            utf8 = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:
            raise _NeedsPickle  # lone surrogates
        self.number(&size, sizeof(size))
        return self.number(utf8, size)

    cdef int octets(self, bytes value) except -1:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
        self.number(&size, sizeof(size))
        return self.number(PyBytes_AS_STRING(value), size)

    cdef int name(self, bytes value) except -1:
        cdef uint32_t size = <uint32_t>len(value)
        self.number(&size, sizeof(size))
        return self.number(PyBytes_AS_STRING(value), size)

    cdef Part *new_part(self, Field f) except NULL:
        cdef Part *part = self.spare
        if part == NULL:
            part = <Part *>PyMem_Malloc(sizeof(Part))
            if part == NULL:
                raise MemoryError
        else:
            self.spare = part.next
        part.next = NULL
        if self.last == NULL:
            self.first = part
        else:
            self.last.next = part
        self.last = part  # now it is freed with the others, whatever happens
        part.nbytes = 0
        part.field = <PyObject *>f
        return part

    cdef bint lies_there(self, const void *data, uint64_t nbytes, uint64_t itemsize) noexcept:
        """Whether it is in the slot already, and aligned as a decoder demands."""
        cdef uint64_t offset = <const uint8_t *>data - self.base
        return self.base != NULL and self.base <= <const uint8_t *>data and offset < self.based \
            and nbytes <= self.based - offset and offset % alignment(itemsize) == 0

    cdef int put_part(self, Part *part, uint64_t nbytes, bint packed):
        """Where a part will lie; its bytes are copied unless they are there already."""
        if packed and self.lies_there(part.source.data, nbytes, (<Field>part.field).itemsize):
            part.offset = <const uint8_t *>part.source.data - self.base
            self.landed += 1
        else:
            part.offset = self.payload
            part.nbytes = nbytes
            self.payload += (nbytes + 63) & ~<uint64_t>63
        return self.number(&part.offset, sizeof(part.offset))

    cdef int part(self, Field f, object x) except -1:
        """An array's place: its order in memory, whether it lies apart, its dims; and where a large one will lie."""
        cdef Part *part = self.new_part(f)
        cdef Source *source = &part.source
        cdef int64_t *shape = self.shape
        cdef int64_t *strides = self.strides
        cdef uint8_t *order = self.order
        cdef int d, k
        cdef bint permuted = False
        cdef uint64_t nbytes = f.itemsize, span = f.itemsize
        kept = f.source(x, source)
        if source.ndim > MAX_NDIM:
            raise _NeedsPickle
        self.keep.append(kept)
        for d in range(source.ndim):
            nbytes *= <uint64_t>source.shape[d]
            order[d] = d
            shape[d] = source.shape[d]
            strides[d] = source.strides[d]
            if shape[d] > 1:
                if shape[d] > MAX_NBYTES // <int64_t>span:
                    raise _NeedsPickle  # it is empty, and its other dims are larger than a decoder believes
                span *= <uint64_t>shape[d]
        if not source.packed and nbytes > 0:
            permuted = _order(source.ndim, shape, strides, order)
        self.byte(source.ndim)
        self.byte(permuted)
        if permuted:
            self.number(order, source.ndim)
        self.number(shape, source.ndim * sizeof(int64_t))
        for d in range(source.ndim):
            k = order[d] if permuted else d
            source.own_shape[d] = shape[k]
            source.own_strides[d] = strides[k]
        source.shape = source.own_shape
        source.strides = source.own_strides
        if permuted:
            source.packed = is_packed(source.ndim, source.shape, source.strides, f.itemsize)
        if nbytes >= APART_FROM:
            self.byte(1)
            return self.put_part(part, nbytes, source.packed)
        self.byte(0)
        self.room(nbytes)
        f.move(self.out + self.n, source)
        self.n += nbytes
        return 0

    # ---- the tree

    cdef int node(self, object x) except -1:
        cdef object cls = type(x)
        cdef int overflow
        cdef int64_t integer
        cdef double real
        if x is None:
            return self.byte(c"N")
        if cls is bool:
            return self.byte(c"T" if x else c"F")
        if cls is int:
            integer = PyLong_AsLongLongAndOverflow(x, &overflow)
            if overflow:
                raise _NeedsPickle
            self.byte(c"i")
            return self.number(&integer, sizeof(integer))
        if cls is float:
            real = x
            self.byte(c"f")
            return self.number(&real, sizeof(real))
        if cls is str and PyUnicode_GET_LENGTH(x) < LONG:
            self.byte(c"s")
            return self.text(x)
        if cls is bytes and PyBytes_GET_SIZE(x) < LONG:
            self.byte(c"b")
            return self.octets(x)
        if cls is cnp.ndarray:
            return 0 if self.once(x, False) else self.array(x)
        if _is_tensor_type(cls):
            return 0 if self.once(x, False) else self.tensor(x)
        if self.once(x, True):
            return 0
        if cls is str:
            self.byte(c"u")
            self.text(x)
        elif cls is bytes:
            self.byte(c"y")
            self.octets(x)
        elif cls is dict:
            self.byte(c"d")
            self.mapping(x)
        elif cls is list:
            if len(<list>x) < MANY or not self.packed(x):
                self.sequence(c"l", x)
        elif cls is tuple:
            self.sequence(c"t", x)
        else:
            self.other(x)
        return self.leave(x)

    cdef int once(self, object x, bint holds) except -1:
        """Whether `x` was met before: then a reference stands for it. If it `holds` others, leave() says when we are
        through with them."""
        cdef Met *met
        cdef int64_t index
        if 2 * (self.met_n + 1) > self.met_size:
            self.grow_met()
        met = self.find_met(<PyObject *>x)
        if met.x == NULL:
            met.x = <PyObject *>x
            met.index = ~self.met_n if holds else self.met_n  # negative: we are in it
            self.met_n += 1
            return 0
        index = met.index
        if index < 0:
            raise _NeedsPickle  # a cycle
        self.flags |= SHARED
        self.byte(c"r")
        self.number(&index, sizeof(index))
        return 1

    cdef int leave(self, object x) except -1:
        cdef Met *met = self.find_met(<PyObject *>x)
        met.index = ~met.index
        return 0

    cdef Met *find_met(self, PyObject *x) noexcept:
        """Where `x` stands among what was met, or the empty place for it."""
        cdef int64_t last = self.met_size - 1
        cdef int64_t at = (<uint64_t>x * <uint64_t>0x9e3779b97f4a7c15 >> 32) & last  # Fibonacci's hash of the address
        while self.met[at].x != NULL and self.met[at].x != x:
            at = (at + 1) & last
        return &self.met[at]

    cdef int grow_met(self) except -1:
        cdef Met *old = self.met
        cdef int64_t k, size = self.met_size
        cdef Met *met = <Met *>PyMem_Calloc(max(2 * size, MET_FIRST), sizeof(Met))
        if met == NULL:
            raise MemoryError
        self.met = met
        self.met_size = max(2 * size, MET_FIRST)
        for k in range(size):
            if old[k].x != NULL:
                self.find_met(old[k].x)[0] = old[k]
        PyMem_Free(old)
        return 0

    cdef bint packed(self, list items) except -1:
        """Whether it was a list of int or of float alone: those follow each other without a code each. False: nothing
        was written."""
        cdef Py_ssize_t i, size = len(items)
        cdef uint64_t n = size
        cdef object cls = type(items[0])
        cdef bint integers = cls is int
        cdef size_t begin = self.n
        cdef int64_t integer
        cdef double real
        cdef int overflow = 0
        if not integers and cls is not float:
            return False
        self.byte(c"I" if integers else c"R")
        self.number(&n, sizeof(n))
        self.room(size * sizeof(int64_t))
        for i in range(size):
            item = <object>PyList_GET_ITEM(items, i)
            if type(item) is not cls:
                overflow = 1
            elif integers:
                integer = PyLong_AsLongLongAndOverflow(item, &overflow)
                memcpy(self.out + self.n, &integer, sizeof(integer))
            else:
                real = PyFloat_AS_DOUBLE(item)
                memcpy(self.out + self.n, &real, sizeof(real))
            if overflow:
                self.n = begin
                return False
            self.n += sizeof(int64_t)
        return True

    cdef int sequence(self, uint8_t code, object items) except -1:
        cdef uint64_t n = len(items)
        self.byte(code)
        self.number(&n, sizeof(n))
        self.descend()
        try:
            for item in items:
                self.node(item)
        finally:
            self.ascend()
        if <uint64_t>len(items) != n:
            raise RuntimeError("a list changed its size while it was encoded")
        return 0

    cdef int mapping(self, dict items) except -1:
        cdef uint64_t n = len(items)
        self.number(&n, sizeof(n))
        self.descend()
        try:
            for key, item in items.items():
                if type(key) is not str:
                    raise _NeedsPickle
                self.text(key)
                self.node(item)
        finally:
            self.ascend()
        return 0

    cdef int descend(self) except -1:
        """Into a container. What is deeper than a tree may be is pickled: whoever receives it may be deep in calls."""
        if self.depth >= DEEP:
            raise _NeedsPickle
        deeper(b" while encoding an object")
        self.depth += 1
        return 0

    cdef void ascend(self) noexcept:
        self.depth -= 1
        Py_LeaveRecursiveCall()

    cdef int other(self, object x) except -1:
        """Named tuples, dataclasses, numpy's scalars, complex numbers; the rest is for pickle."""
        cdef uint8_t raw[64]
        cdef double parts[2]
        cls = type(x)
        if cls is complex:
            parts[0] = PyComplex_RealAsDouble(x)
            parts[1] = PyComplex_ImagAsDouble(x)
            self.byte(c"c")
            return self.number(parts, sizeof(parts))
        if isinstance(x, np.generic):
            field, name = known_dtype(x.dtype)
            if field is None or (<Field>field).itemsize > sizeof(raw) or type(x) is not x.dtype.type \
                    or x.dtype.kind not in "biufcmM":
                raise _NeedsPickle
            PyArray_ScalarAsCtype(x, raw)
            self.byte(c"S")
            self.name(name)
            return self.number(raw, (<Field>field).itemsize)
        how = _class_of(cls)
        if how is None:
            raise _NeedsPickle
        code, name = how
        if code == c"n":
            if getattr(x, "__dict__", None):
                raise _NeedsPickle
            self.byte(c"n")
            self.name(name)
            return self.sequence(c"t", x)
        self.byte(c"o")
        self.name(name)
        return self.mapping(x.__dict__)

    cdef int array(self, object x) except -1:
        cdef object dtype = <object>cnp.PyArray_DESCR(<cnp.ndarray>x)
        if dtype is not self.dtype:
            self.know(dtype)
            if self.field is None:
                raise _NeedsPickle
        self.byte(c"a")
        self.name(self.dtype_name)
        return self.part(self.field, x)

    cdef int know(self, object dtype) except -1:
        """As known_dtype(), which is asked again only for another dtype, and for one whose names may be changed."""
        self.dtype = None
        self.field, self.dtype_name = known_dtype(dtype)
        if self.field is not None and not (cnp.PyArray_DescrCheck(dtype) and cnp.PyDataType_HASFIELDS(dtype)):
            self.dtype = dtype
        return 0

    cdef int tensor(self, object x) except -1:
        grad = x.requires_grad
        if x.layout is not _strided or x.__dict__ or (grad and not x.is_leaf):
            raise _NeedsPickle  # or the error that says why not
        dtype = x.dtype
        if dtype is not self.dtype:
            self.know(dtype)
            if self.field is None:
                raise _NeedsPickle
        self.byte(c"x")
        self.name(self.dtype_name)
        self.byte(grad)
        try:
            return self.part(self.field, x)
        except TypeError:  # of another device, or without memory
            raise _NeedsPickle

    # ---- a message

    cdef uint64_t measure(self, object x) except 0:
        """Looks at `x` once; returns how many bytes write() will need. From here to done() the encoder is taken: what
        it has measured must be what it writes."""
        cdef bint plain = True
        if self.busy:
            raise RuntimeError("this encoder is in use, by another thread or by an object that it is encoding")
        self.busy = True
        try:
            self.keep.append(x)
            self.mode = TREE
            try:
                self.node(x)
            except _NeedsPickle:
                plain = False
            if not plain:
                self.forget()
                self.keep.append(x)
                self.by_pickle(x)
        except BaseException:
            self.done()
            raise
        return self.start() + self.payload if self.base == NULL else self.payload + self.n

    cdef void place_in(self, const uint8_t *base, uint64_t nbytes) noexcept:
        """The next message is written to ``base``, of which ``nbytes``, a multiple of 64, are in use: what lies there
        is not copied, all else goes behind it."""
        self.base = base
        self.based = self.payload = nbytes
        self.landed = 0

    cdef void done(self) noexcept:
        self.base = NULL
        self.based = 0
        self.forget()
        self.busy = False

    cdef uint64_t start(self):
        """Where the payload begins."""
        return (HEADER + self.n + 63) & ~<uint64_t>63 if self.base == NULL else 0

    cdef int by_pickle(self, object x) except -1:
        cdef uint64_t size
        cdef Part *part
        self.mode = PICKLED
        out = io.BytesIO()
        Pickler(out, self.buffers).dump(x)
        for buffer in self.buffers:
            raw = np.frombuffer(buffer.raw(), np.uint8)
            size = len(raw)
            part = self.new_part(_bytes)
            self.keep.append(_bytes.source(raw, &part.source))
            self.put_part(part, size, True)
            self.number(&size, sizeof(size))
        pickled = out.getbuffer()
        cdef const uint8_t[::1] stream = pickled
        return self.number(&stream[0], stream.shape[0])

    cdef int check_sources(self) except -1:
        """Whether the arrays and tensors of the message still lie where they were measured: after a wait, in which
        another thread may have resized one and freed its memory."""
        cdef Part *part = self.first
        cdef Source again
        cdef Py_ssize_t k = 0
        cdef uint64_t nbytes
        cdef int d
        while part != NULL:
            k += 1  # the first that is kept is the object itself
            if part.nbytes > 0:
                (<Field>part.field).source(self.keep[k], &again)
                nbytes = (<Field>part.field).itemsize
                for d in range(again.ndim):
                    nbytes *= <uint64_t>again.shape[d]
                if again.data != part.source.data or nbytes != part.nbytes:
                    raise RuntimeError("an array or tensor was resized by another thread while put() waited for a slot")
            part = part.next
        return 0

    cdef int write(self, uint8_t *to) except -1:
        """Writes the message that was measured last to memory that is large enough and aligned to 64 bytes."""
        cdef uint64_t head[3]
        cdef uint64_t begin = self.start()
        cdef uint64_t behind = self.payload if self.base != NULL else 0
        cdef Part *part = self.first
        head[0] = self.mode | <uint64_t>self.flags << 8 | behind << 16
        head[1] = self.n
        head[2] = len(self.buffers)
        memcpy(to, head, HEADER)
        memcpy(to + (behind or HEADER), self.out, self.n)
        while part != NULL:
            if part.nbytes:
                (<Field>part.field).move(to + begin + part.offset, &part.source)
            part = part.next
        return 0


cdef inline uint64_t alignment(uint64_t itemsize) noexcept:
    """What the offset of an array is a multiple of: its elements' size at least, if that is a power of two."""
    return itemsize if itemsize <= 16 and itemsize & (itemsize - 1) == 0 else 64


cdef bint _order(int ndim, const int64_t *shape, const int64_t *strides, uint8_t *order) noexcept:
    """The dims from the longest stride to the shortest, if that is another order than they have: Fortran's, say.
    Only where each element has a place of its own: what was expanded or reversed is written in C order."""
    cdef int d, k
    cdef uint8_t at
    cdef bint permuted = False
    for d in range(ndim):
        if strides[d] <= 0 and shape[d] > 1:
            return False
    for d in range(1, ndim):
        at = order[d]
        k = d
        while k > 0 and shape[at] > 1 and (shape[order[k - 1]] == 1 or strides[order[k - 1]] < strides[at]):
            order[k] = order[k - 1]
            k -= 1
        order[k] = at
    for d in range(1, ndim):
        if order[d] < order[d - 1]:
            permuted = True
    return permuted


# ---- decoding ------------------------------------------------------------------------------------


cdef void _nothing(void *thing) noexcept nogil:
    pass


cdef Owner HEAP  # a block that one tensor has to itself
HEAP.hold = _nothing
HEAP.drop = free


cdef object _corrupt():
    return ShmLayoutError(EUCLEAN, "an encoded object is corrupt")


@cython.final
cdef class Decoder:
    """Reads one message. Every count and offset in it is compared with what is left before it is used."""

    cdef const uint8_t *at
    cdef const uint8_t *end      # of the stream
    cdef uint8_t *payload
    cdef uint64_t payload_nbytes
    cdef void *thing
    cdef const Owner *owner
    cdef Hold hold
    cdef list memo
    cdef bint copy
    cdef Field field             # of the array that was read last
    cdef bytes field_name
    # Of the array that is being read: here and not on the stack, which has to hold a thousand levels of nesting.
    cdef Place where
    cdef int64_t shape[MAX_NDIM]
    cdef uint8_t order[MAX_NDIM]

    cdef int take(self, void *out, size_t nbytes) except -1:
        if nbytes > <size_t>(self.end - self.at):
            raise _corrupt()
        memcpy(out, self.at, nbytes)
        self.at += nbytes
        return 0

    cdef const uint8_t *run(self, uint64_t nbytes) except NULL:
        cdef const uint8_t *at = self.at
        if nbytes > <uint64_t>(self.end - at):
            raise _corrupt()
        self.at += nbytes
        return at

    cdef uint64_t count(self) except? 0xffffffffffffffff:
        """How many follow: each takes a byte at least, so a lie cannot make us allocate more than there is."""
        cdef uint64_t n
        self.take(&n, sizeof(n))
        if n > <uint64_t>(self.end - self.at):
            raise _corrupt()
        return n

    cdef str text(self):
        cdef uint64_t n = self.count()
        return PyUnicode_DecodeUTF8(<const char *>self.run(n), n, NULL)

    cdef bytes octets(self):
        cdef uint64_t n = self.count()
        return PyBytes_FromStringAndSize(<const char *>self.run(n), n)

    cdef str key(self):
        """A text that was probably read before: then it is the same object."""
        cdef uint64_t n = self.count(), h
        cdef const uint8_t *at = self.run(n)
        cdef Py_ssize_t size
        cdef const char *known
        cdef PyObject **place
        if n == 0 or n > KEY_MAX:
            return PyUnicode_DecodeUTF8(<const char *>at, n, NULL)
        h = n * 31 + at[0] * 7 + at[n - 1] * 61 + at[n // 2] * 17
        place = &_keys[h % KEYS]
        if place[0] != NULL:
            known = PyUnicode_AsUTF8AndSize(<object>place[0], &size)
            if <uint64_t>size == n and memcmp(known, at, n) == 0:
                return <str>place[0]
        out = PyUnicode_DecodeUTF8(<const char *>at, n, NULL)
        Py_INCREF(out)
        Py_XDECREF(place[0])
        place[0] = <PyObject *>out
        return out

    cdef bytes name(self):
        cdef uint32_t n
        self.take(&n, sizeof(n))
        return PyBytes_FromStringAndSize(<const char *>self.run(n), n)

    cdef Hold base(self):
        if self.hold is None:
            self.owner.hold(self.thing)
            self.hold = hold_new(self.thing, self.owner)
        return self.hold

    cdef Field dtype(self):
        cdef PyObject *found
        cdef uint32_t n
        cdef const char *at
        self.take(&n, sizeof(n))
        at = <const char *>self.run(n)
        if self.field is not None and PyBytes_GET_SIZE(self.field_name) == <Py_ssize_t>n \
                and memcmp(PyBytes_AS_STRING(self.field_name), at, n) == 0:
            return self.field  # of the array before: most messages have arrays of one dtype
        name = PyBytes_FromStringAndSize(at, n)
        found = PyDict_GetItem(_by_name, name)
        if found != NULL:
            field = <Field>found
        else:
            try:
                field = field_of(resolve_dtype(name.decode()))
            except (TypeError, ValueError) as e:
                raise _corrupt() from e
            if len(_by_name) > 1000:
                _by_name.clear()
            _by_name[name] = field
        self.field = field
        self.field_name = name
        return self.field

    cdef object cls(self):
        cdef PyObject *found
        name = self.name()
        found = PyDict_GetItem(_named, name)
        if found != NULL and isinstance(<object>found, type) and _is_here(<object>found):
            return <object>found
        cls = find_class(name)  # if it cannot be imported here, that is the error
        if len(_named) > 1000:
            _named.clear()
        _named[name] = cls
        return cls

    cdef bint place(self, Field f) except -1:
        """Reads into `where`; whether the array lies apart."""
        cdef Place *out = &self.where
        cdef uint8_t ndim, permuted, far
        cdef uint8_t *order = self.order
        cdef int64_t *shape = self.shape
        cdef int64_t step = f.itemsize, n
        cdef uint64_t offset, nbytes = f.itemsize, seen = 0
        cdef int d
        self.take(&ndim, 1)
        self.take(&permuted, 1)
        if ndim > MAX_NDIM:
            raise _corrupt()
        for d in range(ndim):
            order[d] = d
        if permuted:
            self.take(order, ndim)
        self.take(shape, ndim * sizeof(int64_t))
        self.take(&far, 1)
        out.ndim = ndim
        out.packed = not permuted
        for d in range(ndim - 1, -1, -1):  # shape is in the array's order, its place in memory in `order`'s
            if order[d] >= ndim or seen & (<uint64_t>1 << order[d]):
                raise _corrupt()
            seen |= <uint64_t>1 << order[d]
            n = shape[order[d]]
            if n < 0 or n > MAX_NBYTES // step:
                raise _corrupt()
            out.shape[order[d]] = n
            out.strides[order[d]] = step
            step *= max(n, 1)
            nbytes *= <uint64_t>n
            if step > MAX_NBYTES:
                raise _corrupt()
        if far:
            self.take(&offset, sizeof(offset))
            if offset > self.payload_nbytes or nbytes > self.payload_nbytes - offset \
                    or offset % alignment(f.itemsize) != 0:
                raise _corrupt()
            out.data = self.payload + offset
        else:
            out.data = <uint8_t *>self.run(nbytes)
        return far != 0

    cdef object array(self):
        cdef Field f = self.dtype()
        if self.place(f) and not self.copy:
            return f.array(&self.where, self.base(), True)
        if self.where.packed:
            return f.array_copy(&self.where)
        out = np.empty_like(f.array(&self.where, self, False), order="K")
        memcpy(cnp.PyArray_DATA(out), self.where.data, cnp.PyArray_NBYTES(out))
        return out

    cdef object tensor(self):
        cdef uint8_t flag
        cdef int d
        cdef uint64_t nbytes
        cdef void *block
        cdef Place *at = &self.where
        cdef Field f = self.dtype()
        self.take(&flag, 1)
        find_torch(True)
        if self.place(f) and not self.copy:
            out = f.tensor(at, self.thing, self.owner)
        else:
            nbytes = f.itemsize
            for d in range(at.ndim):
                nbytes *= <uint64_t>at.shape[d]
            block = aligned_alloc(64, (nbytes + 64) & ~63)
            if block == NULL:
                raise MemoryError
            memcpy(block, at.data, nbytes)
            at.data = <uint8_t *>block
            out = f.tensor(at, block, &HEAP)
        return out.requires_grad_(True) if flag else out

    cdef object node(self):
        cdef uint8_t code
        cdef int64_t integer
        cdef double real
        cdef Py_ssize_t index
        self.take(&code, 1)
        if code == c"N":
            return None
        if code == c"T":
            return True
        if code == c"F":
            return False
        if code == c"i":
            self.take(&integer, sizeof(integer))
            return integer
        if code == c"f":
            self.take(&real, sizeof(real))
            return real
        if code == c"s":
            return self.text()
        if code == c"b":
            return self.octets()
        if code == c"r":
            self.take(&integer, sizeof(integer))
            if self.memo is None or not 0 <= integer < len(self.memo) or self.memo[integer] is _OPEN:
                raise _corrupt()
            return self.memo[integer]
        index = -1
        if self.memo is not None:
            index = len(self.memo)
            self.memo.append(_OPEN)
        deeper(b" while decoding an object")
        try:
            out = self.compound(code)
        finally:
            Py_LeaveRecursiveCall()
        if index >= 0:
            self.memo[index] = out
        return out

    cdef object compound(self, uint8_t code):
        cdef uint8_t raw[64]
        cdef Field f
        if code == c"d":
            return self.mapping()
        if code == c"l":
            return [self.node() for _ in range(self.count())]
        if code == c"I" or code == c"R":
            return self.numbers(code == c"I")
        if code == c"t":
            return self.items()
        if code == c"a":
            return self.array()
        if code == c"x":
            return self.tensor()
        if code == c"u":
            return self.text()
        if code == c"y":
            return self.octets()
        if code == c"c":
            self.take(raw, 2 * sizeof(double))
            return PyComplex_FromDoubles((<double *>raw)[0], (<double *>raw)[1])
        if code == c"S":
            f = self.dtype()
            if f.descr is None or f.itemsize > sizeof(raw):
                raise _corrupt()
            self.take(raw, f.itemsize)
            return PyArray_Scalar(raw, f.descr, None)
        if code == c"n":
            cls = self.cls()
            self.take(&code, 1)
            if code != c"t" or not (isinstance(cls, type) and is_plain_namedtuple(cls)):
                raise _corrupt()
            return tuple.__new__(cls, self.items())
        if code == c"o":
            cls = self.cls()
            if not (isinstance(cls, type) and is_plain_dataclass(cls)):
                raise _corrupt()
            out = object.__new__(cls)
            out.__dict__.update(self.mapping())
            return out
        raise _corrupt()

    cdef dict mapping(self):
        cdef dict out = {}
        for _ in range(self.count()):
            key = self.key()
            out[key] = self.node()
        return out

    cdef list numbers(self, bint integers):
        cdef Py_ssize_t i
        cdef uint64_t n = self.count()
        cdef const uint8_t *at
        cdef int64_t integer
        cdef double real
        if n > <uint64_t>(self.end - self.at) // sizeof(int64_t):
            raise _corrupt()
        at = self.run(n * sizeof(int64_t))
        cdef list out = PyList_New(n)
        for i in range(<Py_ssize_t>n):
            if integers:
                memcpy(&integer, at + i * sizeof(integer), sizeof(integer))
                number = PyLong_FromLongLong(integer)
            else:
                memcpy(&real, at + i * sizeof(real), sizeof(real))
                number = PyFloat_FromDouble(real)
            Py_INCREF(number)
            PyList_SET_ITEM(out, i, number)
        return out

    cdef tuple items(self):
        return tuple([self.node() for _ in range(self.count())])

    cdef object unpickled(self, uint64_t n):
        cdef uint64_t span[2]
        cdef Place *at = &self.where
        if n > <uint64_t>(self.end - self.at) // sizeof(span):
            raise _corrupt()
        buffers = []
        at.ndim = 1
        at.packed = True
        at.strides[0] = 1
        for _ in range(n):
            self.take(span, sizeof(span))
            if span[0] > self.payload_nbytes or span[1] > self.payload_nbytes - span[0]:
                raise _corrupt()
            at.data = self.payload + span[0]
            at.shape[0] = span[1]
            if self.copy or span[1] < APART_FROM:
                buffers.append(_bytes.array_copy(at))
            else:
                buffers.append(_bytes.array(at, self.base(), True))
        stream = PyMemoryView_FromMemory(<char *>self.at, self.end - self.at, PyBUF_READ)
        try:
            return pickle.loads(stream, buffers=buffers)
        finally:
            stream.release()


cdef object _OPEN = object()


cdef bint is_apart(const uint8_t *data, uint64_t nbytes) noexcept:
    cdef uint64_t head[3]
    if nbytes < HEADER:
        return False
    memcpy(head, data, HEADER)
    return head[0] >> 16 != 0 or nbytes > ((HEADER + head[1] + 63) & ~<uint64_t>63)


cdef object decode(uint8_t *data, uint64_t nbytes, void *thing, const Owner *owner, bint copy):
    """The object that a message describes. Its large arrays are views that hold `thing`, unless `copy`."""
    cdef uint64_t head[3]
    cdef uint64_t begin, behind
    cdef Decoder d = Decoder.__new__(Decoder)
    if nbytes < HEADER:
        raise _corrupt()
    memcpy(head, data, HEADER)
    behind = head[0] >> 16
    if behind > nbytes or head[1] > nbytes - (behind or HEADER):
        raise _corrupt()
    if behind:
        begin = 0
        d.payload_nbytes = behind
    else:
        begin = min((HEADER + head[1] + 63) & ~<uint64_t>63, nbytes)
        d.payload_nbytes = nbytes - begin
    d.at = data + (behind or HEADER)
    d.end = d.at + head[1]
    d.payload = data + begin
    d.thing = thing
    d.owner = owner
    d.copy = copy
    if head[0] & 0xff == PICKLED:
        return d.unpickled(head[2])
    if head[0] & 0xff != TREE:
        raise _corrupt()
    if head[0] >> 8 & SHARED:
        d.memo = []
    out = d.node()
    if d.at != d.end:
        raise _corrupt()
    return out


# ---- a message in memory of our own: of what waits for a slot, and for tests and benchmarks ------


cdef void _object_hold(void *thing) noexcept with gil:
    Py_INCREF(<object>thing)


cdef void _object_drop(void *thing) noexcept with gil:
    Py_DECREF(<object>thing)


cdef Owner OBJECT
OBJECT.hold = _object_hold
OBJECT.drop = _object_drop


def encode_to_array(x, Encoder encoder=None):
    """A message as a uint8 array whose memory is aligned to 64 bytes."""
    cdef Place at
    cdef cnp.npy_intp room
    cdef cnp.ndarray base
    if encoder is None:
        encoder = Encoder()
    cdef uint64_t n = encoder.measure(x)
    try:
        room = n + 64
        base = cnp.PyArray_EMPTY(1, &room, cnp.NPY_UINT8, 0)  # by C: np.empty() and two slices take 2 us
        at.data = <uint8_t *>((<size_t>cnp.PyArray_DATA(base) + 63) & ~<size_t>63)
        at.ndim = 1
        at.shape[0] = n
        at.packed = True
        out = _bytes.array(&at, base, True)
        encoder.write(at.data)
    finally:
        encoder.done()
    return out


def decode_from_array(cnp.ndarray message not None, bint copy=False):
    """What encode_to_array() was given; its large arrays are views of `message` unless `copy`."""
    return decode(<uint8_t *>cnp.PyArray_DATA(message), cnp.PyArray_NBYTES(message), <void *>message, &OBJECT, copy)
