"""Optimiser and learning-rate schedule, built from a config."""

from cat_seg.plugin.solver.optimizer import build_optimizer, parameter_groups
from cat_seg.plugin.solver.schedule import build_lr_scheduler

__all__ = ["build_lr_scheduler", "build_optimizer", "parameter_groups"]
