"""Two processes that train one model, each with a loader of its own for its part of the samples.

    torchrun --standalone --nproc_per_node=2 examples/torchrun_gloo.py

DistributedSampler gives each rank other samples, DistributedDataParallel averages the gradients over gloo. Nothing of
this differs from torch's DataLoader. At the end of an epoch the ranks count together which samples they have seen.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, DistributedSampler

import shmtensor.data


class Points(Dataset[Any]):
    """Sample i: i, a point, and what a linear function makes of it."""

    def __init__(self, count: int) -> None:
        self.x = torch.rand(count, 8, generator=torch.Generator().manual_seed(0))
        self.y = self.x @ torch.arange(8.0)[:, None]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        return i, self.x[i], self.y[i]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", metavar="N", type=int, default=400, help="default: 400")
    parser.add_argument("--epochs", metavar="N", type=int, default=3, help="default: 3")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    dataset = Points(options.samples // ranks * ranks)  # else the sampler repeats some, so that each rank has as many
    sampler = DistributedSampler(dataset, seed=1)
    loader: Any = shmtensor.data.DataLoader(dataset, batch_size=10, sampler=sampler, num_workers=2)

    torch.manual_seed(2)
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)  # another order
        seen = torch.zeros(len(dataset), dtype=torch.int64)
        total = torch.zeros(())
        for indices, x, y in loader:
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen[indices] += 1
            total += loss.detach()
        own = int(seen.sum())
        dist.all_reduce(seen)
        dist.all_reduce(total)
        assert own == len(dataset) // ranks, "not this rank's share"
        assert (seen == 1).all(), "not every sample once"
        if rank == 0:
            mean = total.item() / len(loader) / ranks
            print(f"epoch {epoch}: loss {mean:.4f}; {len(dataset)} samples, each seen once, {own} of them by each rank")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
