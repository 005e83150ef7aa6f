"""SemSegEvaluator: which label map belongs to which image, and predictions in COCO's format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from ..data import DatasetCatalog, MetadataCatalog
from .evaluator import DatasetEvaluator


class SemSegEvaluator(DatasetEvaluator):
    """Looks up a dataset's label maps; a subclass compares predictions with them.

    Attributes:
        input_file_to_gt_file: paths of label maps by the paths of images.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None):
        """Look up a dataset.

        Args:
            dataset_name: as registered.
            distributed: whether results of all processes are put together.
            output_dir: where predictions and results are written; None for nowhere.
        """
        self._distributed = distributed
        self._output_dir = output_dir
        self.input_file_to_gt_file = {
            sample["file_name"]: sample["sem_seg_file_name"]
            for sample in DatasetCatalog.get(dataset_name)
        }
        to_contiguous = MetadataCatalog.get(dataset_name).get("stuff_dataset_id_to_contiguous_id")
        self._dataset_id = {index: id for id, index in (to_contiguous or {}).items()}

    def reset(self) -> None:
        raise NotImplementedError("what is measured is a subclass's, or the real detectron2's")

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """Encode a label map (H, W) in COCO's format for stuff: one RLE mask a class."""
        segments: list[dict[str, Any]] = []
        for label in np.unique(sem_seg).tolist():
            mask = mask_util.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            segments.append(
                {
                    "file_name": input_file_name,
                    "category_id": self._dataset_id[label] if self._dataset_id else label,
                    "segmentation": {**mask, "counts": mask["counts"].decode("utf-8")},
                }
            )
        return segments
