"""Linear layers and loops over pieces, chosen for what a CPU does fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cat_seg.modeling.int8 import int8_applies, int8_linear

# Bytes of the widest activation of one piece: small enough for a CPU's caches, large enough to
# fill a GPU. On a GPU also at most a share of what is free, since several such live at once.
_PIECE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20, "mps": 64 << 20}
_SHARE_OF_FREE = 1 / 16
_LEAST_PIECE_BYTES = 1 << 20
# By what pieces are divided in the calls within `smaller_pieces`, of this thread alone.
_DIVISOR: ContextVar[int] = ContextVar("piece_divisor", default=1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, as a 1 x 1 convolution on CPU.

    The two are the same sums. PyTorch hands float32 matrix products on CPU to MKL, which is half
    as fast as oneDNN's convolutions on AMD processors. Within `int8_linears` it is quantised.

    Args:
        x: (..., C), contiguous.
        weight: (O, C).
        bias: (O,).

    Returns:
        (..., O)
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if int8_applies(weight):
        return int8_linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C, N, 1), channels last
    y = F.conv2d(rows, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class InferenceLinear(nn.Linear):
    """`nn.Linear`, by `linear` where no gradients are recorded."""

    def forward(self, input: Tensor) -> Tensor:
        compute = F.linear if torch.is_grad_enabled() else linear
        return compute(input, self.weight, self.bias)


def gelu(x: Tensor) -> Tensor:
    """GELU, into x where no gradient is needed. x must be a fresh result, unused elsewhere."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


class InferenceGELU(nn.GELU):
    """`nn.GELU` by `gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input)


def use_fast_layers(module: nn.Module) -> None:
    """Let a module of another library compute with `linear` and `gelu`, in inference.

    Its GELUs must follow a linear layer whose output nothing else needs.
    """
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = InferenceLinear  # the same parameters and names
        elif type(child) is nn.GELU and child.approximate == "none":
            child.__class__ = InferenceGELU


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast is off, on any device, also where there is no autocast (meta)."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, into y where it can hold the sum. y must be a fresh result that nothing else needs."""
    return y.add_(x) if x.dtype == y.dtype and x.shape == y.shape else x + y


def piece_length(bytes_each: int, device: torch.device) -> int:
    """How many items of `bytes_each` make a piece on this device; at least one."""
    limit = _piece_bytes(device) // _DIVISOR.get()
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + reserved
        limit = min(limit, max(_LEAST_PIECE_BYTES, int(_SHARE_OF_FREE * free)))
    return max(1, limit // max(1, bytes_each))


@contextmanager
def smaller_pieces(divisor: int) -> Iterator[None]:
    """Within this context, and this thread, pieces are smaller by a factor."""
    token = _DIVISOR.set(divisor)
    try:
        yield
    finally:
        _DIVISOR.reset(token)


def may_be_smaller(divisor: int, device: torch.device) -> bool:
    """Whether pieces can be made smaller than by this factor."""
    return _piece_bytes(device) // divisor > _LEAST_PIECE_BYTES


def _piece_bytes(device: torch.device) -> int:
    return _PIECE_BYTES.get(device.type, _PIECE_BYTES["cuda"])


def gather_pieces(pieces: Iterable[Tensor], count: int, memory: Tensor | None = None) -> Tensor:
    """`torch.cat` along dimension 1; without gradients no two copies of it exist at any time.

    Args:
        pieces: at least one, made when asked for.
        count: the sum of their lengths.
        memory: where to put it if no gradient is needed; None for memory of its own.
    """
    if torch.is_grad_enabled():
        return torch.cat(list(pieces), dim=1)
    whole, done = memory, 0
    for piece in pieces:
        if whole is None:
            whole = piece.new_empty(len(piece), count, *piece.shape[2:])
        whole[:, done : done + piece.shape[1]] = piece
        done += piece.shape[1]
    assert whole is not None and done == count
    return whole


def map_pieces(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    dim: int,
    length: int,
    *,
    recompute: bool = False,
) -> Tensor:
    """Replace x by function(x), piece by piece along `dim`; `function` must keep the shape.

    Without gradients x is overwritten, so that no second volume of its size exists; where x is in
    half precision, the pieces are computed in float32. With gradients they are concatenated.

    Args:
        function: takes a piece; in the backward pass again, if recomputed.
        x: any shape; owned by the caller.
        length: items of a piece.
        recompute: forget the activations of each piece and recompute them in the backward pass.
    """
    pieces = x.split(length, dim)
    if not torch.is_grad_enabled():
        for piece in pieces:
            piece.copy_(function(piece.float()))
        return x
    if recompute:
        return torch.cat([checkpoint(function, p, use_reentrant=False) for p in pieces], dim)
    return torch.cat([function(p) for p in pieces], dim)
