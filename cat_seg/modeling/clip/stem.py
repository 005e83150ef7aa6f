"""A convolutional stem beside a ViT's patches: a key "stem" of a CLIP's vision_cfg.

Patches of 8 pixels see an outline in pieces that fit together nowhere. The stem sees it at strides
2, 4, ... with 3 x 3 kernels, adds what it found to the patches' tokens, and its maps may guide a
decoder at resolutions that the tokens do not have.

B images, C channels of the encoder, h x w patches.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn


class ConvStem(nn.Conv2d):
    """The convolution that makes patches, and a stem whose result is added to theirs.

    The stem's last layer starts from zero, so that the encoder is at first that of its patches.
    """

    def __init__(self, widths: Sequence[int], channels: int, patch_size: int) -> None:
        """
        Args:
            widths: channels of the stages, each of half the resolution of the one before.
            channels: C.
            patch_size: pixels; 2 to the power of the number of stages, or twice that.
        """
        super().__init__(3, channels, patch_size, patch_size, bias=False)
        self.widths = tuple(widths)
        sizes = zip((3, *widths), widths, strict=False)
        self.stages = nn.ModuleList(Stage(before, width) for before, width in sizes)
        left = patch_size >> len(widths)
        self.tokens = nn.Conv2d(widths[-1], channels, left, left)
        for parameter in self.tokens.parameters():
            nn.init.zeros_(parameter)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The stages' maps of images (B, 3, H, W), finest first."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps

    def forward(self, image: Tensor, maps: Sequence[Tensor] = ()) -> Tensor:
        """Images (B, 3, H, W) to (B, C, h, w); `maps` as `maps` gave them, or ()."""
        return super().forward(image) + self.tokens((maps or self.maps(image))[-1])


class Stage(nn.Module):
    """Half the resolution, then a residual block of two convolutions."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, width, 3, 2, 1)
        self.block = nn.Sequential(
            LayerNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, 1, 1),
            LayerNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, ., h, w) -> (B, width, h / 2, w / 2)."""
        x = self.down(x)
        return x + self.block(x)
