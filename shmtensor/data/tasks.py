"""What torch's iterator takes for its workers' index queues: what is to be done goes out."""

from __future__ import annotations

from typing import Any

from torch.utils.data._utils.worker import _ResumeIteration

from shmtensor.data.results import Results
from shmtensor.data.retrying import Notes
from shmtensor.data.shelf import SPIN_US
from shmtensor.objects import ObjectSlots
from shmtensor.queue import Queue

__all__ = ["SharedTasks", "Tasks"]

_SHARE = 256  #: indices take little room, and each worker has a queue of them


class Tasks(Queue):
    """What one worker has to do. Its bound is that of the iterator, which has no more outstanding."""

    def __init__(self, depth: int, notes: Notes | None) -> None:
        slots = ObjectSlots.create(depth, copy=True, spin_us=SPIN_US, share=_SHARE)
        slots.can_be_set = False
        self._open(slots, 0)
        self.notes = notes

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.notes = None  # are the main process's

    def put(self, obj: object, block: bool = True, timeout: float | None = None) -> None:
        if self.notes is not None:
            self.notes.sent(obj)
        self.resend(obj)

    def resend(self, task: Any) -> None:
        """Sends one that is known already, as it went to somebody who is dead."""
        super().put(task)

    def again(self, worker: int, pid: int) -> tuple[bytes | None, list[Any], int]:
        """Of the replacement for a worker: (random state to begin with, tasks to be sent to it, how often the one was
        tried that it died of)."""
        assert self.notes is not None
        return self.notes.again(worker)


class SharedTasks(Tasks):
    """What all workers have to do, whoever comes first. Each task says how its random states are to be seeded."""

    def __init__(self, depth: int, notes: Notes | None, results: Results) -> None:
        super().__init__(depth, notes)
        self.base_seed = 0
        self._results = results

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(obj, _ResumeIteration):  # no worker has anything to begin anew
            self._results.put_back((obj, None))
            if self.notes is not None:
                self.notes.sent(obj)
                self.notes.acknowledged()
        else:
            super().put(obj, block, timeout)

    def again(self, worker: int, pid: int) -> tuple[bytes | None, list[Any], int]:
        """What nobody has taken yet is taken back, for all that is outstanding will be sent: each death would leave
        more in the queue than the workers could ever do, if they die faster than they work."""
        self._slots.reclaim()
        self._slots.drain()
        return super().again(worker, pid)

    def resend(self, task: Any) -> None:
        super().resend(task if task is None else (*task, self.base_seed, self._results.epoch))
