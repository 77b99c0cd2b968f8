"""DataLoader: torch's own, except that its batches come in slots. The only room that imports torch.

A batch, from the dataset to the training loop:

    tasks.py      the worker takes what is to be done from its queue, or from that of all
    worker.py     torch's own worker loop, between queues of ours
    landing.py    collate and empty() make the batch's tensors in the slot itself
    results.py    the slot is published; the main process acquires it
    iterator.py   torch's own iterator puts the batches in order; each is opened when it is its turn
    loader.py     the arguments

context.py gives torch's iterator those queues, and the processes; inprocess.py is for num_workers=0. shelf.py has the
segments that one epoch leaves to the next, and depth.py says how many slots they need; retrying.py has what it takes to
compute a dead worker's batches again, position.py to go on in the middle of an epoch, and seeds.py the random states
that both need.

With granularity="sample" a batch is made by several workers; rows.py tells how, and with assembly.py and filling.py it
takes the place of tasks.py, landing.py and half of results.py.

For a GPU there is placement.py: what becomes of a batch once it is opened. pinning.py knows which slots are
page-locked, device.py copies batches to the device, flight.py keeps those that are being copied, structure.py goes
through one, and cuda.py is all that is asked of CUDA itself.
"""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ModuleNotFoundError("shmtensor.data needs torch: pip install 'shmtensor[torch]'", name="torch")

from shmtensor.data.flight import record_stream
from shmtensor.data.landing import empty
from shmtensor.data.loader import DataLoader

__all__ = ["DataLoader", "empty", "record_stream"]
