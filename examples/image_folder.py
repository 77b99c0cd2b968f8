"""Photographs from a folder, one directory for each class: decoded in worker processes, and cropped at random.

    python examples/image_folder.py [--images DIR]

DIR/cat/7.jpg is one of class "cat". Without DIR: photographs that installed packages ship. Needs Pillow. The dataset is
written twice: as one would for torch, and writing what was decoded straight into the batch's memory. Epochs are timed
in turns, and must yield the same. Decoding takes nearly all of the time, so that the rates differ little.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

import shmtensor.data
from shmtensor.cli.photos import find  # JPEG files, and no more than 64

SIDE = 224


class ImageFolder(Dataset[Any]):
    def __init__(self, paths: list[Path], crops: int) -> None:
        self.paths, self.crops = paths, crops
        self.classes = sorted({path.parent.name for path in paths})

    def __len__(self) -> int:
        return self.crops

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        path = self.paths[i % len(self.paths)]
        with Image.open(path) as file:
            return self.as_tensor(random_crop(file.convert("RGB"))), self.classes.index(path.parent.name)

    def as_tensor(self, picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class InPlace(ImageFolder):
    def as_tensor(self, picture: Image.Image) -> torch.Tensor:
        out = shmtensor.data.empty((3, SIDE, SIDE), torch.uint8)  # in the batch; with torch's DataLoader torch.empty()
        out.numpy()[...] = np.asarray(picture).transpose(2, 0, 1)
        return out


def random_crop(picture: Image.Image) -> Image.Image:
    side = random.uniform(0.5, 1.0) * min(picture.size)  # torch has seeded `random` for this worker
    left, top = random.uniform(0, picture.width - side), random.uniform(0, picture.height - side)
    return picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", metavar="DIR", type=Path, help="with a directory of JPEG files for each class")
    parser.add_argument("--crops", metavar="N", type=int, default=32, help="samples in an epoch (default: 32)")
    parser.add_argument("--epochs", metavar="N", type=int, default=3, help="to time, of each (default: 3)")
    options = parser.parse_args()
    paths = find(options.images)
    print(f"{len(paths)} photographs, classes:", *ImageFolder(paths, 0).classes)
    arguments: dict[str, Any] = {"batch_size": 8, "shuffle": True, "num_workers": 2, "persistent_workers": True}
    loaders: dict[str, Any] = {
        "torch": torch.utils.data.DataLoader(ImageFolder(paths, options.crops), **arguments),
        "shmtensor": shmtensor.data.DataLoader(ImageFolder(paths, options.crops), **arguments),
        "shmtensor, in place": shmtensor.data.DataLoader(InPlace(paths, options.crops), **arguments),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    sums = dict.fromkeys(loaders, 0)  # over all pixels and labels, in the order in which they came
    for epoch in range(1 + options.epochs):  # in the first one the workers start; it is not timed
        for name in loaders if epoch % 2 else reversed(loaders):
            torch.manual_seed(epoch)
            began = time.perf_counter()
            for images, labels in loaders[name]:
                sums[name] = zlib.crc32(labels.numpy(), zlib.crc32(images.numpy(), sums[name]))
            rates[name] += [options.crops / (time.perf_counter() - began)] if epoch else []
    for name in loaders:
        print(f"{name:20} {statistics.median(rates[name]):8.1f} images/s   checksum {sums[name]:08x}")
    assert len(set(sums.values())) == 1, "the loaders do not yield the same batches"


if __name__ == "__main__":
    main()
