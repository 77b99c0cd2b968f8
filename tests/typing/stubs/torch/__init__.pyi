"""As much of torch as shmtensor's annotations name: real torch takes mypy half a minute to read."""

class Tensor:
    def sum(self) -> Tensor: ...
