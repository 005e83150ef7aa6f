"""From a sample of a listing to what a model takes.

Shape letters: H and W.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from ..config import configurable
from . import detection_utils as utils
from . import transforms as T


class DatasetMapper:
    """Reads an image and its label map, and augments both alike."""

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
    ):
        """Keep the settings.

        Args:
            is_train: whether samples are for training.
            augmentations: applied one after the other.
            image_format: "RGB", "BGR", or a mode of Pillow.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info(
            f"[DatasetMapper] Augmentations used in {mode}: {augmentations}"
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Translate INPUT.* into arguments."""
        augmentations = utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Add "image" (C, H, W) and, if "sem_seg_file_name" is there, "sem_seg" (H, W) int64."""
        sample = copy.deepcopy(dataset_dict)
        image = utils.read_image(sample["file_name"], format=self.image_format)
        utils.check_image_size(sample, image)
        labels = None
        if "sem_seg_file_name" in sample:
            labels = utils.read_image(sample.pop("sem_seg_file_name"), "L").squeeze(2)
        both = T.AugInput(image, sem_seg=labels)
        self.augmentations(both)
        sample["image"] = torch.as_tensor(np.ascontiguousarray(both.image.transpose(2, 0, 1)))
        if both.sem_seg is not None:
            sample["sem_seg"] = torch.as_tensor(both.sem_seg.astype("long"))
        sample.pop("annotations", None)  # of instances
        return sample
