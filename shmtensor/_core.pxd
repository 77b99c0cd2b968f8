# _core.pxd - the fields of the extension types, each with its reason to be there.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from shmtensor._codec cimport Encoder
from shmtensor._cshmt cimport shmt_death_cursor, shmt_lease, shmt_segment, shmt_slot, shmt_watch, shmt_watcher
from shmtensor._views cimport Field, Hold, Place, Source

cdef enum:
    BATCH_MAX = 64  # slots in one batch: keeps the words inside the object
    ALIASED_MAX = 2  # slots that a dataset may keep of what empty() gave it


cdef class Segment:
    cdef shmt_segment *seg  # NULL: never opened, or closed and let go
    cdef int pins           # calls without the GIL and claimed slots that use `seg` now; it is let go at 0
    cdef bint closing       # close() came while pins > 0
    cdef object __weakref__

    cdef shmt_segment *open_seg(self) except NULL
    cdef int let_go(self) except -1
    cdef int pin(self) except -1
    cdef void unpin(self) noexcept


cdef class Array(Segment):
    cdef readonly Field field
    cdef Place at           # fixed: the shape is


cdef class Buffer(Segment):
    cdef dict table             # path -> Field
    cdef tuple fields           # in the spec's order
    cdef Field single           # the only field of a spec without names, else None
    cdef uint64_t item_nbytes   # bytes of an item's fixed part
    cdef uint64_t stride        # bytes from slot to slot; an acquired batch outlives this handle's mapping
    cdef uint64_t table_nbytes  # bytes of the shape table
    cdef bint flat              # the spec is a dict without dicts in it
    cdef bint all_numpy         # numpy has every field's dtype
    cdef bint dynamic           # some field has a shape table
    cdef public bint waits_for_anybody  # also for who is not there yet: no PeersGone
    cdef readonly object spec
    cdef shmt_death_cursor deaths_read  # how far this process has read the log of deaths
    cdef public object _watch   # deaths.Watch: who wants to hear of deaths; None: nobody
    cdef shmt_watch *watched    # NULL: nobody has asked for a descriptor
    cdef list spare             # by slot: the arrays of its last writer that nobody else kept; None: closed

    cdef int wait(self, int verb, uint32_t n, uint64_t *words, shmt_slot *out, object timeout) except -1
    cdef int wait_slowly(self, int verb, uint32_t n, uint64_t *words, shmt_slot *out, object timeout,
                         int rc) except -1
    cdef void settle(self) noexcept
    cdef int check_verb(self, int rc, int verb) except -1
    cdef object spare_take(self, uint32_t index, object handed_out, Field f, const Place *at)
    cdef int start(self, Slot slot) except -1
    cdef int grow(self, shmt_slot *s, uint64_t nbytes, object what) except -1
    cdef int grow_all(self, Batch batch) except -1
    cdef shmt_lease *lease_of(self, const shmt_slot *first, const uint64_t *words, uint32_t n) except NULL
    cdef int lend(self, Slot slot, bint strict) except -1
    cdef int check_seen_by(self, bint torch) except -1
    cdef object item(self, shmt_slot *s, bint copy, bint torch, bint requeue=*)
    cdef object arrays(self, shmt_slot *s, Hold hold, bint copy, bint torch)
    cdef object item_field(self, Field f, shmt_slot *s, Hold hold, bint copy, bint torch)


cdef class Watcher:
    cdef shmt_watcher *watcher


cdef class Objects(Buffer):
    cdef list encoders             # that nobody uses just now
    cdef readonly uint32_t keep    # slots that views may keep; above it whoever receives has copies
    cdef readonly bint copies      # always
    cdef readonly uint64_t copied  # objects that were copied lest their views keep too many slots

    cdef bint encode(self, object x, object timeout, uint64_t tag, bint wait) except -1
    cdef int fill(self, shmt_slot *s, Encoder encoder, const uint8_t *message, uint64_t nbytes,
                  uint64_t tag) except -1
    cdef object take(self, shmt_slot *s)
    cdef bint must_copy(self) noexcept


cdef class Kept:
    cdef shmt_lease *lease


cdef class Parcel:
    cdef shmt_lease *lease    # NULL: it was opened
    cdef uint8_t *data
    cdef uint64_t nbytes


cdef class Landing:
    cdef Objects slots
    cdef shmt_lease *lease    # of the claimed slot, one reference of ours; NULL: none is claimed
    cdef shmt_slot s          # it
    cdef uint64_t used        # bytes of it, from its start
    cdef dict runs            # (dtype, shape) -> [where the next array of this kind lies, how many more]
    cdef Py_ssize_t rows      # how many of a kind a new run has room for
    cdef Encoder encoder
    cdef uint64_t nbytes      # of the message that was written; 0: none was
    cdef uint64_t tag         # its tag
    cdef shmt_lease *aliased[ALIASED_MAX]  # of slots that were still looked at when their messages went out
    cdef int n_aliased
    cdef readonly uint64_t copied  # messages that went out as a copy because of that

    cdef void forget_aliased(self) noexcept
    cdef void let_go(self) noexcept
    cdef object make(self, tuple shape, object dtype, uint64_t rows, object timeout)
    cdef uint64_t measure_place(self, Field f, tuple shape, Place *at) except? 0xffffffffffffffff
    cdef bint claim(self, object timeout) except -1
    cdef uint64_t take(self, uint64_t nbytes, object shape) except 0
    cdef int publish_copy(self, object timeout) except -1


cdef class Held:
    cdef Buffer buffer
    cdef shmt_slot s         # the slot, or a batch's first
    cdef uint64_t *words     # what the words of its slots were when they became ours
    cdef int n               # slots
    cdef shmt_lease *lease   # of what was acquired
    cdef Hold hold           # base of the views, made with the first one
    cdef object handed_out   # a writer's array, or a list of them
    cdef int busy            # copies under way: the slot cannot be ended
    cdef int state
    cdef bint strict
    # Only a Slot's; here because a freelist serves classes of one size.
    cdef uint64_t used       # bytes of the item so far; grows with unbounded fields
    cdef int64_t last        # shape-table entry of the unbounded field that was placed last; -1: none yet
    cdef uint64_t last_at    # where that is: written again, it may grow in its place

    cdef object label(self)
    cdef int check_held(self) except -1
    cdef int check_writing(self) except -1
    cdef Hold base(self)
    cdef object array(self, Field f, const Place *at)
    cdef object tensor(self, Field f, const Place *at)
    cdef int begin_write(self) except -1
    cdef void end_write(self) noexcept
    cdef int check_idle(self) except -1
    cdef int finish(self, int state) except -1
    cdef int do_abort(self) except -1
    cdef int do_release(self) except -1


cdef class Slot(Held):
    cdef Field field(self, object key)
    cdef object view(self, Field f)
    cdef int write_field(self, Field f, object x) except -1
    cdef int write_item(self, object item) except -1
    cdef int make_room(self, Field f, object shape) except -1
    cdef int do_publish(self) except -1
    cdef int publish_or_abort(self) except -1


cdef class Batch(Held):
    cdef uint64_t own_words[BATCH_MAX]

    cdef Field place(self, object key, Place *out)
    cdef int do_publish(self, int count) except -1
