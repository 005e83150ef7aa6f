"""Upsampling decoder (paper, section 3.5): from the aggregated volume to a map per class.

B images, T classes, C channels, H and W positions, M channels of the result.

Every class is decoded alone. The transposed convolution (2 x 2, stride 2) is followed by a 3 x 3
convolution with nothing non-linear between: together they are one transposed convolution with a
4 x 4 kernel and padding 1. What its bias and the guidance, which no class changes, contribute is
one additive map an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.modeling import fused
from cat_seg.modeling.autocast import without_autocast


class DecoderBlock(nn.Module):
    """Twice the resolution, guided by a feature map of that resolution."""

    def __init__(self, *, in_dim: int, out_dim: int, guidance_dim: int) -> None:
        """
        Args:
            in_dim: C.
            out_dim: M, a multiple of 16.
            guidance_dim: channels of the guidance, or 0 for none.
        """
        super().__init__()
        if out_dim % 16 or out_dim == 0:
            raise CATSegError(f"DECODER_DIMS holds {out_dim}; expected multiples of 16.")
        if not 0 <= guidance_dim < in_dim:
            raise CATSegError(
                f"DECODER_GUIDANCE_PROJ_DIMS holds {guidance_dim}; expected less than the "
                f"{in_dim} channels that the decoder block takes."
            )
        self.up = nn.ConvTranspose2d(in_dim, in_dim - guidance_dim, kernel_size=2, stride=2)
        self.conv = DoubleConv(in_dim, out_dim)

    def kernel(self) -> Tensor:
        """The transposed and the first 3 x 3 convolution as one: (C, M, 4, 4)."""
        return F.conv2d(
            self.up.weight, self.conv.first.weight[:, : self.up.out_channels], padding=2
        )

    def guide(self, guidance: Tensor | None, size: tuple[int, int]) -> Tensor:
        """What guidance and bias add after the first convolution, for all classes of an image.

        Args:
            guidance: (B, guidance_dim, 2 H, 2 W)
            size: 2 H, 2 W, for when there is no guidance.

        Returns:
            (B or 1, M, 2 H, 2 W), channels-last as what it is added to
        """
        assert self.up.bias is not None
        maps = self.up.bias[None, :, None, None]
        if guidance is None:
            maps = maps.expand(1, -1, *size)
        else:
            if guidance.shape[-2:] != size:
                raise CATSegError(
                    f"The decoder's guidance is {tuple(guidance.shape[-2:])} positions, but the "
                    f"map it guides {tuple(size)}: the guidance layers must have 2 and 4 times "
                    "FEATURE_RESOLUTION."
                )
            maps = maps.to(guidance.dtype).expand(guidance.shape[0], -1, *size)
            maps = torch.cat([maps, guidance], dim=1)
        guided = F.conv2d(maps, self.conv.first.weight, padding=1)
        return guided.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, guided: Tensor, kernel: Tensor) -> Tensor:
        """(B T, C, H, W), image-major -> (B T, M, 2 H, 2 W).

        Args:
            x: channels-last, to be fast.
            guided: see `guide`.
            kernel: see `kernel`.
        """
        y = F.conv_transpose2d(x, kernel, stride=2, padding=1)  # (B T, M, 2 H, 2 W)
        if fused.applies_to_map(y):
            y = self.conv.second(fused.group_norm_relu(y, self.conv.norm(1), guided))
            return fused.group_norm_relu(y, self.conv.norm(4))
        by_image = y.unflatten(0, (guided.shape[0], -1))
        return self.conv.finish(by_image.add_(guided[:, None]).flatten(0, 1))

    def logits(self, x: Tensor, guided: Tensor, kernel: Tensor, head: nn.Conv2d) -> Tensor:
        """`forward`, and behind it the 3 x 3 convolution to a logit: -> (B T, 1, 2 H, 2 W).

        The head is computed in float32 under autocast too: half precision makes logits tie.
        """
        if fused.applies_to_map(x):
            y = F.conv_transpose2d(x, kernel, stride=2, padding=1)
            y = self.conv.second(fused.group_norm_relu(y, self.conv.norm(1), guided))
            return fused.head(y, self.conv.norm(4), head)
        y = self(x, guided, kernel)
        with without_autocast(y.device):
            return head(y.float())


class DoubleConv(nn.Module):
    """Two 3 x 3 convolutions, each with GroupNorm and ReLU."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_dim, out_dim, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(out_dim // 16, out_dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(out_dim // 16, out_dim),
            nn.ReLU(inplace=True),
        )

    @property
    def first(self) -> nn.Conv2d:
        """The first convolution, which `DecoderBlock` applies itself."""
        first = self.double_conv[0]
        assert isinstance(first, nn.Conv2d)
        return first

    @property
    def second(self) -> nn.Conv2d:
        """The second convolution."""
        second = self.double_conv[3]
        assert isinstance(second, nn.Conv2d)
        return second

    def norm(self, index: int) -> nn.GroupNorm:
        """The norm at an index of the sequence, 1 or 4."""
        norm = self.double_conv[index]
        assert isinstance(norm, nn.GroupNorm)
        return norm

    def finish(self, x: Tensor) -> Tensor:
        """Everything behind the first convolution."""
        return self.double_conv[1:](x)
