"""Running a model: training and evaluation."""

from cat_seg.plugin.config import load_config
from cat_seg.plugin.engine.checks import check_inputs
from cat_seg.plugin.engine.launch import launch
from cat_seg.plugin.engine.setup import set_up
from cat_seg.plugin.engine.trainer import Trainer

__all__ = ["Trainer", "check_inputs", "launch", "load_config", "set_up"]
