"""Running a model: training, evaluation, prediction."""

from cat_seg.plugin.engine.checks import check_inputs
from cat_seg.plugin.engine.launch import launch
from cat_seg.plugin.engine.predictor import Predictor, load_config
from cat_seg.plugin.engine.trainer import Trainer

__all__ = ["Predictor", "Trainer", "check_inputs", "launch", "load_config"]
