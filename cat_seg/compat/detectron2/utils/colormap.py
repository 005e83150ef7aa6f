"""Colours that tell classes apart."""

from __future__ import annotations

import colorsys

import numpy as np

__all__ = ["colormap"]

_COUNT = 72
_GOLDEN = 0.6180339887498949  # hues at this distance stay apart, however many there are


def colormap(rgb: bool = False, maximum: float = 255) -> np.ndarray:
    """Return (72, 3) distinct colours, 0 to `maximum`, in the order BGR unless `rgb`."""
    colors = [
        colorsys.hsv_to_rgb(i * _GOLDEN % 1, (0.95, 0.6, 0.8)[i % 3], (0.9, 1.0, 0.65)[i % 3])
        for i in range(_COUNT)
    ]
    array = np.array(colors, dtype=np.float32) * maximum
    return array if rgb else array[:, ::-1]
