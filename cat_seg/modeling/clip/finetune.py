"""Which of CLIP's parameters train, and the two ways of storing its attention weights."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from cat_seg.errors import CATSegError

_SPLIT = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_FUSED = "in_proj_weight"

# Names of the trained parameters, by CLIP_FINETUNE mode.
_TRAINED = {
    # 2023: attention and position embedding of the image encoder; of timm's ViTs likewise.
    "attention": r"visual\.(transformer\.resblocks\.\d+\.attn\..*|positional_embedding"
    r"|trunk\.blocks\.\d+\.attn\..*|trunk\.pos_embed)",
    # 2024: query and value projections of both encoders.
    "attention_qv": r"(visual\.)?transformer\.resblocks\.\d+\.attn\.[qv]_proj_weight",
    "full": r"(?!logit_scale|logit_bias).*",
    # 2024's "full": whatever has "transformer" in its name.
    "transformers": r"(visual\.)?transformer\..*",
    "low_rank": r".*\.low_rank_[ab]",  # what `cat_seg.modeling.clip.low_rank` adds
    "prompt": r"",  # learned prompt tokens only, which are not CLIP's
    "freeze": r"",
}


def set_trainable(clip: nn.Module, mode: str, *, text: bool = True) -> None:
    """Let exactly the parameters of a mode train.

    Args:
        clip: for "attention_qv", one whose attention is split (`split_in_proj`).
        mode: "attention", "attention_qv", "full", "transformers", "low_rank", "prompt" or "freeze"
            ("" means the same); or "names:" and a regular expression, which whole names match.
        text: False keeps the text encoder frozen in every mode.

    Raises:
        CATSegError: if the mode is unknown or fits no parameter of this model.
    """
    mode = mode or "freeze"
    asked = mode.removeprefix("names:") if mode.startswith("names:") else _TRAINED.get(mode)
    if asked is None:
        raise CATSegError(
            f"CLIP_FINETUNE is {mode!r}; expected one of {', '.join(_TRAINED)}, or 'names:' and a "
            "regular expression."
        )
    try:
        pattern = re.compile(asked)
    except re.error as error:
        raise CATSegError(f"CLIP_FINETUNE {mode!r} is no regular expression: {error}.") from error
    for name, parameter in clip.named_parameters():
        name = re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name)
        trained = pattern.fullmatch(name) is not None and (text or name.startswith("visual."))
        parameter.requires_grad_(trained)
    if asked and not any(p.requires_grad for p in clip.parameters()):
        raise CATSegError(
            f"CLIP_FINETUNE {mode!r} fits no parameter of this CLIP; 'attention' needs an image "
            "encoder of attention blocks, 'attention_qv' needs split attention weights "
            "(SPLIT_QKV), 'low_rank' a part {adapter: low_rank}."
        )


def split_in_proj(clip: nn.Module) -> None:
    """Store query, key and value weights of all attention as three parameters, in place."""
    for attn in clip.modules():
        if isinstance(attn, nn.MultiheadAttention) and attn.in_proj_weight is not None:
            weight = attn.in_proj_weight
            for name, part in zip(_SPLIT, weight.detach().chunk(3), strict=True):
                setattr(attn, name, nn.Parameter(part.clone(), weight.requires_grad))
            attn.register_parameter(_FUSED, None)
            attn._qkv_same_embed_dim = False  # what MultiheadAttention.forward goes by


def split_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict with every fused `in_proj_weight` as q, k and v weights (2024 naming)."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith(_FUSED):
            parts = zip(_SPLIT, tensor.chunk(3), strict=True)
            result |= {key.removesuffix(_FUSED) + name: part for name, part in parts}
        else:
            result[key] = tensor
    return result


def fuse_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict with q, k and v weights as one `in_proj_weight` (the inverse of the above)."""
    result = {}
    for key, tensor in state.items():
        prefix = re.sub("[qkv]_proj_weight$", "", key)
        parts = [prefix + name for name in _SPLIT]
        if key not in parts or not all(part in state for part in parts):
            result[key] = tensor
        elif key == parts[0]:
            result[prefix + _FUSED] = torch.cat([state[part] for part in parts])
    return result
