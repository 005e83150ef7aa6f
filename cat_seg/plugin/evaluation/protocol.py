"""The protocol of the published numbers, and which of them a config stands for."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from cat_seg.class_lists import published_results
from cat_seg.plugin.config import GENERATIONS, generation_settings

# Key -> value, of whatever decides what the model sees.
PROTOCOL: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TEST": 640,
    "INPUT.MAX_SIZE_TEST": 2560,
    "TEST.AUG.ENABLED": False,
    "TEST.SLIDING_WINDOW": True,
    "TEST.SLIDING_KERNEL": 384,
    "TEST.SLIDING_OVERLAP": 0.333,
    "TEST.SLIDING_RESOLUTION": 640,
    "TEST.PRECISION": "float32",
    "TEST.INT8_ENCODERS": False,
    "TEST.HALF_VOLUME": False,
}
TEMPLATES = {2023: "imagenet", 2024: "single"}  # MODEL.PROMPT_ENSEMBLE_TYPE
POOLING = [1, 1]  # of class aggregation in evaluation, whatever it was in training

# The original code's names of CLIP -> those of datasets/published.json.
_CLIP = {"ViT-L/14@336px": "ViT-L/14@336", "ViT-H": "ViT-H/14", "ViT-G": "ViT-bigG/14"}


def deviations(cfg: CfgNode) -> list[str]:
    """Say where a config departs from the published protocol, a sentence each."""
    expected = {key: (_value(cfg, key), published) for key, published in PROTOCOL.items()}
    pooling = list(cfg.TEST.POOLING_SIZES or cfg.MODEL.SEM_SEG_HEAD.POOLING_SIZES)
    expected["TEST.POOLING_SIZES"] = (pooling, POOLING)
    settings = generation_settings(cfg)
    generation = settings["GENERATION"]
    expected["MODEL.PROMPT_ENSEMBLE_TYPE"] = cfg.MODEL.PROMPT_ENSEMBLE_TYPE, TEMPLATES[generation]
    for key, published in GENERATIONS[generation].items():
        expected[f"MODEL.SEM_SEG_HEAD.{key}"] = settings[key], published
    expected["MODEL.TRAINING_FREE"] = cfg.MODEL.TRAINING_FREE, ""
    return [
        f"{key} is {value!r}, published figures have {published!r}"
        for key, (value, published) in expected.items()
        if value != published
    ]


def published_model(cfg: CfgNode) -> dict[str, Any] | None:
    """Find the row of published results for the model that a config describes, if any.

    Returns:
        {"model", "clip", "mIoU": {registered split: percent}, ...}
    """
    if cfg.MODEL.TRAINING_FREE:
        return None
    clip = cfg.MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED
    wanted = (str(generation_settings(cfg)["GENERATION"]), _CLIP.get(clip, clip))
    rows = (row for row in published_results() if (row["generation"], row["clip"]) == wanted)
    return next(rows, None)


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
