"""SemSegEvaluator: the metrics of semantic segmentation.

Shape letters: C classes, H and W.
"""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from ..data import DatasetCatalog, MetadataCatalog
from ..utils import comm
from ..utils.file_io import PathManager
from .evaluator import DatasetEvaluator

_BOUNDARY = 0.02  # width of a boundary, as a share of the image's diagonal


def load_image_into_numpy_array(filename: str, dtype: Any = None) -> np.ndarray:
    """Read a label map (H, W)."""
    with PathManager.open(filename, "rb") as file:
        return np.array(Image.open(file), dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """mIoU and its kin, from a confusion matrix over all images.

    mIoU is the mean over the classes that have ground truth, as in detectron2 since July 2022.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
    ):
        """Look up a dataset's label maps, and in its metadata `stuff_classes` and `ignore_label`.

        Args:
            dataset_name: as registered.
            distributed: whether results of all processes are put together.
            output_dir: where predictions and results are written; None for nowhere.
            sem_seg_loading_fn: reads a label map, (path, dtype=) -> (H, W).
        """
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self.sem_seg_loading_fn = sem_seg_loading_fn
        self.input_file_to_gt_file = {
            sample["file_name"]: sample["sem_seg_file_name"]
            for sample in DatasetCatalog.get(dataset_name)
        }
        meta = MetadataCatalog.get(dataset_name)
        to_contiguous = meta.get("stuff_dataset_id_to_contiguous_id")
        self._contiguous_id_to_dataset_id = to_contiguous and {
            index: id for id, index in to_contiguous.items()
        }
        self._class_names = meta.stuff_classes
        self._num_classes = len(meta.stuff_classes)
        self._ignore_label = meta.ignore_label
        self._compute_boundary_iou = self._num_classes < np.iinfo(np.uint8).max
        if not self._compute_boundary_iou:
            self._logger.warning(
                f"{dataset_name} has {self._num_classes} classes: boundary IoU, which is computed "
                f"in 8 bits, is left out."
            )

    def reset(self) -> None:
        # [predicted, true], where the last class is what is ignored.
        size = self._num_classes + 1
        self._conf_matrix = np.zeros((size, size), dtype=np.int64)
        self._b_conf_matrix = np.zeros((size, size), dtype=np.int64)
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compare the arg max of each "sem_seg" (C, H, W) with the label map of its "file_name"."""
        for input, output in zip(inputs, outputs, strict=True):
            name = input["file_name"]
            labels = output["sem_seg"].argmax(dim=0).to(self._cpu_device)
            prediction = np.array(labels, dtype=int)
            truth = self.sem_seg_loading_fn(self.input_file_to_gt_file[name], dtype=int)
            truth[truth == self._ignore_label] = self._num_classes
            self._conf_matrix += self._confusion(prediction, truth)
            if self._compute_boundary_iou:
                self._b_conf_matrix += self._confusion(
                    _boundary(prediction.astype(np.uint8)), _boundary(truth.astype(np.uint8))
                )
            self._predictions.extend(self.encode_json_sem_seg(prediction, name))

    def _confusion(self, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
        size = self._num_classes + 1
        pairs = size * prediction.astype(int).ravel() + truth.ravel()
        return np.bincount(pairs, minlength=size * size).reshape(size, size)

    def evaluate(self) -> dict[str, Any] | None:
        """Return {"sem_seg": ...} with mIoU, fwIoU, mACC, pACC and those of each class, in %."""
        if self._distributed:
            comm.synchronize()
            everyone = comm.all_gather((self._conf_matrix, self._b_conf_matrix, self._predictions))
            if not comm.is_main_process():
                return None
            confusions, boundaries, predictions = zip(*everyone, strict=True)
            self._conf_matrix, self._b_conf_matrix = sum(confusions), sum(boundaries)
            self._predictions = list(chain.from_iterable(predictions))
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with self._output("sem_seg_predictions.json", "w") as file:
                file.write(json.dumps(self._predictions))

        hits, true, predicted = _counts(self._conf_matrix)
        seen = true > 0
        accuracy = _ratio(hits, true, seen)
        iou = _ratio(hits, true + predicted - hits, seen)
        result = {
            "mIoU": 100 * np.sum(iou[seen]) / np.sum(seen),
            "fwIoU": 100 * np.sum(iou[seen] * (true / np.sum(true))[seen]),
        }
        if self._compute_boundary_iou:
            hits_b, true_b, predicted_b = _counts(self._b_conf_matrix)
            union = true_b + predicted_b - hits_b
            boundary_iou = _ratio(hits_b, union, union > 0)
        for i, name in enumerate(self._class_names):
            result[f"IoU-{name}"] = 100 * iou[i]
            if self._compute_boundary_iou:
                result[f"BoundaryIoU-{name}"] = 100 * boundary_iou[i]
                result[f"min(IoU, B-Iou)-{name}"] = 100 * min(iou[i], boundary_iou[i])
        result["mACC"] = 100 * np.sum(accuracy[seen]) / np.sum(seen)
        result["pACC"] = 100 * np.sum(hits) / np.sum(true)
        for i, name in enumerate(self._class_names):
            result[f"ACC-{name}"] = 100 * accuracy[i]

        if self._output_dir:
            with self._output("sem_seg_evaluation.pth", "wb") as file:
                torch.save(result, file)
        results = OrderedDict({"sem_seg": result})
        self._logger.info(results)
        return results

    def _output(self, name: str, mode: str) -> Any:
        return PathManager.open(os.path.join(str(self._output_dir), name), mode)

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """Encode a label map (H, W) in COCO's format for stuff: one RLE mask a class."""
        segments = []
        for label in np.unique(sem_seg).tolist():
            ids = self._contiguous_id_to_dataset_id
            assert not ids or label in ids, (
                f"Label {label} is not in the metadata info for {self._dataset_name}"
            )
            mask = mask_util.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            mask["counts"] = mask["counts"].decode("utf-8")
            segments.append(
                {
                    "file_name": input_file_name,
                    "category_id": ids[label] if ids else label,
                    "segmentation": mask,
                }
            )
        return segments


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels that are right, true and predicted, (C,) each, where the truth is known."""
    known = confusion[:-1, :-1].astype(float)
    return known.diagonal(), known.sum(axis=0), known.sum(axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=defined)


def _boundary(labels: np.ndarray) -> np.ndarray:
    """Leave what an erosion of the label values takes from a label map (H, W) of uint8."""
    height, width = labels.shape
    steps = max(1, round(_BOUNDARY * np.sqrt(height**2 + width**2)))
    padded = np.pad(labels, 1)
    eroded = cv2.erode(padded, np.ones((3, 3), dtype=np.uint8), iterations=steps)
    return labels - eroded[1:-1, 1:-1]
