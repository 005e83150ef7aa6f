"""Reading images for evaluation, where one damaged file must not end the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from cat_seg.plugin.data.dataset_mapper import read_sample_image

_STAND_IN_SIZE = 64  # pixels


class EvaluationMapper:
    """Reads and resizes as detectron2's test mapper, and lets a grey image stand in for a bad one.

    The stand-in keeps every process's batches in step. It carries the reason as "error", by which
    the evaluator names it and leaves it out. Label maps are the evaluator's business alone.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._image_format = cfg.INPUT.FORMAT
        self._augmentations = T.AugmentationList(utils.build_augmentation(cfg, False))

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Read the image of a record in detectron2's format; add "image", "height" and "width"."""
        left_out = ("annotations", "sem_seg_file_name")
        sample = {key: value for key, value in record.items() if key not in left_out}
        try:
            augmented = T.AugInput(read_sample_image(sample, self._image_format))
            self._augmentations(augmented)
        except Exception as error:  # whatever it is, the other images are worth going on
            size = _STAND_IN_SIZE
            grey = torch.full((3, size, size), 128, dtype=torch.uint8)
            reason = f"{type(error).__name__}: {error}"
            return {**sample, "image": grey, "height": size, "width": size, "error": reason}
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        return {**sample, "image": torch.from_numpy(pixels)}
