"""What a CAT-Seg model is made of: one small description, from a YAML, a name or a saved folder.

The two published generations differ in the table `GENERATIONS`; everything else is sizes.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cat_seg.errors import CATSegError

# The two published generations, side by side: fields of `ModelConfig` and their values.
GENERATIONS: dict[int, dict[str, Any]] = {
    2023: {
        "guidance": "backbone",  # image guidance: maps of a separate backbone
        "last_residual": "token",  # last CLIP block: every token keeps its own residual
        "synonyms": "mean",  # a class is the mean of its synonyms
        "class_padding": 0,  # the class sequence is as long as the vocabulary
        "max_classes": 0,  # every class is aggregated
        "split_qkv": False,  # CLIP's attention weights stay fused
    },
    2024: {
        "guidance": "clip",  # image guidance: intermediate layers of CLIP's image encoder
        "last_residual": "class",  # last CLIP block: every token gets the class token's residual
        "synonyms": "first",  # a class is its first name
        "class_padding": 256,  # the class sequence is filled with learned tokens up to this
        "max_classes": 256,  # only the most similar classes of a crop are aggregated
        "split_qkv": True,  # q, k and v of CLIP's attention are separate parameters
    },
}


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a model, and how its published numbers look at a picture.

    Attributes:
        clip: name of a CLIP (see `build_clip`), or a model configuration of open_clip.
        templates: name of a set of prompt templates, see `get_templates`.
        guidance: image guidance from a "backbone", from "clip", from "both" or from "none".
        last_residual: of CLIP's last block, "token" or "class".
        synonyms: a class is the "mean" of its names, or its "first".
        class_padding: length to which class sequences are filled up; 0 for none.
        max_classes: at most so many classes of an image are aggregated; 0 for all.
        split_qkv: whether q, k and v of CLIP's attention are separate parameters.
        swin: settings of a `SwinTransformer` that guides.
        resnet: settings of a `ResNet` that guides.
        guidance_layers: CLIP blocks that guide, counted from 1; () for those at 1/3 and 2/3.
        upsample_dims: channels of the two upsampled CLIP layers.
        prompt_tokens: layers with visual prompt tokens, and how many each.
        grid: rows and columns of the cost volume.
        window: side of a window of spatial aggregation, in positions.
        hidden_dim, num_layers, num_heads, attention_type, pooling, test_pooling,
            text_guidance_dim, guidance_dim, decoder_dims, decoder_guidance_dims: see `Aggregator`.
        pixel_mean, pixel_std: the backbone's normalisation of RGB in 0..255.
        clip_pixel_mean, clip_pixel_std: CLIP's.
        size_divisibility: images are padded to multiples of this without sliding window, in pixels.
        min_size, max_size: the shortest edge to which `predict` resizes, unless the longest would
            exceed the second; in pixels.
        sliding_window: kernel (pixels), overlap (share) and resolution (pixels); None for none.
        parts: what stands in place of, or beside, the published parts, each a kind with a
            registered name and its settings, see `cat_seg.registry`.
        training_free: what stands in the aggregator's place, a variant of
            `cat_seg.modeling.training_free`; "" for the aggregator.
    """

    clip: str | dict[str, Any] = "ViT-B/16"
    templates: str = "imagenet"
    guidance: str = "backbone"
    last_residual: str = "token"
    synonyms: str = "mean"
    class_padding: int = 0
    max_classes: int = 0
    split_qkv: bool = False
    swin: dict[str, Any] | None = None
    resnet: dict[str, Any] | None = None
    guidance_layers: tuple[int, ...] = ()
    upsample_dims: tuple[int, ...] = (256, 128)
    prompt_tokens: tuple[int, ...] = (0, 0)
    grid: tuple[int, ...] = (24, 24)
    window: int = 12
    hidden_dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    attention_type: str = "linear"
    pooling: tuple[int, ...] = (2, 2)
    test_pooling: tuple[int, ...] | None = (1, 1)
    text_guidance_dim: int = 128
    guidance_dim: int = 128
    decoder_dims: tuple[int, ...] = (64, 32)
    decoder_guidance_dims: tuple[int, ...] = (32, 16)
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    clip_pixel_mean: tuple[float, ...] = (122.7709383, 116.7460125, 104.09373615)
    clip_pixel_std: tuple[float, ...] = (68.5005327, 66.6321579, 70.3231630)
    size_divisibility: int = 32
    min_size: int = 640
    max_size: int = 2560
    sliding_window: tuple[float, ...] | None = (384, 0.333, 640)
    parts: tuple[dict[str, Any], ...] = ()
    training_free: str = ""

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> ModelConfig:
        """Read what `to_dict` wrote.

        Raises:
            CATSegError: if a key is unknown or its value of another type.
        """
        fields = typing.get_type_hints(cls)
        if unknown := sorted(set(settings) - set(fields)):
            raise CATSegError(f"Unknown keys {unknown}; expected of {', '.join(fields)}.")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        for key, value in values.items():
            if not _fits(value, fields[key]):
                raise CATSegError(f"{key} is {value!r}; expected {fields[key]}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        return dataclasses.asdict(self)


def published_config(name: str) -> ModelConfig:
    """Return the architecture of a published model, such as "large-2024".

    Raises:
        CATSegError: if there is none of that name.
    """
    size, _, year = name.partition("-")
    clips = {
        "base": "ViT-B/16",
        "large": "ViT-L/14@336px",
        "huge": "ViT-H",
        "giant": "ViT-G",
    }
    if size not in clips or year not in ("2023", "2024"):
        raise CATSegError(f"{name!r} is no published model; `cat-seg models` lists them.")
    generation = GENERATIONS[int(year)]
    if year == "2024":
        return ModelConfig(clip=clips[size], templates="single", **generation)
    if size == "base":
        return ModelConfig(clip=clips[size], resnet={"depth": 101}, **generation)
    return ModelConfig(clip=clips[size], swin=SWIN_B, **generation)


SWIN_B: dict[str, Any] = {
    "embed_dim": 128,
    "depths": (2, 2, 18),
    "num_heads": (4, 8, 16),
    "window_size": 12,
    "drop_path_rate": 0.3,
}


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in typing.get_args(kind))
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_fits(v, item) for v in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or kind)
