"""Scores of predicted label maps, by detectron2's definitions."""

from cat_seg.plugin.evaluation.evaluator import (
    BackgroundEvaluator,
    SegmentationEvaluator,
    build_evaluator,
)
from cat_seg.plugin.evaluation.metrics import MIOU_DEFINITIONS, SegmentationScores

__all__ = [
    "MIOU_DEFINITIONS",
    "BackgroundEvaluator",
    "SegmentationEvaluator",
    "SegmentationScores",
    "build_evaluator",
]
