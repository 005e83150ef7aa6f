"""Reading weight files of any common kind without executing anything in them.

A pickle is a program: it may name any function and call it. Only the functions below, which
build tensors, arrays and plain containers, are ever called; a file that asks for another one is
refused. The kind of a file is told by its content, never by its name.
"""

import codecs
import functools
import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

# First pickle of a file written by torch.save before torch 1.6.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a weight file.

    Understood are safetensors, files of `torch.save`, TorchScript archives (OpenAI's CLIP), and
    pickles of arrays or tensors (detectron2's .pkl). `{"model": ...}` and `{"state_dict": ...}`
    are unwrapped; dtypes stay as stored; entries that are not tensors are dropped.

    Raises:
        ValueError: The file is no weight file, is damaged, holds no tensors, or asks for code
            to be run.
    """
    content = read_file(path)
    try:
        return find_tensors(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_tensors(content: Any) -> dict[str, Tensor]:
    """The named tensors in what `read_file` read, see `read_weights`."""
    while isinstance(content, dict):
        inner = content.get("model", content.get("state_dict"))
        if not isinstance(inner, dict):
            break
        content = inner
    if isinstance(content, dict):
        tensors = {str(k): _as_tensor(v) for k, v in content.items()}
        if state := {k: v for k, v in tensors.items() if v is not None}:
            return state
    raise ValueError("expected named tensors, found none")


def read_file(path: str | Path) -> Any:
    """Reads all that such a file holds (also a trainer's state), see `read_weights`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            file.seek(0)
            if head[8:9] == b"{":  # after the length of a JSON header
                return safetensors.torch.load_file(path)
            if head.startswith(b"PK"):
                return _read_zip(file)
            if head.startswith(_LEGACY_TORCH):
                return _torch_load(file)
            if head.startswith(b"\x80"):
                return _Unpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {error}") from error
    except (
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        struct.error,
        LookupError,
        TypeError,
        AttributeError,
        safetensors.SafetensorError,
    ) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: damaged or incomplete, get it again ({problem})") from error
    raise ValueError(
        f"{path}: not a weight file; expected safetensors, a file of torch.save or "
        "torch.jit.save, or a pickle of arrays"
    )


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.copy())
    return value if isinstance(value, Tensor) else None


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.split("/")[1:2] == ["code"] for name in names):
            return _read_torchscript(archive)
    file.seek(0)
    return _torch_load(file)


def _torch_load(file: BinaryIO | io.BytesIO) -> Any:
    """torch.load that also admits NumPy arrays (random states in a trainer's checkpoint)."""
    try:
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"(?i)unsupported global:?(?: global)? ([\w.]+)", str(error)):
            raise _refusal(asked[1]) from None
        raise


def _read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The parameters and buffers in a TorchScript archive, by their dotted names.

    The archive's data.pkl pickles the module tree; its tensors' bytes lie in data/. The code in
    code/ is not looked at.
    """
    pkl = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pkl.removesuffix(".pkl")

    @functools.cache
    def storage(_: str, dtype: torch.dtype, key: str, *__: Any) -> Tensor:
        content = bytearray(archive.read(f"{folder}/{key}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)

    unpickler = _Unpickler(io.BytesIO(archive.read(pkl)))
    unpickler.persistent_load = lambda pid: storage(*pid)  # type: ignore[method-assign]
    return dict(_named_tensors(unpickler.load()))


def _named_tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix.rstrip("."), value
    elif isinstance(value, _ScriptModule) and isinstance(value.state, dict):
        for name, child in value.state.items():
            yield from _named_tensors(child, f"{prefix}{name}.")


class _ScriptModule:
    """Stands for every class of a TorchScript archive: holds the attributes, does nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Builds tensors, arrays and plain containers; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _ScriptModule
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        try:
            return _GLOBALS[module.replace("numpy.core", "numpy._core"), name]
        except KeyError:
            raise _refusal(f"{module}.{name}") from None


def _refusal(name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(
        f"refused, because it asks for {name}; only tensors, arrays and plain containers are "
        "read. If you trust it, save these alone (weights: its state_dict(), as safetensors)"
    )


def _encode(text: str, encoding: str) -> bytes:
    """Bytes in pickles of protocol 2, which are written as calls of codecs.encode."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused, because it asks for the codec {encoding!r}")
    return codecs.encode(text, encoding)


def _storage_from_bytes(content: bytes) -> Tensor:
    """A tensor's storage in a plain pickle is a nested file of torch.save."""
    storage = _torch_load(io.BytesIO(content))
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _list(values: list[Any], *_: Any) -> list[Any]:
    return values


_reconstruct: Any
_scalar: Any
_reconstruct, _scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage_from_bytes,
} | {
    ("torch.jit._pickle", f"build_{kind}list"): _list
    for kind in ("int", "double", "bool", "tensor")
}
_NUMPY_GLOBALS: list[Any] = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
    *(
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in (_reconstruct, _scalar)
        for core in ("core", "_core")
    ),
]
