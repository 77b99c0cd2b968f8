"""DataLoader: torch's own, except that its batches come in slots. The only room that imports torch.

A batch, from the dataset to the training loop:

    worker.py     torch's own worker loop, between queues of ours
    landing.py    collate and empty() make the batch's tensors in the slot itself
    transport.py  the slot is published; the main process acquires it
    iterator.py   torch's own iterator puts the batches in order; each is opened when it is its turn
    loader.py     the arguments
    shelf.py      the segments that one epoch leaves to the next

retrying.py has what it takes to compute a dead worker's batches again.
"""

from shmtensor.data.landing import empty
from shmtensor.data.loader import DataLoader

__all__ = ["DataLoader", "empty"]
