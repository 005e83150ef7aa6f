"""CLIP and SigLIP as transformers describes and names them, in the form of open_clip.

The two libraries hold the same networks under different names. Here a configuration and a state
dict are translated, so that all else (dense features, fine-tuning, caches) is as for any CLIP;
transformers itself is not needed for that, but for SigLIP's tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cat_seg.errors import CATSegError

# What config.json leaves out: the defaults of transformers' classes.
_VISION = {
    **dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
    **dict(image_size=224, num_channels=3),
}
_TEXT = {"num_hidden_layers": 12}
_DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": (
        _VISION | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        _TEXT
        | dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8, vocab_size=49408)
        | {"max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    ),
    "siglip": (
        _VISION | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        _TEXT
        | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, vocab_size=32000)
        | {"max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh"}
        | {"layer_norm_eps": 1e-6},
    ),
}
# Beginnings and parts of names in transformers, and in open_clip.
_NAMES = [
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.head\.", "text_projection."),  # SigLIP's, with a bias
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
]
_CLIP_VISION = [
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
]
_SIGLIP_VISION = [
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.trunk.pos_embed"),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.", "visual.trunk.attn_pool."),
    (r"^vision_model\.encoder\.layers\.", "visual.trunk.blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
]


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of transformers, not of open_clip."""
    return "model_type" in config and "vision_cfg" not in config


def open_clip_config(config: Mapping[str, Any], tokenizer: str = "") -> dict[str, Any]:
    """Translate transformers' config.json of a CLIP or SigLIP.

    Args:
        config: its content.
        tokenizer: repository of the hub that has the tokenizer; "" for that of OpenAI's CLIP.

    Raises:
        CATSegError: if it is of another kind, or of an activation that is not known.
    """
    kind = config["model_type"]
    if kind not in _DEFAULTS:
        raise CATSegError(
            f"transformers' {kind!r} cannot be used; expected 'clip' or 'siglip' (of which SigLIP2 "
            "with pictures of one size is one)."
        )
    vision, text = (
        default | dict(config.get(key) or {})
        for default, key in zip(_DEFAULTS[kind], ("vision_config", "text_config"), strict=True)
    )
    acts = vision["hidden_act"], text["hidden_act"]
    known = {"quick_gelu", "gelu", "gelu_pytorch_tanh"}
    if acts[0] != acts[1] or acts[0] not in known:
        raise CATSegError(f"Activations {acts} of transformers' {kind}; expected two of {known}.")
    own: dict[str, Any] = {"norm_kwargs": {"eps": text["layer_norm_eps"]}}
    if acts[0] == "gelu_pytorch_tanh":
        own["act_kwargs"] = {"approximate": "tanh"}
    of_text = own | {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
    }
    ratio = vision["intermediate_size"] / vision["hidden_size"]
    if kind == "clip":
        of_vision = own | {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "layers": vision["num_hidden_layers"],
            "mlp_ratio": ratio,
        }
        width = config.get("projection_dim", 512)
        quick = {"quick_gelu": True} if acts[0] == "quick_gelu" else {}
        return {"embed_dim": width, "vision_cfg": of_vision, "text_cfg": of_text, **quick}
    of_vision = {
        "image_size": vision["image_size"],
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
        "timm_settings": {
            "img_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "embed_dim": vision["hidden_size"],
            "depth": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "mlp_ratio": ratio,
            "act_layer": "gelu_tanh" if acts[0] == "gelu_pytorch_tanh" else "gelu",
        },
    }
    of_text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    if tokenizer:
        settings = {"clean": "canonicalize"}
        of_text |= {"hf_tokenizer_name": tokenizer, "tokenizer_kwargs": settings}
    return {
        **{"embed_dim": vision["hidden_size"], "init_logit_bias": -10.0},
        **{"vision_cfg": of_vision, "text_cfg": of_text},
    }


def open_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of transformers' CLIP or SigLIP to those of open_clip."""
    siglip = "vision_model.head.probe" in state
    found = _fused(state, siglip)
    result: dict[str, Tensor] = {}
    for key, tensor in found.items():
        if key.endswith("position_ids"):
            continue
        if key.startswith("vision_model.head.attention.in_proj_"):  # one query of many keys
            own, rest = "visual.trunk.attn_pool.", key.rpartition("_")[2]
            count = len(tensor) // 3
            result[f"{own}q.{rest}"], result[f"{own}kv.{rest}"] = tensor[:count], tensor[count:]
            continue
        if key in ("visual_projection.weight", "text_projection.weight"):
            name = "visual.proj" if key.startswith("visual") else "text_projection"
            result[name] = tensor.T
            continue
        if not key.startswith("vision"):
            rules = _NAMES
        else:
            rules = _SIGLIP_VISION if siglip else [*_CLIP_VISION, *_NAMES]
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if key == "visual.trunk.pos_embed":
            tensor = tensor[None]
        result[key] = tensor.reshape(()) if key.startswith("logit_") else tensor
    return result


def _fused(state: Mapping[str, Tensor], siglip: bool) -> dict[str, Tensor]:
    """Put queries, keys and values of each attention in one tensor, as open_clip and timm do."""
    result = {}
    for key, tensor in state.items():
        if not (match := re.fullmatch(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)", key)):
            result[key] = tensor
        elif match[2] == "q":
            parts = [state[f"{match[1]}{part}_proj.{match[3]}"] for part in "qkv"]
            of_timm = siglip and key.startswith("vision_model")
            result[match[1] + ("qkv." if of_timm else "in_proj_") + match[3]] = torch.cat(parts)
    return result
