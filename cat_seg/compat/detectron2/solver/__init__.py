"""Learning rates."""

from .build import build_lr_scheduler
from .lr_scheduler import LRMultiplier

__all__ = ["LRMultiplier", "build_lr_scheduler"]
