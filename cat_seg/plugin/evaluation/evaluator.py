"""Evaluators of semantic segmentation, on detectron2's.

What is added to `SemSegEvaluator`: 16-bit label maps, predictions given as labels, files that
cannot be read, both definitions of mIoU, label maps as PNG, scores of each image, and going on
after an interruption. Boundary IoU is left out; it is no part of the published protocol.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from torch import Tensor

from cat_seg.errors import CATSegError
from cat_seg.images import open_image
from cat_seg.label_maps import read_label_map, text_inside, write_label_map
from cat_seg.label_rules import IGNORED
from cat_seg.plugin.data.labels import label_rule
from cat_seg.plugin.evaluation.metrics import confusion_matrix
from cat_seg.plugin.evaluation.result import EvaluationResult, log_result, save_result
from cat_seg.utils.files import digest, remove_parts

logger = logging.getLogger(__name__)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None, **options: Any
) -> SegmentationEvaluator:
    """Make the evaluator that the dataset's metadata asks for ("evaluator_type").

    Args:
        output_folder: Where results go; OUTPUT_DIR/inference/<dataset> by default.
        options: Passed on to `SegmentationEvaluator`.

    Raises:
        CATSegError: if the dataset is not registered, or its files are missing.
    """
    kinds = {"sem_seg": SegmentationEvaluator, "sem_seg_background": BackgroundEvaluator}
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in kinds:
        raise CATSegError(
            f"Dataset {dataset_name!r} has evaluator_type {kind!r}; expected one of "
            f"{', '.join(kinds)}. Is its name right, and is it in DATASETS.FOLDERS if it is yours?"
        )
    folder = output_folder or Path(cfg.OUTPUT_DIR, "inference", dataset_name)
    return kinds[kind](dataset_name, output_dir=folder, **options)


class SegmentationEvaluator(SemSegEvaluator):
    """Score label maps against the ground truth of a registered dataset.

    Outputs are {"sem_seg": (T, H, W) scores of the vocabulary's classes} or, where those would be
    too large, {"labels": (H, W) integers}. Inputs carry "file_name", and "error" if the image
    could not be read: such a file, or one whose ground truth does not fit, is named, counted and
    left out.

    With several processes each counts its own images; the sum is that of one process, exactly.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | Path | None = None,
        *,
        limit: int = 0,
    ) -> None:
        """Read the dataset's metadata.

        Args:
            dataset_name: Registered name.
            distributed: Whether to add up the counts of all processes.
            output_dir: Folder for results.json, per_class.csv, confusion_matrix.npz,
                sem_seg_predictions.json (COCO's format, RLE) and labels/*.png; None for none.
            limit: Take the dataset's first so many images alone, for a quick look; 0 for all.
        """
        super().__init__(dataset_name, distributed, str(output_dir) if output_dir else None)
        metadata = MetadataCatalog.get(dataset_name)
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.vocabulary_size = len(metadata.get("vocabulary", self.class_names))
        self.rule = label_rule(dataset_name, len(self.class_names))
        self._expected: int = metadata.get("num_images", len(self.input_file_to_gt_file))
        suffix = ".png" if len(self.class_names) <= 65536 else ".tif"  # which holds 32 bits
        self._label_maps = _output_names(self.input_file_to_gt_file, suffix)
        self._name = dataset_name
        self._folder = Path(output_dir) if output_dir else None
        self._all_processes = distributed
        self._limit = limit
        self._kept: list[str] | None = None  # images done by the run that is resumed, if one is
        self._run = secrets.token_hex(8)  # one that is never resumed
        self._sources: dict[str, str] = {}
        self._result = self._empty_result()

    @property
    def result(self) -> EvaluationResult:
        """What was counted; after `evaluate`, in the main process, that of all processes."""
        return self._result

    def prediction_file(self, file_name: str) -> Path:
        """Return where the predicted label map of an image is written."""
        assert self._folder, "an evaluator without output_dir writes no label maps"
        return self._folder / "labels" / self._label_maps[file_name]

    def resume(self, run: str, sources: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Continue where the same run was interrupted, if it was.

        A label map is kept if it says inside that this run made it of the image as it is now, and
        its pixels are as they were. Those of other runs are removed.

        Args:
            run: Tells this run from all others: the model's weights, its settings.
            sources: SHA-256 of what that is made of, for results.json.

        Returns:
            The dataset's images that are still to be segmented, in detectron2's format.
        """
        assert self._folder, "an evaluator without output_dir keeps no label maps"
        self._run, self._sources = run, dict(sources or {})
        records = DatasetCatalog.get(self._name)[: self._limit or None]
        done: set[str] = set()
        if comm.is_main_process():
            done = self._done()
        if self._all_processes:
            done = comm.all_gather(done)[0]
        self._kept = [record["file_name"] for record in records if record["file_name"] in done]
        return [record for record in records if record["file_name"] not in done]

    def _done(self) -> set[str]:
        """Find the images that this run has label maps of; remove what other runs left."""
        assert self._folder
        remove_parts(self._folder, recursive=True)
        images = {self.prediction_file(image): image for image in self._label_maps}
        done, removed = set(), 0
        for path, mark, labels in self._existing():
            image = images.get(path)
            if mark is None or mark["run"] != self._run or image is None:
                path.unlink()
                removed += labels is not None
            elif labels is not None and mark == _mark(self._run, _digest_or_none(image), labels):
                done.add(image)
            else:
                changed = "its image or its label map"
                logger.warning("%s is predicted again: %s has changed since", image, changed)
        if removed:
            logger.warning("%s: %d label maps of another run are removed", self._folder, removed)
        return done

    def _existing(self) -> Iterator[tuple[Path, dict[str, str] | None, np.ndarray | None]]:
        """List label maps that are there, their marks and pixels, both None of a damaged one.

        Raises:
            CATSegError: if a file is in the place of a label map that no evaluation wrote.
        """
        assert self._folder
        ours = {self._folder / "labels" / name for name in self._label_maps.values()}
        for path in sorted((self._folder / "labels").rglob("*.*")):
            mark, labels = _mark_of(path)
            if mark is None and path not in ours:
                continue  # somebody's
            if mark is None and labels is not None:
                raise CATSegError(
                    f"{path} is there, and no evaluation wrote it: left as it is. Move it, or "
                    "choose another OUTPUT_DIR."
                )
            yield path, mark, labels

    def reset(self) -> None:
        """Forget all counts, but those of the images that a resumed run has done.

        Raises:
            CATSegError: if a file is in the place of a label map that no evaluation wrote.
        """
        self._result = self._empty_result()
        if not comm.is_main_process():
            return
        if self._folder and self._kept is None:
            list(self._existing())
        for file_name in self._kept or ():
            self._count(file_name, read_label_map(self.prediction_file(file_name)))

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> None:
        """Count a batch, and write its label maps."""
        for image, output in zip(inputs, outputs, strict=True):
            if "error" in image:
                self._leave_out(image["file_name"], image["error"])
            else:
                labels = self.predicted_labels(output)
                if self._count(image["file_name"], labels) and self._folder:
                    labels = labels.astype(_depth(len(self.class_names)))
                    mark = _mark(self._run, self._result.digests[image["file_name"]][0], labels)
                    path = self.prediction_file(image["file_name"])
                    write_label_map(path, labels, json.dumps(mark))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return {"sem_seg": scores in percent} in the main process, None in the others.

        Raises:
            CATSegError: if not one image could be evaluated.
        """
        if self._all_processes:
            comm.synchronize()
            self._result = EvaluationResult.merge(comm.all_gather(self._result))
            if not comm.is_main_process():
                return None
        result = self._result
        if not result.images:
            reasons = "; ".join(f"{f}: {why}" for f, why in list(result.left_out.items())[:3])
            raise CATSegError(f"{self._name}: no image could be evaluated. {reasons}")
        log_result(result)
        if self._folder:
            save_result(result, self._folder)
        return {"sem_seg": result.scores.as_percentages(self.class_names)}

    def predicted_labels(self, output: Mapping[str, Tensor]) -> np.ndarray:
        """Return the predicted classes of the dataset, (H, W).

        Raises:
            CATSegError: if the model has another number of classes than the dataset.
        """
        if "labels" in output:
            labels = output["labels"].cpu().numpy()
            classes = int(labels.max(initial=0)) + 1
            fits = classes <= self.vocabulary_size
        else:
            classes = len(output["sem_seg"])
            fits = classes == self.vocabulary_size
            labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
        if not fits:
            raise CATSegError(
                f"The model predicts {classes} classes, but {self._name} has a vocabulary of "
                f"{self.vocabulary_size}; leave MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON empty, or give "
                "it a list of that length."
            )
        return labels

    def _empty_result(self) -> EvaluationResult:
        classes = len(self.class_names)
        confusion = np.zeros((classes, classes + 1), np.int64)
        return EvaluationResult(
            self._name,
            self.class_names,
            self._expected,
            self._limit,
            confusion,
            run=self._sources,
            of_interest=tuple(MetadataCatalog.get(self._name).get("classes_of_interest") or ()),
            label_maps={
                image: (truth, str(self.prediction_file(image)) if self._folder else "")
                for image, truth in self.input_file_to_gt_file.items()
            },
            rule=self.rule,
        )

    def _count(self, file_name: str, predicted: np.ndarray) -> bool:
        """Count an image, or leave it out and return False."""
        classes = len(self.class_names)
        truth_file = self.input_file_to_gt_file[file_name]
        try:
            truth = self.rule.read(truth_file).astype(np.int64)
            truth[truth == IGNORED] = classes
            if truth.shape != predicted.shape:
                raise CATSegError(
                    f"its label map is {truth.shape} (height, width), its prediction "
                    f"{predicted.shape}"
                )
            digests = digest(file_name), digest(truth_file)
        except (OSError, CATSegError) as error:
            self._leave_out(file_name, str(error))
            return False
        self._result.add(
            file_name,
            confusion_matrix(predicted, truth, classes),
            self.encode_json_sem_seg(predicted, file_name),
            digests,
        )
        return True

    def _leave_out(self, file_name: str, reason: str) -> None:
        logger.warning("%s is left out of the evaluation: %s", file_name, reason)
        self._result.left_out[file_name] = reason


class BackgroundEvaluator(SegmentationEvaluator):
    """PASCAL VOC with background: the names beyond the foreground's all mean "background"."""

    def predicted_labels(self, output: Mapping[str, Tensor]) -> np.ndarray:
        """Return the predicted classes (H, W), all background names as one."""
        return np.minimum(super().predicted_labels(output), len(self.class_names) - 1)


def _digest_or_none(file: str) -> str | None:
    try:
        return digest(file)
    except OSError:
        return None


def _mark(run: str, image: str | None, labels: np.ndarray) -> dict[str, str | None]:
    """What a label map says of itself: the run, the SHA-256 of its image and of its pixels."""
    pixels = hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest()
    return {"run": run, "image": image, "pixels": pixels}


def _mark_of(path: Path) -> tuple[dict[str, str] | None, np.ndarray | None]:
    """Read a label map's mark, None if no evaluation wrote it, and its pixels, if that works."""
    try:
        with open_image(path) as image:
            labels = np.asarray(image)
            mark = json.loads(text_inside(image) or "null")
    except (CATSegError, ValueError, RecursionError):
        return None, None
    ours = isinstance(mark, dict) and mark.keys() == {"run", "image", "pixels"}
    return mark if ours else None, labels


def _depth(classes: int) -> type[np.generic]:
    return np.uint8 if classes <= 256 else np.uint16 if classes <= 65536 else np.int32


def _output_names(images: Iterable[str], suffix: str = ".png") -> dict[str, str]:
    """Name the label map of each image: its path below the folder of all of them."""
    files = list(images)
    folder = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    below = {file: os.path.relpath(file, folder or ".") for file in files}
    stems = Counter(os.path.splitext(path)[0] for path in below.values())
    return {
        file: f"{stem if stems[stem := os.path.splitext(path)[0]] == 1 else path}{suffix}"
        for file, path in below.items()
    }
