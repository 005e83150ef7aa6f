"""The cost volume (paper, section 3.2): how similar is each position to each text?

B images, T classes, P prompt templates, D text width, H and W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cat_seg.modeling.autocast import without_autocast


def unit_length(text: Tensor) -> Tensor:
    """Text features as float32 of unit length along the last dimension."""
    return F.normalize(text.float(), dim=-1)


def correlate(features: Tensor, text: Tensor) -> Tensor:
    """Cosine similarities of image features and text features.

    Args:
        features: (B, H, W, D), of unit length along D.
        text: (T, P, D), of unit length along D.

    Returns:
        (B, T, H, W, P), in -1..1.
    """
    B, H, W, D = features.shape
    with without_autocast(features.device):  # small differences decide
        if text.shape[1] == 1:  # one product for all classes, in the same layout
            positions = features.reshape(B, H * W, D).transpose(1, 2)
            return torch.matmul(text[:, 0], positions).view(B, text.shape[0], H, W, 1)
        similarity = torch.matmul(features.reshape(B, 1, H * W, D), text.transpose(1, 2))
    return similarity.view(B, text.shape[0], H, W, -1)


def most_similar_classes(features: Tensor, text: Tensor, count: int, length: int) -> Tensor:
    """The classes whose highest similarity anywhere in the image is highest.

    Args:
        features: (H, W, D), of unit length along D.
        text: (T, P, D), of any length along D.
        count: how many classes to keep, at most T.
        length: classes to look at in one chunk.

    Returns:
        (count,) class indices, ascending.
    """
    peaks = [
        correlate(features[None], unit_length(t)).amax(dim=(0, 2, 3, 4)) for t in text.split(length)
    ]
    return torch.cat(peaks).topk(count).indices.sort().values
