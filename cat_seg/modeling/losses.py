"""The training loss.

B images, T classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.label_rules import NOTHING


class Inside(NamedTuple):
    """What a further loss (a part of the kind "loss") sees of a training batch."""

    features: Tensor  # (B, D, H, W) dense image features
    guidance: Sequence[Tensor]  # maps of H x W, 2 H x 2 W and 4 H x 4 W; or none
    text: Tensor  # (T, P, D)
    volumes: Sequence[Tensor]  # behind each layer, (B, T, H, W, C)
    logits: Tensor  # (B, T, 4 H, 4 W)
    targets: Tensor  # (B, h, w) int64, see `mask_bce`
    ignore_value: int


def mask_bce(logits: Tensor, targets: Tensor, ignore_value: int = 255) -> Tensor:
    """Binary cross entropy of every class at every pixel.

    An ignored pixel counts as one of no class, as in the released models; it is not left out. One
    that is labelled NOTHING is. The sum over one-hot targets y of softplus(x) - x y needs no
    one-hot volume: x is gathered at the labels.

    Args:
        logits: (B, T, h, w); resized to the targets (bilinear, align_corners False).
        targets: (B, H, W) int64, 0..T-1, `ignore_value` or NOTHING.
        ignore_value: label of pixels without a class.

    Returns:
        the mean over the T entries of each pixel that teaches; 0 if there is none.

    Raises:
        CATSegError: for any other label.
    """
    T = logits.shape[1]
    taught = targets != NOTHING
    here = taught & (targets != ignore_value)
    if bool(((targets < 0) | (targets >= T))[here].any()):
        wrong = sorted(set(targets[here].unique().tolist()) - set(range(T)))
        raise CATSegError(
            f"Labels {wrong[:5]} in a training batch; expected 0..{T - 1}, as the training "
            f"vocabulary has {T} names, or {ignore_value} for no class. Check TRAIN_CLASS_JSON and "
            "IGNORE_VALUE."
        )
    logits = F.interpolate(logits.float(), targets.shape[-2:], mode="bilinear", align_corners=False)
    at_label = logits.gather(1, torch.where(here, targets, 0)[:, None])[:, 0]
    every = F.softplus(logits)
    if not bool(taught.all()):
        every = every * taught[:, None]
    count = T * max(1, int(taught.sum()))
    return (every.sum() - torch.where(here, at_label, 0).sum()) / count
