"""Reading images, and the usual augmentations."""

from __future__ import annotations

from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from PIL import ExifTags, Image

from ..utils.file_io import PathManager
from . import transforms as T

__all__ = ["SizeMismatchError", "build_augmentation", "check_image_size", "read_image"]

# What undoes each orientation of EXIF.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """An image is not of the size that its dataset says."""


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image, upright as its EXIF data says.

    Args:
        file_name: path.
        format: a mode of Pillow, or "BGR"; None for the mode of the file.

    Returns:
        (H, W, channels) values; (H, W) for a file of one channel read with `format` None.
    """
    with PathManager.open(file_name, "rb") as file:
        image: Image.Image = Image.open(file)
        upright = _UPRIGHT.get(_orientation(image))
        image = image if upright is None else image.transpose(upright)
        if format is not None:
            image = image.convert("RGB" if format == "BGR" else format)
        array = np.asarray(image)
    if format == "BGR":
        return array[:, :, ::-1]
    return array[:, :, None] if format == "L" else array


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data may be damaged in any way; the image may be fine
        return 1


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare "width" and "height" of a sample with its image; add them if they are not there.

    Raises:
        SizeMismatchError: if they differ.
    """
    height, width = image.shape[:2]
    expected = (dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height))
    if expected != (width, height):
        of = f" for image {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
        raise SizeMismatchError(
            f"Mismatched image shape{of}, got {(width, height)}, expect {expected}."
            " Please check the width/height in your annotation."
        )


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Make what INPUT.* says: a resize of the shorter side and, for training, a random flip."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    sizes, style = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, style)
    ]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip != "none":
        horizontal, vertical = flip == "horizontal", flip == "vertical"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=vertical))
    return augmentations
