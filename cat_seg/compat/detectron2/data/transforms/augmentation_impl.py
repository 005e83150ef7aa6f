"""Augmentations. All draw from numpy's global random state.

Shape letters: H and W, C channels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    VFlipTransform,
)
from PIL import Image

from cat_seg.errors import CATSegError

from .augmentation import Augmentation
from .transform import ResizeTransform


class RandomFlip(Augmentation):
    """Flips horizontally, or vertically, with a probability."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if horizontal == vertical:
            raise CATSegError(
                f"RandomFlip: expected one of horizontal and vertical, got "
                f"{horizontal=}, {vertical=}. Use two of them to flip both ways."
            )
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class ResizeShortestEdge(Augmentation):
    """Resizes the shorter side to a drawn length, or less where the longer would exceed a limit."""

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.Resampling.BILINEAR,
    ):
        """Keep the settings.

        Args:
            short_edge_length: in pixels; the two ends of a range, or values to choose from. A
                drawn 0 keeps the image.
            max_size: limit of the longer side, in pixels.
            sample_style: "range" or "choice".
            interp: of Pillow.
        """
        assert sample_style in ("range", "choice"), sample_style
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        self.is_range = sample_style == "range"
        assert not self.is_range or len(short_edge_length) == 2, (
            f"short_edge_length must be two values using 'range' sample style. "
            f"Got {short_edge_length}!"
        )
        self.short_edge_length = short_edge_length
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self.is_range:
            low, high = self.short_edge_length
            size = np.random.randint(low, high + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        new_height, new_width = self.get_output_shape(height, width, size, self.max_size)
        return ResizeTransform(height, width, new_height, new_width, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """Return the height and width that an image is resized to, in pixels."""
        # In this order of operations: another one rounds otherwise.
        scale = short_edge_length * 1.0 / min(oldh, oldw)
        height, width = float(short_edge_length), float(short_edge_length)
        if oldh < oldw:
            width = scale * oldw
        else:
            height = scale * oldh
        longer = max(height, width)
        if longer > max_size:
            shrink = max_size * 1.0 / longer
            height, width = height * shrink, width * shrink
        return int(height + 0.5), int(width + 0.5)


class RandomCrop(Augmentation):
    """Crops a rectangle at a drawn place."""

    def __init__(self, crop_type: str, crop_size: Sequence[Any]):
        """Keep the settings.

        Args:
            crop_type: what `crop_size` means. "absolute": height and width in pixels, or less in
                a smaller image. "absolute_range": the ends of a range from which both are drawn.
                "relative": shares of the image's height and width. "relative_range": least
                shares; the shares are drawn between them and 1.
            crop_size: two numbers.
        """
        assert crop_type in ("relative_range", "relative", "absolute", "absolute_range")
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        return self.draw(*image.shape[:2])

    def draw(self, height: int, width: int) -> CropTransform:
        """Draw size and place of a crop in an image of this size."""
        crop_height, crop_width = self.get_crop_size((height, width))
        y = np.random.randint(height - crop_height + 1)
        x = np.random.randint(width - crop_width + 1)
        return CropTransform(x, y, crop_width, crop_height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of a crop in pixels, drawn where the type says so."""
        height, width = image_size
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return min(first, height), min(second, width)
        if self.crop_type == "absolute_range":
            assert first <= second, self.crop_size
            return (
                np.random.randint(min(height, first), min(height, second) + 1),
                np.random.randint(min(width, first), min(width, second) + 1),
            )
        if self.crop_type == "relative_range":
            least = np.asarray(self.crop_size, dtype=np.float32)
            first, second = least + np.random.rand(2) * (1 - least)
        return int(height * first + 0.5), int(width * second + 0.5)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """A `RandomCrop` that is drawn again, ten times at most, while one class fills most of it."""

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[Any],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ):
        """Keep the settings.

        Args:
            crop_type: see `RandomCrop`.
            crop_size: see `RandomCrop`.
            single_category_max_area: the share of a crop that one class may fill; 1 for all of it.
            ignored_category: the label that is not counted.
        """
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.crop_type = crop_type
        self.crop_size = crop_size
        self.single_category_max_area = single_category_max_area
        self.ignored_category = ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(10):
            crop = self.crop_aug.draw(*sem_seg.shape)
            labels, areas = np.unique(crop.apply_segmentation(sem_seg), return_counts=True)
            if self.ignored_category is not None:
                areas = areas[labels != self.ignored_category]
            if len(areas) > 1 and areas.max() < areas.sum() * self.single_category_max_area:
                break
        return crop
