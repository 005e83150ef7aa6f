"""ImageList: images of several sizes in one tensor.

Shape letters: N images, C channels, H and W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """Return image `idx` without its padding."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """Return the images moved or cast as `Tensor.to` does."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        """Pad images to the largest of them, and that to multiples of `size_divisibility`.

        Args:
            tensors: at least one image, (..., H, W) each.
            size_divisibility: in pixels; 0 or 1 for none.
            pad_value: what the padding is filled with.
            padding_constraints: may hold "size_divisibility", which takes precedence, and
                "square_size", the side in pixels to which all images are padded if above 0.
        """
        constraints = padding_constraints or {}
        sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
        square = constraints.get("square_size", 0)
        largest = [square] * 2 if square > 0 else [max(side) for side in zip(*sizes, strict=True)]
        step = max(constraints.get("size_divisibility", size_divisibility), 1)
        height, width = (-(-side // step) * step for side in largest)
        padded = [
            F.pad(t, (0, width - w, 0, height - h), value=pad_value)
            for t, (h, w) in zip(tensors, sizes, strict=True)
        ]
        return ImageList(torch.stack(padded), sizes)
