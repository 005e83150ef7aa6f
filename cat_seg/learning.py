"""New words from a few labelled pictures: text features that a class's name does not give.

A name that the text encoder does not know (a made-up one, a product, a part) points nowhere; a few
pictures of it point well enough. What is learned is one vector of the size of a text feature, which
takes the word's place in the vocabulary. The model itself stays as it is, and so do other words.

The aggregator expects the similarities that texts have with pictures. Positions of pictures are far
more similar to each other than to any text, so a mean of them would win everywhere. Instead, a
vector is sought that is similar inside the mask as the best other word is, and a little more, and
outside as the mean word is (of the vocabulary and of those that the model brings, or COCO's): ridge
regression, in closed form. Where that vector is short of unit length,
the rest of it points where no position does.

T classes, P prompt templates, D text width, h x w positions of a crop, N positions of all crops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cat_seg.class_lists import class_names
from cat_seg.errors import CATSegError
from cat_seg.inference import EncodedImage
from cat_seg.vocabulary import Vocabulary, Words

if TYPE_CHECKING:
    from cat_seg.model import CATSeg, EncodedPicture

_USUAL = "coco"  # words that tell what similarities are usual, where a model brings none
_MARGIN = 0.15  # of the best other word's lead over the mean one, by which the new word is ahead
_RIDGE = 0.01  # beside positions of unit length

Examples = Sequence[tuple[Any, Mapping[str, Any]]]


def learn(model: CATSeg, words: Words, examples: Examples, *, share: float = 1.0) -> Vocabulary:
    """Learn classes from pictures, see `CATSeg.learn`."""
    if not 0 <= share <= 1:
        raise CATSegError(f"share is {share}; expected 0 (the word alone) to 1 (the pictures).")
    vocabulary = model.vocabulary(words)
    assert vocabulary.features is not None
    if not examples:
        raise CATSegError("There is nothing to learn from; expected a labelled picture at least.")
    pictures = model.encode_batch([picture for picture, _ in examples])
    masks = [
        {vocabulary.index(name): _mask(mask, name, picture) for name, mask in of_one.items()}
        for picture, (_, of_one) in zip(pictures, examples, strict=True)
    ]
    learned = sorted({index for of_one in masks for index in of_one})
    features, D = vocabulary.features.clone(), model.predictor.embed_dim
    others = [i for i in range(len(features)) if i not in learned]
    usual = model.vocabulary(list(model.default_words) or class_names(_USUAL)).features
    assert usual is not None
    known = F.normalize(torch.cat([features[others], usual])[..., :D].mean(1), dim=-1)
    for index in learned:
        shown = [(p.encoded, m[index]) for p, m in zip(pictures, masks, strict=True) if index in m]
        # Further volumes with texts of their own keep what they have.
        own = features[index, :, :D]
        own.copy_(F.normalize(share * fit(shown, known) + (1 - share) * own, dim=-1))
    return replace(vocabulary, features=features)


def fit(shown: Sequence[tuple[EncodedImage, Tensor]], known: Tensor) -> Tensor:
    """Find the text feature of what masks show.

    Args:
        shown: encoded pictures, each with a mask (H, W), 1 where the class is, else 0.
        known: (K, D) features of other words, of unit length.

    Returns:
        (D,), of unit length.
    """
    D = known.shape[1]
    gram, target = known.new_zeros(D, D), known.new_zeros(D)
    for encoded, mask in shown:
        x = F.normalize(encoded.features[:, :D].float(), dim=1).permute(0, 2, 3, 1).reshape(-1, D)
        inside = on_crops(mask, encoded, encoded.features.shape[-2:]).flatten()  # (N,)
        outside = 1 - inside
        similar = x @ known.T  # (N, K)
        best, mean = similar.amax(1), similar.mean(1)
        level = ((best + _MARGIN * (best - mean)) * inside).sum() / inside.sum()
        y = inside * level + outside * mean
        weight = inside / inside.sum() + outside / outside.sum().clamp(min=1)
        gram += (x * weight[:, None]).T @ x / len(shown)
        target += (x * weight[:, None]).T @ y / len(shown)
    vector = torch.linalg.solve(gram + _RIDGE * torch.eye(D).to(gram), target)
    if (length := vector.norm()) < 1:
        nowhere = torch.linalg.eigh(gram).eigenvectors[:, 0]
        nowhere = F.normalize(nowhere - (nowhere @ vector) / length.square() * vector, dim=0)
        vector = vector + (1 - length.square()).sqrt() * nowhere
    return F.normalize(vector, dim=0)


def on_crops(mask: Tensor, encoded: EncodedImage, size: Sequence[int]) -> Tensor:
    """Resize a mask (H, W) of a picture to maps of its crops: (crops, h, w), shares of area."""
    seen = F.interpolate(mask[None, None], encoded.seen, mode="area")[0]
    tiles, (height, width) = encoded.plan.sliding_window, encoded.canvas
    whole = F.pad(seen, (0, width - seen.shape[-1], 0, height - seen.shape[-2]))[None]
    cut = tiles.cut(seen) if tiles else whole
    return F.interpolate(cut, (size[0], size[1]), mode="area")[:, 0]


def _mask(mask: Any, name: str, picture: EncodedPicture) -> Tensor:
    """Check a mask of a picture: (H, W) floats, 0 or 1."""
    array = np.asarray(mask)
    size = picture.pixels.shape[:2]
    if array.shape != size or array.dtype.kind not in "bui":
        raise CATSegError(
            f"The mask of {name!r} is {array.dtype} of shape {array.shape}; expected bool, or "
            f"integers that are 0 outside, of the picture's {size[0]} x {size[1]} pixels."
        )
    if not array.any():
        raise CATSegError(f"The mask of {name!r} marks no pixel; leave it out.")
    return torch.from_numpy(array != 0).to(picture.encoded.features)
