"""What an evaluation found: gathered, printed and saved."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from cat_seg.label_rules import LabelRule
from cat_seg.plugin.evaluation.metrics import (
    MIOU_DEFINITIONS,
    SegmentationScores,
    interest_miou,
)
from cat_seg.utils.files import atomic_write

logger = logging.getLogger(__name__)

_COLUMNS = 3  # classes side by side in the printed table


@dataclass
class EvaluationResult:
    """The counts of one process, or of all."""

    dataset: str
    class_names: list[str]  # K of them
    expected: int  # images of the complete dataset
    limit: int  # images asked for; 0 for all
    confusion: np.ndarray  # (K, K + 1), see `confusion_matrix`
    images: dict[str, dict[str, float]] = field(default_factory=dict)  # file name -> its scores
    left_out: dict[str, str] = field(default_factory=dict)  # file name -> reason
    predictions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # COCO's RLE
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)  # file name -> see `add`
    run: dict[str, str] = field(default_factory=dict)  # SHA-256 of what made the predictions
    of_interest: tuple[int, ...] = ()  # classes of an average of their own, CoI-mIoU
    # Every file name -> its label map and the predicted one, "" where none is written.
    label_maps: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    rule: LabelRule = field(default_factory=LabelRule)  # of the label maps

    def add(
        self,
        file_name: str,
        confusion: np.ndarray,
        rle: list[dict[str, Any]],
        digests: tuple[str, str],
    ) -> None:
        """Add the counts of one image, with the SHA-256 of its file and of its ground truth's."""
        self.digests[file_name] = digests
        scores = SegmentationScores.from_confusion(confusion)
        self.confusion += confusion
        self.images[file_name] = {"mIoU": 100 * scores.miou, "pACC": 100 * scores.pixel_accuracy}
        self.predictions[file_name] = rle

    @classmethod
    def merge(cls, parts: Sequence[EvaluationResult]) -> EvaluationResult:
        """Sum the counts of several processes; integers, so their order does not matter."""
        first = parts[0]
        merged = cls(
            first.dataset,
            first.class_names,
            first.expected,
            first.limit,
            np.sum([p.confusion for p in parts], 0),
            run=first.run,
            of_interest=first.of_interest,
            label_maps=first.label_maps,
            rule=first.rule,
        )
        for part in parts:
            merged.images |= part.images
            merged.left_out |= part.left_out
            merged.predictions |= part.predictions
            merged.digests |= part.digests
        return merged

    @property
    def scores(self) -> SegmentationScores:
        """Scores of all images together."""
        return SegmentationScores.from_confusion(self.confusion)

    @property
    def remark(self) -> str:
        """Why the figures are not comparable with those of others; empty if they are."""
        count = len(self.images)
        if count == self.expected:
            return ""
        why = [f"limited to {self.limit}"] if 0 < self.limit < self.expected else []
        why += [f"{len(self.left_out)} left out"] if self.left_out else []
        more = f" ({', '.join(why)})" if why else ""
        return f"not comparable: {count} of {self.expected} images{more}"

    @property
    def data_digest(self) -> str:
        """SHA-256 of all images and their ground truth, by their names and contents."""
        lines = sorted(
            f"{Path(name).name} {one} {two}" for name, (one, two) in self.digests.items()
        )
        return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return the figures in percent and what they rest on, as JSON takes them."""
        figures = self.scores.as_percentages(self.class_names)
        figures = {key: value for key, value in figures.items() if "-" not in key}
        if self.of_interest:
            figures["CoI-mIoU"] = 100 * interest_miou(self.confusion, self.of_interest)
        return {
            "dataset": self.dataset,
            "images": len(self.images),
            "expected_images": self.expected,
            "limit": self.limit or None,
            "comparable": not self.remark,
            "remark": self.remark,
            "left_out": dict(sorted(self.left_out.items())),
            "sha256": {**self.run, "data": self.data_digest},
            **{key: _number(value) for key, value in figures.items()},
        }

    def classes(self) -> list[dict[str, Any]]:
        """Return the rows of per_class.csv; each says how many images it rests on."""
        scores = self.scores
        truth, predicted = self.confusion[:, :-1].sum(0), self.confusion[:, :-1].sum(1)
        return [
            {
                "dataset": self.dataset,
                "images": f"{len(self.images)} of {self.expected}",
                "class": name,
                "IoU": _number(100 * scores.iou[k]),
                "ACC": _number(100 * scores.accuracy[k]),
                "pixels": int(truth[k]),
                "predicted_pixels": int(predicted[k]),
            }
            for k, name in enumerate(self.class_names)
        ]


def log_result(result: EvaluationResult) -> None:
    """Log the table of classes, the figures, and what was left out."""
    scores = result.scores
    cells = [
        (name, _figure(iou), _figure(accuracy))
        for name, iou, accuracy in zip(result.class_names, scores.iou, scores.accuracy, strict=True)
    ]
    columns = min(_COLUMNS, len(cells))
    height = math.ceil(len(cells) / columns)
    rows = [sum(cells[row::height], ()) for row in range(height)]
    table = tabulate(
        rows, ["class", "IoU", "ACC"] * columns, tablefmt="pipe", disable_numparse=True
    )
    logger.info("%s, per class in percent:\n%s", result.dataset, table)
    averages = scores.as_percentages(result.class_names)
    for key, meaning in MIOU_DEFINITIONS.items():
        logger.info("%s: %s %.4f, averaged over %s", result.dataset, key, averages[key], meaning)
    if result.of_interest:
        value = 100 * interest_miou(result.confusion, result.of_interest)
        logger.info("%s: CoI-mIoU %.4f, over the classes of interest", result.dataset, value)
    for file_name, reason in sorted(result.left_out.items()):
        logger.warning("left out: %s: %s", file_name, reason)
    if result.remark:
        logger.warning("%s: %s.", result.dataset, result.remark)


def save_result(result: EvaluationResult, folder: Path) -> None:
    """Write results.json, per_class.csv, confusion_matrix.npz and sem_seg_predictions.json."""
    images = []
    for name, scores in sorted(result.images.items()):
        truth, predicted = result.label_maps.get(name, ("", ""))
        files = {"file_name": name, "label_map": truth}
        if predicted:
            files["prediction"] = Path(os.path.relpath(predicted, folder)).as_posix()
        images.append(files | {key: _number(value) for key, value in scores.items()})
    classes = result.classes()
    contents = {
        "definitions": MIOU_DEFINITIONS,
        "label_rule": asdict(result.rule),
        "classes": classes,
        "per_image": images,
    }
    write_json(folder / "results.json", result.summary() | contents)
    write_csv(folder / "per_class.csv", classes)
    with atomic_write(folder / "confusion_matrix.npz") as part:
        np.savez_compressed(part, confusion=result.confusion, names=result.class_names)
    predictions = [rle for _, rles in sorted(result.predictions.items()) for rle in rles]
    write_json(folder / "sem_seg_predictions.json", predictions, indent=None)


def write_json(path: Path, contents: Any, indent: int | None = 1) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(contents, indent=indent), encoding="utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a CSV file of rows with the same keys, whole or not at all."""
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _figure(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.2f}"


def _number(value: float) -> float | None:
    """Make None of NaN, which JSON lacks."""
    return None if math.isnan(value) else float(value)
