"""Linear layers and activations, chosen for what a CPU does fast.

Without gradients a result may lie where its input was: `may_overwrite` is the one rule for that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.modeling.int8 import int8_applies, int8_linear

# PyTorch 2.6 does not tell an export from a compilation.
_exporting: Callable[[], bool] = getattr(
    torch.compiler, "is_exporting", torch.compiler.is_compiling
)


def may_overwrite() -> bool:
    """Whether intermediate results may be overwritten: no gradient and no graph is recorded."""
    return not torch.is_grad_enabled() and not exporting()


def exporting() -> bool:
    """Whether `torch.export` records a graph, which is to run anywhere and with any sizes."""
    return _exporting()


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
    if x.device.type != "cpu" or exporting():
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
        compute = linear if may_overwrite() else F.linear
        return compute(input, self.weight, self.bias)


def gelu(x: Tensor) -> Tensor:
    """GELU, into x where no gradient is needed. x must be a fresh result, unused elsewhere."""
    return torch.ops.aten.gelu_(x) if may_overwrite() else F.gelu(x)


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


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, into y where it can hold the sum. y must be a fresh result that nothing else needs."""
    return y.add_(x) if x.dtype == y.dtype and x.shape == y.shape else x + y
