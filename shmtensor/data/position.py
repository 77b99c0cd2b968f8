"""Where in an epoch a loader is, so that another one can go on from there: state_dict() and load_state_dict().

The interface is that of torchdata's StatefulDataLoader. What is described is the last batch that was yielded, not those
that were fetched ahead of it. To go on, the sampler is begun from the random state with which this epoch began, and the
batches that were yielded are passed over. Each worker of a map-style dataset then begins with the random state that it
had after its last yielded batch; an iterable dataset is read again from its beginning, without yielding what was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from shmtensor.data import seeds

__all__ = ["Position", "generators_of", "pass_over"]

_VERSION = 1


def generators_of(loader: Any) -> list[torch.Generator]:
    """Those that decide the order of the samples, each once."""
    found = [loader.generator]
    for x in (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)):
        found.append(getattr(x, "generator", None))
    unique: list[torch.Generator] = []
    for x in found:
        if isinstance(x, torch.Generator) and not any(x is y for y in unique):
            unique.append(x)
    return unique


def pass_over(next_index: Callable[[], object], n: int) -> None:
    """Takes the indices of ``n`` batches that were yielded. StopIteration would come out of iter(), where nobody takes
    it for an error: a generator would end, or the loop around it."""
    for i in range(n):
        try:
            next_index()
        except StopIteration:
            raise ValueError(
                f"the state was taken after batch {n}, and this epoch has {i}: the dataset, or its sampler, is another"
            ) from None


def _same_setting(loader: Any) -> Iterator[tuple[str, Any]]:
    """What has to be the same for the one who goes on."""
    yield "schedule", loader.schedule
    yield "granularity", "sample" if loader._by_rows else "batch"
    yield "batch_size", loader.batch_size
    if not loader._is_dynamic:
        yield "num_workers", loader.num_workers


@dataclasses.dataclass
class Position:
    """Of the epoch that a loader began last.

    Attributes:
        begin: the random states, and those of the loader's generators, before the sampler was begun.
        base_seed: what the workers' seeds, or the batches', are made of.
        yielded: how many batches were.
        is_over: whether that was all.
        workers: the random state that each worker would have to begin with; None: that of its seeds.
    """

    begin: bytes | None = None
    generators: list[torch.Tensor] = dataclasses.field(default_factory=list)
    base_seed: int = 0
    yielded: int = 0
    is_over: bool = True
    workers: list[bytes | None] = dataclasses.field(default_factory=list)

    def began(self, loader: Any, base_seed: int, workers: list[bytes | None]) -> None:
        """An epoch, whose sampler will be begun now."""
        self.begin = seeds.taken()
        self.generators = [x.get_state() for x in generators_of(loader)]
        self.base_seed, self.workers = base_seed, workers
        self.yielded, self.is_over = 0, False

    def restart(self, loader: Any) -> None:
        """Sets the random states to what they were when the epoch began; the caller keeps those of the process."""
        if self.begin is not None:
            seeds.restore(self.begin)
        for x, state in zip(generators_of(loader), self.generators, strict=True):
            x.set_state(state)

    def dumped(self, loader: Any) -> dict[str, Any]:
        """For a checkpoint; between two epochs it says where the generators are, and no more."""
        out = {"version": _VERSION, **dict(_same_setting(loader)), "is_over": self.is_over, "yielded": self.yielded}
        if self.is_over:
            return {**out, "generators": [x.get_state() for x in generators_of(loader)]}
        return {
            **out,
            "generators": self.generators,
            "begin": None if self.begin is None else seeds.dumped(self.begin),
            "base_seed": self.base_seed,
            "workers": [None if x is None else seeds.dumped(x) for x in self.workers],
        }

    @classmethod
    def loaded(cls, state: dict[str, Any], loader: Any) -> Position:
        """What dumped() gave, if this loader can go on from there; else ValueError. Nothing is changed."""
        try:
            version = state.get("version") if isinstance(state, dict) else None
            if version != _VERSION:
                raise ValueError(f"not a state of a DataLoader: its version is {version!r}, not {_VERSION}")
            return cls._loaded(state, loader)
        except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as e:
            raise ValueError(f"a state of a DataLoader that is not whole: {e!r}") from e

    @classmethod
    def _loaded(cls, state: dict[str, Any], loader: Any) -> Position:
        for name, value in _same_setting(loader):
            if state[name] != value:
                raise ValueError(f"the state is of a DataLoader with {name}={state[name]!r}, not {value!r}")
        is_over, yielded, generators = state["is_over"], state["yielded"], state["generators"]
        if not isinstance(is_over, bool):
            raise ValueError(f"is_over has to be True or False, not {is_over!r}")
        _check_number("yielded", yielded)
        _check_generators(generators, generators_of(loader))
        if is_over:
            return cls(generators=generators, yielded=yielded)
        base_seed = state["base_seed"]
        _check_number("base_seed", base_seed)
        return cls(
            begin=seeds.loaded(state["begin"]),
            generators=generators,
            base_seed=base_seed,
            yielded=yielded,
            is_over=False,
            workers=_loaded_workers(state["workers"], loader),
        )


def _check_number(name: str, x: object) -> None:
    if type(x) is not int or not 0 <= x < 2**63:
        raise ValueError(f"{name} has to be an int that is not negative, not {x!r:.80}")


def _check_generators(states: list[torch.Tensor], generators: list[torch.Generator]) -> None:
    if len(states) != len(generators):
        raise ValueError(f"the state has {len(states)} generators; this loader and its samplers have {len(generators)}")
    for state, generator in zip(states, generators, strict=True):
        torch.Generator(generator.device).set_state(state)  # another one, to see whether it takes that


def _loaded_workers(states: list[Any], loader: Any) -> list[bytes | None]:
    """Of each worker; where each batch has its own seed, there are none."""
    if "num_workers" not in dict(_same_setting(loader)):
        if any(x is not None for x in states):
            raise ValueError("the state has random states of workers, but each batch is to have its own")
    elif len(states) != loader.num_workers:
        raise ValueError(f"the state has those of {len(states)} workers, not of {loader.num_workers}")
    return [None if x is None else seeds.loaded(x) for x in states]
