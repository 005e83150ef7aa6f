"""CLIP as CAT-Seg uses it: dense image features and text features, on open_clip's classes."""

from cat_seg.modeling.clip.build import (
    build_clip,
    clip_normalization,
    from_transformers,
    load_clip_weights,
    register_clip,
)
from cat_seg.modeling.clip.encoder import ClipSizes, Encoder, OpenClip, clip_sizes
from cat_seg.modeling.clip.finetune import set_trainable, split_in_proj
from cat_seg.modeling.clip.learned_context import LearnedContext
from cat_seg.modeling.clip.low_rank import low_rank
from cat_seg.modeling.clip.text import encode_text, tokenize
from cat_seg.modeling.clip.vision import DenseFeatures, encode_dense, encode_dense_tokens

__all__ = [
    "ClipSizes",
    "DenseFeatures",
    "Encoder",
    "LearnedContext",
    "OpenClip",
    "build_clip",
    "clip_normalization",
    "clip_sizes",
    "encode_dense",
    "encode_dense_tokens",
    "encode_text",
    "from_transformers",
    "load_clip_weights",
    "low_rank",
    "register_clip",
    "set_trainable",
    "split_in_proj",
    "tokenize",
]
