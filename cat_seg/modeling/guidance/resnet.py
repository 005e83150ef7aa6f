"""ResNet as appearance guidance (arXiv 1512.03385), with the tensor names of detectron2.

The published B model of 2023 is guided by a ResNet-101 of torchvision's weights, finetuned inside
detectron2 (https://github.com/facebookresearch/detectron2), whose names its checkpoint has:
`stem.conv1.norm.weight`, `res2.0.shortcut.weight`, ...

B images, C channels, H x W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from cat_seg.errors import CATSegError

# Depth -> number of blocks in res2, res3, res4 and res5.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class ResNetConfig:
    """What a `ResNet` is built from; the defaults are the published model's.

    Attributes:
        depth: Number of layers: 50, 101 or 152.
        stride_in_1x1: Whether a stage is strided in the 1x1 convolution of its first block (as in
            the MSRA weights) instead of the 3x3 one (as in torchvision's).
        out_features: Maps to return, of "res2" to "res5"; stages above the last are not built.
        freeze_at: Number of leading stages that are not trained, counting the stem as one.
    """

    depth: int = 101
    stride_in_1x1: bool = False
    out_features: Sequence[str] = ("res2", "res3", "res4")
    freeze_at: int = 0


class ResNet(nn.Module):
    """Map an image to features of strides 4, 8, 16 and 32, under the names `res2` to `res5`.

    Attributes:
        channels: Width of each map that is returned.
        strides: Pixels of the image to one position of each map that is returned.
    """

    def __init__(self, config: ResNetConfig | None = None) -> None:
        """Build the network with random weights.

        Raises:
            CATSegError: No ResNet of this depth, or none with these maps.
        """
        super().__init__()
        config = config or ResNetConfig()
        if config.depth not in BLOCKS:
            raise CATSegError(
                f"A ResNet of depth {config.depth} is not known; set it to one of {list(BLOCKS)}."
            )
        if not config.out_features or set(config.out_features) - set(STAGES):
            raise CATSegError(
                f"A ResNet has no maps {list(config.out_features)}; "
                f"set out_features to some of {list(STAGES)}."
            )
        self.stem = Stem()
        self.out_features = [name for name in STAGES if name in config.out_features]
        self.stages = STAGES[: STAGES.index(self.out_features[-1]) + 1]
        in_channels, width = 64, 64
        for name, blocks in zip(self.stages, BLOCKS[config.depth], strict=False):
            stage = nn.Sequential()
            for i in range(blocks):
                stride = 2 if i == 0 and name != "res2" else 1
                stage.append(Bottleneck(in_channels, width, stride, config.stride_in_1x1))
                in_channels = 4 * width
            self.add_module(name, stage)
            width *= 2
        self.channels = {name: 256 * 2 ** STAGES.index(name) for name in self.out_features}
        self.strides = {name: 4 * 2 ** STAGES.index(name) for name in self.out_features}
        for name in ("stem", *self.stages)[: max(config.freeze_at, 0)]:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the maps.

        Args:
            image: (B, 3, H, W), normalised.

        Returns:
            For each of `out_features`, shallowest first, (B, C, ceil(H / stride), ceil(W / stride))
            with C and stride of `channels` and `strides`.
        """
        maps = {}
        x = self.stem(image)
        for name in self.stages:
            x = self.get_submodule(name)(x)
            if name in self.out_features:
                maps[name] = x
        return maps


class ConvNorm(nn.Conv2d):
    """A convolution without bias that keeps sides up to its stride, and its frozen norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = FrozenBatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise."""
        return self.norm(super().forward(x))


class Stem(nn.Module):
    """The image at a quarter of its resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, 64, kernel=7, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 64, ceil(H / 4), ceil(W / 4))."""
        x = F.relu(self.conv1(image), inplace=True)
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """A residual block: 1x1 to `width`, 3x3, and 1x1 to 4 * `width` channels."""

    def __init__(self, in_channels: int, width: int, stride: int, stride_in_1x1: bool) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != 4 * width:
            self.shortcut = ConvNorm(in_channels, 4 * width, kernel=1, stride=stride)
        in_1x1, in_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(in_channels, width, kernel=1, stride=in_1x1)
        self.conv2 = ConvNorm(width, width, kernel=3, stride=in_3x3)
        self.conv3 = ConvNorm(width, 4 * width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.conv1(x), inplace=True)
        y = F.relu(self.conv2(y), inplace=True)
        return F.relu(self.conv3(y) + self.shortcut(x), inplace=True)
