"""Running a model: training, evaluation, prediction."""

from cat_seg.engine.checks import check_inputs
from cat_seg.engine.launch import launch
from cat_seg.engine.predictor import Predictor, load_config
from cat_seg.engine.trainer import Trainer

__all__ = ["Predictor", "Trainer", "check_inputs", "launch", "load_config"]
