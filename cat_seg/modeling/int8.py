"""Dynamic quantisation: linear layers on CPU as products of 8-bit integers.

Weights are rounded to 8 bits once, with a scale for each output; inputs at every call, with a
scale for each row. Faster than float32 where the processor multiplies such integers, and not exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

# Rounding costs more than it saves where rows are shorter.
_LEAST_CHANNELS = 256
_ACTIVE: ContextVar[bool] = ContextVar("int8_linears", default=False)
# Of each weight: its version when it was rounded, the 8-bit weight and its scales.
_ROUNDED: MutableMapping[Tensor, tuple[int, Tensor, Tensor]] = WeakIdKeyDictionary()


@contextlib.contextmanager
def int8_linears(active: bool = True) -> Iterator[None]:
    """Within this context `cat_seg.modeling.layers.linear` computes with 8-bit integers.

    On CPU and without gradients; elsewhere nothing changes. Weights may change in between.
    """
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def int8_applies(weight: Tensor) -> bool:
    """Whether `int8_linear` is wanted: weights made up on the way are not worth rounding."""
    if not _ACTIVE.get() or torch.is_grad_enabled():
        return False
    return isinstance(weight, nn.Parameter) and weight.shape[1] >= _LEAST_CHANNELS


def int8_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` in 8 bits: (..., C), (O, C), (O,) -> (..., O) float32, sums in 32 bits."""
    known = _ROUNDED.get(weight)
    if known is None or known[0] != weight._version:
        known = _ROUNDED[weight] = (weight._version, *_round(weight.detach()))
    _, rounded, scales = known
    rows, row_scales = _round(x.reshape(-1, x.shape[-1]).float())
    y = torch._int_mm(rows, rounded.t()) * row_scales[:, None]
    y = y.mul_(scales) if bias is None else torch.addcmul(bias, y, scales)
    return y.view(*x.shape[:-1], len(weight))


def _round(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) to int8 in -127..127 and (N,) scales by which they are to be multiplied."""
    scales = rows.abs().amax(dim=1).clamp_(min=1e-30) / 127
    return (rows / scales[:, None]).round_().to(torch.int8), scales
