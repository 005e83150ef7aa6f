"""ShapeSpec."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a feature map, as far as it is known; `stride` is in pixels of the image."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
