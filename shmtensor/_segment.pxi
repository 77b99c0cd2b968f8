# _segment.pxi - one mapping of one segment; and a segment that is one array.

cdef class Segment:
    """One mapping of one shared-memory segment in this process."""

    def __dealloc__(self):
        if self.seg != NULL:
            shmt_segment_close(self.seg)
            shmt_segment_drop(self.seg)

    def _create(self, *, str name, uint64_t slot_nbytes, uint64_t slot_stride=0, uint64_t slot_least=0,
                uint32_t share=0, uint32_t slots=0,
                uint32_t members=256, uint32_t producers=0, bint grow=False, bint prefault=True, bint huge_pages=False,
                bint drop=False, bint apart=False, uint32_t alignment=0, uint64_t seq_first=0, bytes meta=b""):
        cdef shmt_config config
        cdef bytes encoded = None if name is None else name.encode("utf-8", "surrogateescape")
        cdef int rc
        if self.seg != NULL:
            raise ValueError("already open")
        if name is not None and "\0" in name:
            raise ValueError(f"name {name!r} must consist of letters, digits, '.', '_' and '-'")
        config.name = NULL
        if encoded is not None:
            config.name = encoded
        config.slot_nbytes = slot_nbytes
        config.slot_stride = slot_stride
        config.slot_least = slot_least
        config.share = share
        config.slots = slots
        config.members = members
        config.flags = ((SHMT_GROW if grow else 0) | (SHMT_PREFAULT if prefault else 0)
                        | (SHMT_HUGE_PAGES if huge_pages else 0) | (SHMT_DROP if drop else 0)
                        | (SHMT_APART if apart else 0))
        config.producers = producers
        config.alignment = alignment
        config.seq_first = seq_first
        config.meta = <const void *><char *>meta
        config.meta_nbytes = <uint32_t>len(meta)
        with nogil:
            rc = shmt_segment_create(&config, &self.seg)
        return rc

    def _attach(self, str name):
        cdef bytes encoded = name.encode("utf-8", "surrogateescape")
        if self.seg != NULL:
            raise ValueError("already open")
        if "\0" in name:
            raise ValueError(f"name {name!r} must consist of letters, digits, '.', '_' and '-'")
        cdef const char *text = encoded
        with nogil:
            rc = shmt_segment_attach(text, &self.seg)
        return rc

    def _attach_fd(self, int fd):
        if self.seg != NULL:
            raise ValueError("already open")
        with nogil:
            rc = shmt_segment_attach_fd(fd, &self.seg)
        return rc

    cdef shmt_segment *open_seg(self) except NULL:
        if self.seg == NULL or shmt_segment_is_closed(self.seg):
            raise ClosedError(f"this {type(self).__name__} is closed")
        return self.seg

    cdef int pin(self) except -1:
        self.open_seg()
        self.pins += 1
        return 0

    cdef void unpin(self) noexcept:
        self.pins -= 1
        if self.pins == 0 and self.closing:
            self.closing = False
            shmt_segment_drop(self.seg)
            self.seg = NULL

    cdef int let_go(self) except -1:
        if self.seg == NULL:
            return 0
        shmt_segment_close(self.seg)
        if self.pins == 0:
            shmt_segment_drop(self.seg)
            self.seg = NULL
        else:
            self.closing = True
        return 0

    def close(self):
        """Leaves the segment. Views that are alive stay valid, and so does the memory, until the last of them dies. The
        last member of a named segment removes its name. Closing twice does nothing."""
        self.let_go()

    def _fail(self):
        """Closes, and whoever waits for items of this process is told that they are not all that was to come."""
        if self.seg != NULL:
            shmt_segment_fail(self.seg)
            self.let_go()

    def unlink(self):
        """Removes the name of a named segment; whoever is attached goes on.

        Raises:
            ValueError: the segment is anonymous.
            FileNotFoundError: the name is gone already.
        """
        check(shmt_segment_unlink(self.open_seg()), f"unlinking {self.name!r}")

    @property
    def closed(self):
        """Whether this handle was closed."""
        return self.seg == NULL or bool(shmt_segment_is_closed(self.seg))

    @property
    def name(self):
        """The name under which others may attach; None if the segment is anonymous."""
        cdef const shmt_info *info = shmt_segment_info(self.open_seg())
        return None if info.name == NULL else info.name.decode()

    @property
    def nbytes(self):
        """Bytes of the whole file; of a growing buffer only a part of them is reserved."""
        return shmt_segment_info(self.open_seg()).total_nbytes

    @property
    def _info(self):
        cdef const shmt_info *info = shmt_segment_info(self.open_seg())
        return {
            "data_nbytes": info.data_nbytes, "slot_nbytes": info.slot_nbytes, "slot_stride": info.slot_stride,
            "identity": info.identity, "slots": info.slots, "members": info.members, "flags": info.flags,
            "apart": bool(info.flags & SHMT_APART), "shrunk": bool(info.flags & SHMT_SHRUNK),
        }

    @property
    def _meta(self):
        cdef const shmt_info *info = shmt_segment_info(self.open_seg())
        return (<const char *>info.meta)[:info.meta_nbytes]

    @property
    def _fd(self):
        return shmt_segment_info(self.open_seg()).fd

    @property
    def _member(self):
        check(shmt_member_join(self.open_seg()), "joining")
        return shmt_member_id(self.seg)

    def _prefault(self, uint64_t offset, uint64_t nbytes):
        self.pin()
        try:
            with nogil:
                rc = shmt_segment_prefault(self.seg, offset, nbytes)
        finally:
            self.unpin()
        check(rc, "prefaulting")


cdef class Array(Segment):
    """A segment that is one array."""

    def _set_field(self, placed):
        self.field = Field(placed)
        self.field.place(shmt_segment_info(self.open_seg()).data, shmt_segment_info(self.seg).slot_nbytes, &self.at)

    def numpy(self):
        """The array as numpy sees it, without a copy. It stays valid after close()."""
        shmt_segment_hold(self.open_seg())
        return self.field.array(&self.at, hold_new(self.seg, &MAPPING), True)

    def torch(self):
        """The array as a torch tensor, without a copy. It stays valid after close()."""
        find_torch(True)  # an import runs other threads: before we look at what they may close
        return self.field.tensor(&self.at, self.open_seg(), &MAPPING)

    def write(self, x):
        """Copies an array or tensor of the same shape and dtype into this one, from any strides.

        Raises:
            TypeError, ValueError: wrong dtype or shape.
        """
        self.pin()
        try:
            self.field.copy_in(&self.at, x)
        finally:
            self.unpin()

    def __array__(self, dtype=None, copy=None):
        return _as_array(self.numpy(), dtype, copy)

    @property
    def __array_interface__(self):
        return _interface(self.numpy())

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.field.capsule(&self.at, self.open_seg(), &MAPPING, _dlpack_version(max_version, dl_device, copy))

    def __getbuffer__(self, Py_buffer *view, int flags):
        get_buffer(self.numpy(), view, flags)

    def __releasebuffer__(self, Py_buffer *view):
        """Does nothing, but that it exists makes np.frombuffer keep the buffer, and not only this object."""


cdef object _as_array(object view, object dtype, object copy):
    """What __array__ returns of a view."""
    if dtype is not None and view.dtype != dtype:
        if copy is False:
            raise ValueError(f"a view of dtype {view.dtype} cannot become {dtype} without a copy")
        return view.astype(dtype)
    return view.copy() if copy else view


cdef object _interface(object view):
    """The __array_interface__ of a view. Its ``data`` keeps the memory: of a bare address numpy would make the slot or
    SharedTensor the base, which lets go of the memory when it is released or closed."""
    if view.dtype.isbuiltin == 2:  # ml_dtypes' come out as void: AttributeError sends numpy on to __array__
        raise AttributeError(f"dtype {view.dtype} has no __array_interface__")
    out = view.__array_interface__
    out["data"] = memoryview(view.reshape(-1).view("u1"))
    return out


cdef bint _dlpack_version(object max_version, object dl_device, object copy) except -1:
    """Whether __dlpack__ may return a versioned capsule; raises for what shared memory cannot do."""
    if dl_device is not None and tuple(dl_device) != (1, 0):
        raise BufferError("shared memory is on the CPU; no other dl_device is possible")
    if copy:
        raise BufferError("shared memory is exported without a copy; copy=True is not possible")
    return max_version is not None and max_version[0] >= 1
