# _buffer.pxi - a segment with slots: the verbs, and how a wait comes back to Python.

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
        self.spare = [None] * shmt_segment_info(self.seg).slots
        shmt_death_begin(self.seg, &self.deaths_read)
        shmt_spin_set(self.open_seg(), spin_us)

    def __dealloc__(self):
        if self.watched != NULL:
            shmt_watch_end(self.watched)

    cdef int let_go(self) except -1:
        self.spare = None  # they keep the mapping
        Segment.let_go(self)
        self._watch_closed()
        return 0

    # ---- waiting

    cdef int wait(self, int verb, uint32_t n, uint64_t *words, shmt_slot *out, object timeout) except -1:
        """Tries, and waits without the GIL if there is nothing. Returns how many slots were taken."""
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
            if self.watched != NULL and verb == ACQUIRE:
                self.settle()
            return rc
        return self.wait_slowly(verb, n, words, out, timeout, rc)

    cdef int wait_slowly(self, int verb, uint32_t n, uint64_t *words, shmt_slot *out, object timeout,
                         int rc) except -1:
        cdef shmt_segment *seg = self.seg
        cdef int64_t deadline = _deadline(timeout)
        cdef int64_t step = 0
        cdef object look = None  # to be able to say at the end what has not moved
        self.pins += 1
        try:
            while rc == -_EAGAIN or rc == -_EINTR or (rc == -_ETIMEDOUT and step < deadline) \
                    or (rc == -_EOWNERDEAD and self.waits_for_anybody):
                # In steps: a signal that comes just before the wait interrupts nothing.
                PyErr_CheckSignals()
                step = min(deadline, shmt_now_ns() + STEP_NS)
                with nogil:
                    if verb == CLAIM:
                        rc = shmt_slot_claim_many(seg, n, step, words, out)
                    else:
                        rc = shmt_slot_acquire_many(seg, n, step, words, out)
                if rc == -_ETIMEDOUT and look is None and step < deadline and timeout is not None:
                    look = self._look()
                if self._watch is not None and rc <= 0:
                    self._watch.tell(self)
        except BaseException:
            self.unpin()
            raise
        if verb == ACQUIRE:
            self.settle()
        if rc > 0:
            return rc  # still pinned: somebody may have closed us meanwhile
        self.unpin()
        if rc == -_ETIMEDOUT:
            raise self._timed_out("claim" if verb == CLAIM else "acquire", timeout, look)
        return self.check_verb(rc, verb)

    cdef int check_verb(self, int rc, int verb) except -1:
        cdef const char *reason
        if rc >= 0:
            return rc
        what = "claiming a slot" if verb == CLAIM else "acquiring an item"
        if rc == -_EUCLEAN and self.seg != NULL:
            reason = shmt_debug_reason(self.seg)
            if reason != NULL:
                what += f" ({reason.decode()})"
        raise error_from(-rc, what)

    # ---- producer

    cdef int start(self, Slot slot) except -1:
        """A slot that was just claimed becomes a writer's, and with it the caller's pin."""
        slot.buffer = self
        slot.words = &slot.s.word
        slot.n = 1
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
        self.wait(CLAIM, 1, &word, &slot.s, timeout)
        self.start(slot)
        return slot

    def try_claim(self):
        """A free slot to write into, or None at once if there is none. Raises what claim() raises but TimeoutError."""
        cdef Slot slot = Slot.__new__(Slot)
        cdef int rc = shmt_slot_try_claim(self.open_seg(), &slot.s)
        if rc == -_EAGAIN:
            return None
        self.check_verb(rc, CLAIM)
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
        self.wait(CLAIM, 1, &word, &s, timeout)
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
        batch.words = batch.own_words
        batch.n = self.wait(verb, min(n, BATCH_MAX), batch.words, &batch.s, timeout)
        batch.buffer = self
        if verb == CLAIM:
            batch.state = WRITING  # and has the pin
            self.grow_all(batch)
        else:
            batch.lease = self.lease_of(&batch.s, batch.words, batch.n)
            batch.state = READING
        return batch

    cdef int grow_all(self, Batch batch) except -1:
        cdef shmt_slot s = batch.s
        cdef int _i
        if not shmt_segment_info(self.seg).flags & SHMT_GROW:
            return 0
        for _i in range(batch.n):
            self.grow(&s, self.item_nbytes, "an item")
            s.index += 1
            s.data += shmt_segment_info(self.seg).slot_stride
        return 0

    cdef object spare_take(self, uint32_t index, object handed_out, Field f, const Place *at):
        """The array that the slot's last writer in this process had, if it is the one wanted: as many as were handed
        out before it are skipped. It saves making and freeing an array per item, which takes longer than a claim."""
        cdef object kept, out
        cdef Py_ssize_t k
        if self.spare is None:
            return None
        kept = self.spare[index]
        if kept is None:
            return None
        if type(kept) is list:
            k = 0 if handed_out is None else len(<list>handed_out) if type(handed_out) is list else 1
            out = (<list>kept)[k] if k < len(<list>kept) else None
            if out is None or not f.is_array(<cnp.ndarray>out, at):
                return None
            (<list>kept)[k] = None
        else:
            if handed_out is not None or not f.is_array(<cnp.ndarray>kept, at):
                return None
            out = kept
            self.spare[index] = None
        return out

    # ---- consumer

    cdef shmt_lease *lease_of(self, const shmt_slot *first, const uint64_t *words, uint32_t n) except NULL:
        """A lease on what was just acquired; it keeps the mapping from here on, so the caller's pin goes."""
        cdef shmt_lease *lease = NULL
        # Less than the spec's fixed part is a lie, and the rest of a growing slot may never have been reserved.
        cdef int rc = -_EUCLEAN if first.nbytes < self.item_nbytes else 0
        if rc == 0:
            rc = shmt_lease_take(self.seg, first, words, n, &lease)
        if rc < 0:
            shmt_slot_release_many(self.seg, first, words, n)
        self.unpin()
        check(rc, "acquiring an item")
        return lease

    cdef int lend(self, Slot slot, bint strict) except -1:
        """A slot that was just acquired becomes a reader's."""
        slot.buffer = self
        slot.n = 1
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
        self.wait(ACQUIRE, 1, &word, &slot.s, timeout)
        self.lend(slot, strict)
        return slot

    def try_acquire(self, *, bint strict=False):
        """The oldest published item, or None at once if there is none. Raises as acquire(), but no TimeoutError."""
        cdef Slot slot = Slot.__new__(Slot)
        cdef int rc = shmt_slot_try_acquire(self.open_seg(), &slot.s)
        self.settle()
        if rc == -_EAGAIN:
            return None
        self.check_verb(rc, ACQUIRE)
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
        self.wait(ACQUIRE, 1, &word, &s, timeout)
        return self.item(&s, copy, torch)

    cdef int check_seen_by(self, bint torch) except -1:
        """Raises before an item is taken if one of its fields could not be shown."""
        cdef Field f
        for f in self.fields:
            f.check_seen_by(torch)
        return 0

    cdef object item(self, shmt_slot *s, bint copy, bint torch, bint requeue=False):
        """An acquired slot as arrays. If one cannot be made, for want of memory, the item is handed out again; what is
        wrong with the item itself, only with ``requeue``: else it would come back for ever."""
        cdef Hold hold = hold_new(self.lease_of(s, &s.word, 1), &LEASE)
        try:
            return self.arrays(s, hold, copy, torch)
        except BaseException as e:
            if self.seg != NULL and (requeue or isinstance(e, MemoryError)):
                shmt_slot_requeue(self.seg, s)  # and what `hold` then releases is not its own any more
            raise

    cdef object arrays(self, shmt_slot *s, Hold hold, bint copy, bint torch):
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
            if not copy:
                return view
            try:
                return view.clone()
            except RuntimeError as e:  # torch's word for it
                raise MemoryError(f"{f.label}: {str(e).partition(chr(10))[0]}") from e
        return f.array_copy(&at) if copy else f.array(&at, hold, True)

    def get_many(self, int n, timeout=None, *, bint copy=False, bint torch=False):
        """Between 1 and ``n`` items, oldest first, as a list of what get() returns; waits only for the first."""
        cdef shmt_slot s
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        out = [self.get(timeout, copy=copy, torch=torch)]
        while len(out) < n and self.seg != NULL and shmt_slot_try_acquire(self.seg, &s) == 0:
            self.pins += 1
            try:
                out.append(self.item(&s, copy, torch, True))
            except Exception:
                break  # what there is must not be lost with it; it raises when it is the first of a call
        self.settle()
        return out

    # ---- to be told that there is something

    def fileno(self):
        """A descriptor that is readable while there is something to acquire, or the end to be learnt: for select, poll,
        epoll, asyncio's add_reader() and multiprocessing.connection.wait(). It stays the same, and valid, as long as
        this object lives; after close() it is readable for ever. Nobody may read from it, write to it or close it.

        Readable means, as of any descriptor, a moment ago: another process may have been quicker. So use try_acquire()
        or ``timeout=0``. The first call starts a thread, which serves all that this process watches.

        Raises:
            ClosedError: this handle was closed, and has no descriptor.
            OSError: no descriptor is to be had.
            RuntimeError: no thread is to be had.
        """
        if self._watch_fd < 0:
            watch_begin(self)
        return shmt_watch_fd(self.watched)

    @property
    def _watch_fd(self):
        """-1: nobody has asked for a descriptor in this process."""
        return shmt_watch_fd(self.watched) if self.watched != NULL and shmt_watch_is_ours(self.watched) else -1

    def _watch_closed(self):
        """The descriptor, if there is one, is readable from now on."""
        if self.watched != NULL:
            shmt_watch_close(self.watched)

    cdef void settle(self) noexcept:
        """After each acquire, whatever came of it: is there nothing left?"""
        if self.watched != NULL:
            shmt_watch_settle(self.watched)

    # ---- the whole buffer

    def shutdown(self):
        """Ends the stream for everybody: claims raise ShutDown; acquires drain what was published, then do so too."""
        shmt_shutdown(self.open_seg())

    def trim(self):
        """Gives the memory that slots have grown, and that lies in free ones, back to the system; returns how many
        bytes that were. Slots in use keep theirs, and what is free grows again when an item needs it. May be called
        while others are at work, for whom each free slot is taken for a moment. 0 where slots do not grow."""
        cdef uint64_t given = 0
        cdef int rc
        self.pin()
        try:
            with nogil:
                rc = shmt_trim(self.seg, &given)
        finally:
            self.unpin()
        check(rc, "giving memory back")
        return given

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

    def _deaths(self):
        """New records of the log of deaths: (member, joined_ns, pid, slot or None, reading, tries, gen, tag)."""
        cdef shmt_death death
        out = []
        if self.seg != NULL:
            while shmt_death_next(self.seg, &self.deaths_read, &death) == 0:
                slot = None if death.slot == SHMT_NO_SLOT else death.slot
                out.append((death.member, death.joined_ns, death.pid, slot, death.reading, death.tries, death.gen,
                            death.tag))
        return out

    @property
    def _deaths_missed(self):
        return self.deaths_read.missed

    def stats(self):
        """Figures since the buffer was created, as a flat dict of ints; docs/protocol.md,
        "Figures", says what each is. Reading them stops nobody."""
        cdef shmt_stats s
        check(shmt_stats_get(self.open_seg(), &s), "reading figures")
        return dict(s)

    def _count(self):
        """(items that wait to be acquired, free slots), without a system call."""
        cdef uint32_t ready, free_
        shmt_slots_count(self.open_seg(), &ready, &free_)
        return ready, free_

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
        """(state, owner, generation) of each slot; states: 0 free, 1 writing, 2 ready, 3 reading."""
        cdef shmt_slot_info info
        cdef uint32_t i
        out = []
        for i in range(shmt_segment_info(self.open_seg()).slots):
            check(shmt_slot_info_get(self.seg, i, &info), "reading a slot's state")
            out.append((info.state, info.owner, info.gen))
        return out
