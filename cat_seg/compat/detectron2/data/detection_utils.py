"""The size of images, as told and as wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from . import transforms as T


class SizeMismatchError(ValueError):
    """An image is not of the size that its dataset says."""


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare "width" and "height" of a sample with its image; add them if they are not there.

    Raises:
        SizeMismatchError: if they differ.
    """
    height, width = image.shape[:2]
    expected = (dataset_dict.setdefault("width", width), dataset_dict.setdefault("height", height))
    if expected != (width, height):
        which = f" for image {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
        raise SizeMismatchError(
            f"Mismatched image shape{which}, got {(width, height)}, expect {expected}."
            " Please check the width/height in your annotation."
        )


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Make what INPUT.* says for testing, a resize of the shorter side; not for training."""
    assert not is_train, "the stand-in makes the augmentations of testing alone"
    return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
