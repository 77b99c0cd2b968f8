"""All that is asked of CUDA. The tests put something else in its place, so nothing here decides anything."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data._utils import pin_memory

__all__ = ["Cuda", "runtime"]

_PORTABLE = 1  #: cudaHostRegisterPortable: pinned for every device of the process, as torch's own pinned memory is


class Cuda:
    """The calls, by way of torch."""

    def is_available(self) -> bool:
        return bool(torch.cuda.is_available())

    # ---- page-locked memory

    def register(self, address: int, nbytes: int) -> None:
        """Page-locks memory. Raises RuntimeError; nothing is locked then."""
        code = int(torch.cuda.cudart().cudaHostRegister(address, nbytes, _PORTABLE))
        if code != 0:
            self._forget_error()
            raise RuntimeError(f"cudaHostRegister() of {nbytes} bytes failed with error {code}")

    def unregister(self, address: int) -> None:
        if int(torch.cuda.cudart().cudaHostUnregister(address)) != 0:
            self._forget_error()

    def _forget_error(self) -> None:
        """The runtime remembers what has failed until somebody asks, and torch asks after the next kernel, whose error
        it is then taken for: so here is a kernel."""
        with suppress(RuntimeError):
            torch.empty(1, device="cuda").fill_(0)

    def pinned(self, batch: Any) -> Any:
        """As torch's thread does it: what is not pinned yet is copied, and a pin_memory() method is called."""
        return pin_memory.pin_memory(batch)

    # ---- copies and their order

    def stream(self, device: torch.device) -> Any:
        """A new one; it has a ``device``, with its number."""
        return torch.cuda.Stream(device)

    def current_stream(self, device: torch.device) -> Any:
        return torch.cuda.current_stream(device)

    def copy(self, x: torch.Tensor, stream: Any) -> torch.Tensor:
        """Issued on the stream; done when an event that is recorded there afterwards is."""
        with torch.cuda.stream(stream):
            return x.to(stream.device, non_blocking=True)

    def hand_over(self, tensors: Sequence[torch.Tensor], event: Any, stream: Any) -> None:
        """What another stream makes of these tensors, up to the event, is there for whatever is issued on this one from
        now on; and their memory is not used again before that is done."""
        stream.wait_event(event)
        for x in tensors:
            x.record_stream(stream)

    def record(self, stream: Any) -> Any:
        """An event behind all that was issued on the stream so far."""
        event = torch.cuda.Event()
        event.record(stream)
        return event

    def is_done(self, event: Any) -> bool:
        return bool(event.query())


runtime = Cuda()
