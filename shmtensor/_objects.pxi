# _objects.pxi - a segment with slots whose items are any objects: the codec between the verbs.

cdef uint64_t SMALL = 4096  # bytes that any slot of a queue has; what is larger goes to those that have grown already


def has_place(dtype):
    """Whether arrays, or tensors, of this dtype can lie in a slot as they are."""
    return known_dtype(dtype)[0] is not None


cdef class Objects(Buffer):
    """Sends and receives objects; queue.py makes the standard library's interfaces of it."""

    def __cinit__(self):
        self.encoders = []

    def _set_objects(self, spec, uint32_t spin_us, uint32_t keep, bint copies):
        self._set_spec(spec, spin_us)
        self.keep = keep
        self.copies = copies

    def send(self, x, timeout=None, uint64_t tag=0):
        """Encodes ``x`` into a slot and publishes it, and ``tag`` with it, waiting up to ``timeout`` seconds (None: for
        ever) for one.

        Raises what pickling raises before a slot is claimed; then as Buffer.claim() and Slot.reserve().
        """
        self.encode(x, timeout, tag, True)

    def try_send(self, x, uint64_t tag=0):
        """Whether there was a free slot; else, and if it is refused, nothing was sent."""
        return self.encode(x, None, tag, False)

    cdef bint encode(self, object x, object timeout, uint64_t tag, bint wait) except -1:
        cdef shmt_slot s
        cdef uint64_t word, nbytes
        cdef int rc
        cdef Encoder encoder = self.encoders.pop() if self.encoders else Encoder()
        nbytes = encoder.measure(x)
        try:
            shmt_slots_prefer_few(self.open_seg(), nbytes > SMALL)
            if wait and timeout is not None:
                _deadline(timeout)  # a bad one is an error even where there is nothing to wait for
            rc = shmt_slot_try_claim(self.seg, &s)
            if rc != -_EAGAIN:
                self.check_verb(rc, CLAIM)
                self.pins += 1
            elif not wait:
                return False
            else:
                self.wait(CLAIM, 1, &word, &s, timeout)
                try:
                    encoder.check_sources()
                except BaseException:
                    shmt_slot_abort(self.seg, &s)
                    self.unpin()
                    raise
            self.fill(&s, encoder, NULL, nbytes, tag)
            return True
        finally:
            encoder.done()
            self.encoders.append(encoder)

    def send_message(self, cnp.ndarray message not None, timeout=None):
        """As send(), of what _codec.encode_to_array() made."""
        cdef shmt_slot s
        cdef uint64_t word, nbytes = cnp.PyArray_NBYTES(message)
        shmt_slots_prefer_few(self.open_seg(), nbytes > SMALL)
        self.wait(CLAIM, 1, &word, &s, timeout)
        self.fill(&s, None, <const uint8_t *>cnp.PyArray_DATA(message), nbytes, 0)

    cdef int fill(self, shmt_slot *s, Encoder encoder, const uint8_t *message, uint64_t nbytes,
                  uint64_t tag) except -1:
        """Writes what was measured, or a message that there is already, to a slot that was just claimed; publishes it
        and gives up the caller's pin."""
        try:
            if s.nbytes < nbytes:
                self.grow(s, nbytes, "an object")
            if encoder is not None:
                encoder.write(s.data)
            else:
                with nogil:
                    memcpy(s.data, message, nbytes)
            check(shmt_slot_publish(self.seg, s, nbytes, tag), "publishing a slot")
        except BaseException:
            shmt_slot_abort(self.seg, s)  # published or lost already: does nothing
            raise
        finally:
            self.unpin()
        return 0

    def receive(self, timeout=None):
        """The oldest object, waiting up to ``timeout`` seconds (None: for ever) for one. Its large arrays are views of
        the slot, which is released when the last of them dies; raises as Buffer.acquire(), and what decoding raises:
        the object is then gone."""
        cdef shmt_slot s
        cdef uint64_t word
        self.wait(ACQUIRE, 1, &word, &s, timeout)
        return self.take(&s)

    cdef object take(self, shmt_slot *s):
        """Decodes what was just acquired, and gives up the caller's pin."""
        cdef shmt_lease *lease
        cdef bint copy
        if not is_apart(s.data, s.nbytes):
            try:
                return decode(s.data, s.nbytes, NULL, NULL, True)
            finally:
                shmt_slot_release(self.seg, s)
                self.unpin()
        copy = self.must_copy()
        lease = self.lease_of(s, &s.word, 1)
        try:
            return decode(s.data, s.nbytes, lease, &LEASE, copy)
        finally:
            shmt_lease_drop(lease)

    cdef bint must_copy(self) noexcept:
        """Whether views of what was just acquired would keep more slots than may be kept."""
        if self.copies:
            return True
        if shmt_slots_reading(self.seg) <= self.keep:
            return False
        self.copied += 1
        return True

    def receive_kept(self, timeout=None):
        """As receive(), but the slot stays this process's until the fourth of what is returned is released: (tag,
        object, None or what decoding it raised, Kept)."""
        cdef shmt_slot s
        cdef uint64_t word
        cdef bint copy
        cdef object x = None, error = None
        cdef Kept kept = Kept.__new__(Kept)
        self.wait(ACQUIRE, 1, &word, &s, timeout)
        copy = is_apart(s.data, s.nbytes) and self.must_copy()
        kept.lease = self.lease_of(&s, &s.word, 1)
        try:
            x = decode(s.data, s.nbytes, kept.lease, &LEASE, copy)
        except BaseException as e:  # SystemExit too: whoever knows the tag must hear of it
            error = e
        return s.tag, x, error, kept

    def receive_parcel(self, timeout=None):
        """(tag, object); as receive(), but what would be views comes as a Parcel, to be opened later."""
        cdef shmt_slot s
        cdef uint64_t word
        cdef Parcel parcel
        self.wait(ACQUIRE, 1, &word, &s, timeout)
        if not is_apart(s.data, s.nbytes):
            return s.tag, self.take(&s)
        parcel = Parcel.__new__(Parcel)
        parcel.lease = self.lease_of(&s, &s.word, 1)
        parcel.data = s.data
        parcel.nbytes = s.nbytes
        return s.tag, parcel

    @property
    def reading(self):
        """Slots that somebody keeps: parcels, and views of what was in them."""
        return shmt_slots_reading(self.open_seg())

    # ---- parts of a slot that another process has claimed

    def write_part(self, uint32_t index, uint64_t word, uint64_t offset, x, bint is_last=False):
        """Copies an array or tensor, in C order, to ``offset`` of a slot that Landing.lend() has claimed. Behind the
        last one there will be room for what the slot's owner writes.

        Raises:
            LeaseLost: it is not claimed any more.
            Otherwise as Slot.reserve(); the TypeError of a dtype that has no place in a slot: see has_place().
        """
        cdef shmt_slot s
        cdef Source source
        cdef uint64_t nbytes
        cdef int d, rc
        cdef bint packed
        field, _ = known_dtype(x.dtype)
        if field is None:
            raise TypeError(f"{x.dtype} has no place in a slot")
        kept = (<Field>field).source(x, &source)
        nbytes = (<Field>field).itemsize
        for d in range(source.ndim):
            nbytes *= <uint64_t>source.shape[d]
        self.pin()
        try:
            check(shmt_slot_borrow(self.seg, index, word, &s), "writing to a slot of another")
            try:
                packed = source.packed
                with nogil:
                    if packed:
                        rc = shmt_slot_write_part(self.seg, &s, offset, source.data, nbytes)
                    else:
                        rc = shmt_slot_reserve_part(self.seg, &s, offset, nbytes)
                    if rc == 0 and is_last:
                        shmt_slot_reserve_part(self.seg, &s, offset + nbytes, BEHIND)  # its owner will ask again
                if rc < 0:
                    raise self._no_room(-rc, "a row of a batch", offset + nbytes)
                if not packed:
                    (<Field>field).move(s.data + offset, &source)
            finally:
                shmt_slot_give_back(self.seg, &s)
        finally:
            self.unpin()

    # ---- how much is done

    @property
    def _was_used(self):
        """Whether anything was ever sent; nothing here asks the kernel who lives, as stats() does."""
        return shmt_tasks_pushed(self.open_seg()) > 0

    def tasks_done(self, uint32_t n=1):
        """Counts n objects as dealt with. Raises ValueError if that would be more than were ever sent."""
        cdef int rc
        self.pin()
        try:
            rc = shmt_tasks_done(self.seg, n)
        finally:
            self.unpin()
        if rc == -_ERANGE:
            raise ValueError("task_done() called too many times")
        check(rc, "counting what is done")

    @property
    def unfinished(self):
        """Objects sent and not counted as done."""
        return shmt_tasks_unfinished(self.open_seg())

    def tasks_join(self):
        """Waits until all that was sent is counted as done."""
        cdef int rc = -_EINTR
        self.pin()
        try:
            while rc == -_EINTR or rc == -_ETIMEDOUT:
                PyErr_CheckSignals()
                with nogil:
                    rc = shmt_tasks_join(self.seg, shmt_now_ns() + STEP_NS)
        finally:
            self.unpin()
        check(rc, "waiting until all is done")


@cython.final
@cython.no_gc
cdef class Parcel:
    """An object that was received and not decoded yet. It keeps its slot; dropped unopened, it gives it back."""

    def __dealloc__(self):
        if self.lease != NULL:
            shmt_lease_drop(self.lease)

    def open(self, bint copy=False):
        """The object; once. ``copy``: its arrays are no views, and the slot is free again."""
        cdef shmt_lease *lease = self.lease
        if lease == NULL:
            raise ValueError("this parcel was opened before")
        self.lease = NULL
        try:
            return decode(self.data, self.nbytes, lease, &LEASE, copy)
        finally:
            shmt_lease_drop(lease)

    @property
    def range(self):
        """(slot, address, bytes of it that this process has mapped, how often it was trimmed); before it is opened."""
        cdef shmt_range r
        if self.lease == NULL:
            raise ValueError("this parcel was opened before")
        shmt_lease_range(self.lease, &r)
        return r.index, <uint64_t>r.data, r.nbytes, r.trims


@cython.final
@cython.no_gc
cdef class Kept:
    """A slot that was received. Dropped without release(), it stays taken: whoever looks at what a dead process held
    must find it, however the process came to its end."""

    def release(self):
        """The slot is free once no view of it is left. Twice does nothing."""
        cdef shmt_lease *lease = self.lease
        self.lease = NULL
        if lease != NULL:
            shmt_lease_drop(lease)
