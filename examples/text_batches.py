"""Lines of text, each of another length, in batches: padded, or as a PackedSequence, by a collate_fn of one's own.

    python examples/text_batches.py [--text FILE]

Without FILE it reads the project's README. What comes out of shmtensor's DataLoader must be what comes out of torch's,
and all the lines must be there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils.data import Dataset

import shmtensor.data

README = Path(__file__).resolve().parents[1] / "README.md"


class Lines(Dataset[torch.Tensor]):
    """Line i as the numbers of its words."""

    def __init__(self, path: Path) -> None:
        self.lines = [words for line in path.read_text().splitlines() if (words := line.split())]
        self.words = ["", *sorted({word for line in self.lines for word in line})]  # number 0 is the padding
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.tensor([self.numbers[word] for word in self.lines[i]])


def padded(samples: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """torch.nn.utils.rnn.pad_sequence() would do; made by empty() the batch need not be copied to where it is sent."""
    lengths = torch.tensor([len(sample) for sample in samples])
    batch = shmtensor.data.empty((len(samples), int(lengths.max())), torch.int64)
    for row, sample in zip(batch, samples, strict=True):
        row[: len(sample)] = sample
        row[len(sample) :] = 0
    return batch, lengths


def packed(samples: list[torch.Tensor]) -> PackedSequence:
    """What torch.nn.LSTM and GRU take; it crosses with its four tensors."""
    return pack_sequence(samples, enforce_sorted=False)


def lines_of_padded(batch: tuple[torch.Tensor, torch.Tensor]) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(*batch, strict=True)]


def lines_of_packed(batch: PackedSequence) -> list[list[int]]:
    return [line.tolist() for line in unpack_sequence(batch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FILE", type=Path, default=README)
    dataset = Lines(parser.parse_args().text)

    def batches(kind: Any, collate_fn: Callable[..., Any]) -> Iterator[Any]:
        seed = torch.Generator().manual_seed(0)
        return iter(kind(dataset, 16, shuffle=True, num_workers=2, collate_fn=collate_fn, generator=seed))

    for collate_fn, lines_of in ((padded, lines_of_padded), (packed, lines_of_packed)):
        lines, space = [], 0
        theirs = batches(torch.utils.data.DataLoader, collate_fn)
        for ours, other in zip(batches(shmtensor.data.DataLoader, collate_fn), theirs, strict=True):
            assert all(map(torch.equal, ours, other)), "not the batch that torch's DataLoader yields"
            lines += [[dataset.words[number] for number in line] for line in lines_of(ours)]
            space += ours[0].numel()  # both have the words' numbers first
        assert sorted(lines) == sorted(dataset.lines), "not the lines of the file"
        words = sum(map(len, lines))
        print(f"{collate_fn.__name__}: {len(lines)} lines, {words} words, {1 - words / space:.0%} padding; as torch's")


if __name__ == "__main__":
    main()
