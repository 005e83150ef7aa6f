"""Loops over chunks of a volume, so small that memory and caches suffice.

Chunked and unchunked results are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cat_seg.modeling.layers import exporting, may_overwrite
from cat_seg.utils.memory import available_bytes

# Bytes of the widest activation of one chunk: small enough for a CPU's caches, large enough to
# fill a GPU. On a GPU also at most a share of what is free, since several such live at once.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30, "mps": 64 << 20}
_SHARE_OF_FREE = 1 / 16
_LEAST_CHUNK_BYTES = 1 << 20
# By what chunks are divided in the calls within `smaller_chunks`, of this thread alone.
_DIVISOR: ContextVar[int] = ContextVar("chunk_divisor", default=1)


def chunk_length(bytes_each: int, device: torch.device) -> int:
    """How many items of `bytes_each` make a chunk on this device; at least one."""
    limit = _chunk_bytes(device) // _DIVISOR.get()
    if device.type == "cuda":
        limit = min(limit, max(_LEAST_CHUNK_BYTES, int(_SHARE_OF_FREE * free_bytes(device))))
    return max(1, limit // max(1, bytes_each))


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on a device, in bytes; 0 where unknown."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return available_bytes() if device.type == "cpu" else 0


@contextmanager
def smaller_chunks(divisor: int) -> Iterator[None]:
    """Within this context, and this thread, chunks are smaller by a factor."""
    token = _DIVISOR.set(divisor)
    try:
        yield
    finally:
        _DIVISOR.reset(token)


def may_be_smaller(divisor: int, device: torch.device) -> bool:
    """Whether chunks can be made smaller than by this factor."""
    return _chunk_bytes(device) // divisor > _LEAST_CHUNK_BYTES


def _chunk_bytes(device: torch.device) -> int:
    return _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"])


def split(x: Tensor, length: int, dim: int = 0) -> tuple[Tensor, ...]:
    """`x.split(length, dim)`; whole in an export, which a number of chunks would fix in size."""
    return (x,) if exporting() else x.split(length, dim)


def checkpointed(function: Callable[..., Tensor], *args: Any, recompute: bool) -> Tensor:
    """Return function(*args); if recomputed, forget its activations until the backward pass."""
    if recompute and not may_overwrite():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def gather_chunks(chunks: Iterable[Tensor], count: int, memory: Tensor | None = None) -> Tensor:
    """`torch.cat` along dimension 1; without gradients no two copies of it exist at any time.

    Args:
        chunks: at least one, made when asked for.
        count: the sum of their lengths.
        memory: where to put it if no gradient is needed; None for memory of its own.
    """
    if not may_overwrite():
        return torch.cat(list(chunks), dim=1)
    whole, done = memory, 0
    for chunk in chunks:
        if whole is None:
            whole = chunk.new_empty(len(chunk), count, *chunk.shape[2:])
        whole[:, done : done + chunk.shape[1]] = chunk
        done += chunk.shape[1]
    assert whole is not None and done == count
    return whole


def map_chunks(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    dim: int,
    length: int,
    *,
    recompute: bool = False,
) -> Tensor:
    """Replace x by function(x), chunk by chunk along `dim`; `function` must keep the shape.

    Without gradients x is overwritten, so that no second volume of its size exists. With gradients
    the chunks are concatenated.

    Args:
        function: takes a chunk; in the backward pass again, if recomputed.
        x: any shape; owned by the caller.
        length: items of a chunk.
        recompute: forget the activations of each chunk and recompute them in the backward pass.
    """
    chunks = split(x, length, dim)
    if may_overwrite():
        for chunk in chunks:
            chunk.copy_(function(chunk))  # no copy of what is already there
        return x
    return torch.cat([checkpointed(function, p, recompute=recompute) for p in chunks], dim)
