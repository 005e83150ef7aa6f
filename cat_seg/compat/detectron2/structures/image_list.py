"""ImageList: images of several sizes in one tensor.

Shape letters: N images, C channels, H and W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


class ImageList:
    """Images padded at the bottom and the right to a common size.

    Attributes:
        tensor: (N, ..., H, W).
        image_sizes: (height, width) of each image before padding.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor], size_divisibility: int = 0, pad_value: float = 0.0
    ) -> ImageList:
        """Pad images to the largest of them, and that to multiples of `size_divisibility`.

        Args:
            tensors: at least one image, (..., H, W) each.
            size_divisibility: in pixels; 0 or 1 for none.
            pad_value: what the padding is filled with.
        """
        sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
        step = max(size_divisibility, 1)
        height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
        padded = [
            F.pad(t, (0, width - w, 0, height - h), value=pad_value)
            for t, (h, w) in zip(tensors, sizes, strict=True)
        ]
        return ImageList(torch.stack(padded), sizes)
