"""Reading weight files of any common kind, executing nothing in them and believing nothing.

The kind of a file is told by its content, never by its name. Whatever is wrong with a file leaves
this module as a `CATSegError` that names it.
"""

from __future__ import annotations

import functools
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cat_seg.errors import CATSegError
from cat_seg.trust.pickles import Builder, ScriptModule, Storage, as_dtype, parse
from cat_seg.utils.files import atomic_write, other_content, set_aside

# Where people keep a state dict, the first that is there.
_WRAPPERS = (
    *("model", "state_dict", "model_state_dict"),
    *("model_ema", "ema", "net", "module", "params"),
)
# What DistributedDataParallel and Lightning put before every name; torch.compile's is _orig_mod.
_PREFIXES = ("module.", "model.")
# Of a table most of whose rows are zero, the others are stored: beside NAME, which has these,
# NAME.rows has their indices, and last the number of all rows (at most so many are believed).
_ROWS = ".rows"
_MOST_ROWS = 1 << 20
# First pickle of a file written by torch.save before torch 1.6.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = 30  # bytes of a zip's header of a record, before its name


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a weight file.

    Understood are safetensors, files of `torch.save`, TorchScript archives (OpenAI's CLIP), and
    pickles of arrays or tensors (detectron2's .pkl). Wrappers such as `{"model": ...}` and prefixes
    such as `module.` are taken off; dtypes stay as stored; what is no tensor is dropped.

    Raises:
        CATSegError: if the file is no weight file, is damaged, holds no tensors, or asks for code
            to be run.
    """
    content = read_file(path)
    try:
        return find_tensors(content)
    except CATSegError as error:
        raise CATSegError(f"{path}: {error}") from error


def write_weights(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a file that appears under its name only when it is complete.

    Args:
        content: tensors by name for a name that ends in .safetensors; for another, what
            `torch.save` takes.
        path: the file.

    Raises:
        CATSegError: if it cannot be written. Of a full disk torch and safetensors tell by
            exceptions of their own.
    """
    try:
        with atomic_write(path) as part:
            if part.suffix == ".safetensors":
                safetensors.torch.save_file(dict(content), part, {"format": "pt"})
            else:
                torch.save(dict(content), part)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CATSegError(
            f"{path}: cannot be written ({error}); is the disk full, or the folder read-only?"
        ) from error


def find_tensors(content: Any) -> dict[str, Tensor]:
    """Find the named tensors in what `read_file` read, see `read_weights`."""
    for _ in range(len(_WRAPPERS)):  # which may lie within each other, but not in themselves
        inner = content if isinstance(content, Mapping) else {}
        wrapped = (inner[key] for key in _WRAPPERS if isinstance(inner.get(key), Mapping))
        content = next(wrapped, content)
    if not isinstance(content, Mapping):
        raise CATSegError(f"expected named tensors, found a {type(content).__name__}")
    tensors = {str(key): _as_tensor(value) for key, value in content.items()}
    state = {key: value for key, value in tensors.items() if value is not None}
    if not state:
        keys = ", ".join(map(ascii, list(content)[:8])) or "nothing"
        raise CATSegError(
            f"expected named tensors, found none; it has {keys}. Save the model's state_dict(), "
            f"alone or under one of {', '.join(_WRAPPERS)}"
        )
    if wrong := next((name for name in state if not name.isprintable()), None):
        raise CATSegError(f"damaged: a tensor has the name {wrong!a}")
    return _with_zero_rows(_without_prefixes(state))


def without_zero_rows(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Store a table by its rows that are not zero, where these are the fewer: see `_ROWS`.

    `read_weights` gives the whole table back.
    """
    table = state[name]
    used = table.any(dim=1).nonzero()[:, 0]
    if 2 * len(used) > len(table) or len(table) > _MOST_ROWS:
        return dict(state)
    rows = torch.cat([used, used.new_tensor([len(table)])]).int()
    return {**state, name: table[used], name + _ROWS: rows}


def _with_zero_rows(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fill up the tables of which `without_zero_rows` stored a few rows."""
    for key in [key for key in state if key.endswith(_ROWS)]:
        name, indices = key.removesuffix(_ROWS), state[key]
        if name not in state or indices.dtype != torch.int32 or indices.dim() != 1:
            continue
        some, ascending = state[name], bool((indices.diff() > 0).all())
        fits = some.dim() == 2 and len(indices) == len(some) + 1 and int(indices[0]) >= 0
        if not fits or not ascending or int(indices[-1]) > _MOST_ROWS:
            raise CATSegError(f"damaged: {key} does not say where the rows of {name} belong")
        state[name] = some.new_zeros(int(indices[-1]), some.shape[1])
        state[name][indices[:-1].long()] = some
        del state[key]
    return state


def read_file(path: str | Path) -> Any:
    """Read all that such a file holds (also a trainer's state), see `read_weights`.

    Raises:
        CATSegError: if the file is none of these kinds, is damaged, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise CATSegError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            return _read(file)
    except CATSegError as error:
        raise CATSegError(f"{path}: {error}{set_aside(path)}") from error
    except OSError as error:
        raise CATSegError(f"{path}: cannot be read ({error})") from error
    except MemoryError as error:
        raise CATSegError(f"{path}: needs more memory than there is") from error
    except Exception as error:  # of zipfile, zlib, safetensors, torch or ours, for any damage
        problem = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise CATSegError(
            f"{path}: damaged or incomplete, get it again ({problem}){set_aside(path)}"
        ) from error


def check_weights(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Check the values of tensors from a file before a model takes them.

    Args:
        state: the file's tensors by the model's names.
        model: the model's own, which say where a floating type belongs.

    Raises:
        CATSegError: if a tensor has integers for a floating type, or NaN or infinity in it.
    """
    shared = [name for name in state if name in model and model[name].is_floating_point()]
    _refuse((n for n in shared if not state[n].is_floating_point()), "are not of a floating type")
    _refuse((n for n in shared if not _is_finite(state[n])), "hold NaN or infinity")


def _refuse(names: Iterable[str], what: str) -> None:
    if wrong := list(names):
        some = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise CATSegError(f"{len(wrong)} tensors {what} ({some}); get or save the file again")


def _is_finite(tensor: Tensor) -> bool:
    # A sum takes a quarter of a millisecond a million, and may itself overflow.
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.float().isfinite().all())


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what wrappers put before every name, and torch.compile also between two."""
    renamed = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    if len(renamed) < len(state):
        return state  # the names mean different tensors
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in renamed)), None):
        renamed = {name.removeprefix(prefix): value for name, value in renamed.items()}
    return renamed


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value)
    return value if isinstance(value, Tensor) else None


def _read(file: BinaryIO) -> Any:
    head = file.read(512)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if what := other_content(head):
        raise CATSegError(f"{what} instead of a weight file")
    if head[4:9] == b"\0\0\0\0{":  # a JSON header after its length in eight bytes
        return safetensors.torch.load_file(file.name)
    if head.startswith(b"PK"):
        return _read_archive(file, size)
    if head.startswith(_LEGACY_TORCH):
        return _read_legacy(file, size)
    if head.startswith(b"\x80"):
        return _builder(lambda storage: torch.empty(0)).build(parse(file, size))
    raise CATSegError(
        "not a weight file; expected safetensors, a file of torch.save or torch.jit.save, or a "
        "pickle of arrays"
    )


def _read_archive(file: BinaryIO, size: int) -> Any:
    """Read a zip of torch.save or torch.jit.save: a pickle, and the bytes of each storage.

    A TorchScript archive's pickle has the module tree; its code is not looked at.
    """
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
    names = [name for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if not names:
        raise CATSegError("a zip, but not of torch.save or torch.jit.save: data.pkl is missing")
    folder = names[0].removesuffix(".pkl")
    left = size

    def record(name: str) -> Tensor:
        nonlocal left
        info = records[name]
        left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or left < 0:
            raise CATSegError("its records are compressed, or declare more bytes than it has")
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        file.seek(sum(struct.unpack("<HH", header[-4:])), os.SEEK_CUR)  # its name, and extras
        content = _bytes(file, info.file_size)
        # Zero is written where CRCs are switched off (torch.serialization.set_crc32_options).
        if info.CRC and zlib.crc32(memoryview(content.numpy())) != info.CRC:  # type: ignore[arg-type]
            raise ValueError(f"the CRC-32 of {name} differs")
        return content

    @functools.cache
    def storage(key: str) -> Tensor:
        return record(f"{folder}/{key}")

    order = f"{folder.removesuffix('data')}byteorder"
    if order in records and record(order).numpy().tobytes() != b"little":
        raise CATSegError("was written on a big-endian machine; save it again on another")
    tree = parse(io.BytesIO(record(names[0]).numpy().tobytes()), size, {})
    content = _builder(lambda s: _elements(storage(s.key), s)).build(tree)
    return content.tensors() if isinstance(content, ScriptModule) else content


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """Read a file of torch.save before 1.6: five pickles, then length and bytes of each storage."""
    declared: dict[str, Storage] = {}
    _, _, system, tree, keys = (parse(file, size, declared) for _ in range(5))
    if not system["little_endian"]:
        raise CATSegError("was written on a big-endian machine; save it again on another")
    dtypes = {storage.key: storage.dtype for storage in declared.values()}
    contents = {}
    for key in keys:
        (length,) = struct.unpack("<q", file.read(8))
        count = length * dtypes[key].itemsize
        if not 0 <= count <= size:
            raise ValueError(f"declares a storage of {length} elements")
        contents[key] = _bytes(file, count)
    return _builder(lambda storage: _elements(contents[storage.key], storage)).build(tree)


def _bytes(file: BinaryIO, count: int) -> Tensor:
    content = torch.empty(count, dtype=torch.uint8)
    buffer: Any = content.numpy()
    if file.readinto(buffer) != count:  # type: ignore[attr-defined]
        raise ValueError("its end is missing")
    return content


def _builder(storage: Any) -> Builder:
    def nested(content: bytes) -> Tensor:
        if not content.startswith(_LEGACY_TORCH):
            raise ValueError("a storage is not a file of torch.save")
        elements = _read_legacy(io.BytesIO(content), len(content))
        if not isinstance(elements, Tensor):
            raise ValueError("a storage is none")
        return elements

    return Builder(storage, nested)


def _elements(content: Tensor, storage: Storage) -> Tensor:
    """The elements of a storage in its bytes."""
    count = storage.length * storage.dtype.itemsize
    if count > content.numel():
        raise ValueError(f"declares a storage of {count} bytes, and has {content.numel()}")
    elements = as_dtype(content[:count], storage.dtype)
    if storage.view:
        offset, length = storage.view
        return elements[offset : offset + length]
    return elements
