"""The key conversion loses nothing: the released lists, both ways; Swin and CLIP of every kind."""

import pytest
import torch
from detectron2.modeling import build_model
from timm.models.swin_transformer import SwinTransformer

from cat_seg.conversion import (
    CLIP,
    PROMPTS,
    describe,
    from_released,
    generation,
    holds_clip,
    to_model,
    to_released,
)
from cat_seg.modeling.clip import split_in_proj
from cat_seg.plugin.backbone import D2SwinTransformer
from cat_seg.plugin.config import load_config
from tests.golden import checkpoint_rows
from tests.modeling.clip.tiny import tiny_clip

RELEASED = {
    "swinb_vitl336": "vitl",
    "r101_vitb16": "vitb",
    "cvpr24_vitb16": "vitb_2024",
    "cvpr24_vitl336": "vitl_2024",
}


@pytest.fixture(params=RELEASED)
def released(request):
    """A released model's config, and its state dict on the meta device."""
    rows = checkpoint_rows(request.param)
    state = {row["key"]: torch.empty(row["shape"], device="meta") for row in rows}
    return RELEASED[request.param], state


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def test_released_names_and_shapes_both_ways(released):
    config, state = released
    cfg = load_config(f"configs/{config}.yaml", ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    ours = model.state_dict()
    assert shapes(to_model(state, ours)) == shapes(from_released(state)) == shapes(ours)
    assert shapes(to_released(ours)) == shapes(state)


def test_visual_prompts_are_found_where_the_original_code_keeps_them():
    prompts = {CLIP + "visual.transformer.prompt_tokens": torch.ones(2, 3, 4)}
    assert shapes(from_released(prompts)) == {PROMPTS: (2, 3, 4)}
    assert shapes(to_released(from_released(prompts))) == shapes(prompts)
    assert shapes(from_released({PROMPTS: torch.ones(2, 3, 4)})) == {PROMPTS: (2, 3, 4)}


def test_released_models_are_told_apart(released):
    config, state = released
    assert generation(state) == (2024 if "2024" in config else 2023)
    assert holds_clip(state)
    assert f"configs/{config}.yaml" in describe(state)


def test_constants_are_what_the_original_code_stores():
    state = {
        "backbone.layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(9, 1),
        "sem_seg_head.predictor.transformer.layers.0.swin_block.block_2.norm1.weight": torch.zeros(
            1
        ),
    }
    released = to_released(state, grid=(4, 6), window=2)
    index = released["backbone.layers.0.blocks.0.attn.relative_position_index"]
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    mask = released["sem_seg_head.predictor.transformer.layers.0.swin_block.block_2.attn_mask"]
    assert mask.shape == (6, 4, 4)  # 2 x 3 windows of 2 x 2 positions
    assert not mask[:2].any() and (mask[5] == -100).sum() == 12  # the last: four strangers
    assert [[0.0, -100.0], [-100.0, 0.0]] == mask[2, :2, :2].tolist()  # columns wrapped around
    assert from_released(released) == state
    assert to_released(state, grid=(2, 2), window=2).keys() == state.keys() | {
        "backbone.layers.0.blocks.0.attn.relative_position_index"
    }


def test_data_parallel_prefix_is_dropped():
    state = {"upsample1.weight": torch.zeros(1)}
    assert from_released({f"module.{key}": value for key, value in state.items()}) == state


@pytest.fixture
def backbone():
    return D2SwinTransformer(embed_dim=8, depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=4)


def swin_names(backbone):
    return {f"backbone.{key}" for key in backbone.state_dict()}


def test_swin_of_timm(backbone):
    timm = SwinTransformer(
        img_size=64, embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4,
        num_classes=3, always_partition=True,
    ).eval()  # fmt: skip
    state = to_model(timm.state_dict(), swin_names(backbone))
    missing = swin_names(backbone) - state.keys()
    assert all(key.startswith("backbone.norm") for key in missing)
    backbone.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in state.items()}, strict=False
    )
    image = torch.randn(1, 3, 64, 64)
    stages = timm.forward_intermediates(image, intermediates_only=True)
    maps = backbone.eval()(image)
    for i in range(3):
        norm = getattr(backbone, f"norm{i}")
        expected = norm(stages[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(maps[f"res{i + 2}"], expected)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_swin_of_the_official_release(backbone, prefix):
    # Four stages with a classifier; a step after each stage but the last; constants stored.
    own = backbone.state_dict()
    state = {key: value for key, value in own.items() if not key.startswith("norm")}
    state |= {
        key.replace("layers.2", "layers.3"): v for key, v in state.items() if "layers.2" in key
    }
    state |= {
        "layers.2.downsample.reduction.weight": torch.zeros(64, 128),
        "layers.2.downsample.norm.weight": torch.zeros(128),
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16),
        "norm.weight": torch.zeros(64),
        "head.weight": torch.zeros(3, 64),
    }
    state = to_model({prefix + k: v for k, v in state.items()}, swin_names(backbone))
    found = {k: v for k, v in state.items() if k in swin_names(backbone)}
    assert len(found) == len(own) - 6
    assert all(
        torch.equal(value, own[key.removeprefix("backbone.")]) for key, value in found.items()
    )


@pytest.mark.parametrize("split", [False, True])
def test_clip_alone(split):
    clip, other = tiny_clip(), tiny_clip()
    for model in (clip, other) if split else ():
        split_in_proj(model)
    names = [CLIP + key for key in other.state_dict()]
    archive = tiny_clip().state_dict() | {"vocab_size": torch.tensor(49408)}
    state = to_model(archive, names)
    assert sorted(state) == sorted(names)
    other.load_state_dict({key.removeprefix(CLIP): value for key, value in state.items()})
    assert holds_clip(state) and generation(state) is None


def test_unknown_files_are_refused(backbone):
    with pytest.raises(ValueError, match=r"neither a checkpoint.*conv9\.weight"):
        to_model({"conv9.weight": torch.zeros(1)}, swin_names(backbone))
