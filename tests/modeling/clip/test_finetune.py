"""Which parameters train, and the two ways of storing attention weights."""

import pytest
import torch

from cat_seg.modeling.clip import build_clip, set_trainable, split_in_proj
from cat_seg.modeling.clip.finetune import fuse_projections, split_projections
from tests.golden import CLIP_PREFIX, checkpoint_rows
from tests.modeling.clip.tiny import tiny_clip


@pytest.mark.parametrize(
    ("checkpoint", "name", "mode"),
    [
        ("r101_vitb16", "ViT-B/16", "attention"),
        ("swinb_vitl336", "ViT-L/14@336px", "attention"),
        ("cvpr24_vitb16", "ViT-B/16", "attention_qv"),
        ("cvpr24_vitl336", "ViT-L/14@336px", "attention_qv"),
    ],
)
def test_tensors_and_trained_ones_are_those_of_the_released_models(checkpoint, name, mode):
    with torch.device("meta"):
        clip = build_clip(name)
    if mode == "attention_qv":
        split_in_proj(clip)
    set_trainable(clip, mode)
    expected = {
        row["key"].removeprefix(CLIP_PREFIX): (tuple(row["shape"]), row["trainable"])
        for row in checkpoint_rows(checkpoint)
        if row["key"].startswith(CLIP_PREFIX)
    }
    actual = {n: (tuple(p.shape), p.requires_grad) for n, p in clip.named_parameters()}
    assert actual == expected
    assert set(clip.state_dict()) == set(expected)


def test_other_modes():
    clip = tiny_clip()
    for mode in ("freeze", "prompt", ""):
        set_trainable(clip, mode)
        assert not any(p.requires_grad for p in clip.parameters())
    set_trainable(clip, "full")
    assert [n for n, p in clip.named_parameters() if not p.requires_grad] == ["logit_scale"]
    set_trainable(clip, "transformers")
    assert all(p.requires_grad == ("transformer." in n) for n, p in clip.named_parameters())
    set_trainable(clip, "full", text=False)
    assert all(p.requires_grad == n.startswith("visual.") for n, p in clip.named_parameters())
    with pytest.raises(ValueError, match="'attentoin'; expected one of attention, attention_qv"):
        set_trainable(clip, "attentoin")
    with pytest.raises(ValueError, match="needs split attention weights"):
        set_trainable(clip, "attention_qv")


def test_splitting_and_fusing_lose_nothing():
    clip = tiny_clip()
    fused = {key: value.clone() for key, value in clip.state_dict().items()}
    set_trainable(clip, "attention")
    split_in_proj(clip)
    split_in_proj(clip)  # a second time changes nothing
    split = clip.state_dict()
    trained = {n for n, p in clip.named_parameters() if p.requires_grad and n.endswith("_weight")}
    assert trained == {n for n in split if n.startswith("visual.") and n.endswith("_weight")}
    assert "visual.transformer.resblocks.0.attn.q_proj_weight" in split
    torch.testing.assert_close(split_projections(fused), dict(split), rtol=0, atol=0)
    torch.testing.assert_close(fuse_projections(split), fused, rtol=0, atol=0)
    assert split_projections(split).keys() == split.keys()
    assert fuse_projections(fused).keys() == fused.keys()


def test_incomplete_projections_stay_as_they_are():
    state = {"attn.q_proj_weight": torch.ones(2, 2), "attn.v_proj_weight": torch.ones(2, 2)}
    assert fuse_projections(state) == state
