"""Low-rank changes of CLIP's weights, trained in their place (LoRA, arXiv 2106.09685).

A weight W becomes W + scale B A, with B zero at the start. In state dicts W keeps its name, so that
CLIP's weights and released checkpoints load as ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from open_clip import CLIP
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cat_seg.errors import CATSegError
from cat_seg.model_config import ModelConfig
from cat_seg.registry import register

# Query, key, value and output projections of the image encoder, fused or split, ours or timm's.
ATTENTION = (
    r"visual\..*\.attn\.(in_proj_weight|[qkv]_proj_weight|out_proj\.weight|(qkv|proj)\.weight)"
)
_ORIGINAL = re.compile(r"parametrizations\.(\w+)\.original$")


class LowRank(nn.Module):
    """W (O, I) -> W + scale B A, of rank R."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out_dim, in_dim = weight.shape
        self.low_rank_a = nn.Parameter(torch.randn(rank, in_dim) / in_dim**0.5)
        self.low_rank_b = nn.Parameter(torch.zeros(out_dim, rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.low_rank_b @ self.low_rank_a)


@register("adapter", "low_rank")
def low_rank(
    config: ModelConfig, *, rank: int = 8, alpha: float = 16.0, names: str = ATTENTION
) -> Callable[[CLIP], None]:
    """Make what adds low-rank changes to a CLIP; CLIP_FINETUNE "low_rank" trains them alone.

    Args:
        config: of the model.
        rank: R.
        alpha: the scale is alpha / R.
        names: a regular expression, which the whole name of a matrix must match.
    """

    def change(clip: CLIP) -> None:
        pattern = re.compile(names)
        found = [n for n, p in clip.named_parameters() if pattern.fullmatch(n) and p.dim() == 2]
        if not found:
            raise CATSegError(f"low_rank: no matrix of this CLIP has a name like {names!r}.")
        for name in found:
            path, _, own = name.rpartition(".")
            module = clip.get_submodule(path)
            part = LowRank(getattr(module, own), rank, alpha / rank)
            parametrize.register_parametrization(module, own, part)
        clip.register_state_dict_post_hook(_to_published)
        clip.register_load_state_dict_pre_hook(_from_published)

    return change


def _to_published(clip: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        if _ORIGINAL.search(key):
            state[_ORIGINAL.sub(r"\1", key)] = state.pop(key)


def _from_published(clip: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, _parameter in clip.named_parameters():
        published = prefix + _ORIGINAL.sub(r"\1", name)
        if _ORIGINAL.search(name) and published in state:
            state[prefix + name] = state.pop(published)
