"""From the size that a model saw to the size that the image has."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut off padding and resize (bilinear).

    Args:
        result: (C, H, W) scores of the padded input.
        img_size: height and width of the input without padding.
        output_height: in pixels.
        output_width: in pixels.

    Returns:
        (C, output_height, output_width) scores.
    """
    height, width = img_size
    size = (output_height, output_width)
    unpadded = result[None, :, :height, :width]
    return F.interpolate(unpadded, size=size, mode="bilinear", align_corners=False)[0]
