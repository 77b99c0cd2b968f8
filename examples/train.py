"""A plain training loop: a small CNN learns to tell squares from discs and crosses.

    python examples/train.py [--epochs N]

It runs twice from the same seed, with torch's DataLoader and with shmtensor's. Nothing else differs, and so the losses
are the same to the last bit: same batches, same order, same random numbers in the workers.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

import shmtensor.data

SIDE = 24
CLASSES = ("square", "disc", "cross")


class Shapes(Dataset[Any]):
    """Drawn when they are asked for: at a random place, of a random size, in noise."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        size = 4 + 4 * torch.rand(())
        x, y = 8 + (SIDE - 17) * torch.rand(2)
        across = (torch.arange(SIDE) - x).abs().expand(SIDE, SIDE)
        down = (torch.arange(SIDE) - y).abs()[:, None].expand(SIDE, SIDE)
        kind = i % len(CLASSES)
        if kind == 0:
            inside = torch.maximum(across, down) < size
        elif kind == 1:
            inside = across**2 + down**2 < size**2
        else:
            inside = (torch.minimum(across, down) < size / 4) & (torch.maximum(across, down) < size)
        image = shmtensor.data.empty((1, SIDE, SIDE), torch.float32)  # or torch.empty(), and one copy more
        image[0] = inside + 0.2 * torch.randn(SIDE, SIDE)
        return image, kind


def train(loader_type: Any, epochs: int) -> tuple[list[float], list[float], Any]:
    """Of each epoch the mean loss, and how many shapes were recognised (of 1)."""
    torch.manual_seed(0)
    loader = loader_type(Shapes(600), batch_size=20, shuffle=True, num_workers=2)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, len(CLASSES))),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses, shares = [], []
    for _ in range(epochs):
        total, right = 0.0, 0
        for images, labels in loader:
            output = model(images)
            loss = nn.functional.cross_entropy(output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            right += int((output.argmax(1) == labels).sum())
        losses.append(total / len(loader))
        shares.append(right / 600)
    return losses, shares, loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", metavar="N", type=int, default=3, help="default: 3")
    epochs = parser.parse_args().epochs
    torch.set_num_threads(1)  # for so small a model more are slower
    theirs, _, _ = train(torch.utils.data.DataLoader, epochs)
    ours, shares, loader = train(shmtensor.data.DataLoader, epochs)
    for epoch, (a, b, share) in enumerate(zip(theirs, ours, shares, strict=True)):
        print(f"epoch {epoch}: loss {a:.6f} with torch, {b:.6f} with shmtensor; {share:.0%} right")
    print(loader.stats()["verdict"])
    assert ours == theirs, "not the same losses"


if __name__ == "__main__":
    main()
