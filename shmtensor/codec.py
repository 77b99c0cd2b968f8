"""What the codec asks of pickle: the classes of a message, and the objects that have no form of their own.

An object is encoded in one of two ways (see _codec.pyx). The fast one knows exact types: None, bool, int, float,
complex, str, bytes, numpy scalars, arrays and tensors, in dicts with text keys, lists, tuples, named tuples and
dataclasses. One object of any other type, or a cycle, sends the whole message the other way: pickle protocol 5, whose
stream lies in the same slot, and beside it the buffers that pickle hands out of band.
"""

from __future__ import annotations

import copyreg
import dataclasses
import importlib
import io
import pickle
import sys
from collections import ChainMap
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from shmtensor._views import Field
from shmtensor.spec import DType, Placed, resolve_dtype

__all__ = [
    "Pickler",
    "class_name",
    "field_of",
    "find_class",
    "is_bare",
    "is_found",
    "is_plain_dataclass",
    "is_plain_namedtuple",
    "resolve_dtype",
]


_EXTRA: dict[Any, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]


def field_of(dtype: DType) -> Field:
    """An array of any shape of this dtype, as the views know it."""
    return Field(Placed("", dtype, (), None, 0, dtype.itemsize, -1))


def is_bare(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype says no more than those that equal it do: no metadata, no alignment, no numpy.record."""
    if dtype.metadata is not None or dtype.isalignedstruct:
        return False
    if dtype.subdtype is not None:
        return is_bare(dtype.subdtype[0])
    return dtype.fields is None or (dtype.type is np.void and all(is_bare(f[0]) for f in dtype.fields.values()))


# ---- classes of the fast way -----------------------------------------------------------------------------------------

_BY_DEFAULT = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
_DEFAULTS = {name: getattr(object, name, None) for name in _BY_DEFAULT}


def is_plain_namedtuple(cls: type) -> bool:
    """What collections.namedtuple or typing.NamedTuple made, and not a subclass with a mind of its own."""
    return (
        cls.__bases__ == (tuple,)
        and type(getattr(cls, "_fields", None)) is tuple
        and "__getnewargs__" in cls.__dict__
        and not any(name in cls.__dict__ for name in _BY_DEFAULT if name != "__getnewargs__")
        and cls not in copyreg.dispatch_table
        and cls not in _EXTRA
    )


def is_plain_dataclass(cls: type) -> bool:
    """A dataclass whose instances are their __dict__, as pickle's own default takes them to be."""
    return (
        dataclasses.is_dataclass(cls)
        and type(cls) is type
        and cls.__new__ is object.__new__  # or pickle would call it
        and cls.__dictoffset__ != 0
        and not any("__slots__" in base.__dict__ for base in cls.__mro__[:-1])
        and all(getattr(cls, name, None) is default for name, default in _DEFAULTS.items())
        and cls.__mro__[1:] == tuple(b for b in cls.__mro__[1:] if b is object or dataclasses.is_dataclass(b))
        and cls not in copyreg.dispatch_table
        and cls not in _EXTRA
    )


def class_name(cls: type) -> bytes | None:
    """How another process finds the class; None if it cannot: pickle says why."""
    name = f"{cls.__module__}:{cls.__qualname__}".encode()
    try:
        return name if find_class(name) is cls else None
    except (ImportError, AttributeError, KeyError, ValueError):
        return None


def is_found(module: str, name: str, cls: type) -> bool:
    """Whether a module still has this class under this name: cells are run again, modules are loaded again. And whether
    multiprocessing has not been told since how to pickle it."""
    return getattr(sys.modules.get(module), name, None) is cls and cls not in _EXTRA


def find_class(name: bytes) -> Any:
    module, _, path = name.decode().partition(":")
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


# ---- pickle, with its buffers in the slot ----------------------------------------------------------------------------


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray[Any, Any]:
    flat = np.frombuffer(buffer, dtype) if len(buffer) else np.empty(0, dtype)
    return flat.reshape([shape[d] for d in order]).transpose(np.argsort(order))


def _tensor(buffer: Any, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...], grad: bool) -> Any:
    import torch

    kind = getattr(torch, dtype)
    if 0 in shape:
        return torch.empty_strided(shape, stride, dtype=kind).requires_grad_(grad)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(kind).as_strided(shape, stride).requires_grad_(grad)


def _sparse(indices: Any, values: Any, shape: tuple[int, ...], coalesced: bool, grad: bool) -> Any:
    # torch's own way of putting it together again keeps every such tensor until the next torch.load().
    import torch

    out = torch.sparse_coo_tensor(indices, values, shape, is_coalesced=coalesced, check_invariants=False)
    return out.requires_grad_(grad)


def _compressed(layout: str, parts: tuple[Any, Any, Any], shape: tuple[int, ...], grad: bool) -> Any:
    import torch

    kind = getattr(torch, layout)
    return torch.sparse_compressed_tensor(*parts, shape, layout=kind, check_invariants=False).requires_grad_(grad)


def _parameter(data: Any, grad: bool) -> Any:
    import torch

    return torch.nn.Parameter(data, grad)


def _storage(data: Any) -> Any:
    return data.untyped_storage()


def _typed_storage(data: Any, dtype: Any) -> Any:
    import torch

    return torch.TypedStorage(wrap_storage=data.untyped_storage(), dtype=dtype, _internal=True)


def _subclass(data: Any, cls: type, state: dict[str, Any]) -> Any:
    out = data.as_subclass(cls)
    out.__dict__.update(state)
    return out


class _Bytes:
    """An array's memory as bytes that may be written to, whether the array's may or not."""

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        self.x = x  # which has the memory
        self.__array_interface__ = {
            "data": (x.ctypes.data, False),
            "shape": (x.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


class Pickler(ForkingPickler):
    """multiprocessing's pickler, except that CPU tensors and arrays lie in the slot: none is shared by descriptor."""

    def __init__(self, out: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        # Past ForkingPickler's own __init__, which takes no buffer_callback.
        super(ForkingPickler, self).__init__(out, 5, buffer_callback=buffers.append)
        self.dispatch_table: Any = ChainMap(_EXTRA, copyreg.dispatch_table)

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            if obj.dtype.hasobject or obj.dtype.itemsize == 0 or (obj.flags.forc and obj.flags.writeable):
                return NotImplemented  # numpy's own reduction is out of band, or has to be pickled
            packed = obj if obj.flags.forc else np.array(obj, order="K")
            order = tuple(np.argsort([-s for s in packed.strides], kind="stable").tolist())
            # A buffer that is read-only would come back so, and what is received is its receiver's own.
            raw = np.asarray(_Bytes(packed))
            return _array, (pickle.PickleBuffer(raw.data), obj.dtype, obj.shape, order)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor):
            return reduce_tensor(torch, obj)
        if torch is not None and isinstance(obj, (torch.UntypedStorage, torch.TypedStorage)):
            return reduce_storage(torch, obj)
        return NotImplemented


def reduce_storage(torch: Any, x: Any) -> Any:
    """torch's own reduction would move the sender's storage to shared memory, and send a descriptor."""
    typed = isinstance(x, torch.TypedStorage)
    raw = x._untyped_storage if typed else x  # not by its methods: each of them warns that the class is deprecated
    if raw.device.type != "cpu":
        return NotImplemented
    if typed:
        return _typed_storage, (torch.empty(0, dtype=torch.uint8).set_(raw), x.dtype)
    return _storage, (torch.empty(0, dtype=torch.uint8).set_(x),)


def _reduced_sparse(torch: Any, x: Any) -> Any:
    """A sparse tensor as its parts, which are ordinary ones; None: of a layout that we do not know."""
    grad, x = x.requires_grad, x.detach()
    if x.layout is torch.sparse_coo:
        return _sparse, (x._indices(), x._values(), tuple(x.shape), x.is_coalesced(), grad)
    layout = str(x.layout).removeprefix("torch.")
    if layout in ("sparse_csr", "sparse_bsr"):
        return _compressed, (layout, (x.crow_indices(), x.col_indices(), x.values()), tuple(x.shape), grad)
    if layout in ("sparse_csc", "sparse_bsc"):
        return _compressed, (layout, (x.ccol_indices(), x.row_indices(), x.values()), tuple(x.shape), grad)
    return None


def reduce_tensor(torch: Any, x: Any) -> Any:
    """As pickle's reducer_override: how a tensor travels. torch's own reductions would share memory by descriptor."""
    if x.requires_grad and not x.is_leaf:
        raise RuntimeError(
            "a tensor that requires grad and is no leaf cannot be sent: detach() it, or send what it was made of"
        )
    if x.device.type == "cuda":
        return NotImplemented  # torch's handle
    if x.layout is not torch.strided and type(x) is torch.Tensor and not x.__dict__ and x.device.type == "cpu":
        reduced = _reduced_sparse(torch, x)
        if reduced is not None:
            return reduced
    if x.layout is not torch.strided or x.device.type != "cpu" or x.is_quantized or x.is_nested:
        return x.__reduce_ex__(5)  # sparse: its parts, which come back here; quantized: its storage, as bytes
    if type(x) is torch.nn.Parameter and not x.__dict__:
        return _parameter, (x.detach(), x.requires_grad)
    if type(x) is not torch.Tensor or x.__dict__:
        if type(x).__reduce_ex__ is not torch.Tensor.__reduce_ex__ or type(x) is torch.nn.Parameter:
            return x.__reduce_ex__(5)
        with torch._C.DisableTorchFunctionSubclass():
            return _subclass, (x.as_subclass(torch.Tensor), type(x), dict(x.__dict__))
    grad = x.requires_grad
    x = x.detach().resolve_conj().resolve_neg()
    order = sorted(range(x.dim()), key=lambda d: -x.stride(d))
    stride, step = [0] * x.dim(), 1
    for d in reversed(order):
        stride[d] = step
        step *= max(x.shape[d], 1)
    flat = np.empty(0, np.uint8)
    if x.numel():
        # Packed by numpy: a torch operation hangs in a process that was forked after OpenMP had run.
        alike = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[x.itemsize]
        packed = x.view(alike).numpy().transpose(order)
        packed = packed if packed.flags.c_contiguous else packed.copy(order="C")
        flat = packed.reshape(-1).view(np.uint8)
    name = str(x.dtype).removeprefix("torch.")
    return _tensor, (pickle.PickleBuffer(flat.data), name, tuple(x.shape), tuple(stride), grad)
