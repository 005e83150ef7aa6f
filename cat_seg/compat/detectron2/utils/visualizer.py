"""Drawing label maps on images.

Shape letters: H and W.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from ..data import Metadata
from .colormap import colormap

__all__ = ["ColorMode", "VisImage", "Visualizer"]

_EDGE = (255, 255, 240)  # colour of outlines
_LABELLED_AREA = 120_000  # pixels from which every part of a class is named, not the largest alone


class ColorMode(Enum):
    """What the image beneath looks like: IMAGE and SEGMENTATION as it is, IMAGE_BW grey."""

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


class VisImage:
    """A picture (H, W, 3), RGB."""

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        """Copy an image of values 0..255, and enlarge it by `scale`."""
        pixels: np.ndarray = np.ascontiguousarray(img).astype(np.uint8)
        if scale != 1.0:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        self.img = pixels.copy()
        self.scale = scale
        self.height, self.width = img.shape[:2]

    def save(self, filepath: str) -> None:
        """Write the picture to a file."""
        Image.fromarray(self.img).save(filepath)

    def get_image(self) -> np.ndarray:
        """Return the picture, uint8."""
        return self.img


class Visualizer:
    """Draws on a copy of an image; the picture is `output`."""

    def __init__(
        self,
        img_rgb: Any,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
    ):
        """Copy the image.

        Args:
            img_rgb: (H, W, 3), 0..255.
            metadata: names (`stuff_classes`) and, if it has them, RGB colours (`stuff_colors`).
            scale: enlargement of the picture.
            instance_mode: what the image beneath looks like.
        """
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        if instance_mode is ColorMode.IMAGE_BW:
            grey = self.img.mean(axis=2, keepdims=True)
            self.img = np.repeat(grey, 3, axis=2).astype(np.uint8)
        self.metadata = Metadata() if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)

    def draw_sem_seg(
        self,
        sem_seg: torch.Tensor | np.ndarray,
        area_threshold: int | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
    ) -> VisImage:
        """Draw each class in its colour, outlined, with its name in the middle.

        Args:
            sem_seg: (H, W) labels; those without a name are left out.
            area_threshold: pixels below which a class is left out.
            alpha: opacity of the colour, 0 to 1.
            draw_text: whether to draw names.
        """
        labels = np.asarray(sem_seg)
        names = self.metadata.get("stuff_classes", [])
        colors = self.metadata.get("stuff_colors") or colormap(rgb=True)
        picture = self.output.img
        size = picture.shape[1], picture.shape[0]
        present, areas = np.unique(labels, return_counts=True)
        texts = []
        for label, area in sorted(zip(present, areas, strict=True), key=lambda x: -x[1]):
            if not 0 <= label < len(names) or area < (area_threshold or 0):
                continue
            mask = (labels == label).astype(np.uint8)
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
            color = np.array(colors[int(label) % len(colors)])
            inside = mask > 0
            picture[inside] = (1 - alpha) * picture[inside] + alpha * color
            outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(picture, outlines, -1, _EDGE, 1)
            texts.append((names[int(label)], mask))
        for text, mask in texts if draw_text else []:  # above all colours
            self._draw_name(text, mask)
        return self.output

    def _draw_name(self, text: str, mask: np.ndarray) -> None:
        picture = self.output.img
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        height = max(0.4, (picture.shape[0] * picture.shape[1]) ** 0.5 / 1200)  # cv2's font scale
        for part in range(1, count):
            if part != largest and stats[part, cv2.CC_STAT_AREA] < _LABELLED_AREA:
                continue
            y, x = np.median(np.nonzero(parts == part), axis=1).astype(int)
            (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, height, 1)
            x = int(np.clip(x - w // 2, 0, max(picture.shape[1] - w, 0)))
            cv2.rectangle(picture, (x, y - h - 2), (x + w, y + below), (0, 0, 0), cv2.FILLED)
            cv2.putText(
                picture,
                text,
                (x, int(y)),
                cv2.FONT_HERSHEY_SIMPLEX,
                height,
                (255, 255, 255),
                1,
                cv2.LINE_AA,
            )
