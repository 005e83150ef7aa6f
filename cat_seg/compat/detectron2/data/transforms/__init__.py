"""Augmentations, which draw, and transforms, which have been drawn."""

from .augmentation import AugInput, Augmentation, AugmentationList
from .augmentation_impl import (
    RandomCrop_CategoryAreaConstraint,
    RandomFlip,
    ResizeShortestEdge,
)

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "RandomCrop_CategoryAreaConstraint",
    "RandomFlip",
    "ResizeShortestEdge",
]
