"""From a dataset's entry to a training sample: read, augment, pad."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from torch.nn import functional as F

from cat_seg import images
from cat_seg.errors import CATSegError
from cat_seg.label_rules import IGNORED, NOTHING, LabelRule
from cat_seg.plugin.data.color_jitter import SSDColorJitter
from cat_seg.plugin.data.labels import label_rule
from cat_seg.plugin.data.vocabulary import training_vocabulary

logger = logging.getLogger(__name__)

IMAGE_PADDING = 128  # mid-grey


@dataclass(frozen=True)
class TrainingLabels:
    """What the labels of one of the training data sets mean.

    Attributes:
        rule: from the values of its label maps to its classes.
        classes: the class of the training that each of its own is; None if they are the same.
        teaches_nothing: whether a pixel of no class teaches nothing, instead of that it shows none
            of the classes.
    """

    rule: LabelRule
    classes: tuple[int, ...] | None = None
    teaches_nothing: bool = False


class SemanticSegmentationMapper(DatasetMapper):
    """Makes training samples for semantic segmentation.

    Resize, random crop with the limit on the share of one class, colour jitter of SSD, flip, then
    padding to the right and below.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[Any],
        image_format: str,
        ignore_label: int,
        datasets: Mapping[str, TrainingLabels],
        size_divisibility: int,
    ) -> None:
        """Set what happens to an image.

        Args:
            augmentations: of detectron2, applied in order.
            image_format: "RGB" or "BGR".
            ignore_label: label of pixels that belong to no class, also used for padding.
            datasets: what the labels of each data set mean; a sample that names no "dataset" is
                of the first.
            size_divisibility: images are padded to multiples of this, in pixels; -1 for none.
        """
        super().__init__(True, augmentations=augmentations, image_format=image_format)
        self.ignore_label = ignore_label
        self.datasets = dict(datasets)
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read INPUT, IGNORE_VALUE, and the labels' meaning in DATASETS.TRAIN."""
        ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        names = training_vocabulary(cfg.MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON, cfg.DATASETS.TRAIN)
        if len(cfg.DATASETS.TRAIN) > 1:
            sizes = zip(cfg.DATASETS.TRAIN, map(len, names.classes), strict=True)
            shown = ", ".join(f"{name} ({size} classes)" for name, size in sizes)
            logger.info("Training on %s: %d classes together", shown, len(names.names))
        datasets = {}
        for name, classes in zip(cfg.DATASETS.TRAIN, names.classes, strict=True):
            every = classes == list(range(len(names.names)))
            datasets[name] = TrainingLabels(
                rule=label_rule(name, len(classes)),
                classes=None if every else tuple(classes),
                teaches_nothing=MetadataCatalog.get(name).get("unlabelled") == "nothing",
            )
            if 0 <= ignore_label < len(classes):
                raise CATSegError(
                    f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_label}, but that is also the "
                    f"label of {names.names[classes[ignore_label]]!r} in {name}; set it to "
                    f"{len(classes)} or more."
                )
        return {
            "augmentations": build_augmentations(cfg, ignore_label),
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": ignore_label,
            "datasets": datasets,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Make a sample.

        Args:
            dataset_dict: "file_name" and "sem_seg_file_name", in detectron2's format, and
                "dataset", where there are several.

        Returns:
            The entry, with "image" (3, H, W) uint8, "sem_seg" (H, W) int64, "height" and "width" of
            the image as stored. Where its data set has not all classes of the training, "classes"
            (K,) int64 are those that it has, into which "sem_seg" counts.

        Raises:
            CATSegError: if a file cannot be read, or the labels have another size than the image or
                are out of range.
        """
        sample = dict(dataset_dict)
        dataset = self.datasets[sample.get("dataset") or next(iter(self.datasets))]
        image = read_sample_image(sample, self.image_format)
        labels = self._read_labels(sample, dataset.rule, image.shape[:2])
        augmented = T.AugInput(image, sem_seg=labels)
        self.augmentations(augmented)
        pixels = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        targets = torch.from_numpy(augmented.sem_seg.astype(np.int64))

        if self.size_divisibility > 0:
            bottom, right = (-side % self.size_divisibility for side in targets.shape)
            pixels = F.pad(pixels, (0, right, 0, bottom), value=IMAGE_PADDING)
            targets = F.pad(targets, (0, right, 0, bottom), value=self.ignore_label)
        if dataset.teaches_nothing:
            targets[targets == self.ignore_label] = NOTHING
        if dataset.classes is not None:
            sample["classes"] = torch.tensor(dataset.classes)
        return sample | {"image": pixels, "sem_seg": targets}

    def _read_labels(
        self, sample: dict[str, Any], rule: LabelRule, size: tuple[int, int]
    ) -> np.ndarray:
        file_name = sample["sem_seg_file_name"]
        labels = rule.read(file_name)
        if labels.shape != size:
            raise CATSegError(
                f"{file_name} has shape {labels.shape}, but its image {sample['file_name']} is "
                f"{size[0]} x {size[1]} pixels; expected one label a pixel."
            )
        labels = np.where(labels == IGNORED, self.ignore_label, labels)
        # detectron2 resizes 8-bit arrays with Pillow, and others as floats.
        return labels.astype(np.uint8 if 0 <= labels.min() and labels.max() < 256 else np.float64)


def read_sample_image(sample: dict[str, Any], image_format: str) -> np.ndarray:
    """Read a sample's image with the reader of everything else.

    Args:
        sample: "file_name" as in detectron2; gets "height" and "width", if they are not there.
        image_format: "RGB" or "BGR", INPUT.FORMAT.

    Returns:
        (H, W, 3) uint8.

    Raises:
        CATSegError: naming the file, if it cannot be read or is not of the size that `sample` says.
    """
    if image_format not in ("RGB", "BGR"):
        raise CATSegError(f"INPUT.FORMAT is {image_format!r}; expected 'RGB' or 'BGR'.")
    image = images.read(PathManager.get_local_path(sample["file_name"]))
    utils.check_image_size(sample, image)
    return image if image_format == "RGB" else image[:, :, ::-1]


def build_augmentations(cfg: CfgNode, ignore_label: int) -> list[Any]:
    """Build the augmentations of training, in order, from INPUT."""
    augmentations: list[Any] = [
        T.ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN,
            cfg.INPUT.MAX_SIZE_TRAIN,
            cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        )
    ]
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                cfg.INPUT.CROP.TYPE,
                cfg.INPUT.CROP.SIZE,
                cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
                ignore_label,
            )
        )
    if cfg.INPUT.COLOR_AUG_SSD:
        if cfg.INPUT.FORMAT != "RGB":
            raise CATSegError(
                f"INPUT.COLOR_AUG_SSD needs INPUT.FORMAT 'RGB', not {cfg.INPUT.FORMAT!r}."
            )
        augmentations.append(SSDColorJitter())
    flip = cfg.INPUT.RANDOM_FLIP
    if flip != "none":
        augmentations.append(
            T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")
        )
    return augmentations


# What INPUT.DATASET_MAPPER_NAME may be; the first is the name that published YAMLs use.
MAPPERS = {
    "mask_former_semantic": SemanticSegmentationMapper,
    "semantic_segmentation": SemanticSegmentationMapper,
}


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """Build the training mapper of INPUT.DATASET_MAPPER_NAME."""
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        raise CATSegError(
            f"INPUT.DATASET_MAPPER_NAME is {name!r}; expected one of {sorted(MAPPERS)}."
        )
    return MAPPERS[name](cfg)
