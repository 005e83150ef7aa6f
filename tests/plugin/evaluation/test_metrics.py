"""Scores against the plain definitions and detectron2's own evaluator."""

import math

import detectron2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from cat_seg.plugin.evaluation.metrics import SegmentationScores, confusion_matrix

CLASSES = 6


@pytest.fixture
def maps():
    """Prediction and truth; class 4 is predicted only, class 5 is nowhere, 6 is ignored."""
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 3, CLASSES], (20, 30))
    predicted = np.where(rng.random((20, 30)) < 0.6, truth % CLASSES, rng.integers(0, 5, (20, 30)))
    return predicted, truth


def test_confusion_matrix(maps):
    predicted, truth = maps
    confusion = confusion_matrix(predicted, truth, CLASSES)
    for p in range(CLASSES):
        for t in range(CLASSES + 1):
            assert confusion[p, t] == ((predicted == p) & (truth == t)).sum()


def test_scores_by_their_definitions(maps):
    predicted, truth = maps
    scores = SegmentationScores.from_confusion(confusion_matrix(predicted, truth, CLASSES))
    valid = truth != CLASSES
    ious, accuracies, weights, seen = [], [], [], 0
    for c in range(CLASSES):
        p, t = (predicted == c) & valid, (truth == c) & valid
        seen += p.any() or t.any()
        if not t.any():
            assert math.isnan(scores.iou[c]) and math.isnan(scores.accuracy[c])
            continue
        ious.append((p & t).sum() / (p | t).sum())
        accuracies.append((p & t).sum() / t.sum())
        weights.append(t.sum() / valid.sum())
        assert scores.iou[c] == ious[-1] and scores.accuracy[c] == accuracies[-1]
    assert len(ious) == 4 and seen == 5
    assert scores.miou == pytest.approx(sum(ious) / 4)
    assert scores.miou_2021 == pytest.approx(sum(ious) / 5)
    assert scores.mean_accuracy == pytest.approx(sum(accuracies) / 4)
    assert scores.frequency_weighted_iou == pytest.approx(np.dot(ious, weights))
    assert scores.pixel_accuracy == ((predicted == truth) & valid).sum() / valid.sum()


def test_scores_without_ground_truth():
    scores = SegmentationScores.from_confusion(np.zeros((3, 4), dtype=np.int64))
    assert math.isnan(scores.miou) and math.isnan(scores.pixel_accuracy)


@pytest.mark.skipif("+cat_seg" in detectron2.__version__, reason="needs the real detectron2")
def test_same_keys_and_numbers_as_detectron2(maps, tmp_path):
    predicted, truth = maps
    names = [f"c{i}" for i in range(CLASSES)]
    Image.fromarray(np.where(truth == CLASSES, 255, truth).astype(np.uint8)).save(
        tmp_path / "t.png"
    )
    name = "metrics_test"
    record = {"file_name": "image.jpg", "sem_seg_file_name": str(tmp_path / "t.png")}
    DatasetCatalog.register(name, lambda: [record])
    try:
        MetadataCatalog.get(name).set(stuff_classes=names, ignore_label=255)
        evaluator = SemSegEvaluator(name, distributed=False)
        evaluator.reset()
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(predicted), CLASSES).permute(2, 0, 1)
        evaluator.process([{"file_name": "image.jpg"}], [{"sem_seg": one_hot}])
        expected = evaluator.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    scores = SegmentationScores.from_confusion(confusion_matrix(predicted, truth, CLASSES))
    ours = scores.as_percentages(names)
    expected = {key: value for key, value in expected.items() if "Bound" not in key}
    expected = {key: value for key, value in expected.items() if "min(" not in key}
    assert set(ours) == set(expected) | {"mIoU_2021"}
    for key, value in expected.items():
        assert ours[key] == pytest.approx(value, rel=1e-12, nan_ok=True), key
