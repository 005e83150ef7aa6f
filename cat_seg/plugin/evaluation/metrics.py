"""Confusion matrices and the scores made of them; K classes, H and W pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Two averages go by the name of mIoU in detectron2 0.6. A class that is predicted somewhere but
# is nowhere in the ground truth counts as 0 in the older and is left out in the newer.
MIOU_DEFINITIONS = {
    "mIoU": "classes with ground truth (detectron2 since July 2022)",
    "mIoU_2021": "classes with ground truth or prediction (detectron2 0.6 of October 2021)",
}


def confusion_matrix(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each (predicted, true) pair of classes.

    Args:
        predicted: (H, W) integers in 0..K-1.
        truth: (H, W) integers in 0..K, where K stands for ignored.

    Returns:
        (K, K + 1) of int64: rows are predictions, columns the truth, the last of them ignored.
    """
    pairs = predicted.reshape(-1).astype(np.int64) * (num_classes + 1) + truth.reshape(-1)
    counts = np.bincount(pairs, minlength=num_classes * (num_classes + 1))
    return counts.reshape(num_classes, num_classes + 1)


class SegmentationScores(NamedTuple):
    """Scores in 0..1; those of a class are NaN where it has no ground truth."""

    iou: np.ndarray  # (K,)
    accuracy: np.ndarray  # (K,)
    miou: float
    miou_2021: float  # see MIOU_DEFINITIONS
    frequency_weighted_iou: float
    mean_accuracy: float
    pixel_accuracy: float

    @classmethod
    def from_confusion(cls, confusion: np.ndarray) -> SegmentationScores:
        """Compute the scores of a confusion matrix (K, K + 1), see `confusion_matrix`.

        All are NaN when no pixel has ground truth.
        """
        counted = confusion[:, :-1].astype(np.float64)
        hits, truth, predicted = counted.diagonal(), counted.sum(0), counted.sum(1)
        present, seen = truth > 0, truth + predicted > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = np.where(present, hits / (truth + predicted - hits), np.nan)
            accuracy = np.where(present, hits / truth, np.nan)
            return cls(
                iou=iou,
                accuracy=accuracy,
                miou=float(iou[present].sum() / present.sum()),
                miou_2021=float(iou[present].sum() / seen.sum()),
                frequency_weighted_iou=float((iou[present] * truth[present]).sum() / truth.sum()),
                mean_accuracy=float(accuracy[present].sum() / present.sum()),
                pixel_accuracy=float(hits.sum() / truth.sum()),
            )

    def as_percentages(self, names: list[str]) -> dict[str, float]:
        """Return the scores times 100 under the keys of detectron2's SemSegEvaluator."""
        scores = {
            "mIoU": self.miou,
            "mIoU_2021": self.miou_2021,
            "fwIoU": self.frequency_weighted_iou,
            **{f"IoU-{name}": float(value) for name, value in zip(names, self.iou, strict=True)},
            "mACC": self.mean_accuracy,
            "pACC": self.pixel_accuracy,
            **{f"ACC-{name}": float(x) for name, x in zip(names, self.accuracy, strict=True)},
        }
        return {key: 100 * value for key, value in scores.items()}


def interest_miou(confusion: np.ndarray, classes: Sequence[int]) -> float:
    """Average IoU over some of the classes, as MESS does; 0..1.

    A class without ground truth counts as 0 if it is predicted somewhere, as in `mIoU_2021`.

    Args:
        confusion: (K, K + 1), see `confusion_matrix`.
        classes: indices of the classes of interest.
    """
    iou = SegmentationScores.from_confusion(confusion).iou
    counted = confusion[:, :-1]
    chosen = np.isin(np.arange(len(iou)), list(classes))
    seen = chosen & (counted.sum(0) + counted.sum(1) > 0)
    return float(np.nansum(iou[seen]) / seen.sum()) if seen.any() else float("nan")
