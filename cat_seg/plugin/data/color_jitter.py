"""The colour jitter of SSD (Liu et al., ECCV 2016, section 2.2), INPUT.COLOR_AUG_SSD.

torchvision's v2 transforms are not equal to it, so the lines are our own: brightness is a factor
there and an offset here, contrast turns about the mean grey and not about black, and saturation
blends with grey instead of scaling HSV's S; hue differs by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

BRIGHTNESS = 32.0  # added or taken away at most, of 255
CONTRAST = SATURATION = (0.5, 1.5)  # range of the factor
HUE = 18  # shifted either way at most, of OpenCV's 180


class SSDColorJitter(T.Augmentation):
    """Draw brightness, contrast, saturation and hue, each with probability one half.

    Brightness comes first; contrast comes before or after saturation and hue.
    """

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the jitter of one image."""
        brightness = _maybe(lambda: np.random.uniform(-BRIGHTNESS, BRIGHTNESS), otherwise=0.0)
        contrast = _maybe(lambda: np.random.uniform(*CONTRAST), otherwise=1.0)
        saturation = _maybe(lambda: np.random.uniform(*SATURATION), otherwise=1.0)
        hue = _maybe(lambda: np.random.randint(-HUE, HUE + 1), otherwise=0)
        return ColorTransform(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            contrast_first=bool(np.random.randint(2)),
        )


class ColorTransform(Transform):
    """Changes the colours of an RGB image, and nothing else of a sample."""

    def __init__(
        self,
        *,
        brightness: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: int = 0,
        contrast_first: bool = True,
    ) -> None:
        """Set what is added (brightness, of 255; hue, of 180) and the factors of the others."""
        super().__init__()
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.contrast_first = contrast_first

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Map (H, W, 3) uint8 RGB to the same; every step is clipped to 0..255."""
        image = _scale(image, 1.0, self.brightness)
        if self.contrast_first:
            return self._saturation_and_hue(_scale(image, self.contrast))
        return _scale(self._saturation_and_hue(image), self.contrast)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Leave coordinates as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Leave labels as they are."""
        return segmentation

    def _saturation_and_hue(self, image: np.ndarray) -> np.ndarray:
        if self.saturation == 1.0 and self.hue == 0:
            return image  # HSV and back is not exact
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _scale(hsv[..., 1], self.saturation)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + self.hue) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _maybe(draw: Callable[[], Any], *, otherwise: Any) -> Any:
    return draw() if np.random.randint(2) else otherwise


def _scale(values: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    if factor == 1.0 and offset == 0.0:
        return values
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)
