# _cshmt.pxd - csrc/shmt.h as Cython sees it: declarations only. tests/test_lint.py holds the two against each other.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "shmt.h" nogil:
    int64_t SHMT_FOREVER
    int64_t shmt_now_ns()

    ctypedef struct shmt_segment:
        pass
    ctypedef struct shmt_lease:
        pass

    enum:
        SHMT_GROW
        SHMT_PREFAULT
        SHMT_HUGE_PAGES
        SHMT_APART
        SHMT_DROP
        SHMT_SHRUNK

    ctypedef struct shmt_config:
        const char *name
        uint64_t slot_nbytes
        uint64_t slot_stride
        uint64_t slot_least
        uint32_t share
        uint32_t slots
        uint32_t members
        uint32_t flags
        uint32_t producers
        uint32_t alignment
        uint64_t seq_first
        const void *meta
        uint32_t meta_nbytes

    ctypedef struct shmt_info:
        const char *name
        const void *meta
        uint8_t *data
        uint64_t data_nbytes
        uint64_t total_nbytes
        uint64_t slot_nbytes
        uint64_t slot_stride
        uint64_t identity
        uint32_t meta_nbytes
        uint32_t slots
        uint32_t members
        uint32_t flags
        int fd

    int shmt_segment_create(const shmt_config *config, shmt_segment **out)
    int shmt_segment_attach(const char *name, shmt_segment **out)
    int shmt_segment_attach_fd(int fd, shmt_segment **out)
    const shmt_info *shmt_segment_info(const shmt_segment *seg)
    void shmt_segment_close(shmt_segment *seg)
    void shmt_segment_fail(shmt_segment *seg)
    bint shmt_segment_is_closed(const shmt_segment *seg)
    void shmt_segment_hold(shmt_segment *seg)
    void shmt_segment_drop(shmt_segment *seg)
    int shmt_segment_unlink(const shmt_segment *seg)
    int shmt_segment_prefault(const shmt_segment *seg, uint64_t offset, uint64_t nbytes)
    int shmt_sweep(bint dry_run, void (*seen)(void *arg, const char *name, int stale) noexcept, void *arg)
    uint64_t shmt_memory_left()

    enum:
        SHMT_PRODUCER
        SHMT_CONSUMER

    ctypedef struct shmt_member_info:
        uint32_t id
        uint32_t pid
        uint32_t roles
        bint alive
        int64_t joined_ns

    int shmt_member_join(shmt_segment *seg)
    uint32_t shmt_member_id(const shmt_segment *seg)
    int shmt_member_info_get(shmt_segment *seg, uint32_t id, shmt_member_info *out)
    int shmt_reclaim(shmt_segment *seg)

    enum:
        SHMT_NO_SLOT

    ctypedef struct shmt_death:
        uint32_t member
        uint32_t pid
        uint32_t slot
        bint reading
        uint32_t tries
        uint64_t gen
        uint64_t tag
        int64_t joined_ns
        int64_t found_ns

    ctypedef struct shmt_death_cursor:
        uint64_t position
        uint64_t missed
        int64_t unfinished_ns
        uint64_t unfinished_end

    void shmt_death_begin(shmt_segment *seg, shmt_death_cursor *cursor)
    int shmt_death_next(shmt_segment *seg, shmt_death_cursor *cursor, shmt_death *out)

    ctypedef struct shmt_slot:
        uint8_t *data
        uint64_t word
        uint64_t nbytes
        uint64_t tag
        uint32_t index
        uint32_t tries
        uint32_t generation

    int shmt_slot_try_claim(shmt_segment *seg, shmt_slot *out)
    int shmt_slot_claim(shmt_segment *seg, int64_t deadline_ns, shmt_slot *out)
    int shmt_slot_try_claim_many(shmt_segment *seg, uint32_t n, uint64_t *words, shmt_slot *first)
    int shmt_slot_claim_many(shmt_segment *seg, uint32_t n, int64_t deadline_ns, uint64_t *words, shmt_slot *first)
    int shmt_slot_reserve(shmt_segment *seg, shmt_slot *slot, uint64_t nbytes)
    int shmt_slot_publish(shmt_segment *seg, const shmt_slot *slot, uint64_t nbytes, uint64_t tag)
    int shmt_slot_publish_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n,
                               uint64_t nbytes)
    bint shmt_slot_is_ours(const shmt_slot *slot)
    int shmt_slot_abort(shmt_segment *seg, const shmt_slot *slot)
    int shmt_slot_abort_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n)

    int shmt_slot_borrow(shmt_segment *seg, uint32_t index, uint64_t word, shmt_slot *out)
    int shmt_slot_reserve_part(shmt_segment *seg, const shmt_slot *slot, uint64_t offset, uint64_t nbytes)
    int shmt_slot_write_part(shmt_segment *seg, const shmt_slot *slot, uint64_t offset, const void *data,
                             uint64_t nbytes)
    void shmt_slot_give_back(const shmt_segment *seg, const shmt_slot *slot)

    int shmt_slot_try_acquire(shmt_segment *seg, shmt_slot *out)
    int shmt_slot_acquire(shmt_segment *seg, int64_t deadline_ns, shmt_slot *out)
    int shmt_slot_try_acquire_many(shmt_segment *seg, uint32_t n, uint64_t *words, shmt_slot *first)
    int shmt_slot_acquire_many(shmt_segment *seg, uint32_t n, int64_t deadline_ns, uint64_t *words, shmt_slot *first)
    int shmt_slot_release(shmt_segment *seg, const shmt_slot *slot)
    int shmt_slot_release_many(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n)
    int shmt_slot_requeue(shmt_segment *seg, const shmt_slot *slot)
    uint32_t shmt_slot_tries(uint64_t word)

    int shmt_trim(shmt_segment *seg, uint64_t *out)

    void shmt_spin_set(shmt_segment *seg, uint32_t spin_us)

    int shmt_lease_take(shmt_segment *seg, const shmt_slot *first, const uint64_t *words, uint32_t n, shmt_lease **out)
    void shmt_lease_hold(shmt_lease *lease)
    void shmt_lease_drop(shmt_lease *lease)
    uint32_t shmt_lease_count(const shmt_lease *lease)

    ctypedef struct shmt_range:
        uint8_t *data
        uint64_t nbytes
        uint64_t trims
        uint32_t index

    void shmt_lease_range(const shmt_lease *lease, shmt_range *out)
    int shmt_lease_publish(shmt_lease *lease, uint64_t nbytes, uint64_t tag)

    ctypedef struct shmt_watcher:
        pass
    ctypedef struct shmt_watch:
        pass

    int shmt_watch_begin(shmt_segment *seg, bint anybody, shmt_watch **out, shmt_watcher **to_run)
    void shmt_watcher_run(shmt_watcher *watcher)
    void shmt_watcher_unrun(shmt_watcher *watcher)
    int shmt_watch_fd(const shmt_watch *watch)
    bint shmt_watch_is_ours(const shmt_watch *watch)
    void shmt_watch_settle(shmt_watch *watch)
    void shmt_watch_close(shmt_watch *watch)
    void shmt_watch_end(shmt_watch *watch)

    void shmt_shutdown(shmt_segment *seg)
    void shmt_slots_prefer_few(shmt_segment *seg, bint few)
    void shmt_slots_count(const shmt_segment *seg, uint32_t *ready, uint32_t *free_)
    uint32_t shmt_slots_reading(const shmt_segment *seg)
    uint64_t shmt_tasks_pushed(shmt_segment *seg)
    uint64_t shmt_tasks_unfinished(shmt_segment *seg)
    int shmt_tasks_done(shmt_segment *seg, uint32_t n)
    int shmt_tasks_join(shmt_segment *seg, int64_t deadline_ns)

    ctypedef struct shmt_stats:
        uint64_t claims
        uint64_t publishes
        uint64_t free
        uint64_t writing
        uint64_t ready
        uint64_t reading
        uint64_t claim_waits
        uint64_t acquire_waits
        uint64_t spins
        uint64_t sleeps
        uint64_t wakes
        uint64_t ready_high
        uint64_t redelivered
        uint64_t dropped
        uint64_t reclaimed
        uint64_t reserved_nbytes
        uint64_t members
        uint64_t shut

    int shmt_stats_get(shmt_segment *seg, shmt_stats *out)

    ctypedef struct shmt_slot_info:
        uint32_t state
        uint32_t owner
        uint64_t gen

    int shmt_slot_info_get(shmt_segment *seg, uint32_t index, shmt_slot_info *out)

    const char *shmt_debug_reason(const shmt_segment *seg)

    void shmt_copy(void *to, const void *source, size_t nbytes)
    void shmt_copy_strided(void *to, const void *source, int ndim, const int64_t *shape, const int64_t *strides,
                           size_t itemsize)
