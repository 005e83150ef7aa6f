"""The cost volume (paper, section 3.2): how similar is each position to each text?

B images, T classes, P prompt templates, D text width, H and W positions.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Selection(NamedTuple):
    """The classes of an image that are aggregated.

    Attributes:
        classes: (K,) indices, ascending, of those that get maps.
        others: (m,) indices of those that stand for the rest in class attention's sums.
        weights: (K + m,) how many classes each one stands for; None for itself alone.
    """

    classes: Tensor
    others: Tensor
    weights: Tensor | None


# Of the softmax by which classes are chosen; CLIP's own is 0.01, and keeps fewer of the winners
# (docs/how_it_scales.md).
TEMPERATURE = 0.04


def most_probable_classes(features: Tensor, means: Tensor, count: int) -> Tensor:
    """The classes whose highest probability anywhere in the image, by similarity alone, is highest.

    Other than the highest similarity, this tells a class that stands out at one position from one
    that is a little similar to everything.

    Args:
        features: (H, W, D), of unit length along D.
        means: (T, D) mean text feature of each class, of unit length.
        count: how many classes to keep, at most T.

    Returns:
        (count,) class indices, ascending.
    """
    positions = features.flatten(0, 1) / TEMPERATURE
    chunks = means.split(1024)
    total = positions.new_full((len(positions),), -torch.inf)
    for part in chunks:
        total = torch.logaddexp(total, (positions @ part.T).logsumexp(1))
    peaks = [(positions @ part.T).sub_(total[:, None]).amax(0) for part in chunks]
    return torch.cat(peaks).topk(count).indices.sort().values


def represent(features: Tensor, means: Tensor, count: int, clusters: Tensor) -> Selection:
    """Select the most probable classes, and representatives of the rest.

    Classes meet only in class attention's sums. One class of each cluster of similar texts, those
    already selected taken out, stands there for all of them.

    Args:
        features: (H, W, D), of unit length along D.
        means: (T, D) mean text feature of each class, of unit length.
        count: how many to select.
        clusters: (T,) of each class, see `cluster`.
    """
    classes = most_probable_classes(features, means, count)
    rest = torch.ones(len(means), dtype=torch.bool, device=means.device)
    rest[classes] = False
    sizes = clusters[rest].bincount(minlength=int(clusters.max()) + 1)
    centres = means.new_zeros(len(sizes), means.shape[1])
    centres = F.normalize(centres.index_add_(0, clusters[rest], means[rest]), dim=-1)
    near = (means * centres[clusters]).sum(-1).masked_fill_(~rest, -2)
    best = near.new_full((len(sizes),), -2).scatter_reduce_(0, clusters, near, "amax")
    # Of equals, as two members always are, the last, however they are rounded.
    at = torch.nonzero(rest & (near >= best[clusters] - 1e-5))[:, 0]
    others = at.new_zeros(len(sizes)).scatter_(0, clusters[at], at)[sizes > 0]
    weights = torch.cat([means.new_ones(count), sizes[sizes > 0].to(means.dtype)])
    return Selection(classes, others, weights)


def cluster(means: Tensor, count: int, rounds: int = 8) -> Tensor:
    """Cluster texts by k-means on the sphere; the same texts give the same clusters.

    Args:
        means: (T, D), of unit length.
        count: of clusters, at most T.

    Returns:
        (T,) int64, the cluster of each.
    """
    centres = means[torch.linspace(0, len(means) - 1, count, device=means.device).long()]
    for _ in range(rounds):
        owner = torch.cat([(part @ centres.T).argmax(dim=1) for part in means.split(4096)])
        sums = torch.zeros_like(centres).index_add_(0, owner, means)
        # A cluster that lost all of its members keeps its centre.
        centres = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=-1), centres)
    return owner
