"""Augmentation, the base class, and how several are applied.

Shape letters: H and W, C channels.
"""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


class AugInput:
    """What is augmented: an image, and its label map if there is one.

    Attributes:
        image: (H, W) or (H, W, C), uint8 or floating point.
        sem_seg: (H, W) labels, or None.
    """

    def __init__(self, image: np.ndarray, *, sem_seg: np.ndarray | None = None):
        assert isinstance(image, np.ndarray) and image.ndim in (2, 3), (
            f"[Augmentation] Needs an image as a numpy array, but got {type(image)}!"
        )
        self.image = image
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to all that is here."""
        self.image = tfm.apply_image(self.image)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)


class Augmentation:
    """Draws a transform for an input.

    A subclass defines `get_transform`, whose arguments are named after attributes of the input
    ("image", "sem_seg"); the argument may have any name if it is the only one, the image.
    """

    input_args: tuple[str, ...] | None = None

    def get_transform(self, *args: Any) -> Transform:
        """Draw a transform."""
        raise NotImplementedError

    def __call__(self, aug_input: AugInput) -> Transform:
        """Draw a transform, apply it to the input in place, and return it."""
        if self.input_args is None:
            names = tuple(inspect.signature(self.get_transform).parameters)
            self.input_args = names if len(names) > 1 else ("image",)
        tfm = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        assert isinstance(tfm, Transform | TransformList), tfm
        aug_input.transform(tfm)
        return tfm

    def __repr__(self) -> str:
        """Name the class and the arguments that are not the defaults."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"


class AugmentationList(Augmentation):
    """Several augmentations, each drawn for what the ones before it have left."""

    def __init__(self, augs: Sequence[Augmentation]):
        self.augs = augs

    def __call__(self, aug_input: AugInput) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"
