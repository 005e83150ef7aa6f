"""The golden models as CAT-Seg configs and built models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from cat_seg import add_cat_seg_config

# isort: split
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import Tensor, nn

from tests.golden import load_golden


def golden_cfg(name: str, folder: Path, *opts: object) -> CfgNode:
    """The recipe as a config; the class names and the CLIP's sizes are written into `folder`."""
    golden = load_golden(name)
    recipe = golden.recipe
    files = {}
    for key in ("train_classes", "test_classes"):
        files[key] = folder / f"{key}.json"
        files[key].write_text(json.dumps(recipe[key]))
    clip = folder / "clip.json"
    clip.write_text(json.dumps(golden.clip_config))
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "CATSeg"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    model = {k: v for k, v in recipe.items() if k.startswith("MODEL.") and v is not None}
    head = model.pop("MODEL.SEM_SEG_HEAD")
    tree = {
        "MODEL": {
            "DEVICE": "cpu",
            "PROMPT_ENSEMBLE_TYPE": model["MODEL.PROMPT_ENSEMBLE_TYPE"],
            "SEM_SEG_HEAD": {
                **head,
                "NAME": "CATSegHead",
                "IN_FEATURES": ["res2", "res3", "res4"],
                "POOLING_SIZES": recipe["training POOLING_SIZES"],
                "CLIP_PRETRAINED": str(clip),
                "TRAIN_CLASS_JSON": str(files["train_classes"]),
                "TEST_CLASS_JSON": str(files["test_classes"]),
            },
        },
        "SOLVER": recipe["SOLVER"],
        "INPUT": {"FORMAT": "RGB"},
        "TEST": {
            "TEXT_CACHE": "none",
            "SLIDING_WINDOW": True,
            "POOLING_SIZES": head["POOLING_SIZES"],
        },
    }
    if "MODEL.SWIN" in model:
        tree["MODEL"]["SWIN"] = model["MODEL.SWIN"]
        tree["MODEL"]["BACKBONE"] = {"NAME": "D2SwinTransformer"}
    if recipe["guidance_layers_of_clip"]:
        tree["MODEL"]["SEM_SEG_HEAD"]["CLIP_GUIDANCE_LAYERS"] = recipe["guidance_layers_of_clip"]
    cfg.merge_from_other_cfg(CfgNode(tree))
    cfg.merge_from_list(list(opts))
    return cfg


def golden_model(name: str, folder: Path, *opts: object) -> nn.Module:
    """Built by `build_model` with the golden weights, in evaluation mode."""
    model = build_model(golden_cfg(name, folder, *opts))
    weights = load_golden(name).weights
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing and not unexpected, (missing[:3], unexpected[:3])
    return model.eval()


def mapped_image(name: str) -> Tensor:
    """The golden image as the test mapper gives it: (3, 640, 853)."""
    return resized(load_golden(name).inference["image_hwc"])


def resized(image: Tensor) -> Tensor:
    """(H, W, 3) uint8 as the test mapper gives it, (3, h, w)."""
    pixels = image.numpy()
    mapped = T.ResizeShortestEdge(640, 2560).get_transform(pixels).apply_image(pixels)
    return torch.from_numpy(np.ascontiguousarray(mapped.transpose(2, 0, 1)))
