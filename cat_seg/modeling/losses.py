"""The training loss.

B images, T classes, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_bce(logits: Tensor, targets: Tensor, ignore_value: int = 255) -> Tensor:
    """Binary cross entropy of every class at every pixel.

    An ignored pixel counts as one of no class, as in the released models; it is not left out. The
    sum over one-hot targets y of softplus(x) - x y needs no one-hot volume: x is gathered at the
    labels.

    Args:
        logits: (B, T, h, w); resized to the targets (bilinear, align_corners False).
        targets: (B, H, W) int64, 0..T-1 or `ignore_value`.
        ignore_value: label of pixels without a class.

    Returns:
        the mean over all B T H W entries.

    Raises:
        ValueError: for a label outside 0..T-1 that is not `ignore_value`.
    """
    T = logits.shape[1]
    here = targets != ignore_value
    if bool(((targets < 0) | (targets >= T))[here].any()):
        wrong = sorted(set(targets[here].unique().tolist()) - set(range(T)))
        raise ValueError(
            f"Labels {wrong[:5]} in a training batch; expected 0..{T - 1}, as the training "
            f"vocabulary has {T} names, or {ignore_value} for no class. Check TRAIN_CLASS_JSON and "
            "IGNORE_VALUE."
        )
    logits = F.interpolate(logits.float(), targets.shape[-2:], mode="bilinear", align_corners=False)
    at_label = logits.gather(1, torch.where(here, targets, 0)[:, None])[:, 0]
    return (F.softplus(logits).sum() - torch.where(here, at_label, 0).sum()) / logits.numel()
