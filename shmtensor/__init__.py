"""shmtensor: tensors between processes as slot numbers.

    with st.TensorBuffer.create({"image": ((3, 224, 224), "uint8")}, slots=8) as buf: ...

TensorBuffer hands items from producers to consumers; SharedTensor is one array that processes share. Queue,
JoinableQueue, SimpleQueue and Pool are multiprocessing's, for any objects; get_context() has them in place of its own.
ProcessPoolExecutor is concurrent.futures', DataLoader is torch's.
"""

from typing import TYPE_CHECKING, Any

from shmtensor._core import Batch, Slot
from shmtensor._version import __version__
from shmtensor.buffer import TensorBuffer
from shmtensor.context import get_context
from shmtensor.deaths import Death, HeldSlot
from shmtensor.errors import (
    ClosedError,
    LeaseLost,
    PeersGone,
    ShmError,
    ShmLayoutError,
    ShmNoSpaceError,
    ShutDown,
    WorkerDied,
)
from shmtensor.executor import ProcessPoolExecutor
from shmtensor.pool import Pool
from shmtensor.queue import JoinableQueue, Queue, SimpleQueue
from shmtensor.spec import Field, Spec
from shmtensor.tensor import SharedTensor

if TYPE_CHECKING:
    from shmtensor.data import DataLoader as DataLoader

__all__ = [
    "Batch",
    "ClosedError",
    "Death",
    "Field",
    "HeldSlot",
    "JoinableQueue",
    "LeaseLost",
    "PeersGone",
    "Pool",
    "ProcessPoolExecutor",
    "Queue",
    "SharedTensor",
    "ShmError",
    "ShmLayoutError",
    "ShmNoSpaceError",
    "ShutDown",
    "SimpleQueue",
    "Slot",
    "Spec",
    "TensorBuffer",
    "WorkerDied",
    "__version__",
    "get_context",
]

if not TYPE_CHECKING:  # or a type checker would believe that any name is here

    def __getattr__(name: str) -> Any:
        """DataLoader needs torch, which all else does not: it is imported with its first use, and left out of
        ``import *``."""
        if name == "DataLoader":
            from shmtensor.data import DataLoader

            return DataLoader
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """DataLoader only where it can be had, as help() and inspect ask for every name that is here."""
    from importlib.util import find_spec

    return [*globals(), *(["DataLoader"] if find_spec("torch") else [])]
