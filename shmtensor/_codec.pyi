"""Types of the extension module _codec; tests/test_typing.py holds them against it."""

from typing import Any, final

from numpy import uint8
from numpy.typing import NDArray

@final
class Encoder: ...

@final
class Decoder: ...

def encode_to_array(x: object, encoder: Encoder | None = None) -> NDArray[uint8]: ...
def decode_from_array(message: NDArray[uint8], copy: bool = False) -> Any: ...
