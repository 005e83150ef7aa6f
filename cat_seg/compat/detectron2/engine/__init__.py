"""Running a model: start, training loop and its hooks."""

from .defaults import DefaultTrainer, default_argument_parser, default_setup
from .launch import launch
from .train_loop import HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "DefaultTrainer",
    "HookBase",
    "SimpleTrainer",
    "TrainerBase",
    "default_argument_parser",
    "default_setup",
    "launch",
]
