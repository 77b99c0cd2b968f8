# _slot.pxi - what a claim or an acquire gives: one slot, or a batch of slots that follow each other.


cdef inline bint is_known(PyObject *array) noexcept:
    """Whether somebody else can still reach an array that we have one reference on: by one of theirs, or a weak one."""
    return Py_REFCNT(array) > 1 or (<PyArrayObject_fields *>array).weakreflist != NULL


@cython.freelist(64)
@cython.no_gc
cdef class Held:
    """What a slot and a batch have in common: slots that are ours, and views that hang on one base.

    A reader's base holds the lease, so the slots are released when the last view has died; a writer's holds the
    mapping.
    """

    def __dealloc__(self):
        if self.state == WRITING:
            shmt_slot_abort_many(self.buffer.seg, &self.s, self.words, self.n)  # in a forked child: does nothing
            self.finish(ABORTED)
        elif self.state == READING and self.hold is None:
            shmt_lease_drop(self.lease)

    def __repr__(self):
        state = {WRITING: "claimed", READING: "acquired"}.get(self.state) or _ENDED[self.state]
        return f"<{self.label()} {state}>"

    cdef object label(self):
        return f"Slot {self.s.index}"

    cdef int check_held(self) except -1:
        if self.state != WRITING and self.state != READING:
            raise ValueError(f"{self.label()} was already {_ENDED[self.state]}")
        return 0

    cdef int check_writing(self) except -1:
        if self.state != WRITING:
            self.check_held()
            raise ValueError(f"{self.label()} was acquired, not claimed: it cannot be written and published; "
                             "release() it")
        return 0

    # ---- views

    cdef Hold base(self):
        """What the views hang on. A reader's base takes over the slot's own reference on the lease."""
        if self.hold is None:
            if self.state == READING:
                self.hold = hold_new(self.lease, &LEASE)
            else:
                shmt_segment_hold(self.buffer.seg)
                self.hold = hold_new(self.buffer.seg, &MAPPING)
        return self.hold

    cdef object array(self, Field f, const Place *at):
        """A numpy view; a writer's is remembered until the end."""
        if self.state == READING:
            return f.array(at, self.base(), True)
        out = self.buffer.spare_take(self.s.index, self.handed_out, f, at)
        if out is None:
            out = f.array(at, self.base(), True)
        if self.handed_out is None:
            self.handed_out = out
        elif type(self.handed_out) is list:
            (<list>self.handed_out).append(out)
        else:
            self.handed_out = [self.handed_out, out]
        return out

    cdef object tensor(self, Field f, const Place *at):
        if self.state == READING:
            return f.tensor(at, self.lease, &LEASE)
        return f.tensor(at, self.buffer.seg, &MAPPING)

    # ---- writing

    cdef int begin_write(self) except -1:
        """While a copy runs, without the GIL perhaps or in a foreign object's code, the slot cannot be ended."""
        self.check_writing()
        if not shmt_slot_is_ours(&self.s):
            raise LeaseLost(f"{self.label()} was claimed before this process was forked: it is the parent's")
        self.busy += 1
        return 0

    cdef void end_write(self) noexcept:
        self.busy -= 1

    cdef int check_idle(self) except -1:
        if self.busy:
            raise ValueError(f"{self.label()} is being written, by another thread or further up in this one")
        return 0

    # ---- the end

    cdef int finish(self, int state) except -1:
        """Arrays that were handed out turn read-only; those that nobody else has wait for the slot's next writer."""
        cdef PyObject *array
        cdef Py_ssize_t i
        self.state = state
        self.hold = None
        if self.handed_out is not None:
            if type(self.handed_out) is not list:
                if is_known(<PyObject *>self.handed_out):
                    cnp.PyArray_CLEARFLAGS(<cnp.ndarray>self.handed_out, cnp.NPY_ARRAY_WRITEABLE)
                    self.handed_out = None
            else:
                for i in range(len(<list>self.handed_out)):
                    array = PyList_GET_ITEM(self.handed_out, i)
                    if is_known(array):
                        cnp.PyArray_CLEARFLAGS(<cnp.ndarray>array, cnp.NPY_ARRAY_WRITEABLE)
                        (<list>self.handed_out)[i] = None
            if self.buffer.spare is not None:
                self.buffer.spare[self.s.index] = self.handed_out
            self.handed_out = None
        self.buffer.unpin()
        return 0

    cdef int do_abort(self) except -1:
        cdef int rc
        self.check_writing()
        self.check_idle()
        rc = shmt_slot_abort_many(self.buffer.seg, &self.s, self.words, self.n)
        self.finish(ABORTED)
        return 0 if rc == 0 else check(rc, f"aborting {self.label()}")

    cdef int do_release(self) except -1:
        if self.state != READING:
            self.check_held()
            raise ValueError(f"{self.label()} was claimed, not acquired: publish() or abort() it")
        if self.strict:
            if (self.hold is not None and Py_REFCNT(<PyObject *>self.hold) > 1) or shmt_lease_count(self.lease) > 1:
                raise BufferError(f"{self.label()} is being released while views of it are alive: delete them, "
                                  "copy what you keep, or acquire without strict=True")
        self.state = RELEASED
        if self.hold is None:
            shmt_lease_drop(self.lease)
        else:
            self.hold = None  # the last view, or this, drops the lease
        self.lease = NULL
        return 0

    def __enter__(self):
        self.check_held()
        return self


@cython.final
@cython.no_gc
cdef class Slot(Held):
    """A slot while it is held: from claim() to publish() or abort(), or from acquire() to release()."""

    # ---- views

    cdef Field field(self, object key):
        cdef PyObject *found
        if key is None:
            if self.buffer.single is None:
                raise ValueError(f"this item has several fields: say which of {', '.join(self.buffer.table)}")
            return self.buffer.single
        found = PyDict_GetItem(self.buffer.table, key)
        return None if found == NULL else <Field>found

    cdef object view(self, Field f):
        cdef Place at
        f.place(self.s.data, self.s.nbytes, &at)
        return self.array(f, &at)

    def __getitem__(self, key):
        cdef Field f
        self.check_held()
        f = self.field(key)
        if f is None:
            return self.buffer._subtree(key, self.numpy)
        return self.view(f)

    def __setitem__(self, key, value):
        """slot["x"] = array is slot.write("x", array)."""
        self.write(key, value)

    def numpy(self, field=None):
        """The numpy view of a field; ``field`` may be left out if the item is a single array. No copy."""
        cdef Field f
        self.check_held()
        f = self.field(field)
        if f is None:
            return self.buffer._subtree(field, self.numpy)
        return self.view(f)

    def torch(self, field=None):
        """The torch view of a field; ``field`` may be left out if the item is a single array. No copy."""
        cdef Place at
        cdef Field f
        find_torch(True)  # an import runs other threads: before we look at what they may release
        self.check_held()
        f = self.field(field)
        if f is None:
            return self.buffer._subtree(field, self.torch)
        f.place(self.s.data, self.s.nbytes, &at)
        return self.tensor(f, &at)

    def __array__(self, dtype=None, copy=None):
        return _as_array(self.numpy(), dtype, copy)

    @property
    def __array_interface__(self):
        return _interface(self.numpy())

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        cdef Place at
        cdef Field f
        cdef bint versioned = _dlpack_version(max_version, dl_device, copy)
        self.check_held()
        f = self.field(None)
        f.place(self.s.data, self.s.nbytes, &at)
        if self.state == READING:
            return f.capsule(&at, self.lease, &LEASE, versioned)
        return f.capsule(&at, self.buffer.seg, &MAPPING, versioned)

    def __getbuffer__(self, Py_buffer *view, int flags):
        # The exporter that is kept alive is the base, not this object: a name bound to the slot must not hold it.
        # numpy's own export carries shape and format; an item of several fields is bytes.
        self.check_held()
        if self.buffer.single is None:
            PyBuffer_FillInfo(view, self.base(), self.s.data, self.s.nbytes, False, flags)
        else:
            get_buffer(self.view(self.buffer.single), view, flags)

    def __releasebuffer__(self, Py_buffer *view):
        """Does nothing, but that it exists makes np.frombuffer keep the buffer, and not only this object."""

    # ---- writing

    def write(self, field, x=_NOTHING):
        """``write(x)``: the whole item; ``write(field, x)``: one field. One copy, no conversion.

        Args:
            x: a numpy array, a CPU torch tensor of any strides, a number or list; for a whole item of several fields a
                dict of them. The dtype must be the field's, and the shape too, except that it gives a dynamic field its
                actual shape.

        Raises:
            KeyError, TypeError, ValueError: unknown or missing field, wrong dtype, wrong shape or too large.
            ShmNoSpaceError: the slot had to grow and memory is exhausted.
        """
        cdef Field f
        self.check_writing()
        if x is _NOTHING:
            if self.buffer.single is not None:
                self.write_field(self.buffer.single, field)
            else:
                self.write_item(field)
            return
        f = self.field(field)
        if f is not None:
            self.write_field(f, x)
        else:
            for key, part in self.buffer._parts(field, x):
                self.write(key, part)

    cdef int write_field(self, Field f, object x) except -1:
        cdef Place at
        self.begin_write()
        try:
            if f.dynamic:
                self.make_room(f, f.shape_of(x))
            f.place(self.s.data, self.s.nbytes, &at)
            f.copy_in(&at, x)
        except BaseException:
            if f.dynamic:
                f.forget(self.s.data)  # or its new shape could be published over another item's bytes
            raise
        finally:
            self.end_write()
        return 0

    cdef int write_item(self, object item) except -1:
        cdef Field f
        cdef PyObject *found
        if self.buffer.flat and type(item) is dict and len(<dict>item) == len(self.buffer.fields):
            for f in self.buffer.fields:
                found = PyDict_GetItem(item, f.path)
                if found == NULL:
                    break  # the slow way says what is wrong
                self.write_field(f, <object>found)
            else:
                return 0
        for f, x in zip(self.buffer.fields, self.buffer.spec.flatten(item)):
            self.write_field(f, x)
        return 0

    def empty(self, field, shape):
        """Gives a dynamic field its actual shape in this item and returns its numpy view, uninitialised."""
        cdef Field f
        self.check_writing()
        f = self.field(field)
        if f is None:
            raise self.buffer._unknown(field)
        if not f.dynamic:
            raise ValueError(f"{f.label} has the fixed shape {f.describe()}: use slot[{field!r}]")
        self.begin_write()
        try:
            self.make_room(f, shape)
        finally:
            self.end_write()
        return self.view(f)

    cdef int make_room(self, Field f, object shape) except -1:
        """Finds room for a dynamic field: its own place if it is bounded, else behind what is used so far."""
        cdef int64_t dims[32]
        cdef uint64_t nbytes = f.size_of(shape, dims)
        cdef uint64_t offset = (f.offset if f.offset >= 0 else self.last_at if self.last == f.table
                                else (self.used + 63) & ~<uint64_t>63)
        if offset + nbytes > self.s.nbytes:
            self.buffer.grow(&self.s, offset + nbytes, f"{f.label} of shape {tuple([dims[d] for d in range(f.ndim)])}")
        if f.offset < 0:
            self.used = offset + nbytes
            self.last = f.table
            self.last_at = offset
        f.write_table(self.s.data, offset, dims)
        return 0

    # ---- the end

    def publish(self):
        """Makes the item visible to consumers: from here on it survives this process. numpy views of it that the slot
        handed out turn read-only; slices and torch views of it do not, and must not be written any more.

        Raises:
            ValueError: already published or aborted, or a dynamic field was not written.
            LeaseLost: the slot was reclaimed, or claimed before a fork.
        """
        self.do_publish()

    cdef int do_publish(self) except -1:
        cdef Field f
        cdef Place at
        cdef int rc
        self.check_writing()
        self.check_idle()
        if self.buffer.dynamic and shmt_slot_is_ours(&self.s):  # or it is lost, whatever was written
            for f in self.buffer.fields:
                if f.dynamic:
                    f.place(self.s.data, self.s.nbytes, &at)
        rc = shmt_slot_publish(self.buffer.seg, &self.s, self.used, self.s.tag)
        self.finish(PUBLISHED if rc == 0 else ABORTED)
        return 0 if rc == 0 else check(rc, f"publishing {self.label()}")

    def abort(self):
        """Gives the claimed slot back unpublished. Raises ValueError if it was already published or aborted."""
        self.do_abort()

    def release(self):
        """Lets go of an acquired slot: it can be claimed again once the last view of it has died.

        Raises:
            ValueError: already released, or claimed and not acquired.
            BufferError: acquired with ``strict`` and views are alive; the slot stays held.
        """
        self.do_release()

    def __exit__(self, kind, value, traceback):
        if self.state == READING:
            if kind is not None:
                self.strict = False  # the block's own exception is the news
            self.do_release()
        elif self.state == WRITING:
            if kind is not None:
                self.do_abort()
            elif self.buffer.dynamic:
                self.publish_or_abort()
            else:
                self.do_publish()

    cdef int publish_or_abort(self) except -1:
        """An item that lacks a field is not published: its slot goes back."""
        try:
            return self.do_publish()
        except BaseException:
            if self.state == WRITING:
                self.do_abort()
            raise

    # ---- what it is

    @property
    def index(self):
        """Which slot of the buffer it is: 0..slots-1."""
        return self.s.index

    @property
    def nbytes(self):
        """Bytes of the item."""
        return self.used if self.state == WRITING else self.s.nbytes

    @property
    def tag(self):
        """The producer's own number for the item, 0..2**64-1."""
        return self.s.tag

    @tag.setter
    def tag(self, value):
        self.check_writing()
        self.s.tag = PyNumber_Index(value)  # 1.5 is no tag

    @property
    def redelivered(self):
        """How often the item was handed out before, to consumers who died with it."""
        return self.s.tries


@cython.final
@cython.no_gc
cdef class Batch(Held):
    """Up to 64 slots that follow each other, held together. ``batch["x"]`` is one view: (len(batch), *shape)."""

    def __len__(self):
        return self.n

    @property
    def redelivered(self):
        """How often each item was handed out before, to consumers who died with it: a tuple of len(batch) numbers."""
        cdef int i
        return tuple([shmt_slot_tries(self.words[i]) for i in range(self.n)])

    cdef object label(self):
        return f"Batch of {self.n} slots from {self.s.index}"

    cdef Field place(self, object key, Place *out):
        cdef Field found
        cdef PyObject *known
        self.check_held()
        if key is None and self.buffer.single is not None:
            found = self.buffer.single
        else:
            known = PyDict_GetItem(self.buffer.table, key)
            if known == NULL:
                raise self.buffer._unknown(key)
            found = <Field>known
        found.place_many(self.s.data, self.buffer.stride, self.n, out)
        return found

    def __getitem__(self, key):
        return self.numpy(key)

    def __setitem__(self, key, value):
        """batch["x"] = array is batch.write("x", array)."""
        self.write(key, value)

    def numpy(self, field=None):
        """The numpy view of a field over all slots, shape (len(batch), *shape). No copy."""
        cdef Place at
        cdef Field f = self.place(field, &at)
        return self.array(f, &at)

    def torch(self, field=None):
        """The torch view of a field over all slots, shape (len(batch), *shape). No copy."""
        cdef Place at
        cdef Field f
        find_torch(True)  # as in Slot.torch
        f = self.place(field, &at)
        return self.tensor(f, &at)

    def write(self, field, x=_NOTHING):
        """``write(x)`` or ``write(field, x)``: x has shape (len(batch), *shape); for a whole batch of several fields it
        is a dict of such arrays. Raises as Slot.write()."""
        cdef Place at
        cdef Field f
        self.begin_write()
        try:
            if x is not _NOTHING:
                f = self.place(field, &at)
                f.copy_in(&at, x)
            elif self.buffer.single is not None:
                f = self.place(None, &at)
                f.copy_in(&at, field)
            else:
                for g, part in zip(self.buffer.fields, self.buffer.spec.flatten(field)):
                    f = self.place(g.path, &at)
                    f.copy_in(&at, part)
        finally:
            self.end_write()

    # ---- the end

    def publish(self, count=None):
        """Publishes the first ``count`` slots (None: all), in order, with one wake-up, and aborts the others.

        Raises:
            ValueError: already published or aborted, or not 0 <= count <= len(batch).
            LeaseLost: a slot was reclaimed, or claimed before a fork.
        """
        self.do_publish(self.n if count is None else count)

    cdef int do_publish(self, int count) except -1:
        cdef int rc = 0
        cdef shmt_slot rest = self.s
        self.check_writing()
        self.check_idle()
        if not 0 <= count <= self.n:
            raise ValueError(f"count must be 0..{self.n}, not {count}")
        if count > 0:
            rc = shmt_slot_publish_many(self.buffer.seg, &self.s, self.words, count, self.buffer.item_nbytes)
        if count < self.n:
            rest.index += count
            shmt_slot_abort_many(self.buffer.seg, &rest, self.words + count, self.n - count)
        self.finish(PUBLISHED)
        return 0 if rc == 0 else check(rc, f"publishing {self.label()}")

    def abort(self):
        """Gives all slots back unpublished. Raises ValueError if they were already published or aborted."""
        self.do_abort()

    def release(self):
        """Lets go of all slots; they can be claimed again once the last view has died. Raises as Slot.release()."""
        self.do_release()

    def __exit__(self, kind, value, traceback):
        if self.state == READING:
            self.do_release()
        elif self.state == WRITING:
            if kind is None:
                self.do_publish(self.n)
            else:
                self.do_abort()
