"""Tiny CLIPs with random weights."""

import open_clip
import torch

from cat_seg.modeling.clip import build_clip, register_clip, split_in_proj
from tests.golden import load_golden

TINY = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}


def tiny_clip(**changes) -> open_clip.CLIP:
    """A CLIP of 8-pixel patches, 32 channels, D 24, whose every parameter matters."""
    register_clip("tiny", TINY | changes)
    clip = build_clip("tiny").eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


def golden_clip(name: str) -> open_clip.CLIP:
    """The CLIP of a golden model, with its weights."""
    golden = load_golden(name)
    register_clip(name, golden.clip_config)
    clip = build_clip(name, image_size=golden.recipe["clip"]["input_resolution_of_the_crops"][0])
    if golden.recipe["generation"] == "2024":
        split_in_proj(clip)
    clip.load_state_dict(golden.clip_weights)
    return clip.eval()
