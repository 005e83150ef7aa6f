"""Reading pickles without executing them.

A pickle is a program for a small stack machine that may call any function by name, and whose BUILD
hands data to `__setstate__` of types that are written in C. Here the program is run on inert
records alone (`parse`), and tensors and arrays are then built in Python from their declared dtype,
shape and bytes, each of them checked (`Builder`). A function without a row in the tables at the end
is refused by name.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from cat_seg.errors import CATSegError

_MOST_STEPS = 10_000_000  # of the stack machine; a checkpoint with its optimizer takes some 100 000
_MOST_ATTRIBUTES = 1_000_000  # of a module tree; CLIP's has some 10 000
_DEEPEST = 60  # containers within each other
_SCALARS = (str, bytes, int, float, complex, type(None))  # bool is an int


@dataclass(eq=False, slots=True)
class Global:
    """A class or function that the file names."""

    name: str  # with its module


@dataclass(eq=False, slots=True)
class Call:
    """An object that the file would make by calling a class or function."""

    name: str
    args: tuple[Any, ...]
    state: Any = None  # what BUILD would hand to the object


@dataclass(eq=False, slots=True)
class Storage:
    """The bytes of one or more tensors, which the file keeps elsewhere."""

    dtype: torch.dtype
    key: str
    length: int  # in elements
    view: tuple[int, int] | None = None  # offset and length of a part, by torch before 0.4


class ScriptModule:
    """A module of a TorchScript archive: attributes by name, no code."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes

    def tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers by their dotted names."""
        found: dict[str, Tensor] = {}
        todo: list[tuple[str, Any]] = [("", self)]
        for _ in range(_MOST_ATTRIBUTES):  # modules may be shared, so there is no end in sight
            if not todo:
                return found
            name, value = todo.pop()
            if isinstance(value, Tensor):
                found[name] = value
            elif isinstance(value, ScriptModule):
                prefix = f"{name}." if name else ""
                todo += [(prefix + child, value.attributes[child]) for child in value.attributes]
        raise CATSegError(f"has more than {_MOST_ATTRIBUTES} attributes of modules")


def parse(file: BinaryIO, size: int, storages: dict[str, Storage] | None = None) -> Any:
    """Run the next pickle of a file on inert records.

    Args:
        file: is left behind the pickle.
        size: of the file, in bytes; no read is longer.
        storages: is filled with the storages that the pickle refers to. Without it, such a
            reference is refused.

    Returns:
        Plain containers and scalars, with records where the file would make other objects; to be
        turned into what they stand for by a `Builder`.

    Raises:
        CATSegError: if the file asks for what is never done, or is too long.
        Exception: of any kind, if it is damaged.
    """
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, marked.pop()
        return items

    bounded: Any = _Bounded(file, size)
    arg: Any
    for step, (opcode, arg, _) in enumerate(pickletools.genops(bounded)):
        if step == _MOST_STEPS:
            raise CATSegError(f"a pickle of more than {_MOST_STEPS} steps")
        match opcode.name:
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[arg])
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "MARK":
                marked.append(stack)
                stack = []
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = since_mark()
                stack.append(tuple(items))
            case "EMPTY_LIST" | "LIST":
                items = since_mark() if opcode.name == "LIST" else []
                stack.append(items)
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                _only(stack[-1], list).extend(items)
            case "EMPTY_DICT" | "DICT":
                items = since_mark() if opcode.name == "DICT" else []
                stack.append(dict(_pairs(items)))
            case "SETITEM" | "SETITEMS":
                items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                _only(stack[-1], dict).update(_pairs(items))
            case "EMPTY_SET" | "FROZENSET":
                items = since_mark() if opcode.name == "FROZENSET" else []
                stack.append({_key(item) for item in items})
            case "ADDITEMS":
                items = since_mark()
                _only(stack[-1], set).update(_key(item) for item in items)
            case "GLOBAL":
                stack.append(Global(_known(arg.replace(" ", "."))))
            case "STACK_GLOBAL":
                module, name = stack.pop(-2), stack.pop()
                stack.append(Global(_known(f"{module}.{name}")))
            case "REDUCE" | "NEWOBJ":
                function, args = stack.pop(-2), stack.pop()
                stack.append(_called(_only(function, Global).name, _only(args, tuple)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Call) and stack[-1].state is None:
                    stack[-1].state = state
                elif not isinstance(stack[-1], dict):  # an OrderedDict's attributes are dropped
                    raise CATSegError(f"sets the state of a {type(stack[-1]).__name__}")
            case "BINPERSID" if storages is not None:
                storage = _storage(stack.pop())
                stack.append(storages.setdefault(f"{storage.key} {storage.view}", storage))
            case "POP":
                stack.pop()
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case name if arg is not None and name not in ("EXT1", "EXT2", "EXT4", "PERSID", "INST"):
                stack.append(bytes(arg) if isinstance(arg, bytearray) else arg)  # a scalar
            case name:
                raise CATSegError(f"refused, because a pickle of weights has no {name}")
    raise CATSegError("a pickle without an end")


class _Bounded:
    """A file that never makes room for more than it has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size))


def _known(name: str) -> str:
    """The name of a class or function that may stand in a file, as the tables have it."""
    name = name.replace("numpy.core.", "numpy._core.").replace("__builtin__.", "builtins.")
    module, _, last = name.rpartition(".")
    if (
        name in _CONTAINERS
        or name in _BUILDERS
        or name in ("numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter")
        or (module in ("torch", "torch.storage") and (last in _STORAGES or last in _DTYPES))
        or name.startswith("__torch__.")
    ):
        return name
    raise CATSegError(
        f"refused, because it asks for {ascii(name)[1:-1]}; only tensors, arrays and plain "
        "containers are read. If you trust it, save these alone (weights: its state_dict(), as "
        "safetensors)"
    )


def _called(name: str, args: tuple[Any, ...]) -> Any:
    if name not in _CONTAINERS:
        return Call(name, args)
    kind = _CONTAINERS[name]
    if not args:
        return kind()
    (items,) = args
    if kind is set:
        return {_key(item) for item in _only(items, list)}
    if isinstance(items, dict):
        return kind(items)
    return kind(_pairs([x for pair in _only(items, list) for x in pair]))


def _storage(reference: Any) -> Storage:
    """The record for ("storage", type, key, device, length), with a view in old files."""
    mark, kind, key, _, length, *view = _only(reference, tuple)
    dtype = _STORAGES[_only(kind, Global).name.rpartition(".")[2]]
    if mark != "storage" or not isinstance(key, str) or not _is_size(length):
        raise CATSegError("refers to something other than the storage of a tensor")
    part = None
    if view and view[0] is not None:
        _, offset, count = view[0]
        part = offset, count
        if not (_is_size(offset) and _is_size(count) and offset + count <= length):
            raise CATSegError(f"declares a part of a storage that does not lie in it: {part}")
    return Storage(dtype, key, length, part)


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return ((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))


def _key(key: Any) -> Any:
    if not isinstance(key, _SCALARS):
        raise CATSegError(f"has a {type(key).__name__} for a key; expected a name or number")
    return key


def _only(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise CATSegError(f"has a {type(value).__name__} where only a {kind.__name__} can be")
    return value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 60


class Builder:
    """Makes tensors, arrays and containers from the records of `parse`."""

    def __init__(
        self, storage: Callable[[Storage], Tensor], nested: Callable[[bytes], Tensor]
    ) -> None:
        """Prepare for one file.

        Args:
            storage: gives the elements of a storage.
            nested: gives the elements in a storage's own file, which plain pickles hold.
        """
        self._storage, self._nested = storage, nested
        self._built: dict[int, Any] = {}
        self._open: set[int] = set()

    def build(self, value: Any) -> Any:
        """Make what a record stands for, and everything within it.

        Raises:
            CATSegError: if it refers to itself, lies too deep, or declares what its bytes are not.
            Exception: of any kind, if it is damaged.
        """
        if isinstance(value, _SCALARS):
            return value
        if (key := id(value)) not in self._built:
            if key in self._open:
                raise CATSegError("refers to itself")
            if len(self._open) == _DEEPEST:
                raise CATSegError(f"is nested more than {_DEEPEST} deep")
            self._open.add(key)
            self._built[key] = self._make(value)
            self._open.remove(key)
        return self._built[key]

    def _make(self, value: Any) -> Any:
        match value:
            case dict():
                return type(value)({name: self.build(item) for name, item in value.items()})
            case list() | tuple():
                return type(value)([self.build(item) for item in value])
            case set():
                return value
            case Storage():
                return self._storage(value)
            case Global(name=name) if name.rpartition(".")[2] in _DTYPES:
                return _DTYPES[name.rpartition(".")[2]]
            case Call(name=name) if name.startswith("__torch__."):
                return ScriptModule(self.build(_only(value.state, dict)))
            case Call(name=name) if name in _BUILDERS:
                return _BUILDERS[name](self, value)
        _misplaced(getattr(value, "name", type(value).__name__))

    def tensor(self, call: Call) -> Tensor:
        """Make a tensor from (storage, offset, size, stride, ..., [dtype])."""
        storage, offset, size, stride, *rest = (self.build(item) for item in call.args)
        for extra in rest[2:]:  # after requires_grad and hooks
            if isinstance(extra, torch.dtype):
                storage = as_dtype(storage, extra)
            elif extra:
                raise CATSegError(f"has a tensor with {extra!a}; save a plain copy of it")
        sizes = (offset, *_only(size, tuple), *_only(stride, tuple))
        if not all(_is_size(number) for number in sizes) or len(size) != len(stride):
            raise CATSegError(f"declares a tensor of shape {size}, stride {stride}")
        steps = zip(size, stride, strict=True)
        last = offset + sum((number - 1) * step for number, step in steps)
        length = _only(storage, Tensor).numel()
        if (elements := math.prod(size)) and (last >= length or elements > length):
            raise CATSegError(
                f"declares a tensor of shape {tuple(size)} in a storage of {length} elements"
            )
        # A part of a storage begins within it, and torch counts from the storage's beginning.
        start = storage.storage_offset() + (offset if elements else 0)
        tensor: Tensor = storage.as_strided(size, stride, start)
        return tensor

    def array(self, call: Call) -> Any:
        """Make an array from the state (version, shape, dtype, order, data)."""
        _, shape, dtype, fortran, data = _only(call.state, tuple)
        return self._array(self.build(data), self.build(dtype), shape, "F" if fortran else "C")

    def array_in_band(self, call: Call) -> Any:
        """Make an array from (data, dtype, shape, order), as protocol 5 has it."""
        data, dtype, shape, order = call.args
        return self._array(self.build(data), self.build(dtype), shape, order)

    def scalar(self, call: Call) -> Any:
        """Make a NumPy scalar from (dtype, data)."""
        dtype, data = (self.build(arg) for arg in call.args)
        return self._array(data, dtype, (), "C")[()]

    def _array(self, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
        if isinstance(shape, int):
            shape = (shape,)
        if not all(_is_size(side) for side in _only(shape, tuple)) or order not in ("C", "F"):
            raise CATSegError(f"declares an array of shape {shape}")
        length = math.prod(shape)
        if _only(dtype, np.dtype).kind == "O":
            if len(_only(data, list)) != length:
                raise CATSegError(f"declares an array of shape {shape} of {len(data)} objects")
            flat = np.empty(length, object)
            flat[:] = data
            return flat.reshape(shape, order=order)
        if isinstance(data, str):  # bytes of Python 2
            data = data.encode("latin1")
        if len(_only(data, bytes)) != length * dtype.itemsize:
            raise CATSegError(
                f"declares an array of shape {shape} and {dtype}, with {len(data)} bytes"
            )
        if not data:
            return np.empty(shape, dtype.newbyteorder("="))
        if dtype.kind == "b":
            return (np.frombuffer(data, np.uint8) != 0).reshape(shape, order=order)
        array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return array.reshape(shape, order=order)

    def dtype(self, call: Call) -> np.dtype[Any]:
        """Make a NumPy dtype from its code, such as "f4", and the byte order in its state."""
        code = str(call.args[0])
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|O8?|[US]\d{1,6}", code):
            raise CATSegError(f"has an array of dtype {code!a}; expected numbers or texts")
        order: Any = call.state[1] if call.state is not None else "="
        if order not in ("<", ">", "=", "|"):
            raise CATSegError(f"has an array of byte order {order!a}")
        dtype: np.dtype[Any] = np.dtype(code).newbyteorder(order)
        return dtype

    def first(self, call: Call) -> Any:
        """Make the first argument; what it is wrapped in does not matter here."""
        return self.build(call.args[0])

    def from_type(self, call: Call) -> Any:
        """Make a tensor that has attributes or is of a subclass, from (function, type, args)."""
        function, _, args, *_ = call.args
        name = _only(function, Global).name
        return _BUILDERS[name](self, Call(name, _only(args, tuple)))

    def size(self, call: Call) -> tuple[Any, ...]:
        """Make a torch.Size, as a tuple."""
        return tuple(_only(self.build(call.args[0]), (tuple, list)))  # type: ignore[arg-type]

    def device(self, call: Call) -> torch.device:
        """Make a torch.device."""
        return torch.device(*call.args)

    def encoded(self, call: Call) -> bytes:
        """Make bytes that protocol 2 writes as a call of codecs.encode."""
        text, *encoding = call.args
        if encoding != ["latin1"]:
            raise CATSegError("refused, because it asks for another codec than latin1")
        return bytes(_only(text, str).encode("latin1"))

    def empty_bytes(self, call: Call) -> bytes:
        """Make the empty bytes, which protocol 2 writes as a call of bytes."""
        if call.args:
            raise CATSegError("refused, because it asks for builtins.bytes of something")
        return b""

    def storage_file(self, call: Call) -> Tensor:
        """Make a storage from a nested file of torch.save."""
        return self._nested(_only(self.build(call.args[0]), bytes))


def _misplaced(name: str) -> NoReturn:
    raise CATSegError(f"has {ascii(name)[1:-1]} where a value is expected")


def as_dtype(storage: Tensor, dtype: torch.dtype) -> Tensor:
    """View the bytes of a storage as elements of another dtype."""
    content = storage.view(torch.uint8)
    elements: Tensor = content.ne(0) if dtype == torch.bool else content.view(dtype)
    return elements


_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {
    name: dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and not name.startswith(("q", "bits"))
}
_CONTAINERS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "builtins.set": set,
}
# What makes each object; a name that is neither here nor above is refused.
_BUILDERS: dict[str, Callable[[Builder, Call], Any]] = {
    "_codecs.encode": Builder.encoded,
    "builtins.bytes": Builder.empty_bytes,
    "numpy.dtype": Builder.dtype,
    "numpy._core.multiarray._reconstruct": Builder.array,
    "numpy._core.multiarray.scalar": Builder.scalar,
    "numpy._core.numeric._frombuffer": Builder.array_in_band,
    "torch.Size": Builder.size,
    "torch.device": Builder.device,
    "torch._tensor._rebuild_from_type_v2": Builder.from_type,
    "torch._utils._rebuild_parameter": Builder.first,
    "torch._utils._rebuild_parameter_with_state": Builder.first,
    "torch._utils._rebuild_tensor": Builder.tensor,
    "torch._utils._rebuild_tensor_v2": Builder.tensor,
    "torch._utils._rebuild_tensor_v3": Builder.tensor,
    "torch.jit._pickle.restore_type_tag": Builder.first,
    "torch.storage._load_from_bytes": Builder.storage_file,
} | {
    f"torch.jit._pickle.build_{kind}list": Builder.first
    for kind in ("int", "double", "bool", "tensor")
}
