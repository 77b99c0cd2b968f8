"""The C core as extension types: convert, one call, raise.

    Segment  one mapping of one segment
    Array    a segment that is one array            (SharedTensor)
    Buffer   a segment with slots and fields        (TensorBuffer)
    Slot     a claimed or acquired slot
    Batch    up to 64 of them that follow each other

Policy - defaults, messages about a whole buffer, pickling - lives in buffer.py and tensor.py.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.dict cimport PyDict_GetItem
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
cimport cython
cimport numpy as cnp

from shmtensor.errors import ClosedError, LeaseLost, error_from

from shmtensor._cshmt cimport *
from shmtensor._views cimport Field, Hold, Owner, Place, find_torch, hold_new

cnp.import_array()

cdef extern from "Python.h":
    int Py_REFCNT(PyObject *)  # not (object): that would count Cython's own temporary
    int get_buffer "PyObject_GetBuffer"(object exporter, Py_buffer *view, int flags) except -1

cdef extern from "errno.h":
    int EAGAIN, EINTR, ETIMEDOUT, EINVAL, EMSGSIZE, ENOSPC

cdef int _EAGAIN = EAGAIN, _EINTR = EINTR, _ETIMEDOUT = ETIMEDOUT

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


# ---- Segment -------------------------------------------------------------------------------------


cdef class Segment:
    """One mapping of one shared-memory segment in this process."""

    def __dealloc__(self):
        if self.seg != NULL:
            shmt_segment_close(self.seg)
            shmt_segment_drop(self.seg)

    def _create(self, *, str name, uint64_t slot_nbytes, uint64_t slot_stride=0, uint32_t slots=0,
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
            "apart": bool(info.flags & SHMT_APART),
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


# ---- Array ---------------------------------------------------------------------------------------


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


# ---- Buffer --------------------------------------------------------------------------------------


cdef class Buffer(Segment):
    """A segment with slots, whose items have fields."""

    def _set_spec(self, spec, uint32_t spin_us):
        self.spec = spec
        self.fields = tuple([Field(p) for p in spec.fields])
        self.table = {f.path: f for f in self.fields}
        self.single = self.fields[0] if spec.single else None
        self.item_nbytes = spec.nbytes
        self.stride = shmt_segment_info(self.open_seg()).slot_stride
        self.flat = spec.tree is not None and list(spec.tree) == list(self.table)
        self.dynamic = spec.dynamic
        self.all_numpy = all([p.dtype.numpy is not None for p in spec.fields])
        self.table_nbytes = spec.table_nbytes
        shmt_spin_set(self.open_seg(), spin_us)

    # ---- waiting

    cdef int wait(self, int verb, uint32_t n, uint64_t *words, shmt_slot *out, object timeout) except -1:
        """Tries, and waits without the GIL if there is nothing. Returns how many slots were taken; 0: time-out."""
        cdef int rc
        cdef shmt_segment *seg = self.seg
        if seg == NULL:
            self.open_seg()
        if timeout is not None:
            _deadline(timeout)  # a bad one is an error even where there is nothing to wait for
        if verb == CLAIM:
            rc = shmt_slot_claim_many(seg, n, 0, words, out)
        else:
            rc = shmt_slot_acquire_many(seg, n, 0, words, out)
        if rc > 0:
            self.pins += 1
            return rc
        return self.wait_slowly(verb, n, words, out, timeout, rc)

    cdef int wait_slowly(self, int verb, uint32_t n, uint64_t *words, shmt_slot *out, object timeout,
                         int rc) except -1:
        cdef shmt_segment *seg = self.seg
        cdef int64_t deadline = _deadline(timeout)
        cdef int64_t step = 0
        self.pins += 1
        try:
            while rc == -_EAGAIN or rc == -_EINTR or (rc == -_ETIMEDOUT and step < deadline):
                # In steps: a signal that comes just before the wait interrupts nothing.
                PyErr_CheckSignals()
                step = min(deadline, shmt_now_ns() + STEP_NS)
                with nogil:
                    if verb == CLAIM:
                        rc = shmt_slot_claim_many(seg, n, step, words, out)
                    else:
                        rc = shmt_slot_acquire_many(seg, n, step, words, out)
        except BaseException:
            self.unpin()
            raise
        if rc > 0:
            return rc  # still pinned: somebody may have closed us meanwhile
        self.unpin()
        if rc == -_ETIMEDOUT:
            return 0
        return check(rc, "claiming a slot" if verb == CLAIM else "acquiring an item")

    # ---- producer

    cdef int start(self, Slot slot) except -1:
        """A slot that was just claimed becomes a writer's, and with it the caller's pin."""
        slot.buffer = self
        slot.state = WRITING
        slot.used = self.item_nbytes
        if slot.s.nbytes < self.item_nbytes:
            self.grow(&slot.s, self.item_nbytes, "an item")
        if self.dynamic:
            slot.last = -1
            memset(slot.s.data, 0, self.table_nbytes)  # what the shape table said of the slot's last item
        return 0

    cdef int grow(self, shmt_slot *s, uint64_t nbytes, object what) except -1:
        """Makes `nbytes` of a claimed slot safe to touch."""
        cdef int rc
        with nogil:
            rc = shmt_slot_reserve(self.seg, s, nbytes)
        if rc < 0:
            raise self._no_room(-rc, what, nbytes)
        return 0

    def claim(self, timeout=None):
        """Takes a free slot to write into, waiting up to ``timeout`` seconds (None: for ever) for one.

        As a context manager the slot is published at the end of the block, or aborted if the block raises.

        Raises:
            TimeoutError: no slot became free; the message says who holds them.
            ShutDown: the stream has ended.
            ClosedError: this handle is closed.
        """
        cdef uint64_t word
        cdef Slot slot = Slot.__new__(Slot)
        if self.wait(CLAIM, 1, &word, &slot.s, timeout) == 0:
            raise self._timed_out("claim", timeout)
        self.start(slot)
        return slot

    def try_claim(self):
        """A free slot to write into, or None at once if there is none. Raises what claim() raises but TimeoutError."""
        cdef Slot slot = Slot.__new__(Slot)
        cdef int rc = shmt_slot_try_claim(self.open_seg(), &slot.s)
        if rc == -_EAGAIN:
            return None
        check(rc, "claiming a slot")
        self.pins += 1
        self.start(slot)
        return slot

    def put(self, item, timeout=None):
        """Claims a slot, copies ``item`` into it and publishes it: claim, write and publish in one call.

        Args:
            item: an array for a single-field spec, else a dict of them; numpy arrays, CPU torch tensors, numbers.
            timeout: seconds to wait for a free slot; None waits for ever.

        Raises:
            TimeoutError, ShutDown, ClosedError: as claim().
            KeyError, TypeError, ValueError: the item does not match the spec; nothing was published.
        """
        cdef shmt_slot s
        cdef uint64_t word
        cdef Slot slot
        cdef Place at
        if self.single is None or self.dynamic:
            slot = self.claim(timeout)
            try:
                slot.write(item)
                slot.publish()
            except BaseException:
                if slot.state == WRITING:
                    slot.abort()
                raise
            return
        if self.wait(CLAIM, 1, &word, &s, timeout) == 0:
            raise self._timed_out("claim", timeout)
        try:
            if s.nbytes < self.item_nbytes:
                self.grow(&s, self.item_nbytes, "an item")
            self.single.place(s.data, s.nbytes, &at)
            self.single.copy_in(&at, item)
            check(shmt_slot_publish(self.seg, &s, self.item_nbytes, 0), "publishing a slot")
        except BaseException:
            shmt_slot_abort(self.seg, &s)  # published or lost already: does nothing
            raise
        finally:
            self.unpin()

    def claim_many(self, int n, timeout=None):
        """Takes between 1 and ``n`` free slots that follow each other, waiting only for the first (see claim());
        at most 64 at once. Each field of the batch is one view of shape (k, *shape).

        Raises:
            ValueError: n < 1.
            TypeError: the spec has dynamic shapes.
            TimeoutError, ShutDown, ClosedError: as claim().
        """
        return self._batch(CLAIM, n, timeout)

    def acquire_many(self, int n, timeout=None):
        """Takes between 1 and ``n`` published items, oldest first, that lie in slots which follow each other, waiting
        only for the first; at most 64 at once. Raises as claim_many()."""
        return self._batch(ACQUIRE, n, timeout)

    def _batch(self, int verb, int n, timeout):
        cdef Batch batch
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        if self.dynamic:
            raise TypeError("a batch is one view of many slots, so its items must have one shape: this spec has "
                            "dynamic dimensions; use claim() and acquire()")
        batch = Batch.__new__(Batch)
        batch.n = self.wait(verb, min(n, BATCH_MAX), batch.words, &batch.first, timeout)
        if batch.n == 0:
            raise self._timed_out("claim" if verb == CLAIM else "acquire", timeout)
        batch.buffer = self
        if verb == CLAIM:
            batch.state = WRITING  # and has the pin
            self.grow_all(batch)
        else:
            batch.lease = self.lease_of(&batch.first, batch.words, batch.n)
            batch.state = READING
        return batch

    cdef int grow_all(self, Batch batch) except -1:
        cdef shmt_slot s = batch.first
        cdef int _i
        if not shmt_segment_info(self.seg).flags & SHMT_GROW:
            return 0
        for _i in range(batch.n):
            self.grow(&s, self.item_nbytes, "an item")
            s.index += 1
            s.data += shmt_segment_info(self.seg).slot_stride
        return 0

    # ---- consumer

    cdef shmt_lease *lease_of(self, const shmt_slot *first, const uint64_t *words, uint32_t n) except NULL:
        """A lease on what was just acquired; it keeps the mapping from here on, so the caller's pin goes."""
        cdef shmt_lease *lease = NULL
        cdef int rc = shmt_lease_take(self.seg, first, words, n, &lease)
        if rc < 0:
            shmt_slot_release_many(self.seg, first, words, n)
        self.unpin()
        check(rc, "leasing a slot")
        return lease

    cdef int lend(self, Slot slot, bint strict) except -1:
        """A slot that was just acquired becomes a reader's."""
        slot.buffer = self
        slot.lease = self.lease_of(&slot.s, &slot.s.word, 1)
        slot.state = READING
        slot.strict = strict
        return 0

    def acquire(self, timeout=None, *, bint strict=False):
        """Takes the oldest published item, waiting up to ``timeout`` seconds (None: for ever) for one.

        As a context manager the slot is released at the end of the block; views that are still alive then keep it until
        they die. With ``strict`` such views raise BufferError instead.

        Raises:
            TimeoutError: nothing was published; the message says what the slots are doing.
            ShutDown: the stream has ended and everything was acquired.
            ClosedError: this handle is closed.
        """
        cdef uint64_t word
        cdef Slot slot = Slot.__new__(Slot)
        if self.wait(ACQUIRE, 1, &word, &slot.s, timeout) == 0:
            raise self._timed_out("acquire", timeout)
        self.lend(slot, strict)
        return slot

    def try_acquire(self, *, bint strict=False):
        """The oldest published item, or None at once if there is none. Raises as acquire(), but no TimeoutError."""
        cdef Slot slot = Slot.__new__(Slot)
        cdef int rc = shmt_slot_try_acquire(self.open_seg(), &slot.s)
        if rc == -_EAGAIN:
            return None
        check(rc, "acquiring an item")
        self.pins += 1
        self.lend(slot, strict)
        return slot

    def get(self, timeout=None, *, bint copy=False, bint torch=False):
        """The oldest published item as an array, or as a dict of arrays if the fields have names.

        Args:
            timeout: seconds to wait for an item; None waits for ever.
            copy: own memory instead of views; the slot is released at once. Else it is released when the last of the
                arrays, and of whatever aliases them, dies.
            torch: torch tensors instead of numpy arrays.

        Raises as acquire().
        """
        cdef shmt_slot s
        cdef uint64_t word
        if torch or not self.all_numpy:
            self.check_seen_by(torch)
        if self.wait(ACQUIRE, 1, &word, &s, timeout) == 0:
            raise self._timed_out("acquire", timeout)
        return self.item(&s, copy, torch)

    cdef int check_seen_by(self, bint torch) except -1:
        """Raises before an item is taken if one of its fields could not be shown."""
        cdef Field f
        for f in self.fields:
            f.check_seen_by(torch)
        return 0

    cdef object item(self, shmt_slot *s, bint copy, bint torch):
        """An acquired slot as arrays; if one cannot be made, `hold` releases the slot."""
        cdef Hold hold = hold_new(self.lease_of(s, &s.word, 1), &LEASE)
        cdef Field f
        if self.single is not None:
            return self.item_field(self.single, s, hold, copy, torch)
        if self.flat:
            out = {}
            for f in self.fields:
                out[f.path] = self.item_field(f, s, hold, copy, torch)
            return out
        return self.spec.pack([self.item_field(f, s, hold, copy, torch) for f in self.fields])

    cdef object item_field(self, Field f, shmt_slot *s, Hold hold, bint copy, bint torch):
        cdef Place at
        f.place(s.data, s.nbytes, &at)
        if torch:
            view = f.tensor(&at, hold.thing, &LEASE)
            return view.clone() if copy else view
        return f.array_copy(&at) if copy else f.array(&at, hold, True)

    def get_many(self, int n, timeout=None, *, bint copy=False, bint torch=False):
        """Between 1 and ``n`` items, oldest first, as a list of what get() returns; waits only for the first."""
        cdef shmt_slot s
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        out = [self.get(timeout, copy=copy, torch=torch)]
        while len(out) < n and shmt_slot_try_acquire(self.open_seg(), &s) == 0:
            self.pins += 1
            out.append(self.item(&s, copy, torch))
        return out

    # ---- the whole buffer

    def shutdown(self):
        """Ends the stream for everybody: claims raise ShutDown; acquires drain what was published, then do so too."""
        shmt_shutdown(self.open_seg())

    def reclaim(self):
        """Takes back what dead members held; returns how many members were found dead. Never waits."""
        cdef int rc
        self.pin()
        try:
            with nogil:
                rc = shmt_reclaim(self.seg)
        finally:
            self.unpin()
        return check(rc, "reclaiming")

    def stats(self):
        """Figures since the buffer was created, as a flat dict of ints; see docs. Reading them stops nobody."""
        cdef shmt_stats s
        check(shmt_stats_get(self.open_seg(), &s), "reading figures")
        return dict(s)

    def _members(self):
        """What is known of each member: a list of dicts."""
        cdef shmt_member_info info
        cdef uint32_t i
        out = []
        for i in range(1, shmt_segment_info(self.open_seg()).members + 1):
            if shmt_member_info_get(self.seg, i, &info) == 0:
                out.append(dict(info))
        return out

    def _slot_states(self):
        """(state, owner) of each slot; states: 0 free, 1 writing, 2 ready, 3 reading."""
        cdef shmt_slot_info info
        cdef uint32_t i
        out = []
        for i in range(shmt_segment_info(self.open_seg()).slots):
            check(shmt_slot_info_get(self.seg, i, &info), "reading a slot's state")
            out.append((info.state, info.owner))
        return out


# ---- Slot ----------------------------------------------------------------------------------------


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Slot:
    """A slot while it is held: from claim() to publish() or abort(), or from acquire() to release()."""

    def __dealloc__(self):
        if self.state == WRITING:
            shmt_slot_abort(self.buffer.seg, &self.s)  # in a forked child: does nothing
            self.buffer.unpin()
        elif self.state == READING and self.hold is None:
            shmt_lease_drop(self.lease)

    def __repr__(self):
        state = {WRITING: "claimed", READING: "acquired"}.get(self.state) or _ENDED[self.state]
        return f"<Slot {self.s.index} {state}>"

    cdef int check_held(self) except -1:
        if self.state != WRITING and self.state != READING:
            raise ValueError(f"slot {self.s.index} was already {_ENDED[self.state]}")
        return 0

    cdef int check_writing(self) except -1:
        self.check_held()
        if self.state != WRITING:
            raise ValueError(f"slot {self.s.index} was acquired, not claimed: it cannot be written and published; "
                             "release() it")
        return 0

    # ---- views

    cdef Field field(self, object key):
        cdef PyObject *found
        if key is None:
            if self.buffer.single is None:
                raise ValueError(f"this item has several fields: say which of {', '.join(self.buffer.table)}")
            return self.buffer.single
        found = PyDict_GetItem(self.buffer.table, key)
        return None if found == NULL else <Field>found

    cdef Hold base(self):
        """What the views hang on. A reader's base takes over the slot's own reference on the lease."""
        if self.hold is None:
            if self.state == READING:
                self.hold = hold_new(self.lease, &LEASE)
            else:
                shmt_segment_hold(self.buffer.seg)
                self.hold = hold_new(self.buffer.seg, &MAPPING)
        return self.hold

    cdef object view(self, Field f):
        cdef Place at
        f.place(self.s.data, self.s.nbytes, &at)
        out = f.array(&at, self.base(), True)
        if self.state == WRITING:
            if self.handed_out is None:
                self.handed_out = out
            elif type(self.handed_out) is list:
                (<list>self.handed_out).append(out)
            else:
                self.handed_out = [self.handed_out, out]
        return out

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
        if self.state == READING:
            return f.tensor(&at, self.lease, &LEASE)
        return f.tensor(&at, self.buffer.seg, &MAPPING)

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
            self.busy -= 1
        return 0

    cdef int begin_write(self) except -1:
        """While a copy runs, without the GIL perhaps or in a foreign object's code, the slot cannot be ended."""
        self.check_writing()
        if not shmt_slot_is_ours(&self.s):
            raise LeaseLost(f"slot {self.s.index} was claimed before this process was forked: it is the parent's")
        self.busy += 1
        return 0

    cdef int check_idle(self) except -1:
        if self.busy:
            raise ValueError(f"slot {self.s.index} is being written, by another thread or further up in this one")
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
            self.busy -= 1
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

    cdef int finish(self, int state) except -1:
        """Views that were handed out become read-only; whoever keeps them keeps the mapping, not the slot."""
        self.state = state
        self.hold = None
        if self.handed_out is not None:
            if state == PUBLISHED:
                if type(self.handed_out) is list:
                    for array in <list>self.handed_out:
                        cnp.PyArray_CLEARFLAGS(<cnp.ndarray>array, cnp.NPY_ARRAY_WRITEABLE)
                else:
                    cnp.PyArray_CLEARFLAGS(<cnp.ndarray>self.handed_out, cnp.NPY_ARRAY_WRITEABLE)
            self.handed_out = None
        self.buffer.unpin()
        return 0

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
        if self.buffer.dynamic:
            for f in self.buffer.fields:
                if f.dynamic:
                    f.place(self.s.data, self.s.nbytes, &at)
        rc = shmt_slot_publish(self.buffer.seg, &self.s, self.used, self.s.tag)
        self.finish(PUBLISHED if rc == 0 else ABORTED)
        return 0 if rc == 0 else check(rc, f"publishing slot {self.s.index}")

    def abort(self):
        """Gives the claimed slot back unpublished. Raises ValueError if it was already published or aborted."""
        self.do_abort()

    cdef int do_abort(self) except -1:
        cdef int rc
        self.check_writing()
        self.check_idle()
        rc = shmt_slot_abort(self.buffer.seg, &self.s)
        self.finish(ABORTED)
        return 0 if rc == 0 else check(rc, f"aborting slot {self.s.index}")

    def release(self):
        """Lets go of an acquired slot: it can be claimed again once the last view of it has died.

        Raises:
            ValueError: already released, or claimed and not acquired.
            BufferError: acquired with ``strict`` and views are alive; the slot stays held.
        """
        self.do_release()

    cdef int do_release(self) except -1:
        self.check_held()
        if self.state != READING:
            raise ValueError(f"slot {self.s.index} was claimed, not acquired: publish() or abort() it")
        if self.strict:
            if (self.hold is not None and Py_REFCNT(<PyObject *>self.hold) > 1) or shmt_lease_count(self.lease) > 1:
                raise BufferError(f"slot {self.s.index} is being released while views of it are alive: delete them, "
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


# ---- Batch ---------------------------------------------------------------------------------------


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class Batch:
    """Up to 64 slots that follow each other, held together. ``batch["x"]`` is one view: (len(batch), *shape)."""

    def __dealloc__(self):
        if self.state == WRITING:
            shmt_slot_abort_many(self.buffer.seg, &self.first, self.words, self.n)
            self.buffer.unpin()
        elif self.state == READING and self.hold is None:
            shmt_lease_drop(self.lease)

    def __len__(self):
        return self.n

    def __repr__(self):
        state = {WRITING: "claimed", READING: "acquired"}.get(self.state) or _ENDED[self.state]
        return f"<Batch of {self.n} slots from {self.first.index} {state}>"

    cdef int check_held(self) except -1:
        if self.state != WRITING and self.state != READING:
            raise ValueError(f"this batch was already {_ENDED[self.state]}")
        return 0

    cdef Field place(self, object key, Place *out):
        cdef Field found
        self.check_held()
        if key is None and self.buffer.single is not None:
            found = self.buffer.single
        elif key in self.buffer.table:
            found = self.buffer.table[key]
        else:
            raise self.buffer._unknown(key)
        found.place_many(self.first.data, self.buffer.stride, self.n, out)
        return found

    cdef Hold base(self):
        if self.hold is None:
            if self.state == READING:
                self.hold = hold_new(self.lease, &LEASE)
            else:
                shmt_segment_hold(self.buffer.seg)
                self.hold = hold_new(self.buffer.seg, &MAPPING)
        return self.hold

    def __getitem__(self, key):
        return self.numpy(key)

    def numpy(self, field=None):
        """The numpy view of a field over all slots, shape (len(batch), *shape). No copy."""
        cdef Place at
        cdef Field f = self.place(field, &at)
        out = f.array(&at, self.base(), True)
        if self.state == WRITING:
            if self.handed_out is None:
                self.handed_out = [out]
            else:
                self.handed_out.append(out)
        return out

    def torch(self, field=None):
        """The torch view of a field over all slots, shape (len(batch), *shape). No copy."""
        cdef Place at
        cdef Field f
        find_torch(True)  # as in Slot.torch
        f = self.place(field, &at)
        if self.state == READING:
            return f.tensor(&at, self.lease, &LEASE)
        return f.tensor(&at, self.buffer.seg, &MAPPING)

    def write(self, field, x=_NOTHING):
        """``write(x)`` or ``write(field, x)``: x has shape (len(batch), *shape); for a whole batch of several fields it
        is a dict of such arrays."""
        cdef Place at
        cdef Field f
        self.check_held()
        if self.state != WRITING:
            raise ValueError("this batch was acquired, not claimed: it cannot be written")
        if not shmt_slot_is_ours(&self.first):
            raise LeaseLost("this batch was claimed before this process was forked: it is the parent's")
        self.busy += 1  # as in Slot.begin_write()
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
            self.busy -= 1

    cdef int finish(self, int state, int count) except -1:
        cdef cnp.ndarray array
        cdef int rc = 0
        cdef shmt_slot rest = self.first
        if self.busy:
            raise ValueError("this batch is being written, by another thread or further up in this one")
        if count > 0:
            rc = shmt_slot_publish_many(self.buffer.seg, &self.first, self.words, count, self.buffer.item_nbytes)
        if count < self.n:
            rest.index += count
            shmt_slot_abort_many(self.buffer.seg, &rest, self.words + count, self.n - count)
        self.state = state
        self.hold = None
        if self.handed_out is not None:
            for array in self.handed_out:
                cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
            self.handed_out = None
        self.buffer.unpin()
        return check(rc, "publishing a batch")

    def publish(self, count=None):
        """Publishes the first ``count`` slots (None: all), in order, with one wake-up, and aborts the others."""
        self.check_held()
        if self.state != WRITING:
            raise ValueError("this batch was acquired, not claimed: release() it")
        cdef int k = self.n if count is None else count
        if not 0 <= k <= self.n:
            raise ValueError(f"count must be 0..{self.n}, not {count}")
        self.finish(PUBLISHED, k)

    def abort(self):
        """Gives all slots back unpublished."""
        self.check_held()
        if self.state != WRITING:
            raise ValueError("this batch was acquired, not claimed: release() it")
        self.finish(ABORTED, 0)

    def release(self):
        """Lets go of all slots; they can be claimed again once the last view has died."""
        self.check_held()
        if self.state != READING:
            raise ValueError("this batch was claimed, not acquired: publish() or abort() it")
        self.state = RELEASED
        if self.hold is None:
            shmt_lease_drop(self.lease)
        else:
            self.hold = None  # the last view, or this, drops the lease
        self.lease = NULL

    def __enter__(self):
        self.check_held()
        return self

    def __exit__(self, kind, value, traceback):
        if self.state == READING:
            self.release()
        elif self.state == WRITING:
            self.finish(PUBLISHED if kind is None else ABORTED, self.n if kind is None else 0)
