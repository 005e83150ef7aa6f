"""Semantic segmentation as two folders: images and label maps."""

from __future__ import annotations

import logging
import os

from ...utils.file_io import PathManager

_logger = logging.getLogger(__name__)


def load_sem_seg(
    gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg"
) -> list[dict[str, str]]:
    """Pair images with label maps of the same name.

    Where one of a pair is missing, the other is left out, with a warning.

    Args:
        gt_root: folder of label maps.
        image_root: folder of images.
        gt_ext: how the name of a label map ends.
        image_ext: how the name of an image ends.

    Returns:
        A dict with "file_name" and "sem_seg_file_name" for each pair, sorted by name.

    Raises:
        AssertionError: if there is no label map.
    """
    images, labels = _listing(image_root, image_ext), _listing(gt_root, gt_ext)
    assert labels, f"No annotations found in {gt_root}."
    if len(images) != len(labels):
        _logger.warning(
            f"Directory {image_root} and {gt_root} has {len(images)} and {len(labels)} files, "
            "respectively."
        )
        both = {f[: -len(image_ext)] for f in images} & {f[: -len(gt_ext)] for f in labels}
        _logger.warning(f"Will use their intersection of {len(both)} files.")
        images = [stem + image_ext for stem in sorted(both)]
        labels = [stem + gt_ext for stem in sorted(both)]
    _logger.info(f"Loaded {len(images)} images with semantic segmentation from {image_root}")
    return [
        {
            "file_name": os.path.join(image_root, image),
            "sem_seg_file_name": os.path.join(gt_root, label),
        }
        for image, label in zip(images, labels, strict=True)
    ]


def _listing(folder: str, ending: str) -> list[str]:
    names = (name for name in PathManager.ls(folder) if name.endswith(ending))
    return sorted(names, key=lambda name: os.path.splitext(name)[0])
