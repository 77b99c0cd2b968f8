"""Names, shapes and dtypes -> byte offsets in a slot.

One job: read what a user says an item looks like, check it, and lay it out. Nothing here knows about
processes or shared memory, and torch is never imported: its dtypes are recognised by name.

    0            shape table, if any dimension is dynamic: for each such field, in order, int64[1 + ndim] =
                 offset of its data in the slot (0 = not written yet), then its actual dimensions
    aligned 64   the fields of known or bounded size, in the user's order, each aligned to 64 bytes
    nbytes       end of the fixed part; unbounded fields are placed behind it when they are written
"""

from __future__ import annotations

import difflib
import errno
import json
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np

from shmtensor.errors import ShmLayoutError

ALIGN = 64  # bytes: a cache line, and enough for every vector load
MAX_NBYTES = 2**47  # bytes: the user address space of x86-64
MAX_NDIM = 32
MAX_FIELDS = 4096
MAX_DEPTH = 32  # of dicts in a spec, and of records in a structured dtype
MAX_JSON = 1 << 20  # bytes
VERSION = 1  # of the JSON form and of the layout rules, since offsets are recomputed and not written down


@dataclass(frozen=True, slots=True)
class DType:
    """An element type, as resolve_dtype() returns it; ``resolve_dtype(d.name) == d``."""

    name: str  #: numpy's and torch's; of numpy-only types the code (">i4", "S10"), or JSON if structured
    itemsize: int  #: bytes
    dlpack: tuple[int, int] | None = None  #: (type code, bits), lanes 1; None where DLPack has no such type
    torch: str | None = None  #: name of the torch module's attribute; None where torch has no such type
    _numpy: np.dtype[Any] | None = field(default=None, compare=False, repr=False)

    @property
    def numpy(self) -> np.dtype[Any] | None:
        """The numpy dtype, or None. bfloat16 and float8 have one once the program has imported ml_dtypes."""
        if self._numpy is None and (module := sys.modules.get("ml_dtypes")) is not None:
            scalar = getattr(module, self.name, None)
            return None if scalar is None else np.dtype(scalar)
        return self._numpy


def _first_class() -> Iterator[DType]:
    codes = {"int": 0, "uint": 1, "float": 2, "complex": 5, "bool": 6}
    names = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
    for name in names.split():
        dt = np.dtype(name)
        yield DType(name, dt.itemsize, (codes[name.rstrip("0123456789")], 8 * dt.itemsize), name, dt)
    yield DType("complex32", 4, (5, 32), "complex32")
    yield DType("bfloat16", 2, (4, 16), "bfloat16")
    for kind, code in {"e4m3fn": 10, "e4m3fnuz": 11, "e5m2": 12, "e5m2fnuz": 13, "e8m0fnu": 14}.items():
        yield DType(f"float8_{kind}", 1, (code, 8), f"float8_{kind}")
    yield DType("float4_e2m1fn_x2", 1, None, "float4_e2m1fn_x2")  # no way in but uint8 and tensor.view()


_KNOWN = {d.name: d for d in _first_class()}
_TORCH_ALIASES = dict(half="float16", float="float32", double="float64", short="int16", int="int32", long="int64")
_TORCH_ALIASES.update(chalf="complex32", cfloat="complex64", cdouble="complex128")
# numpy's codes of fixed-size types without Python objects; a name out of shared memory must match this.
_TIME = r"[mM]8(?:\[[0-9]{0,10}[A-Za-z]{1,2}\])?"
_CODE = re.compile(rf"[<>|]?(?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SUV][0-9]{{1,10}}|{_TIME})")


def resolve_dtype(x: Any) -> DType:
    """The DType that ``x`` names.

    ``x`` is a DType, a name of numpy's or torch's ("uint8", "bfloat16", "torch.half"; where they disagree,
    as on "float", it is numpy's unless it begins with "torch."), a torch dtype, or what np.dtype() takes.

    Raises:
        TypeError: no dtype, or its elements cannot lie in shared memory (Python objects, no fixed size).
    """
    if isinstance(x, DType):
        return x
    if type(x).__name__ == "dtype" and not isinstance(x, np.dtype):
        x = str(x)  # "torch.uint8"
    if isinstance(x, str):
        if x.startswith("torch."):
            name = x.removeprefix("torch.")
            x = _TORCH_ALIASES.get(name, name)
            if x not in _KNOWN:
                raise TypeError(f"dtype torch.{name:.80} is not supported{_did_you_mean(name, _KNOWN)}")
    elif x is None:
        raise TypeError("dtype is missing (None)")
    try:
        if isinstance(x, str) and (x in _KNOWN or x.startswith("[")):
            return _from_name(x)
        dt: np.dtype[Any] = np.dtype(x)
    except (TypeError, ValueError, SyntaxError, OverflowError, AttributeError, RecursionError) as e:
        hint = _did_you_mean(x, _KNOWN) if isinstance(x, str) else ""
        raise TypeError(f"{x!r:.80} is no dtype of numpy or torch{hint}") from e
    return _from_numpy(dt)


def _from_name(name: str) -> DType:
    """The DType of a canonical name and of little else: safe for names out of shared memory."""
    if name in _KNOWN:
        return _KNOWN[name]
    return _from_numpy(np.lib.format.descr_to_dtype(_descr(json.loads(name) if name.startswith("[") else name)))


def _descr(node: Any, depth: int = 0) -> Any:
    """numpy's description of a dtype (its "descr") from the JSON form, where tuples have become lists."""
    if isinstance(node, str) and _CODE.fullmatch(node):
        return node
    if not isinstance(node, list) or depth >= MAX_DEPTH:
        raise TypeError(f"no description of a dtype: {node!r:.80}")
    return [(name, _descr(t, depth + 1), *(_dims(s, "shape") for s in shape)) for name, t, *shape in node]


def _from_numpy(dt: np.dtype[Any]) -> DType:
    if dt.hasobject:
        raise TypeError(
            f"dtype {dt} holds Python objects, which mean nothing in another process: use a dtype of fixed "
            "size (numbers, 'S16', 'U16'), or pickle the object into bytes of a dynamic uint8 field"
        )
    if dt.shape:
        raise TypeError(f"dtype {dt} has a shape of its own: put {dt.shape} at the end of the field's shape")
    if dt.isnative and dt.name in _KNOWN:
        return _KNOWN[dt.name]
    if dt.isbuiltin == 2:  # registered by another package; its code would read back as void
        raise TypeError(f"dtype {dt} is not supported: use uint{8 * dt.itemsize} and view the array as {dt}")
    if dt.itemsize == 0:
        raise TypeError(f"dtype {dt!r} has no size: say how many characters or bytes, as in 'S16'")
    try:
        if dt.names is None:
            name, descr = dt.str.lstrip("|"), _descr(dt.str)
        else:
            name = json.dumps(np.lib.format.dtype_to_descr(dt), separators=(",", ":"))
            descr = _descr(json.loads(name))
        plain: np.dtype[Any] = np.lib.format.descr_to_dtype(descr)
        if plain != dt:
            raise ValueError("its description is not complete")
    except (TypeError, ValueError) as e:
        raise TypeError(f"dtype {dt} is not supported: {e}") from e
    return DType(name, plain.itemsize, None, None, plain)


def _dims(shape: Any, what: str, *, dynamic: bool = False) -> tuple[Any, ...]:
    """``shape`` as a tuple of ints >= 0, and of None where ``dynamic``."""
    hint = " or None (dynamic)" if dynamic else ""
    dims = shape if isinstance(shape, (tuple, list)) else (shape,)
    if len(dims) > MAX_NDIM:
        raise ValueError(f"{what} has {len(dims)} dimensions; at most {MAX_NDIM} are possible")
    for n in dims:
        if n is None and dynamic and dims is shape:
            continue
        if isinstance(n, (bool, np.bool_)) or not hasattr(type(n), "__index__"):
            raise TypeError(f"{what} must be an int or a tuple of ints{hint}, not {shape!r:.80}")
        if operator.index(n) < 0:
            raise ValueError(f"{what} must consist of ints >= 0{hint}, not {shape!r:.80}")
    return tuple(None if n is None else operator.index(n) for n in dims)


def _nbytes(dims: Iterable[int | None], itemsize: int) -> int:
    """Bytes of an array with these dims, None counting as 1; ValueError if it or its strides overflow."""
    size, empty = itemsize, False
    for n in dims:
        empty |= n == 0
        size *= n or 1  # as numpy does, refuse (0, 2**60): its strides do not fit
    if size > MAX_NBYTES:
        raise ValueError(f"an array of shape {tuple(dims)!s:.80} is larger than {MAX_NBYTES} bytes")
    return 0 if empty else size


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Field:
    """One array of an item: ``Field((None, 4), "float32", max_shape=(100, 4))``."""

    shape: tuple[int | None, ...]  #: None where the size differs from item to item
    dtype: DType  #: the element type; ``dtype.name`` is numpy's and torch's name for it
    max_shape: tuple[int, ...] | None  #: bounds a dynamic shape; a dynamic field without it is unbounded

    def __init__(
        self,
        shape: SupportsIndex | Sequence[SupportsIndex | None],
        dtype: Any,
        max_shape: SupportsIndex | Sequence[SupportsIndex] | None = None,
    ) -> None:
        """``shape`` has at most 32 ints >= 0 or None (dynamic); an int means one dimension. ``dtype`` is what
        resolve_dtype() takes. ``max_shape`` repeats the fixed dimensions and bounds the dynamic ones.

        Raises:
            TypeError: a dimension is no int, or the dtype cannot lie in shared memory.
            ValueError: a negative dimension, a max_shape that contradicts shape, or more than 2**47 bytes.
        """
        if isinstance(shape, (str, np.dtype, type, DType)):
            raise TypeError(f"shape must be an int or a tuple, not {shape!r:.80}; the order is (shape, dtype)")
        dims = _dims(shape, "shape", dynamic=True)
        bound = None if max_shape is None else _dims(max_shape, "max_shape")
        if bound is not None:
            if None not in dims:
                raise ValueError(f"max_shape is given, but shape {dims} has no dynamic dimension (None)")
            if len(bound) != len(dims) or any(d not in (None, b) for d, b in zip(dims, bound, strict=True)):
                raise ValueError(f"max_shape {bound} must repeat the fixed dimensions of shape {dims}")
        element = resolve_dtype(dtype)
        _nbytes(bound or dims, element.itemsize)
        for name, value in (("shape", dims), ("dtype", element), ("max_shape", bound)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        bound = "" if self.max_shape is None else f", max_shape={self.max_shape}"
        return f"Field({self.shape}, {self.dtype.name!r}{bound})"


@dataclass(frozen=True, slots=True)
class Placed:
    """A field with its place in the slot; offsets are bytes from the slot's start."""

    path: str  #: names from the outermost dict inwards, joined by "."; "" in a single-field spec
    dtype: DType
    shape: tuple[int, ...]  #: -1 where dynamic
    max_shape: tuple[int, ...] | None  #: of a bounded dynamic field
    offset: int  #: of the data; -1 if unbounded: decided when written
    nbytes: int  #: bytes of data, the largest possible for a bounded dynamic field; -1 if unbounded
    table: int  #: offset of this field's entry in the shape table; -1 if its shape is fixed

    def __str__(self) -> str:
        bounds = ["?"] * len(self.shape) if self.max_shape is None else [f"<={m}" for m in self.max_shape]
        dims = ",".join(b if n < 0 else str(n) for n, b in zip(self.shape, bounds, strict=True))
        return f"{self.path}: {self.dtype.name}[{dims}]".removeprefix(": ")


def _did_you_mean(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name)[:200], list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _enumerate(known: Iterable[str]) -> str:
    names = list(known)
    return f"the fields are: {', '.join(names[:20])}" + f", ... {len(names) - 20} more" * (len(names) > 20)


def _walk(node: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Field]]:
    """(path, Field) of each leaf of a user's spec, in order."""
    where = f"field {path!r:.80}: " if path else ""
    if isinstance(node, Mapping):
        if depth >= MAX_DEPTH:
            raise ValueError(f"{where}dicts of fields cannot be nested more than {MAX_DEPTH} deep")
        if not node:
            raise ValueError(f"{where}the dict of fields is empty: name at least one, as in {{'x': {_EXAMPLE}}}")
        for name, child in node.items():
            if not isinstance(name, str):
                raise TypeError(f"{where}a name must be a str, not {name!r:.80}")
            if not name or "." in name or not name.isprintable():
                raise ValueError(f"{where}a name must be printable, not empty and without '.', not {name!r:.80}")
            yield from _walk(child, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(node, Field):
        yield path, node
    elif isinstance(node, (tuple, list)) and len(node) == 2 and not _is_shape(node):
        try:
            yield path, Field(*node)
        except TypeError as e:
            raise TypeError(f"{where}{e}") from e
        except ValueError as e:
            raise ValueError(f"{where}{e}") from e
    else:
        raise TypeError(f"{where}expected (shape, dtype), a Field or a dict of them{_but_got(node)}")


_EXAMPLE = '((3, 224, 224), "uint8")'


def _is_shape(x: Any) -> bool:
    return isinstance(x, (tuple, list)) and len(x) > 0 and all(n is None or hasattr(type(n), "__index__") for n in x)


def _but_got(node: Any) -> str:
    """The rest of the message about what is no (shape, dtype): what it may have been meant to be."""
    if _is_shape(node):
        return f', but {node!r:.80} is a shape alone: ({tuple(node)!r:.80}, "float32")'
    if isinstance(node, (tuple, list)) and len(node) > 2 and _is_shape(node[:-1]):
        return f", not {node!r:.80}: the shape has brackets of its own, ({tuple(node[:-1])!r:.80}, {node[-1]!r:.20})"
    if hasattr(node, "shape") and hasattr(node, "dtype") and not isinstance(node, type):
        return ", not an array: (x.shape, x.dtype) describes one"
    return f", as in {_EXAMPLE}, not {node!r:.80}"


def _nest(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The nested dict of (path, leaf) pairs; ValueError where two of them are in each other's way."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        node: Any = tree
        *groups, name = path.split(".", MAX_DEPTH)
        for group in groups:
            node = node.setdefault(group, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name in node:
            raise ValueError(f"there is more than one field {path!r:.80}")
        node[name] = leaf
    return tree


class Spec:
    """What an item looks like, and where each of its arrays lies in a slot. Treat it as read-only."""

    def __init__(self, user_spec: Any) -> None:
        """``user_spec`` is ``(shape, dtype)`` or a Field for an item that is one array; or a dict of
        name -> one of these or another such dict; or a Spec.

        Raises:
            TypeError: a part is of the wrong type, or a dtype cannot lie in shared memory.
            ValueError: an empty dict, a bad name or shape, more than 4096 fields or 2**47 bytes.
        """
        if isinstance(user_spec, Spec):
            vars(self).update(vars(user_spec))
            return
        leaves: list[tuple[str, Field]] = []
        for leaf in _walk(user_spec):
            leaves.append(leaf)
            if len(leaves) > MAX_FIELDS:
                raise ValueError(f"more than {MAX_FIELDS} fields")

        #: bytes of the shape table at the slot's start
        self.table_nbytes: int = sum(8 * (1 + len(f.shape)) for _, f in leaves if None in f.shape)
        placed, table, end = [], 0, self.table_nbytes
        for path, f in leaves:
            shape, entry, offset, nbytes = tuple(-1 if n is None else n for n in f.shape), -1, -1, -1
            if None in f.shape:
                entry, table = table, table + 8 * (1 + len(shape))
            if None not in f.shape or f.max_shape is not None:
                offset, nbytes = -(-end // ALIGN) * ALIGN, _nbytes(f.max_shape or f.shape, f.dtype.itemsize)
                end = offset + nbytes
            placed.append(Placed(path, f.dtype, shape, f.max_shape, offset, nbytes, entry))
        if end > MAX_NBYTES:
            raise ValueError(f"an item takes {end} bytes; at most {MAX_NBYTES} are possible")
        paths = [p.path for p in placed]

        self.fields: tuple[Placed, ...] = tuple(placed)  #: in the user's order
        self.single: bool = paths == [""]  #: an item is one array and not a dict
        #: nested dict of name -> path or subtree; None if single
        self.tree: dict[str, Any] | None = None if self.single else _nest((p, p) for p in paths)
        self.dynamic: bool = self.table_nbytes > 0  #: some shape differs from item to item
        self.growable: bool = any(p.offset < 0 for p in placed)  #: some field is unbounded
        self.nbytes: int = max(end, ALIGN)  #: bytes of the slot's fixed part: shape table and bounded fields
        rows = [[path, f.dtype.name, f.shape, f.max_shape] for path, f in leaves]
        text = json.dumps({"version": VERSION, "fields": rows}, ensure_ascii=False, separators=(",", ":"))
        self._json = text.encode()
        if len(self._json) > MAX_JSON:
            raise ValueError(f"the spec takes {len(self._json)} bytes of JSON; at most {MAX_JSON} are possible")
        self._names: list[str] | None = paths if self.tree is not None and list(self.tree) == paths else None

    @classmethod
    def parse(cls, x: Any) -> Spec:
        """``x`` itself if it is a Spec, else ``Spec(x)``."""
        return x if isinstance(x, Spec) else cls(x)

    def pack(self, flat: Sequence[Any]) -> Any:
        """The item (nested dict, or one array) of a sequence in field order; ValueError if lengths differ."""
        if len(flat) != len(self.fields):
            raise ValueError(f"expected {len(self.fields)} arrays, got {len(flat)}")
        if self._names is not None:
            return dict(zip(self._names, flat, strict=True))
        return flat[0] if self.tree is None else _fill(self.tree, iter(flat))

    def flatten(self, item: Any) -> list[Any]:
        """The arrays of an item in field order; the arrays themselves are not looked at.

        Raises:
            KeyError: names are missing or unknown.
            TypeError: not a dict where one belongs, or a dict for a single-field spec.
        """
        if self._names is not None and type(item) is dict and len(item) == len(self._names):
            try:
                return [item[name] for name in self._names]
            except KeyError:
                pass  # the slow path says what is wrong
        if self.tree is None:
            if isinstance(item, dict):
                raise TypeError("this spec is a single field: expected an array, not a dict")
            return [item]
        out: list[Any] = []
        _gather(self.tree, item, "", out)
        return out

    def dumps(self) -> bytes:
        """The spec as compact JSON in UTF-8, at most 1 MiB; equal specs give equal bytes."""
        return self._json

    @classmethod
    def loads(cls, data: bytes, slot_nbytes: int | None = None) -> Spec:
        """The spec that dumps() wrote. Nothing in ``data`` is trusted; it may come from shared memory.

        Raises:
            ShmLayoutError: it is not, byte for byte, what this version's dumps() writes, or the spec's fixed
                part does not fit in ``slot_nbytes`` bytes (None: any size).
        """
        try:
            spec = cls(_parse_json(data))
            if spec._json != data:
                raise ValueError("it is not in the canonical form")
            if slot_nbytes is not None and spec.nbytes > slot_nbytes:
                raise ValueError(f"an item takes {spec.nbytes} bytes, but a slot has {slot_nbytes}")
            return spec
        except Exception as e:  # whatever hostile bytes provoke, RecursionError too, is the same news
            raise ShmLayoutError(errno.EUCLEAN, f"bad description of the fields: {e!s:.300}") from e

    def __eq__(self, other: object) -> bool:
        return self._json == other._json if isinstance(other, Spec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._json)

    def __reduce__(self) -> tuple[Callable[[bytes], Spec], tuple[bytes]]:
        return Spec.loads, (self._json,)

    def __repr__(self) -> str:
        more = f", ... {len(self.fields) - 16} more" if len(self.fields) > 16 else ""
        return f"Spec({', '.join(map(str, self.fields[:16]))}{more})"


def _fill(tree: dict[str, Any], flat: Iterator[Any]) -> dict[str, Any]:
    return {name: _fill(sub, flat) if isinstance(sub, dict) else next(flat) for name, sub in tree.items()}


def _gather(tree: dict[str, Any], item: Any, path: str, out: list[Any]) -> None:
    where = f"field {path!r}: " if path else ""
    if not isinstance(item, (dict, Mapping)):  # dict first: it is the faster test
        raise TypeError(f"{where}expected a dict, not {type(item).__name__}; {_enumerate(tree)}")
    names = item if type(item) is dict else dict.fromkeys(item.keys())
    if names.keys() != tree.keys():
        wrong = [f"missing {name!r}" for name in tree if name not in names]
        wrong += [f"unknown {name!r:.80}{_did_you_mean(name, tree)}" for name in names if name not in tree]
        raise KeyError(f"{where}{', '.join(wrong[:20])}; {_enumerate(tree)}")
    for name, sub in tree.items():
        if isinstance(sub, dict):
            _gather(sub, item[name], f"{path}.{name}" if path else name, out)
        else:
            out.append(item[name])


def _parse_json(data: bytes) -> Any:
    """What Spec() takes, from the JSON form. Bad input raises all sorts of exceptions."""
    if len(data) > MAX_JSON:
        raise ValueError(f"it is longer than {MAX_JSON} bytes")
    doc = json.loads(data.decode("utf-8"))
    if doc["version"] != VERSION:
        raise ValueError(f"its version is {doc['version']!r:.40}, this build of shmtensor reads {VERSION}")
    if len(doc["fields"]) > MAX_FIELDS:
        raise ValueError(f"it has more than {MAX_FIELDS} fields")
    leaves = [(path, Field(shape, _from_name(dtype), bound)) for path, dtype, shape, bound in doc["fields"]]
    return leaves[0][1] if leaves[0][0] == "" and len(leaves) == 1 else _nest(leaves)
