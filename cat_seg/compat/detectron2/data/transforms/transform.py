"""Transforms that fvcore does not have.

Shape letters: H and W, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from fvcore.transforms.transform import Transform
from PIL import Image
from torch.nn import functional as F

_MODES = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


class ResizeTransform(Transform):
    """Resizes images to (new_h, new_w), and label maps by the nearest label."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.interp = Image.Resampling.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (h, w) or (h, w, C): uint8 with Pillow, floating point with torch."""
        assert img.shape[:2] == (self.h, self.w), (img.shape, self.h, self.w)
        method = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            one_channel = img.ndim == 3 and img.shape[2] == 1
            image = Image.fromarray(img[:, :, 0] if one_channel else img)
            resized = np.asarray(image.resize((self.new_w, self.new_h), method))
        else:
            mode = _MODES[Image.Resampling(method)]
            planes = torch.from_numpy(np.ascontiguousarray(img.reshape(self.h, self.w, -1)))
            maps = F.interpolate(
                planes.permute(2, 0, 1)[None],  # (1, C, h, w)
                (self.new_h, self.new_w),
                mode=mode,
                align_corners=None if mode == "nearest" else False,
            )
            resized = maps[0].permute(1, 2, 0).numpy()
        return resized.reshape(self.new_h, self.new_w, *img.shape[2:])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale (N, 2) points x, y in place."""
        coords[:, 0] *= self.new_w / self.w
        coords[:, 1] *= self.new_h / self.h
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a label map (h, w)."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)
