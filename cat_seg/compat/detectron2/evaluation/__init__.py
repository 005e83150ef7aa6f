"""Running a model over a dataset, and measuring it."""

from .evaluator import DatasetEvaluator, inference_on_dataset
from .sem_seg_evaluation import SemSegEvaluator
from .testing import verify_results

__all__ = ["DatasetEvaluator", "SemSegEvaluator", "inference_on_dataset", "verify_results"]
