"""From a sample of a listing to what a model takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from . import transforms as T


class DatasetMapper:
    """Keeps what is done to a sample; a subclass does it, in `__call__`."""

    def __init__(
        self, is_train: bool, *, augmentations: Sequence[T.Augmentation], image_format: str
    ):
        """Keep the settings.

        Args:
            is_train: whether samples are for training.
            augmentations: applied one after the other.
            image_format: "RGB" or "BGR".
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info(
            f"[DatasetMapper] Augmentations used in {mode}: {augmentations}"
        )
