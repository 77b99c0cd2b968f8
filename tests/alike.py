"""Whether two objects that came from two transports are the same: values, types, and who is whom among their parts."""

from __future__ import annotations

import enum
import functools
import sys
import types
from typing import Any

import numpy as np

__all__ = ["difference"]

_LONG = 1024  #: bytes and characters from where on two texts that were one must be one again
_ONE = (type, types.FunctionType, types.BuiltinFunctionType, enum.Enum, np.ufunc, type(Ellipsis), type(NotImplemented))


def difference(a: Any, b: Any) -> str | None:
    """Where `a` and `b` differ; None if they do not. Not recursive: it may be called for what is deep."""
    there: dict[int, int] = {}
    back: dict[int, int] = {}
    keep: list[Any] = []  # what has an id here must not die
    todo = [("it", a, b)]
    while todo:
        where, a, b = todo.pop()
        if type(a) is not type(b):
            return f"{where}: {type(a)} and {type(b)}: {a!r:.200} and {b!r:.200}"
        if isinstance(a, _ONE):
            if a is not b:
                return f"{where}: {a!r} is not {b!r}"
            continue
        if _has_identity(a):
            if there.get(id(a), id(b)) != id(b) or back.get(id(b), id(a)) != id(a):
                return f"{where}: {a!r:.200} is in both, but not in the same places"
            if id(a) in there:
                continue
            there[id(a)], back[id(b)] = id(b), id(a)
            keep += [a, b]
        parts = _parts(a, b)
        if isinstance(parts, str):
            return f"{where}: {parts}: {a!r:.300} and {b!r:.300}"
        for name, x, y in parts:
            todo.append((f"{where}{name}", x, y))
    return None


def _has_identity(x: Any) -> bool:
    if x is None or (isinstance(x, (bool, int, float)) and type(x).__module__ == "builtins"):
        return False
    if type(x) in (str, bytes):
        return len(x) >= _LONG
    return type(x) not in (tuple, frozenset) or len(x) > 0  # of the empty ones there is one


def _parts(a: Any, b: Any) -> list[tuple[str, Any, Any]] | str:
    """What remains to be compared; or what is different."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(a, torch.Tensor):
        return _parts_of_tensor(torch, a, b) or _attributes(a, b)
    if isinstance(a, np.ma.MaskedArray) and a is not np.ma.masked:
        if a.hardmask != b.hardmask:
            return "hard masks"
        masked = [(".data", a.data, b.data), (".mask", np.array(a.mask), np.array(b.mask))]
        return [*masked, (".fill_value", np.array(a.fill_value), np.array(b.fill_value))]
    if isinstance(a, np.ndarray):
        found = _parts_of_array(a, b)
        return found if isinstance(found, str) else found + _attributes_of(a, b)
    if isinstance(a, np.dtype):
        return [] if _dtype(a) == _dtype(b) else "dtypes"
    if isinstance(a, np.generic):
        if _dtype(a.dtype) != _dtype(b.dtype):
            return "dtypes"
        found = _parts_of_array(np.array(a), np.array(b))
        return "values" if found else []
    if isinstance(a, float):
        return [] if np.float64(a).tobytes() == np.float64(b).tobytes() else "values"
    if isinstance(a, (str, bytes, bytearray, int)):
        return "values" if a != b else _attributes(a, b)
    if isinstance(a, dict):
        if len(a) != len(b):
            return "lengths"
        pairs = list(zip(a.items(), b.items(), strict=True))
        out = [(f"'s key {i}", x[0], y[0]) for i, (x, y) in enumerate(pairs)]
        out += [(f"[{x[0]!r:.20}]", x[1], y[1]) for x, y in pairs]
        out += [(".default_factory", a.default_factory, b.default_factory)] if hasattr(a, "default_factory") else []
        return out + _attributes_of(a, b)
    if isinstance(a, (list, tuple, set, frozenset)) or hasattr(a, "maxlen"):
        if len(a) != len(b) or getattr(a, "maxlen", 0) != getattr(b, "maxlen", 0):
            return "lengths"
        out = [(f"[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
        return out + _attributes_of(a, b)
    if isinstance(a, BaseException):
        names = ("args", "__cause__", "__context__", "__suppress_context__")
        return [(f".{name}", getattr(a, name), getattr(b, name)) for name in names] + _attributes_of(a, b)
    if isinstance(a, functools.partial):
        return [(".func", a.func, b.func), (".args", a.args, b.args), (".keywords", a.keywords, b.keywords)]
    if isinstance(a, types.MethodType) or type(a) is type(iter([])):
        x, y = a.__reduce__(), b.__reduce__()
        return [(" reduced", x[1:], y[1:])] if type(a) is not types.MethodType else []
    attributes = _attributes_of(a, b)
    if attributes or type(a).__repr__ is object.__repr__ or hasattr(a, "__dict__"):
        return attributes
    return [] if repr(a) == repr(b) else "values"


def _attributes(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    return _attributes_of(a, b)


def _attributes_of(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """Of __dict__ and of __slots__."""
    out = [(".__dict__", dict(a.__dict__), dict(b.__dict__))] if hasattr(a, "__dict__") else []
    for cls in type(a).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and cls.__module__ not in sys.stdlib_module_names:
                out.append((f".{name}", getattr(a, name, "(no such)"), getattr(b, name, "(no such)")))
    return out


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _dtype(d: np.dtype[Any]) -> Any:
    """All that a dtype says; dtypes are equal that differ in some of it."""
    own = (d.type, d.isalignedstruct, d.itemsize, d.alignment, dict(d.metadata or {}))
    if d.subdtype is not None:
        return own, _dtype(d.subdtype[0]), d.shape
    if d.names is not None:
        assert d.fields is not None
        return own, [(name, _dtype(f[0]), *f[1:]) for name, f in d.fields.items()], d.names
    return own, d.str, repr(d)


def _parts_of_array(a: Any, b: Any) -> list[tuple[str, Any, Any]] | str:
    if a.shape != b.shape:
        return "shapes"
    if _dtype(a.dtype) != _dtype(b.dtype):
        if a.dtype.isnative or a.dtype.names is not None or a.dtype.newbyteorder("=") != b.dtype:
            return f"dtypes {a.dtype!r} {a.dtype.metadata} and {b.dtype!r} {b.dtype.metadata}"
        a = a.astype(b.dtype)  # pickle's protocol 4 makes the order of bytes the machine's, ours keeps it
    if a.flags.writeable != b.flags.writeable:
        return f"writeable: {a.flags.writeable} and {b.flags.writeable}"
    if b.flags.fnc and not a.flags.fnc:
        return "not in Fortran's order"
    return _contents(np.asarray(a), np.asarray(b))


def _contents(a: Any, b: Any) -> list[tuple[str, Any, Any]] | str:
    if a.dtype.names is not None:  # field by field: what lies between them is nobody's
        out: list[tuple[str, Any, Any]] = []
        for name in a.dtype.names:
            found = _contents(a[name], b[name])
            if isinstance(found, str):
                return found
            out += found
        return out
    if a.dtype == object:
        return [(f"[{i}]", x, y) for i, (x, y) in enumerate(zip(a.reshape(-1), b.reshape(-1), strict=True))]
    if a.dtype.kind == "T":
        return [] if a.tolist() == b.tolist() else "values"
    if a.tobytes() == b.tobytes():
        return []
    if a.dtype.char in "gG" and np.array_equal(a, b, equal_nan=True):  # 6 of its 16 bytes are nobody's
        return []
    return "values"


# ---- tensors ---------------------------------------------------------------------------------------------------------


def _parts_of_tensor(torch: Any, a: Any, b: Any) -> str | None:
    for what in ("dtype", "layout", "shape", "device", "requires_grad", "is_leaf"):
        if getattr(a, what) != getattr(b, what):
            return what
    if a.layout is not torch.strided:
        if a.layout is torch.sparse_coo and a.is_coalesced() != b.is_coalesced():
            return "coalesced"
        a, b = a.to_dense(), b.to_dense()
    if _is_dense(b) and _strides(a) != _strides(b):
        return f"strides {a.stride()} and {b.stride()}"
    return None if _bytes(torch, a) == _bytes(torch, b) else "values"


def _strides(x: Any) -> list[int]:
    """Those that matter."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def _is_dense(x: Any) -> bool:
    """Whether each element has a place of its own, and none lies between them."""
    step = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride != step:
            return False
        step *= size
    return bool(x.numel())


def _bytes(torch: Any, x: Any) -> bytes:
    flat = (
        x.detach().resolve_conj().resolve_neg().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)
    )
    return bytes(flat.numpy())
