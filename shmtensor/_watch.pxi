# _watch.pxi - fileno(): how a buffer comes to be watched, and how the thread that does it is started.

@cython.final
cdef class Watcher:
    """Serves up to 127 buffers of this process, from a thread."""

    def run(self):
        """Returns when nothing is watched any more."""
        with nogil:
            shmt_watcher_run(self.watcher)


cdef int watch_begin(Buffer buffer) except -1:
    """Gives the buffer a descriptor of this process's own."""
    cdef shmt_watch *watch = NULL
    cdef shmt_watcher *to_run = NULL
    cdef Watcher watcher = Watcher.__new__(Watcher)
    check(shmt_watch_begin(buffer.open_seg(), buffer.waits_for_anybody, &watch, &to_run), "watching a buffer")
    if to_run != NULL:
        watcher.watcher = to_run
        try:
            # From here, and not by threading.Thread: a Ctrl-C between two steps would leave it open whether it runs.
            start_new_thread(run_watcher, (watcher,))
        except BaseException:
            shmt_watcher_unrun(to_run)
            shmt_watch_end(watch)
            raise
    if buffer.watched != NULL:  # the parent's, in a forked child
        shmt_watch_end(buffer.watched)
    buffer.watched = watch
    return 0
