"""Checkpoints: released ones and our own, read safely, reported on and written whole."""

from cat_seg.checkpoint.checkpointer import CATSegCheckpointer, local_weights
from cat_seg.checkpoint.conversion import from_released, holds_clip, to_released

__all__ = ["CATSegCheckpointer", "from_released", "holds_clip", "local_weights", "to_released"]
