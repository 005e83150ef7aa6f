"""The tile grid of sliding-window inference and the merging of its results.

L tiles, K the side of a tile in pixels, H and W the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cat_seg.errors import CATSegError


@dataclass(frozen=True)
class TileGrid:
    """Square tiles over a square image, row by row; the whole image comes last as one more tile.

    Attributes:
        kernel: K, in pixels.
        overlap: share of the kernel by which neighbours overlap, 0 <= overlap < 1.
        resolution: side to which the image is resized, in pixels.

    Raises:
        CATSegError: if the tiles do not cover the image exactly.
    """

    kernel: int = 384
    overlap: float = 0.333
    resolution: int = 640

    def __post_init__(self) -> None:
        rest = self.resolution - self.kernel
        if self.stride < 1 or rest < 0 or rest % self.stride:
            raise CATSegError(
                f"Tiles of TEST.SLIDING_KERNEL {self.kernel} at a stride of "
                f"int({self.kernel} * (1 - {self.overlap})) = {self.stride} do not cover "
                f"TEST.SLIDING_RESOLUTION {self.resolution} exactly: it must be the kernel plus a "
                "multiple of the stride."
            )

    @property
    def stride(self) -> int:
        """Distance between neighbouring tiles, in pixels."""
        return int(self.kernel * (1 - self.overlap))

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of each tile, in pixels."""
        starts = range(0, self.resolution - self.kernel + 1, self.stride)
        return [(top, left) for top in starts for left in starts]

    @property
    def count(self) -> int:
        """Tiles of an image, the whole one included: L + 1."""
        return len(self.corners) + 1

    def cut(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (L + 1, 3, K, K): the tiles of the resized image, then the whole image."""
        K = self.kernel
        square = resize(image[None], self.resolution)
        tiles = [square[..., top : top + K, left : left + K] for top, left in self.corners]
        return torch.cat([*tiles, resize(image[None], K)])

    def merge(self, maps: Tensor) -> Tensor:
        """The mean of the tiles, averaged where they overlap, and of the whole image's map.

        Args:
            maps: (L + 1, T, K, K)

        Returns:
            (T, resolution, resolution)
        """
        K = self.kernel
        total = maps.new_zeros(maps.shape[1], self.resolution, self.resolution)
        count = maps.new_zeros(self.resolution, self.resolution)
        for tile, (top, left) in zip(maps[:-1], self.corners, strict=True):
            total[:, top : top + K, left : left + K] += tile
            count[top : top + K, left : left + K] += 1
        return total.div_(count).add_(resize(maps[-1:], self.resolution)[0]).div_(2)


def resize(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear, align_corners False: (B, C, H, W) -> (B, C, size)."""
    size = (size, size) if isinstance(size, int) else size
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
