# _landing.pxi - a slot in the making: tensors that come into being where their message will lie.

cdef uint64_t LANDED_AT = 64  # the header's place, and aligned
cdef uint64_t BEHIND = 1 << 16   # bytes that are reserved with a part: what the owner of the slot will write behind all
cdef uint64_t SLOT_MAX = <uint64_t>1 << 46  # bytes: more than any slot has, and small enough to calculate with


@cython.final
@cython.no_gc
cdef class Landing:
    """One thread's way to send what was never anywhere but in the slot: empty() claims one and gives out memory in it,
    write() puts a message there that copies only what does not lie in it, publish() sends it.

    A tensor that is still alive when it has to go out was kept by somebody, who must not see it change: a copy goes out
    instead. Two slots may be kept like this: a generator still has a name for what it yielded last until it is asked
    for more, and that must not keep the next message out of its slot. Beyond that empty() gives nothing.
    """

    def __init__(self, Objects slots not None):
        self.slots = slots
        self.runs = {}
        self.encoder = Encoder()

    def __dealloc__(self):
        cdef int i
        if self.lease != NULL:
            shmt_lease_drop(self.lease)  # aborts the claim
        for i in range(self.n_aliased):
            shmt_lease_drop(self.aliased[i])

    cdef void forget_aliased(self) noexcept:
        """Those that nobody looks at any more."""
        cdef int i, n = 0
        for i in range(self.n_aliased):
            if shmt_lease_count(self.aliased[i]) == 1:
                shmt_lease_drop(self.aliased[i])
            else:
                self.aliased[n] = self.aliased[i]
                n += 1
        self.n_aliased = n

    cdef void let_go(self) noexcept:
        """Of the claimed slot; who still looks at it keeps it. There is a place: see claim()."""
        self.aliased[self.n_aliased] = self.lease
        self.n_aliased += 1
        self.lease = NULL
        self.runs.clear()

    def begin(self, Py_ssize_t rows=1):
        """A new message; of each kind of array that it asks for, it will probably ask for ``rows``."""
        self.forget_aliased()
        if self.lease != NULL and self.nbytes == 0:  # what was made in it was not sent
            self.let_go()
            self.forget_aliased()
        self.rows = max(rows, 1)

    # ---- memory in the slot

    def empty(self, tuple shape, dtype, timeout=None):
        """An uninitialised tensor in the slot; None if there can be none now, or it is too small to be worth it. Those
        of one shape and dtype lie one after the other, so that all of them together are a tensor as well: see joined().

        Raises as Buffer.claim() and Slot.reserve().
        """
        return self.make(shape, dtype, self.rows, timeout)

    def whole(self, tuple shape, dtype, timeout=None):
        """As empty(), for one that is the only one of its kind."""
        return self.make(shape, dtype, 0, timeout)

    cdef object make(self, tuple shape, object dtype, uint64_t rows, object timeout):
        """One of a run of ``rows``; 0: by itself."""
        cdef Field f
        cdef Place at
        cdef uint64_t nbytes, begin
        cdef list run
        field, _ = known_dtype(dtype)
        if field is None or len(shape) >= MAX_NDIM:
            return None
        f = <Field>field
        nbytes = self.measure_place(f, shape, &at)
        if rows > 0 and nbytes > SLOT_MAX // rows:
            rows = 0  # their product would be no number of bytes any more
        if nbytes * (rows if rows > 0 else 1) < APART_FROM or not self.claim(timeout):
            return None
        if rows == 0:
            begin = self.take(nbytes, shape)
        else:
            key = dtype, shape
            run = self.runs.get(key)
            if run is None or run[1] == 0:
                run = [self.take(nbytes * rows, shape), rows]
                self.runs[key] = run
            begin = run[0]
            run[0] = begin + nbytes
            run[1] -= 1
        at.data = self.s.data + begin
        return f.tensor(&at, self.lease, &LEASE)

    def joined(self, uint64_t address, tuple shape, dtype):
        """Tensors that lie one after the other from ``address`` on, as one; None if that is not in the slot."""
        cdef Place at
        cdef Field f = known_dtype(dtype)[0]
        cdef uint64_t nbytes = self.measure_place(f, shape, &at)
        cdef uint64_t offset = address - <uint64_t>self.s.data
        if self.lease == NULL or address < <uint64_t>self.s.data or offset > self.used or nbytes > self.used - offset:
            return None
        at.data = <uint8_t *>address
        return f.tensor(&at, self.lease, &LEASE)

    @property
    def has_rows(self):
        """Whether empty() gave out anything since begin()."""
        return bool(self.runs)

    cdef uint64_t measure_place(self, Field f, tuple shape, Place *at) except? 0xffffffffffffffff:
        cdef uint64_t nbytes = f.itemsize
        cdef int64_t n
        cdef int d
        if len(shape) > MAX_NDIM:
            raise ValueError(f"an array of {len(shape)} dimensions; at most {MAX_NDIM} can be sent")
        at.ndim = len(shape)
        at.packed = True
        for d in range(at.ndim - 1, -1, -1):
            n = shape[d]
            if n < 0:
                raise ValueError(f"a shape cannot have negative dimensions: {shape}")
            at.shape[d] = n
            at.strides[d] = <int64_t>nbytes
            if n and nbytes > SLOT_MAX // <uint64_t>n:
                raise ValueError(f"an array of shape {shape} is larger than any slot")
            nbytes *= <uint64_t>n
        return nbytes

    cdef bint claim(self, object timeout) except -1:
        """Whether there is a claimed slot."""
        cdef uint64_t word
        if self.lease != NULL:
            return shmt_slot_is_ours(&self.s)
        self.forget_aliased()
        if self.n_aliased == ALIASED_MAX:
            return False
        shmt_slots_prefer_few(self.slots.open_seg(), True)
        self.slots.wait(CLAIM, 1, &word, &self.s, timeout)
        try:
            check(shmt_lease_take(self.slots.seg, &self.s, &self.s.word, 1, &self.lease), "claiming a slot")
        except BaseException:
            shmt_slot_abort(self.slots.seg, &self.s)
            raise
        finally:
            self.slots.unpin()  # the lease keeps the mapping
        self.used = LANDED_AT
        return True

    cdef uint64_t take(self, uint64_t nbytes, object shape) except 0:
        """Room behind what is used: where it begins."""
        cdef uint64_t begin = self.used
        self.slots.open_seg()
        if self.s.nbytes < begin + nbytes:
            self.slots.grow(&self.s, begin + nbytes, f"a batch with arrays of shape {shape}")
        self.used = (begin + nbytes + 63) & ~<uint64_t>63
        return begin

    # ---- memory that others write

    def lend(self, timeout=None):
        """Claims a slot for others to write parts of: (slot, word), by which Objects.write_part() finds it. Nothing may
        be published, nor this object go, before each of them has answered or is known to be dead.

        Raises as Buffer.claim().
        """
        if self.lease != NULL or not self.claim(timeout):
            raise RuntimeError("this landing has a slot already")
        return self.s.index, self.s.word

    def map_lent(self, uint64_t offset, uint64_t nbytes):
        """Maps what one of them has written: beforehand, so that it need not be done when all is there."""
        self.slots.open_seg()
        if self.lease != NULL:
            with nogil:
                shmt_slot_reserve_part(self.slots.seg, &self.s, offset, nbytes)  # lent() will say what is wrong

    def lent(self, uint64_t offset, tuple shape, dtype):
        """What was written from ``offset`` on, as one tensor. Raises as Slot.reserve()."""
        cdef Place at
        cdef Field f = known_dtype(dtype)[0]
        cdef uint64_t nbytes = self.measure_place(f, shape, &at)
        if self.lease == NULL or offset < LANDED_AT or offset > SLOT_MAX:
            raise ValueError("nothing was lent there")
        self.slots.open_seg()
        if self.s.nbytes < offset + nbytes:
            self.slots.grow(&self.s, offset + nbytes, f"a batch with arrays of shape {shape}")
        self.used = max(self.used, (offset + nbytes + 63) & ~<uint64_t>63)
        at.data = self.s.data + offset
        return f.tensor(&at, self.lease, &LEASE)

    # ---- the message

    def write(self, x, uint64_t tag=0, timeout=None):
        """Encodes ``x``, to be sent by publish(); at once if nothing of it lies in a slot. Raises as Objects.send();
        nothing was sent then, and something else may be written."""
        cdef uint64_t nbytes
        if self.lease == NULL:
            self.slots.encode(x, timeout, tag, True)
            return
        self.slots.open_seg()
        self.encoder.place_in(self.s.data, self.used)
        nbytes = self.encoder.measure(x)
        try:
            if self.encoder.landed == 0:  # an exception, say: nothing of it lies in the slot
                self.encoder.done()
                self.slots.encode(x, timeout, tag, True)
                return
            if self.s.nbytes < nbytes:
                self.slots.grow(&self.s, nbytes, "an object")
            self.encoder.write(self.s.data)
        finally:
            self.encoder.done()
        self.nbytes = nbytes
        self.tag = tag

    def publish(self, timeout=None):
        """Sends what was written. By now the caller has let go of it: what is still alive was kept by somebody.

        Raises as Buffer.claim(): it may be called again.
        """
        cdef int rc
        if self.nbytes == 0:
            return
        rc = shmt_lease_publish(self.lease, self.nbytes, self.tag)
        if rc == -_EBUSY:
            self.publish_copy(timeout)
            self.let_go()
            self.copied += 1
            rc = 0
        self.lease = NULL
        self.runs.clear()
        self.nbytes = 0
        check(rc, "publishing a slot")

    cdef int publish_copy(self, object timeout) except -1:
        cdef shmt_slot s
        cdef uint64_t word
        self.slots.wait(CLAIM, 1, &word, &s, timeout)
        try:
            if s.nbytes < self.nbytes:
                self.slots.grow(&s, self.nbytes, "a copy of an object that was kept")
            with nogil:
                shmt_copy(s.data, self.s.data, self.nbytes)
            check(shmt_slot_publish(self.slots.seg, &s, self.nbytes, self.tag), "publishing a slot")
        except BaseException:
            shmt_slot_abort(self.slots.seg, &s)
            raise
        finally:
            self.slots.unpin()
        return 0
