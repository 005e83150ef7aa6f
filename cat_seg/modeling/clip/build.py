"""From the name of a CLIP to a model of open_clip, and its weights."""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path
from typing import Any

import open_clip
import timm
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from torch import Tensor

from cat_seg.errors import CATSegError
from cat_seg.modeling.clip.encoder import OpenClip
from cat_seg.modeling.clip.finetune import fuse_projections, split_projections
from cat_seg.modeling.clip.from_transformers import (
    is_transformers,
    open_clip_config,
    open_clip_state,
)
from cat_seg.modeling.clip.stem import ConvStem
from cat_seg.modeling.clip.text import set_tokenizer
from cat_seg.modeling.clip.towers import layers_of, take_any_size
from cat_seg.modeling.clip.vision import check_image_encoder
from cat_seg.resources import project_file
from cat_seg.trust.text import read_json
from cat_seg.trust.weights import check_weights, read_weights
from cat_seg.utils.files import FetchError, fetch

logger = logging.getLogger(__name__)

# The names that published configs use -> open_clip's architecture and tag of the weights.
_PUBLISHED = {
    "ViT-B/32": ("ViT-B-32-quickgelu", "openai"),
    "ViT-B/16": ("ViT-B-16-quickgelu", "openai"),
    "ViT-L/14": ("ViT-L-14-quickgelu", "openai"),
    "ViT-L/14@336px": ("ViT-L-14-336-quickgelu", "openai"),
    "ViT-H": ("ViT-H-14", "laion2b_s32b_b79k"),
    "ViT-G": ("ViT-bigG-14", "laion2b_s39b_b160k"),
}
_registered: dict[str, dict[str, Any]] = {}
# What OpenAI's archives hold besides weights.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
_COUNTERS = "num_batches_tracked"  # of BatchNorm, which not every file has
# What most CLIPs normalise RGB by, in 0..255.
_MEAN, _STD = (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.3231630)


def build_clip(
    name: str | dict[str, Any],
    pretrained: str = "",
    *,
    image_size: int | tuple[int, int] | None = None,
) -> OpenClip:
    """Build a CLIP whose image encoder gives dense features.

    Args:
        name: "ViT-B/16", "ViT-L/14@336px", "ViT-H", "ViT-G" (as in published configs), a name of
            open_clip ("ViT-L-14", or "ViT-L-14:dfn2b_s39b" with the tag of its weights), a name
            given to `register_clip`, "hf://owner/repo" of a CLIP or SigLIP of transformers, a path
            to a JSON model configuration of open_clip or transformers, or such a configuration
            itself.
        pretrained: what to give to `load_clip_weights`. Empty loads nothing: the weights are
            random, to be overwritten by a checkpoint.
        image_size: pixels of the images that it will see (multiples of the patch size), the native
            size if None. The position embedding keeps its native size, as checkpoints have it.

    Raises:
        CATSegError: if the name is unknown, the architecture has no dense features, or the size
            does not fit.
    """
    config = _model_config(name)
    vision = dict(config["vision_cfg"])
    stem, trunk = vision.pop("stem", None), vision.pop("timm_settings", None)
    clip = OpenClip(**config | {"vision_cfg": vision})
    clip.normalization = clip_normalization(name)
    if trunk:
        pool, name_of_timm = vision["timm_pool"], vision["timm_model_name"]
        clip.visual.trunk = timm.create_model(
            name_of_timm, num_classes=0, global_pool=pool, **trunk
        )
    if stem:
        visual = clip.visual
        visual.conv1 = ConvStem(stem, visual.conv1.out_channels, visual.patch_size[0])
    try:
        check_image_encoder(clip.visual)
    except CATSegError as error:
        raise CATSegError(f"CLIP {name!r} cannot be used: {error}") from error
    set_tokenizer(clip, config["text_cfg"])
    if isinstance(clip.visual, TimmModel):
        take_any_size(clip.visual)
    clip.visual.image_size = _pair(clip.visual.image_size if image_size is None else image_size)
    height, width = clip.visual.image_size
    patch = layers_of(clip.visual)[-1].stride
    if image_size is not None and (height % patch or width % patch):
        raise CATSegError(
            f"CLIP {name!r} cannot see images of {height} x {width} pixels: expected multiples of "
            f"its patch size {patch} x {patch}."
        )
    if pretrained:
        load_clip_weights(clip, pretrained)
    return clip


def register_clip(name: str, config: dict[str, Any]) -> None:
    """Make a model configuration of open_clip (embed_dim, vision_cfg, text_cfg) known by a name."""
    _registered[name] = config


def from_transformers(model: Any) -> OpenClip:
    """Make the CLIP that a model of transformers' classes CLIPModel or SiglipModel is.

    Args:
        model: with its weights, which are copied.

    Raises:
        CATSegError: if it is of another class.
    """
    clip = build_clip(model.config.to_dict())
    clip.load_state_dict(open_clip_state(model.state_dict()))
    return clip


def clip_normalization(name: str | dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in 0..255 by which a CLIP's weights see a picture.

    Args:
        name: see `build_clip`; with the tag of the weights, or the first that are published.
    """
    if isinstance(name, dict) or name.startswith("hf://"):
        config = name if isinstance(name, dict) else _hub_config(name)
        half = (127.5, 127.5, 127.5)  # SigLIP's
        return (half, half) if config.get("model_type") == "siglip" else (_MEAN, _STD)
    architecture, tag = _architecture(name)
    tags = list_pretrained_tags_by_model(architecture)
    published = get_pretrained_cfg(architecture, tag or (tags[0] if tags else ""))
    mean, std = published.get("mean"), published.get("std")
    if not mean or not std or tuple(mean) == open_clip.OPENAI_DATASET_MEAN:
        return _MEAN, _STD
    return tuple(255 * value for value in mean), tuple(255 * value for value in std)


def load_clip_weights(clip: open_clip.CLIP, source: str | Path) -> None:
    """Load CLIP's weights into a model of `build_clip`.

    Args:
        clip: the model; its attention may be split (`split_in_proj`) or not.
        source: a name that `build_clip` knows (its published weights are downloaded once), or a
            path, URL or hf:// address of a weight file: one of OpenAI's archives, of open_clip, or
            a checkpoint of CAT-Seg, of which CLIP's part is taken.

    Raises:
        CATSegError: if there are no such weights, or they do not fit the model exactly.
    """
    file = _weight_file(str(source))
    expected = {k: v for k, v in clip.state_dict().items() if "parametrizations." not in k}
    state = _clip_state(read_weights(file), expected, file)
    split = any(key.endswith("q_proj_weight") for key in expected)
    state = split_projections(state) if split else fuse_projections(state)
    wrong = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
    }
    if any(wrong.values()):
        found = "; ".join(f"{len(v)} {k} ({_some(v)})" for k, v in wrong.items() if v)
        raise CATSegError(
            f"{file} does not hold the weights of this CLIP: {found}. Give the weights of the same "
            "architecture and native image size, or choose the CLIP that they belong to."
        )
    try:
        check_weights(state, expected)
    except CATSegError as error:
        raise CATSegError(f"{file}: {error}") from error
    clip.load_state_dict(state, strict=False)  # what was added is not in the file
    logger.info("Loaded %d tensors of CLIP from %s", len(state), file)


def _model_config(name: str | dict[str, Any]) -> dict[str, Any]:
    """The arguments of `open_clip.CLIP` for a name, JSON path or configuration."""
    if isinstance(name, dict):
        config = dict(name)
    elif name in _registered:
        config = dict(_registered[name])
    elif name.startswith("hf://"):
        config = open_clip_config(_hub_config(name), name.removeprefix("hf://"))
    elif name.endswith(".json"):
        config = read_json(project_file(name))
        config = config.get("model_cfg", config) if isinstance(config, dict) else {}
    else:
        architecture, tag = _architecture(name)
        config = open_clip.get_model_config(architecture)
        if config is None:
            known = [*_PUBLISHED, *_registered, *open_clip.list_models()]
            similar = difflib.get_close_matches(name, known) or list(_PUBLISHED)
            raise CATSegError(
                f"{name!r} is not a CLIP that is known here. Similar names: {', '.join(similar)}; "
                "open_clip.list_models() lists all, and a path to a JSON configuration works too."
            )
        if get_pretrained_cfg(architecture, tag).get("quick_gelu"):
            config["quick_gelu"] = True  # a matter of the weights as much as of the architecture
    if is_transformers(config):
        config = open_clip_config(config)
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise CATSegError(
            f"CLIP {str(name)[:80]!r}: expected a configuration of open_clip, with vision_cfg and "
            "text_cfg."
        )
    if text.get("hf_model_name") or text.get("embed_cls"):
        raise CATSegError(
            f"CLIP {name!r} cannot be used: its text encoder is "
            f"{text.get('hf_model_name') or 'that of CoCa'}; expected one of open_clip's own "
            "without a class token (docs/encoders.md lists what can be used)."
        )
    # A "custom" text tower differs in the names of its parameters alone.
    return {key: value for key, value in config.items() if key != "custom_text"}


def _hub_config(name: str) -> dict[str, Any]:
    """The config.json of transformers in a repository of the hub."""
    config = read_json(fetch(f"{name}/config.json"))
    if not isinstance(config, dict) or not is_transformers(config):
        raise CATSegError(
            f"{name}/config.json describes no model of transformers; expected its model_type."
        )
    return config


def _architecture(name: str) -> tuple[str, str]:
    """open_clip's architecture for a name, and the tag of its weights ("" if it has none)."""
    architecture, _, tag = name.replace("/", "-").partition(":")
    return _PUBLISHED.get(name, (architecture, tag))


def _weight_file(source: str) -> Path:
    """Find or download the file that `load_clip_weights` was asked for."""
    if re.fullmatch(r"hf://[^/]+/[^/]+", source):
        return fetch(f"{source}/model.safetensors")
    architecture, tag = _architecture(source)
    tags = list_pretrained_tags_by_model(architecture)
    if not tags or Path(source).is_file():
        return fetch(source)
    if not (published := get_pretrained_cfg(architecture, tag)):
        raise CATSegError(
            f"Which weights of {source!r}? Write {architecture}:TAG with one of {', '.join(tags)}."
        )
    addresses = [published["url"]] if published.get("url") else []
    if hub := published.get("hf_hub"):
        repository, file = os.path.split(hub)
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        addresses += [f"hf://{repository}/{file}" for file in files]
    errors = []
    for address in addresses:
        try:
            return fetch(address)
        except FetchError as error:
            errors.append(error)
    raise errors[0]


def _clip_state(
    state: dict[str, Tensor], expected: dict[str, Tensor], file: Path
) -> dict[str, Tensor]:
    """The CLIP in a state dict, whatever it is part of, by open_clip's names."""
    if "vision_model.embeddings.patch_embedding.weight" in state:
        state = open_clip_state(state)
    mark = next(key for key in expected if key.startswith("visual.") and key.endswith("weight"))
    prefixes = [k.removesuffix(mark) for k in state if k.endswith(mark)]
    if len(prefixes) != 1:
        raise CATSegError(
            f"{file} holds {len(prefixes)} CLIPs of this kind; expected one key that ends in "
            f"{mark} (by OpenAI's and open_clip's names). It begins with {_some(list(state))}."
        )
    keys = {k: k.removeprefix(prefixes[0]) for k in state if k.startswith(prefixes[0])}
    clip = {
        new.removeprefix("text."): state[old] for old, new in keys.items() if new not in _NO_WEIGHTS
    }
    return {k: v for k, v in expected.items() if k.endswith(_COUNTERS)} | clip


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _some(names: list[str], at_most: int = 3) -> str:
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")
