"""Which classes a training batch teaches, where the vocabulary is too large for all of them.

B images, T classes of the training vocabulary, K of them taught, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cat_seg.errors import CATSegError
from cat_seg.label_rules import NOTHING
from cat_seg.model_config import ModelConfig
from cat_seg.registry import register


@register("sampling", "present")
def present_and_random(config: ModelConfig, *, count: int) -> Callable[[Tensor, int], Tensor]:
    """Make what takes the classes that a batch shows, and random others up to a number.

    Args:
        config: of the model.
        count: at least so many classes, if there are.

    Raises:
        CATSegError: if it is not positive.
    """
    if count < 1:
        raise CATSegError(f"count of the sampling is {count}; expected a positive number.")

    def sample(shown: Tensor, T: int) -> Tensor:
        """(n,) classes that a batch shows, of T -> (K,), ascending."""
        order = torch.rand(T)
        order[shown.cpu()] = 2.0
        return order.topk(min(T, max(count, len(shown)))).indices.sort().values

    return sample


def present(targets: Tensor, classes: Sequence[Tensor | None], ignore_value: int) -> Tensor:
    """The classes of the training vocabulary that a batch shows, ascending.

    Args:
        targets: (B, h, w), see `mask_bce`.
        classes: of each image the classes into which its labels count; None for all.
        ignore_value: label of no class.
    """
    found = []
    for labels, some in zip(targets, classes, strict=True):
        labels = labels[(labels != NOTHING) & (labels != ignore_value)].unique()
        found.append(labels if some is None else some.to(labels.device)[labels])
    return torch.cat(found).unique()


def restrict(
    targets: Tensor, classes: Sequence[Tensor | None], taught: Tensor, ignore_value: int
) -> tuple[Tensor, list[Tensor | None]]:
    """Count labels, and the classes that each image teaches, among the taught classes.

    Args:
        targets, classes, ignore_value: see `present`.
        taught: (K,) ascending, with all that are present.

    Returns:
        the same, of K instead of T classes; the label of no class is the same.
    """
    labels, lists = targets.clone(), []
    for i, some in enumerate(classes):
        mine = torch.arange(int(taught.max()) + 1, device=taught.device) if some is None else some
        mine = mine.to(taught.device)
        kept = torch.isin(mine, taught)
        table = torch.where(kept, kept.cumsum(0) - 1, ignore_value)
        here = (targets[i] != NOTHING) & (targets[i] != ignore_value)
        labels[i][here] = table[targets[i][here]]
        lists.append(None if some is None else torch.searchsorted(taught, mine[kept]))
    return labels, lists
