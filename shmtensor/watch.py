"""The thread behind fileno(), which waits in the C core (csrc/watch.c) until something that is watched is to be had."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmtensor._core import Watcher

__all__ = ["run"]

#: What a thread brings upon itself is not blocked: faulthandler is to see it.
_OWN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}


def run(watcher: Watcher) -> None:
    """Serves what is watched, with all signals blocked: they are for threads that wait for them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OWN)
    watcher.run()
